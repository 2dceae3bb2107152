//! Follows an open run on one scheduler: events go into the engine, and what the engine wants is carried out.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::counts::counts;
use super::demand::DemandReporter;
use super::earlier;
use super::ended::{Ended, classify, lost, refused, stopped};
use super::error::DriveError;
use super::facts::Facts;
use super::intake::admitted;
use super::objects::Objects;
use super::restore::Restored;
use super::resume::Pages;
use super::reuse::Reusable;
use super::run_engine::Engine;
use super::session::Session;
use super::supply::{Supplier, portions, rehearse};
use super::terms::{failure_class, task_id};
use super::turn::{Turn, handed_over};
use api::reason::Reason;
use dask::ops::{FollowEvents, Item, Opened, Records, Stop, Submit, TaskAddr};
use dask::{EventBatch, Peer, RuntimeEvent};
use engine::{Event, FailReason, FailureClass, SkipReason, StepIx, TaskId};
use run_model::RunSpec;
use run_model::report::{Deadline, Failure, Note, Report, task_name};

/// Tasks per submit message: a few hundred KiB each.
const SUBMIT_CHUNK: usize = 2000;
/// Seconds between signs of life of the event stream; three missed ones mean that the scheduler hangs.
const BEAT: f64 = 3.0;
/// Workers come and go: only what is blocked for longer is worth a word.
const BLOCKED_PATIENCE: Duration = Duration::from_secs(8);

pub(super) struct Follower<'s, 'a> {
    pub session: &'s mut Session<'a>,
    pub peer: &'s Peer,
    pub opened: Opened,
    pub engine: Engine<'a>,
    pub reusable: &'s mut Option<Reusable>,
    pub objects: Objects,
}

impl<'s, 'a> Follower<'s, 'a> {
    /// Brings the engine to the point of the journal, and settles the steps that do not run.
    pub async fn restore(&mut self, mut pages: Pages<'_>) -> Result<(), Ended> {
        let plan = self.engine.plan;
        if self.opened.keeps {
            self.engine.facts.results().elsewhere();
        }
        let mut restored = Restored::default();
        while let Some(page) = pages.next().await.map_err(classify)? {
            if let Some(reusable) = self.reusable {
                page.invalidated.iter().for_each(|invalid| reusable.refuse(task_id(invalid.task)));
            }
            restored.take(&mut self.engine, page, self.session.now()).map_err(excess)?;
        }
        let supplier = self.supplier();
        for task in &restored.naming {
            let looked = supplier.supply(&mut self.engine, |view| drop(plan.objects_of(*task, view))).await;
            looked.map_err(classify)?;
            self.objects.restore(plan, *task, &self.engine.view());
        }
        let (spec, opened) = (self.session.spec, &self.opened);
        let settled =
            earlier::settle(self.peer, opened, spec, self.reusable, &restored.adopted, &mut self.engine).await;
        settled.map_err(|error| self.session.missed(error))?;
        let resumed = restored.resumed;
        self.session.observer.note(Note::Opened { epoch: self.opened.epoch, resumed: resumed.len() as u64 });
        self.engine.facts.begun = !resumed.is_empty();
        self.engine.facts.resumed = resumed;
        Ok(())
    }

