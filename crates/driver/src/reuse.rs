//! Which outputs of earlier runs a run takes: those that its selection needs, and those with the same content key.
//! Decisions only; see [`earlier`](super::earlier) for how they are carried out.

use std::collections::{HashMap, HashSet};

use super::facts::{Facts, View};
use super::replay::{Past, PastOutput};
use dask::ops::{AdoptItem, EarlierRuns, Item};
use engine::{Event, StepIx, StepState, TaskId, TaskStatus};
use lower::{Aspect, Key, Keyring, Part, Parts, Plan};

/// What earlier runs have left for this one.
pub(super) struct Reusable {
    /// Newest first.
    runs: Vec<Past>,
    /// Why nothing can be taken from a run that is not among them, in words.
    cleared: Option<String>,
    found: HashMap<(Key, Option<u32>), (usize, TaskId)>,
    anywhere: HashMap<Key, (usize, TaskId)>,
    /// Of this run: tasks whose output is an earlier run's.
    keys: Keyring,
    /// Tasks whose output counts no more: they run.
    refused: HashSet<TaskId>,
    /// Take what has the same key.
    missing: bool,
    /// Seconds since 1970.
    now: f64,
}

/// What is asked of earlier runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// Whatever has the same key is taken.
    pub missing: bool,
    /// [`why`](Reusable::why) will be asked.
    pub explain: bool,
}

/// Why no output of an earlier run stands for a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// No earlier run that counts has an output of it.
    NeverFinished,
    /// It would be made from something else.
    Changed(Aspect),
    /// The step says so (`cache.enabled`), now or when the output was made.
    NoCache,
    /// Older than `cache.maxAge`.
    TooOld,
    /// The object is not in storage any more, or has another size.
    Gone,
    /// The output was not stored as it is needed now.
    NoResult,
}

/// An output that is taken over.
pub(super) struct Taken {
    pub item: AdoptItem,
    pub event: Event,
}

impl Reusable {
    /// `cleared`: why one is left out; `keys` is empty; `now`: seconds since 1970.
    pub fn new(
        earlier: EarlierRuns,
        cleared: Option<String>,
        keys: Keyring,
        Wish { missing, explain }: Wish,
        now: f64,
    ) -> Self {
        let runs: Vec<Past> = earlier.runs.into_iter().filter_map(|run| Past::replay(run, explain)).collect();
        let (mut found, mut anywhere) = (HashMap::new(), HashMap::new());
        for (at, run) in runs.iter().enumerate().filter(|_| missing) {
            let mut tasks: Vec<TaskId> = run.outputs.keys().copied().collect();
            tasks.retain(|task| run.plan.cache(task.step).enabled != Some(false));
            tasks.sort_by_key(|task| (task.step, task.item));
            for task in tasks {
                if let Some(key) = run.keys.get(task) {
                    found.entry((key, task.item)).or_insert((at, task));
                    anywhere.entry(key).or_insert((at, task));
                }
            }
        }
        Self { runs, cleared, found, anywhere, keys, refused: HashSet::new(), missing, now }
    }

    /// Learns the keys of what was taken over before the scheduler was lost, in that order.
    pub fn restore(&mut self, plan: &Plan, adopted: &[Item], view: &View<'_>) {
        for task in adopted.iter().map(|item| TaskId { step: StepIx(item.step), item: item.item }) {
            if let Some(key) = self.keys.work_out(plan, task, &|other| is_hole(view, other), view) {
                self.keys.insert(task, key);
            }
        }
    }

    /// The earlier output that stands for `task`, about to be submitted. Only if everything before it was taken over
    /// too: what comes after a step that runs, runs.
    pub fn take(&mut self, plan: &Plan, task: TaskId, view: &View<'_>) -> Option<Taken> {
        if self.refused.contains(&task) {
            return None;
        }
        let (key, run, theirs) = self.find(plan, task, view).ok()?;
        let run = &self.runs[run];
        let taken = taken(run, task, theirs, run.outputs.get(&theirs)?);
        self.keys.insert(task, key);
        Some(taken)
    }

    /// Takes nothing over for `task` any more: what was taken is lost, or was made from something that is.
    pub fn refuse(&mut self, task: TaskId) {
        self.refused.insert(task);
        self.keys.remove(task);
    }

