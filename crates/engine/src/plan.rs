//! Decides what to do next. Looks only at what something changed for.

use super::action::{Action, FailReason, Plan, RunOutcome, SkipReason, StopReason};
use super::dag::Dag;
use super::state::{Key, Phase, Queued, RunState, Then, Timer, Whole};
use super::types::{Limits, MapSource, StepIx, TaskId};

/// The decisions that follow from the facts so far, and when to ask again if none arrive.
///
/// Deterministic. Without new facts, limits or time a second call returns no actions.
pub fn plan(dag: &Dag, state: &mut RunState, limits: &Limits, now_ms: u64) -> Plan {
    if state.outcome.is_some() {
        return Plan::default();
    }
    state.apply_limits(dag, limits);
    if limits.deadline_ms.is_some_and(|deadline| deadline <= now_ms) {
        state.request_cancel(SkipReason::DeadlineExceeded);
    }
    state.finally_over |= state.finally_deadline(limits).is_some_and(|deadline| deadline <= now_ms);
    if state.cancel.is_some() && !state.cancel_spread {
        state.cancel_spread = true;
        state.mark_all();
    }
    if state.finally_over && !state.finally_spread {
        state.finally_spread = true;
        state.mark_all();
    }
    state.fire_timers(dag, limits, now_ms);
    loop {
        state.record_ends(dag);
        // Ends first, to the last one that follows, so that nothing is submitted because of what has ended by now.
        while state.look_at_changes(dag, limits) {
            state.record_ends(dag);
        }
        if state.resize_maps(dag) {
            state.apply_limits(dag, limits);
            continue;
        }
        if !state.admit_ready(dag, limits) && !state.admit_ahead(dag, limits) {
            break;
        }
    }
    if state.main_open == 0 {
        state.finally_from.get_or_insert(now_ms);
    }
    state.maybe_finish();
    // What must not go on is called back before the runtime hears why: a recorded failure would let it commit what was
    // made from the input that is lost.
    state.actions.sort_by_key(|action| !matches!(action, Action::Withdraw { .. } | Action::Stop { .. }));
    Plan { wake_at: state.build_wake_up(limits), actions: std::mem::take(&mut state.actions) }
}

impl RunState {
    /// Looks once at every step and task that is marked, in their order. Says whether there were any.
    fn look_at_changes(&mut self, dag: &Dag, limits: &Limits) -> bool {
        if limits.fail_fast && self.fatal > 0 && !self.fail_fast_spread {
            self.fail_fast_spread = true;
            self.mark_all();
        }
        let mut steps = std::mem::take(&mut self.dirty_steps);
        let mut tasks = std::mem::take(&mut self.dirty_tasks);
        steps.sort_unstable();
        tasks.sort_unstable();
        for ix in &steps {
            self.steps[*ix as usize].dirty = false;
            self.look_at_step(dag, limits, *ix);
        }
        for key in &tasks {
            self.task_mut(*key).dirty = false;
            self.look_at_task(dag, limits, *key);
        }
        !steps.is_empty() || !tasks.is_empty()
    }

    fn look_at_step(&mut self, dag: &Dag, limits: &Limits, ix: u32) {
        let step = &self.steps[ix as usize];
        if step.ended || step.whole.is_some() {
            return;
        }
        if dag.is_mapped(ix) {
            self.expand(dag, limits, ix);
        }
        if dag.nodes[ix as usize].spec.finally && self.main_open > 0 {
            return;
        }
        if let Some(reason) = self.step_verdict(dag, ix) {
            // Most of what is missing now is missing because the run is cut short.
            let reason = self.halt(dag, ix).unwrap_or(reason);
            if dag.is_mapped(ix) {
                self.skip_whole(dag, ix, reason, false);
            } else {
                self.end_task(dag, Key { step: ix, slot: 0 }, reason);
            }
            return;
        }
        if self.halt(dag, ix).is_some() && !self.steps[ix as usize].tasks.is_empty() {
            return;
        }
        let is_clear = self.is_mapped_over_clear(dag, ix);
        let step = &mut self.steps[ix as usize];
        let is_sized = step.len.is_some() || step.len_problem.is_some();
        if step.open > 0 || !is_clear || !is_sized {
            return;
        }
        if let Some(problem) = step.len_problem.clone() {
            self.fail_whole(dag, ix, problem, false);
        } else if dag.is_per_step(ix) && step.decided != Some(true) {
            if !std::mem::replace(&mut step.asked, true) {
                self.actions.push(Action::Decide { task: TaskId::whole(StepIx(ix)) });
            }
        } else {
            if !std::mem::replace(&mut step.cleared, true) {
                self.mark_mapped_over(dag, ix);
                self.mark_tasks(ix);
            }
            self.maybe_complete_empty(dag, ix);
        }
    }

