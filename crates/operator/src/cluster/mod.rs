//! The reconciler of DaskClusters.

pub(crate) mod apply;
pub(crate) mod gather;
pub(crate) mod link;
pub(crate) mod memory;
pub(crate) mod orphans;
pub(crate) mod reconcile;
pub(crate) mod registry;
pub(crate) mod totals;
pub(crate) mod work;
