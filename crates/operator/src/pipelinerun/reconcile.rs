//! One pass over one run: what is known, what to do, and what to tell.

mod scheduler;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::Client;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::apiserver::apply::Writer;
use crate::apiserver::cache::is_older;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::{Kind, Record};
use crate::apiserver::scope::Scope;
use crate::apiserver::sink::Sink;
use crate::apiserver::waiters::Waiters;
use crate::apiserver::whole::{self, Whole};
use crate::backoff::jittered;
use crate::certificates::Certificates;
use crate::cluster::registry::SchedulerRegistry;
use crate::controller::bounds::Bounds;
use crate::controller::events::{Events, notes};
use crate::controller::{Controller, Desk, Done};
use crate::leader::clock::{Clock, Reading, Trust};
use crate::pipelinerun::allowance::Limits;
use crate::pipelinerun::drive::{Drive, End};
use crate::pipelinerun::driven::{Crowded, Driven};
use crate::pipelinerun::gather::read_run;
use crate::pipelinerun::quota::{Full, RunQuota};
use crate::pipelinerun::references::{RunReferences, Sources};
use crate::pipelinerun::release::Releasing;
use crate::pipelinerun::removal::Removal;
use crate::pipelinerun::revision::{self, Stored, revision_name};
use crate::pipelinerun::setbacks::{Setbacks, Try};
use crate::pipelinerun::writes::own_cluster;
use crate::queue::Key;
use api::problem::listed;
use api::storage::Storage;
use decide::cluster::facts::Issue;
use decide::cluster::names;
use decide::pipelinerun::admit::{self, Admission, RunRevision};
use decide::pipelinerun::facts::{ClusterFact, DriveFact, Facts, Frozen, Place, Run, SpecFact, SweepFact};
use decide::pipelinerun::plan::{ClusterStep, DriveStep, Hold, Plan, State, plan};
use decide::pipelinerun::release::{self, ReleaseFact, shared_place};
use decide::pipelinerun::retention::{Removal as Removing, Retention, SweepStep, retention};
use decide::pipelinerun::status::{build_status, says_the_same};
use driver::{Fabric, SchedulerEndpoint};
use run_model::{Report, Runtime, Start};
use telemetry::metrics::{self, Outcome};

/// Every run that has not ended is looked at about this often even if nothing happens.
const PERIOD: Duration = Duration::from_secs(60);
/// What a change of counts alone waits since the status was last written.
const COUNTS: Duration = Duration::from_secs(5);
/// How long a run that begins is not told of: it is open by then, and a short one has ended, which says it all.
const OPENING: Duration = Duration::from_secs(1);
/// What the run_revision of a run counts for that was not read yet.
const UNREAD: usize = 2 << 20;

/// What passes share.
pub(crate) struct Runs {
    pub client: Client,
    pub desk: Desk<Memory>,
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

impl Runs {
    fn sources(&self) -> Sources<'_> {
        Sources {
            client: &self.client,
            waiters: &self.waiters,
            storage: self.storage.as_ref(),
            allowed: &self.allowed,
            limits: self.limits,
        }
    }
}

/// What is remembered of a run. Without it, everything is found out again.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    uid: String,
    /// When this process saw it first.
    seen: Option<Instant>,
    stored: Option<Arc<Stored>>,
    /// What the run_revision takes that there was no room to keep.
    heavy: Option<usize>,
    drive: Option<Drive>,
    /// How the last try ended, and when the next one may begin.
    broken: Option<(Issue, Option<Instant>)>,
    setbacks: Setbacks,
    done: Option<Box<Report>>,
    /// The scheduler of a run that is on no DaskCluster.
    outside: Option<watch::Sender<Option<SchedulerEndpoint>>>,
    /// What it waited for, until a step ran.
    waited: Option<String>,
    /// When its cancellation was first seen.
    cancelled: Option<Instant>,
    /// Since when no worker can run its `finally` steps, and nothing else is left.
    stuck: Option<Instant>,
    status_written: Option<Instant>,
    opening: Option<Instant>,
    removal: Removal,
    release: Releasing,
}