    /// Whether all steps that this one is mapped over are past what could end them as a whole. None of its items could
    /// have started before, so waiting for that costs nothing, and what becomes of the step does not depend on which
    /// of its inputs came first.
    fn is_mapped_over_clear(&self, dag: &Dag, ix: u32) -> bool {
        dag.nodes[ix as usize].item_sources.iter().all(|up| {
            let up = &self.steps[up.0 as usize];
            up.cleared || up.ended || up.whole.is_some()
        })
    }

    /// Makes the items of a mapped step once their number is known and allowed.
    fn expand(&mut self, dag: &Dag, limits: &Limits, ix: u32) {
        let step = &mut self.steps[ix as usize];
        let Some(len) = step.len else { return };
        if !step.allocated {
            if len > limits.max_items {
                step.len_problem.get_or_insert(FailReason::TooManyItems { len: u64::from(len), max: limits.max_items });
                return;
            }
            // The step counts as one task until it has its own.
            let total = u64::from(self.counts.total) + u64::from(len) - 1;
            if !step.len_recorded && total > u64::from(limits.max_tasks) {
                step.len_problem.get_or_insert(FailReason::TooManyTasks { len, total, max: limits.max_tasks });
                return;
            }
            self.allocate(dag, ix);
        }
        let step = &mut self.steps[ix as usize];
        if !std::mem::replace(&mut step.len_recorded, true) {
            self.actions.push(Action::RecordLength { step: StepIx(ix), len });
        }
    }

    /// A map without items succeeds when what it depends on has ended. No record says so, therefore nothing that may
    /// still be lost will do: a restored run has to come to the same end.
    fn maybe_complete_empty(&mut self, dag: &Dag, ix: u32) {
        if self.is_empty_for_good(dag, ix) {
            self.steps[ix as usize].complete = true;
            self.publish(dag, ix);
            self.maybe_end(dag, ix);
        }
    }

    fn is_empty_for_good(&self, dag: &Dag, ix: u32) -> bool {
        let node = &dag.nodes[ix as usize];
        let step = &self.steps[ix as usize];
        let mut ups = node.gates.iter().map(|gate| &gate.step).chain(&node.item_sources);
        step.allocated && step.tasks.is_empty() && ups.all(|up| self.steps[up.0 as usize].ended)
    }

    /// Why a step as a whole does not run. What is bad shows at once; what is allowed to be missing waits until all
    /// inputs are settled, so that the reason does not depend on which came first.
    fn step_verdict(&self, dag: &Dag, ix: u32) -> Option<SkipReason> {
        let node = &dag.nodes[ix as usize];
        let step = &self.steps[ix as usize];
        if step.decided == Some(false) {
            return Some(SkipReason::WhenFalse);
        }
        if step.bad > 0 {
            return Some(SkipReason::UpstreamFailed);
        }
        let wholes = node.item_sources.iter().filter_map(|up| self.whole_reason(dag, up.0)).max();
        let mut tolerated = wholes;
        match wholes {
            Some(SkipReason::UpstreamFailed) => return wholes,
            _ if step.open > 0 => {}
            _ => {
                let gates = node.gates.iter().filter(|gate| gate.data && step.skips > 0);
                tolerated = tolerated.max(gates.filter_map(|gate| self.skip_reason(dag, gate.step.0)).max());
                tolerated = tolerated.max(self.missing_list(dag, ix));
            }
        }
        if tolerated.is_some() && step.open == 0 && self.is_mapped_over_clear(dag, ix) {
            return tolerated;
        }
        self.halt(dag, ix).filter(|_| dag.is_mapped(ix) && !step.allocated)
    }

    /// What a step that was skipped or failed as a whole means to those mapped over it.
    fn whole_reason(&self, dag: &Dag, ix: u32) -> Option<SkipReason> {
        Some(match self.steps[ix as usize].whole? {
            Whole::Skipped(reason) => inherited(reason),
            Whole::Failed if dag.nodes[ix as usize].spec.continue_on_failure => SkipReason::UpstreamHole,
            Whole::Failed => SkipReason::UpstreamFailed,
        })
    }

    fn skip_reason(&self, dag: &Dag, ix: u32) -> Option<SkipReason> {
        let step = &self.steps[ix as usize];
        match step.tasks.first().map(|task| task.phase) {
            Some(Phase::Skipped(reason)) if !dag.is_mapped(ix) => Some(inherited(reason)),
            _ => self.whole_reason(dag, ix),
        }
    }

