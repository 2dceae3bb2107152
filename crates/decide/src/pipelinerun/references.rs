//! What a run may refer to.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cluster::facts::Issue;
use api::cluster::DaskClusterSpec;
use api::storage::Storage;
use lower::allowed::RunLimits;

/// What a run may refer to, and what the operator allows.
pub trait References {
    /// The Pipeline of this name in the run's namespace, as JSON.
    fn pipeline(&self, name: &str) -> Option<Value>;
    /// The spec of the DaskCluster of this name in the run's namespace.
    fn cluster(&self, name: &str) -> Option<DaskClusterSpec>;
    /// Where runs of the namespace keep their data if nothing else is said.
    fn storage(&self) -> Option<Storage>;
    /// A ConfigMap of the run's namespace.
    fn config_map(&self, name: &str) -> ConfigMap;
    /// Workers that one cluster may ask for.
    fn most_workers(&self) -> Option<u32>;
    /// What one run may ask for.
    fn limits(&self) -> RunLimits;
    /// Whether schedulers at this address may be used.
    fn allows(&self, address: &str) -> bool;
}

/// A ConfigMap of the run's namespace, as far as somebody has looked.
#[derive(Debug, Clone)]
pub enum ConfigMap {
    Missing,
    /// It cannot be read now.
    Unread(Issue),
    Found {
        files: BTreeMap<String, String>,
        /// Names of those that are no text.
        binary: Vec<String>,
    },
}
