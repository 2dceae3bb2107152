//! What becomes of a run when a committed output is lost: what runs again, and how the state goes back for that.
//!
//! The counts of a state follow from its facts one change at a time, and nothing there leaves a final phase. So a state that
//! has to forget what was committed is made anew from the facts that stay. That costs what there is; it is rare.

use std::collections::{BTreeMap, BTreeSet};

use super::action::{Action, FailReason, Invalid, NoRerun, StopReason};
use super::dag::Dag;
use super::event::TransitionError;
use super::state::{Key, Phase, RunState, Step, Then, Whole};
use super::transition::Fact;
use super::types::{Attempt, Dep, FailureClass, MapSource, OnLost, StepIx, TaskId};

/// What counts no more, and why.
#[derive(Debug, Default)]
struct Gone {
    tasks: BTreeMap<Key, Invalid>,
    /// Mapped steps whose length is to be found anew; none of their tasks stays.
    steps: BTreeMap<u32, Invalid>,
}

impl RunState {
    /// An attempt could not read its inputs. Says what follows: they are made again, or the reader fails.
    #[expect(clippy::too_many_arguments, reason = "one row of the table of facts")]
    pub(super) fn apply_input_lost(
        &mut self,
        dag: &Dag,
        event: &'static str,
        id: TaskId,
        attempt: Attempt,
        inputs: &[TaskId],
        now_ms: u64,
    ) -> Result<(), TransitionError> {
        let key = self.find(dag, event, id)?;
        let before = (self.task(key).phase, self.task(key).attempt);
        self.apply_fact(dag, event, id, attempt, Fact::Failed, Some(FailureClass::Input), now_ms)?;
        let after = (self.task(key).phase, self.task(key).attempt);
        if before == after || after.0 != Phase::Waiting {
            return Ok(());
        }
        let mut gone = Gone::default();
        for input in inputs {
            let Some(up) = self.key_of(dag, *input).filter(|up| self.reads(dag, key, *up)) else {
                // It cannot have read that.
                self.charge_failure(dag, key, FailureClass::Infra, now_ms);
                return Ok(());
            };
            if self.task(up).phase != Phase::Committed {
                continue;
            }
            match self.refusal(dag, up, *input) {
                // Nor does the reader start any more.
                Some(NoRerun::Ending) if self.halt(dag, key.step).is_some() => return Ok(()),
                Some(why) => {
                    self.fail_task(dag, key, FailReason::OutputLost { why }, false);
                    return Ok(());
                }
                None => {
                    gone.tasks.insert(up, Invalid::Lost { reader: id });
                }
            }
        }
        if !gone.tasks.is_empty() {
            self.lost_once.extend(gone.tasks.keys().map(|key| key.id(dag)));
            self.forget(dag, &gone);
        }
        Ok(())
    }

    fn refusal(&self, dag: &Dag, up: Key, id: TaskId) -> Option<NoRerun> {
        match dag.nodes[up.step as usize].spec.on_lost {
            OnLost::Fail => Some(NoRerun::Policy),
            OnLost::Elsewhere => Some(NoRerun::Elsewhere),
            OnLost::Rerun if self.lost_once.contains(&id) => Some(NoRerun::Again),
            OnLost::Rerun => self.halt(dag, up.step).map(|_| NoRerun::Ending),
        }
    }

    /// What has been committed by readers of the task counts no more. Those that have finished did so on its new output:
    /// what had finished before it was run again is committed by now.
    pub(super) fn apply_changed(&mut self, dag: &Dag, event: &'static str, id: TaskId) -> Result<(), TransitionError> {
        let key = self.find(dag, event, id)?;
        self.changed.insert(key.step);
        let why = Invalid::InputChanged { input: id };
        let readers = self.readers(dag, key).into_iter();
        let tasks: BTreeMap<Key, Invalid> =
            readers.filter(|reader| self.task(*reader).phase == Phase::Committed).map(|reader| (reader, why)).collect();
        if !tasks.is_empty() {
            self.forget(dag, &Gone { tasks, ..Gone::default() });
        }
        Ok(())
    }

    /// Restore: attempts continue from there, and earlier failures of the task are not charged any more.
    pub(super) fn apply_invalidated(
        &mut self,
        dag: &Dag,
        event: &'static str,
        id: TaskId,
        attempt: Attempt,
        lost: bool,
    ) -> Result<(), TransitionError> {
        if lost {
            self.lost_once.insert(id);
        }
        if id.item.is_none() && dag.is_mapped(id.step.0) {
            return Ok(());
        }
        let key = self.find(dag, event, id)?;
        let task = self.task_mut(key);
        if task.phase == Phase::Waiting {
            task.attempt = task.attempt.max(attempt);
        }
        Ok(())
    }