impl Controller for Runs {
    type Memory = Memory;

    const NAME: metrics::Controller = metrics::Controller::PipelineRun;

    async fn pass(&self, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
        let gone = Done { outcome: Outcome::Settled, again: None, left: None, gone: true };
        self.waiters.leave(key);
        let Some(record) = self.desk.sink.cache.entry(key).and_then(|entry| entry.root) else {
            self.leave(key);
            return Ok(gone);
        };
        if memory.uid != record.uid {
            *memory = Memory { uid: record.uid.clone(), ..Memory::default() };
        }
        if !self.scope.has(&key.namespace) {
            return Ok(gone);
        }
        let more = self.besides(key, &record, memory);
        let Whole { record, value, refused, room: _room } =
            whole::read(&self.client, Kind::Run, key, &record, more).await?;
        let run = read_run(key, &record, &value);
        tracing::Span::current().record("uid", &run.uid).record("generation", run.generation);
        let uid = record.uid.clone();
        let writer = Writer { client: &self.client, cache: &self.desk.sink.cache, key, uid: &uid };
        let seen = memory.seen.get_or_insert_with(Instant::now).elapsed();
        let Reading { at, trust } = self.clock.read();
        let now = if trust == Trust::Local { at.min(latest(&run, seen)) } else { at };
        let fresh = trust == Trust::Fresh;
        let work =
            Work { runs: self, key, memory, writer, record, value, refused, now, fresh, soon: None, error: None };
        let ended = work.run(run).await;
        // Who is driven has what it needs; who waits reads it again.
        let stored = memory.stored.take_if(|stored| !stored.is_kept() && memory.drive.is_none());
        memory.heavy = stored.map(|stored| stored.weight()).or(memory.heavy);
        ended
    }

    /// Runs that have begun have their places before any other asks for one.
    fn begin(&self) {
        // Of runs that went while another process led nobody has told.
        self.waiters.clear();
        self.quota.clear();
        self.driven.clear();
        for key in self.desk.sink.cache.keys() {
            let Some(record) = self.desk.sink.cache.entry(&key).and_then(|entry| entry.root) else { continue };
            let run = read_run(&key, &record, &record.json());
            if !run.has_ended() && !run.spec.suspend && (run.held || run.status.revision.is_some()) {
                self.quota.hold(&key);
            }
        }
    }

    fn desk(&self) -> &Desk<Memory> {
        &self.desk
    }
}

/// Without the API server's time: what its own stamps on the run allow for, if this process has watched it for so long. A
/// clock that is ahead then ends nothing, and deadlines pass all the same.
fn latest(run: &Run, seen: Duration) -> Timestamp {
    let began = run.status.started_at.as_deref().and_then(|at| at.parse().ok());
    let stamp = [Some(run.created), run.deleting, began].into_iter().flatten().max().unwrap_or_default();
    stamp.saturating_add(SignedDuration::try_from(seen).unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX)
}

impl Runs {
    /// The weight of what a pass has in hand besides the run: what it is carried out from, or the Pipeline that it names.
    fn besides(&self, key: &Key, record: &Record, memory: &Memory) -> usize {
        if memory.stored.is_some() {
            return 0;
        }
        let run = record.json();
        let text = |path: &str| run.pointer(path).and_then(Value::as_str);
        match text("/spec/pipelineRef") {
            _ if text("/status/finishedAt").is_some() => 0,
            _ if text("/status/revision").is_some() => memory.heavy.unwrap_or(UNREAD),
            Some(name) => self.pipelines.cache.weight(&Key::new(key.namespace.clone(), name)),
            None => 0,
        }
    }

    /// A run needs its place no more: the next ones have their turn.
    fn leave(&self, key: &Key) {
        for next in self.quota.leave(key).into_iter().chain(self.driven.leave(key)) {
            self.desk.sink.queue.add(next);
        }
    }
}

