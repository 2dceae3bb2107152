//! What tenants may have.

use lower::allowed::RunLimits;

/// What tenants may not go beyond; none: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Runs that are carried out at once in one namespace.
    pub runs_per_namespace: Option<u32>,
    /// Bytes of memory for all runs in progress together; none: as many as the container leaves.
    pub run_memory: Option<u64>,
    /// Workers that the groups of one cluster may ask for together.
    pub workers_per_cluster: Option<u32>,
    /// What one run may ask for.
    pub run: RunLimits,
}