    /// Lays out anew the maps whose recorded length does not hold any more, and those over their items. Says whether there
    /// were any.
    pub(super) fn resize_maps(&mut self, dag: &Dag) -> bool {
        let mut work: Vec<u32> = std::mem::take(&mut self.resized).into_iter().collect();
        let mut gone = Gone::default();
        while let Some(ix) = work.pop() {
            let node = &dag.nodes[ix as usize];
            let sources = node.spec.map.iter().flatten().filter_map(|source| source.step());
            let input = sources.filter(|up| self.changed.contains(&up.0)).map(TaskId::whole).next();
            let why = Invalid::InputChanged { input: input.unwrap_or(TaskId::whole(StepIx(ix))) };
            if gone.steps.insert(ix, why).is_some() {
                continue;
            }
            self.changed.insert(ix);
            let over = |other: &StepIx| {
                let mut sources = dag.node(*other).spec.map.iter().flatten();
                sources.any(|source| *source == MapSource::Items(StepIx(ix)))
            };
            work.extend(node.length_dependents.iter().filter(|other| over(other)).map(|other| other.0));
        }
        if gone.steps.is_empty() {
            return false;
        }
        for (ix, why) in &gone.steps {
            for slot in 0..self.steps[*ix as usize].tasks.len() as u32 {
                let key = Key { step: *ix, slot };
                match self.task(key).phase {
                    Phase::Committed | Phase::Finished | Phase::Skipped(_) => {
                        gone.tasks.insert(key, *why);
                    }
                    Phase::Submitted | Phase::Started => {
                        let attempt = self.task(key).attempt;
                        self.orphans.push((key.id(dag), attempt));
                    }
                    Phase::Waiting | Phase::Backoff | Phase::Stopping(_) | Phase::Failed => {}
                }
            }
            // A list that has become shorter changes without any of its entries being another one.
            let why = Invalid::InputChanged { input: TaskId::whole(StepIx(*ix)) };
            for reader in self.readers(dag, Key { step: *ix, slot: 0 }) {
                if self.task(reader).phase == Phase::Committed {
                    gone.tasks.entry(reader).or_insert(why);
                }
            }
        }
        self.forget(dag, &gone);
        true
    }

    /// Tasks that read the output of `key`, those of `finally` steps included.
    fn readers(&self, dag: &Dag, key: Key) -> BTreeSet<Key> {
        let (node, up) = (&dag.nodes[key.step as usize], StepIx(key.step));
        let mut found = BTreeSet::new();
        let data = |ix: &StepIx| dag.node(*ix).gates.iter().any(|gate| gate.step == up && gate.data);
        let whole: Vec<StepIx> = node.dependents.iter().copied().filter(data).collect();
        for step in whole {
            found.extend(self.keys_of(step.0));
        }
        let items = node.item_dependents.iter().map(|step| Key { step: step.0, slot: key.slot });
        found.extend(items.filter(|item| self.has(*item)));
        for (ix, node) in dag.nodes.iter().enumerate().rev().take_while(|(_, node)| node.spec.finally) {
            let mut sources = node.spec.map.iter().flatten().filter(|source| source.step() == Some(up));
            let listed = node.spec.deps.contains(&Dep::Data(up));
            if listed || sources.clone().any(|source| *source != MapSource::Items(up)) {
                found.extend(self.keys_of(ix as u32));
            } else if sources.next().is_some() {
                found.extend(Some(Key { step: ix as u32, slot: key.slot }).filter(|item| self.has(*item)));
            }
        }
        found
    }

    /// Whether the task reads the output of `up`.
    fn reads(&self, dag: &Dag, reader: Key, up: Key) -> bool {
        let spec = &dag.nodes[reader.step as usize].spec;
        let up_step = StepIx(up.step);
        let mut sources = spec.map.iter().flatten().filter(|source| source.step() == Some(up_step));
        spec.deps.contains(&Dep::Data(up_step))
            || sources.any(|source| *source != MapSource::Items(up_step) || reader.slot == up.slot)
    }

    fn keys_of(&self, step: u32) -> impl Iterator<Item = Key> + use<> {
        (0..self.steps[step as usize].tasks.len() as u32).map(move |slot| Key { step, slot })
    }

    fn has(&self, key: Key) -> bool {
        (key.slot as usize) < self.steps[key.step as usize].tasks.len()
    }

    /// Calls back what has begun on an output that counts no more, notes what the journal has to be told, and goes back to
    /// the facts that stay.
    fn forget(&mut self, dag: &Dag, gone: &Gone) {
        let readers: BTreeSet<Key> = gone.tasks.keys().flat_map(|key| self.readers(dag, *key)).collect();
        for reader in readers {
            if !gone.steps.contains_key(&reader.step) {
                self.call_back(dag, reader);
            }
        }
        let steps = gone.steps.iter().map(|(ix, why)| (TaskId::whole(StepIx(*ix)), why));
        let tasks = gone.tasks.iter().map(|(key, why)| (key.id(dag), why));
        for (task, why) in steps.chain(tasks) {
            self.actions.push(Action::RecordInvalidated { task, why: *why });
        }
        let old = std::mem::replace(self, Self::new(dag, self.seed));
        self.resume_from(dag, old, gone);
    }