/// One pass at work.
struct Work<'a> {
    runs: &'a Runs,
    key: &'a Key,
    memory: &'a mut Memory,
    writer: Writer<'a>,
    record: Record,
    /// The run as JSON.
    value: Value,
    /// Why its spec is not unpacked.
    refused: Option<String>,
    now: Timestamp,
    /// The API server vouches for that.
    fresh: bool,
    /// A moment to look again.
    soon: Option<Duration>,
    /// The first error: the pass goes on to tell of it, and is tried again.
    error: Option<ReconcileError>,
}

impl Work<'_> {
    async fn run(mut self, run: Run) -> Result<Done, ReconcileError> {
        self.hear();
        let mut spec = self.spec(&run).await;
        let mut run_revision = None;
        if matches!(spec, SpecFact::Valid) && !run.has_ended() && run.deleting.is_none() {
            (spec, run_revision) = self.admit(&run).await;
        }
        let mut facts = self.facts(&run, spec).await;
        facts.full = self.place(&run, &facts, run_revision.as_deref());
        let mut planned = plan(&run, &facts);
        if planned.freeze
            && let Some(run_revision) = run_revision
        {
            match self.writer.store_revision(&run_revision).await {
                Ok(Ok(stored)) => {
                    self.memory.stored = Some(stored.clone());
                    facts = self.facts(&run, SpecFact::Frozen(stored.frozen())).await;
                    facts.full = self.place(&run, &facts, None);
                }
                Ok(Err(why)) => facts.spec = SpecFact::Invalid(format!("it {why}")),
                Err(error) => {
                    facts.issue = error.issue();
                    self.error = Some(error);
                }
            }
            planned = plan(&run, &facts);
        }
        self.carry_out(&run, &mut planned, &mut facts).await;
        if planned.word.waits() {
            self.memory.waited = Some(planned.word.message.clone());
        } else if matches!(&facts.drive, DriveFact::Live(live) if live.counts.running > 0) {
            self.memory.waited = None;
        }
        let told = self.tell(&run, &facts, &planned).await?;
        if let Some(error) = self.error {
            return Err(error);
        }
        // The end is written before anything is taken away.
        if !matches!(planned.word.state, State::Ended(_)) {
            self.take_away(&run, &planned).await?;
        }
        if planned.word.state == State::AsWritten && planned.removal.is_none() && planned.release.is_none() {
            // Of what has ended nothing is needed.
            let uid = std::mem::take(&mut self.memory.uid);
            *self.memory = Memory { uid, seen: self.memory.seen, ..Memory::default() };
        }
        let idle = planned.word.state == State::AsWritten || planned.word.state == State::Suspended;
        let period = (!idle).then(|| jittered(PERIOD, self.key));
        // Zero: this pass has made the next one necessary.
        let (left, wake): (Vec<_>, Vec<_>) = planned.wake.into_iter().partition(Duration::is_zero);
        let left = left.into_iter().chain(told).min();
        let again = wake.into_iter().chain(period).chain(self.soon).min();
        let outcome = match planned.word.state {
            State::Pending => Outcome::Waiting,
            _ => Outcome::Settled,
        };
        Ok(Done { outcome, again, left, gone: false })
    }

    /// What the task that drives the run has to say.
    fn hear(&mut self) {
        let Some(drive) = &self.memory.drive else { return };
        match drive.take_end() {
            Some(End::Done(report)) => {
                self.memory.done = Some(report);
                self.memory.drive = None;
            }
            Some(End::Broken { issue, recurs }) => {
                let live = drive.live();
                let open = live.open.then(|| drive.age());
                let failed = Try { issue, recurs, done: live.done, open };
                let (issue, pause) = self.memory.setbacks.note(self.key, failed, self.now);
                tracing::info!(reason = issue.reason, again = ?pause, "the run cannot be driven now: {}", issue.message);
                self.memory.broken = Some((issue, pause.map(|pause| Instant::now() + pause)));
                self.memory.drive = None;
                // Its certificates may have been renewed.
                self.memory.outside = None;
            }
            None => {}
        }
    }

    /// What is written down of the run, if anything is.
    async fn spec(&mut self, run: &Run) -> SpecFact {
        if run.has_ended() && !self.is_due(run) && !release::is_due(run) {
            return SpecFact::Valid;
        }
        if let Some(stored) = &self.memory.stored {
            return SpecFact::Frozen(stored.frozen());
        }
        // What is held was written down before, whether or not that was told.
        let held = run.held.then(|| revision_name(&run.name, &run.uid));
        let Some(name) = run.status.revision.clone().or(held) else { return SpecFact::Valid };
        match self.writer.read_revision(&name).await {
            Ok(Ok(stored)) => {
                let frozen = stored.frozen();
                self.memory.stored = Some(stored);
                SpecFact::Frozen(frozen)
            }
            Ok(Err(why)) => SpecFact::Invalid(format!("it {why}")),
            Err(error) => {
                let message = format!("cannot read ControllerRevision {name}; retrying");
                let issue = error.issue().unwrap_or(Issue { reason: "ApiError", message, stalled: false });
                self.error = Some(error);
                SpecFact::Waits(issue, None)
            }
        }
    }

    /// Takes or gives back its place among the runs of its namespace, and its memory; why there is none for it.
    fn place(&self, run: &Run, facts: &Facts, run_revision: Option<&RunRevision>) -> Option<Issue> {
        let Runs { quota, driven, .. } = self.runs;
        let waits = |message: String| Some(Issue { reason: "RunLimit", message, stalled: false });
        let goes = !run.has_ended() && run.deleting.is_none() && !run.spec.suspend && !run.spec.cancel;
        let fits = match &facts.spec {
            SpecFact::Frozen(_) if !run.has_ended() && !run.spec.suspend => {
                quota.hold(self.key);
                let opens =
                    matches!(facts.drive, DriveFact::Live(_)) || matches!(facts.cluster, ClusterFact::Answers(_));
                let bytes = self.memory.stored.as_ref().map_or(0, |stored| stored.in_progress());
                if opens { driven.enter(self.key, run.created, bytes) } else { Ok(()) }
            }
            SpecFact::Valid if goes => {
                if let Err(Full { most, before }) = quota.enter(self.key, run.created) {
                    let before =
                        if before == 0 { String::new() } else { format!("; {before} older ones wait before it") };
                    return waits(format!("the operator handles at most {most} runs of a namespace at once{before}"));
                }
                driven.fits(self.key, run.created, run_revision.map_or(0, revision::in_progress))
            }
            _ => {
                self.runs.leave(self.key);
                Ok(())
            }
        };
        let Crowded { others, taken, most, before } = fits.err()?;
        let before = if before == 0 { String::new() } else { format!(", and {before} older runs wait, too") };
        waits(format!(
            "the operator has {} MiB of memory for runs in progress; {others} others use {} MiB{before}; the run goes on when \
             there is enough",
            most >> 20,
            taken >> 20,
        ))
    }

    async fn admit(&mut self, run: &Run) -> (SpecFact, Option<Box<RunRevision>>) {
        if let Some(why) = &self.refused {
            return (SpecFact::Invalid(why.clone()), None);
        }
        let references = match RunReferences::read(self.runs.sources(), self.key, &run.spec).await {
            Ok(references) => references,
            Err(issue) => {
                self.soon = Some(self.runs.missing);
                return (SpecFact::Waits(issue, None), None);
            }
        };
        if references.lacks_code() {
            self.soon = Some(self.runs.missing);
        }
        match admit::admit(&self.value, &references) {
            Admission::Ready(run_revision) => (SpecFact::Valid, Some(run_revision)),
            Admission::Waits(issue, patience) => (SpecFact::Waits(issue, Some(patience)), None),
            Admission::Invalid(problems) => (SpecFact::Invalid(listed(&problems)), None),
        }
    }

    async fn facts(&mut self, run: &Run, spec: SpecFact) -> Facts {
        let owned = own_cluster(&self.runs.clusters.cache, self.key, &run.uid);
        let left = release::is_due(run).then(|| shared_place(run, &spec)).flatten();
        let cluster = match (&spec, &left) {
            (SpecFact::Frozen(Frozen { place, .. }), _) | (_, Some(place)) => self.cluster(place, owned.as_ref()).await,
            (_, None) => ClusterFact::Missing,
        };
        let release = match left {
            Some(place) => self.release_fact(&place, &cluster).await,
            None => {
                self.memory.release = Releasing::default();
                ReleaseFact::None
            }
        };
        let drive = match (&self.memory.done, &self.memory.drive, &self.memory.broken) {
            (Some(report), _, _) => DriveFact::Done(report.clone()),
            (None, Some(drive), _) => DriveFact::Live(drive.live()),
            (None, None, Some((issue, again))) => {
                let again = again.map(|at| at.saturating_duration_since(Instant::now()));
                DriveFact::Broken { issue: issue.clone(), again }
            }
            (None, None, None) => DriveFact::None,
        };
        let owned = owned.is_some_and(|(_, ours, goes)| ours && !goes);
        let places = matches!(&spec, SpecFact::Frozen(frozen) if frozen.place == Place::Own && !owned);
        let places = places.then_some(&self.runs.removals);
        let sweep =
            if self.is_due(run) { self.memory.removal.fact(self.key, places, self.now) } else { SweepFact::None };
        let cancelled = run.spec.cancel.then(|| *self.memory.cancelled.get_or_insert_with(Instant::now));
        let cancelling = cancelled.map(|at| at.elapsed()).unwrap_or_default();
        let over = matches!(&spec, SpecFact::Frozen(frozen) if frozen.is_over(self.now));
        let stuck = matches!(&drive, DriveFact::Live(live) if live.is_blocked() && (over || live.is_ending()));
        self.memory.stuck = stuck.then(|| self.memory.stuck.unwrap_or_else(Instant::now));
        Facts {
            now: self.now,
            fresh: self.fresh,
            spec,
            cluster,
            owned,
            drive,
            cancelling,
            stuck: self.memory.stuck.map(|at| at.elapsed()).unwrap_or_default(),
            waited: self.memory.waited.clone(),
            issue: None,
            full: None,
            sweep,
            release,
        }
    }

    /// What the run has stored is to be removed.
    fn is_due(&self, run: &Run) -> bool {
        matches!(retention(run, self.now), Retention::Now(_))
    }

    /// What has to be there before the run goes on.
    async fn carry_out(&mut self, run: &Run, planned: &mut Plan, facts: &mut Facts) {
        let stored = self.memory.stored.clone();
        if let (ClusterStep::Make, Some(stored)) = (planned.cluster, &stored) {
            let queue = self.value.pointer("/metadata/labels").and_then(|labels| labels.get(names::QUEUE_LABEL));
            let queue = queue.and_then(Value::as_str);
            let made =
                self.writer.make_cluster(&stored.run_revision.run.cluster, queue, &self.runs.clusters.cache).await;
            match made {
                Ok(()) => {
                    tracing::info!(cluster = self.key.name, "made the cluster of the run");
                    self.runs.clusters.queue.add(self.key.clone());
                }
                Err(error) => return self.fail(run, error, planned, facts),
            }
        }
        if planned.hold == Hold::Take
            && let Err(error) = self.hold(true).await
        {
            return self.fail(run, error, planned, facts);
        }
        match (planned.drive, &stored) {
            (DriveStep::Run { cancel }, Some(stored)) => self.drive(run, stored, cancel, planned, facts),
            (DriveStep::Stop { leave }, _) => {
                self.memory.opening = None;
                // A run that is suspended and goes on later counts from one again.
                self.memory.setbacks = Setbacks::default();
                // It ends before its scheduler is told to forget it.
                if let Some(drive) = self.memory.drive.take() {
                    drive.end().await;
                    if leave {
                        self.leave(run, facts).await;
                    }
                }
            }
            _ => {}
        }
        if planned.release.as_ref().is_some_and(|release| release.start) {
            self.release(run, &facts.spec);
        }
        match (&planned.removal, &stored) {
            (Some(Removing { step: SweepStep::Start, due, .. }), Some(stored)) => self.sweep(stored, *due),
            (Some(Removing { step: SweepStep::Pause(issue), .. }), _) => {
                self.soon = Some(self.memory.removal.pause(self.key, issue.clone(), self.now));
            }
            _ => {}
        }
    }

    fn fail(&mut self, run: &Run, error: ReconcileError, planned: &mut Plan, facts: &mut Facts) {
        facts.issue = error.issue();
        self.error.get_or_insert(error);
        let told = plan(run, facts);
        (planned.word, planned.removal, planned.release) = (told.word, told.removal, told.release);
    }

    fn drive(&mut self, run: &Run, stored: &Stored, cancel: bool, planned: &mut Plan, facts: &mut Facts) {
        if self.memory.drive.is_none() {
            let begun = run.status.steps.as_ref().is_some_and(|steps| steps.running + steps.done + steps.failed > 0);
            // Whoever opens a run holds it first: of one that nobody held there is no journal.
            let start = if run.held || self.memory.broken.is_some() { Start::Either } else { Start::New };
            let spec = match stored.run_spec(self.now, begun, start, self.runs.limits.run.steps) {
                Ok(spec) => spec,
                Err(why) => {
                    facts.spec = SpecFact::Invalid(format!("it {why}"));
                    *planned = plan(run, facts);
                    return;
                }
            };
            let fabric = Fabric::Followed(match (&self.memory.outside, &stored.run_revision.place) {
                (Some(endpoint), _) => endpoint.subscribe(),
                (None, Place::Shared(name)) => {
                    self.runs.registry.endpoints(&Key::new(self.key.namespace.clone(), name.clone()))
                }
                (None, _) => self.runs.registry.endpoints(self.key),
            });
            let before = self.memory.broken.take().map(|(issue, _)| issue);
            self.memory.opening = before.is_none().then(Instant::now);
            let (queue, bounds) = (self.runs.desk.sink.queue.clone(), self.runs.bounds);
            let memory = (self.runs.driven.clone(), stored.in_progress());
            let drive = Drive::start(spec, fabric, self.key.clone(), queue, memory, before, bounds);
            self.memory.drive = Some(drive);
        }
        if let Some(drive) = self.memory.drive.as_ref().filter(|_| cancel) {
            drive.cancel();
        }
    }

    async fn hold(&mut self, hold: bool) -> Result<(), ReconcileError> {
        let names = self.value.pointer("/metadata/finalizers").and_then(Value::as_array);
        let names: Vec<String> = names.into_iter().flatten().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
        // A write of this pass has made another version.
        let entry = self.runs.desk.sink.cache.entry(self.key).and_then(|entry| entry.root);
        let version = entry.map(|record| record.version).filter(|version| !is_older(version, &self.record.version));
        let version = version.unwrap_or_else(|| self.record.version.clone());
        self.writer.hold(hold, &names, &version).await
    }

    /// Writes the status if it says something new; when to come back if that has to wait.
    async fn tell(&mut self, run: &Run, facts: &Facts, planned: &Plan) -> Result<Option<Duration>, ReconcileError> {
        let status = build_status(run, facts, planned);
        if status == run.status {
            return Ok(None);
        }
        let ended = matches!(planned.word.state, State::Ended(_));
        let opening = self.memory.opening.filter(|_| !ended).map(|at| OPENING.saturating_sub(at.elapsed()));
        if let Some(left) = opening.filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
        let early = self.memory.status_written.map(|at| COUNTS.saturating_sub(at.elapsed()));
        if let Some(left) = early.filter(|left| !left.is_zero())
            && says_the_same(&run.status, &status)
        {
            return Ok(Some(left));
        }
        self.writer.write_status(Kind::Run, &status).await?;
        self.memory.status_written = Some(Instant::now());
        let told = notes(&run.status.conditions, &status.conditions).into_iter();
        for note in told.filter(|note| note.reason != "Pending") {
            self.runs.events.publish(Kind::Run, self.key, &run.uid, note);
        }
        Ok(None)
    }
}
