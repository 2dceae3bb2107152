//! Pods as decisions need them.

use k8s_openapi::api::core::v1::Pod;

use super::{
    facts::{Phase, PodFact},
    names, trouble,
};

/// Reads a pod; none for one that is not a DaskCluster's, or has no name of ours. Its labels do not count: anybody may
/// change them.
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
        certificate: meta.annotations.as_ref().and_then(|map| map.get(names::CERTIFICATE_ANNOTATION)).cloned(),
        phase,
        ready: ready && phase == Phase::Running,
        ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
        created,
        deleting: meta.deletion_timestamp.as_ref().map(|time| deletion(time.0, meta.deletion_grace_period_seconds)),
        trouble: trouble::find(pod, now),
        restarts: status
            .container_statuses
            .iter()
            .flatten()
            .map(|container| container.restart_count.max(0) as u32)
            .sum(),
    })
}

/// When a deletion was asked for: Kubernetes writes the time at which the grace will be over.
fn deletion(over: jiff::Timestamp, grace: Option<i64>) -> (jiff::Timestamp, i64) {
    let grace = grace.unwrap_or(0).max(0);
    (over.checked_sub(jiff::SignedDuration::from_secs(grace)).unwrap_or(over), grace)
}
