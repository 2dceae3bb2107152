//! Runs that the operator ends or suspends while they are open on a scheduler that others use: that scheduler forgets them.

use jiff::SignedDuration;
use operator::Namespaces;
use serde_json::{Value, json};

use crate::api::{Fault, Recorded};
use crate::scheduler::Scheduler;
use crate::wait::{eventually, eventually_or};
use crate::world::{LEASE_UID, SOON, World, cluster_path, plain, run_path};

/// Makes the cluster `c`; steps begin there, and do not end.
async fn shared(world: &World) -> Scheduler {
    let mut spec = plain(1);
    spec["storage"] = json!({"url": "s3://bucket/c"});
    world.create("team", "c", &spec);
    world.until_ready("team", "c").await;
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| state.held = true);
    scheduler
}

/// One step on that cluster.
fn on_shared() -> Value {
    json!({"steps": [{"name": "a", "call": "m:f"}], "cluster": {"ref": "c"}, "deadlines": {"active": "30m"}})
}

/// Starts it as `r`, and waits until its step runs.
async fn run(world: &World, spec: &Value) {
    world.create_run("team", "r", &json!({ "pipelineSpec": spec }));
    world.until_run("team", "r", "Running").await;
    eventually("its step was handed over", SOON, || world.journal("team", "r").submits == 1).await;
}

