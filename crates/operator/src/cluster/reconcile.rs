//! One pass over one cluster: what is there, what should be there, the difference, and what to tell.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::Client;
use tokio::time::Instant;

use crate::apiserver::apply::Writer;
use crate::apiserver::cache::Entry;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Kind;
use crate::apiserver::scope::Scope;
use crate::apiserver::whole;
use crate::backoff::jittered;
use crate::certificates::{Certificates, Credentials};
use crate::cluster::gather::{Object, gather_pods, read_object};
use crate::cluster::link::{Link, Target};
use crate::cluster::memory::{Memory, Tally};
use crate::cluster::orphans::Presence;
use crate::cluster::registry::SchedulerRegistry;
use crate::controller::bounds::Bounds;
use crate::controller::events::{Events, notes};
use crate::controller::{Controller, Desk, Done};
use crate::leader::clock::Clock;
use crate::queue::Key;
use api::problem::listed;
use api::status::DaskClusterStatus;
use dask::{Address, Scheme};
use decide::cluster::build::{self, PodTemplates, build_children, build_runtime, build_templates};
use decide::cluster::facts::{Cluster, Facts, Phase, PodFact, Refusal, Role, SchedulerFact, TlsFact};
use decide::cluster::plan::{Plan, Templates, plan};
use decide::cluster::status::{build_status, invalid_status};
use decide::cluster::{names, too_many_workers};
use telemetry::metrics::{self, Outcome};

/// Every cluster is looked at about this often even if nothing happens: its Secrets are read, which no watch shows.
const PERIOD: Duration = Duration::from_secs(60);
/// With many clusters less often, so that together they are looked at once in this time: a look is two or three requests, and most
/// of what an operator at rest does.
const SHARE: Duration = Duration::from_millis(200);
/// What a change of counts alone waits since the status was last written: pods come one by one.
const COUNTS: Duration = Duration::from_secs(1);
/// How long a pass waits for the first word of a scheduler that should answer, so that an operator that has just begun
/// does not call every cluster unreachable first.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// How long the API server's word on the spec holds before something is taken away.
const CONFIRMED: Duration = Duration::from_secs(30);
/// After pods were deleted: from then on it is known how long that may take.
const AFTER_DELETION: Duration = Duration::from_secs(1);
/// Pods that one pass makes; the others follow at once, after the other clusters had their turn.
const PODS: usize = 100;

/// What passes share.
pub(crate) struct Context {
    pub client: Client,
    pub settings: build::Settings,
    pub desk: Desk<Memory>,
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

impl Controller for Context {
    type Memory = Memory;

    const NAME: metrics::Controller = metrics::Controller::DaskCluster;

    async fn pass(&self, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
        let ended = pass(self, key, memory).await;
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
        let known = || self.desk.sink.cache.uids();
        self.certificates.sweep_on(|namespace| self.scope.watches(namespace), known, self.orphans).await;
    }

