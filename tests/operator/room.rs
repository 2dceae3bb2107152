//! Workers that give way to pods of their own cluster, on a node that has no room for both.

use serde_json::{Value, json};

use crate::wait::eventually_or;
use crate::world::{SOON, World, cluster_path, core_path};

/// As examples/nightly.yaml has them: on two CPUs the scheduler takes half of one.
fn nightly(min: u32, gpu_cpus: u32) -> Value {
    let resources = |cpu: u32| json!({"limits": {"cpu": cpu.to_string(), "memory": "1Gi"}});
    json!({"tls": {"mode": "Disabled"}, "workers": [
        {"name": "cpu", "autoscale": {"min": min, "max": 4}, "resources": resources(1)},
        {"name": "gpu", "autoscale": {"min": 0, "max": 1}, "gpu": {"count": 1}, "resources": resources(gpu_cpus)},
    ]})
}

/// Names of the workers that run, of a group.
fn running(world: &World, group: &str) -> Vec<String> {
    let is_up = |pod: &String| {
        let found = world.api.object(&core_path("team", "pods", pod)).unwrap_or_default();
        found["status"]["phase"] == "Running"
    };
    world.pods("team").into_iter().filter(|pod| pod.starts_with(&format!("c-{group}-")) && is_up(pod)).collect()
}

async fn until(world: &World, what: &str, holds: impl Fn() -> bool) {
    let told = || {
        let status = world.object("team", "c")["status"].clone();
        format!("{what}: {:?}, {status:#}", world.pods("team"))
    };
    eventually_or(told, SOON, holds).await;
}

/// A cluster with one idle worker, on which a pod with a GPU waits for room.
async fn with_idle_worker(world: &World, spec: &Value) {
    world.set_cpus(2000);
    world.create("team", "c", spec);
    until(world, "the scheduler answers", || world.condition("team", "c", "SchedulerReady")["status"] == "True").await;
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| state.demand = vec![json!({"group": null, "resources": {}, "count": 2})]);
    until(world, "one has a place", || running(world, "cpu").len() == 1 && world.pods("team").len() == 3).await;
    // The step that trains is next, and one comes after it that needs no GPU.
    scheduler.change(|state| {
        state.demand = vec![
            json!({"group": null, "resources": {"GPU": 1.0}, "count": 1}),
            json!({"group": null, "resources": {}, "count": 1, "later": 1}),
        ];
    });
}

/// Issue 13, point 19.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_makes_room_for_a_pod_at_once() {
    let world = World::new().await;
    let operator = world.operator();
    with_idle_worker(&world, &nightly(0, 1)).await;
    let victim = running(&world, "cpu");
    // Sooner than a worker goes that has nothing to do, and although a step will need one.
    until(&world, "the pod has its place", || running(&world, "gpu").len() == 1).await;
    let scheduler = world.scheduler("team", "c");
    let drained = scheduler.calls("daskade-drain");
    assert!(!drained.is_empty() && drained.iter().all(|call| call["names"] == json!(victim)), "{drained:?}");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_gave_way_is_not_made_again_before_the_pod_has_its_place() {
    let world = World::new().await;
    let operator = world.operator();
    // What it holds is not enough: the pod waits on.
    with_idle_worker(&world, &nightly(0, 2)).await;
    until(&world, "it is gone", || world.pods("team").len() == 2).await;
    world.until_still().await;
    let pods = world.pods("team");
    assert!(pods.len() == 2 && pods[0].starts_with("c-gpu-") && pods[1].starts_with("c-scheduler-"), "{pods:?}");
    assert!(running(&world, "gpu").is_empty());
    world.set_cpus(2500);
    until(&world, "the pod has its place", || running(&world, "gpu").len() == 1).await;
    until(&world, "the next one is made", || world.pods("team").iter().any(|pod| pod.starts_with("c-cpu-"))).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_the_spec_keeps_stays_and_the_status_says_so_until_the_spec_lets_it_go() {
    let world = World::new().await;
    let operator = world.operator();
    with_idle_worker(&world, &nightly(1, 1)).await;
    let word = || world.condition("team", "c", "WorkersReady");
    until(&world, "it is told", || word()["reason"] == "HeldByCluster").await;
    let words = "waits for cpu that other workers of this cluster hold: group cpu: 1 idle (kept by autoscale.min: 1)";
    world.says("team", "c", "WorkersReady", words);
    world.says("team", "c", "Ready", "lower that number");
    world.until_quiet().await;
    assert!(world.scheduler("team", "c").calls("daskade-drain").is_empty());
    world.api.edit(&cluster_path("team", "c"), |object| object["spec"]["workers"][0]["autoscale"]["min"] = json!(0));
    until(&world, "the pod has its place", || running(&world, "gpu").len() == 1).await;
    operator.end().await;
}
