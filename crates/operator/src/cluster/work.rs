//! What the reconciler of DaskClusters has, and what the phases of one reconciliation share.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

use crate::apiserver::apply::Writer;
use crate::apiserver::cache::Entry;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::scope::Scope;
use crate::backoff::jittered;
use crate::certificates::Certificates;
use crate::certificates::Credentials;
use crate::cluster::memory::Memory;
use crate::cluster::registry::SchedulerRegistry;
use crate::controller::Controller;
use crate::controller::Done;
use crate::controller::bounds::Bounds;
use crate::controller::events::Events;
use crate::leader::clock::Clock;
use crate::queue::Key;
use api::status::DaskClusterStatus;
use decide::cluster::build::{self, PodTemplates};
use decide::cluster::facts::{Cluster, Facts, Refusal, Role};
use decide::cluster::plan::Templates;
use telemetry::metrics::Outcome;

/// Every cluster is looked at about this often even if nothing happens: its Secrets are read, which no watch shows.
const PERIOD: Duration = Duration::from_secs(60);
/// With many clusters less often, so that together they are looked at once in this time: a look is two or three requests, and most
/// of what an operator at rest does.
const SHARE: Duration = Duration::from_millis(200);

/// What its reconciliations share.
pub(crate) struct ClusterReconciler {
    pub client: Client,
    pub settings: build::Settings,
    pub controller: Controller<Memory>,
    pub certificates: Arc<Certificates>,
    /// For runs.
    pub registry: Arc<SchedulerRegistry>,
    pub events: Events,
    pub scope: Scope,
    /// Workers that one cluster may ask for.
    pub most_workers: Option<u32>,
    /// How often Secrets of users are looked for while they are missing.
    pub missing: Duration,
    /// How long the authority of a cluster that no watch shows stays at least.
    pub orphans: Duration,
    pub bounds: Bounds,
    pub clock: Clock,
}

impl ClusterReconciler {
    /// How often each cluster is looked at even if nothing happens.
    pub(crate) fn period(&self) -> Duration {
        PERIOD.max(SHARE.saturating_mul(u32::try_from(self.controller.sink.cache.len()).unwrap_or(u32::MAX)))
    }
}

/// What is known of a DaskCluster whose spec is valid.
pub(crate) struct Observed {
    /// With the highest number of a pod that is known in its status.
    pub cluster: Cluster,
    /// The status as it was written last.
    pub written: DaskClusterStatus,
    /// What the watches have shown.
    pub entry: Entry,
    pub credentials: Credentials,
    pub templates: PodTemplates,
    pub hashes: Templates,
    pub facts: Facts,
    /// Which answer of the scheduler the facts have: what comes in later is for the next reconciliation.
    pub heard: u64,
}

pub(crate) struct Work<'a> {
    pub reconciler: &'a ClusterReconciler,
    pub key: &'a Key,
    pub memory: &'a mut Memory,
    pub writer: Writer<'a>,
    pub now: Timestamp,
    /// What Kubernetes refused in this reconciliation.
    pub refused: Vec<Refusal>,
    /// The first error: the work goes on as far as it makes sense, and is tried again.
    pub error: Option<ReconcileError>,
    /// When to look again.
    pub waits: Vec<Duration>,
    /// When to do what is left for the next reconciliation.
    pub left: Option<Duration>,
}

impl<'a> Work<'a> {
    pub fn new(reconciler: &'a ClusterReconciler, key: &'a Key, memory: &'a mut Memory, uid: &'a str) -> Self {
        let writer = Writer { client: &reconciler.client, cache: &reconciler.controller.sink.cache, key, uid };
        let now = reconciler.clock.now();
        Self { reconciler, key, memory, writer, now, refused: Vec::new(), error: None, waits: Vec::new(), left: None }
    }

    pub(crate) fn done(&self, outcome: Outcome) -> Done {
        let period = jittered(self.reconciler.period(), self.key);
        let again = self.waits.iter().min().map_or(period, |wait| (*wait).min(period));
        Done { outcome, again: Some(again), left: self.left, gone: false }
    }

    /// Goes on after an error, and keeps the first one and what it tells.
    pub(crate) fn fail(&mut self, error: ReconcileError, role: Option<&Role>) {
        if let Some(issue) = self.memory.told(&error, &self.reconciler.bounds.conflict, self.now) {
            self.refused.push(Refusal { role: role.cloned(), issue });
        }
        self.error.get_or_insert(error);
    }

    /// Leaves work to a reconciliation that starts after this time.
    pub(crate) fn leave(&mut self, after: Duration) {
        self.waits.push(after);
        self.left = Some(self.left.map_or(after, |left| left.min(after)));
    }
}
