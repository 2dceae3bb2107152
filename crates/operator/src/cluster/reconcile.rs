//! The reconciler of DaskClusters, in its phases: gather, validate, plan, apply, report.

use std::time::Duration;

use tokio::time::Instant;

use crate::apiserver::cache::Entry;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Kind;
use crate::apiserver::whole;
use crate::backoff::jittered;
use crate::cluster::gather::{Object, gather_pods, read_object};
use crate::cluster::memory::{Memory, Tally};
use crate::cluster::orphans::Presence;
use crate::cluster::work::ClusterReconciler;
use crate::cluster::work::{Observed, Work};
use crate::controller::status::StatusWriter;
use crate::controller::{Controller, Done, Reconciler};
use crate::queue::Key;
use api::problem::listed;
use api::reason::Reason;
use api::status::DaskClusterStatus;
use decide::cluster::plan::{Plan, plan};
use decide::cluster::status::{build_status, invalid_status};
use decide::cluster::too_many_workers;
use telemetry::metrics::{self, Outcome};

/// What a change of counts alone waits since the status was last written: pods come one by one.
const COUNTS: Duration = Duration::from_secs(1);
/// After pods were deleted: from then on it is known how long that may take.
const AFTER_DELETION: Duration = Duration::from_secs(1);

impl Reconciler for ClusterReconciler {
    type Memory = Memory;

    const NAME: metrics::Controller = metrics::Controller::DaskCluster;

    async fn reconcile(&self, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
        let ended = self.look(key, memory).await;
        if ended.is_err() {
            memory.settled = None;
        }
        ended
    }

    /// Another operator may have led meanwhile and changed certificates.
    fn begin(&self) {
        self.certificates.clear();
    }

    /// Removes authorities of clusters that are gone, from time to time.
    async fn lead_on(&self) {
        let known = || self.controller.sink.cache.uids();
        self.certificates.sweep_on(|namespace| self.scope.watches(namespace), known, self.orphans).await;
    }

    fn controller(&self) -> &Controller<Memory> {
        &self.controller
    }
}

impl ClusterReconciler {
    /// Whether there is anything to do: most looks find that nothing has changed.
    async fn look(&self, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
        let Some(entry) = self.controller.sink.cache.entry(key) else { return forget(self, key, memory).await };
        let Some(record) = &entry.root else { return forget(self, key, memory).await };
        if memory.uid != record.uid {
            forget(self, key, memory).await?;
            *memory = Memory::default();
        }
        if !self.scope.has(&key.namespace) {
            return Ok(self.rest(key, memory, Outcome::Settled));
        }
        memory.uid.clone_from(&record.uid);
        let heard = memory.link.as_ref().map_or(0, |link| link.state().1);
        // How long what the last reconciliation found still holds, if nothing has changed.
        let unchanged = memory.settled.and_then(|(revision, answer, until)| {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
            left.filter(|_| revision == entry.revision && answer == heard)
        });
        let look = memory.secrets.is_none_or(|at| at.elapsed() >= self.period().mul_f64(0.7));
        if let Some(left) = unchanged.filter(|_| !look) {
            // This turn took the moment that the last one had asked for.
            return Ok(Done {
                outcome: Outcome::Settled,
                again: Some(left.min(jittered(self.period(), key))),
                left: memory.left(),
                gone: false,
            });
        }
        let whole = whole::read(&self.client, Kind::Cluster, key, record, 0).await?;
        let object = self.validate(read_object(key, &whole));
        tracing::Span::current().record("uid", &object.cluster.uid).record("generation", object.cluster.generation);
        if object.deleting {
            // Kubernetes collects the children by their owner.
            return Ok(self.rest(key, memory, Outcome::Waiting));
        }
        let uid = whole.record.uid.clone();
        Work::new(self, key, memory, &uid).run(object, entry, unchanged).await
    }

    /// The object with all that is wrong with its spec.
    fn validate(&self, mut object: Object) -> Object {
        let status = &object.cluster.status;
        let refused = status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && Reason::Invalid.is(&condition.reason));
        // Who has begun is not judged again when the operator is started with other limits.
        if refused || status.observed_generation != Some(object.cluster.generation) {
            object.problems.extend(too_many_workers(&object.cluster.spec, self.most_workers, "spec"));
        }
        object
    }

    /// Nothing is done about a cluster, also not for runs.
    fn rest(&self, key: &Key, memory: &mut Memory, outcome: Outcome) -> Done {
        memory.link = None;
        self.registry.forget(key);
        Done::rest(outcome)
    }
}

/// The cluster is gone: what Kubernetes does not collect is removed.
async fn forget(reconciler: &ClusterReconciler, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
    // A list that lags may lack it: then it will be shown again.
    if !memory.uid.is_empty() && reconciler.certificates.forget(key, &memory.uid).await? == Presence::Lives {
        return Err(ReconcileError::Behind);
    }
    memory.link = None;
    reconciler.registry.forget(key);
    Ok(Done { gone: true, ..Done::rest(Outcome::Settled) })
}

