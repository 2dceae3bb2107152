//! What the engine's actions come to: what the runtime is told, and facts that follow at once. Pure.

use super::facts::View;
use super::objects::{Meeting, Objects};
use super::reuse::Reusable;
use super::run_engine::Engine;
use super::terms::{address, decision, submit_item};
use dask::ops::{AdoptItem, Record, SubmitItem, TaskAddr};
use engine::{Action, Event, RunOutcome, TaskId};
use lower::Plan;

/// One answer of the engine, carried out as far as that needs nobody else.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub submits: Vec<SubmitItem>,
    pub stops: Vec<TaskAddr>,
    pub records: Vec<Record>,
    /// Outputs of earlier runs that become this one's.
    pub adopted: Vec<AdoptItem>,
    /// For the engine, once the runtime has been told.
    pub decided: Vec<Event>,
    pub finish: Option<RunOutcome>,
}

/// Tasks that `actions` hand over: what they name has to be looked at before.
pub(super) fn handed_over(actions: &[Action]) -> Vec<TaskId> {
    let submits = actions.iter().filter_map(|action| match action {
        Action::Submit { task, .. } => Some(*task),
        _ => None,
    });
    submits.collect()
}

impl Turn {
    /// What follows it.
    pub fn add(&mut self, next: Self) {
        let Self { submits, stops, records, adopted, decided, finish } = next;
        self.submits.extend(submits);
        self.stops.extend(stops);
        self.records.extend(records);
        self.adopted.extend(adopted);
        self.decided.extend(decided);
        self.finish = finish.or(self.finish.take());
    }

    /// Carries out `actions`; `objects` has looked at what they hand over.
    pub fn new(
        engine: &mut Engine<'_>,
        actions: Vec<Action>,
        reusable: &mut Option<Reusable>,
        objects: &Objects,
    ) -> Self {
        let mut turn = Self::default();
        let Engine { plan, state, facts } = engine;
        let plan: &Plan = plan;
        for action in actions {
            match action {
                Action::Decide { task } => {
                    let view = View { facts, state, dag: &plan.dag };
                    turn.decided.push(match plan.decide(task, &view) {
                        Ok(run) => Event::Decided { task, run },
                        Err(error) => Event::Refused { task, reason: error.to_string() },
                    });
                }
                Action::Submit { task, attempt, deps, priority } => {
                    let view = View { facts, state, dag: &plan.dag };
                    if let Some(reusable) = reusable
                        && let Some(taken) = reusable.take(plan, task, &view)
                    {
                        reusable.note(&taken, facts);
                        turn.adopted.push(taken.item);
                        turn.decided.push(taken.event);
                        continue;
                    }
                    let meeting = objects.meet(plan, task, &view);
                    if let Meeting::Refuse(reason) = meeting {
                        turn.decided.push(Event::Refused { task, reason });
                        continue;
                    }
                    match plan.values(task, &view, meeting == Meeting::Take) {
                        Ok(values) => turn.submits.push(submit_item(task, attempt, priority, values, &deps)),
                        Err(error) => turn.decided.push(Event::Refused { task, reason: error.to_string() }),
                    }
                }
                Action::Withdraw { task, attempt } | Action::Stop { task, attempt, .. } => {
                    turn.stops.push(address(task, attempt));
                }
                Action::RecordLength { step, len } => turn.records.push(Record::Length { step: step.0, len }),
                Action::RecordSkipped { task, reason } => {
                    turn.records.push(Record::Skipped(decision(task, reason.name(), String::new())));
                }
                Action::RecordFailed { task, reason } => {
                    let message = facts.terminal(plan, task, &reason);
                    turn.records.push(Record::Refused(decision(task, reason.name(), message)));
                }
                Action::RecordInvalidated { task, why } => {
                    let message = facts.invalidated(plan, task, why);
                    turn.records.push(Record::Invalidated(decision(task, why.name(), message)));
                    if let Some(reusable) = reusable {
                        reusable.refuse(task);
                    }
                }
                Action::Finish(outcome) => turn.finish = Some(outcome),
            }
        }
        turn
    }
}
