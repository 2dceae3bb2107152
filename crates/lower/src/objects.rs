//! Objects in storage that steps name by a path: those that they read (`inputs`), and where an output is kept besides the
//! run's record (`output.path`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::expr::{ExprError, Part as TextPart, Text, kind};
use super::mentions::{Mention, mentions};
use super::params::shortened;
use super::plan::{Part, Plan, PlanStep, Results, VarSource};
use api::keys::check_key;
use api::problem::{Problem, nearest};
use api::step::{IfExists, Serializer};
use engine::{RunState, StepIx, TaskId};

/// Endings of a path that tell the form of what is there.
const ENDINGS: [(&str, Serializer); 5] = [
    ("pkl", Serializer::Pickle),
    ("pickle", Serializer::Pickle),
    ("json", Serializer::Json),
    ("parquet", Serializer::Parquet),
    ("npy", Serializer::Numpy),
];
/// Where whole URLs may lead: what the storage may be, as for `code.url`.
const SCHEMES: [&str; 3] = ["s3", "gs", "file"];
/// Folders of the storage that are the runs' own.
const OWN: [&str; 3] = ["runs", "pipelines", "probe"];
/// Paths that a message names.
const NAMED: usize = 10;

/// An object that a step reads as a keyword argument.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub name: String,
    /// Where its path stands in the pipeline.
    pub at: String,
    /// The path as it is written.
    pub written: String,
    pub path: Text,
    /// As given; else the ending of the path says it.
    pub serializer: Option<Serializer>,
}

/// Where a step keeps its output under a name of its own.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Where its path stands in the pipeline.
    pub at: String,
    pub path: Text,
    pub if_exists: IfExists,
    pub serializer: Serializer,
}

/// Why a path, filled in, is none.
#[derive(Debug)]
pub(super) struct Wrong {
    reason: &'static str,
    message: String,
    help: String,
}

/// What a task does in storage besides its run's own records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Paths that it reads.
    pub reads: Vec<String>,
    /// Where it keeps its output, and what it does if something is there.
    pub keeps: Option<(String, IfExists)>,
}

/// An input of a step, before the run.
pub(super) struct Declared {
    pub step: StepIx,
    pub name: String,
    /// Its path as it is written.
    pub written: String,
    /// As it comes out, of all items, as far as that is known.
    pub paths: BTreeSet<String>,
}

impl Input {
    /// What is read at `path`, as far as it is filled in: path and form.
    pub fn object(&self, path: &Value) -> Result<(String, Serializer), Wrong> {
        let path = text_of(path)?;
        check_readable(path)?;
        let serializer = self.serializer.or_else(|| form(path)).ok_or_else(|| no_form(path))?;
        Ok((path.to_owned(), serializer))
    }

    /// What is wrong already with what is written.
    pub fn check(&self) -> Result<(), Wrong> {
        match (&self.path, self.serializer) {
            (Text::Literal(path), _) => self.object(&Value::String(path.clone())).map(drop),
            (path, None) if tail(path).is_some_and(|tail| ending(tail).is_some() && form(tail).is_none()) => {
                Err(no_form(&self.written))
            }
            _ => Ok(()),
        }
    }
}

impl Target {
    /// Where the output goes if `path` is this, filled in.
    pub fn place(&self, path: &Value) -> Result<String, Wrong> {
        let path = text_of(path)?;
        check_writable(path)?;
        self.check_form(path)?;
        Ok(path.to_owned())
    }

    /// What is wrong already with what is written.
    pub fn check(&self) -> Result<(), Wrong> {
        match &self.path {
            Text::Literal(path) => self.place(&Value::String(path.clone())).map(drop),
            path => tail(path).map_or(Ok(()), |tail| self.check_form(tail)),
        }
    }

    /// A name must not promise another form than the output has.
    fn check_form(&self, path: &str) -> Result<(), Wrong> {
        match form(path) {
            Some(form) if form != self.serializer => {
                let message = format!(
                    "the ending of {} says {}, and the output is written as {}",
                    shortened(path),
                    form.as_str(),
                    self.serializer.as_str()
                );
                let help = format!("add serializer: {}, or choose another ending", form.as_str());
                Err(Wrong { reason: "Conflict", message, help })
            }
            _ => Ok(()),
        }
    }