    fn desk(&self) -> &Desk<Memory> {
        &self.desk
    }
}

impl Context {
    /// How often each cluster is looked at even if nothing happens.
    fn period(&self) -> Duration {
        PERIOD.max(SHARE.saturating_mul(u32::try_from(self.desk.sink.cache.len()).unwrap_or(u32::MAX)))
    }
}

/// Looks at one cluster and does what is to be done.
async fn pass(context: &Context, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
    let Some(entry) = context.desk.sink.cache.entry(key) else { return forget(context, key, memory).await };
    let Some(record) = &entry.root else { return forget(context, key, memory).await };
    if memory.uid != record.uid {
        forget(context, key, memory).await?;
        *memory = Memory::default();
    }
    if !context.scope.has(&key.namespace) {
        memory.link = None;
        context.registry.forget(key);
        return Ok(Done { outcome: Outcome::Settled, again: None, left: None, gone: false });
    }
    memory.uid.clone_from(&record.uid);
    let heard = memory.link.as_ref().map_or(0, |link| link.state().1);
    // How long what the last pass found still holds, if nothing has changed.
    let unchanged = memory.settled.and_then(|(revision, answer, until)| {
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        left.filter(|_| revision == entry.revision && answer == heard)
    });
    let look = memory.secrets.is_none_or(|at| at.elapsed() >= context.period().mul_f64(0.7));
    if let Some(left) = unchanged.filter(|_| !look) {
        // This turn took the moment for which the last pass had asked.
        return Ok(Done {
            outcome: Outcome::Settled,
            again: Some(left.min(jittered(context.period(), key))),
            left: memory.left(),
            gone: false,
        });
    }
    let whole = whole::read(&context.client, Kind::Cluster, key, record, 0).await?;
    let mut object = read_object(key, &whole);
    let status = &object.cluster.status;
    let refused = status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.reason == "Invalid");
    // Who has begun is not judged again when the operator is started with other limits.
    if refused || status.observed_generation != Some(object.cluster.generation) {
        object.problems.extend(too_many_workers(&object.cluster.spec, context.most_workers, "spec"));
    }
    tracing::Span::current().record("uid", &object.cluster.uid).record("generation", object.cluster.generation);
    if object.deleting {
        // Kubernetes collects the children by their owner.
        memory.link = None;
        context.registry.forget(key);
        return Ok(Done { outcome: Outcome::Waiting, again: None, left: None, gone: false });
    }
    let uid = whole.record.uid.clone();
    let work = Work {
        context,
        key,
        memory,
        writer: Writer { client: &context.client, cache: &context.desk.sink.cache, key, uid: &uid },
        now: context.clock.now(),
        refused: Vec::new(),
        error: None,
        waits: Vec::new(),
        left: None,
    };
    if !object.problems.is_empty() {
        return work.refuse(object, &entry).await;
    }
    work.run(object, entry, unchanged).await
}

/// The cluster is gone: what Kubernetes does not collect is removed.
async fn forget(context: &Context, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
    // A list that lags may lack it: then it will be shown again.
    if !memory.uid.is_empty() && context.certificates.forget(key, &memory.uid).await? == Presence::Lives {
        return Err(ReconcileError::Behind);
    }
    memory.link = None;
    context.registry.forget(key);
    Ok(Done { outcome: Outcome::Settled, again: None, left: None, gone: true })
}

/// One pass at work.
struct Work<'a> {
    context: &'a Context,
    key: &'a Key,
    memory: &'a mut Memory,
    writer: Writer<'a>,
    now: Timestamp,
    /// What Kubernetes refused in this pass.
    refused: Vec<Refusal>,
    /// The first error: the pass goes on as far as it makes sense, and is tried again.
    error: Option<ReconcileError>,
    /// Moments to look again.
    waits: Vec<Duration>,
    /// When to do what this pass leaves to the next one.
    left: Option<Duration>,
}