    /// Key, run and task there of the output that stands for `task`; else what is in the way, as far as it is not the key.
    fn find(&mut self, plan: &Plan, task: TaskId, view: &View<'_>) -> Result<(Key, usize, TaskId), Option<Because>> {
        let cache = plan.cache(task.step);
        if !self.missing || cache.enabled == Some(false) {
            return Err(Some(Because::NoCache));
        }
        let key = self.keys.work_out(plan, task, &|other| is_hole(view, other), view).ok_or(None)?;
        let place = self.found.get(&(key, task.item)).or_else(|| self.anywhere.get(&key)).ok_or(None)?;
        let (at, theirs) = *place;
        let output = self.runs[at].outputs.get(&theirs).ok_or(None)?;
        if cache.max_age.is_some_and(|age| output.made.is_none_or(|made| self.now - made > age.as_secs_f64())) {
            return Err(Some(Because::TooOld));
        }
        let wanted = plan.step_def(task.step).ok_or(None)?.result;
        let had = self.runs[at].plan.step_def(theirs.step).ok_or(None)?.result;
        if wanted > had && output.json.is_none() {
            return Err(Some(Because::NoResult));
        }
        Ok((key, at, theirs))
    }

    /// Whether `task` is made from something that is not an earlier run's.
    pub fn is_new(&mut self, plan: &Plan, task: TaskId, view: &View<'_>) -> bool {
        let parts = self.keys.parts(plan, task, &|other| is_hole(view, other), view).unwrap_or_default();
        parts.iter().any(|(aspect, part)| part.is_none() && matches!(aspect, Aspect::Upstream(_)))
    }

    /// Why nothing stands for `task`, which [`take`](Self::take) has refused or would: in what it differs from the outputs that
    /// the step of this name has.
    pub fn why(&mut self, plan: &Plan, task: TaskId, view: &View<'_>) -> Vec<Because> {
        if let Err(Some(because)) = self.find(plan, task, view) {
            return vec![because];
        }
        let ours = self.keys.parts(plan, task, &|other| is_hole(view, other), view).unwrap_or_default();
        let Some((changed, gone)) = self.nearest(plan.step_name(task.step), task.item, &ours) else {
            return vec![Because::NeverFinished];
        };
        match (changed.is_empty(), gone) {
            (false, _) => changed,
            (true, true) => vec![Because::Gone],
            // It said so when the output was made.
            (true, false) => vec![Because::NoCache],
        }
    }

    /// In what `ours` differs from the output of an earlier run that this item of the step has there, and whether that is
    /// gone: of the one that differs least, the newest first. A run that has loaded an output has not made it.
    fn nearest(&mut self, step: &str, item: Option<u32>, ours: &Parts) -> Option<(Vec<Because>, bool)> {
        let mut best: Option<(Vec<Because>, bool)> = None;
        for run in &mut self.runs {
            let Some(theirs) = run.plan.step_index(step).map(|step| TaskId { step, item }) else { continue };
            if run.plan.part(theirs.step) != Part::Runs || !run.made(theirs) {
                continue;
            }
            let Some(had) = run.parts(theirs) else { continue };
            let changed = differences(ours, &had);
            if best.as_ref().is_none_or(|(least, _)| changed.len() < least.len()) {
                best = Some((changed, run.gone.contains(&theirs)));
            }
            if best.as_ref().is_some_and(|(least, _)| least.len() <= 1) {
                break;
            }
        }
        best
    }

    /// Names and uids of the runs that count, newest first.
    pub fn runs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.runs.iter().map(|run| (run.name.as_str(), run.uid.as_str()))
    }

    /// The newest run that has all outputs that the selection of `plan` needs, or why there is none. `whose`: the
    /// pipeline and its storage, for the message.
    pub fn source(&self, plan: &Plan, whose: &str) -> Result<usize, String> {
        let needed = || plan.dag.steps().map(|(step, _)| step).filter(|step| plan.part(*step) == Part::Loaded);
        let lacks = |run: &Past| needed().find_map(|step| run.lacks(plan, step).map(|why| (step, why)));
        if let Some(at) = self.runs.iter().position(|run| lacks(run).is_none()) {
            return Ok(at);
        }
        let help = "select the step too, or run the whole pipeline once";
        let (step, why) = match self.runs.first() {
            Some(latest) => {
                let (step, why) = lacks(latest).unwrap_or((StepIx(0), String::new()));
                (Some(step), format!("the latest, {} ({}), {why}", latest.name, latest.uid))
            }
            None => {
                let why = self.cleared.clone().unwrap_or_else(|| "there is no earlier run".to_owned());
                (needed().next(), why)
            }
        };
        let name = step.map_or("", |step| plan.step_name(step));
        Err(format!(
            "the selection needs the output of step {name}, and no earlier run of {whose} has all it needs: {why}; {help}"
        ))
    }

    /// What `step`, which does not run, gets from run number `source`: its length, if it is mapped, outputs, and items
    /// without one.
    pub fn load(&mut self, plan: &Plan, step: StepIx, source: usize) -> (Option<u32>, Vec<Taken>, Vec<TaskId>) {
        let Some(run) = self.runs.get(source) else { return (None, Vec::new(), Vec::new()) };
        let Some(theirs) = run.plan.step_index(plan.step_name(step)) else { return (None, Vec::new(), Vec::new()) };
        let len = run.lengths.get(&theirs).copied().filter(|_| plan.is_mapped(step));
        let items: Vec<Option<u32>> = len.map_or_else(|| vec![None], |len| (0..len).map(Some).collect());
        let (mut outputs, mut holes) = (Vec::new(), Vec::new());
        for item in items {
            let (task, past) = (TaskId { step, item }, TaskId { step: theirs, item });
            match run.outputs.get(&past) {
                Some(output) => outputs.push(taken(run, task, past, output)),
                None => holes.push(task),
            }
            if let Some(key) = run.keys.get(past) {
                self.keys.insert(task, key);
            }
        }
        (len, outputs, holes)
    }

    /// Notes what an output says, as if its task had run here.
    pub fn note(&self, taken: &Taken, facts: &mut Facts) {
        let Event::Cached { task, lens } = &taken.event else { return };
        let theirs = TaskId { step: StepIx(taken.item.theirs.step), item: taken.item.theirs.item };
        let run = self.runs.iter().find(|run| run.uid == taken.item.uid);
        let json = run.and_then(|run| run.outputs.get(&theirs)).and_then(|output| output.json.clone());
        facts.finished(*task, lens.clone(), json);
    }
}

