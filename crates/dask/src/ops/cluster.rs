//! Operations of our runtime for those who run a cluster, rather than a run on it: its state, draining, demand.
//!
//! Those that watch or change the cluster name its DaskCluster and the leader that sends them: a scheduler refuses a stale one
//! with `StaleLeader`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Accepted, Operation};
use crate::deadlines::Deadlines;
use crate::frame::Limits;

/// `daskade-cluster`: the state of the cluster, once its version is above `since` or `wait` seconds have passed.
#[derive(Debug, Clone, Serialize)]
pub struct WatchCluster {
    /// Uid of the DaskCluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Epoch of the leader that asks.
    pub lead: u64,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Version that the caller knows; 0: answer at once.
    pub since: u64,
    /// The runtime instance that `since` is of; another one answers at once.
    pub instance: Option<String>,
    /// Longest time to wait, in seconds, at most 60.
    pub wait: f64,
    /// Look now. Without it the answer may be a second old, or more where looking takes long.
    pub fresh: bool,
}

/// Answer of [`WatchCluster`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ClusterInfo {
    /// Grows with every change of what follows (`idle` aside).
    pub version: u64,
    /// New for every scheduler process.
    pub instance: String,
    /// Digest of the runtime.
    pub runtime: String,
    /// Version of Dask.
    pub dask: String,
    /// Version of Python.
    pub python: String,
    /// All workers that the scheduler knows.
    pub workers: Vec<ClusterWorker>,
    /// What waits or runs now or soon, by what it asks for.
    pub demand: Vec<Ask>,
    /// Runs that are open.
    pub runs: u32,
    /// Dask clients that are connected, other than the runtime's own.
    pub clients: u32,
    /// Tasks that have not ended.
    pub tasks: u64,
    /// Seconds since the last run, client or task; 0 while there is one.
    pub idle: f64,
    /// The certificate that the scheduler shows; none without TLS.
    pub certificate: Option<Certificate>,
}

/// A worker as the scheduler knows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ClusterWorker {
    /// The name that it was started with: that of its pod.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// `running`, `paused`, `closing_gracefully`, …
    pub status: String,
    /// Threads.
    pub threads: u32,
    /// Abstract resources.
    #[serde(default)]
    pub resources: BTreeMap<String, f64>,
    /// Tasks that run on it or are sent to it.
    pub tasks: u64,
    /// SHA-256 of the certificate that it shows, in hex; none without TLS or if it has not told yet.
    #[serde(default)]
    pub certificate: Option<String>,
}

/// A certificate in use.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Certificate {
    /// SHA-256 of its DER form, in hex.
    pub fingerprint: String,
    /// Seconds since 1970.
    pub expires: f64,
}

/// Tasks that ask for the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Worker group that they are pinned to.
    #[serde(default)]
    pub group: Option<String>,
    /// Abstract resources of each.
    #[serde(default)]
    pub resources: BTreeMap<String, f64>,
    /// How many could run at once if there were workers for all: those that wait and those that run.
    pub count: u64,
    /// Those of them that come only after a step that itself waits for a worker: none is needed before that one has started.
    /// Schedulers with an earlier runtime do not tell.
    #[serde(default)]
    pub later: u64,
}

/// `daskade-drain`: the named workers take no further tasks and finish those that they have. Unknown names are ignored.
#[derive(Debug, Clone, Serialize)]
pub struct Drain {
    /// Uid of the DaskCluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Epoch of the leader that asks.
    pub lead: u64,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Names of workers.
    pub names: Vec<String>,
}

/// `daskade-retire`: closes those of the named workers that drain and have nothing left to do.
#[derive(Debug, Clone, Serialize)]
pub struct Retire {
    /// Uid of the DaskCluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Epoch of the leader that asks.
    pub lead: u64,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Names of workers.
    pub names: Vec<String>,
}

/// Answer of [`Retire`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Retired {
    /// Closed, or not known any more: their pods may go.
    pub closed: Vec<String>,
    /// Still at work, or not draining: left alone.
    pub busy: Vec<String>,
}

/// `daskade-demand`: what a run has use for now and soon, what it has submitted included. Of both, this and what the runtime
/// itself knows of the run, the larger number counts. Replaces what it said before, and ends with the run.
#[derive(Debug, Clone, Serialize)]
pub struct Demand {
    /// The run, which must be open.
    pub run: String,
    /// Its epoch.
    pub epoch: u64,
    /// What it has use for.
    pub asks: Vec<Ask>,
}

impl Operation for WatchCluster {
    const OP: &'static str = "daskade-cluster";
    type Reply = ClusterInfo;

    fn limits(&self) -> Limits {
        Limits::of(limits::CLUSTER)
    }

    /// Beyond the longest wait.
    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow + Duration::from_secs(60)
    }
}

impl Operation for Drain {
    const OP: &'static str = "daskade-drain";
    type Reply = Accepted;
}

impl Operation for Retire {
    const OP: &'static str = "daskade-retire";
    type Reply = Retired;

    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

impl Operation for Demand {
    const OP: &'static str = "daskade-demand";
    type Reply = Accepted;
}
