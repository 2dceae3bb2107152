//! The reconciler of PipelineRuns, in its phases: gather, validate, plan, apply, report.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::time::Instant;

use crate::apiserver::apply::Writer;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::{Kind, Record};
use crate::apiserver::whole::{self, Whole};
use crate::backoff::jittered;
use crate::controller::status::StatusWriter;
use crate::controller::{Controller, Done, Reconciler};
use crate::leader::clock::{Reading, Trust};
use crate::pipelinerun::driven::Crowded;
use crate::pipelinerun::gather::read_run;
use crate::pipelinerun::memory::Memory;
use crate::pipelinerun::quota::Full;
use crate::pipelinerun::references::{RunReferences, Sources};
use crate::pipelinerun::revision::{RevisionError, in_progress};
use crate::pipelinerun::work::RunReconciler;
use crate::pipelinerun::work::Work;
use crate::queue::Key;
use api::problem::listed;
use api::reason::Reason;
use decide::cluster::facts::Issue;
use decide::pipelinerun::admit::{self, Admission, RunRevision};
use decide::pipelinerun::facts::{ClusterFact, DriveFact, Facts, Run, SpecFact};
use decide::pipelinerun::plan::{Plan, State, plan};
use decide::pipelinerun::status::{build_status, says_the_same};
use telemetry::metrics::{self, Outcome};

/// Every run that has not ended is looked at about this often even if nothing happens.
const PERIOD: Duration = Duration::from_secs(60);
/// What a change of counts alone waits since the status was last written.
const COUNTS: Duration = Duration::from_secs(5);
/// How long a run that begins is not told of: it is open by then, and a short one has ended, which says it all.
const OPENING: Duration = Duration::from_secs(1);
/// What the ControllerRevision of a run counts for that was not read yet.
const UNREAD: usize = 2 << 20;

impl Reconciler for RunReconciler {
    type Memory = Memory;

    const NAME: metrics::Controller = metrics::Controller::PipelineRun;

    async fn reconcile(&self, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
        let gone = Done { gone: true, ..Done::rest(Outcome::Settled) };
        self.waiters.leave(key);
        let Some(record) = self.controller.sink.cache.entry(key).and_then(|entry| entry.root) else {
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
        let writer = Writer { client: &self.client, cache: &self.controller.sink.cache, key, uid: &uid };
        let seen = memory.seen.get_or_insert_with(Instant::now).elapsed();
        let Reading { at, trust } = self.clock.read();
        let now = if trust == Trust::Local { at.min(latest(&run, seen)) } else { at };
        let fresh = trust == Trust::Fresh;
        let work =
            Work { reconciler: self, key, memory, writer, record, value, refused, now, fresh, soon: None, error: None };
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
        for key in self.controller.sink.cache.keys() {
            let Some(record) = self.controller.sink.cache.entry(&key).and_then(|entry| entry.root) else { continue };
            let run = read_run(&key, &record, &record.json());
            if !run.has_ended() && !run.spec.suspend && (run.held || run.status.revision.is_some()) {
                self.quota.hold(&key);
            }
        }
    }

    fn controller(&self) -> &Controller<Memory> {
        &self.controller
    }
}

/// Without the API server's time: what its own stamps on the run allow for, if this process has watched it for so long. A
/// clock that is ahead then ends nothing, and deadlines pass all the same.
fn latest(run: &Run, seen: Duration) -> Timestamp {
    let began = run.status.started_at.as_deref().and_then(|at| at.parse().ok());
    let stamp = [Some(run.created), run.deleting, began].into_iter().flatten().max().unwrap_or_default();
    stamp.saturating_add(SignedDuration::try_from(seen).unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX)
}

impl RunReconciler {
    fn sources(&self) -> Sources<'_> {
        Sources {
            client: &self.client,
            waiters: &self.waiters,
            storage: self.storage.as_ref(),
            allowed: &self.allowed,
            limits: self.limits,
        }
    }

    /// The weight of what a reconciliation has in hand besides the run: what it is carried out from, or the Pipeline that it names.
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
            self.controller.sink.queue.add(next);
        }
    }
}

