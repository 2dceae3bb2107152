//! What is wrong with a pod or with a write, in words that say what to do.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition};
use serde::Deserialize;

use super::facts::Issue;
use super::names;
use api::reason::Reason;

/// A container that is made for longer than this waits for something: a volume, mostly.
const CREATING: i64 = 60;
/// Characters of a message of Kubernetes or of a container that are quoted.
const QUOTED: usize = 600;

/// A scheduler that has ended so often, the last time so soon after its start (in seconds), will end again.
const UNSTABLE: i32 = 3;
const SHORT_LIFE: i64 = 600;

/// Finds the most telling reason why the pod of a scheduler is not ready: that it ends again and again says more than how it
/// ended last.
pub fn find_scheduler(pod: &Pod, now: Timestamp) -> Option<Issue> {
    let found = find(pod, now)?;
    // What the image lacks is said by its own reason.
    if ![Reason::WorkerStartFailed, Reason::OutOfMemory].contains(&found.reason) {
        return Some(found);
    }
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends = containers.filter(|container| ends_soon(container)).map(|container| container.restart_count).max();
    Some(match ends {
        None => found,
        Some(ends) => {
            let message = format!("the scheduler restarted {ends} times: {}; check its log", found.message);
            Issue::new(Reason::SchedulerUnstable, message).stalled(found.stalled)
        }
    })
}

/// Whether a container was restarted several times, and did not last.
fn ends_soon(container: &ContainerStatus) -> bool {
    let state = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    let before = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let Some(ended) = state.or(before) else { return false };
    let life = match (&ended.started_at, &ended.finished_at) {
        (Some(from), Some(to)) => to.0.duration_since(from.0).as_secs(),
        _ => 0,
    };
    container.restart_count >= UNSTABLE && life < SHORT_LIFE
}

/// Finds the most telling reason why a pod is not ready.
pub fn find(pod: &Pod, now: Timestamp) -> Option<Issue> {
    let name = pod.metadata.name.as_deref().unwrap_or("?");
    let status = pod.status.as_ref()?;
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    if let (Some("Failed"), Some(reason)) = (status.phase.as_deref(), status.reason.as_deref()) {
        let message = quoted(status.message.as_deref().unwrap_or_default());
        let disk = message.contains("ephemeral") || message.contains("storage");
        let (reason, help) = match reason {
            "Evicted" if disk => (Reason::DiskFull, "give the pods more ephemeral storage, or write less to /tmp"),
            "Evicted" => (Reason::Evicted, "the node was short of resources; the pod is replaced"),
            "NodeLost" | "NodeShutdown" | "Terminated" => (Reason::NodeLost, "its node is gone; the pod is replaced"),
            _ => (Reason::WorkerStartFailed, "see `kubectl describe pod`"),
        };
        return Some(Issue::new(reason, format!("pod {name}: {message}; {help}")));
    }
    let condition = |kind: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    if let Some(scheduled) = condition("PodScheduled").filter(|condition| condition.status == "False") {
        let gates = pod.spec.iter().flat_map(|spec| spec.scheduling_gates.iter().flatten());
        let gates: Vec<&str> = gates.map(|gate| gate.name.as_str()).collect();
        let queue = pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::QUEUE_LABEL));
        return Some(unscheduled(name, scheduled, &gates, queue.map(String::as_str)));
    }
    for container in status.init_container_statuses.iter().chain(&status.container_statuses).flatten() {
        let state = container.state.as_ref();
        let waiting = state.and_then(|state| state.waiting.as_ref());
        let ended = state.and_then(|state| state.terminated.as_ref());
        let before = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let why = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
        let words = quoted(waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default());
        match why {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" => {
                let image = &container.image;
                let help = "check the name of the image, and imagePullSecrets for a private registry";
                return Some(Issue::new(
                    Reason::ImagePull,
                    format!("pod {name} cannot get the image {image}: {words}; {help}"),
                ));
            }
            "CreateContainerConfigError" => {
                let help = "make the Secret or ConfigMap with that key, or change the spec";
                return Some(Issue::new(Reason::SecretNotFound, format!("pod {name}: {words}; {help}")));
            }
            "CreateContainerError" | "RunContainerError" => {
                return Some(Issue::new(Reason::WorkerStartFailed, format!("pod {name}: {words}")).stalled(true));
            }
            _ => {}
        }
        if let Some(ended) = ended.or(before).filter(|ended| !container.ready && ended.exit_code != 0) {
            return Some(crashed(name, &container.image, ended, container.restart_count));
        }
        if waiting.is_some() && !container.ready {
            let created = pod.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
            let age = now.duration_since(created).as_secs();
            if age > CREATING {
                let why = condition("PodReadyToStartContainers").or(condition("Ready")).map(told).unwrap_or_default();
                let help = "a volume, a Secret or the network is missing; run `kubectl describe pod` to see the events";
                let message = format!("pod {name} has waited for its containers for more than a minute: {why}; {help}");
                return Some(Issue::new(Reason::ContainerCreating, message));
            }
        }
    }
    None
}