    /// A map over the list in an output that will never be there.
    fn missing_list(&self, dag: &Dag, ix: u32) -> Option<SkipReason> {
        let sources = dag.nodes[ix as usize].spec.map.iter().flatten();
        let mut ups = sources.filter_map(|source| match source {
            MapSource::Output { step, .. } => Some(&self.steps[step.0 as usize]),
            _ => None,
        });
        let is_missing = ups.any(|up| up.tasks.first().is_some_and(|task| task.phase == Phase::Failed));
        is_missing.then_some(SkipReason::UpstreamHole)
    }

    /// Why nothing of a step may start any more.
    pub(super) fn halt(&self, dag: &Dag, ix: u32) -> Option<SkipReason> {
        if dag.nodes[ix as usize].spec.finally {
            return self.finally_over.then_some(SkipReason::DeadlineExceeded);
        }
        self.cancel.or(self.fail_fast_spread.then_some(SkipReason::FailFast))
    }

    fn look_at_task(&mut self, dag: &Dag, limits: &Limits, key: Key) {
        let node = &dag.nodes[key.step as usize];
        let step = &self.steps[key.step as usize];
        let task = &step.tasks[key.slot as usize];
        let phase = task.phase;
        if phase.is_final() || (node.spec.finally && self.main_open > 0) {
            return;
        }
        if let Some(whole) = step.whole {
            // It was finished when its step ended without it, and then lost.
            if matches!(phase, Phase::Waiting | Phase::Backoff) {
                self.end_task(dag, key, whole.skip_reason());
            }
            return;
        }
        if let Some(reason) = self.halt(dag, key.step)
            && self.halt_task(dag, key, reason)
        {
            return;
        }
        let step = &self.steps[key.step as usize];
        let task = &step.tasks[key.slot as usize];
        // While the step as a whole may still end otherwise, nothing is said about items that have not been submitted.
        let may_end_alone = phase != Phase::Waiting || !dag.is_mapped(key.step) || step.cleared;
        if let Some(reason) = self.task_verdict(dag, key).filter(|_| may_end_alone) {
            return self.end_task(dag, key, reason);
        }
        let is_settled = step.open == 0 && task.open == 0;
        let has_hole = task.holes > 0 || step.skips > 0;
        match phase {
            Phase::Submitted if !is_settled && (step.limited || has_hole) => {
                // Its input is gone again, and it would hold the place that the input needs. Or one of its inputs will
                // never be there: the runtime must not take that for a hole that this task may see.
                self.actions.push(Action::Withdraw { task: key.id(dag), attempt: task.attempt });
                self.set_phase(dag, key, Phase::Stopping(Then::Requeue), None);
            }
            Phase::Submitted => self.set_ahead(key, !is_settled),
            Phase::Waiting if task.losses > limits.losses => {
                let losses = task.losses;
                self.fail_task(dag, key, FailReason::WorkerLost { losses }, false);
            }
            Phase::Waiting => self.look_at_waiting(dag, key, is_settled),
            _ => {}
        }
    }

    fn look_at_waiting(&mut self, dag: &Dag, key: Key, is_settled: bool) {
        let step = &self.steps[key.step as usize];
        let task = &step.tasks[key.slot as usize];
        if dag.is_per_step(key.step) && step.decided != Some(true) {
            return;
        }
        if dag.is_per_item(key.step) && task.decided != Some(true) {
            if is_settled && !task.asked {
                self.task_mut(key).asked = true;
                self.actions.push(Action::Decide { task: key.id(dag) });
            }
            return;
        }
        if step.bad > 0 {
            // For the step as a whole to say. This one was finished when that was said before, and then lost.
            return self.mark_step(key.step);
        }
        if task.bad > 0 || task.holes > 0 {
            return self.unqueue(key);
        }
        let has_hole = step.skips > 0;
        let can_go_ahead = !dag.nodes[key.step as usize].spec.late && !step.limited && !has_hole;
        if is_settled {
            match step.exceeds.clone() {
                Some(resource) => self.fail_task(dag, key, FailReason::ExceedsLimit { resource }, false),
                None => self.queue(key, Queued::Ready),
            }
        } else if can_go_ahead && step.unlaunched == 0 && task.unlaunched == 0 {
            self.queue(key, Queued::Ahead);
        } else {
            self.unqueue(key);
        }
    }