    /// Whether what is there already counts, so that somebody has to look before the step runs.
    pub fn looks(&self) -> bool {
        self.if_exists != IfExists::Replace
    }
}

impl Wrong {
    pub fn problem(self, at: &str) -> Problem {
        Problem::new(self.reason, at, self.message).help(self.help)
    }

    /// The same while the run goes on; `field` is where the path stands in its step.
    fn error(self, field: &str) -> ExprError {
        ExprError::evaluation(format!("{field}: {} ({})", self.message, self.help))
    }
}

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
                problems.push(Problem::new("Conflict", &input.at, message).help(help));
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
        Problem::new("Conflict", at, self.collides(one, other, path)).help("give each a path of its own")
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
        let problem = Problem::new("UnknownInput", at, format!("no step reads {}", shortened(path)));
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

fn text_of(path: &Value) -> Result<&str, Wrong> {
    path.as_str().ok_or_else(|| Wrong {
        reason: "TypeMismatch",
        message: format!("a path is a text, this is {}", kind(path)),
        help: "put the expression into a text, for example data/$(params.day).parquet".to_owned(),
    })
}

/// What is read may be anywhere that the storage's kind of identity reaches: a step's code could read it as well.
fn check_readable(path: &str) -> Result<(), Wrong> {
    let Some((scheme, rest)) = path.split_once("://") else { return check_below(path) };
    let wrong = |message: String| {
        let help = "a path below the pipeline's storage, or a URL such as s3://bucket/data/in.parquet".to_owned();
        Err(Wrong { reason: "InvalidValue", message, help })
    };
    let shown = shortened(path);
    if !SCHEMES.contains(&scheme) {
        return wrong(format!("an object is read from s3://, gs:// or file:///, not from {shown}"));
    }
    if rest.contains(['?', '#']) {
        return wrong(format!("the URL of an object has no query and no fragment: {shown}"));
    }
    let key = match (scheme, rest.split_once('/')) {
        ("file", Some(("", key))) => key,
        ("file", _) => return wrong(format!("a file is file:///absolute/path, not {shown}")),
        (_, Some((bucket, key))) if !bucket.is_empty() && !bucket.contains(['@', ':']) => key,
        _ => return wrong(format!("{shown} names no object in a bucket")),
    };
    check_key(key).or_else(|error| wrong(format!("{shown} names no object: {error}")))
}

fn check_writable(path: &str) -> Result<(), Wrong> {
    let wrong = |message: String, help: &str| Err(Wrong { reason: "InvalidValue", message, help: help.to_owned() });
    if path.contains("://") {
        let message = format!("an output is kept below the pipeline's storage, not at {}", shortened(path));
        return wrong(message, "give a path, for example models/current.pkl");
    }
    let first = path.split('/').next().unwrap_or_default();
    if OWN.contains(&first) {
        let message = format!("the folder {first} of the storage holds what runs need for themselves");
        return wrong(message, "choose another folder, for example models");
    }
    check_below(path)
}

fn check_below(path: &str) -> Result<(), Wrong> {
    let wrong = |message: String, help: &str| Err(Wrong { reason: "InvalidValue", message, help: help.to_owned() });
    if path.starts_with('/') {
        let message = format!("{} begins with a slash, and paths are below the pipeline's storage", shortened(path));
        return wrong(message, "leave the slash out; a file of the machine is file:///absolute/path, for inputs only");
    }
    check_key(path).or_else(|error| {
        wrong(format!("{} is no path below the storage: {error}", shortened(path)), "for example models/current.pkl")
    })
}

/// The form that the ending of a path tells.
fn form(path: &str) -> Option<Serializer> {
    let ending = ending(path)?.to_ascii_lowercase();
    ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, form)| *form)
}

/// What follows the last dot of the last part.
fn ending(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map(|(_, ending)| ending)
}

