//! Where the scheduler is: one that the command keeps running, or one that others run.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::error::DriveError;
use super::heartbeat::Heartbeat;
use dask::ops::Leader;
use dask::{Limits, Pool, Tls, TlsFiles};
use run_model::{Endpoint, FleetState, Runtime};

/// A new scheduler must be there within this time; the fleet gives up on its own earlier.
const ENDPOINT_WAIT: Duration = Duration::from_secs(600);

/// Certificates for a `tls://` scheduler.
#[derive(Debug, Clone)]
pub struct TlsPaths {
    /// The authorities to trust.
    pub ca: PathBuf,
    /// The certificate to show.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What all runs on one scheduler share: connections for calls, and its heartbeat.
#[derive(Debug, Clone, Default)]
pub struct ConnectionPool {
    pub(super) pool: Pool,
    pub(super) heartbeat: Heartbeat,
}

/// A scheduler that an operator has found, and how to speak to it.
#[derive(Debug, Clone)]
pub struct SchedulerEndpoint {
    /// As `tls://host:port` or `tcp://host:port`.
    pub address: String,
    /// What to show, and whom to trust.
    pub tls: Option<Tls>,
    /// Another number is another scheduler.
    pub generation: u64,
    /// Who leads the operator.
    pub lead: Leader,
    /// Others started it: what to put into it if it has no runtime yet.
    pub install: Option<Runtime>,
    /// Of this scheduler alone.
    pub connections: ConnectionPool,
}

/// The source of scheduler addresses.
#[derive(Debug)]
pub enum Fabric {
    /// Processes of this command; a scheduler that hangs is replaced.
    Local {
        /// How its processes are.
        state: watch::Receiver<FleetState>,
        /// Takes the generation of a scheduler that is to be replaced.
        replace: mpsc::UnboundedSender<u64>,
    },
    /// A cluster that others run; a lost scheduler is waited for.
    Remote {
        /// Of the scheduler.
        address: String,
        /// Certificates, if it asks for them.
        tls: Option<TlsPaths>,
        /// What to put into it if it has no runtime yet.
        runtime: Runtime,
    },
    /// A cluster in Kubernetes, whose scheduler moves from pod to pod; it is waited for, for as long as it takes.
    Followed(watch::Receiver<Option<SchedulerEndpoint>>),
}

/// How to speak to the scheduler.
pub(super) struct Access {
    pub tls: Option<Tls>,
    pub install: Option<Runtime>,
    pub lead: Option<Leader>,
    pub connections: ConnectionPool,
    /// What is taken of it.
    pub limits: Limits,
}

impl Fabric {
    /// The scheduler to use now. Waits for it; fails when there will be none.
    pub(super) async fn endpoint(&mut self) -> Result<Endpoint, DriveError> {
        match self {
            Self::Remote { address, .. } => {
                Ok(Endpoint { address: address.clone(), dashboard: None, pid: None, generation: 0 })
            }
            Self::Local { state, .. } => {
                let ready = state.wait_for(|state| state.endpoint.is_some() || state.failed.is_some());
                let state = match timeout(ENDPOINT_WAIT, ready).await {
                    Err(_) => return Err(DriveError::Cluster("no scheduler came up in time".into())),
                    Ok(Err(_)) => return Err(DriveError::Cluster("the local cluster has ended".into())),
                    Ok(Ok(state)) => state.clone(),
                };
                match (state.endpoint, state.failed) {
                    (_, Some(message)) => Err(DriveError::Cluster(message)),
                    (Some(endpoint), None) => Ok(endpoint),
                    (None, None) => Err(DriveError::Cluster("the local cluster has ended".into())),
                }
            }
            Self::Followed(endpoints) => {
                let endpoint = endpoints.wait_for(Option::is_some).await.ok().and_then(|endpoint| endpoint.clone());
                let SchedulerEndpoint { address, generation, .. } =
                    endpoint.ok_or_else(|| DriveError::Cluster("the cluster's controller has stopped".into()))?;
                Ok(Endpoint { address, dashboard: None, pid: None, generation })
            }
        }
    }

    /// Completes when the scheduler of `generation` is known to be gone; never for a cluster of others.
    pub(super) async fn gone(&mut self, generation: u64) -> String {
        match self {
            Self::Remote { .. } => std::future::pending().await,
            Self::Local { state, .. } => {
                let other = |state: &FleetState| {
                    state.failed.is_some() || state.endpoint.as_ref().is_none_or(|e| e.generation != generation)
                };
                // An error means that the fleet is gone, and the scheduler with it.
                drop(state.wait_for(other).await);
                "the scheduler process ended".to_owned()
            }
            Self::Followed(endpoints) => {
                let other = |endpoint: &Option<SchedulerEndpoint>| {
                    endpoint.as_ref().is_none_or(|endpoint| endpoint.generation != generation)
                };
                drop(endpoints.wait_for(other).await);
                "the scheduler's pod is gone".to_owned()
            }
        }
    }

    /// Says that the scheduler of `generation` does not answer: a local one is killed and started anew.
    pub(super) fn replace(&self, generation: u64) {
        if let Self::Local { replace, .. } = self {
            // The fleet is gone only when the command ends.
            let _ = replace.send(generation);
        }
    }

    /// How to speak to the scheduler of now. Reads certificates anew: they may have been renewed.
    pub(super) fn access(&self) -> Result<Access, dask::Error> {
        let own = ConnectionPool::default;
        let (tls, install, lead, connections) = match self {
            Self::Local { .. } => (None, None, None, own()),
            Self::Remote { tls: None, runtime, .. } => (None, Some(*runtime), None, own()),
            Self::Remote { tls: Some(paths), runtime, .. } => {
                let TlsPaths { ca, cert, key } = paths.clone();
                (Some(Tls::from_files(&TlsFiles { ca, cert, key })?), Some(*runtime), None, own())
            }
            Self::Followed(endpoints) => match &*endpoints.borrow() {
                Some(endpoint) => {
                    (endpoint.tls.clone(), endpoint.install, Some(endpoint.lead.clone()), endpoint.connections.clone())
                }
                None => (None, None, None, own()),
            },
        };
        let limits = if matches!(self, Self::Followed(_)) { Limits::operator() } else { Limits::default() };
        Ok(Access { tls, install, lead, connections, limits })
    }
}
