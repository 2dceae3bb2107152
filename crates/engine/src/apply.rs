//! Takes facts in. Every event leaves the state consistent, in whatever order events come.

use super::action::{FailReason, SkipReason};
use super::dag::Dag;
use super::event::{Event, TransitionError};
use super::retry::{backoff_ms, may_retry};
use super::state::{Key, MAX_ITEMS, Phase, RunState, Then, Whole};
use super::transition::{Effect, Fact, Relation, transition};
use super::types::{Attempt, FailureClass, StepIx, TaskId};

impl RunState {
    /// Takes in one fact. A repeated fact changes nothing; one that cannot be is an error and changes nothing either.
    pub fn apply(&mut self, dag: &Dag, event: &Event, now_ms: u64) -> Result<(), TransitionError> {
        let name = event.name();
        match event {
            Event::Submitted { task, attempt } => {
                self.apply_fact(dag, name, *task, *attempt, Fact::Submitted, None, now_ms)
            }
            Event::Started { task, attempt } => {
                self.apply_fact(dag, name, *task, *attempt, Fact::Started, None, now_ms)
            }
            // The lengths count once they are committed.
            Event::Finished { task, attempt, lens: _ } => {
                self.apply_fact(dag, name, *task, *attempt, Fact::Finished, None, now_ms)
            }
            Event::Lost { task, attempt } => self.apply_fact(dag, name, *task, *attempt, Fact::Lost, None, now_ms),
            Event::Stopped { task, attempt } => {
                self.apply_fact(dag, name, *task, *attempt, Fact::Stopped, None, now_ms)
            }
            Event::Failed { task, attempt, class } => {
                self.apply_fact(dag, name, *task, *attempt, Fact::Failed, Some(*class), now_ms)
            }
            Event::AttemptFailed { task, attempt, class } => {
                let key = self.find(dag, name, *task)?;
                if self.task(key).phase.is_final() {
                    return Ok(());
                }
                self.apply_fact(dag, name, *task, *attempt, Fact::Failed, Some(*class), now_ms)
            }
            Event::InputLost { task, attempt, inputs } => {
                self.apply_input_lost(dag, name, *task, *attempt, inputs, now_ms)
            }
            Event::Changed { task } => self.apply_changed(dag, name, *task),
            Event::Invalidated { task, attempt, lost } => self.apply_invalidated(dag, name, *task, *attempt, *lost),
            Event::Committed { task, lens } => self.apply_commit(dag, name, *task, lens, false),
            Event::Cached { task, lens } => self.apply_commit(dag, name, *task, lens, true),
            Event::Decided { task, run } => self.apply_decision(dag, name, *task, *run),
            Event::Refused { task, reason } => {
                self.apply_failure(dag, name, *task, FailReason::Refused(reason.clone()), false)
            }
            Event::FailedFinal { task } => self.apply_failure(dag, name, *task, FailReason::Recorded, true),
            Event::Skipped { task, reason } => self.apply_skip(dag, name, *task, *reason),
            Event::MapLength { step, len } => self.apply_length(dag, *step, *len),
            Event::RuntimeLost => {
                self.apply_runtime_lost(dag);
                Ok(())
            }
            Event::CancelRequested => {
                self.request_cancel(SkipReason::Cancelled);
                Ok(())
            }
        }
    }

