//! One run as it is known here: the engine's state of its DAG, and the facts beside it.

use super::facts::{Facts, View};
use engine::{Event, Limits, RunState, TaskId, TaskStatus};
use lower::Plan;

#[derive(Debug)]
pub(super) struct Engine<'p> {
    pub plan: &'p Plan,
    pub state: RunState,
    pub facts: Facts,
}

impl<'p> Engine<'p> {
    /// Nothing has happened yet.
    pub fn new(plan: &'p Plan, seed: u64) -> Self {
        Self { plan, state: RunState::new(&plan.dag, seed), facts: Facts::default() }
    }

    /// What expressions look at.
    pub fn view(&self) -> View<'_> {
        View { facts: &self.facts, state: &self.state, dag: &self.plan.dag }
    }

    /// What the engine wants at a time, in milliseconds since the run was opened.
    pub fn next(&mut self, limits: &Limits, now: u64) -> engine::Plan {
        engine::plan(&self.plan.dag, &mut self.state, limits, now)
    }

    pub fn apply(&mut self, event: &Event, now: u64) {
        if let Err(error) = self.state.apply(&self.plan.dag, event, now) {
            // A late or doubled report; the engine's facts stand.
            tracing::debug!(%error, "an event contradicts what is known");
        }
    }

    /// Whether the run has this task by now.
    pub fn has(&self, task: TaskId) -> bool {
        self.status(task).is_some()
    }

    pub fn status(&self, task: TaskId) -> Option<TaskStatus> {
        Some(self.state.task_view(&self.plan.dag, task)?.status)
    }

    pub fn is_failed(&self, task: TaskId) -> bool {
        self.status(task) == Some(TaskStatus::Failed)
    }
}