impl Work<'_> {
    /// The phases: what is there, what should be there, the difference, and what to report.
    async fn run(mut self, object: Object, entry: Entry, unchanged: Option<Duration>) -> Result<Done, ReconcileError> {
        if !object.problems.is_empty() {
            return self.refuse(object, &entry).await;
        }
        let Some(mut observed) = self.gather(object, entry, unchanged).await else {
            return Ok(self.done(Outcome::Settled));
        };
        let mut planned = self.plan(&mut observed).await;
        self.apply(&mut observed, &mut planned).await?;
        self.report(observed, &planned).await
    }

    /// A spec that is not valid: what runs goes on, with certificates that are renewed, and the status says what is wrong.
    async fn refuse(mut self, object: Object, entry: &Entry) -> Result<Done, ReconcileError> {
        let message = listed(&object.problems);
        let cluster = &object.cluster;
        if object.has_tls && entry.pods(&cluster.uid).next().is_some() {
            let credentials = self.credentials(cluster, false).await;
            let (facts, _) = self.facts(entry, cluster, &credentials).await;
            self.note_certificates(&facts, credentials.fact.fingerprint.as_deref()).await;
            self.waits.extend(credentials.renew_after);
        }
        let status = invalid_status(&object.cluster, Reason::Invalid, message, self.now);
        self.write_status(&object.cluster.status, &status).await?;
        self.error.take().map_or_else(|| Ok(self.done(Outcome::Invalid)), Err)
    }

    /// What is to be done. A scheduler that seems to be unused is asked for its state now before anything is decided by that.
    async fn plan(&self, observed: &mut Observed) -> Plan {
        let planned = plan(&observed.cluster, &observed.hashes, &observed.facts);
        let Some(link) = self.memory.link.as_ref().filter(|_| planned.scheduler_unused) else { return planned };
        observed.facts.scheduler = link.ask().await;
        plan(&observed.cluster, &observed.hashes, &observed.facts)
    }

    /// The status, and what is remembered until the next reconciliation.
    async fn report(mut self, observed: Observed, planned: &Plan) -> Result<Done, ReconcileError> {
        let Observed { mut cluster, written, entry, credentials, hashes, mut facts, heard, .. } = observed;
        // What was written is in the cache now.
        let after = self.reconciler.controller.sink.cache.entry(self.key).unwrap_or_default();
        facts.pods = gather_pods(&after, &cluster.uid, self.now).0;
        facts.refused = std::mem::take(&mut self.refused);
        facts.tls = credentials.fact.clone();
        cluster.status = written;
        let status = build_status(&cluster, &hashes, &facts, planned);
        self.write_status(&cluster.status, &status).await?;
        if let Some(error) = self.error {
            return Err(error);
        }
        self.memory.conflicts.clear();
        self.waits.extend(planned.wake);
        // Its own deletion is no news, and the node of a pod may never carry it out.
        self.waits.extend((!planned.delete.is_empty()).then_some(AFTER_DELETION));
        self.waits.extend(credentials.renew_after);
        self.memory.tls = credentials.fact;
        let until = self.waits.iter().min().copied().unwrap_or(Duration::from_secs(24 * 3600));
        // What came in meanwhile was asked for in the queue, and is looked at then.
        let still = self.reconciler.controller.sink.cache.revision(self.key) == entry.revision;
        self.memory.left = self.left.map(|left| Instant::now() + left);
        self.memory.settled = still.then(|| (entry.revision, heard, Instant::now() + until));
        let outcome = if self.memory.tally.ready { Outcome::Settled } else { Outcome::Waiting };
        Ok(self.done(outcome))
    }

    async fn write_status(
        &mut self,
        before: &DaskClusterStatus,
        status: &DaskClusterStatus,
    ) -> Result<(), ReconcileError> {
        self.memory.tally = Tally {
            ready: status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            desired: status.workers_desired.unwrap_or(0) as usize,
            workers: status.workers_ready.unwrap_or(0) as usize,
        };
        self.reconciler.registry.report(self.key, status);
        if status == before {
            return Ok(());
        }
        if let Some(left) = self.memory.status.left(COUNTS).filter(|_| says_the_same(before, status)) {
            self.leave(left);
            return Ok(());
        }
        let writer = StatusWriter { writer: &self.writer, events: &self.reconciler.events, kind: Kind::Cluster };
        writer.write(status, &before.conditions, &status.conditions).await?;
        self.memory.status.note();
        Ok(())
    }
}

/// Whether two statuses differ in counts only.
fn says_the_same(one: &DaskClusterStatus, other: &DaskClusterStatus) -> bool {
    let gist = |status: &DaskClusterStatus| -> Vec<(String, String, String, Option<i64>)> {
        let conditions = status.conditions.iter();
        conditions.map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone(), c.observed_generation)).collect()
    };
    gist(one) == gist(other)
}
