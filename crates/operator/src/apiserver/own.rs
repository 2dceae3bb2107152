//! What the operator knows of its own pod.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use kube::{Api, Client};
use tokio::time::{sleep, timeout};

/// Labels of the operator's pods, by which network policies let it in. The same as in charts/daskade.
pub const LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "daskade"), ("app.kubernetes.io/component", "operator")];
/// Name of the operator's container there.
const CONTAINER: &str = "operator";
/// The kubelet tells the API server of a container that it has started a moment later.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOKS: u32 = 15;
/// Times there are whole seconds, and a process is there a little later than its container.
const SLACK: jiff::SignedDuration = jiff::SignedDuration::from_secs(5);
/// It is only for a line in the log.
const ANSWER: Duration = Duration::from_secs(10);

/// Tells in the log how the process before this one ended, if it ended badly in this pod: a kill for lack of memory leaves
/// no other trace.
pub async fn log_last_end(client: Client, namespace: &str, pod: &str) {
    let since = Timestamp::now() - SLACK;
    let pods = Api::<Pod>::namespaced(client, namespace);
    for _ in 0..LOOKS {
        let Ok(Ok(Some(found))) = timeout(ANSWER, pods.get_opt(pod)).await else { return };
        if own_status(&found).is_some_and(|own| runs_since(own, since)) {
            return tell(&found);
        }
        sleep(LOOK_EVERY).await;
    }
}

fn tell(pod: &Pod) {
    if let Some(end) = last_end(pod) {
        let limit = memory_limit(pod).unwrap_or_else(|| "none".to_owned());
        let reason = end.reason.unwrap_or_default();
        let at = end.finished_at.map(|time| time.0.to_string()).unwrap_or_default();
        tracing::warn!(
            reason,
            exit_code = end.exit_code,
            at,
            memory_limit = limit,
            "the process before this one ended badly"
        );
    }
}

fn own_status(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.iter().find(|state| state.name == CONTAINER)
}

/// Whether what is told of the container is of this process, and not still of the one before.
fn runs_since(own: &ContainerStatus, since: Timestamp) -> bool {
    let running = own.state.as_ref().and_then(|state| state.running.as_ref());
    running.and_then(|running| running.started_at.as_ref()).is_some_and(|started| started.0 >= since)
}

fn last_end(pod: &Pod) -> Option<ContainerStateTerminated> {
    own_status(pod)?.last_state.as_ref()?.terminated.clone().filter(|end| end.exit_code != 0)
}

fn memory_limit(pod: &Pod) -> Option<String> {
    let own = pod.spec.as_ref()?.containers.iter().find(|container| container.name == CONTAINER)?;
    Some(own.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_told_of_the_process_before_is_not_taken_for_this_one() {
        let since: Timestamp = "2026-11-29T15:00:35Z".parse().unwrap();
        let own = |state: serde_json::Value| {
            let statuses = json!([{"name": CONTAINER, "image": "", "imageID": "", "ready": true, "restartCount": 1, "state": state,
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]);
            serde_json::from_value::<Pod>(json!({"status": {"containerStatuses": statuses}})).unwrap()
        };
        let runs = |state| runs_since(own_status(&own(state)).unwrap(), since);
        assert!(!runs(json!({"running": {"startedAt": "2026-11-29T14:58:00Z"}})));
        assert!(!runs(json!({"terminated": {"exitCode": 137}})));
        assert!(runs(json!({"running": {"startedAt": "2026-11-29T15:00:40Z"}})));
        assert_eq!(last_end(&own(json!({}))).unwrap().exit_code, 137);
    }
}
