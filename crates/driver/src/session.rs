//! One run on one scheduler: open it, restore the engine from the snapshot, then feed events in and actions out.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::code::code;
use super::counts::counts;
use super::demand::DemandReporter;
use super::ended::{Ended, Loss, classify, fatal, lost, refused, stopped};
use super::error::DriveError;
use super::fabric::Access;
use super::facts::Versions;
use super::facts::{Facts, View};
use super::install::runtime;
use super::intake::admitted;
use super::objects::Objects;
use super::restore::Restored;
use super::resume::Pages;
use super::reuse::Reusable;
use super::supply::{Supplier, portions, rehearse};
use super::turn::{Turn, handed_over};
use super::wire::{failure_class, step_def, storage, task_id};
use super::{Fabric, earlier, objects};
use api::reason::{Class, Reason};
use dask::ops::{Code, FollowEvents, Item, Leader, Open, Opened, Records, Settings, Stop, Submit};
use dask::{Address, EventBatch, Peer, RuntimeEvent};
use engine::{Event, FailReason, FailureClass, RunState, SkipReason, StepIx, TaskId, TaskStatus};
use run_model::report::{Deadline, Failure, Note, Observer, Report, task_name};
use run_model::{Endpoint, RunSpec, Runtime, Start};

/// The runtime protocol that this version speaks.
const PROTOCOL: u32 = 1;
/// Tasks per submit message: a few hundred KiB each.
const SUBMIT_CHUNK: usize = 2000;
/// Seconds between signs of life of the event stream; three missed ones mean that the scheduler hangs.
const BEAT: f64 = 3.0;
/// Workers come and go: only what is blocked for longer is worth a word.
const BLOCKED_PATIENCE: Duration = Duration::from_secs(8);

/// Outputs up to this size travel in the journal, in bytes: a segment then holds many of them.
const INLINE_MAX: u64 = 64 << 10;
/// Cache of outputs on a worker's disk, in bytes.
const CACHE_BYTES: u64 = 4 << 30;
/// Log of one attempt, in bytes; beyond it the middle is left out.
const LOG_CAP: u64 = 8 << 20;
/// Two tasks per slot keep a worker busy while the answer of one is on its way.
const TASKS_PER_SLOT: u32 = 2;

/// Whether the runtime does not have a run (any more) as it was when it was opened: another process answers, or events are
/// missing.
fn reopens(reason: &str) -> bool {
    reason.parse().is_ok_and(|reason: Reason| reason.class() == Class::Reopens)
}

fn is_not_there(error: &dask::Error) -> bool {
    error.refusal().is_some_and(|reason| Reason::RunNotFound.is(reason))
}

pub(super) struct Session<'a> {
    pub spec: &'a RunSpec,
    pub observer: &'a mut dyn Observer,
    pub started: Instant,
    pub cancel: &'a watch::Receiver<bool>,
    pub opened_before: &'a mut bool,
    pub tried_to_open: &'a mut bool,
    /// The end of the run as it was asked to be written; whether it was is unknown when the scheduler is lost then.
    pub closing: &'a mut Option<Report>,
    /// Others run the workers, and may start more of them.
    pub scaled: bool,
    /// Events that may be on their way without being acknowledged.
    pub window: u32,
    /// Tasks that have come to their end.
    pub done: &'a mut u64,
}