    /// Why one task does not run, apart from its step as a whole.
    fn task_verdict(&self, dag: &Dag, key: Key) -> Option<SkipReason> {
        let step = &self.steps[key.step as usize];
        let task = &step.tasks[key.slot as usize];
        if task.decided == Some(false) {
            return Some(SkipReason::WhenFalse);
        }
        if task.bad > 0 {
            return Some(SkipReason::UpstreamFailed);
        }
        if task.holes == 0 || task.open > 0 || step.open > 0 {
            return None;
        }
        let ups = dag.nodes[key.step as usize].item_sources.iter();
        ups.filter_map(|up| match self.steps[up.0 as usize].tasks.get(key.slot as usize)?.phase {
            Phase::Skipped(reason) => Some(inherited(reason)),
            Phase::Failed => Some(SkipReason::UpstreamHole),
            _ => None,
        })
        .max()
    }

    /// Ends a task of a run that is being cancelled or failed fast. Says whether nothing else is to be done for it.
    fn halt_task(&mut self, dag: &Dag, key: Key, reason: SkipReason) -> bool {
        let is_fail_fast = reason == SkipReason::FailFast;
        let step = &self.steps[key.step as usize];
        let task = &step.tasks[key.slot as usize];
        match task.phase {
            Phase::Backoff if is_fail_fast => {
                let reason = task.last_class.map_or(FailReason::Recorded, FailReason::Attempt);
                self.fail_task(dag, key, reason, false);
            }
            // It may end as it would, unless its inputs are lost.
            Phase::Finished if step.bad > 0 || self.task_verdict(dag, key).is_some() => {
                self.end_task(dag, key, reason);
            }
            Phase::Finished => {}
            Phase::Started | Phase::Stopping(Then::Timeout) if is_fail_fast => return false,
            _ => self.end_task(dag, key, reason),
        }
        true
    }

    fn fire_timers(&mut self, dag: &Dag, limits: &Limits, now_ms: u64) {
        while let Some((timer, at, key)) = self.timers.first().copied()
            && timer == Timer::Retry
            && at <= now_ms
        {
            self.set_phase(dag, key, Phase::Waiting, None);
        }
        while let Some((at, key)) = self.first_timeout()
            && at.saturating_add(limits.timeout_grace_ms) <= now_ms
        {
            let attempt = self.task(key).attempt;
            self.actions.push(Action::Stop { task: key.id(dag), attempt, why: StopReason::Timeout });
            self.set_phase(dag, key, Phase::Stopping(Then::Timeout), None);
        }
    }

    fn first_timeout(&self) -> Option<(u64, Key)> {
        let from = (Timer::Timeout, 0, Key { step: 0, slot: 0 });
        self.timers.range(from..).next().map(|(_, at, key)| (*at, *key))
    }

    fn build_wake_up(&self, limits: &Limits) -> Option<u64> {
        let retry = self.timers.first().filter(|(timer, _, _)| *timer == Timer::Retry).map(|(_, at, _)| *at);
        let timeout = self.first_timeout().map(|(at, _)| at.saturating_add(limits.timeout_grace_ms));
        let deadline = limits.deadline_ms.filter(|_| self.cancel.is_none() && self.main_open > 0);
        let finally = self.finally_deadline(limits).filter(|_| !self.finally_over);
        [retry, timeout, deadline, finally].into_iter().flatten().min()
    }

    fn finally_deadline(&self, limits: &Limits) -> Option<u64> {
        Some(self.finally_from?.saturating_add(limits.finally_ms?))
    }

    fn maybe_finish(&mut self) {
        if self.all_open > 0 {
            return;
        }
        // A cancellation that came too late to keep anything from ending by itself did not happen: a restored run, which
        // knows only what was recorded, must end the same.
        let outcome = match self.cancel.filter(|_| self.cut_short) {
            Some(SkipReason::DeadlineExceeded) => RunOutcome::DeadlineExceeded,
            Some(_) => RunOutcome::Cancelled,
            None if self.finally_cut => RunOutcome::FinallyDeadlineExceeded,
            None if self.fatal > 0 => RunOutcome::Failed,
            None => RunOutcome::Succeeded,
        };
        self.outcome = Some(outcome);
        self.actions.push(Action::Finish(outcome));
    }
}

/// The reason of a task that is skipped because an input was skipped for `reason`.
fn inherited(reason: SkipReason) -> SkipReason {
    match reason {
        SkipReason::WhenFalse | SkipReason::UpstreamSkipped | SkipReason::NotSelected => SkipReason::UpstreamSkipped,
        SkipReason::UpstreamHole => SkipReason::UpstreamHole,
        SkipReason::UpstreamFailed | SkipReason::FailFast | SkipReason::Cancelled | SkipReason::DeadlineExceeded => {
            SkipReason::UpstreamFailed
        }
    }
}
