//! The objects of a cluster, as server-side apply takes them. Deterministic: no clock, no randomness, sorted keys.

mod children;
mod pod;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{facts::Cluster, plan::Templates};
pub use children::{Children, build_children, build_runtime};
pub use pod::{HEALTH_OPTION, PodTemplates, RUNTIME_VOLUME, build_templates};

/// What the operator was started with, as far as objects depend on it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Image of clusters that name none.
    pub image: String,
    /// The runtime's archive and its digest.
    pub runtime: &'static [u8],
    pub runtime_digest: &'static str,
    /// Namespace and labels of the operator's pods; none if it runs outside the cluster, where no policy can name it.
    pub operator: Option<Peer>,
}

/// Pods of a namespace.
#[derive(Debug, Clone)]
pub struct Peer {
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
}

/// Metadata of a child: name, namespace, labels, owner.
fn metadata(cluster: &Cluster, name: &str, labels: &BTreeMap<String, String>) -> Value {
    json!({
        "name": name,
        "namespace": cluster.namespace,
        "labels": labels,
        "ownerReferences": [{
            "apiVersion": "daskade.dev/v1alpha1",
            "kind": "DaskCluster",
            "name": cluster.name,
            "uid": cluster.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    })
}

impl PodTemplates {
    /// Hashes by which outdated pods are found.
    pub fn hashes(&self) -> Templates {
        Templates {
            scheduler: self.scheduler.hash.clone(),
            groups: self.groups.iter().map(|(name, template)| (name.clone(), template.hash.clone())).collect(),
        }
    }
}
