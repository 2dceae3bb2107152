//! Carries the change of one task to the counts of its step, of its dependents and of the run. Never decides anything:
//! it only marks what has to be looked at.

use super::counts::Counts;
use super::dag::Dag;
use super::state::{Key, Phase, RunState, Signal, Timer, Whole};
use super::types::StepIx;

impl RunState {
    /// Moves a task to another phase. `due`: when the new phase ends by itself.
    pub(super) fn set_phase(&mut self, dag: &Dag, key: Key, phase: Phase, due: Option<u64>) {
        self.unqueue(key);
        let node = &dag.nodes[key.step as usize];
        let tolerant = node.spec.continue_on_failure;
        let step = &mut self.steps[key.step as usize];
        let task = &mut step.tasks[key.slot as usize];
        let (old, old_due) = (task.phase, task.due);
        let was_ahead = task.ahead;
        task.phase = phase;
        task.due = due;
        if phase != Phase::Submitted {
            task.ahead = false;
        }
        let is_ahead = task.ahead;
        let cached = task.cached;

        if let Some((at, timer)) = old_due.zip(timer_of(old)) {
            self.timers.remove(&(timer, at, key));
        }
        if let Some((at, timer)) = due.zip(timer_of(phase)) {
            self.timers.insert((timer, at, key));
        }
        self.counts.shift(old, phase, cached);
        let admission = &mut self.admission;
        admission.outstanding_ahead = admission.outstanding_ahead + u32::from(is_ahead) - u32::from(was_ahead);
        match (old.is_outstanding(), phase.is_outstanding()) {
            (false, true) => self.take(key.step),
            (true, false) => self.release(key.step),
            _ => {}
        }

        let (before, after) = (old.signal(tolerant), phase.signal(tolerant));
        let step = &mut self.steps[key.step as usize];
        shift(&mut step.live_tasks, !old.is_final(), !phase.is_final());
        shift(&mut step.unsettled_tasks, !before.settled, !after.settled);
        shift(&mut step.unlaunched_tasks, !before.launched, !after.launched);
        shift(&mut step.bad_tasks, before.bad, after.bad);
        self.mark_task(key);
        if before != after {
            for dependent in &node.item_dependents {
                self.signal_item(Key { step: dependent.0, slot: key.slot }, before, after);
            }
            self.publish(dag, key.step);
        }
        self.maybe_end(dag, key.step);
    }

    fn signal_item(&mut self, key: Key, before: Signal, after: Signal) {
        let Some(task) = self.steps[key.step as usize].tasks.get_mut(key.slot as usize) else { return };
        let was = (task.open == 0, task.unlaunched == 0, task.bad, task.holes);
        shift(&mut task.open, !before.settled, !after.settled);
        shift(&mut task.unlaunched, !before.launched, !after.launched);
        shift(&mut task.bad, before.bad, after.bad);
        shift(&mut task.holes, before.hole, after.hole);
        if was != (task.open == 0, task.unlaunched == 0, task.bad, task.holes) {
            self.mark_task(key);
        }
    }

    /// Tells the steps behind this one what it means to them now.
    pub(super) fn publish(&mut self, dag: &Dag, ix: u32) {
        let before = self.steps[ix as usize].published;
        let after = self.build_signal(dag, ix);
        if before == after {
            return;
        }
        self.steps[ix as usize].published = after;
        for dependent in &dag.nodes[ix as usize].dependents {
            let gates = &dag.node(*dependent).gates;
            let data = gates.binary_search_by_key(&StepIx(ix), |gate| gate.step).is_ok_and(|at| gates[at].data);
            let step = &mut self.steps[dependent.0 as usize];
            let was = (step.open == 0, step.unlaunched == 0, step.bad > 0, step.skips > 0);
            shift(&mut step.open, !before.settled, !after.settled);
            shift(&mut step.unlaunched, !before.launched, !after.launched);
            shift(&mut step.bad, before.bad, after.bad);
            shift(&mut step.skips, before.hole && data, after.hole && data);
            if was != (step.open == 0, step.unlaunched == 0, step.bad > 0, step.skips > 0) {
                self.mark_step(dependent.0);
                self.mark_tasks(dependent.0);
            }
        }
    }

