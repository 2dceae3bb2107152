//! Service, ConfigMap and NetworkPolicies of a cluster.

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::{Settings, metadata};
use crate::cluster::{facts::Cluster, names};

/// The children that are no pods, no Secrets and no runtime, in the order in which they are written.
#[derive(Debug, Clone, PartialEq)]
pub struct Children {
    pub policies: [Value; 2],
    pub service: Value,
}

/// Builds them.
pub fn build_children(cluster: &Cluster, settings: &Settings) -> Children {
    Children { policies: [scheduler_policy(cluster, settings), worker_policy(cluster)], service: service(cluster) }
}

/// The ConfigMap with the runtime, one per version: pods that were made with an older one keep it. Apart from the others,
/// since it is large, and its name says whether it is there.
pub fn build_runtime(cluster: &Cluster, settings: &Settings) -> Value {
    let name = names::runtime(&cluster.name, settings.runtime_digest);
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(cluster, &name, &names::labels(&cluster.name, "runtime")),
        "immutable": true,
        "binaryData": {"daskade_runtime.zip": ByteString(settings.runtime.to_vec())},
    })
}

fn service(cluster: &Cluster) -> Value {
    let port = |name: &str, port: u16| json!({"name": name, "protocol": "TCP", "port": port, "targetPort": port});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(cluster, &names::scheduler(&cluster.name), &names::labels(&cluster.name, "scheduler")),
        "spec": {
            "type": "ClusterIP",
            "selector": names::selector(&cluster.name, "scheduler"),
            "ports": [port("tcp-comm", names::SCHEDULER_PORT), port("http-dashboard", names::DASHBOARD_PORT)],
        },
    })
}

/// Who may reach the scheduler: its workers, the operator, and pods of the namespace that say that they are its clients.
/// Without the operator's labels (it runs outside) the address of the operator cannot be named: its port stays open to all,
/// behind mutual TLS.
fn scheduler_policy(cluster: &Cluster, settings: &Settings) -> Value {
    let tcp = |port: u16| json!({"protocol": "TCP", "port": port});
    let workers = json!({"podSelector": {"matchLabels": names::selector(&cluster.name, "worker")}});
    let clients = json!({"podSelector": {"matchLabels": {names::CLIENT_LABEL: cluster.name}}});
    let mut ingress = vec![
        json!({"from": [workers, clients.clone()], "ports": [tcp(names::SCHEDULER_PORT)]}),
        json!({"from": [clients], "ports": [tcp(names::DASHBOARD_PORT)]}),
    ];
    ingress.push(match &settings.operator {
        Some(peer) => json!({
            "from": [{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": peer.namespace}},
                "podSelector": {"matchLabels": peer.labels},
            }],
            "ports": [tcp(names::SCHEDULER_PORT)],
        }),
        None => json!({"ports": [tcp(names::SCHEDULER_PORT)]}),
    });
    policy(cluster, &names::scheduler(&cluster.name), "scheduler", ingress)
}

/// Workers talk to each other and to their scheduler, and to nobody else.
fn worker_policy(cluster: &Cluster) -> Value {
    let from = ["scheduler", "worker"]
        .map(|component| json!({"podSelector": {"matchLabels": names::selector(&cluster.name, component)}}));
    let ingress = vec![json!({"from": from, "ports": [{"protocol": "TCP", "port": names::WORKER_PORT}]})];
    policy(cluster, &names::workers(&cluster.name), "worker", ingress)
}

fn policy(cluster: &Cluster, name: &str, component: &str, ingress: Vec<Value>) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(cluster, name, &names::labels(&cluster.name, component)),
        "spec": {
            "podSelector": {"matchLabels": names::selector(&cluster.name, component)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    })
}
