//! What the API server refuses, loses and garbles: each cluster bears its own, and each is told.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::api::{Fault, Recorded};
use crate::wait::eventually;
use crate::watches::Disturbance;
use crate::world::{SOON, World, cluster_path, core_path, plain, run_path};

const OUTCOMES: &str = "daskade_reconcile_duration_seconds_count{controller=\"daskcluster\",outcome=";

fn refuse(method: Option<Method>, part: &str, status: u16, message: &str) -> Fault {
    Fault { method, part: part.to_owned(), status, message: message.to_owned(), ..Fault::default() }
}

/// Requests of a method whose path has a part.
fn count(world: &World, method: &Method, part: &str) -> usize {
    world.api.requests().iter().filter(|request| request.method == *method && request.path.contains(part)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_in_trouble_tells_it_and_delays_no_other() {
    let world = World::new().await;
    for (part, status, message) in [
        ("/namespaces/quota/pods", 403, "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1"),
        ("/namespaces/rights/pods", 403, "pods is forbidden: User \"op\" cannot create resource \"pods\""),
        ("/namespaces/policy/pods", 403, "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\""),
        ("/namespaces/hook/pods", 500, "Internal error occurred: failed calling webhook \"w.example.org\""),
        ("/namespaces/broken/services", 500, "etcdserver: mvcc: database space exceeded"),
        ("/namespaces/secrets/secrets", 403, "secrets \"c-tls\" is forbidden: User \"op\" cannot get resource"),
    ] {
        world.api.fault(refuse(Some(Method::POST), part, status, message));
        world.api.fault(refuse(Some(Method::PATCH), part, status, message));
    }
    let operator = world.operator();
    for namespace in ["quota", "rights", "policy", "hook", "broken"] {
        for name in ["a", "b", "c"] {
            world.create(namespace, name, &plain(1));
        }
    }
    world.create("secrets", "c", &json!({}));
    world.create("invalid", "c", &json!({"workers": [{"name": "a", "replicas": "many"}]}));
    world.create("invalid", "1-up", &json!({}));
    world.create("fine", "c", &plain(1));
    world.until_ready("fine", "c").await;
    for (namespace, name, reason, words) in [
        ("quota", "c", "QuotaExceeded", "create Pod c-scheduler-1: pods \"x\" is forbidden: exceeded quota: q"),
        ("rights", "c", "Forbidden", "create Pod c-scheduler-1: pods is forbidden: User \"op\" cannot create"),
        ("policy", "c", "PodRejected", "create Pod c-scheduler-1: pods \"x\" is forbidden: violates PodSecurity"),
        ("hook", "c", "AdmissionFailed", "failed calling webhook \"w.example.org\""),
        ("broken", "c", "ApiError", "create Service c-scheduler: etcdserver: mvcc: database space exceeded"),
        ("secrets", "c", "Forbidden", "secrets \"c-tls\" is forbidden"),
        ("invalid", "c", "Invalid", "spec.workers[0].replicas"),
        ("invalid", "1-up", "Invalid", "metadata.name: InvalidName: `1-up`"),
    ] {
        world.until_reason(namespace, name, reason).await;
        world.says(namespace, name, "Ready", words);
    }
    world.create("fine", "late", &plain(1));
    world.until_ready("fine", "late").await;
    for outcome in ["forbidden", "transient", "invalid"] {
        assert!(operator.metric(&format!("{OUTCOMES}\"{outcome}\"}}")) > 0.0, "{outcome}");
    }
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_again_and_again_is_tried_ever_more_rarely_and_uses_up_no_numbers() {
    let world = World::new().await;
    let message = "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1";
    world.api.fault(refuse(Some(Method::POST), "/namespaces/team/pods", 403, message));
    let operator = world.operator();
    world.create("team", "c", &plain(50));
    world.until_reason("team", "c", "QuotaExceeded").await;
    world.says("team", "c", "Ready", "exceeded quota: q, requested: pods=1");
    let tries = |pod: &str| -> Vec<Recorded> {
        let mut tries = world.api.requests();
        tries.retain(|it| it.method == Method::POST && it.body["metadata"]["name"] == pod);
        tries
    };
    let pause = || tries("c-scheduler-1").windows(2).map(|pair| pair[1].at - pair[0].at).max().unwrap_or_default();
    eventually("a pause is longer than a first one can be", SOON, || pause() > Duration::from_millis(3200)).await;
    let passes = tries("c-scheduler-1");
    let early = passes.iter().filter(|it| it.at - passes[0].at < Duration::from_secs(7)).count();
    assert!(early <= 4 && passes.len() <= 6, "{early} of {}", passes.len());
    // Scheduler and one worker in each reconciliation; the others of a group would be refused as well.
    let mut pods = world.api.requests();
    pods.retain(|it| it.method == Method::POST && it.path.ends_with("/pods"));
    assert!(pods.len() <= 2 * passes.len(), "{} in {} passes", pods.len(), passes.len());
    let tried: BTreeSet<&str> = pods.iter().map(|it| it.body["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(tried.into_iter().collect::<Vec<_>>(), ["c-cpu-0-2", "c-scheduler-1"]);
    let told = count(&world, &Method::PATCH, "/daskclusters/c/status");
    assert!(told <= 3, "the same is told once: {told}");
    assert!(world.object("team", "c")["status"]["incarnation"].is_null());
    world.api.edit(&cluster_path("team", "c"), |object| object["spec"]["workers"][0]["replicas"] = json!(2));
    // A reconciliation that still has the old spec must not find the quota lifted.
    eventually("it has seen the new spec", SOON, || {
        let object = world.object("team", "c");
        object["status"]["observedGeneration"] == object["metadata"]["generation"]
    })
    .await;
    world.api.heal();
    // Else the next try is the one that has just been put off.
    world.api.edit(&cluster_path("team", "c"), |object| object["metadata"]["labels"] = json!({"look": "again"}));
    world.until_ready("team", "c").await;
    assert_eq!(world.pods("team"), ["c-cpu-0-2", "c-cpu-1-3", "c-scheduler-1"]);
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_lost_answers_and_servers_in_haste_are_borne() {
    let world = World::new().await;
    let lost = |method, part: &str| Fault { after: true, times: 1, ..refuse(Some(method), part, 500, "lost") };
    world.api.fault(Fault { times: 2, ..refuse(Some(Method::POST), "/services", 409, "modified") });
    world.api.fault(lost(Method::POST, "/networkpolicies"));
    world.api.fault(lost(Method::POST, "/pods"));
    world.api.fault(Fault {
        times: 1,
        retry_after: 1,
        ..refuse(Some(Method::POST), "/pods", 429, "too many requests")
    });
    world.api.fault(lost(Method::PATCH, "/status"));
    let operator = world.operator();
    world.create("team", "c", &plain(2));
    world.until_ready("team", "c").await;
    world.until_quiet().await;
    assert_eq!(world.pods("team").len(), 3, "nothing is there twice: {:?}", world.pods("team"));
    assert!(operator.metric(&format!("{OUTCOMES}\"conflict\"}}")) >= 2.0);
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_was_away_finds_everything_as_it_should_be_soon_after() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(2));
    world.until_ready("team", "c").await;
    world.until_quiet().await;
    let pods = world.pods("team");
    world.api.fault(refuse(None, "", 503, "away"));
    world.api.disturb(Disturbance::Torn);
    let refused = || world.api.requests().iter().filter(|request| request.status == 503).count();
    eventually("all watches have tried to come back several times", SOON, || refused() >= 21).await;
    world.api.delete(&core_path("team", "services", "c-scheduler"));
    world.api.heal();
    eventually("it is back", SOON * 2, || world.api.object(&core_path("team", "services", "c-scheduler")).is_some())
        .await;
    assert_eq!(world.pods("team"), pods, "what runs goes on");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_break_in_any_way_take_nothing_away_and_show_what_was_missed() {
    for how in [Disturbance::Expired, Disturbance::Garbage, Disturbance::Torn] {
        let world = World::new().await;
        let operator = world.operator();
        world.create("team", "c", &plain(1));
        world.until_ready("team", "c").await;
        world.until_quiet().await;
        let pods: BTreeSet<String> = world.pods("team").into_iter().collect();
        let before = world.writes().len();
        // An event is missed, too.
        world.api.disturb(Disturbance::Frozen);
        world.create("team", "new", &plain(0));
        world.api.disturb(how);
        world.until_ready("team", "new").await;
        world.until_quiet().await;
        let now: BTreeSet<String> = world.pods("team").into_iter().collect();
        assert!(now.is_superset(&pods), "{how:?}: {now:?}");
        let of_old: Vec<_> = world.writes()[before..]
            .iter()
            .filter(|request| request.path.contains("/c-") || request.path.contains("/c/"))
            .cloned()
            .collect();
        assert_eq!(of_old.len(), 0, "{how:?}: {of_old:?}");
        operator.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_taken_away_for_a_spec_that_may_be_old() {
    let world = World::new().await;
    let operator = world.operator();
    let mut spec = plain(1);
    spec["idleTimeout"] = json!("1s");
    world.create("team", "c", &spec);
    world.until_ready("team", "c").await;
    world.until_quiet().await;
    // The watch shows nothing any more, and somebody takes the timeout back.
    world.api.disturb(Disturbance::Frozen);
    world.api.edit(&cluster_path("team", "c"), |object| {
        object["spec"].as_object_mut().map(|spec| spec.remove("idleTimeout"));
    });
    // Else the answer to a write of the status would show it.
    world.api.fault(refuse(Some(Method::PATCH), "/status", 500, "not now"));
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| state.clients = 0);
    eventually("it asks several times whether the spec is still the same", SOON, || {
        operator.metric(&format!("{OUTCOMES}\"conflict\"}}")) >= 3.0
    })
    .await;
    assert!(scheduler.calls("daskade-drain").is_empty());
    assert_eq!(world.pods("team").len(), 2);
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_being_deleted_is_left_to_end() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(1));
    world.until_ready("team", "c").await;
    let message = "\"x\" is forbidden: unable to create new content in namespace team because it is being terminated";
    world.api.fault(refuse(Some(Method::POST), "/namespaces/team/", 403, message));
    // Applies that would create; what is there may still be written.
    world.api.fault(refuse(Some(Method::PATCH), "/namespaces/team/services", 403, message));
    let before = world.writes().len();
    for path in world.api.paths("/namespaces/team/").into_iter().filter(|path| !path.contains("/daskclusters/")) {
        world.api.delete(&path);
    }
    world.until_reason("team", "c", "NamespaceTerminating").await;
    world.says("team", "c", "Ready", "namespace team because it is being terminated");
    world.until_still().await;
    let tries = world.writes()[before..].iter().filter(|request| request.status == 403).count();
    assert!(tries <= 6, "no loop: {tries}");
    assert!(operator.metric(&format!("{OUTCOMES}\"forbidden\"}}")) >= 1.0);
    assert_eq!(operator.metric(&format!("{OUTCOMES}\"conflict\"}}")), 0.0);
    world.api.delete(&cluster_path("team", "c"));
    world.until_quiet().await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_does_not_answer_is_told_and_keeps_its_workers() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(2));
    world.create("team", "d", &plain(1));
    world.until_ready("team", "c").await;
    world.until_ready("team", "d").await;
    let scheduler = world.scheduler("team", "c");
    scheduler.stop();
    world.api.edit(&cluster_path("team", "c"), |object| object["spec"]["workers"][0]["replicas"] = json!(1));
    world.api.edit(&cluster_path("team", "d"), |object| object["spec"]["workers"][0]["replicas"] = json!(2));
    // An open connection goes on; a new one, for a command, is refused.
    eventually("it is told", SOON, || world.condition("team", "c", "WorkersReady")["reason"] == "SchedulerUnreachable")
        .await;
    world.says("team", "c", "WorkersReady", "the scheduler cannot be reached to drain them; none is removed");
    assert_eq!(world.pods("team").iter().filter(|pod| pod.starts_with("c-cpu")).count(), 2);
    world.until_ready("team", "d").await;
    assert!(scheduler.calls("daskade-drain").is_empty());
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_ends_again_and_again_is_told_by_its_cluster_and_by_the_runs_on_it() {
    let world = World::new().await;
    let operator = world.operator();
    let mut shared = plain(1);
    shared["storage"] = json!({"url": "s3://bucket/c"});
    world.create("team", "c", &shared);
    world.until_ready("team", "c").await;
    let pod = world.pods("team").into_iter().find(|pod| pod.starts_with("c-scheduler-")).expect("its pod");
    world.scheduler("team", "c").stop();
    world.api.edit(&core_path("team", "pods", &pod), |pod| {
        pod["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
        pod["status"]["containerStatuses"] = json!([{
            "name": "scheduler", "image": "example.org/w:1", "imageID": "", "ready": false, "restartCount": 4,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no room"}},
        }]);
    });
    world.until_reason("team", "c", "SchedulerUnstable").await;
    world.says("team", "c", "SchedulerReady", "restarted 4 times");
    let steps = json!({"steps": [{"name": "a", "call": "m:f"}], "cluster": {"ref": "c"}});
    world.create_run("team", "r", &json!({"pipelineSpec": steps}));
    world.until_run("team", "r", "SchedulerUnstable").await;
    world.run_says("team", "r", "DaskCluster c: the scheduler restarted 4 times");
    // It comes back, for good.
    world.api.delete(&core_path("team", "pods", &pod));
    world.until_run("team", "r", "Succeeded").await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_in_a_pass_over_one_object_holds_up_no_other_and_is_not_made_again_at_once() {
    let world = World::new().await;
    world.trap.set("/bad/status");
    let operator = world.operator();
    let pipeline = |name: &str| format!("/apis/daskade.dev/v1alpha1/namespaces/team/pipelines/{name}");
    let steps = json!({"steps": [{"name": "a", "call": "m:f"}], "cluster": {"ref": "c"}});
    let mut shared = plain(1);
    shared["storage"] = json!({"url": "s3://bucket/c"});
    world.create("team", "c", &shared);
    for name in ["bad", "good"] {
        world.create("team", name, &plain(1));
        world.create_run("team", name, &json!({"pipelineSpec": steps}));
        let spec = json!({"steps": steps["steps"], "triggers": {"onChange": false}});
        world.api.put(&pipeline(name), json!({"metadata": {"name": name, "namespace": "team"}, "spec": spec}));
    }
    world.until_ready("team", "good").await;
    world.until_run("team", "good", "Succeeded").await;
    let accepted = || world.api.object(&pipeline("good")).unwrap()["status"]["conditions"][0]["status"] == "True";
    eventually("the other Pipeline is accepted", SOON, accepted).await;
    for controller in ["daskcluster", "pipelinerun", "pipeline"] {
        let series =
            format!("daskade_reconcile_duration_seconds_count{{controller=\"{controller}\",outcome=\"panicked\"}}");
        eventually(&format!("{controller}: it is counted"), SOON, || operator.metric(&series) >= 1.0).await;
    }
    // Whatever happens to them, they have no turn before their time.
    let before = world.trap.sprung();
    for look in 0..10 {
        for path in [cluster_path("team", "bad"), run_path("team", "bad"), pipeline("bad")] {
            world.api.edit(&path, |object| object["metadata"]["labels"] = json!({ "look": format!("{look}") }));
        }
        world.until_quiet().await;
    }
    assert_eq!((before, world.trap.sprung()), (3, 3));
    world.create("team", "late", &plain(1));
    world.until_ready("team", "late").await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_while_the_spec_is_not_valid() {
    let mut world = World::new().await;
    world.lifetime = Duration::from_secs(12);
    world.set_kubelet_idle(true);
    let operator = world.operator();
    for name in ["unread", "wrong"] {
        world.create("team", name, &json!({}));
    }
    eventually("their pods are made", SOON, || world.pods("team").len() == 4).await;
    for (name, workers, words) in [
        ("unread", json!([{"name": "a", "replicas": "many"}]), "spec.workers[0].replicas: InvalidValue"),
        ("wrong", json!([{"name": "a".repeat(60)}]), "spec.workers[0].name: "),
    ] {
        world.api.edit(&cluster_path("team", name), |object| object["spec"]["workers"] = workers);
        world.until_reason("team", name, "Invalid").await;
        world.says("team", name, "Ready", words);
    }
    let certificate = |name: &str| {
        let secret = world.api.object(&core_path("team", "secrets", &format!("{name}-tls"))).unwrap();
        secret["data"]["tls.crt"].as_str().unwrap().to_owned()
    };
    for name in ["unread", "wrong"] {
        let before = certificate(name);
        eventually(&format!("{name} has another certificate"), SOON, || certificate(name) != before).await;
        assert_eq!(world.reason("team", name), "Invalid");
    }
    // A cluster that was never valid gets none.
    world.create("team", "never", &json!({"workers": [{"name": "a", "replicas": "many"}]}));
    world.until_reason("team", "never", "Invalid").await;
    world.says("team", "never", "Ready", "spec.workers[0].replicas: InvalidValue");
    assert!(world.api.object(&core_path("team", "secrets", "never-tls")).is_none());
    assert_eq!(world.pods("team").len(), 4, "what runs goes on, and nothing else is done");
    operator.end().await;
}