impl Past {
    /// Why `step` of `plan` cannot be loaded from it.
    fn lacks(&self, plan: &Plan, step: StepIx) -> Option<String> {
        let name = plan.step_name(step);
        let Some(theirs) = self.plan.step_index(name) else { return Some(format!("has no step {name}")) };
        if plan.is_mapped(step) != self.plan.is_mapped(theirs) {
            return Some(format!("has {name} with another map"));
        }
        let (wanted, had) = (plan.step_def(step)?, self.plan.step_def(theirs)?);
        if wanted.container && !had.container || wanted.lens.iter().any(|lens| !had.lens.contains(lens)) {
            return Some(format!("did not store the output of {name} so that single entries can be read"));
        }
        let items: HashSet<Option<u32>> = match self.lengths.get(&theirs) {
            Some(len) if plan.is_mapped(step) => (0..*len).map(Some).collect(),
            None if plan.is_mapped(step) => return Some(format!("did not come to {name}")),
            _ => [None].into(),
        };
        let whole = self.holes.contains(&TaskId::whole(theirs));
        for item in items {
            let task = TaskId { step: theirs, item };
            match self.outputs.get(&task) {
                Some(output) if wanted.result == 2 && output.json.is_none() => {
                    return Some(format!("did not keep the result of {name}"));
                }
                Some(_) => {}
                None if item.is_some() && (self.holes.contains(&task) || whole) => {}
                None => return Some(format!("has no output of {name}, or it is no longer in storage")),
            }
        }
        // Lengths are told apart by their places.
        (wanted.lens != had.lens).then(|| format!("did not store the output of {name} as it is needed"))
    }
}

/// What our key is made of otherwise than theirs. Not known yet counts as changed where it is a step that comes before, for
/// that one runs, or an object, for it is not there.
fn differences(ours: &Parts, theirs: &Parts) -> Vec<Because> {
    let counts = |aspect: &Aspect| matches!(aspect, Aspect::Upstream(_) | Aspect::Object(_) | Aspect::Kept(_));
    let differs = |(aspect, part): &(&Aspect, &Option<Key>)| match part {
        None => counts(aspect),
        Some(_) => theirs.get(*aspect) != Some(*part),
    };
    let mut changed: Vec<Aspect> = ours.iter().filter(differs).map(|(aspect, _)| aspect.clone()).collect();
    if changed.is_empty() {
        // It has become less: a dependency, an input.
        changed.extend(theirs.keys().filter(|aspect| !ours.contains_key(*aspect)).cloned());
    }
    changed.into_iter().map(Because::Changed).collect()
}

fn taken(run: &Past, task: TaskId, theirs: TaskId, output: &PastOutput) -> Taken {
    let item = |task: TaskId| Item { step: task.step.0, item: task.item };
    Taken {
        item: AdoptItem { task: item(task), uid: run.uid.clone(), theirs: item(theirs) },
        event: Event::Cached { task, lens: output.lens.clone() },
    }
}

