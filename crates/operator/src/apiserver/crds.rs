//! Waits for the custom resource definitions, and tells which are missing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;

use crate::cause::cause;
use api::API_VERSION;
use telemetry::health::Health;

/// Key of the definitions in what `/ready` says.
const NEED: &str = "crds";
/// While one is missing: soon enough for a person who has just applied them.
const MISSING: Duration = Duration::from_secs(2);
/// While all are there: only so that `/ready` tells of a deletion. One small read a minute.
const PRESENT: Duration = Duration::from_secs(60);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Keeps `health` informed about the definitions of the named kinds (plurals), and `found` once all were there. Never
/// ends. Needs no rights but discovery, which every account has.
pub async fn watch_definitions(client: Client, needed: Vec<String>, health: Arc<Health>, found: watch::Sender<bool>) {
    loop {
        let pause = match missing(&client, &needed).await {
            None => {
                if health.found(NEED) {
                    tracing::info!("all custom resource definitions are there");
                }
                found.send_if_modified(|told| !std::mem::replace(told, true));
                PRESENT
            }
            Some(why) => {
                if health.wait_for(NEED, &why) {
                    tracing::warn!("waiting: {why}");
                }
                MISSING
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// What is missing and what to do; none if nothing is.
async fn missing(client: &Client, needed: &[String]) -> Option<String> {
    let served: BTreeSet<String> =
        match tokio::time::timeout(ANSWER, client.list_api_group_resources(API_VERSION)).await {
            Ok(Ok(list)) => list.resources.into_iter().map(|resource| resource.name).collect(),
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => BTreeSet::new(),
            Ok(Err(error)) => {
                return Some(format!("the API server does not tell which resources it serves: {}", cause(&error)));
            }
            Err(_) => return Some("the API server does not answer".to_owned()),
        };
    let group = api::GROUP;
    let missing: Vec<String> =
        needed.iter().filter(|name| !served.contains(*name)).map(|name| format!("{name}.{group}")).collect();
    if missing.is_empty() {
        return None;
    }
    let names = missing.join(", ");
    Some(format!("missing {names} in version {}; apply them: daskade crd | kubectl apply -f -", api::VERSION))
}
