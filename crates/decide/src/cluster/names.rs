//! Names and labels of what belongs to a cluster. Tools of Dask know some of them: the Service `<cluster>-scheduler`, the
//! ports' names and the labels under `dask.org/`.

use std::collections::BTreeMap;

use super::facts::{Role, Slot};

/// Field manager of everything that the operator writes.
pub const MANAGER: &str = "daskade";
/// Label by which all watches are filtered.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "daskade");
/// Name of the cluster that an object belongs to.
pub const CLUSTER_LABEL: &str = "daskade.dev/cluster";
/// Clients' pods with this label, set to the cluster's name, may reach its scheduler.
pub const CLIENT_LABEL: &str = "daskade.dev/client";
const GROUP_LABEL: &str = "daskade.dev/group";
const NUMBER_LABEL: &str = "daskade.dev/number";
const INCARNATION_LABEL: &str = "daskade.dev/incarnation";
/// Count of GPUs of a worker's pod.
pub const GPU_LABEL: &str = "daskade.dev/gpu";
/// Kueue's queue; taken over from the DaskCluster.
pub const QUEUE_LABEL: &str = "kueue.x-k8s.io/queue-name";
/// Hash of what a pod got from the spec.
pub const TEMPLATE_ANNOTATION: &str = "daskade.dev/template";
/// Fingerprint of the certificate that a pod should show. A change of it makes the kubelet look at the pod's Secret at
/// once, rather than within a minute or two.
pub const CERTIFICATE_ANNOTATION: &str = "daskade.dev/certificate";

/// Port of the scheduler.
pub const SCHEDULER_PORT: u16 = 8786;
/// Port of the dashboard.
pub const DASHBOARD_PORT: u16 = 8787;
/// Port of a worker.
pub const WORKER_PORT: u16 = 8788;
/// Where both answer the kubelet's probes.
pub const HEALTH_PORT: u16 = 8789;

/// Name of a pod; of a worker's, also its name in Dask.
pub fn pod(cluster: &str, slot: &Slot) -> String {
    match &slot.role {
        Role::Scheduler => format!("{cluster}-scheduler-{}", slot.incarnation),
        Role::Worker { group, number } => format!("{cluster}-{group}-{number}-{}", slot.incarnation),
    }
}

/// The Service of the scheduler, and the NetworkPolicy of its pod.
pub fn scheduler(cluster: &str) -> String {
    format!("{cluster}-scheduler")
}

/// The NetworkPolicy of the workers' pods.
pub fn workers(cluster: &str) -> String {
    format!("{cluster}-worker")
}

/// The ConfigMap with the runtime of a digest.
pub fn runtime(cluster: &str, digest: &str) -> String {
    format!("{cluster}-runtime-{}", &digest[..digest.len().min(8)])
}

/// The Secret that scheduler and workers mount.
pub fn tls_secret(cluster: &str) -> String {
    format!("{cluster}-tls")
}

/// The Secret for people's clients.
pub fn client_secret(cluster: &str) -> String {
    format!("{cluster}-client-tls")
}

/// The Secret with the key of a cluster's authority, in the operator's namespace.
pub fn authority_secret(uid: &str) -> String {
    format!("daskade-ca-{uid}")
}

/// Address of the scheduler for pods and people inside the Kubernetes cluster.
pub fn address(cluster: &str, namespace: &str, tls: bool) -> String {
    let scheme = if tls { "tls" } else { "tcp" };
    format!("{scheme}://{}.{namespace}:{SCHEDULER_PORT}", scheduler(cluster))
}

/// Labels of every child.
pub fn labels(cluster: &str, component: &str) -> BTreeMap<String, String> {
    let mut labels = selector(cluster, component);
    let more = [
        ("app.kubernetes.io/name", "daskade"),
        MANAGED_BY,
        ("app.kubernetes.io/instance", cluster),
        ("app.kubernetes.io/component", component),
        (CLUSTER_LABEL, cluster),
    ];
    labels.extend(more.map(|(key, value)| (key.to_owned(), value.to_owned())));
    labels
}

/// Labels of the pod for a slot.
pub fn pod_labels(cluster: &str, slot: &Slot) -> BTreeMap<String, String> {
    let mut labels = labels(cluster, component(&slot.role));
    labels.insert(INCARNATION_LABEL.to_owned(), slot.incarnation.to_string());
    if let Role::Worker { group, number } = &slot.role {
        labels.insert("dask.org/workergroup-name".to_owned(), group.clone());
        labels.insert(GROUP_LABEL.to_owned(), group.clone());
        labels.insert(NUMBER_LABEL.to_owned(), number.to_string());
    }
    labels
}

/// The labels by which pods are selected; no other label ever is.
pub fn selector(cluster: &str, component: &str) -> BTreeMap<String, String> {
    [("dask.org/cluster-name", cluster), ("dask.org/component", component)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// `scheduler` or `worker`.
pub fn component(role: &Role) -> &'static str {
    match role {
        Role::Scheduler => "scheduler",
        Role::Worker { .. } => "worker",
    }
}

/// Which pod of a cluster one is, by its name, which nobody can change; none if it was not made by [`pod`].
pub fn parse_pod(cluster: &str, name: &str) -> Option<Slot> {
    let (rest, incarnation) = name.strip_prefix(cluster)?.strip_prefix('-')?.rsplit_once('-')?;
    let role = match rest.rsplit_once('-') {
        None if rest == "scheduler" => Role::Scheduler,
        None => return None,
        Some((group, number)) => Role::Worker { group: group.to_owned(), number: number.parse().ok()? },
    };
    let slot = Slot { role, incarnation: incarnation.parse().ok()? };
    // Other ways to write a number are not ours.
    (pod(cluster, &slot) == name).then_some(slot)
}