/// Whether a task of this run, or a mapped step as a whole, has ended without an output.
fn is_hole(view: &View<'_>, task: TaskId) -> bool {
    match view.state.task_view(view.dag, task) {
        Some(view) => matches!(view.status, TaskStatus::Failed | TaskStatus::Skipped(_)),
        None => {
            let summary = view.state.step_summary(task.step);
            summary.is_some_and(|summary| matches!(summary.state, StepState::Failed | StepState::Skipped(_)))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;
    use dask::ops::EarlierRun;
    use engine::RunState;
    use run_model::Frozen;

    fn frozen(uid: &str, steps: Value, select: Value) -> Frozen {
        let pipeline = json!({"steps": steps});
        serde_json::from_value(json!({
            "format": Frozen::FORMAT, "uid": uid, "name": "flow", "pipeline": pipeline, "params": Map::new(),
            "cluster": {}, "select": select
        }))
        .unwrap()
    }

    fn steps() -> Value {
        json!([
            {"name": "load", "call": "m:f"},
            {"name": "each", "call": "m:g", "map": {"x": "$(steps.load.output)"}},
            {"name": "sum", "call": "m:h", "args": ["$(steps.each.output)"]}
        ])
    }

    /// A run that committed these tasks of [`steps`]; `load` gave a list of two.
    fn past(uid: &str, committed: &[(u32, i64)], gone: &[(u32, i64)]) -> EarlierRun {
        let done = committed.iter().map(|(s, i)| {
            let lens = if *s == 0 { json!([2]) } else { Value::Null };
            json!([s, i, 1, lens, null])
        });
        let run = json!({
            "uid": uid, "name": "flow", "spec": [], "code": "c", "committed": done.collect::<Vec<_>>(),
            "lengths": [[1, 2]], "skipped": [], "gone": gone
        });
        let spec = serde_json::to_vec(&frozen(uid, steps(), Value::Null)).unwrap();
        EarlierRun { spec: spec.into(), ..serde_json::from_value(run).unwrap() }
    }

    fn reusable(plan: &Plan, runs: Vec<EarlierRun>) -> Reusable {
        Reusable::new(
            EarlierRuns { runs },
            None,
            Keyring::new(plan, "c", None),
            Wish { missing: true, explain: true },
            NOW,
        )
    }

    const NOW: f64 = 1_000_000.0;
    const ALL: [(u32, i64); 4] = [(0, -1), (1, 0), (1, 1), (2, -1)];

    #[test]
    fn a_selection_is_loaded_from_the_latest_run_that_has_all_it_needs() {
        let plan = frozen("new", steps(), json!({"only": ["sum"]})).plan("spec").unwrap();
        let partly = past("partly", &ALL[..2], &[]);
        let mut runs = reusable(&plan, vec![partly.clone(), past("whole", &ALL, &[])]);
        assert_eq!(runs.source(&plan, "p"), Ok(1));
        let (len, taken, holes) = runs.load(&plan, StepIx(1), 1);
        assert_eq!((len, taken.len(), holes.len()), (Some(2), 2, 0));
        assert!(taken.iter().all(|taken| taken.item.uid == "whole"));

        let why = reusable(&plan, vec![partly]).source(&plan, "p").unwrap_err();
        assert!(why.contains("step each") && why.contains("partly"), "{why}");
        let cut = past("cut", &ALL, &[(1, 1)]);
        assert!(reusable(&plan, vec![cut]).source(&plan, "p").is_err(), "an item is not in storage any more");
        assert!(reusable(&plan, Vec::new()).source(&plan, "p").unwrap_err().contains("no earlier run"));
    }

    #[test]
    fn what_a_step_says_of_its_cache_is_kept_to() {
        let steps = |cache: Value| json!([{"name": "a", "call": "m:f", "cache": cache}]);
        let past = |cache: Value| {
            let spec = serde_json::to_vec(&frozen("old", steps(cache), Value::Null)).unwrap();
            let run = json!({
                "uid": "old", "name": "flow", "spec": [], "code": "c", "committed": [[0, -1, 1, null, null]],
                "lengths": [], "skipped": [], "gone": [], "made": [NOW - 7200.0]
            });
            EarlierRun { spec: spec.into(), ..serde_json::from_value(run).unwrap() }
        };
        let taken = |before: Value, now: Value| {
            let plan = frozen("new", steps(now), Value::Null).plan("spec").unwrap();
            let (state, facts) = (RunState::new(&plan.dag, 0), Facts::default());
            let view = View { facts: &facts, state: &state, dag: &plan.dag };
            reusable(&plan, vec![past(before)]).take(&plan, TaskId::whole(StepIx(0)), &view).is_some()
        };
        assert!(taken(json!({}), json!({"enabled": true})));
        assert!(!taken(json!({}), json!({"enabled": false})));
        assert!(!taken(json!({"enabled": false}), json!({})), "it was said when the output was made");
        assert!(!taken(json!({"version": "1"}), json!({"version": "2"})));
        assert!(taken(json!({"version": "1"}), json!({"version": "1"})));
        assert!(taken(json!({}), json!({"maxAge": "3h"})));
        assert!(!taken(json!({}), json!({"maxAge": "1h"})));
    }

    /// A task of this run is taken over only if what an earlier one read is what is there now.
    #[test]
    fn an_object_that_has_changed_keeps_its_readers_from_being_taken() {
        let steps = json!([
            {"name": "a", "call": "m:f", "inputs": {"x": {"path": "in.pkl"}}, "output": {"path": "out.pkl"}},
            {"name": "b", "call": "m:f", "args": ["$(steps.a.output)"]}
        ]);
        let spec = serde_json::to_vec(&frozen("old", steps.clone(), Value::Null)).unwrap();
        let run = json!({
            "uid": "old", "name": "flow", "spec": [], "code": "c", "committed": [[0, -1, 1, null, null], [1, -1, 1, null, null]],
            "lengths": [], "skipped": [], "gone": [], "named": [[0, -1, [["in.pkl", "v1"], ["out.pkl", "w1"]]]]
        });
        let past = EarlierRun { spec: spec.into(), ..serde_json::from_value(run).unwrap() };
        let plan = frozen("new", steps, Value::Null).plan("spec").unwrap();
        let taken = |input: Option<&str>, output: Option<&str>| {
            let (mut state, mut facts) = (RunState::new(&plan.dag, 0), Facts::default());
            facts.versions.insert("in.pkl".into(), input.map(str::to_owned));
            facts.versions.insert("out.pkl".into(), output.map(str::to_owned));
            let mut runs = reusable(&plan, vec![past.clone()]);
            for task in [TaskId::whole(StepIx(0)), TaskId::whole(StepIx(1))] {
                let found = runs.take(&plan, task, &View { facts: &facts, state: &state, dag: &plan.dag });
                if let Some(taken) = found {
                    state.apply(&plan.dag, &taken.event, 0).unwrap();
                }
            }
            state.counts().cached
        };
        assert_eq!(taken(Some("v1"), Some("w1")), 2);
        assert_eq!(taken(Some("v2"), Some("w1")), 0, "the input is another one");
        assert_eq!(taken(Some("v1"), Some("w2")), 0, "something else is where the output was kept");
        assert_eq!(taken(None, Some("w1")), 0);
        assert_eq!(taken(Some("v1"), None), 0);
    }

    #[test]
    fn a_task_is_taken_only_behind_inputs_that_were_taken() {
        let plan = frozen("new", steps(), Value::Null).plan("spec").unwrap();
        let mut runs = reusable(&plan, vec![past("old", &ALL, &[(1, 1)])]);
        let (mut state, mut facts) = (RunState::new(&plan.dag, 0), Facts::default());
        let each = |item| TaskId::item(StepIx(1), item);
        for (task, is_taken) in
            [(TaskId::whole(StepIx(0)), true), (each(0), true), (each(1), false), (TaskId::whole(StepIx(2)), false)]
        {
            let taken = runs.take(&plan, task, &View { facts: &facts, state: &state, dag: &plan.dag });
            assert_eq!(taken.is_some(), is_taken, "{task:?}");
            if let Some(taken) = taken {
                runs.note(&taken, &mut facts);
                state.apply(&plan.dag, &taken.event, 0).unwrap();
            }
        }
        assert_eq!(state.counts().cached, 2);
    }

    #[test]
    fn what_is_lost_is_not_taken_again_and_what_comes_after_it_runs() {
        let plan = frozen("new", steps(), Value::Null).plan("spec").unwrap();
        let mut runs = reusable(&plan, vec![past("old", &ALL, &[])]);
        let (mut state, mut facts) = (RunState::new(&plan.dag, 0), Facts::default());
        let (load, each) = (TaskId::whole(StepIx(0)), |item| TaskId::item(StepIx(1), item));
        for task in [load, each(0)] {
            let taken = runs.take(&plan, task, &View { facts: &facts, state: &state, dag: &plan.dag }).unwrap();
            runs.note(&taken, &mut facts);
            state.apply(&plan.dag, &taken.event, 0).unwrap();
        }
        runs.refuse(load);
        let view = View { facts: &facts, state: &state, dag: &plan.dag };
        assert!(runs.take(&plan, load, &view).is_none());
        assert!(runs.take(&plan, each(1), &view).is_none(), "its input is this run's now");
    }
}