impl Session<'_> {
    pub(super) async fn run(mut self, fabric: &mut Fabric, endpoint: &Endpoint) -> Result<Report, Ended> {
        let Access { tls, install, lead, connections, limits } = fabric.access().map_err(fatal)?;
        let address: Address = endpoint.address.parse().map_err(fatal)?;
        let peer = Peer::new(address.clone(), tls.clone(), connections.pool.clone()).within(limits);
        tokio::select! {
            finished = self.converse(&peer, install, lead.as_ref()) => finished,
            error = connections.heartbeat.lost(&address, tls.as_ref()) => match error.is_excess() {
                true => Err(classify(error)),
                false => Err(lost(error.to_string())),
            },
            cause = fabric.gone(endpoint.generation) => Err(lost(cause)),
        }
    }

    async fn converse(
        &mut self,
        peer: &Peer,
        install: Option<Runtime>,
        lead: Option<&Leader>,
    ) -> Result<Report, Ended> {
        self.greet(peer, install).await?;
        let code = code(peer, self.spec, lead).await.map_err(|error| self.ended_by(error))?;
        let versions = objects::before(peer, self.spec).await.map_err(|error| self.ended_by(error))?;
        let mut reusable = earlier::ask(peer, self.spec, &code.digest, lead).await.map_err(classify)?;
        let opened = self.open(peer, lead, reusable.as_ref(), code).await?;
        *self.opened_before = true;
        self.go_on(peer, opened, &mut reusable, versions).await.map_err(|ended| match ended {
            Ended::Fatal(DriveError::Refused { reason, message }) if reopens(&reason) => {
                Ended::Again { reason, message, limit: limits::REOPENED }
            }
            other => other,
        })
    }

    /// From the opening to the end of the run, which may have come before.
    async fn go_on(
        &mut self,
        peer: &Peer,
        mut opened: Opened,
        reusable: &mut Option<Reusable>,
        versions: Versions,
    ) -> Result<Report, Ended> {
        let spec = self.spec;
        let mut pages = Pages::new(peer, &spec.uid, &mut opened);
        if pages.is_closed() {
            let known = match self.closing.take() {
                Some(report) => Some(report),
                None => pages.closing().await.map_err(classify)?.filter(|_| !self.spec.reopen),
            };
            if let Some(report) = known {
                return Ok(report);
            }
        }
        self.follow(peer, opened, pages, reusable, versions).await
    }

    /// Makes sure that the scheduler has a runtime that this version understands.
    async fn greet(&mut self, peer: &Peer, install: Option<Runtime>) -> Result<(), Ended> {
        let info = runtime(peer, install).await?;
        let (low, high) = info.protocol;
        if !(low..=high).contains(&PROTOCOL) {
            return Err(refused(
                Reason::RuntimeVersion,
                format!("the scheduler's runtime speaks protocol {low} to {high}, this command {PROTOCOL}"),
            ));
        }
        Ok(())
    }

    async fn open(
        &mut self,
        peer: &Peer,
        lead: Option<&Leader>,
        reusable: Option<&Reusable>,
        code: Code,
    ) -> Result<Opened, Ended> {
        let mut open = self.open_request(lead, code);
        open.create = !*self.opened_before && !*self.tried_to_open;
        loop {
            if open.create {
                earlier::check(self.spec, reusable).map_err(classify)?;
                *self.tried_to_open = true;
            }
            match peer.call(&open).await {
                Ok(opened) => return Ok(opened),
                // What was there is gone: a new journal in its place would run everything again, as if nothing was committed.
                Err(error) if *self.opened_before && self.spec.start != Start::Again && is_not_there(&error) => {
                    let run = &self.spec.uid;
                    let lost = "it was written but is missing; something deleted it from the storage";
                    let message = format!("segment 0 of the journal of run {run} cannot be read: {lost}");
                    return Err(refused(Reason::RecordUnreadable, message));
                }
                // An earlier request whose answer was lost may or may not have made the journal.
                Err(error) if self.spec.start != Start::Again && !open.create && is_not_there(&error) => {
                    open.create = true;
                }
                Err(error) => return Err(self.ended_by(error)),
            }
        }
    }

    /// Until the journal was opened once, an unreachable storage is told at once; then it is waited for.
    pub(super) fn ended_by(&self, error: dask::Error) -> Ended {
        match error {
            dask::Error::Refused { reason, message, .. }
                if Reason::StorageUnreachable.is(&reason) && *self.opened_before =>
            {
                Ended::Lost { cause: format!("{reason}: {message}"), loss: Loss::Busy }
            }
            other => classify(other),
        }
    }

    /// Outputs could not be taken over: those that are being removed are not offered again.
    fn missed(&self, error: dask::Error) -> Ended {
        match error {
            dask::Error::Refused { reason, message, .. } if Reason::OutputsRemoved.is(&reason) => {
                stopped(reason, message)
            }
            other => self.ended_by(other),
        }
    }

    fn open_request(&self, lead: Option<&Leader>, code: Code) -> Open {
        let spec = self.spec;
        Open {
            run: spec.uid.clone(),
            name: spec.name.clone(),
            epoch: None,
            lead: lead.map(|lead| lead.epoch),
            lease: lead.and_then(|lead| lead.lease.clone()),
            create: false,
            // One end is enough: if it was written, it is answered.
            reopen: self.spec.reopen && self.closing.is_none(),
            spec: spec.spec.clone(),
            spec_digest: spec.spec_digest.clone(),
            pages: true,
            storage: storage(&spec.storage),
            pipeline: spec.pipeline.clone(),
            code,
            requirements: spec.requirements.wanted.clone(),
            same_image: spec.requirements.same_image,
            steps: spec.plan.step_defs().into_iter().map(|step| step_def(step, spec.ignore_resources)).collect(),
            settings: Settings {
                inline_max: INLINE_MAX,
                cache_bytes: CACHE_BYTES,
                log_cap: LOG_CAP,
                tasks_per_slot: TASKS_PER_SLOT,
                pins: objects::pins(spec),
            },
        }
    }

    /// Runs the engine on an open run until its end.
    async fn follow(
        &mut self,
        peer: &Peer,
        opened: Opened,
        mut pages: Pages<'_>,
        reusable: &mut Option<Reusable>,
        versions: Versions,
    ) -> Result<Report, Ended> {
        let plan = &self.spec.plan;
        let (mut facts, mut objects) = (Facts::default(), Objects::new(plan));
        facts.versions = versions;
        if opened.keeps {
            facts.results().elsewhere();
        }
        let mut state = RunState::new(&plan.dag, seed(&self.spec.uid));
        let mut restored = Restored::default();
        while let Some(page) = pages.next().await.map_err(classify)? {
            if let Some(reusable) = reusable {
                page.invalidated.iter().for_each(|invalid| reusable.refuse(task_id(invalid.task)));
            }
            let known = (&mut state, &mut facts);
            restored.take(plan, page, known, self.now()).map_err(excess)?;
        }
        let supplier = Supplier { peer, run: &self.spec.uid, epoch: opened.epoch };
        for task in &restored.naming {
            let known = (&state, &mut facts);
            supplier.supply(known, &plan.dag, |view| drop(plan.objects_of(*task, view))).await.map_err(classify)?;
            objects.restore(plan, *task, &View { facts: &facts, state: &state, dag: &plan.dag });
        }
        let known = (&mut state, &mut facts);
        let settled = earlier::settle(peer, &opened, self.spec, reusable, &restored.adopted, known).await;
        settled.map_err(|error| self.missed(error))?;
        facts.resumed = std::mem::take(&mut restored.resumed);
        drop(restored);
        self.observer.note(Note::Opened { epoch: opened.epoch, resumed: facts.resumed.len() as u64 });

        let mut follow = FollowEvents::new(&self.spec.uid, opened.epoch, opened.cursor, &opened.instance);
        follow.beat = BEAT;
        follow.window = self.window;
        follow.logs = self.spec.logs;
        let mut events = peer.follow(&follow).await.map_err(classify)?;
        facts.begun = !facts.resumed.is_empty();
        let mut demand = self.scaled.then(DemandReporter::new);
        let mut limits = plan.limits.clone();
        limits.finally_ms = self.spec.finally_deadline.map(|deadline| deadline.as_millis() as u64);
        let (mut cancel, mut cancelled) = (self.cancel.clone(), false);
        loop {
            let start = self.spec.start_deadline.filter(|_| !facts.begun);
            let next = Deadline::next(start, self.spec.deadline);
            limits.deadline_ms = next.map(|(deadline, _)| deadline.as_millis() as u64);
            let (finish, wake_at) =
                self.act(peer, &opened, (&mut state, &mut facts), (&mut *reusable, &mut objects), &limits).await?;
            let counted = counts(&state, &facts);
            *self.done = counted.done;
            self.observer.counts(counted);
            self.observer.memory(facts.bytes() + counted.total as usize * limits::TASK);
            if state.cancelling() == Some(SkipReason::DeadlineExceeded) {
                // Steps may begin after it has passed.
                facts.passed = facts.passed.or(next.map(|(_, deadline)| deadline));
            }
            if let Some(outcome) = finish {
                return self.close(peer, &opened, (&state, &mut facts), outcome).await;
            }
            for (step, count, message) in facts.blocked_for(BLOCKED_PATIENCE) {
                let step = plan.step_name(StepIx(step)).to_owned();
                self.observer.note(Note::Blocked { step, count, message });
            }
            let look = match &mut demand {
                Some(demand) => {
                    let run = (self.spec.uid.as_str(), opened.epoch);
                    demand.tell(peer, run, (plan, &state, &limits)).await.map_err(classify)?
                }
                None => None,
            };
            let planned = wake_at.map(|at| self.started + Duration::from_millis(at));
            let wake = planned.into_iter().chain(facts.next_blocked(BLOCKED_PATIENCE)).chain(look).min();
            tokio::select! {
                batch = events.next() => {
                    let batch = batch.map_err(classify)?;
                    self.take(&mut state, &mut facts, batch)?;
                    if !opened.keeps {
                        bounded(&facts, peer.limits().message_bytes)?;
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                asked = asked_to_cancel(&mut cancel), if !cancelled => {
                    if asked {
                        self.observer.note(Note::Cancelling);
                        self.apply(&mut state, &Event::CancelRequested);
                    }
                    cancelled = true;
                }
            }
        }
    }

    /// Carries out what the engine wants until it wants nothing more; its end and the next wake-up.
    async fn act(
        &mut self,
        peer: &Peer,
        opened: &Opened,
        (state, facts): (&mut RunState, &mut Facts),
        (reusable, objects): (&mut Option<Reusable>, &mut Objects),
        limits: &engine::Limits,
    ) -> Result<(Option<engine::RunOutcome>, Option<u64>), Ended> {
        let plan = &self.spec.plan;
        let (run, epoch) = (self.spec.uid.as_str(), opened.epoch);
        let mut finish = None;
        loop {
            let planned = engine::plan(&plan.dag, state, limits, self.now());
            let (supplier, mut turn) = (Supplier { peer, run, epoch }, Turn::default());
            for actions in portions(planned.actions, facts) {
                let rehearsed = supplier.supply((state, facts), &plan.dag, |view| rehearse(plan, &actions, view)).await;
                rehearsed.map_err(|error| self.ended_by(error))?;
                let looked = objects.look(peer, self.spec, &handed_over(&actions), (state, facts)).await;
                looked.map_err(|error| self.ended_by(error))?;
                turn.add(Turn::new(plan, actions, (state, facts), reusable, objects));
            }
            finish = turn.finish.or(finish);
            // What must not start is taken back before the runtime hears of the failure that it would take for a hole; and
            // it hears of holes before it gets tasks that wait for them.
            if !turn.stops.is_empty() {
                peer.call(&Stop { run, epoch, items: &turn.stops }).await.map_err(classify)?;
            }
            if !turn.records.is_empty() {
                peer.call(&Records { run, epoch, records: &turn.records }).await.map_err(classify)?;
            }
            earlier::adopt(peer, opened, self.spec, &turn.adopted).await.map_err(|error| self.missed(error))?;
            for items in turn.submits.chunks(SUBMIT_CHUNK) {
                peer.call(&Submit { run, epoch, items }).await.map_err(classify)?;
            }
            if turn.decided.is_empty() {
                return Ok((finish, planned.wake_at));
            }
            for event in turn.decided {
                self.apply(state, &event);
            }
        }
    }

    /// Applies one message of the event stream.
    fn take(&mut self, state: &mut RunState, facts: &mut Facts, batch: EventBatch) -> Result<(), Ended> {
        facts.tidy();
        for event in batch.events {
            let Some(event) = admitted(event, &self.spec.plan, state) else { continue };
            match event {
                RuntimeEvent::Started { task, .. } => {
                    facts.begun = true;
                    self.apply(state, &Event::Started { task: task_id(task), attempt: task.attempt });
                }
                RuntimeEvent::Finished { task, lens, json, .. } => {
                    let id = task_id(task);
                    facts.begun = true;
                    let result = json.map(|result| result.kept()).transpose();
                    let result = result.map_err(|error| excess(error.to_string()))?;
                    facts.finished(id, lens.clone(), result);
                    self.apply(state, &Event::Finished { task: id, attempt: task.attempt, lens });
                }
                RuntimeEvent::Committed { tasks, changed, .. } => {
                    for task in tasks {
                        let id = task_id(task);
                        if changed.contains(&Item { step: task.step, item: task.item }) {
                            self.apply(state, &Event::Changed { task: id });
                        }
                        let lens = facts.lens(id);
                        self.apply(state, &Event::Committed { task: id, lens });
                    }
                }
                RuntimeEvent::Failed { task, worker, mut class, lost, kind, mut message, traceback, tail, .. } => {
                    let (id, attempt) = (task_id(task), task.attempt);
                    let class_ = failure_class(&class);
                    let lost = lost.iter().map(|lost| TaskId { step: StepIx(lost.step), item: lost.item });
                    let inputs: Vec<TaskId> = lost.collect();
                    self.apply(
                        state,
                        &match class_ {
                            FailureClass::Input => Event::InputLost { task: id, attempt, inputs: inputs.clone() },
                            class => Event::Failed { task: id, attempt, class },
                        },
                    );
                    let terminal = is_failed(state, &self.spec.plan.dag, id);
                    if let Some(reason @ FailReason::OutputLost { .. }) = state.failure(id) {
                        message = format!("{message}; {reason}");
                        class = FailureClass::Data.name().to_owned();
                    } else if let Some(input) = inputs.first() {
                        let task = task_name(self.spec.plan.step_name(input.step), input.item);
                        self.observer.note(Note::OutputLost { task, more: inputs.len() - 1, message: message.clone() });
                    }
                    let failure = Failure {
                        step: self.spec.plan.step_name(id.step).to_owned(),
                        item: id.item,
                        attempt,
                        class,
                        kind,
                        message,
                        traceback,
                        tail,
                        worker,
                        terminal,
                    };
                    if terminal || class_ != FailureClass::Input {
                        self.observer.note(Note::AttemptFailed(failure.clone()));
                    }
                    facts.failed(id, failure);
                }
                RuntimeEvent::Lost { task, worker, message } => {
                    let id = task_id(task);
                    self.apply(state, &Event::Lost { task: id, attempt: task.attempt });
                    let name = task_name(self.spec.plan.step_name(id.step), id.item);
                    self.observer.note(Note::WorkerLost { task: name, worker: worker.clone() });
                    if is_failed(state, &self.spec.plan.dag, id) {
                        facts.failed(
                            id,
                            Failure {
                                step: self.spec.plan.step_name(id.step).to_owned(),
                                item: id.item,
                                attempt: task.attempt,
                                class: "infra".into(),
                                kind: Reason::WorkerLost.to_string(),
                                message,
                                worker,
                                terminal: true,
                                ..Failure::default()
                            },
                        );
                    }
                }
                RuntimeEvent::Stopped { task } => {
                    self.apply(state, &Event::Stopped { task: task_id(task), attempt: task.attempt });
                }
                RuntimeEvent::Logs { lines, .. } => {
                    for line in lines {
                        let step = self.spec.plan.step_name(StepIx(line.task.step)).to_owned();
                        let (item, stream, text) = (line.task.item, line.stream, line.text);
                        self.observer.note(Note::Log { step, item, stream, text });
                    }
                }
                RuntimeEvent::Worker(change) => {
                    self.observer.note(Note::Worker { name: change.name, added: change.added });
                }
                RuntimeEvent::Blocked { step, count, message, .. } => facts.blocked(step, count, message),
                RuntimeEvent::Unblocked { step } => {
                    if facts.unblocked(step) {
                        let step = self.spec.plan.step_name(StepIx(step)).to_owned();
                        self.observer.note(Note::Unblocked { step });
                    }
                }
                RuntimeEvent::Storage { up: true, .. } => self.observer.note(Note::StorageUp),
                // Nobody but the user makes room on their disk.
                RuntimeEvent::Storage { message, reason, .. }
                    if Reason::StorageFull.is(&reason) && self.is_folder() =>
                {
                    return Err(refused(Reason::StorageFull, message));
                }
                RuntimeEvent::Storage { message, reason, .. } => {
                    self.observer.note(Note::StorageDown { reason, message });
                }
                RuntimeEvent::Fenced { epoch } => {
                    let how = epoch.map(|epoch| format!("epoch {epoch}"));
                    return Err(Ended::Fatal(DriveError::Fenced { how }));
                }
                // The scheduler closes. With a reason it is the run alone that was stopped.
                RuntimeEvent::Closing { message, reason } if reason.is_empty() => return Err(lost(message)),
                RuntimeEvent::Closing { message, reason } => return Err(stopped(reason, message)),
            }
        }
        Ok(())
    }

    /// The run is kept in a folder.
    fn is_folder(&self) -> bool {
        self.spec.storage.url.starts_with("file://")
    }

    fn apply(&mut self, state: &mut RunState, event: &Event) {
        if let Err(error) = state.apply(&self.spec.plan.dag, event, self.now()) {
            // A late or doubled report; the engine's facts stand.
            tracing::debug!(%error, "an event contradicts what is known");
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// True when the user asks for an end; false if nobody can ask any more.
async fn asked_to_cancel(cancel: &mut watch::Receiver<bool>) -> bool {
    cancel.wait_for(|cancel| *cancel).await.is_ok()
}

fn is_failed(state: &RunState, dag: &engine::Dag, task: TaskId) -> bool {
    state.task_view(dag, task).is_some_and(|view| view.status == TaskStatus::Failed)
}

/// A number from the uid, so that a restored run jitters its retries as before.
fn seed(uid: &str) -> u64 {
    let digest = Sha256::digest(uid.as_bytes());
    digest.iter().take(8).fold(0, |seed, byte| (seed << 8) | u64::from(*byte))
}

/// A scheduler that says more than is taken of it. It lives, and would say the same again.
fn excess(reason: String) -> Ended {
    classify(dask::Error::excess(FollowEvents::OP, reason))
}

/// All results of a run have to fit into a snapshot, from which it goes on.
fn bounded(facts: &Facts, most: usize) -> Result<(), Ended> {
    match facts.results_bytes() {
        bytes if bytes > most => {
            Err(excess(format!("the results of the run have {bytes} bytes; at most {most} are allowed")))
        }
        _ => Ok(()),
    }
}
