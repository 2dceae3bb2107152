//! What runs have stored is removed when its time has come: by whose scheduler, in which order, and what is told.

use http::Method;
use serde_json::{Value, json};

use crate::wait::{eventually, eventually_or};
use crate::world::{SOON, World, cluster_path, plain, run_path};

/// One step, on a cluster of its own.
fn own() -> Value {
    json!({
        "steps": [{"name": "a", "call": "m:f"}],
        "cluster": {"template": plain(1)},
        "storage": {"url": "s3://bucket/p"},
    })
}

fn status(world: &World, name: &str) -> Value {
    world.api.object(&run_path("team", name)).unwrap_or_default()["status"].clone()
}

async fn until_removed(world: &World, name: &str, truth: &str, reason: &str) {
    let condition = || world.run_condition("team", name, "Removed");
    let what = || format!("{name}: Removed is {truth}, {reason}: {:#}", condition());
    eventually_or(what, SOON, || condition()["status"] == truth && condition()["reason"] == reason).await;
}

/// Operations on what is stored that the scheduler of a cluster was asked for, in order, each once in a row.
fn asked(world: &World, cluster: &str) -> Vec<String> {
    let ops = ["mark", "stored", "seal", "references", "user", "objects", "discard"];
    let calls = world.scheduler("team", cluster).all_calls();
    let mut asked: Vec<String> = calls
        .iter()
        .filter_map(|call| call["op"].as_str()?.strip_prefix("daskade-").map(ToOwned::to_owned))
        .filter(|op| ops.contains(&op.as_str()))
        .collect();
    asked.dedup();
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_of_a_run_is_made_again_without_workers_and_the_object_stays_until_then() {
    let world = World::new().await;
    world.collect();
    let operator = world.operator();
    let spec = json!({"pipelineSpec": own(), "retention": {"outputs": "4s", "logs": "8s"}, "ttlAfterFinished": "1s"});
    world.create_run("team", "r", &spec);
    world.until_run("team", "r", "Succeeded").await;
    eventually("its cluster is gone", SOON, || world.api.object(&cluster_path("team", "r")).is_none()).await;
    assert_eq!(world.journal("team", "r").stored.data.len(), 1);
    assert!(world.run_condition("team", "r", "Removed").is_null(), "its time has not come");

    until_removed(&world, "r", "True", "Removed").await;
    assert!(world.api.object(&run_path("team", "r")).is_some(), "the journal is still to be removed");
    let stored = world.journal("team", "r").stored;
    assert!(stored.data.is_empty() && stored.logs.len() == 1, "{stored:?}");
    let removed = status(&world, "r")["removed"].clone();
    assert!(removed["outputsAt"].is_string() && removed["logsAt"].is_null(), "{removed}");
    eventually("its cluster is gone", SOON, || world.api.object(&cluster_path("team", "r")).is_none()).await;

    eventually("the object is gone", SOON, || world.api.object(&run_path("team", "r")).is_none()).await;
    let writes = world.writes();
    let made = writes.iter().filter(|write| write.method == Method::POST && write.path.ends_with("/daskclusters"));
    assert_eq!(made.count(), 3, "one for the run, one for each removal");
    let pods: Vec<String> = writes
        .iter()
        .filter(|write| write.method == Method::POST && write.path.ends_with("/pods"))
        .map(|write| write.body["metadata"]["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert!(pods.iter().all(|pod| pod.starts_with("r-scheduler-")), "no worker: {pods:?}");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_shared_cluster_its_scheduler_is_asked_and_marks_come_before_deletions() {
    let world = World::new().await;
    world.collect();
    let operator = world.operator();
    let mut shared = plain(1);
    shared["storage"] = json!({"url": "s3://bucket/c"});
    world.create("team", "c", &shared);
    world.until_ready("team", "c").await;
    let on_shared = json!({"steps": [{"name": "a", "call": "m:f"}], "cluster": {"ref": "c"}});
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared, "retention": {"outputs": "1s", "logs": "1s"}}));
    world.until_run("team", "r", "Succeeded").await;
    until_removed(&world, "r", "True", "Removed").await;
    assert_eq!(
        asked(&world, "c"),
        ["mark", "stored", "references", "objects", "discard", "objects", "discard", "objects", "discard"]
    );
    let stored = world.journal("team", "r").stored;
    assert!(stored.data.is_empty() && stored.logs.is_empty(), "{stored:?}");
    assert!(world.api.object(&cluster_path("team", "c")).is_some());
    let calls = world.scheduler("team", "c").calls("daskade-discard");
    assert!(calls.iter().all(|call| call["lead"] == 1), "an older leader is refused: {calls:?}");
    assert_eq!(calls.last().unwrap()["pipeline"], "r", "later runs do not find it any more");
    // Another look, and another operator, find nothing to do.
    world.until_quiet().await;
    let before = (world.writes().len(), asked(&world, "c").len());
    operator.end().await;
    let operator = world.operator_with(2, operator::Namespaces::All);
    world.until_still().await;
    assert_eq!((world.writes().len(), asked(&world, "c").len()), before);
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_is_told_on_the_object_and_tried_again_and_holds_up_no_other() {
    let world = World::new().await;
    world.collect();
    let operator = world.operator();
    world.create_run("team", "r", &json!({"pipelineSpec": own(), "retention": {"outputs": "3s"}}));
    world.until_run("team", "r", "Succeeded").await;
    world.refuse_storage(Some(("AccessDenied", 0)));
    until_removed(&world, "r", "False", "AccessDenied").await;
    let message = world.run_condition("team", "r", "Removed")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("does not work") && message.contains("retrying"), "{message}");
    eventually("its cluster is given back", SOON, || world.api.object(&cluster_path("team", "r")).is_none()).await;
    assert_eq!(world.succeeded("team", "r")[1], "Succeeded", "the run itself is as it was");
    world.create_run("team", "other", &json!({"pipelineSpec": own()}));
    world.until_run("team", "other", "Succeeded").await;
    world.refuse_storage(None);
    // A new leader has no pause to wait for.
    operator.end().await;
    let operator = world.operator_with(2, operator::Namespaces::All);
    until_removed(&world, "r", "True", "Removed").await;
    assert!(world.journal("team", "r").stored.data.is_empty());
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_that_others_have_taken_over_stay_and_wait_for_those_that_still_run() {
    let world = World::new().await;
    world.collect();
    let operator = world.operator();
    for (name, users) in [("taken", json!({"later": ["data/0/-1-1-x"]})), ("live", json!({"later": null}))] {
        world.create_run("team", name, &json!({"pipelineSpec": own(), "retention": {"outputs": "3s"}}));
        world.until_run("team", name, "Succeeded").await;
        world.change_journal("team", name, |journal| {
            journal.stored.references.insert("later/1".to_owned());
            journal.stored.users = serde_json::from_value(users).unwrap();
        });
    }
    until_removed(&world, "taken", "True", "Removed").await;
    assert_eq!(world.journal("team", "taken").stored.data.len(), 1);
    let told = status(&world, "taken");
    assert_eq!(told["removed"]["outputsKept"], 1);
    let message = world.run_condition("team", "taken", "Removed")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("1 output stays"), "{message}");

    until_removed(&world, "live", "False", "OutputsInUse").await;
    let message = world.run_condition("team", "live", "Removed")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("run later (later) has taken outputs"), "{message}");
    let journal = world.journal("team", "live");
    assert!(journal.stored.data.len() == 1 && journal.stored.removed.contains("outputs"), "{journal:?}");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_is_killed_in_the_middle_leaves_it_to_the_next_one() {
    let world = World::new().await;
    world.collect();
    let first = world.operator();
    world.create_run("team", "r", &json!({"pipelineSpec": own(), "retention": {"outputs": "2s", "logs": "2s"}}));
    world.until_run("team", "r", "Succeeded").await;
    let path = run_path("team", "r");
    let marked = || world.journal("team", "r").stored.removed.len() == 2;
    eventually("it is marked", SOON, marked).await;
    first.kill();
    let told = world.api.object(&path).unwrap()["status"]["removed"].clone();
    let second = world.operator_with(2, operator::Namespaces::All);
    until_removed(&world, "r", "True", "Removed").await;
    eventually("its cluster is gone", SOON, || world.api.object(&cluster_path("team", "r")).is_none()).await;
    let stored = world.journal("team", "r").stored;
    assert!(stored.data.is_empty() && stored.logs.is_empty(), "{told} {stored:?}");
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_ends_after_any_of_its_operations_is_brought_to_its_end_by_the_next_try() {
    let world = World::new().await;
    let operator = world.operator();
    let mut shared = plain(1);
    shared["storage"] = json!({"url": "s3://bucket/c"});
    world.create("team", "c", &shared);
    world.until_ready("team", "c").await;
    world.refuse_storage(Some(("StorageUnreachable", 0)));
    let on_shared = json!({"steps": [{"name": "a", "call": "m:f"}], "cluster": {"ref": "c"}});
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared, "retention": {"outputs": "1s", "logs": "1s"}}));
    world.until_run("team", "r", "Succeeded").await;
    operator.end().await;
    let mut ends = 0;
    for (epoch, allowed) in (2..).zip(0..20) {
        world.refuse_storage(Some(("StorageUnreachable", allowed)));
        let before = world.run_condition("team", "r", "Removed");
        let operator = world.operator_with(epoch, operator::Namespaces::All);
        let asked_before = asked_count(&world);
        eventually("it came to an end or to its trouble", SOON, || {
            let told = world.run_condition("team", "r", "Removed");
            told["status"] == "True"
                || (asked_count(&world) > asked_before + allowed && told["reason"] == "StorageUnreachable")
        })
        .await;
        operator.end().await;
        let journal = world.journal("team", "r").stored;
        if world.run_condition("team", "r", "Removed")["status"] == "True" {
            assert!(journal.data.is_empty() && journal.logs.is_empty(), "{journal:?}");
            break;
        }
        // Nothing is gone that is not marked, and the mark says so to whoever comes.
        assert!(!journal.data.is_empty() || journal.removed.contains("outputs"), "{journal:?} {before}");
        assert!(status(&world, "r")["removed"].is_null(), "nothing is told that is not done");
        ends += 1;
    }
    assert!(ends >= 8, "it ended {ends} times in the middle");
}

/// How often anything was asked about what is stored.
fn asked_count(world: &World) -> usize {
    let ops = ["mark", "stored", "seal", "references", "user", "objects", "discard"];
    let calls = world.scheduler("team", "c").all_calls();
    let of_stored = |call: &&Value| {
        call["op"].as_str().and_then(|op| op.strip_prefix("daskade-")).is_some_and(|op| ops.contains(&op))
    };
    calls.iter().filter(of_stored).count()
}
