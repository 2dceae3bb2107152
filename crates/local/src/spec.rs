//! What a fleet starts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Environment;

/// What to start.
#[derive(Debug, Clone)]
pub struct FleetSpec {
    /// Python, and the runtime.
    pub environment: Environment,
    /// Folder for the processes' logs and the workers' files.
    pub scratch: PathBuf,
    /// The workers.
    pub groups: Vec<GroupSpec>,
}

/// One worker group: `replicas` processes alike.
#[derive(Debug, Clone)]
pub struct GroupSpec {
    /// Its name.
    pub name: String,
    /// How many workers it has.
    pub replicas: u32,
    /// Tasks that a worker runs at once.
    pub threads: u32,
    /// Dask resources that each worker advertises, for example `GPU: 1`.
    pub resources: BTreeMap<String, f64>,
    /// Bytes; none lets Dask take its share of the machine.
    pub memory_limit: Option<u64>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
}
