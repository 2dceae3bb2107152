//! What a run may refer to, as the caches have it.

use k8s_openapi::api::core::v1::ConfigMap as Object;
use kube::Api;
use regex::Regex;
use serde_json::Value;

use super::cache::Kind;
use super::error::PassError;
use super::queue::Key;
use super::runs::Runs;
use crate::api::cluster::DaskClusterSpec;
use crate::api::storage::Storage;
use crate::cluster::facts::Trouble;
use crate::pipeline::allowed::RunLimits;
use crate::runs::admit::World;
use crate::runs::code::ConfigMap;

/// What the run may refer to.
pub(super) struct Around<'a> {
    pub runs: &'a Runs,
    pub key: &'a Key,
    /// What was read of the ConfigMap that holds its code.
    pub code: Option<ConfigMap>,
}

impl Around<'_> {
    /// Reads a ConfigMap of the run's namespace, by its name.
    pub async fn read(&self, name: &str) -> ConfigMap {
        let api: Api<Object> = Api::namespaced(self.runs.client.clone(), &self.key.namespace);
        let found = match api.get_opt(name).await {
            Ok(Some(found)) => found,
            Ok(None) => return ConfigMap::Missing,
            Err(error) => {
                let message = format!("the ConfigMap {name} cannot be read now; it is tried again");
                let trouble = PassError::api("read", Kind::ConfigMap, name, error).trouble();
                return ConfigMap::Unread(trouble.unwrap_or(Trouble { reason: "ApiError", message, stalled: false }));
            }
        };
        let binary = found.binary_data.unwrap_or_default().into_keys().collect();
        ConfigMap::Found { files: found.data.unwrap_or_default(), binary }
    }
}

impl World for Around<'_> {
    fn pipeline(&self, name: &str) -> Option<Value> {
        let key = Key::new(self.key.namespace.clone(), name);
        self.runs.waiters.wait(Kind::Pipeline, &key, self.key);
        Some(self.runs.pipelines.cache.entry(&key)?.root?.json())
    }

    fn cluster(&self, name: &str) -> Option<DaskClusterSpec> {
        let key = Key::new(self.key.namespace.clone(), name);
        self.runs.waiters.wait(Kind::Cluster, &key, self.key);
        let spec = self.runs.clusters.cache.entry(&key)?.root?.json();
        serde_json::from_value(spec.get("spec")?.clone()).ok()
    }

    fn storage(&self) -> Option<Storage> {
        let mut storage = self.runs.storage.clone()?;
        // Tenants that share a bucket are told apart.
        storage.url = format!("{}/{}", storage.url.trim_end_matches('/'), self.key.namespace);
        Some(storage)
    }

    fn config_map(&self, _: &str) -> ConfigMap {
        self.code.clone().unwrap_or(ConfigMap::Missing)
    }

    fn most_workers(&self) -> Option<u32> {
        self.runs.limits.workers_per_cluster
    }

    fn limits(&self) -> RunLimits {
        self.runs.limits.run
    }

    fn allows(&self, address: &str) -> bool {
        is_allowed(&self.runs.allowed, address)
    }
}

/// Whether schedulers outside at this address may be used.
pub(super) fn is_allowed(patterns: &[Regex], address: &str) -> bool {
    patterns.iter().any(|pattern| pattern.is_match(address))
}
