//! The objects that the steps of a plan read and keep.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::expr::{ExprError, Text};
use super::mentions::{Mention, mentions};
use super::objects::{Declared, Input, NAMED, Named, Target};
use super::params::shortened;
use super::plan::{Part, Plan, PlanStep, Results, VarSource};
use api::problem::{Problem, nearest};
use api::reason::Reason;
use api::step::Serializer;
use engine::{RunState, StepIx, TaskId};

impl Plan {
    /// Whether any step reads or keeps objects by their path.
    pub fn names_objects(&self) -> bool {
        self.naming().next().is_some()
    }

    /// The objects that `task` names.
    pub fn objects_of(&self, task: TaskId, results: &dyn Results) -> Result<Named, ExprError> {
        let Some(step) = self.steps.get(task.step.0 as usize) else { return Ok(Named::default()) };
        let mut named = Named::default();
        for input in &step.inputs {
            named.reads.push(self.input(step, input, task, results)?.0);
        }
        if let Some(target) = &step.target {
            named.keeps = Some((self.place(step, target, task, results)?, target.if_exists));
        }
        Ok(named)
    }

    /// Paths that are known before the run, those of all items of a map included, of the steps that run.
    pub fn known_paths(&self) -> BTreeSet<String> {
        let (mut paths, state) = (BTreeSet::new(), RunState::new(&self.dag, 0));
        for (ix, step) in self.naming().filter(|(_, step)| step.part == Part::Runs) {
            for input in &step.inputs {
                let tasks = self.early_tasks((ix, step), &input.path, &state).into_iter();
                paths.extend(tasks.filter_map(|task| Some(self.input(step, input, task, &Nothing).ok()?.0)));
            }
            if let Some(target) = &step.target {
                let tasks = self.early_tasks((ix, step), &target.path, &state).into_iter();
                paths.extend(tasks.filter_map(|task| self.place(step, target, task, &Nothing).ok()));
            }
        }
        paths
    }

    pub(super) fn input(
        &self,
        step: &PlanStep,
        input: &Input,
        task: TaskId,
        results: &dyn Results,
    ) -> Result<(String, Serializer), ExprError> {
        let path = self.evaluate(step, &input.path, task, results)?;
        input.object(&path).map_err(|wrong| wrong.error(&format!("inputs.{}.path", input.name)))
    }

    pub(super) fn place(
        &self,
        step: &PlanStep,
        target: &Target,
        task: TaskId,
        results: &dyn Results,
    ) -> Result<String, ExprError> {
        let path = self.evaluate(step, &target.path, task, results)?;
        target.place(&path).map_err(|wrong| wrong.error("output.path"))
    }

    /// The tasks of a step for which a path can differ, as far as they and it are known before the run.
    fn early_tasks(&self, step: (StepIx, &PlanStep), path: &Text, state: &RunState) -> Vec<TaskId> {
        let (ix, step) = step;
        if !is_early(step, path) {
            return Vec::new();
        }
        match (self.is_mapped(ix), names_item(path)) {
            (false, _) => vec![TaskId::whole(ix)],
            (true, false) => vec![TaskId::item(ix, 0)],
            (true, true) => (0..state.step_len(ix).unwrap_or(0)).map(|item| TaskId::item(ix, item)).collect(),
        }
    }

    /// The steps that name objects.
    fn naming(&self) -> impl Iterator<Item = (StepIx, &PlanStep)> {
        let steps = self.steps.iter().enumerate().map(|(ix, step)| (StepIx(ix as u32), step));
        steps.filter(|(_, step)| !step.inputs.is_empty() || step.target.is_some())
    }

    /// Paths that are wrong, or that two tasks keep their outputs at, as far as that is known before the run.
    pub(super) fn check_objects(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut kept: BTreeMap<String, TaskId> = BTreeMap::new();
        let state = RunState::new(&self.dag, 0);
        for (ix, step) in self.naming() {
            for input in &step.inputs {
                let mut tasks = self.early_tasks((ix, step), &input.path, &state).into_iter();
                let found = tasks.find_map(|task| self.input(step, input, task, &Nothing).err());
                problems.extend(found.map(|error| Problem::new(error.reason(), &input.at, error.to_string())));
            }
            if let Some(target) = &step.target {
                for task in self.early_tasks((ix, step), &target.path, &state) {
                    let problem = match self.place(step, target, task, &Nothing) {
                        Ok(path) => match kept.get(&path) {
                            Some(other) => self.collision(*other, task, &path, &target.at),
                            None => {
                                kept.insert(path, task);
                                continue;
                            }
                        },
                        Err(error) => Problem::new(error.reason(), &target.at, error.to_string()),
                    };
                    problems.push(problem);
                    break;
                }
            }
        }
        self.check_order(&kept, &state, &mut problems);
        problems
    }

