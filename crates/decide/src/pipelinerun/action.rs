//! What a plan asks for.

/// About the cluster of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterStep {
    Keep,
    Make,
    Delete,
}