/// Gates of pods that Kueue puts there, and takes away.
const KUEUE: &str = "kueue.x-k8s.io/";

fn unscheduled(name: &str, scheduled: &PodCondition, gates: &[&str], queue: Option<&str>) -> Issue {
    let message = quoted(scheduled.message.as_deref().unwrap_or_default());
    if scheduled.reason.as_deref() == Some("SchedulingGated") {
        let text = match (gates.iter().find(|gate| !gate.starts_with(KUEUE)), queue) {
            // Whoever put it there is not known.
            (Some(gate), _) => format!("pod {name} waits until its scheduling gate {} is removed", quoted(gate)),
            (None, Some(queue)) => format!("pod {name} waits for quota of the queue {}: {message}", quoted(queue)),
            (None, None) => format!("pod {name} waits for quota: {message}"),
        };
        return Issue::new(Reason::Gated, text);
    }
    let help = match message.to_lowercase().contains("persistentvolumeclaim") {
        true => "create the claim, or bind a volume to it; run `kubectl describe pvc` to see what is wrong",
        false => "change resources, nodeSelector or tolerations, or add nodes",
    };
    Issue::new(Reason::Unschedulable, format!("no node for pod {name}: {message}; {help}"))
}

/// What our own entry point says when it cannot start.
#[derive(Deserialize)]
struct Said {
    reason: String,
    message: String,
}

fn crashed(name: &str, image: &str, ended: &ContainerStateTerminated, restarts: i32) -> Issue {
    let text = ended.message.as_deref().unwrap_or_default();
    if let Some(said) = text.lines().rev().find_map(|line| serde_json::from_str::<Said>(line).ok()) {
        let message = format!("pod {name} with the image {image}: {}", quoted(&said.message));
        return match said.reason.parse() {
            Ok(reason @ (Reason::UnsupportedDask | Reason::ImageLacks)) => Issue::new(reason, message).stalled(true),
            Ok(Reason::SchedulerGone) => Issue::new(Reason::SchedulerUnreachable, message),
            _ => Issue::new(Reason::WorkerStartFailed, message),
        };
    }
    if ended.reason.as_deref() == Some("OOMKilled") {
        let help = "raise resources.limits.memory, or run fewer threads";
        let message = format!("pod {name} was killed because it reached its memory limit; {help}");
        return Issue::new(Reason::OutOfMemory, message);
    }
    let last: Vec<&str> = text.trim().lines().rev().take(6).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    let lines = quoted(&last.join(" | "));
    let exit = ended.exit_code;
    let message = format!("pod {name} ended with {exit} ({restarts} restarts): {lines}");
    Issue::new(Reason::WorkerStartFailed, message).stalled(restarts > 3)
}

/// A write that the API server refused.
pub fn from_api_error(code: u16, reason: &str, message: &str) -> Issue {
    let text = quoted(message);
    let lower = message.to_ascii_lowercase();
    let said = |reason, help: &str| Issue::new(reason, format!("{text}; {help}"));
    if lower.contains("because it is being terminated") {
        return said(Reason::NamespaceTerminating, "the namespace is being deleted, and the cluster with it");
    }
    if lower.contains("exceeded quota") {
        return said(Reason::QuotaExceeded, "raise the ResourceQuota or ask for less");
    }
    if lower.contains("violates podsecurity") {
        return said(Reason::PodRejected, "the namespace's Pod Security level refuses the pod");
    }
    if lower.contains("admission webhook") || lower.contains("failed calling webhook") {
        let help = "an admission webhook refuses it or does not answer";
        return said(Reason::AdmissionFailed, help);
    }
    if lower.contains("serviceaccount") && lower.contains("not found") {
        return said(Reason::ServiceAccountNotFound, "create the ServiceAccount, or name another one");
    }
    match (code, reason) {
        (401, _) => said(Reason::Forbidden, "the API server does not know the operator's account"),
        (403, _) if lower.contains("forbidden: user ") => said(Reason::Forbidden, "give the operator this permission"),
        (403 | 422, _) => said(Reason::PodRejected, "change the spec, or the policy that refuses it"),
        (404, _) if lower.contains("namespace") => said(Reason::NamespaceTerminating, "the namespace is being deleted"),
        _ => said(Reason::ApiError, "the operator retries"),
    }
}

fn told(condition: &PodCondition) -> String {
    quoted(condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or_default())
}

/// Text of others in one line, without control characters, and not too long.
pub fn quoted(text: &str) -> String {
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= QUOTED {
        return line;
    }
    let kept: String = line.chars().take(QUOTED).collect();
    format!("{kept} …")
}
