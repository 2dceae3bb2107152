//! What time it is: the API server's word counts, whatever the clock of the operator's machine says.

use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::wait::eventually;
use crate::world::{SOON, World, plain, run_path};

/// One step, on a cluster of its own.
fn own() -> Value {
    json!({
        "steps": [{"name": "a", "call": "m:f"}],
        "cluster": {"template": plain(1)},
        "storage": {"url": "s3://bucket/p"},
    })
}

/// One that has half an hour.
fn short() -> Value {
    let mut spec = own();
    spec["deadlines"] = json!({"active": "30m"});
    spec
}

/// Has a run looked at.
fn touch(world: &World, name: &str) {
    let label = world.api.now().to_string().replace([':', '.'], "-");
    world.api.edit(&run_path("team", name), |run| run["metadata"]["labels"] = json!({"touched": label}));
}

/// Issue 13, point 13.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_clock_is_ahead_removes_nothing_early_and_fails_no_run() {
    let world = World::new().await;
    world.collect();
    // Two hours behind this machine's, which is to say that the operator's clock is ahead.
    world.api.set_clock(SignedDuration::from_hours(-2));
    let operator = world.operator();
    world.create_run("team", "kept", &json!({"pipelineSpec": own(), "retention": {"outputs": "1h"}}));
    world.create_run("team", "stays", &json!({"pipelineSpec": own(), "ttlAfterFinished": "1h"}));
    world.until_run("team", "kept", "Succeeded").await;
    world.until_run("team", "stays", "Succeeded").await;
    // A leader whose clock was right has written this.
    let ended = world.api.now();
    for name in ["kept", "stays"] {
        let at = SignedDuration::from_secs(1);
        world.api.edit(&run_path("team", name), |run| run["status"]["finishedAt"] = json!((ended - at).to_string()));
    }
    world.hold_steps();
    world.create_run("team", "live", &json!({"pipelineSpec": short()}));
    world.until_run("team", "live", "Running").await;
    world.until_still().await;
    assert_eq!(world.succeeded("team", "live")[1], "Running");
    assert!(world.run_condition("team", "kept", "Removed").is_null(), "its hour has not passed");
    assert_eq!(world.journal("team", "kept").stored.data.len(), 1);
    assert!(world.api.object(&run_path("team", "stays")).is_some());
    let skew = || operator.metric("daskade_clock_skew_seconds");
    eventually("the difference is told", SOON, || (7190.0..7210.0).contains(&skew())).await;

    // When the API server says so, their time has come. An answer tells it.
    world.api.set_clock(SignedDuration::ZERO);
    world.create_run("team", "other", &json!({"pipelineSpec": own()}));
    world.until_run("team", "other", "Running").await;
    for name in ["kept", "stays", "live"] {
        touch(&world, name);
    }
    world.until_run("team", "live", "DeadlineExceeded").await;
    let removed = || world.run_condition("team", "kept", "Removed")["status"] == "True";
    eventually("what it has stored is removed", SOON, removed).await;
    eventually("it is deleted", SOON, || world.api.object(&run_path("team", "stays")).is_none()).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_api_servers_time_removals_wait_and_deadlines_pass() {
    let world = World::new().await;
    world.collect();
    world.api.set_clock(SignedDuration::from_hours(-2));
    world.api.set_dateless(true);
    let operator = world.operator();
    world.create_run("team", "kept", &json!({"pipelineSpec": own(), "retention": {"outputs": "1s"}}));
    world.create_run("team", "stays", &json!({"pipelineSpec": own(), "ttlAfterFinished": "1s"}));
    world.until_run("team", "kept", "Succeeded").await;
    world.until_run("team", "stays", "Succeeded").await;
    // Nobody starts their pods, and only one has the time to wait.
    world.set_kubelet_idle(true);
    for (name, start) in [("patient", "1h"), ("brief", "3s")] {
        let mut spec = own();
        spec["deadlines"] = json!({"start": start});
        world.create_run("team", name, &json!({"pipelineSpec": spec}));
    }
    world.until_run("team", "brief", "DeadlineExceeded").await;
    world.until_still().await;
    assert_eq!(
        world.succeeded("team", "patient")[0],
        "Unknown",
        "this machine's clock says that two hours have passed"
    );
    assert!(world.run_condition("team", "kept", "Removed").is_null(), "nobody knows whether its second has passed");
    assert_eq!(world.journal("team", "kept").stored.data.len(), 1);
    assert!(world.api.object(&run_path("team", "stays")).is_some());

    world.api.set_dateless(false);
    world.set_kubelet_idle(false);
    world.create_run("team", "other", &json!({"pipelineSpec": own()}));
    world.until_run("team", "other", "Succeeded").await;
    for name in ["kept", "stays"] {
        touch(&world, name);
    }
    let removed = || world.run_condition("team", "kept", "Removed")["status"] == "True";
    eventually("what it has stored is removed", SOON, removed).await;
    eventually("it is deleted", SOON, || world.api.object(&run_path("team", "stays")).is_none()).await;
    operator.end().await;
}
