//! What an earlier release made goes on under this one.

use serde_json::{Value, json};

use crate::wait::eventually;
use crate::world::{SOON, World, core_path, plain};

/// Makes the scheduler's pod one whose runtime knows no `--health-port`, as the API server would still show it.
fn make_earlier(world: &World, pod: &str) {
    world.api.edit(&core_path("team", "pods", pod), |pod| {
        pod["metadata"]["annotations"]["daskade.dev/template"] = json!("of an earlier release");
        let container = &mut pod["spec"]["containers"][0];
        let args = container["args"].as_array_mut().unwrap();
        let at = args.iter().position(|arg| arg == "--health-port").unwrap();
        args.drain(at..at + 2);
        let socket = json!({"port": 8786});
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            container[probe] = json!({"tcpSocket": socket});
        }
        for volume in pod["spec"]["volumes"].as_array_mut().unwrap() {
            if volume["name"] == "daskade-runtime" {
                volume["configMap"]["name"] = json!("c-runtime-earlier");
            }
        }
    });
}

fn container(world: &World, pod: &str) -> Value {
    world.api.object(&core_path("team", "pods", pod)).unwrap_or_default()["spec"]["containers"][0].clone()
}

fn has_health(container: &Value) -> bool {
    if container.is_null() {
        return false;
    }
    let told = container["args"].as_array().is_some_and(|args| args.iter().any(|arg| arg == "--health-port"));
    assert_eq!(told, container["livenessProbe"]["httpGet"].is_object(), "options and probes fit: {container:#}");
    assert_eq!(told, container["livenessProbe"]["tcpSocket"].is_null(), "{container:#}");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_beside_a_scheduler_of_an_earlier_runtime_gets_the_options_and_probes_of_that_runtime() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(2));
    world.until_ready("team", "c").await;
    world.until_quiet().await;
    assert!(has_health(&container(&world, "c-cpu-0-2")));
    make_earlier(&world, "c-scheduler-1");
    eventually("it waits", SOON, || world.condition("team", "c", "SchedulerReady")["reason"] == "WaitingForIdle").await;
    world.says("team", "c", "SchedulerReady", "is replaced once no run, client or task uses the cluster");
    world.api.delete(&core_path("team", "pods", "c-cpu-0-2"));
    eventually("another is there", SOON, || world.pods("team").contains(&"c-cpu-0-4".to_owned())).await;
    let made = world.api.object(&core_path("team", "pods", "c-cpu-0-4")).unwrap();
    assert!(!has_health(&container(&world, "c-cpu-0-4")), "{made:#}");
    let runtime = made["spec"]["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "daskade-runtime");
    assert_eq!(runtime.unwrap()["configMap"]["name"], "c-runtime-earlier");
    // Once nothing uses the cluster the scheduler is replaced, and then its workers.
    world.scheduler("team", "c").change(|state| state.clients = 0);
    eventually("all are of this release", SOON, || {
        let pods = world.pods("team");
        pods.len() == 3
            && !pods.contains(&"c-scheduler-1".to_owned())
            && pods.iter().all(|pod| has_health(&container(&world, pod)))
    })
    .await;
    operator.end().await;
}
