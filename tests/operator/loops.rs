//! The same error again and again, without progress: who is asked how often, what is told meanwhile, and how it ends.

use std::time::Duration;

use limits::Repetition;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::wait::eventually_or;
use crate::world::{SOON, World, cluster_path, plain};

/// So often, within whatever time.
const fn often(times: u32) -> Repetition {
    Repetition { times, span: Duration::ZERO, quiet: None }
}

fn on_shared() -> Value {
    json!({"steps": [{"name": "a", "call": "m:f"}], "cluster": {"ref": "c"}})
}

async fn shared(world: &World) {
    let mut spec = plain(1);
    spec["storage"] = json!({"url": "s3://bucket/c"});
    world.create("team", "c", &spec);
    world.until_ready("team", "c").await;
}

/// The run is opened each time, and the first call after that fails with a mistake of the runtime.
/// Issue 13, point 10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_runtime_makes_the_same_mistake_each_time_says_so_and_fails() {
    let mut world = World::new().await;
    world.pauses.bounds.internal = often(4);
    let operator = world.operator();
    shared(&world).await;
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| state.refuses = [("daskade-submit", "Internal")].into());
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared()}));
    let told = || world.succeeded("team", "r");
    let what = || format!("how often it came is told: {:?}", told());
    eventually_or(what, SOON, || told()[0] == "Unknown" && told()[2].contains("it occurred 3 times since ")).await;
    assert_eq!(told()[1], "OpenRefused");
    world.run_says("team", "r", "Internal: refused by the double");
    world.run_says("team", "r", "the run fails if this continues");
    assert_eq!(world.run_condition("team", "r", "Stalled")["status"], "True");
    eventually_or(|| format!("it has failed: {:?}", told()), SOON, || told()[0] == "False").await;
    assert_eq!(told()[1], "OpenRefused");
    world.run_says("team", "r", "it occurred 4 times since ");
    world.run_says("team", "r", "daskade retry");
    world.until_quiet().await;
    let asked = ["daskade-open", "daskade-submit"].map(|op| scheduler.calls(op).len());
    assert_eq!(asked, [4, 4]);
    operator.end().await;
}

/// An answer of the storage is no mistake: it is waited for, however often it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_is_away_is_waited_for_although_mistakes_are_not() {
    let mut world = World::new().await;
    (world.pauses.bounds.internal, world.pauses.bounds.refused) = (often(1), often(1));
    let operator = world.operator();
    shared(&world).await;
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| state.refuses = [("daskade-open", "StorageUnreachable")].into());
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared()}));
    let opens = || scheduler.calls("daskade-open").len();
    eventually_or(|| format!("it is tried again: {}", opens()), SOON, || opens() >= 3).await;
    assert_eq!(world.succeeded("team", "r")[..2], ["Unknown", "StorageUnreachable"]);
    scheduler.change(|state| state.refuses.clear());
    world.until_run("team", "r", "Succeeded").await;
    operator.end().await;
}

/// A scheduler whose every connection ends after one answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_answers_once_and_hangs_up_is_asked_ever_less_often() {
    let world = World::new().await;
    let operator = world.operator();
    shared(&world).await;
    let scheduler = world.scheduler("team", "c");
    let asked = || scheduler.calls("daskade-cluster").len();
    scheduler.change(|state| state.hangs_up = true);
    let first = asked();
    eventually_or(|| "it is asked again".to_owned(), SOON, || asked() > first).await;
    let (began, before) = (Instant::now(), asked());
    // An answer and what comes after it: twice as many calls as connections.
    eventually_or(|| format!("{} calls", asked() - before), SOON, || asked() >= before + 8).await;
    assert!(began.elapsed() > Duration::from_secs(3), "it was asked 8 times within {:?}", began.elapsed());
    scheduler.change(|state| state.hangs_up = false);
    world.until_ready("team", "c").await;
    operator.end().await;
}

/// Children of a cluster that was deleted, which nobody collects: a finalizer keeps them, say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deleted_cluster_of_the_same_name_leaves_for_good_is_told_with_what_to_do() {
    let mut world = World::new().await;
    world.pauses.bounds.conflict = often(4);
    let operator = world.operator();
    world.create("team", "c", &plain(0));
    world.until_ready("team", "c").await;
    world.api.delete(&cluster_path("team", "c"));
    world.create("team", "c", &plain(0));
    world.until_reason("team", "c", "NameConflict").await;
    world.says("team", "c", "Ready", "that of the deleted DaskCluster of the same name is still there");
    world.says("team", "c", "Ready", "it occurred 4 times since ");
    world.says("team", "c", "Ready", "check the finalizers of ");
    operator.end().await;
}

/// A listing that gives the same page again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_whose_listing_does_not_go_on_is_put_off_and_told() {
    let world = World::new().await;
    let operator = world.operator();
    shared(&world).await;
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| state.lists_again = true);
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared(), "retention": {"outputs": "1s"}}));
    world.until_run("team", "r", "Succeeded").await;
    let told = || world.run_condition("team", "r", "Removed");
    eventually_or(|| format!("{:#}", told()), SOON, || told()["reason"] == "OpenRefused").await;
    let message = told()["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("does not advance past") && message.contains("; retrying"), "{message}");
    world.until_still().await;
    assert_eq!(scheduler.calls("daskade-objects").len(), 2, "a page, and the same page");
    operator.end().await;
}