fn uid(world: &World) -> String {
    world.api.object(&run_path("team", "r")).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// So much later. An answer to another request tells the operator what time it is, and the run is looked at.
async fn later(world: &World, minutes: i64) {
    world.api.set_clock(SignedDuration::from_mins(minutes));
    let name = format!("at-{minutes}");
    world.create_run("team", &name, &json!({"pipelineSpec": {"steps": []}}));
    eventually("that was answered", SOON, || !world.succeeded("team", &name)[0].is_empty()).await;
    world.api.edit(&run_path("team", "r"), |run| run["metadata"]["labels"] = json!({"at": minutes.to_string()}));
}

async fn until_released(world: &World, truth: &str, reason: &str) {
    let told = || world.run_condition("team", "r", "Released");
    let what = || format!("Released is {truth}, {reason}: {:#}", told());
    eventually_or(what, SOON, || told()["status"] == truth && told()["reason"] == reason).await;
}

async fn until_let_go(world: &World) {
    let held = || world.api.object(&run_path("team", "r")).unwrap()["metadata"]["finalizers"].clone();
    eventually("it has no finalizer", SOON, || held() == json!([])).await;
}

/// Issue 13, point 6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_its_deadline_ends_is_forgotten_by_its_scheduler_under_its_epoch() {
    let world = World::new().await;
    let operator = world.operator_with(7, Namespaces::All);
    let scheduler = shared(&world).await;
    run(&world, &on_shared()).await;
    let uid = uid(&world);
    later(&world, 120).await;
    world.until_run("team", "r", "DeadlineExceeded").await;
    until_released(&world, "True", "Released").await;
    let forgets = scheduler.calls("daskade-forget");
    assert_eq!(forgets.len(), 1, "{forgets:?}");
    let Value::Object(call) = &forgets[0] else { panic!("{forgets:?}") };
    assert_eq!([&call["run"], &call["epoch"]], [&json!(uid), &json!(1)]);
    assert_eq!([&call["lead"], &call["lease"]], [&json!(7), &json!(LEASE_UID)]);
    until_let_go(&world).await;
    assert!(!scheduler.is_followed(&uid) && world.journal("team", "r").closed.is_none());
    // Another operator finds nothing to do.
    world.until_quiet().await;
    let before = world.writes().len();
    operator.end().await;
    let operator = world.operator_with(8, Namespaces::All);
    world.until_still().await;
    assert_eq!((world.writes().len(), scheduler.calls("daskade-forget").len()), (before, 1));
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_operator_has_a_run_forgotten_that_the_one_before_has_ended() {
    let world = World::new().await;
    let first = world.operator();
    let scheduler = shared(&world).await;
    run(&world, &on_shared()).await;
    scheduler.change(|state| state.deaf = true);
    later(&world, 120).await;
    world.until_run("team", "r", "DeadlineExceeded").await;
    // It has ended at once, and says what is left to do.
    until_released(&world, "False", "Releasing").await;
    assert!(world.api.object(&run_path("team", "r")).unwrap()["status"]["finishedAt"].is_string());
    first.kill();
    scheduler.change(|state| state.deaf = false);
    assert!(scheduler.calls("daskade-forget").is_empty());
    let second = world.operator_with(2, Namespaces::All);
    until_released(&world, "True", "Released").await;
    let forgets = scheduler.calls("daskade-forget");
    assert_eq!((forgets.len(), &forgets[0]["epoch"]), (1, &json!(1)), "{forgets:?}");
    until_let_go(&world).await;
    assert_eq!(world.succeeded("team", "r")[1], "DeadlineExceeded");
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_does_not_answer_is_asked_again_until_the_deadline_which_is_told() {
    let world = World::new().await;
    let operator = world.operator();
    let scheduler = shared(&world).await;
    run(&world, &on_shared()).await;
    scheduler.change(|state| state.deaf = true);
    later(&world, 120).await;
    world.until_run("team", "r", "DeadlineExceeded").await;
    let told = || world.run_condition("team", "r", "Released")["message"].as_str().unwrap_or_default().to_owned();
    eventually_or(told, SOON, || told().contains("; failed to ")).await;
    // Whoever deletes the run waits for that no longer than for any other.
    let held = world.api.object(&run_path("team", "r")).unwrap()["metadata"]["finalizers"].clone();
    assert_eq!(held, json!(["daskade.dev/run"]));
    later(&world, 131).await;
    until_released(&world, "False", "NotReleased").await;
    assert!(told().contains("within 600 s") && told().contains("may still run"), "{}", told());
    until_let_go(&world).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_cluster_is_gone_is_released_with_it() {
    let world = World::new().await;
    world.collect();
    let operator = world.operator();
    let scheduler = shared(&world).await;
    run(&world, &on_shared()).await;
    scheduler.change(|state| state.deaf = true);
    later(&world, 120).await;
    until_released(&world, "False", "Releasing").await;
    world.api.delete_with_children(&cluster_path("team", "c"));
    until_released(&world, "True", "Released").await;
    assert!(world.run_condition("team", "r", "Released")["message"].as_str().unwrap().contains("is gone"));
    until_let_go(&world).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_suspended_while_no_operator_is_there_is_stopped_before_it_says_so() {
    let world = World::new().await;
    let first = world.operator();
    let scheduler = shared(&world).await;
    run(&world, &on_shared()).await;
    first.kill();
    world.api.edit(&run_path("team", "r"), |run| run["spec"]["suspend"] = json!(true));
    scheduler.change(|state| state.deaf = true);
    let second = world.operator_with(2, Namespaces::All);
    world.until_run("team", "r", "Releasing").await;
    scheduler.change(|state| state.deaf = false);
    world.until_run("team", "r", "Suspended").await;
    let forgets = scheduler.calls("daskade-forget");
    assert_eq!((forgets.len(), &forgets[0]["epoch"]), (1, &json!(1)), "{forgets:?}");
    until_released(&world, "True", "Released").await;
    // It goes on, and is suspended once more: what was told before does not count.
    world.api.edit(&run_path("team", "r"), |run| run["spec"]["suspend"] = json!(false));
    eventually("it is open again", SOON, || world.journal("team", "r").epoch == 2).await;
    assert!(world.run_condition("team", "r", "Released").is_null());
    world.api.fault(Fault { part: "/pipelineruns/r/status".into(), status: 503, ..Fault::default() });
    second.kill();
    world.api.edit(&run_path("team", "r"), |run| run["spec"]["suspend"] = json!(true));
    world.api.heal();
    let third = world.operator_with(3, Namespaces::All);
    eventually("it is forgotten again", SOON, || scheduler.calls("daskade-forget").len() == 2).await;
    assert_eq!(scheduler.calls("daskade-forget")[1]["epoch"], 2);
    until_released(&world, "True", "Released").await;
    world.until_run("team", "r", "Suspended").await;
    third.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_on_an_address_is_stopped_there_after_a_restart() {
    let mut world = World::new().await;
    world.allowed = vec![regex::Regex::new(".*").unwrap()];
    let first = world.operator();
    let scheduler = shared(&world).await;
    let mut spec = on_shared();
    spec["cluster"] = json!({"address": format!("tcp://{}:8786", scheduler.ip)});
    spec["storage"] = json!({"url": "s3://bucket/r"});
    run(&world, &spec).await;
    first.kill();
    world.api.edit(&run_path("team", "r"), |run| run["spec"]["suspend"] = json!(true));
    let second = world.operator_with(2, Namespaces::All);
    world.until_run("team", "r", "Suspended").await;
    let forgets = scheduler.calls("daskade-forget");
    assert_eq!((forgets.len(), &forgets[0]["epoch"]), (1, &json!(1)), "{forgets:?}");
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_run_that_cannot_be_closed_is_forgotten_before_it_goes() {
    let world = World::new().await;
    let operator = world.operator();
    let scheduler = shared(&world).await;
    run(&world, &on_shared()).await;
    // The minute in which its steps may end is over.
    let since = world.api.now() - SignedDuration::from_secs(61);
    let path = run_path("team", "r");
    world.api.edit(&path, |run| run["metadata"]["deletionTimestamp"] = json!(since.to_string()));
    let let_go = |write: &Recorded| write.path == path && write.body["metadata"]["finalizers"] == json!([]);
    eventually("it is let go", SOON, || world.writes().iter().any(let_go)).await;
    let forgets = scheduler.calls("daskade-forget");
    assert_eq!((forgets.len(), &forgets[0]["epoch"]), (1, &json!(1)), "{forgets:?}");
    operator.end().await;
}