impl Work<'_> {
    /// The phases: what is known, what is wrong with it, what to do, doing it, and what to report.
    async fn run(mut self, run: Run) -> Result<Done, ReconcileError> {
        let spec = self.gather(&run).await;
        let (spec, revision) = self.validate(&run, spec).await;
        let (mut facts, mut planned) = self.plan(&run, spec, revision).await;
        self.apply(&run, &mut planned, &mut facts).await;
        self.report(run, &facts, &planned).await
    }

    /// What is written down of the run, after what its driver has to say was heard.
    async fn gather(&mut self, run: &Run) -> SpecFact {
        self.hear();
        self.spec(run).await
    }

    /// Checks a run of which nothing is written down yet. What it is to be carried out from, if it is valid.
    async fn validate(&mut self, run: &Run, spec: SpecFact) -> (SpecFact, Option<Box<RunRevision>>) {
        let is_new = matches!(spec, SpecFact::Valid) && !run.has_ended() && run.deleting.is_none();
        if is_new { self.admit(run).await } else { (spec, None) }
    }

    /// What to do. A run that has just been found valid is written down first, and everything else follows from that.
    async fn plan(&mut self, run: &Run, spec: SpecFact, revision: Option<Box<RunRevision>>) -> (Facts, Plan) {
        let mut facts = self.facts(run, spec).await;
        facts.full = self.place(run, &facts, revision.as_deref());
        let planned = plan(run, &facts);
        let Some(revision) = revision.filter(|_| planned.freeze) else { return (facts, planned) };
        match self.writer.store_revision(&revision).await {
            Ok(stored) => {
                self.memory.stored = Some(stored.clone());
                facts = self.facts(run, SpecFact::Frozen(stored.frozen())).await;
                facts.full = self.place(run, &facts, None);
            }
            Err(RevisionError::Unusable(why)) => facts.spec = SpecFact::Invalid(format!("it {why}")),
            Err(RevisionError::Api(error)) => {
                facts.issue = error.issue();
                self.error = Some(error);
            }
        }
        let planned = plan(run, &facts);
        (facts, planned)
    }

    /// Writes the status; then what is not needed any more is taken away.
    async fn report(mut self, run: Run, facts: &Facts, planned: &Plan) -> Result<Done, ReconcileError> {
        let state = &planned.condition.state;
        if planned.condition.waits() {
            self.memory.waited = Some(planned.condition.message.clone());
        } else if matches!(&facts.drive, DriveFact::Live(live) if live.counts.running > 0) {
            self.memory.waited = None;
        }
        let throttled = self.write_status(&run, facts, planned).await?;
        if let Some(error) = self.error {
            return Err(error);
        }
        // The end is written before anything is taken away.
        if !matches!(state, State::Ended(_)) {
            self.take_away(&run, planned).await?;
        }
        if *state == State::AsWritten && planned.removal.is_none() && planned.release.is_none() {
            // Of what has ended nothing is needed.
            let uid = std::mem::take(&mut self.memory.uid);
            *self.memory = Memory { uid, seen: self.memory.seen, ..Memory::default() };
        }
        let idle = *state == State::AsWritten || *state == State::Suspended;
        let period = (!idle).then(|| jittered(PERIOD, self.key));
        // Zero: this reconciliation has made the next one necessary.
        let (left, wake): (Vec<_>, Vec<_>) = planned.wake.into_iter().partition(Duration::is_zero);
        let left = left.into_iter().chain(throttled).min();
        let again = wake.into_iter().chain(period).chain(self.soon).min();
        let outcome = if *state == State::Pending { Outcome::Waiting } else { Outcome::Settled };
        Ok(Done { outcome, again, left, gone: false })
    }

    /// Takes or gives back its place among the runs of its namespace, and its memory; why there is none for it.
    fn place(&self, run: &Run, facts: &Facts, revision: Option<&RunRevision>) -> Option<Issue> {
        let RunReconciler { quota, driven, .. } = self.reconciler;
        let waits = |message: String| Some(Issue::new(Reason::RunLimit, message));
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
                driven.fits(self.key, run.created, revision.map_or(0, in_progress))
            }
            _ => {
                self.reconciler.leave(self.key);
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
        let references = match RunReferences::read(self.reconciler.sources(), self.key, &run.spec).await {
            Ok(references) => references,
            Err(issue) => {
                self.soon = Some(self.reconciler.missing);
                return (SpecFact::Waits(issue, None), None);
            }
        };
        if references.lacks_code() {
            self.soon = Some(self.reconciler.missing);
        }
        match admit::admit(&self.value, &references) {
            Admission::Ready(run_revision) => (SpecFact::Valid, Some(run_revision)),
            Admission::Waits(issue, patience) => (SpecFact::Waits(issue, Some(patience)), None),
            Admission::Invalid(problems) => (SpecFact::Invalid(listed(&problems)), None),
        }
    }

    /// Writes the status if it says something new; when to come back if that has to wait.
    async fn write_status(
        &mut self,
        run: &Run,
        facts: &Facts,
        planned: &Plan,
    ) -> Result<Option<Duration>, ReconcileError> {
        let status = build_status(run, facts, planned);
        if status == run.status {
            return Ok(None);
        }
        let ended = matches!(planned.condition.state, State::Ended(_));
        let opening = self.memory.opening.filter(|_| !ended).map(|at| OPENING.saturating_sub(at.elapsed()));
        let counts = self.memory.status.left(COUNTS).filter(|_| says_the_same(&run.status, &status));
        if let Some(left) = opening.filter(|left| !left.is_zero()).or(counts) {
            return Ok(Some(left));
        }
        let writer = StatusWriter { writer: &self.writer, events: &self.reconciler.events, kind: Kind::Run };
        writer.write(&status, &run.status.conditions, &status.conditions).await?;
        self.memory.status.note();
        Ok(None)
    }
}
