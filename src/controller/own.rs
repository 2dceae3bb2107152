//! What the operator knows of its own pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::{Api, Client};
use tokio::time::timeout;

/// Labels of the operator's pods, by which network policies let it in. The same as in charts/daskade.
pub const LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "daskade"), ("app.kubernetes.io/component", "operator")];
/// Name of the operator's container there.
const CONTAINER: &str = "operator";
/// It is only for a line in the log.
const ANSWER: Duration = Duration::from_secs(10);

/// Tells in the log how the process before this one ended, if it ended badly in this pod: a kill for lack of memory leaves
/// no other trace.
pub async fn tell_last_end(client: Client, namespace: &str, pod: &str) {
    let found = timeout(ANSWER, Api::<Pod>::namespaced(client, namespace).get_opt(pod)).await;
    let Ok(Ok(Some(pod))) = found else { return };
    if let Some(end) = last_end(&pod) {
        let limit = memory_limit(&pod).unwrap_or_else(|| "none".to_owned());
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

fn last_end(pod: &Pod) -> Option<ContainerStateTerminated> {
    let states = pod.status.as_ref()?.container_statuses.as_ref()?;
    let own = states.iter().find(|state| state.name == CONTAINER)?;
    own.last_state.as_ref()?.terminated.clone().filter(|end| end.exit_code != 0)
}

fn memory_limit(pod: &Pod) -> Option<String> {
    let own = pod.spec.as_ref()?.containers.iter().find(|container| container.name == CONTAINER)?;
    Some(own.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}
