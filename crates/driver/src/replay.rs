//! An earlier run, brought back from its specification and journal far enough to know its outputs and their keys.

use std::collections::{HashMap, HashSet};

use super::facts::{Facts, View};
use super::terms::task_id;
use dask::ops::{EarlierRun, Json};
use engine::{Event, RunState, SkipReason, StepIx, TaskId};

use lower::{Key, Keyring, Parts, Plan, Results};
use run_model::Frozen;

/// An earlier run.
pub(super) struct Past {
    pub uid: String,
    pub name: String,
    pub plan: Plan,
    pub keys: Keyring,
    /// What it made and is still there.
    pub outputs: HashMap<TaskId, PastOutput>,
    /// Tasks that it had no output of by right.
    pub holes: HashSet<TaskId>,
    /// What it made and is not there any more.
    pub gone: HashSet<TaskId>,
    pub lengths: HashMap<StepIx, u32>,
    /// All that is known of it, if somebody may ask why it is not the same.
    known: Option<Box<(Facts, RunState)>>,
}

/// What is known of an output besides its handle, which stays with the runtime.
pub(super) struct PastOutput {
    pub lens: Vec<u32>,
    pub json: Option<Json>,
    /// When it was made, seconds since 1970.
    pub made: Option<f64>,
}

impl Past {
    /// `None` if this version cannot read or does not accept its specification: nothing of it is reused then. `explain`:
    /// [`parts`](Self::parts) will be asked for.
    ///
    /// Keys are worked out in the order of the journal, in which inputs come first: what was not committed by then was a
    /// hole for whoever read it, even if the run was resumed and made it later.
    pub fn replay(run: EarlierRun, explain: bool) -> Option<Self> {
        if !is_readable(&run.spec) {
            return None;
        }
        let frozen: Frozen = serde_json::from_slice(&run.spec).ok().filter(|f: &Frozen| f.format == Frozen::FORMAT)?;
        let plan = frozen.plan("spec").ok()?;
        let mut state = RunState::new(&plan.dag, 0);
        let mut facts = Facts::default();
        let mut keys = Keyring::new(&plan, &run.code, frozen.cluster.image.as_deref());
        for (step, len) in &run.lengths {
            state.apply(&plan.dag, &Event::MapLength { step: StepIx(*step), len: *len }, 0).ok()?;
        }
        run.named.into_iter().for_each(|named| facts.named(named));
        let mut outputs = HashMap::new();
        let made = run.made.into_iter().map(Some).chain(std::iter::repeat(None));
        for (done, made) in run.committed.into_iter().zip(made) {
            let (id, lens) = (task_id(done.task), done.lens.unwrap_or_default());
            let key = key_of(&plan, &mut keys, id, &View { facts: &facts, state: &state, dag: &plan.dag });
            facts.finished(id, lens.clone(), done.json.clone());
            state.apply(&plan.dag, &Event::Committed { task: id, lens: lens.clone() }, 0).ok()?;
            if let Some(key) = key {
                keys.insert(id, key);
            }
            outputs.insert(id, PastOutput { lens, json: done.json, made });
        }
        let gone = run.gone.iter().map(|gone| TaskId { step: StepIx(gone.step), item: gone.item }).collect();
        outputs.retain(|task, _| !HashSet::contains(&gone, task));
        let skipped = run.skipped.iter().filter(|s| SkipReason::parse(&s.reason).is_some_and(SkipReason::is_tolerated));
        let holes = skipped.map(|skipped| TaskId { step: StepIx(skipped.step), item: skipped.item }).collect();
        let lengths = plan.dag.steps().filter_map(|(step, _)| Some((step, state.step_len(step)?))).collect();
        let known = explain.then(|| Box::new((facts, state)));
        Some(Self { uid: run.uid, name: run.name, plan, keys, outputs, holes, gone, lengths, known })
    }

    /// Whether it has ever had an output of `task`.
    pub fn made(&self, task: TaskId) -> bool {
        self.outputs.contains_key(&task) || self.gone.contains(&task)
    }

    /// What the key of one of its outputs is made of.
    pub fn parts(&mut self, task: TaskId) -> Option<Parts> {
        let (facts, state) = &**self.known.as_ref()?;
        let view = View { facts, state, dag: &self.plan.dag };
        self.keys.parts(&self.plan, task, &|other| !view.has_output(other), &view)
    }
}

/// Whether a specification in JSON is one that a run can have: an unpacked value takes many times its text.
fn is_readable(spec: &[u8]) -> bool {
    // What separates values; those within texts count too.
    let values = || spec.iter().filter(|byte| b",:[{".contains(byte)).count();
    spec.len() <= limits::EARLIER_SPEC && values() <= limits::EARLIER_SPEC_VALUES
}

fn key_of(plan: &Plan, keys: &mut Keyring, task: TaskId, view: &View<'_>) -> Option<Key> {
    keys.work_out(plan, task, &|other| !view.has_output(other), view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_that_no_run_can_have_is_not_read() {
        assert!(is_readable(br#"{"pipeline": {"steps": [{"name": "a", "script": "f(1, 2)"}]}}"#));
        assert!(!is_readable(&vec![b' '; limits::EARLIER_SPEC + 1]));
        assert!(!is_readable(&b"1,".repeat(limits::EARLIER_SPEC_VALUES + 1)));
    }
}
