//! What is remembered of a run from one reconciliation to the next.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::controller::status::Throttle;
use crate::pipelinerun::drive::Drive;
use crate::pipelinerun::release::Releasing;
use crate::pipelinerun::removal::Removal;
use crate::pipelinerun::revision::StoredRevision;
use crate::pipelinerun::setbacks::Setbacks;
use decide::cluster::facts::Issue;
use driver::SchedulerEndpoint;
use run_model::Report;

/// Without it, everything is found out again.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub uid: String,
    /// When this process saw it first.
    pub seen: Option<Instant>,
    pub stored: Option<Arc<StoredRevision>>,
    /// What the run_revision takes that there was no room to keep.
    pub heavy: Option<usize>,
    pub drive: Option<Drive>,
    /// How the last try ended, and when the next one may begin.
    pub broken: Option<(Issue, Option<Instant>)>,
    pub setbacks: Setbacks,
    pub done: Option<Box<Report>>,
    /// The scheduler of a run that is on no DaskCluster.
    pub outside: Option<watch::Sender<Option<SchedulerEndpoint>>>,
    /// What it waited for, until a step ran.
    pub waited: Option<String>,
    /// When its cancellation was first seen.
    pub cancelled: Option<Instant>,
    /// Since when no worker can run its `finally` steps, and nothing else is left.
    pub stuck: Option<Instant>,
    pub status: Throttle,
    pub opening: Option<Instant>,
    pub removal: Removal,
    pub release: Releasing,
}