    /// To the end of the run.
    pub async fn follow(&mut self) -> Result<Report, Ended> {
        let spec = self.session.spec;
        let mut follow = FollowEvents::new(&spec.uid, self.opened.epoch, self.opened.cursor, &self.opened.instance);
        (follow.beat, follow.window, follow.logs) = (BEAT, self.session.window, spec.logs);
        let mut events = self.peer.follow(&follow).await.map_err(classify)?;
        let mut demand = self.session.scaled.then(DemandReporter::new);
        let mut limits = spec.plan.limits.clone();
        limits.finally_ms = spec.finally_deadline.map(|deadline| deadline.as_millis() as u64);
        let (mut cancel, mut cancelled) = (self.session.cancel.clone(), false);
        loop {
            let start = spec.start_deadline.filter(|_| !self.engine.facts.begun);
            let next = Deadline::next(start, spec.deadline);
            limits.deadline_ms = next.map(|(deadline, _)| deadline.as_millis() as u64);
            let (finish, wake_at) = self.act(&limits).await?;
            self.note_progress(next.map(|(_, deadline)| deadline));
            if let Some(outcome) = finish {
                return self.close(outcome).await;
            }
            let look = match &mut demand {
                Some(demand) => {
                    let run = (spec.uid.as_str(), self.opened.epoch);
                    demand.report(self.peer, run, &self.engine, &limits).await.map_err(classify)?
                }
                None => None,
            };
            let planned = wake_at.map(|at| self.session.started + Duration::from_millis(at));
            let blocked = self.engine.facts.next_blocked(BLOCKED_PATIENCE);
            let wake = planned.into_iter().chain(blocked).chain(look).min();
            tokio::select! {
                batch = events.next() => {
                    self.take(batch.map_err(classify)?)?;
                    if !self.opened.keeps {
                        bounded(&self.engine.facts, self.peer.limits().message_bytes)?;
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                asked = asked_to_cancel(&mut cancel), if !cancelled => {
                    if asked {
                        self.session.observer.note(Note::Cancelling);
                        self.apply(&Event::CancelRequested);
                    }
                    cancelled = true;
                }
            }
        }
    }

    /// Reports counts and what is blocked. `next`: the deadline that passes first.
    fn note_progress(&mut self, next: Option<Deadline>) {
        let Engine { plan, state, facts } = &mut self.engine;
        let counted = counts(state, facts);
        *self.session.done = counted.done;
        let observer = &mut self.session.observer;
        observer.counts(counted);
        observer.memory(facts.bytes() + counted.total as usize * limits::TASK);
        if state.cancelling() == Some(SkipReason::DeadlineExceeded) {
            // Steps may begin after it has passed.
            facts.passed = facts.passed.or(next);
        }
        for (step, count, message) in facts.blocked_for(BLOCKED_PATIENCE) {
            let step = plan.step_name(StepIx(step)).to_owned();
            observer.note(Note::Blocked { step, count, message });
        }
    }

    /// Carries out what the engine wants until it wants nothing more; its end and the next wake-up.
    async fn act(&mut self, limits: &engine::Limits) -> Result<(Option<engine::RunOutcome>, Option<u64>), Ended> {
        let (spec, plan) = (self.session.spec, self.engine.plan);
        let (run, epoch) = (spec.uid.as_str(), self.opened.epoch);
        let mut finish = None;
        loop {
            let planned = self.engine.next(limits, self.session.now());
            let (supplier, mut turn) = (self.supplier(), Turn::default());
            for actions in portions(planned.actions, &mut self.engine.facts) {
                let rehearsed = supplier.supply(&mut self.engine, |view| rehearse(plan, &actions, view)).await;
                rehearsed.map_err(|error| self.session.ended_by(error))?;
                let looked = self.objects.look(self.peer, spec, &handed_over(&actions), &mut self.engine).await;
                looked.map_err(|error| self.session.ended_by(error))?;
                turn.add(Turn::new(&mut self.engine, actions, self.reusable, &self.objects));
            }
            finish = turn.finish.or(finish);
            // What must not start is taken back before the runtime hears of the failure that it would take for a hole; and
            // it hears of holes before it gets tasks that wait for them.
            if !turn.stops.is_empty() {
                self.peer.call(&Stop { run, epoch, items: &turn.stops }).await.map_err(classify)?;
            }
            if !turn.records.is_empty() {
                self.peer.call(&Records { run, epoch, records: &turn.records }).await.map_err(classify)?;
            }
            let adopted = earlier::adopt(self.peer, &self.opened, spec, &turn.adopted).await;
            adopted.map_err(|error| self.session.missed(error))?;
            for items in turn.submits.chunks(SUBMIT_CHUNK) {
                self.peer.call(&Submit { run, epoch, items }).await.map_err(classify)?;
            }
            if turn.decided.is_empty() {
                return Ok((finish, planned.wake_at));
            }
            for event in turn.decided {
                self.apply(&event);
            }
        }
    }

    /// Applies one message of the event stream.
    fn take(&mut self, batch: EventBatch) -> Result<(), Ended> {
        self.engine.facts.tidy();
        for event in batch.events {
            let Some(event) = admitted(event, self.engine.plan, &self.engine.state) else { continue };
            match event {
                RuntimeEvent::Started { task, .. } => {
                    self.engine.facts.begun = true;
                    self.apply(&Event::Started { task: task_id(task), attempt: task.attempt });
                }
                RuntimeEvent::Finished { task, lens, json, .. } => {
                    let id = task_id(task);
                    self.engine.facts.begun = true;
                    let result = json.map(|result| result.kept()).transpose();
                    let result = result.map_err(|error| excess(error.to_string()))?;
                    self.engine.facts.finished(id, lens.clone(), result);
                    self.apply(&Event::Finished { task: id, attempt: task.attempt, lens });
                }
                RuntimeEvent::Committed { tasks, changed, .. } => {
                    for task in tasks {
                        let id = task_id(task);
                        if changed.contains(&Item { step: task.step, item: task.item }) {
                            self.apply(&Event::Changed { task: id });
                        }
                        let lens = self.engine.facts.lens(id);
                        self.apply(&Event::Committed { task: id, lens });
                    }
                }
                event @ RuntimeEvent::Failed { .. } => self.attempt_failed(event),
                RuntimeEvent::Lost { task, worker, message } => self.worker_lost(task, worker, message),
                RuntimeEvent::Stopped { task } => {
                    self.apply(&Event::Stopped { task: task_id(task), attempt: task.attempt });
                }
                RuntimeEvent::Logs { lines, .. } => {
                    for line in lines {
                        let step = self.engine.plan.step_name(StepIx(line.task.step)).to_owned();
                        let (item, stream, text) = (line.task.item, line.stream, line.text);
                        self.session.observer.note(Note::Log { step, item, stream, text });
                    }
                }
                RuntimeEvent::Worker(change) => {
                    self.session.observer.note(Note::Worker { name: change.name, added: change.added });
                }
                RuntimeEvent::Blocked { step, count, message, .. } => self.engine.facts.blocked(step, count, message),
                RuntimeEvent::Unblocked { step } => {
                    if self.engine.facts.unblocked(step) {
                        let step = self.engine.plan.step_name(StepIx(step)).to_owned();
                        self.session.observer.note(Note::Unblocked { step });
                    }
                }
                RuntimeEvent::Storage { up: true, .. } => self.session.observer.note(Note::StorageUp),
                // Nobody but the user makes room on their disk.
                RuntimeEvent::Storage { message, reason, .. }
                    if Reason::StorageFull.is(&reason) && self.session.is_folder() =>
                {
                    return Err(refused(Reason::StorageFull, message));
                }
                RuntimeEvent::Storage { message, reason, .. } => {
                    self.session.observer.note(Note::StorageDown { reason, message });
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

    /// An attempt ended with an error, or lacked an input.
    fn attempt_failed(&mut self, event: RuntimeEvent) {
        let RuntimeEvent::Failed { task, worker, mut class, lost, kind, mut message, traceback, tail, .. } = event
        else {
            return;
        };
        let (id, attempt) = (task_id(task), task.attempt);
        let class_ = failure_class(&class);
        let lost = lost.iter().map(|lost| TaskId { step: StepIx(lost.step), item: lost.item });
        let inputs: Vec<TaskId> = lost.collect();
        self.apply(&match class_ {
            FailureClass::Input => Event::InputLost { task: id, attempt, inputs: inputs.clone() },
            class => Event::Failed { task: id, attempt, class },
        });
        let terminal = self.engine.is_failed(id);
        if let Some(reason @ FailReason::OutputLost { .. }) = self.engine.state.failure(id) {
            message = format!("{message}; {reason}");
            class = FailureClass::Data.name().to_owned();
        } else if let Some(input) = inputs.first() {
            let task = task_name(self.engine.plan.step_name(input.step), input.item);
            self.session.observer.note(Note::OutputLost { task, more: inputs.len() - 1, message: message.clone() });
        }
        let failure = Failure {
            step: self.engine.plan.step_name(id.step).to_owned(),
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
            self.session.observer.note(Note::AttemptFailed(failure.clone()));
        }
        self.engine.facts.failed(id, failure);
    }

    /// An attempt ended with its worker.
    fn worker_lost(&mut self, task: TaskAddr, worker: String, message: String) {
        let id = task_id(task);
        self.apply(&Event::Lost { task: id, attempt: task.attempt });
        let name = task_name(self.engine.plan.step_name(id.step), id.item);
        self.session.observer.note(Note::WorkerLost { task: name, worker: worker.clone() });
        if self.engine.is_failed(id) {
            self.engine.facts.failed(
                id,
                Failure {
                    step: self.engine.plan.step_name(id.step).to_owned(),
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

    fn apply(&mut self, event: &Event) {
        self.engine.apply(event, self.session.now());
    }

    /// Fetches results that are not here.
    pub fn supplier(&self) -> Supplier<'s>
    where
        'a: 's,
    {
        let spec: &'a RunSpec = self.session.spec;
        Supplier { peer: self.peer, run: &spec.uid, epoch: self.opened.epoch }
    }
}

/// True when the user asks for an end; false if nobody can ask any more.
async fn asked_to_cancel(cancel: &mut watch::Receiver<bool>) -> bool {
    cancel.wait_for(|cancel| *cancel).await.is_ok()
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
