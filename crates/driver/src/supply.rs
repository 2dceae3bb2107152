//! What of a run's results is not here when an expression looks at it: it is fetched from the runtime, and the expression
//! evaluated again.

use super::facts::{Facts, View};
use super::run_engine::Engine;
use dask::Peer;
use dask::ops::{Item, Operation, ReadResults};
use engine::{Action, StepIx, TaskId};
use lower::Plan;

/// Where results are fetched.
#[derive(Clone, Copy)]
pub(super) struct Supplier<'a> {
    pub peer: &'a Peer,
    pub run: &'a str,
    pub epoch: u64,
}

impl Supplier<'_> {
    /// What `evaluate` gives with all results that it looks at.
    pub async fn supply<T>(self, engine: &mut Engine<'_>, evaluate: impl Fn(&View<'_>) -> T) -> Result<T, dask::Error> {
        engine.facts.results().settle_up();
        loop {
            let value = evaluate(&engine.view());
            if !self.fetch(&mut engine.facts).await? {
                return Ok(value);
            }
        }
    }

    /// Fetches what was looked for in vain; whether there was anything.
    async fn fetch(self, facts: &mut Facts) -> Result<bool, dask::Error> {
        let missed = facts.results().missed();
        let tasks: Vec<Item> = missed.iter().map(|task| Item { step: task.step.0, item: task.item }).collect();
        let mut rest = &tasks[..];
        while !rest.is_empty() {
            let found = self.peer.call(&ReadResults { run: self.run, epoch: self.epoch, tasks: rest }).await?.results;
            let fits = found.len() <= rest.len() && found.iter().zip(rest).all(|(found, asked)| found.task == *asked);
            if found.is_empty() || !fits {
                let reason = "the answer has other results than were asked for".to_owned();
                return Err(dask::Error::excess(ReadResults::OP, reason));
            }
            rest = &rest[found.len()..];
            for result in found {
                let task = TaskId { step: StepIx(result.task.step), item: result.task.item };
                facts.results().lend(task, result.json);
            }
        }
        Ok(!missed.is_empty())
    }
}

/// Looks at all results that carrying out `actions` will look at.
pub(super) fn rehearse(plan: &Plan, actions: &[Action], view: &View<'_>) {
    for action in actions {
        match action {
            Action::Decide { task } => drop(plan.decide(*task, view)),
            Action::Submit { task, .. } => look_at(plan, *task, view),
            _ => {}
        }
    }
}

/// Looks at all results that a task's arguments and paths are made from.
pub(super) fn look_at(plan: &Plan, task: TaskId, view: &View<'_>) {
    drop(plan.objects_of(task, view));
    drop(plan.values(task, view, false));
}

/// Parts of `actions` that are carried out one after the other: each needs room for the results that it looks at.
pub(super) fn portions(actions: Vec<Action>, facts: &mut Facts) -> Vec<Vec<Action>> {
    if facts.results().any_away() { actions.into_iter().map(|action| vec![action]).collect() } else { vec![actions] }
}
