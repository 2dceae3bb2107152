//! What the reconciler of PipelineRuns has, and what the phases of one reconciliation share.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::apiserver::apply::Writer;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Record;
use crate::apiserver::scope::Scope;
use crate::apiserver::sink::Sink;
use crate::apiserver::waiters::Waiters;
use crate::certificates::Certificates;
use crate::cluster::registry::SchedulerRegistry;
use crate::controller::Controller;
use crate::controller::bounds::Bounds;
use crate::controller::events::Events;
use crate::leader::clock::Clock;
use crate::pipelinerun::allowance::Limits;
use crate::pipelinerun::driven::Driven;
use crate::pipelinerun::memory::Memory;
use crate::pipelinerun::quota::RunQuota;
use crate::queue::Key;
use api::storage::Storage;
use run_model::Runtime;

/// What its reconciliations share.
pub(crate) struct RunReconciler {
    pub client: Client,
    pub controller: Controller<Memory>,
    pub clusters: Sink,
    pub pipelines: Sink,
    pub waiters: Arc<Waiters>,
    pub registry: Arc<SchedulerRegistry>,
    pub certificates: Arc<Certificates>,
    pub events: Events,
    pub scope: Scope,
    /// Where runs that name no storage keep their data; each namespace below it.
    pub storage: Option<Storage>,
    /// For schedulers outside.
    pub runtime: Runtime,
    /// Addresses of schedulers outside that may be used.
    pub allowed: Vec<regex::Regex>,
    pub quota: RunQuota,
    pub driven: Arc<Driven>,
    pub limits: Limits,
    /// How often objects of users are looked for while they are missing.
    pub missing: Duration,
    /// How often the same may go wrong.
    pub bounds: Bounds,
    /// Places for removals that clusters are made for.
    pub removals: Arc<Semaphore>,
    pub clock: Clock,
}

pub(crate) struct Work<'a> {
    pub reconciler: &'a RunReconciler,
    pub key: &'a Key,
    pub memory: &'a mut Memory,
    pub writer: Writer<'a>,
    pub record: Record,
    /// The run as JSON.
    pub value: Value,
    /// Why its spec is not unpacked.
    pub refused: Option<String>,
    pub now: Timestamp,
    /// The API server vouches for that.
    pub fresh: bool,
    /// When to look again.
    pub soon: Option<Duration>,
    /// The first error: the work goes on to report it, and is tried again.
    pub error: Option<ReconcileError>,
}
