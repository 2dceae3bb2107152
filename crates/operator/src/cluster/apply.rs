//! Carries out what was planned for a DaskCluster.

use std::time::Duration;

use tokio::time::Instant;

use crate::apiserver::cache::Entry;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Kind;
use crate::cluster::work::{Observed, Work};
use decide::cluster::build::{PodTemplates, build_children, build_runtime};
use decide::cluster::facts::{Cluster, Facts, Phase, PodFact, Role};
use decide::cluster::names;
use decide::cluster::plan::{Plan, Templates};

/// How long the API server's word on the spec holds before something is taken away.
const CONFIRMED: Duration = Duration::from_secs(30);
/// Pods that are made in one reconciliation; the others follow at once, after the other clusters had their turn.
const PODS: usize = 100;

impl Work<'_> {
    /// Everything that is written but the status. Notes in the plan what was not done.
    pub(crate) async fn apply(&mut self, observed: &mut Observed, planned: &mut Plan) -> Result<(), ReconcileError> {
        self.verify(&observed.entry).await;
        let complete = self.children(&observed.cluster, &observed.entry).await;
        let all = planned.create.len();
        planned.create.truncate(PODS);
        if all > PODS {
            self.leave(Duration::ZERO);
        }
        // Numbers of pods that are not made are not used up.
        planned.incarnation -= all as u64;
        if planned.is_destructive() {
            self.confirm(&observed.cluster).await?;
        }
        planned.blind |= !self.scale_down(planned, &observed.facts).await;
        self.memory.note_giving(&observed.facts, planned);
        if !planned.create.is_empty() && complete {
            self.start_pods(observed, planned).await;
        }
        self.memory.incarnation = planned.incarnation;
        let fingerprint = observed.credentials.fact.fingerprint.as_deref();
        self.note_certificates(&observed.facts, fingerprint).await;
        self.relabel(&observed.cluster, &observed.facts).await;
        self.prune(&observed.cluster, &observed.entry, &observed.facts, &observed.hashes).await;
        Ok(())
    }

    /// Makes the pods that are planned, unless they would lack their certificates.
    async fn start_pods(&mut self, observed: &mut Observed, planned: &mut Plan) {
        if !self.secrets_are_fresh() {
            observed.credentials = self.credentials(&observed.cluster, true).await;
        }
        let fact = &observed.credentials.fact;
        if fact.issue.is_some() || matches!(self.error, Some(ReconcileError::Certificates(_))) {
            return;
        }
        let beside = planned.scheduler_waits.as_ref().map(|base| observed.templates.clone().beside(base));
        let templates = beside.as_ref().unwrap_or(&observed.templates);
        let used = self.create(planned, templates, fact.fingerprint.as_deref()).await;
        planned.incarnation = planned.incarnation.max(used);
    }

    fn secrets_are_fresh(&self) -> bool {
        self.memory.secrets.is_some_and(|at| at.elapsed() < Duration::from_secs(5))
    }

    /// Objects of ours that no watch has shown for long may be gone.
    async fn verify(&mut self, entry: &Entry) {
        let doubtful = entry.doubtful();
        // What is found is for the next reconciliation: this one goes by what was known before.
        if !doubtful.is_empty() {
            self.leave(Duration::ZERO);
        }
        for (kind, name, uid) in doubtful {
            if let Err(error) = self.writer.verify(kind, &name, &uid).await {
                self.fail(error, None);
            }
        }
    }

    /// Configuration before workloads. Tells whether all of it is there.
    async fn children(&mut self, cluster: &Cluster, entry: &Entry) -> bool {
        let settings = &self.reconciler.settings;
        let runtime = (Kind::ConfigMap, names::runtime(&cluster.name, settings.runtime_digest));
        let mut built = Vec::with_capacity(4);
        if entry.children.get(&runtime).is_none_or(|record| record.owner != cluster.uid) {
            built.push((Kind::ConfigMap, build_runtime(cluster, settings)));
        }
        let children = build_children(cluster, settings);
        built.extend(children.policies.into_iter().map(|policy| (Kind::NetworkPolicy, policy)));
        built.push((Kind::Service, children.service));
        for (kind, child) in &built {
            match self.writer.apply(*kind, child, entry).await {
                Ok(true) => {
                    tracing::info!(%kind, name = %child["metadata"]["name"].as_str().unwrap_or_default(), "applied")
                }
                Ok(false) => {}
                Err(error) => {
                    self.fail(error, None);
                    return false;
                }
            }
        }
        true
    }

    /// Before something is taken away: what is known of the spec may be old if the watch lags.
    async fn confirm(&mut self, cluster: &Cluster) -> Result<(), ReconcileError> {
        let known = self.memory.confirmed;
        if known.is_some_and(|(generation, at)| generation == cluster.generation && at.elapsed() < CONFIRMED) {
            return Ok(());
        }
        self.writer.confirm(Kind::Cluster, cluster.generation).await?;
        self.memory.confirmed = Some((cluster.generation, Instant::now()));
        Ok(())
    }

    /// Drains, closes what is done, and deletes. Tells whether the scheduler could be asked, if it had to be: one that hangs
    /// may have been heard a moment ago.
    async fn scale_down(&mut self, planned: &Plan, facts: &Facts) -> bool {
        let Plan { drain, retire, delete, .. } = planned;
        let mut asked = true;
        if let Some(link) = self.memory.link.as_ref().filter(|_| !drain.is_empty() || !retire.is_empty()) {
            match link.command(drain, retire).await {
                Ok(retired) => {
                    if !drain.is_empty() {
                        let room_for = planned.giving.to.keys().next();
                        tracing::info!(workers = ?drain, room_for, "the scheduler drains workers");
                    }
                    let closed = facts.pods.iter().filter(|pod| retired.closed.contains(&pod.name));
                    for pod in closed.filter(|pod| pod.deleting.is_none()) {
                        tracing::info!(pod = pod.name, "deleting: it was drained and has closed");
                        // Its state changes while it ends, so no version.
                        if let Err(error) = self.writer.delete_pod(&pod.name, &pod.uid, None, false).await {
                            self.fail(error, None);
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(category = error.category(), "failed to have workers drained: {error}");
                    self.waits.push(Duration::from_secs(2));
                    asked = false;
                }
            }
        }
        for deletion in delete {
            tracing::info!(pod = deletion.pod, force = deletion.force, "deleting: {}", deletion.why);
            let version = self.writer.version(&deletion.pod).filter(|_| !deletion.force);
            let deleted =
                self.writer.delete_pod(&deletion.pod, &deletion.uid, version.as_deref(), deletion.force).await;
            if let Err(error) = deleted {
                self.fail(error, None);
            }
        }
        asked
    }

    /// Makes pods; gives the highest number that may have been used.
    async fn create(&mut self, planned: &Plan, templates: &PodTemplates, fingerprint: Option<&str>) -> u64 {
        let mut used = 0;
        let mut refused: Vec<Role> = Vec::new();
        for slot in &planned.create {
            // What was refused for one worker of a group will be for the next.
            if refused.iter().any(|role| role.is_alike(&slot.role)) {
                continue;
            }
            let Some(pod) = templates.pod(slot, fingerprint) else { continue };
            match self.writer.create_pod(pod).await {
                Ok(()) => {
                    used = used.max(slot.incarnation);
                    tracing::info!(pod = names::pod(&self.key.name, slot), "made");
                }
                Err(error) => {
                    if !error.is_refusal() {
                        used = used.max(slot.incarnation);
                    }
                    refused.push(slot.role.clone());
                    self.fail(error, Some(&slot.role));
                }
            }
        }
        used
    }

    pub(crate) async fn note_certificates(&mut self, facts: &Facts, fingerprint: Option<&str>) {
        let Some(fingerprint) = fingerprint else { return };
        let live = facts.pods.iter().filter(|pod| pod.deleting.is_none() && pod.phase != Phase::Ended);
        for pod in live.filter(|pod| pod.certificate.as_deref() != Some(fingerprint)) {
            if let Err(error) = self.writer.note_certificate(&pod.name, &pod.uid, fingerprint).await {
                self.fail(error, None);
            }
        }
    }

    /// Labels that somebody has changed: without them a pod is out of the reach of the Service, of policies and of watches.
    async fn relabel(&mut self, cluster: &Cluster, facts: &Facts) {
        let live = facts.pods.iter().filter(|pod| pod.deleting.is_none() && pod.phase != Phase::Ended);
        for pod in live.filter(|pod| !pod.labelled) {
            tracing::info!(pod = pod.name, "its labels were changed by somebody: it gets its own again");
            let labels = names::pod_labels(&cluster.name, &pod.slot);
            if let Err(error) = self.writer.relabel(&pod.name, &pod.uid, &labels).await {
                self.fail(error, None);
            }
        }
    }

    /// What is the cluster's and was not built. Old runtimes stay while a pod may have been made with one.
    async fn prune(&mut self, cluster: &Cluster, entry: &Entry, facts: &Facts, hashes: &Templates) {
        let runtime = names::runtime(&cluster.name, self.reconciler.settings.runtime_digest);
        let fixed = [names::scheduler(&cluster.name), names::workers(&cluster.name)];
        let is_current = |pod: &PodFact| match &pod.slot.role {
            Role::Scheduler => pod.template == hashes.scheduler,
            Role::Worker { group, .. } => hashes.groups.get(group) == Some(&pod.template),
        };
        let all_current = facts.pods.iter().all(is_current);
        for ((kind, name), record) in entry.children.iter().filter(|(_, record)| record.owner == cluster.uid) {
            let wanted = match kind {
                Kind::Pod | Kind::Cluster | Kind::Pipeline | Kind::Run | Kind::RunOf | Kind::Revision => true,
                Kind::ConfigMap => *name == runtime || !all_current,
                Kind::Service => *name == fixed[0],
                Kind::NetworkPolicy => fixed.contains(name),
            };
            if !wanted {
                tracing::info!(%kind, name, "deleting: it is not wanted any more");
                if let Err(error) = self.writer.delete(*kind, name, record).await {
                    self.fail(error, None);
                }
            }
        }
    }
}
