//! What a run may refer to, as the caches have it.

use serde_json::Value;

use super::cache::Kind;
use super::queue::Key;
use super::runs::Runs;
use crate::api::cluster::DaskClusterSpec;
use crate::runs::admit::World;
use crate::runs::limits::RunLimits;

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

    fn most_workers(&self) -> Option<u32> {
        self.runs.limits.workers_per_cluster
    }

    fn limits(&self) -> RunLimits {
        self.runs.limits.run
    }

    fn allows(&self, address: &str) -> bool {
        self.runs.allowed.iter().any(|pattern| pattern.is_match(address))
    }
}
