//! Who leads the operator, as schedulers are told.

/// The leader that sends an operation. A scheduler remembers the one heard last about each run and each DaskCluster, and
/// refuses a stale one with `StaleLeader`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leader {
    /// Counts how often the Lease has changed hands. Epochs of two Leases say nothing about each other.
    pub epoch: u64,
    /// Uid of the Lease.
    pub lease: Option<String>,
}

/// A leader of a Lease that is not known.
impl From<u64> for Leader {
    fn from(epoch: u64) -> Leader {
        Leader { epoch, lease: None }
    }
}
