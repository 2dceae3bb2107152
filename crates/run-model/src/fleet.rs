//! The scheduler and the workers that a command keeps running, as its driver sees them.

/// A scheduler that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// As `tcp://host:port`.
    pub address: String,
    /// The address of Dask's dashboard.
    pub dashboard: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Grows with each new scheduler.
    pub generation: u64,
}

/// What the fleet is at the moment.
#[derive(Debug, Clone, Default)]
pub struct FleetState {
    /// The scheduler, once it listens.
    pub endpoint: Option<Endpoint>,
    /// Name and process of each worker that was started and has not ended.
    pub workers: Vec<(String, u32)>,
    /// Set once, when the fleet has given up.
    pub failed: Option<String>,
}
