//! The reconciler of Pipelines.

pub(crate) mod reconcile;
pub(crate) mod writes;
