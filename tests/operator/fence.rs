//! No write without the lease, whatever the reconcilers do.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::client::ClientBuilder;
use operator::leader::fence::FenceLayer;
use operator::leader::lead::{Grant, NotLeading, lead};
use telemetry::metrics::Metrics;
use tokio::time::Instant;

use crate::api::Api;

struct Fenced {
    api: Api,
    maps: kube::Api<ConfigMap>,
    grant: Grant,
    metrics: Arc<Metrics>,
}

async fn fenced() -> Fenced {
    let api = Api::start().await;
    let (grant, lead) = lead();
    let metrics = Arc::new(Metrics::default());
    let layer = FenceLayer::new(lead, metrics.clone());
    let client = ClientBuilder::try_from(api.config()).expect("a client").with_layer(&layer).build();
    Fenced { api, maps: kube::Api::namespaced(client, "tenant"), grant, metrics }
}

impl Fenced {
    fn hold(&self, lasts: Duration) {
        self.grant.renew(1, Instant::now(), SystemTime::now(), lasts);
    }

    fn writes(&self) -> usize {
        self.api.requests().iter().filter(|request| request.method != Method::GET).count()
    }

    fn counted(&self, line: &str) -> bool {
        self.metrics.encode().expect("metrics").contains(line)
    }
}

fn map() -> ConfigMap {
    let metadata = ObjectMeta { name: Some("m".into()), ..ObjectMeta::default() };
    ConfigMap { metadata, data: Some(BTreeMap::new()), ..ConfigMap::default() }
}

/// Whether the fence refused it.
fn refused<T>(result: Result<T, kube::Error>) -> bool {
    let Err(error) = result else { return false };
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<NotLeading>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[tokio::test]
async fn only_reads_pass_without_the_lease() {
    let fenced = fenced().await;
    let apply = PatchParams::apply("daskade");
    assert!(fenced.maps.get_opt("m").await.expect("an answer").is_none());
    assert!(refused(fenced.maps.create(&PostParams::default(), &map()).await));
    assert!(refused(fenced.maps.replace("m", &PostParams::default(), &map()).await));
    assert!(refused(fenced.maps.patch("m", &apply, &Patch::Apply(map())).await));
    assert!(refused(fenced.maps.delete("m", &DeleteParams::default()).await));
    assert_eq!(fenced.writes(), 0);
    fenced.hold(Duration::from_secs(60));
    fenced.maps.patch("m", &apply, &Patch::Apply(map())).await.expect("a write");
    assert_eq!(fenced.writes(), 1);
    fenced.grant.lose();
    assert!(refused(fenced.maps.delete("m", &DeleteParams::default()).await));
    assert_eq!(fenced.writes(), 1);
    for line in [
        r#"daskade_api_writes_total{verb="patch",resource="configmaps",answer="done"} 1"#,
        r#"daskade_api_writes_total{verb="patch",resource="configmaps",answer="fenced"} 1"#,
        r#"daskade_api_writes_total{verb="delete",resource="configmaps",answer="fenced"} 2"#,
    ] {
        assert!(fenced.counted(line), "{line} in {:?}", fenced.metrics.encode());
    }
}

#[tokio::test]
async fn a_write_that_is_tried_again_stops_when_the_lease_is_lost() {
    let fenced = fenced().await;
    // The client waits and tries again by itself.
    fenced.api.fail("/configmaps", 429);
    fenced.hold(Duration::from_secs(60));
    let maps = fenced.maps.clone();
    let write = tokio::spawn(async move { maps.create(&PostParams::default(), &map()).await });
    crate::wait::eventually("it is tried again", Duration::from_secs(10), || fenced.writes() >= 3).await;
    fenced.grant.lose();
    fenced.api.fail("/configmaps", 0);
    assert!(refused(write.await.expect("no panic")));
    let so_far = fenced.writes();
    // It was given up, not only its answer: the next request of this client is the next one that comes.
    fenced.maps.get_opt("other").await.expect("an answer");
    assert_eq!(fenced.writes(), so_far);
    assert!(fenced.api.object("/api/v1/namespaces/tenant/configmaps/m").is_none());
}

#[tokio::test]
async fn the_right_that_ran_out_by_time_alone_is_enough_to_refuse() {
    let fenced = fenced().await;
    let lasts = Duration::from_secs(60);
    let since = Instant::now().checked_sub(lasts).expect("the machine runs for longer");
    fenced.grant.renew(1, since, SystemTime::now(), lasts);
    assert!(refused(fenced.maps.create(&PostParams::default(), &map()).await));
    assert_eq!(fenced.writes(), 0);
}