    /// Nothing of the main part starts any more. Without effect once that part has ended: the `finally` steps run on.
    pub(super) fn request_cancel(&mut self, reason: SkipReason) {
        if self.cancel.is_none() && self.main_open > 0 {
            self.cancel = Some(reason);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one row of the table of facts")]
    pub(super) fn apply_fact(
        &mut self,
        dag: &Dag,
        event: &'static str,
        id: TaskId,
        attempt: Attempt,
        fact: Fact,
        class: Option<FailureClass>,
        now_ms: u64,
    ) -> Result<(), TransitionError> {
        let key = self.find(dag, event, id)?;
        if attempt == 0 {
            return Err(TransitionError::NoAttempt { event, task: id });
        }
        let task = self.task_mut(key);
        let relation = match attempt.cmp(&task.attempt) {
            std::cmp::Ordering::Less => Relation::Older,
            std::cmp::Ordering::Equal => Relation::Same,
            std::cmp::Ordering::Greater => Relation::Newer,
        };
        let phase = task.phase;
        let effect = transition(phase, fact, relation);
        if relation == Relation::Newer && !phase.is_final() {
            task.attempt = attempt;
            if matches!(effect, Effect::Submit | Effect::Start | Effect::Finish) {
                self.adopt_decision(dag, key);
            }
        }
        match effect {
            Effect::Ignore => {}
            Effect::Number => self.set_phase(dag, key, Phase::Waiting, None),
            Effect::Contradict => {
                return Err(TransitionError::Contradiction { event, task: id, state: phase.name() });
            }
            Effect::Submit => self.set_phase(dag, key, Phase::Submitted, None),
            Effect::Start => {
                let due = dag.nodes[key.step as usize].spec.timeout_ms.map(|timeout| now_ms.saturating_add(timeout));
                self.set_phase(dag, key, Phase::Started, due);
            }
            Effect::Finish => self.set_phase(dag, key, Phase::Finished, None),
            Effect::FailAttempt => self.charge_failure(dag, key, class.unwrap_or(FailureClass::Infra), now_ms),
            Effect::Lose => self.charge_loss(dag, key),
            Effect::EndStop(then) => self.end_stop(dag, key, then, now_ms),
        }
        Ok(())
    }

    /// An attempt in the runtime that we did not submit shows that its condition was true.
    fn adopt_decision(&mut self, dag: &Dag, key: Key) {
        if dag.is_per_step(key.step) {
            let step = &mut self.steps[key.step as usize];
            step.decided.get_or_insert(true);
            step.asked = true;
        } else if dag.is_per_item(key.step) {
            let task = self.task_mut(key);
            task.decided.get_or_insert(true);
            task.asked = true;
        }
    }

    pub(super) fn charge_failure(&mut self, dag: &Dag, key: Key, class: FailureClass, now_ms: u64) {
        match class {
            FailureClass::Preempted => return self.charge_loss(dag, key),
            FailureClass::Input => return self.set_phase(dag, key, Phase::Waiting, None),
            _ => {}
        }
        let policy = &dag.nodes[key.step as usize].spec.retry;
        let seed = self.seed;
        let task = self.task_mut(key);
        task.last_class = Some(class);
        if task.attempt < Attempt::MAX && may_retry(policy, task.retries, class) {
            task.retries += 1;
            let delay = backoff_ms(policy, seed, key, task.attempt, task.retries);
            self.set_phase(dag, key, Phase::Backoff, Some(now_ms.saturating_add(delay)));
        } else {
            self.fail_task(dag, key, FailReason::Attempt(class), false);
        }
    }

    /// Whether the budget is exceeded depends on the limits, so that is for the plan to see.
    fn charge_loss(&mut self, dag: &Dag, key: Key) {
        let task = self.task_mut(key);
        task.losses = task.losses.saturating_add(1);
        self.set_phase(dag, key, Phase::Waiting, None);
    }

    fn end_stop(&mut self, dag: &Dag, key: Key, then: Then, now_ms: u64) {
        match then {
            Then::Skip(reason) => self.skip_task(dag, key, reason, false),
            Then::Timeout => self.charge_failure(dag, key, FailureClass::Timeout, now_ms),
            Then::Requeue => self.set_phase(dag, key, Phase::Waiting, None),
        }
    }

    pub(super) fn apply_commit(
        &mut self,
        dag: &Dag,
        event: &'static str,
        id: TaskId,
        lens: &[u32],
        cached: bool,
    ) -> Result<(), TransitionError> {
        let key = self.find(dag, event, id)?;
        let phase = self.task(key).phase;
        match phase {
            Phase::Committed => return Ok(()),
            Phase::Failed | Phase::Skipped(_) => {
                return Err(TransitionError::Contradiction { event, task: id, state: phase.name() });
            }
            Phase::Waiting
            | Phase::Backoff
            | Phase::Submitted
            | Phase::Started
            | Phase::Finished
            | Phase::Stopping(_) => {}
        }
        let wanted = dag.nodes[key.step as usize].lens_wanted.min(lens.len());
        if wanted > 0 {
            self.steps[key.step as usize].lens.insert(key.slot, lens[..wanted].to_vec());
        }
        let task = self.task_mut(key);
        task.cached = cached;
        task.recorded = true;
        self.set_phase(dag, key, Phase::Committed, None);
        Ok(())
    }

    fn apply_decision(&mut self, dag: &Dag, event: &'static str, id: TaskId, run: bool) -> Result<(), TransitionError> {
        let ix = id.step.0;
        if self.steps.get(ix as usize).is_none() {
            return Err(TransitionError::UnknownStep { event, step: id.step });
        }
        let contradiction =
            TransitionError::Contradiction { event, task: id, state: if run { "not to run" } else { "to run" } };
        if id.item.is_none() && dag.is_per_step(ix) {
            let step = &mut self.steps[ix as usize];
            if *step.decided.get_or_insert(run) != run {
                return if step.ended { Ok(()) } else { Err(contradiction) };
            }
            step.asked = true;
            self.mark_step(ix);
            self.mark_tasks(ix);
            return Ok(());
        }
        if !dag.is_per_item(ix) || id.item.is_none() {
            return Err(TransitionError::NotConditional { event, task: id });
        }
        let key = self.find(dag, event, id)?;
        let task = self.task_mut(key);
        if *task.decided.get_or_insert(run) != run {
            return if task.phase.is_final() { Ok(()) } else { Err(contradiction) };
        }
        task.asked = true;
        self.mark_task(key);
        Ok(())
    }

    fn apply_failure(
        &mut self,
        dag: &Dag,
        event: &'static str,
        id: TaskId,
        reason: FailReason,
        recorded: bool,
    ) -> Result<(), TransitionError> {
        if let Some(ix) = self.find_whole(dag, event, id)? {
            match self.steps[ix as usize].whole {
                Some(Whole::Failed) if recorded => self.steps[ix as usize].whole_recorded = true,
                Some(_) => {}
                // An answer that comes after its items were cancelled.
                None if self.steps[ix as usize].tasks.iter().any(|task| matches!(task.phase, Phase::Skipped(_))) => {}
                None if self.steps[ix as usize].ended => {
                    return Err(TransitionError::Contradiction { event, task: id, state: "ended" });
                }
                None => self.fail_whole(dag, ix, reason, recorded),
            }
            return Ok(());
        }
        let key = self.find(dag, event, id)?;
        let task = self.task_mut(key);
        match task.phase {
            Phase::Failed => task.recorded |= recorded,
            Phase::Skipped(_) => {}
            Phase::Committed => {
                return Err(TransitionError::Contradiction { event, task: id, state: Phase::Committed.name() });
            }
            Phase::Waiting
            | Phase::Backoff
            | Phase::Submitted
            | Phase::Started
            | Phase::Finished
            | Phase::Stopping(_) => {
                let reason = match task.last_class {
                    Some(class) if recorded => FailReason::Attempt(class),
                    _ => reason,
                };
                self.drop_attempt(dag, key);
                self.fail_task(dag, key, reason, recorded);
            }
        }
        Ok(())
    }

    fn apply_skip(
        &mut self,
        dag: &Dag,
        event: &'static str,
        id: TaskId,
        reason: SkipReason,
    ) -> Result<(), TransitionError> {
        let whole = self.find_whole(dag, event, id)?;
        let step = &self.steps[id.step.0 as usize];
        let state = match whole {
            Some(_) => step.whole.map(Whole::phase).or((step.ended).then_some(Phase::Committed)),
            None => {
                let key = self.find(dag, event, id)?;
                Some(self.task(key).phase).filter(|phase| phase.is_final())
            }
        };
        match state {
            None => {}
            Some(Phase::Skipped(_)) => return Ok(()),
            Some(other) => return Err(TransitionError::Contradiction { event, task: id, state: other.name() }),
        }
        // A recorded cancellation goes on after a restart, whether or not it is asked for again.
        if reason.is_cancellation() {
            match dag.nodes[id.step.0 as usize].spec.finally {
                true => self.finally_over = true,
                false => self.request_cancel(reason),
            }
        }
        match whole {
            Some(ix) => self.skip_whole(dag, ix, reason, true),
            None => {
                let key = self.find(dag, event, id)?;
                self.drop_attempt(dag, key);
                self.skip_task(dag, key, reason, true);
            }
        }
        Ok(())
    }

    fn apply_length(&mut self, dag: &Dag, ix: StepIx, len: u32) -> Result<(), TransitionError> {
        let event = "map-length";
        let Some(step) = self.steps.get_mut(ix.0 as usize) else {
            return Err(TransitionError::UnknownStep { event, step: ix });
        };
        if !dag.is_mapped(ix.0) {
            return Err(TransitionError::UnknownTask { event, task: TaskId::whole(ix) });
        }
        match step.len {
            Some(known) if known != len => Err(TransitionError::LengthContradicts { step: ix, known, got: len }),
            Some(_) => {
                step.len_recorded = true;
                Ok(())
            }
            None if len > MAX_ITEMS => Err(TransitionError::TooManyItems { step: ix, len }),
            None => {
                step.len = Some(len);
                step.len_recorded = true;
                self.mark_step(ix.0);
                let dependents = dag.node(ix).length_dependents.iter().map(|dependent| dependent.0).collect();
                self.resolve_lengths(dag, dependents);
                Ok(())
            }
        }
    }

    /// What was not committed is gone, through nobody's fault. So are the answers to conditions: they may have been
    /// about outputs that are gone.
    fn apply_runtime_lost(&mut self, dag: &Dag) {
        self.orphans.clear();
        for step in 0..self.steps.len() as u32 {
            if self.steps[step as usize].ended {
                continue;
            }
            let known = &mut self.steps[step as usize];
            (known.asked, known.decided, known.cleared) = (false, None, false);
            for slot in 0..self.steps[step as usize].tasks.len() as u32 {
                let key = Key { step, slot };
                let task = self.task_mut(key);
                (task.asked, task.decided) = (false, None);
                match task.phase {
                    Phase::Submitted
                    | Phase::Started
                    | Phase::Finished
                    | Phase::Stopping(Then::Timeout | Then::Requeue) => {
                        self.set_phase(dag, key, Phase::Waiting, None);
                    }
                    Phase::Stopping(Then::Skip(reason)) => self.skip_task(dag, key, reason, false),
                    Phase::Waiting | Phase::Backoff | Phase::Committed | Phase::Failed | Phase::Skipped(_) => {}
                }
            }
        }
        self.mark_all();
    }

    /// Makes sure that the runtime forgets an attempt of a task that ends without it.
    fn drop_attempt(&mut self, dag: &Dag, key: Key) {
        let task = self.task(key);
        if matches!(task.phase, Phase::Submitted | Phase::Started | Phase::Finished) {
            let attempt = task.attempt;
            self.orphans.push((key.id(dag), attempt));
        }
    }

    /// The mapped step that an id without item stands for.
    fn find_whole(&mut self, dag: &Dag, event: &'static str, id: TaskId) -> Result<Option<u32>, TransitionError> {
        if self.steps.get(id.step.0 as usize).is_none() {
            return Err(TransitionError::UnknownStep { event, step: id.step });
        }
        if id.item.is_some() || !dag.is_mapped(id.step.0) {
            return Ok(None);
        }
        self.maybe_allocate(dag, id.step.0);
        Ok(Some(id.step.0))
    }

    pub(super) fn find(&mut self, dag: &Dag, event: &'static str, id: TaskId) -> Result<Key, TransitionError> {
        if self.steps.get(id.step.0 as usize).is_none() {
            return Err(TransitionError::UnknownStep { event, step: id.step });
        }
        self.maybe_allocate(dag, id.step.0);
        self.key_of(dag, id).ok_or(TransitionError::UnknownTask { event, task: id })
    }

    fn maybe_allocate(&mut self, dag: &Dag, ix: u32) {
        let step = &self.steps[ix as usize];
        if !step.allocated && step.whole.is_none() && step.len.is_some_and(|len| len <= MAX_ITEMS) {
            self.allocate(dag, ix);
        }
    }
}
