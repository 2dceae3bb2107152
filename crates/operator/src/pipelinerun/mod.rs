//! The reconciler of PipelineRuns.

pub(crate) mod allowance;
pub(crate) mod apply;
pub(crate) mod drive;
pub(crate) mod driven;
pub(crate) mod gather;
pub(crate) mod memory;
pub(crate) mod quota;
pub(crate) mod reconcile;
pub(crate) mod references;
pub(crate) mod release;
pub(crate) mod removal;
pub(crate) mod revision;
pub(crate) mod scheduler;
pub(crate) mod setbacks;
pub(crate) mod work;
pub(crate) mod writes;