    /// What the step as a whole means. A hole here is a step that was skipped: one that failed and may, or a list with
    /// holes in it, is there.
    fn build_signal(&self, dag: &Dag, ix: u32) -> Signal {
        let step = &self.steps[ix as usize];
        let spec = &dag.nodes[ix as usize].spec;
        if let Some(whole) = step.whole {
            let tolerated = match whole {
                Whole::Skipped(reason) => reason.is_tolerated(),
                Whole::Failed => spec.continue_on_failure,
            };
            return Signal { launched: true, settled: true, bad: !tolerated, hole: tolerated };
        }
        let there = step.allocated && (!step.tasks.is_empty() || step.complete);
        let skipped = spec.map.is_none()
            && step.tasks.first().is_some_and(|task| match task.phase {
                Phase::Skipped(reason) => reason.is_tolerated(),
                _ => false,
            });
        Signal {
            launched: there && step.unlaunched_tasks == 0,
            settled: there && step.unsettled_tasks == 0,
            bad: step.bad_tasks > 0,
            hole: skipped,
        }
    }

    /// Notes the end of a step, which may fix lengths and release the `finally` steps.
    pub(super) fn maybe_end(&mut self, dag: &Dag, ix: u32) {
        let step = &mut self.steps[ix as usize];
        let verdict = step.whole.is_some() || step.complete || (step.allocated && !step.tasks.is_empty());
        if step.ended || !verdict || step.live_tasks > 0 {
            return;
        }
        step.ended = true;
        self.all_open -= 1;
        let node = &dag.nodes[ix as usize];
        if !node.spec.finally {
            self.main_open -= 1;
            if self.main_open == 0 {
                self.mark_all();
            }
        }
        self.mark_mapped_over(dag, ix);
        for dependent in &node.dependents {
            // A map without items waits for the very end of its inputs.
            if self.steps[dependent.0 as usize].tasks.is_empty() {
                self.mark_step(dependent.0);
            }
        }
        if !node.length_dependents.is_empty() {
            self.resolve_lengths(dag, node.length_dependents.iter().map(|dependent| dependent.0).collect());
        }
    }

    /// Lengths and ends as a whole concern those mapped over the step.
    pub(super) fn mark_mapped_over(&mut self, dag: &Dag, ix: u32) {
        for dependent in &dag.nodes[ix as usize].length_dependents {
            self.mark_step(dependent.0);
        }
    }

    /// Gives a mapped step a verdict as a whole. The caller ends its tasks.
    pub(super) fn set_whole(&mut self, dag: &Dag, ix: u32, whole: Whole) {
        let step = &mut self.steps[ix as usize];
        step.whole = Some(whole);
        if !step.allocated {
            self.counts.shift(Phase::Waiting, whole.phase(), false);
        }
        self.publish(dag, ix);
        self.mark_mapped_over(dag, ix);
        self.maybe_end(dag, ix);
    }
}

fn timer_of(phase: Phase) -> Option<Timer> {
    match phase {
        Phase::Backoff => Some(Timer::Retry),
        Phase::Started => Some(Timer::Timeout),
        _ => None,
    }
}

fn shift(count: &mut u32, before: bool, after: bool) {
    *count = *count + u32::from(after) - u32::from(before);
}

impl Counts {
    fn shift(&mut self, from: Phase, to: Phase, cached: bool) {
        *self.field(from) -= 1;
        *self.field(to) += 1;
        if to == Phase::Committed && cached {
            self.cached += 1;
        }
    }

    pub(super) fn field(&mut self, phase: Phase) -> &mut u32 {
        use super::action::SkipReason::{Cancelled, DeadlineExceeded};
        match phase {
            Phase::Waiting | Phase::Backoff => &mut self.waiting,
            Phase::Submitted => &mut self.submitted,
            Phase::Started | Phase::Finished | Phase::Stopping(_) => &mut self.running,
            Phase::Committed => &mut self.done,
            Phase::Failed => &mut self.failed,
            Phase::Skipped(Cancelled | DeadlineExceeded) => &mut self.cancelled,
            Phase::Skipped(_) => &mut self.skipped,
        }
    }
}