    /// Who reads what another step keeps must come after it, or before: else it is left to chance what is read.
    fn check_order(&self, kept: &BTreeMap<String, TaskId>, state: &RunState, problems: &mut Vec<Problem>) {
        if kept.is_empty() {
            return;
        }
        for (ix, step) in self.naming() {
            for input in &step.inputs {
                let mut ordered: BTreeMap<StepIx, bool> = BTreeMap::new();
                let mut paths = self.early_tasks((ix, step), &input.path, state).into_iter().filter_map(|task| {
                    let (path, _) = self.input(step, input, task, &Nothing).ok()?;
                    let owner = kept.get(&path)?.step;
                    let is_ordered = ordered
                        .entry(owner)
                        .or_insert_with(|| owner == ix || self.is_before(owner, ix) || self.is_before(ix, owner));
                    (!*is_ordered).then_some((path, owner))
                });
                let Some((path, owner)) = paths.next() else { continue };
                let (reader, owner) = (self.step_name(ix), self.step_name(owner));
                let message =
                    format!("{reader} reads {}, where {owner} keeps its output, in no order", shortened(&path));
                let help = format!("add dependsOn: [{owner}], or use $(steps.{owner}.output)");
                problems.push(Problem::new(Reason::Conflict, &input.at, message).help(help));
            }
        }
    }

    /// Whether `later` runs after `first` by what it needs, or as a `finally` step.
    fn is_before(&self, first: StepIx, later: StepIx) -> bool {
        let (mut seen, mut work) = (BTreeSet::new(), vec![later]);
        let finally = |step: StepIx| self.dag.step(step).is_some_and(|spec| spec.finally);
        if finally(later) && !finally(first) {
            return true;
        }
        while let Some(spec) = work.pop().and_then(|step| self.dag.step(step)) {
            let sources = spec.map.iter().flatten().filter_map(|source| source.step());
            for step in spec.deps.iter().map(|dep| dep.step()).chain(sources) {
                if step == first {
                    return true;
                }
                if seen.insert(step) {
                    work.push(step);
                }
            }
        }
        false
    }

    fn collision(&self, one: TaskId, other: TaskId, path: &str, at: &str) -> Problem {
        Problem::new(Reason::Conflict, at, self.collides(one, other, path)).help("give each a path of its own")
    }

    /// For messages: two tasks keep their outputs at one path.
    pub fn collides(&self, one: TaskId, other: TaskId, path: &str) -> String {
        let name = self.step_name(one.step);
        match (one.item, other.item) {
            (Some(first), Some(second)) if one.step == other.step => {
                format!("items {first} and {second} of {name} would both keep their output at {}", shortened(path))
            }
            _ => {
                format!("{name} and {} would both keep their output at {}", self.step_name(other.step), shortened(path))
            }
        }
    }

    /// All inputs of all steps, with their paths as far as they are known before the run.
    pub(super) fn declared(&self) -> Vec<Declared> {
        let state = RunState::new(&self.dag, 0);
        let mut declared = Vec::new();
        for (step, of) in self.naming() {
            for input in &of.inputs {
                let tasks = self.early_tasks((step, of), &input.path, &state).into_iter();
                let paths = tasks.filter_map(|task| Some(self.input(of, input, task, &Nothing).ok()?.0)).collect();
                declared.push(Declared { step, name: input.name.clone(), written: input.written.clone(), paths });
            }
        }
        declared
    }

    /// The steps that read `path`, as it is written or as it comes out.
    pub(super) fn readers(&self, path: &str, at: &str) -> Result<Vec<usize>, Problem> {
        let (mut found, mut known) = (Vec::new(), BTreeSet::new());
        for Declared { step, written, mut paths, .. } in self.declared() {
            if written == path || paths.contains(path) {
                found.push(step.0 as usize);
            }
            known.append(&mut paths);
            known.insert(written);
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let problem = Problem::new(Reason::UnknownInput, at, format!("no step reads {}", shortened(path)));
        let near = nearest(path, known.iter().map(String::as_str)).map(|near| format!("did you mean {near}? "));
        let shown: Vec<&str> = known.iter().take(NAMED).map(String::as_str).collect();
        Err(problem.help(match (known.len(), near.unwrap_or_default()) {
            (0, _) => "no step has inputs".to_owned(),
            (count, near) if count > NAMED => {
                format!("{near}steps read {} and {} more", shown.join(", "), count - NAMED)
            }
            (_, near) => format!("{near}steps read {}", shown.join(", ")),
        }))
    }
}

/// Whether a path can be filled in before the run: it needs parameters, and items of lists that are known.
fn is_early(step: &PlanStep, path: &Text) -> bool {
    let known = |name: Option<&str>| {
        let mut vars = step.vars.iter().filter(|var| name.is_none_or(|name| name == var.name));
        vars.all(|var| matches!(var.source, VarSource::Known(_)))
    };
    path.expressions().flat_map(|(expr, column)| mentions(expr, column)).all(|(mention, _)| match mention {
        Mention::Param(_) | Mention::Run(_) => true,
        Mention::Item(name) => known(name),
        Mention::Result(_) | Mention::Output { .. } => false,
    })
}

fn names_item(path: &Text) -> bool {
    let mut mentioned = path.expressions().flat_map(|(expr, column)| mentions(expr, column));
    mentioned.any(|(mention, _)| matches!(mention, Mention::Item(_)))
}

/// Before the run there is nothing.
struct Nothing;

impl Results for Nothing {
    fn result(&self, _: TaskId) -> Option<std::borrow::Cow<'_, Value>> {
        None
    }
    fn has_output(&self, _: TaskId) -> bool {
        false
    }
    fn items(&self, _: StepIx) -> Option<u32> {
        None
    }
    fn flat(&self, _: StepIx, _: u32) -> Option<(u32, u32)> {
        None
    }
    fn version(&self, _: TaskId, _: &str) -> Option<&str> {
        None
    }
}