    fn call_back(&mut self, dag: &Dag, key: Key) {
        let (task, attempt) = (key.id(dag), self.task(key).attempt);
        match self.task(key).phase {
            Phase::Submitted => self.actions.push(Action::Withdraw { task, attempt }),
            Phase::Started => self.actions.push(Action::Stop { task, attempt, why: StopReason::InputInvalidated }),
            _ => return,
        }
        self.set_phase(dag, key, Phase::Stopping(Then::Requeue), None);
    }

    /// Brings this new state to where `old` is, without what is `gone`.
    fn resume_from(&mut self, dag: &Dag, mut old: Self, gone: &Gone) {
        self.cancel = old.cancel;
        self.finally_over = old.finally_over;
        self.orphans = std::mem::take(&mut old.orphans);
        self.actions = std::mem::take(&mut old.actions);
        self.lost_once = std::mem::take(&mut old.lost_once);
        self.changed = std::mem::take(&mut old.changed);
        self.resized = std::mem::take(&mut old.resized);
        self.numbers = std::mem::take(&mut old.numbers);
        let mut steps = std::mem::take(&mut old.steps);
        for (ix, was) in steps.iter().enumerate() {
            let ix = ix as u32;
            if gone.steps.contains_key(&ix) {
                for (slot, task) in was.tasks.iter().enumerate().filter(|(_, task)| task.attempt > 0) {
                    self.numbers.insert(TaskId::item(StepIx(ix), slot as u32), task.attempt);
                }
                continue;
            }
            let step = &mut self.steps[ix as usize];
            if dag.is_mapped(ix) {
                (step.len, step.len_recorded) = (was.len, was.len_recorded);
                step.len_problem = was.len_problem.clone();
                step.offsets = was.offsets.clone();
            }
            if was.allocated {
                self.allocate(dag, ix);
            }
        }
        for (ix, was) in steps.iter_mut().enumerate().filter(|(ix, _)| !gone.steps.contains_key(&(*ix as u32))) {
            self.resume_step(dag, ix as u32, was, &old.failures, gone);
        }
        if self.main_open == 0 {
            self.finally_from = old.finally_from;
        }
        self.mark_all();
    }

    fn resume_step(
        &mut self,
        dag: &Dag,
        ix: u32,
        was: &mut Step,
        failures: &BTreeMap<TaskId, FailReason>,
        gone: &Gone,
    ) {
        let is_mapped = dag.is_mapped(ix);
        if is_mapped || !gone.tasks.contains_key(&Key { step: ix, slot: 0 }) {
            let step = &mut self.steps[ix as usize];
            (step.asked, step.decided) = (was.asked, was.decided);
        }
        for (slot, task) in was.tasks.iter().enumerate() {
            let key = Key { step: ix, slot: slot as u32 };
            if gone.tasks.contains_key(&key) {
                self.task_mut(key).attempt = task.attempt;
                continue;
            }
            let now = self.task_mut(key);
            (now.attempt, now.retries, now.losses) = (task.attempt, task.retries, task.losses);
            (now.asked, now.decided) = (task.asked, task.decided);
            (now.last_class, now.cached, now.recorded) = (task.last_class, task.cached, task.recorded);
            match task.phase {
                Phase::Waiting => {}
                Phase::Committed => {
                    if let Some(lens) = was.lens.remove(&key.slot) {
                        self.steps[ix as usize].lens.insert(key.slot, lens);
                    }
                    self.set_phase(dag, key, Phase::Committed, None);
                }
                Phase::Failed => match failures.get(&key.id(dag)) {
                    Some(reason) => self.fail_task(dag, key, reason.clone(), task.recorded),
                    // With its step as a whole.
                    None => self.set_phase(dag, key, Phase::Failed, None),
                },
                Phase::Skipped(reason) => self.skip_task(dag, key, reason, task.recorded),
                phase => self.set_phase(dag, key, phase, task.due),
            }
        }
        let Some(whole) = was.whole else { return };
        let id = TaskId::whole(StepIx(ix));
        self.steps[ix as usize].whole_recorded = was.whole_recorded;
        match (whole, failures.get(&id)) {
            (Whole::Failed, reason) => {
                let reason = reason.cloned().unwrap_or(FailReason::Recorded);
                self.note_failure(dag, id, reason, was.whole_recorded);
            }
            (Whole::Skipped(reason), _) => {
                self.note_cut(dag, ix, reason);
                if !was.whole_recorded {
                    self.unrecorded.push(id);
                }
            }
        }
        self.set_whole(dag, ix, whole);
    }
}
