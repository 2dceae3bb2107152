//! The keys of clusters' authorities: who removes them, and whose count.

use std::time::{Duration, SystemTime};

use decide::cluster::facts::Cluster;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use operator::Namespaces;
use operator::certificates::{CertificateSettings, Certificates};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::Api;
use crate::wait::{eventually, unchanged};
use crate::watches::Disturbance;
use crate::world::{SOON, World, cluster_path, core_path};

/// A cluster with certificates, whose pods nobody starts.
async fn with_cluster() -> (World, String) {
    let world = World::new().await;
    world.set_kubelet_idle(true);
    world.create("team", "c", &json!({}));
    let uid = world.object("team", "c")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    (world, core_path("daskade", "secrets", &format!("daskade-ca-{uid}")))
}

fn reads(world: &World, path: &str) -> usize {
    world.api.requests().iter().filter(|request| request.method == Method::GET && request.path == path).count()
}

fn data(api: &Api, path: &str) -> Value {
    api.object(path).unwrap_or_default()["data"].clone()
}

/// Issue 13, point 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_keeps_the_authority_of_a_cluster_that_its_lists_lack() {
    let (world, authority) = with_cluster().await;
    let first = world.operator();
    eventually("its pods are made", SOON, || world.pods("team").len() == 2).await;
    world.until_quiet().await;
    first.end().await;
    let cluster = cluster_path("team", "c");
    world.api.hide(&cluster, true);
    let before = reads(&world, &cluster);
    let second = world.operator_with(2, Namespaces::All);
    eventually("the API server is asked for the cluster itself", SOON, || {
        assert!(world.api.object(&authority).is_some(), "the key of a cluster that lives");
        reads(&world, &cluster) > before
    })
    .await;
    unchanged("its writes", Duration::from_secs(1), SOON, || world.writes().len()).await;
    assert!(world.api.object(&authority).is_some(), "the key of a cluster that lives");
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_a_later_list_lacks_keeps_its_authority_and_is_served_again() {
    let (world, authority) = with_cluster().await;
    let operator = world.operator();
    eventually("its pods are made", SOON, || world.pods("team").len() == 2).await;
    world.until_quiet().await;
    let cluster = cluster_path("team", "c");
    let before = (reads(&world, &cluster), data(&world.api, &authority));
    world.api.hide(&cluster, true);
    world.api.disturb(Disturbance::Expired);
    eventually("the API server is asked for the cluster itself, and again", SOON, || {
        assert!(world.api.object(&authority).is_some(), "the key of a cluster that lives");
        reads(&world, &cluster) > before.0 + 1
    })
    .await;
    world.api.hide(&cluster, false);
    world.api.disturb(Disturbance::Expired);
    world.api.delete(&core_path("team", "services", "c-scheduler"));
    let served = || world.api.object(&core_path("team", "services", "c-scheduler")).is_some();
    eventually("it is served again", SOON, served).await;
    assert_eq!(data(&world.api, &authority), before.1);
    operator.end().await;
}

const DAY: Duration = Duration::from_secs(86_400);

/// The Secrets of the cluster below.
fn secrets() -> [String; 3] {
    [
        core_path("daskade", "secrets", "daskade-ca-uid-of-c"),
        core_path("team", "secrets", "c-tls"),
        core_path("team", "secrets", "c-client-tls"),
    ]
}

fn cluster() -> Cluster {
    Cluster {
        name: "c".to_owned(),
        namespace: "team".to_owned(),
        uid: "uid-of-c".to_owned(),
        generation: 1,
        of_run: false,
        spec: serde_json::from_value(json!({})).expect("a spec"),
        status: serde_json::from_value(json!({})).expect("a status"),
    }
}

/// As an operator that has just begun has them.
fn certificates(api: &Api) -> Certificates {
    let settings =
        CertificateSettings { operator_namespace: "daskade".to_owned(), lifetime: 10 * DAY, ca_lifetime: 40 * DAY };
    Certificates::new(api.client(), settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_whose_secret_is_deleted_is_stored_again_and_nothing_else_changes() {
    let api = Api::start().await;
    let (certificates, cluster) = (certificates(&api), cluster());
    let looks = async |count: usize| {
        for _ in 0..count {
            certificates.ensure(&cluster, Timestamp::now(), true).await.expect("certificates");
        }
    };
    looks(3).await;
    let paths = secrets();
    let all = || paths.clone().map(|path| data(&api, &path));
    let before = all();
    assert!(before[0]["ca.key"].is_string(), "{before:?}");
    api.delete(&paths[0]);
    // A few looks at what tenants see are one at what only the operator sees.
    looks(5).await;
    assert_eq!(all(), before);
    // What cannot be read is as good as deleted.
    api.edit(&paths[0], |secret| secret["data"] = json!({"ca.key": "bm9uZQ=="}));
    looks(5).await;
    assert_eq!(all(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_begins_while_one_authority_follows_another_has_both_trusted() {
    let api = Api::start().await;
    let (cluster, now) = (cluster(), Timestamp::now());
    let first = certificates(&api);
    first.ensure(&cluster, now, true).await.expect("certificates");
    let later = now + SignedDuration::from_hours(21 * 24);
    first.ensure(&cluster, later, true).await.expect("certificates");
    let before = secrets().map(|path| data(&api, &path));
    assert!(before[0]["next.crt"].is_string(), "another follows: {before:?}");
    let second = certificates(&api);
    second.ensure(&cluster, later, true).await.expect("certificates");
    assert_eq!(secrets().map(|path| data(&api, &path)), before, "there is nothing to change");
    let shown: Secret = serde_json::from_value(api.object(&secrets()[1]).expect("a Secret")).expect("a Secret");
    let trusted = String::from_utf8(shown.data.expect("data")["ca.crt"].0.clone()).expect("text");
    assert_eq!(trusted.lines().filter(|line| *line == "-----BEGIN CERTIFICATE-----").count(), 2, "{trusted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leads_again_goes_by_the_authority_that_another_leader_has_made_meanwhile() {
    let (world, authority) = with_cluster().await;
    let shown = core_path("team", "secrets", "c-tls");
    let first = world.operator();
    eventually("its pods are made", SOON, || world.pods("team").len() == 2).await;
    world.until_quiet().await;
    let before = data(&world.api, &shown)["tls.crt"].clone();
    first.grant.lose();
    // While the other leads, the Secret goes, and with it the authority: the other has never seen it.
    world.api.delete(&authority);
    let second = world.operator_with(2, Namespaces::All);
    eventually("another certificate is shown", SOON, || data(&world.api, &shown)["tls.crt"] != before).await;
    world.until_quiet().await;
    second.end().await;
    let made = [&authority, &shown].map(|path| data(&world.api, path));
    let looked = reads(&world, &shown);
    first.grant.renew(3, Instant::now(), SystemTime::now(), Duration::from_secs(3600));
    eventually("the first looks at it again", SOON, || reads(&world, &shown) > looked).await;
    unchanged("its writes", Duration::from_secs(1), SOON, || world.writes().len()).await;
    assert_eq!([&authority, &shown].map(|path| data(&world.api, path)), made, "there is one authority");
    first.end().await;
}