impl Work<'_> {
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
        let status = invalid_status(&object.cluster, "Invalid", message, self.now);
        self.tell(&object.cluster, &status).await?;
        if let Some(error) = self.error {
            return Err(error);
        }
        Ok(self.done(Outcome::Invalid))
    }

    async fn run(mut self, object: Object, entry: Entry, unchanged: Option<Duration>) -> Result<Done, ReconcileError> {
        let mut cluster = object.cluster;
        let incarnation = cluster.status.incarnation.unwrap_or(0).max(self.memory.incarnation);
        let mut credentials = self.credentials(&cluster, false).await;
        if let Some(left) = unchanged
            && self.error.is_none()
            && credentials.fact == self.memory.tls
        {
            self.waits.push(left);
            self.left = self.memory.left();
            self.waits.extend(credentials.renew_after);
            return Ok(self.done(Outcome::Settled));
        }
        let written = cluster.status.clone();
        cluster.status.incarnation = (incarnation > 0).then_some(incarnation);
        let templates = build_templates(&cluster, &self.context.settings, object.queue.as_deref());
        let hashes = templates.hashes();
        self.verify(&entry).await;
        let complete = self.children(&cluster, &entry).await;
        let (mut facts, heard) = self.facts(&entry, &cluster, &credentials).await;
        let mut planned = plan(&cluster, &hashes, &facts);
        if planned.scheduler_unused
            && let Some(link) = &self.memory.link
        {
            facts.scheduler = link.ask().await;
            planned = plan(&cluster, &hashes, &facts);
        }
        let all = planned.create.len();
        planned.create.truncate(PODS);
        if all > PODS {
            self.leave(Duration::ZERO);
        }
        // Numbers of pods that are not made are not used up.
        planned.incarnation -= all as u64;
        if planned.is_destructive() {
            self.confirm(&cluster).await?;
        }
        planned.blind |= !self.scale_down(&planned, &facts).await;
        self.memory.note_giving(&facts, &planned);
        if !planned.create.is_empty() && complete {
            if !self.secrets_are_fresh() {
                credentials = self.credentials(&cluster, true).await;
            }
            if credentials.fact.issue.is_none()
                && self.error.as_ref().is_none_or(|error| !matches!(error, ReconcileError::Certificates(_)))
            {
                let templates = match &planned.scheduler_waits {
                    Some(base) => templates.beside(base),
                    None => templates,
                };
                let used = self.create(&planned, &templates, credentials.fact.fingerprint.as_deref()).await;
                planned.incarnation = planned.incarnation.max(used);
            }
        }
        self.memory.incarnation = planned.incarnation;
        self.note_certificates(&facts, credentials.fact.fingerprint.as_deref()).await;
        self.relabel(&cluster, &facts).await;
        self.prune(&cluster, &entry, &facts, &hashes).await;

        // What was written is in the cache now.
        let after = self.context.desk.sink.cache.entry(self.key).unwrap_or_default();
        facts.pods = gather_pods(&after, &cluster.uid, self.now).0;
        facts.refused = std::mem::take(&mut self.refused);
        facts.tls = credentials.fact.clone();
        cluster.status = written;
        let status = build_status(&cluster, &hashes, &facts, &planned);
        self.tell(&cluster, &status).await?;
        if let Some(error) = self.error {
            return Err(error);
        }
        self.memory.conflicts.clear();
        self.waits.extend(planned.wake);
        // Its own deletion is no news to a pass, and the node of a pod may never carry it out.
        self.waits.extend((!planned.delete.is_empty()).then_some(AFTER_DELETION));
        self.waits.extend(credentials.renew_after);
        self.memory.tls = credentials.fact;
        let until = self.waits.iter().min().copied().unwrap_or(Duration::from_secs(24 * 3600));
        // What came in during the pass was asked for in the queue, and is looked at then.
        let still = self.context.desk.sink.cache.revision(self.key) == entry.revision;
        self.memory.left = self.left.map(|left| Instant::now() + left);
        self.memory.settled = still.then(|| (entry.revision, heard, Instant::now() + until));
        let outcome = if self.memory.tally.ready { Outcome::Settled } else { Outcome::Waiting };
        Ok(self.done(outcome))
    }

    fn done(&self, outcome: Outcome) -> Done {
        let period = jittered(self.context.period(), self.key);
        let again = self.waits.iter().min().map_or(period, |wait| (*wait).min(period));
        Done { outcome, again: Some(again), left: self.left, gone: false }
    }

    /// Goes on after an error, and keeps the first one and what it tells.
    fn fail(&mut self, error: ReconcileError, role: Option<&Role>) {
        if let Some(issue) = self.memory.told(&error, &self.context.bounds.conflict, self.now) {
            self.refused.push(Refusal { role: role.cloned(), issue });
        }
        self.error.get_or_insert(error);
    }

    /// Leaves work to a pass that starts after this time.
    fn leave(&mut self, after: Duration) {
        self.waits.push(after);
        self.left = Some(self.left.map_or(after, |left| left.min(after)));
    }

    fn secrets_are_fresh(&self) -> bool {
        self.memory.secrets.is_some_and(|at| at.elapsed() < Duration::from_secs(5))
    }

    async fn credentials(&mut self, cluster: &Cluster, check: bool) -> Credentials {
        let check = check || self.memory.secrets.is_none_or(|at| at.elapsed() >= self.context.period().mul_f64(0.7));
        match self.context.certificates.ensure(cluster, self.now, check).await {
            Ok(credentials) => {
                if check {
                    self.memory.secrets = Some(Instant::now());
                }
                if credentials.fact.issue.is_some() {
                    self.memory.secrets = None;
                    self.waits.push(self.context.missing);
                }
                credentials
            }
            Err(error) => {
                let error = ReconcileError::Certificates(error);
                let fact = TlsFact { issue: error.issue(), ..self.memory.tls.clone() };
                self.error.get_or_insert(error);
                Credentials { client: None, fact, renew_after: None }
            }
        }
    }

    /// Objects of ours that no watch has shown for long may be gone.
    async fn verify(&mut self, entry: &Entry) {
        let doubtful = entry.doubtful();
        // What is found is for the next pass: this one goes by what was known before.
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
        let settings = &self.context.settings;
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

    /// What is known, and which answer of the scheduler it has: what comes in later is for the next pass.
    async fn facts(&mut self, entry: &Entry, cluster: &Cluster, credentials: &Credentials) -> (Facts, u64) {
        let (pods, late) = gather_pods(entry, &cluster.uid, self.now);
        self.waits.extend(late.map(|late| late.unsigned_abs()));
        self.aim(cluster, &pods, credentials).await;
        let (scheduler, heard) = self.memory.link.as_ref().map_or((SchedulerFact::Unknown, 0), Link::state);
        let (gave, tls) = (self.memory.gave.clone(), credentials.fact.clone());
        (Facts { now: self.now, pods, scheduler, refused: Vec::new(), tls, gave }, heard)
    }

    /// Has the link ask the scheduler's pod that is there now.
    async fn aim(&mut self, cluster: &Cluster, pods: &[PodFact], credentials: &Credentials) {
        let is_there =
            |pod: &&PodFact| pod.slot.role == Role::Scheduler && pod.deleting.is_none() && pod.phase == Phase::Running;
        let pod = pods.iter().filter(is_there).max_by_key(|pod| pod.slot.incarnation);
        let mode = cluster.spec.tls.as_ref().and_then(|tls| tls.mode).unwrap_or_default();
        let tls = mode != api::cluster::TlsMode::Disabled;
        let scheme = if tls { Scheme::Tls } else { Scheme::Tcp };
        // One that is starting has nothing to say, and a refused connection is no news about it.
        let asked = |pod: &PodFact| self.memory.link.as_ref().is_some_and(|link| link.asks(&pod.uid));
        let may_ask = |pod: &&PodFact| (pod.ready || asked(pod)) && (!tls || credentials.client.is_some());
        let target = pod.filter(may_ask).and_then(|pod| {
            let address = Address::new(scheme, pod.ip.as_deref()?, names::SCHEDULER_PORT).ok()?;
            let lead = self.context.desk.lead.leader().ok()?;
            let tls = credentials.client.clone();
            let (pod, uid) = (pod.name.clone(), pod.uid.clone());
            Some(Target { cluster: cluster.uid.clone(), pod, uid, address, tls, lead })
        });
        let registry = &self.context.registry;
        match (target, &self.memory.link) {
            (Some(target), Some(link)) if link.asks(&target.uid) => {
                registry.endpoint(self.key, Some(&target));
                link.aim(target);
            }
            (Some(target), _) => {
                // Runs need not wait for its first word.
                registry.endpoint(self.key, Some(&target));
                let (queue, clock) = (self.context.desk.sink.queue.clone(), self.context.clock.clone());
                let link = Link::start(target, self.key.clone(), queue, clock);
                link.heard(FIRST_WORD).await;
                self.memory.link = Some(link);
            }
            // Certificates that cannot be read now are no reason to give up a connection that works.
            (None, Some(_)) if pod.is_some_and(asked) => {}
            (None, _) => {
                self.memory.link = None;
                registry.endpoint(self.key, None);
            }
        }
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

    async fn note_certificates(&mut self, facts: &Facts, fingerprint: Option<&str>) {
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
        let runtime = names::runtime(&cluster.name, self.context.settings.runtime_digest);
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

    /// Writes the status if it says something new.
    async fn tell(&mut self, cluster: &Cluster, status: &DaskClusterStatus) -> Result<(), ReconcileError> {
        self.memory.tally = Tally {
            ready: status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            desired: status.workers_desired.unwrap_or(0) as usize,
            workers: status.workers_ready.unwrap_or(0) as usize,
        };
        self.context.registry.tell(self.key, status);
        if *status == cluster.status {
            return Ok(());
        }
        let early = self.memory.status_written.map(|at| COUNTS.saturating_sub(at.elapsed()));
        if let Some(left) = early.filter(|left| !left.is_zero())
            && says_the_same(&cluster.status, status)
        {
            self.leave(left);
            return Ok(());
        }
        self.writer.write_status(Kind::Cluster, status).await?;
        self.memory.status_written = Some(Instant::now());
        for note in notes(&cluster.status.conditions, &status.conditions) {
            self.context.events.publish(Kind::Cluster, self.key, &cluster.uid, note);
        }
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