/// The text behind the last expression.
fn tail(path: &Text) -> Option<&str> {
    match path {
        Text::Literal(text) => Some(text),
        Text::Whole { .. } => None,
        Text::Mixed(parts) => match parts.last()? {
            TextPart::Literal(text) => Some(text),
            TextPart::Expr { .. } => None,
        },
    }
}

fn no_form(path: &str) -> Wrong {
    let endings: Vec<String> = ENDINGS.iter().map(|(ending, _)| format!(".{ending}")).collect();
    Wrong {
        reason: "InvalidValue",
        message: format!("the ending of {} does not say what is there: {} do", shortened(path), endings.join(", ")),
        help: "add serializer: pickle, json, parquet or numpy; csv, text and all else is read by the step's own code"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(serializer: Option<Serializer>) -> Input {
        let (name, at, written) = ("x".to_owned(), String::new(), String::new());
        Input { name, at, written, path: Text::Literal(String::new()), serializer }
    }

    #[test]
    fn the_ending_tells_the_form() {
        for (path, expected) in [
            ("a/b.pkl", Some("pickle")),
            ("b.PICKLE", Some("pickle")),
            ("b.tar.json", Some("json")),
            ("s3://bucket/in.parquet", Some("parquet")),
            ("file:///data/x.npy", Some("numpy")),
            ("a.json/b", None),
            ("b", None),
            ("b.csv", None),
            ("b.", None),
        ] {
            let found = input(None).object(&Value::String(path.to_owned()));
            assert_eq!(found.as_ref().ok().map(|(_, form)| form.as_str()), expected, "{path}");
            if let Err(wrong) = found {
                assert!(wrong.message.contains(".pkl") && wrong.help.contains("serializer"), "{wrong:?}");
            }
            assert!(input(Some(Serializer::Json)).object(&Value::String(path.to_owned())).is_ok(), "{path}");
        }
    }

    #[test]
    fn nothing_outside_the_storage_is_named_by_a_path() {
        let read = |path: &str| input(Some(Serializer::Json)).object(&Value::String(path.to_owned())).map(drop);
        for path in
            ["a", "a/b c/é.x", "a/..b", "s3://b/k", "s3://other.bucket/a/b", "gs://b/k", "file:///data/x", "runs/x"]
        {
            assert!(read(path).is_ok(), "{path}: {:?}", read(path));
        }
        for path in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../../b",
            "a/./b",
            "a\\b",
            "a\nb",
            ".tmp-1",
            "s3://b",
            "s3://b/",
            "s3:///k",
            "s3://u:p@b/k",
            "s3://b/../k",
            "s3://b/k?versionId=1",
            "file://host/x",
            "file://x",
            "file:///../etc/x",
            "https://example.com/x",
            "ftp://x/y",
        ] {
            let wrong = read(path).expect_err(path);
            assert_eq!(wrong.reason, "InvalidValue", "{path}");
            assert!(wrong.message.contains(path), "{path}: {}", wrong.message);
        }
        let wrong = input(None).object(&Value::from(3)).expect_err("a number");
        assert_eq!(wrong.reason, "TypeMismatch");
        assert!(wrong.message.contains("this is an integer"), "{}", wrong.message);
    }

    #[test]
    fn outputs_stay_away_from_the_runs_own_folders() {
        let target = |serializer| Target {
            at: String::new(),
            path: Text::Literal(String::new()),
            if_exists: IfExists::Fail,
            serializer,
        };
        let place =
            |path: &str, form| target(form).place(&Value::String(path.to_owned())).map_err(|wrong| wrong.reason);
        for path in ["a", "models/current.pkl", "runs-of-mine/x", "x/runs/y"] {
            assert_eq!(place(path, Serializer::Pickle), Ok(path.to_owned()));
        }
        for path in ["runs", "runs/u/journal/0000000000.seg", "pipelines/x", "probe/x", "s3://b/x", "/x", "../x", ""] {
            assert_eq!(place(path, Serializer::Pickle), Err("InvalidValue"), "{path}");
        }
        assert_eq!(place("m.json", Serializer::Pickle), Err("Conflict"));
        assert_eq!(place("m.json", Serializer::Json), Ok("m.json".to_owned()));
    }
}
