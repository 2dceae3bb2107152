//! Pods as decisions need them.

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::{
    build::{HEALTH_OPTION, RUNTIME_VOLUME},
    facts::{Base, Phase, PodFact, Role},
    names, pod_problem,
    room::Shortage,
};

/// Reads a pod; none for one that is not a DaskCluster's, or has no name of ours. What it is does not depend on its labels:
/// anybody may change them.
pub fn read_pod(pod: &Pod, now: jiff::Timestamp) -> Option<PodFact> {
    let meta = &pod.metadata;
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.kind == "DaskCluster")?;
    let slot = names::parse_pod(&owner.name, meta.name.as_deref()?)?;
    let status = pod.status.clone().unwrap_or_default();
    let phase = match status.phase.as_deref() {
        Some("Running") => Phase::Running,
        Some("Succeeded" | "Failed") => Phase::Ended,
        _ => Phase::Pending,
    };
    let ready =
        status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let created = meta.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let labels = names::pod_labels(&owner.name, &slot);
    let labelled = labels.iter().all(|(name, value)| meta.labels.as_ref().and_then(|map| map.get(name)) == Some(value));
    let find = if slot.role == Role::Scheduler { pod_problem::find_scheduler } else { pod_problem::find };
    let issue = find(pod, now);
    Some(PodFact {
        name: meta.name.clone()?,
        uid: meta.uid.clone()?,
        slot,
        template: meta
            .annotations
            .as_ref()
            .and_then(|map| map.get(names::TEMPLATE_ANNOTATION))
            .cloned()
            .unwrap_or_default(),
        base: read_base(pod),
        certificate: meta.annotations.as_ref().and_then(|map| map.get(names::CERTIFICATE_ANNOTATION)).cloned(),
        phase,
        ready: ready && phase == Phase::Running,
        ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
        created,
        deleting: meta.deletion_timestamp.as_ref().map(|time| deletion(time.0, meta.deletion_grace_period_seconds)),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty()),
        issue,
        shortage: read_shortage(&status),
        restarts: status
            .container_statuses
            .iter()
            .flatten()
            .map(|container| container.restart_count.max(0) as u32)
            .sum(),
        labelled,
    })
}

fn read_shortage(status: &PodStatus) -> Option<Shortage> {
    let mut conditions = status.conditions.iter().flatten();
    let scheduled = conditions.find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    let message = scheduled.message.as_deref().filter(|_| scheduled.reason.as_deref() == Some("Unschedulable"))?;
    Shortage::read(message)
}

fn read_base(pod: &Pod) -> Base {
    let Some(spec) = &pod.spec else { return Base::default() };
    let mut volumes = spec.volumes.iter().flatten().filter(|volume| volume.name == RUNTIME_VOLUME);
    let container = spec.containers.first();
    Base {
        image: container.and_then(|container| container.image.clone()).unwrap_or_default(),
        runtime: volumes.next().and_then(|volume| Some(volume.config_map.as_ref()?.name.clone())).unwrap_or_default(),
        health: container.iter().flat_map(|container| container.args.iter().flatten()).any(|arg| arg == HEALTH_OPTION),
    }
}

/// When a deletion was asked for: Kubernetes writes the time at which the grace will be over.
fn deletion(over: jiff::Timestamp, grace: Option<i64>) -> (jiff::Timestamp, i64) {
    let grace = grace.unwrap_or(0).max(0);
    (over.checked_sub(jiff::SignedDuration::from_secs(grace)).unwrap_or(over), grace)
}
