//! What a run has to do with its scheduler: where it is, leaving it, and having it remove what the run has stored.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Kind;
use crate::pipelinerun::gather::read_run;
use crate::pipelinerun::release::Whom;
use crate::pipelinerun::revision::StoredRevision;
use crate::pipelinerun::work::Work;
use crate::queue::Key;
use api::reason::Reason;
use decide::cluster::facts::{Issue, Phase, PodFact, Role};
use decide::pipelinerun::facts::{ClusterFact, Facts, Place, Run, SpecFact};
use decide::pipelinerun::release::{ReleaseFact, shared_place};
use decide::pipelinerun::retention::Due;
use driver::{ConnectionPool, SchedulerEndpoint, release};

/// When to look for a scheduler again that cannot be spoken to yet.
const SOON: Duration = Duration::from_secs(1);
/// How long a scheduler may take to let go of a run.
const LEAVE: Duration = Duration::from_secs(8);

impl Work<'_> {
    pub(crate) async fn cluster(&mut self, place: &Place, owned: Option<&(String, bool, bool)>) -> ClusterFact {
        let key = match place {
            Place::Address { address, secret } => return self.outside(address, secret.as_deref()).await,
            Place::Shared(name) => Key::new(self.key.namespace.clone(), name.clone()),
            Place::Own => self.key.clone(),
        };
        self.reconciler.waiters.wait(Kind::Cluster, &key, self.key);
        if *place == Place::Own {
            match owned {
                None => return ClusterFact::Missing,
                Some((_, false, _)) => {
                    let message = format!(
                        "the DaskCluster {} is not this run's and is not touched; delete it, or give the run another name",
                        self.key.name
                    );
                    return ClusterFact::Waits(Issue::new(Reason::NameConflict, message));
                }
                Some((_, true, true)) => {
                    let message = "its DaskCluster is being deleted; another is made then".to_owned();
                    return ClusterFact::Waits(Issue::new(Reason::Pending, message));
                }
                Some((_, true, false)) => {}
            }
        } else if self.reconciler.clusters.cache.entry(&key).is_none_or(|entry| entry.root.is_none()) {
            return ClusterFact::Missing;
        }
        let state = self.reconciler.registry.state(&key).unwrap_or_default();
        // One that ends again and again has its address all the while, and answers in between at most.
        let unstable = state.scheduler.as_ref().is_some_and(|issue| issue.reason == Reason::SchedulerUnstable);
        if state.reachable && !unstable {
            return ClusterFact::Answers(state.workers);
        }
        let unknown = || Issue::new(Reason::SchedulerNotReady, "its scheduler is being started".to_owned());
        let Issue { reason, message, stalled } = state.scheduler.unwrap_or_else(unknown);
        ClusterFact::Waits(Issue { reason, message: format!("DaskCluster {}: {message}", key.name), stalled })
    }

    /// A scheduler that is no DaskCluster: its certificates are read once, when the run is about to be opened.
    async fn outside(&mut self, address: &str, secret: Option<&str>) -> ClusterFact {
        if self.memory.outside.is_some() {
            return ClusterFact::Answers(None);
        }
        let tls = match secret {
            None => None,
            Some(secret) => {
                self.soon = Some(self.reconciler.missing);
                let field = "spec.cluster.tls.secretRef";
                let read = self.reconciler.certificates.of_secret(&self.key.namespace, secret, field, self.now).await;
                match read {
                    Ok(credentials) => match credentials.fact.issue {
                        Some(issue) => return ClusterFact::Waits(issue),
                        None => credentials.client,
                    },
                    Err(error) => {
                        let error = ReconcileError::Certificates(error);
                        let message = format!("failed to {error}; retrying");
                        let other = Issue::new(Reason::ApiError, message);
                        return ClusterFact::Waits(error.issue().unwrap_or(other));
                    }
                }
            }
        };
        let lead = self.reconciler.controller.lead.leader().unwrap_or_default();
        let connections = ConnectionPool::default();
        let install = Some(self.reconciler.runtime);
        let endpoint =
            SchedulerEndpoint { address: address.to_owned(), tls, generation: 1, lead, install, connections };
        self.memory.outside = Some(watch::Sender::new(Some(endpoint)));
        ClusterFact::Answers(None)
    }

    /// Has the run's scheduler remove what it has stored.
    pub(crate) fn sweep(&mut self, stored: &StoredRevision, due: Due) {
        let Some(endpoint) = self.endpoint(&stored.revision.place) else { return self.soon = Some(SOON) };
        let order = stored.sweep(due, self.ended());
        self.memory.removal.start(order, due, endpoint, self.key, self.reconciler.controller.sink.queue.clone());
    }

    /// Has the scheduler of the run's own cluster let go of it, so that what its steps have just finished is stored before
    /// the cluster goes. It matters little if that cannot be told.
    pub(crate) async fn leave(&self, run: &Run, facts: &Facts) {
        let SpecFact::Frozen(frozen) = &facts.spec else { return };
        let Some(endpoint) = self.endpoint(&frozen.place) else { return };
        if let Ok(Err(error)) = timeout(LEAVE, release(&run.uid, &endpoint)).await {
            tracing::debug!(reason = error.reason(), "failed to release the run on the scheduler: {error}");
        }
    }

    /// How far the release of the run by the scheduler at `place` is.
    pub(crate) async fn release_fact(&mut self, place: &Place, cluster: &ClusterFact) -> ReleaseFact {
        let whom = self.whom(place, cluster).await;
        let fact = self.memory.release.fact(self.key, whom);
        if matches!(fact, ReleaseFact::Paused { .. }) {
            // Its certificates may have been renewed.
            self.memory.outside = None;
        }
        fact
    }

    /// Asks the scheduler to forget the run.
    pub(crate) fn release(&mut self, run: &Run, spec: &SpecFact) {
        let Some(endpoint) = shared_place(run, spec).and_then(|place| self.endpoint(&place)) else {
            return self.soon = Some(SOON);
        };
        self.memory.release.start(run.uid.clone(), endpoint, self.key, self.reconciler.controller.sink.queue.clone());
    }

    /// Who is to forget the run.
    async fn whom(&self, place: &Place, cluster: &ClusterFact) -> Whom {
        if self.endpoint(place).is_some() {
            return Whom::Scheduler;
        }
        if let Place::Shared(name) = place {
            match self.has_scheduler(name).await {
                Ok(false) => return Whom::Gone,
                Ok(true) => {}
                Err(error) => {
                    let message = format!("failed to {error}");
                    return Whom::Later(Issue::new(Reason::ApiError, message));
                }
            }
        }
        match cluster {
            ClusterFact::Waits(issue) => Whom::Later(issue.clone()),
            ClusterFact::Missing | ClusterFact::Answers(_) => {
                let message = "the scheduler cannot be reached yet".to_owned();
                Whom::Later(Issue::new(Reason::SchedulerNotReady, message))
            }
        }
    }

    /// Whether a process of a DaskCluster's scheduler may be alive.
    async fn has_scheduler(&self, name: &str) -> Result<bool, ReconcileError> {
        let key = Key::new(self.key.namespace.clone(), name);
        let entry = self.reconciler.clusters.cache.entry(&key).unwrap_or_default();
        let Some(root) = &entry.root else {
            // That no watch shows it is a reason to ask.
            let found = self.writer.objects(Kind::Cluster).get_metadata_opt(name).await;
            return Ok(found.map_err(|error| ReconcileError::api("read", Kind::Cluster, name, error))?.is_some());
        };
        let is_alive = |pod: &PodFact| pod.slot.role == Role::Scheduler && pod.phase == Phase::Running;
        Ok(entry.pods(&root.uid).any(|(_, pod)| is_alive(&pod.fact)))
    }

    /// The scheduler at `place`, if it can be spoken to.
    fn endpoint(&self, place: &Place) -> Option<SchedulerEndpoint> {
        let cluster = place.cluster(&self.key.name).map(|name| Key::new(self.key.namespace.clone(), name));
        match (&self.memory.outside, cluster) {
            (Some(endpoint), _) => endpoint.borrow().clone(),
            (None, Some(key)) => self.reconciler.registry.endpoints(&key).borrow().clone(),
            (None, None) => None,
        }
    }

    /// Uids of the namespace's runs that have ended.
    fn ended(&self) -> BTreeSet<String> {
        let cache = &self.reconciler.controller.sink.cache;
        let keys = cache.keys().into_iter().filter(|key| key.namespace == self.key.namespace);
        let records = keys.filter_map(|key| Some((cache.entry(&key)?.root?, key)));
        let runs = records.map(|(record, key)| read_run(&key, &record, &record.json()));
        runs.filter(Run::has_ended).map(|run| run.uid).collect()
    }
}
