//! What a run may refer to, as the caches have it.

use serde_json::Value;

use super::cache::Kind;
use super::queue::Key;
use super::runs::Runs;
use crate::api::cluster::DaskClusterSpec;
use crate::api::storage::Storage;
use crate::runs::admit::World;

/// What the run may refer to.
pub(super) struct Around<'a> {
    pub runs: &'a Runs,
    pub key: &'a Key,
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

    fn most_workers(&self) -> Option<u32> {
        self.runs.most_workers
    }

    fn allows(&self, address: &str) -> bool {
        self.runs.allowed.iter().any(|pattern| pattern.is_match(address))
    }
}
