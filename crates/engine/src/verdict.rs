//! Ends tasks and steps that will not run, and notes what the journal has to be told.

use super::action::{Action, FailReason, SkipReason, StopReason};
use super::dag::Dag;
use super::state::{Key, Phase, RunState, Then, Whole};
use super::types::{StepIx, TaskId};

impl RunState {
    /// A task that has no attempt in the runtime fails for good.
    pub(super) fn fail_task(&mut self, dag: &Dag, key: Key, reason: FailReason, recorded: bool) {
        self.task_mut(key).recorded = recorded;
        self.note_failure(dag, key.id(dag), reason, recorded);
        self.set_phase(dag, key, Phase::Failed, None);
    }

    /// A mapped step fails as a whole, with its items.
    pub(super) fn fail_whole(&mut self, dag: &Dag, ix: u32, reason: FailReason, recorded: bool) {
        self.steps[ix as usize].whole_recorded = recorded;
        self.note_failure(dag, TaskId::whole(StepIx(ix)), reason, recorded);
        self.set_whole(dag, ix, Whole::Failed);
        for slot in 0..self.steps[ix as usize].tasks.len() as u32 {
            let key = Key { step: ix, slot };
            match self.task(key).phase {
                Phase::Waiting | Phase::Backoff => {
                    self.task_mut(key).recorded = true;
                    self.set_phase(dag, key, Phase::Failed, None);
                }
                _ => self.end_task(dag, key, SkipReason::UpstreamFailed),
            }
        }
    }

    pub(super) fn note_failure(&mut self, dag: &Dag, id: TaskId, reason: FailReason, recorded: bool) {
        self.failures.insert(id, reason);
        if !dag.node(id.step).spec.continue_on_failure {
            self.fatal += 1;
        }
        if !recorded {
            self.unrecorded.push(id);
        }
    }

    /// A task that has no attempt in the runtime never runs. Items of a step that was ended as a whole have no record
    /// of their own.
    pub(super) fn skip_task(&mut self, dag: &Dag, key: Key, reason: SkipReason, recorded: bool) {
        let recorded = recorded || self.steps[key.step as usize].whole.is_some();
        self.note_cut(dag, key.step, reason);
        self.task_mut(key).recorded = recorded;
        if !recorded {
            self.unrecorded.push(key.id(dag));
        }
        self.set_phase(dag, key, Phase::Skipped(reason), None);
    }

    pub(super) fn note_cut(&mut self, dag: &Dag, ix: u32, reason: SkipReason) {
        let cut = if dag.nodes[ix as usize].spec.finally { &mut self.finally_cut } else { &mut self.cut_short };
        *cut |= reason.is_cancellation();
    }

    /// A mapped step never runs, or not any further.
    pub(super) fn skip_whole(&mut self, dag: &Dag, ix: u32, reason: SkipReason, recorded: bool) {
        self.steps[ix as usize].whole_recorded = recorded;
        self.note_cut(dag, ix, reason);
        if !recorded {
            self.unrecorded.push(TaskId::whole(StepIx(ix)));
        }
        self.set_whole(dag, ix, Whole::Skipped(reason));
        for slot in 0..self.steps[ix as usize].tasks.len() as u32 {
            self.end_task(dag, Key { step: ix, slot }, reason);
        }
    }

    /// Skips a task wherever it is; what the runtime has of it is called back first.
    pub(super) fn end_task(&mut self, dag: &Dag, key: Key, reason: SkipReason) {
        let (id, attempt) = (key.id(dag), self.task(key).attempt);
        match self.task(key).phase {
            Phase::Committed | Phase::Failed | Phase::Skipped(_) => {}
            // A cancellation is the last word, as it will be for whoever restores the run before the stop is answered.
            Phase::Stopping(Then::Skip(earlier)) if reason.is_cancellation() && !earlier.is_cancellation() => {
                self.set_phase(dag, key, Phase::Stopping(Then::Skip(reason)), None);
            }
            Phase::Stopping(Then::Skip(_)) => {}
            Phase::Waiting | Phase::Backoff => self.skip_task(dag, key, reason, false),
            Phase::Submitted => {
                self.actions.push(Action::Withdraw { task: id, attempt });
                self.set_phase(dag, key, Phase::Stopping(Then::Skip(reason)), None);
            }
            Phase::Started => {
                self.actions.push(Action::Stop { task: id, attempt, why: stop_reason(reason) });
                self.set_phase(dag, key, Phase::Stopping(Then::Skip(reason)), None);
            }
            // Nothing runs any more, so there is nothing to wait for: without its inputs it is not committed. One that
            // has all data that it needs may be committed by now, and then that counts.
            Phase::Finished if self.is_missing_data(dag, key) => {
                self.actions.push(Action::Withdraw { task: id, attempt });
                self.skip_task(dag, key, reason, false);
            }
            Phase::Finished => {}
            Phase::Stopping(Then::Timeout | Then::Requeue) => {
                self.set_phase(dag, key, Phase::Stopping(Then::Skip(reason)), None);
            }
        }
    }

    /// Whether an input of the task, other than one it only comes after, will never be there.
    fn is_missing_data(&self, dag: &Dag, key: Key) -> bool {
        let node = &dag.nodes[key.step as usize];
        let task = self.task(key);
        let mut data = node.gates.iter().filter(|gate| gate.data);
        task.bad > 0
            || task.holes > 0
            || data.any(|gate| {
                let published = self.steps[gate.step.0 as usize].published;
                published.bad || published.hole
            })
    }

    /// Turns ends that are not in the journal into actions.
    pub(super) fn record_ends(&mut self, dag: &Dag) {
        for (task, attempt) in std::mem::take(&mut self.orphans) {
            self.actions.push(Action::Withdraw { task, attempt });
        }
        for id in std::mem::take(&mut self.unrecorded) {
            let phase = match self.key_of(dag, id) {
                Some(key) => {
                    let task = self.task_mut(key);
                    (!std::mem::replace(&mut task.recorded, true)).then_some(task.phase)
                }
                None => {
                    let step = &mut self.steps[id.step.0 as usize];
                    let whole = step.whole.map(Whole::phase);
                    whole.filter(|_| !std::mem::replace(&mut step.whole_recorded, true))
                }
            };
            match phase {
                Some(Phase::Skipped(reason)) => self.actions.push(Action::RecordSkipped { task: id, reason }),
                Some(Phase::Failed) => {
                    let reason = self.failures.get(&id).cloned().unwrap_or(FailReason::Recorded);
                    self.actions.push(Action::RecordFailed { task: id, reason });
                }
                _ => {}
            }
        }
    }
}

fn stop_reason(reason: SkipReason) -> StopReason {
    match reason {
        SkipReason::Cancelled => StopReason::Cancelled,
        SkipReason::DeadlineExceeded => StopReason::DeadlineExceeded,
        SkipReason::WhenFalse
        | SkipReason::UpstreamSkipped
        | SkipReason::UpstreamHole
        | SkipReason::NotSelected
        | SkipReason::UpstreamFailed
        | SkipReason::FailFast => StopReason::UpstreamFailed,
    }
}
