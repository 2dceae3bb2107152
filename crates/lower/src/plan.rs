//! The plan of one run: the engine's graph, the runtime's definitions, and what has to be evaluated while it runs.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    encode::{Slot, node_value},
    expr::{Account, Expr, ExprError, Gather, Path, Root, Scope, Text, kind, lookup, no_values},
    mentions::{Mention, mentions},
    node::Node,
    objects::{Input, Target},
    pin::Pin,
    template::{Reference, Template},
};
use api::step::Cache;
use engine::{Dag, Limits, RunState, StepIx, TaskId};
use wire::{PathPart, StepDef};

/// What a run can be executed from. Holds no state of the run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// For the engine.
    pub dag: Dag,
    /// What the engine keeps to.
    pub limits: Limits,
    /// Values of all parameters, by name.
    pub params: Value,
    pub(super) steps: Vec<PlanStep>,
    pub(super) index: BTreeMap<String, StepIx>,
    pub(super) run: Map<String, Value>,
    pub(super) results: Vec<ResultSpec>,
    pub(super) requirements: Vec<String>,
    /// Versions that are fixed, by the paths of the objects.
    pub(super) pins: BTreeMap<String, Pin>,
}

/// What the plan needs to know of the run so far.
pub trait Results {
    /// The output of a finished task as JSON, where it was wanted and can be had.
    fn result(&self, task: TaskId) -> Option<Cow<'_, Value>>;
    /// Whether the task has a result that there was no room to fetch.
    fn is_away(&self, _task: TaskId) -> bool {
        false
    }
    /// Bytes that the results of all tasks of a step take.
    fn result_bytes(&self, _step: StepIx) -> usize {
        0
    }
    /// Whether the task has an output, JSON or not; else it failed or was skipped.
    fn has_output(&self, task: TaskId) -> bool;
    /// Number of items of a mapped step, once known.
    fn items(&self, step: StepIx) -> Option<u32>;
    /// Where entry `index` of the flattened lists of a mapped step is: the item, and the place in its list.
    fn flat(&self, step: StepIx, index: u32) -> Option<(u32, u32)>;
    /// Which version of the object at `path` the task has read or kept, or would read now.
    fn version(&self, task: TaskId, path: &str) -> Option<&str>;
}

#[derive(Debug, Clone)]
pub(super) struct PlanStep {
    pub def: StepDef,
    pub mapped: bool,
    pub vars: Vec<PlanVar>,
    pub slots: Vec<Slot>,
    pub inputs: Vec<Input>,
    pub target: Option<Target>,
    pub cache: Cache,
    pub when: Option<Expr>,
    /// The arguments as in `def`.
    pub template: Template,
    pub tags: Vec<String>,
    pub part: Part,
}

/// What becomes of a step in a run of a part of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It runs.
    Runs,
    /// It does not run; steps that do need its output, which is an earlier run's.
    Loaded,
    /// It does not run, and nobody needs it.
    LeftOut,
}

/// A variable of `map`.
#[derive(Debug, Clone)]
pub(super) struct PlanVar {
    pub name: String,
    pub source: VarSource,
}

#[derive(Debug, Clone)]
pub(super) enum VarSource {
    Known(Arc<Vec<Value>>),
    Items(StepIx),
    ItemResults(StepIx),
    Output { step: StepIx, path: Vec<PathPart> },
    OutputResult { step: StepIx, path: Vec<PathPart> },
    Flatten(StepIx),
}

impl VarSource {
    fn step(&self) -> Option<StepIx> {
        match self {
            Self::Known(_) => None,
            Self::Items(step) | Self::ItemResults(step) | Self::Flatten(step) => Some(*step),
            Self::Output { step, .. } | Self::OutputResult { step, .. } => Some(*step),
        }
    }
}

/// A result of the run.
#[derive(Debug, Clone)]
pub struct ResultSpec {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: ResultSource,
}

/// Where a result comes from.
#[derive(Debug, Clone)]
pub enum ResultSource {
    /// The output of a step, or a place in it.
    Step {
        /// Which step.
        step: StepIx,
        /// Of one item of a mapped step; without, a mapped step's is the list of all.
        item: Option<u32>,
        /// The place in it.
        path: Vec<PathPart>,
        /// How the outputs of a mapped step are put together.
        gather: Gather,
    },
    /// Known from the start.
    Literal(Value),
    /// Put together from results of steps: see [`Plan::computed_result`].
    Computed(Computed),
}

/// A value with expressions over results in it.
#[derive(Debug, Clone)]
pub struct Computed(Node);

impl Plan {
    /// Name of a step.
    pub fn step_name(&self, step: StepIx) -> &str {
        self.steps.get(step.0 as usize).map_or("", |step| &step.def.name)
    }

    /// The step of this name.
    pub fn step_index(&self, name: &str) -> Option<StepIx> {
        self.index.get(name).copied()
    }

    /// Number of tasks of each step, as far as it is known before the run; else one.
    pub fn known_lengths(&self) -> impl Iterator<Item = u64> {
        let state = RunState::new(&self.dag, 0);
        let lens = self.dag.steps().map(move |(step, _)| u64::from(state.step_len(step).unwrap_or(1)));
        lens.collect::<Vec<_>>().into_iter()
    }

    /// Whether a step has a map.
    pub fn is_mapped(&self, step: StepIx) -> bool {
        self.steps.get(step.0 as usize).is_some_and(|step| step.mapped)
    }

    /// Whether a step runs in this run.
    pub fn part(&self, step: StepIx) -> Part {
        self.steps.get(step.0 as usize).map_or(Part::LeftOut, |step| step.part)
    }

    /// How a step is defined.
    pub fn step_def(&self, step: StepIx) -> Option<&StepDef> {
        self.steps.get(step.0 as usize).map(|step| &step.def)
    }

    /// What may be reused of a step.
    pub fn cache(&self, step: StepIx) -> Cache {
        self.steps.get(step.0 as usize).map(|step| step.cache.clone()).unwrap_or_default()
    }

    /// The steps as the runtime is told, in order of their indices.
    pub fn step_defs(&self) -> Vec<StepDef> {
        self.steps.iter().map(|step| step.def.clone()).collect()
    }

    /// The declared results, or else the outputs of the steps that no other step uses.
    pub fn results(&self) -> &[ResultSpec] {
        &self.results
    }

    /// The value of a result that was known from the start.
    pub fn literal_result(&self, result: &ResultSpec) -> Option<Value> {
        match &result.source {
            ResultSource::Literal(value) => Some(value.clone()),
            ResultSource::Step { .. } | ResultSource::Computed(_) => None,
        }
    }

    /// The value of a result from the JSON of the steps it names; fails if one of them has none.
    pub fn computed_result(&self, result: &ResultSpec, results: &dyn Results) -> Result<Value, ExprError> {
        match &result.source {
            ResultSource::Literal(value) => Ok(value.clone()),
            ResultSource::Step { step, item, path, gather } => {
                let name = format!("steps.{}.output", self.step_name(*step));
                let value = match item {
                    Some(item) => self.result_of(TaskId::item(*step, *item), results)?,
                    None => self.gathered(*step, *gather, results)?,
                };
                lookup(&value, path, &name).cloned()
            }
            ResultSource::Computed(Computed(node)) => self.computed(node, results),
        }
    }

    /// Whether the condition of `task` holds; true without one. For a mapped step whose condition does not name `item`,
    /// `task` is the step as a whole.
    pub fn decide(&self, task: TaskId, results: &dyn Results) -> Result<bool, ExprError> {
        let Some(step) = self.steps.get(task.step.0 as usize) else { return Ok(true) };
        let Some(when) = &step.when else { return Ok(true) };
        let named = self.named_results(&mentions(when, 1), results)?;
        let item = step.items([(when, 1)].into_iter(), task, results)?;
        condition(when, &self.scope(&item, &named, &Account::default()))
    }

    /// Steps whose results the condition of `step` asks for.
    pub fn asked_by_condition(&self, step: StepIx) -> BTreeSet<StepIx> {
        let Some(step) = self.steps.get(step.0 as usize) else { return BTreeSet::new() };
        let Some(when) = &step.when else { return BTreeSet::new() };
        let mut asked = BTreeSet::new();
        for (mention, _) in mentions(when, 1) {
            match mention {
                Mention::Result(name) | Mention::Output { step: name, .. } => asked.extend(self.step_index(name)),
                Mention::Item(name) => {
                    let vars = step.vars.iter().filter(|var| name.is_none_or(|name| name == var.name));
                    asked.extend(vars.filter_map(|var| var.source.step()));
                }
                Mention::Param(_) | Mention::Run(_) => {}
            }
        }
        asked
    }

    /// The values that differ from task to task, encoded; `None` if the step has none. `taken`: what is where the output
    /// would be kept is the output, and the step is not called.
    pub fn values(&self, task: TaskId, results: &dyn Results, taken: bool) -> Result<Option<Vec<u8>>, ExprError> {
        Ok(self.filled(task, results, taken)?.map(Template::into_bytes))
    }

    pub(super) fn filled(
        &self,
        task: TaskId,
        results: &dyn Results,
        taken: bool,
    ) -> Result<Option<Template>, ExprError> {
        let Some(step) = self.steps.get(task.step.0 as usize) else { return Ok(None) };
        if step.slots.is_empty() {
            return Ok(None);
        }
        let mut template = Template::default();
        template.array(step.slots.len());
        for slot in &step.slots {
            match slot {
                Slot::Var { var, path } => step.write_var(*var, path, task, results, &mut template)?,
                Slot::Text(text) => template.value(&self.evaluate(step, text, task, results)?),
                Slot::Object(input) => {
                    if let Some(input) = step.inputs.get(*input as usize) {
                        let (path, serializer) = self.input(step, input, task, results)?;
                        template.object(&path, serializer);
                    }
                }
                Slot::Place => {
                    if let Some(target) = &step.target {
                        template.text(&self.place(step, target, task, results)?);
                    }
                }
                Slot::Taken => template.value(&Value::Bool(taken)),
            }
        }
        Ok(Some(template))
    }

    pub(super) fn evaluate(
        &self,
        step: &PlanStep,
        text: &Text,
        task: TaskId,
        results: &dyn Results,
    ) -> Result<Value, ExprError> {
        let mut named = Map::new();
        for (expr, column) in text.expressions() {
            named.append(&mut self.named_results(&mentions(expr, column), results)?);
        }
        let item = step.items(text.expressions(), task, results)?;
        text.evaluate(&self.scope(&item, &named, &Account::default()))
    }

    fn scope<'a>(
        &'a self,
        item: &'a Map<String, Value>,
        results: &'a Map<String, Value>,
        account: &'a Account,
    ) -> Scope<'a> {
        let params = self.params.as_object().unwrap_or(no_values());
        Scope { params, run: &self.run, item, results, max_items: self.limits.max_items, account }
    }

    /// `.result` of the steps that are mentioned.
    fn named_results(
        &self,
        mentions: &[(Mention<'_>, usize)],
        results: &dyn Results,
    ) -> Result<Map<String, Value>, ExprError> {
        let mut named = Map::new();
        for (mention, _) in mentions {
            if let Mention::Result(name) = mention
                && !named.contains_key(*name)
                && let Some(step) = self.step_index(name)
            {
                named.insert((*name).to_owned(), self.gathered(step, Gather::Whole, results)?);
            }
        }
        Ok(named)
    }

    /// The JSON of a whole step: of a mapped one, the list of its items' with null for holes.
    fn gathered(&self, step: StepIx, gather: Gather, results: &dyn Results) -> Result<Value, ExprError> {
        if !self.is_mapped(step) {
            return self.result_of(TaskId::whole(step), results);
        }
        let count = results.items(step).ok_or_else(|| self.no_result(TaskId::whole(step), results))?;
        if results.result_bytes(step) > limits::GATHERED_BYTES {
            let (name, most) = (self.step_name(step), limits::GATHERED_BYTES >> 20);
            let message = format!(
                "the results of step {name} have more than {most} MiB in total; use .output instead of .result"
            );
            return Err(ExprError::evaluation(message));
        }
        let (mut list, mut room) = (Vec::new(), limits::GATHERED_VALUES);
        for item in 0..count {
            let value = results.result(TaskId::item(step, item));
            room = room.checked_sub(value.as_deref().map_or(1, values_of)).ok_or_else(|| {
                let (name, most) = (self.step_name(step), limits::GATHERED_VALUES);
                let message = format!("the results of step \"{name}\" have more than {most} values");
                ExprError::evaluation(format!("{message}; use .output instead of .result"))
            })?;
            match (value.map(Cow::into_owned), gather) {
                (Some(value), Gather::Whole | Gather::Compact) => list.push(value),
                (None, _) if results.has_output(TaskId::item(step, item)) => {
                    return Err(self.no_result(TaskId::item(step, item), results));
                }
                (None, Gather::Whole) => list.push(Value::Null),
                (Some(Value::Array(entries)), Gather::Flatten) => list.extend(entries),
                (Some(other), Gather::Flatten) => {
                    let message = format!("item {item} of {} is {}, not a list", self.step_name(step), kind(&other));
                    return Err(ExprError::mismatch(message));
                }
                (None, Gather::Compact | Gather::Flatten) => {}
            }
        }
        Ok(Value::Array(list))
    }

    fn result_of(&self, task: TaskId, results: &dyn Results) -> Result<Value, ExprError> {
        results.result(task).map(Cow::into_owned).ok_or_else(|| self.no_result(task, results))
    }

    fn no_result(&self, task: TaskId, results: &dyn Results) -> ExprError {
        let name = self.step_name(task.step);
        if results.is_away(task) {
            let most = limits::RESULTS_LENT >> 20;
            let message = format!(
                "the results that this expression reads, of {name} and others, have more than {most} MiB in total"
            );
            return ExprError::evaluation(message);
        }
        ExprError::evaluation(format!("steps.{name} has no result (JSON of at most 16 KiB)"))
    }

    fn computed(&self, node: &Node, results: &dyn Results) -> Result<Value, ExprError> {
        match node {
            Node::Literal(value) => Ok(value.clone()),
            Node::List(list) => {
                list.iter().map(|entry| self.computed(entry, results)).collect::<Result<_, _>>().map(Value::Array)
            }
            Node::Map(map) => map
                .iter()
                .map(|(key, entry)| Ok((key.clone(), self.computed(entry, results)?)))
                .collect::<Result<Map<_, _>, _>>()
                .map(Value::Object),
            Node::Text(text) => {
                if let Text::Whole { expr: Expr::Path(path), .. } = text
                    && let Root::Output { step, gather } = &path.root
                    && let Some(step) = self.step_index(step)
                {
                    let value = self.gathered(step, *gather, results)?;
                    return lookup(&value, &path.keys, &format!("steps.{}.output", self.step_name(step))).cloned();
                }
                let mut named = Map::new();
                for (expr, column) in text.expressions() {
                    named.append(&mut self.named_results(&mentions(expr, column), results)?);
                }
                text.evaluate(&self.scope(no_values(), &named, &Account::default()))
            }
        }
    }
}

impl PlanStep {
    /// The variables of `map` that `expressions` name and can see, for one task.
    fn items<'a>(
        &self,
        expressions: impl Iterator<Item = (&'a Expr, usize)>,
        task: TaskId,
        results: &dyn Results,
    ) -> Result<Map<String, Value>, ExprError> {
        let mut items = Map::new();
        for (expr, column) in expressions {
            for (mention, _) in mentions(expr, column) {
                let Mention::Item(name) = mention else { continue };
                for var in self.vars.iter().filter(|var| name.is_none_or(|name| name == var.name)) {
                    if !items.contains_key(&var.name)
                        && let Some(value) = var.value(task, results)?
                    {
                        items.insert(var.name.clone(), value.into_owned());
                    }
                }
            }
        }
        Ok(items)
    }

    fn write_var(
        &self,
        var: u32,
        path: &[PathPart],
        task: TaskId,
        results: &dyn Results,
        template: &mut Template,
    ) -> Result<(), ExprError> {
        let (Some(var), Some(item)) = (self.vars.get(var as usize), task.item) else {
            return Err(ExprError::evaluation(format!("{} is asked for an item that it does not have", self.def.name)));
        };
        if let Some(value) = var.value(task, results)? {
            template.value(lookup(&value, path, &format!("item.{}", var.name))?);
            return Ok(());
        }
        let joined = |first: &[PathPart], index: u32| {
            let index = std::iter::once(PathPart::Index(index));
            first.iter().cloned().chain(index).chain(path.iter().cloned()).collect::<Vec<_>>()
        };
        let reference = match &var.source {
            VarSource::Items(step) => Reference::Output { step: *step, item: i64::from(item), path: path.to_vec() },
            VarSource::Output { step, path: list } if list.is_empty() && path.is_empty() => {
                Reference::Element { step: *step, item: -1, index: item }
            }
            VarSource::Output { step, path: list } => {
                Reference::Output { step: *step, item: -1, path: joined(list, item) }
            }
            VarSource::Flatten(step) => {
                let Some((of, place)) = results.flat(*step, item) else {
                    return Err(ExprError::evaluation(format!("there is no entry {item} in the flattened lists")));
                };
                if path.is_empty() {
                    Reference::Element { step: *step, item: i64::from(of), index: place }
                } else {
                    Reference::Output { step: *step, item: i64::from(of), path: joined(&[], place) }
                }
            }
            VarSource::Known(_) | VarSource::ItemResults(_) | VarSource::OutputResult { .. } => {
                return Err(ExprError::evaluation(format!("item.{} has no value for item {item}", var.name)));
            }
        };
        template.reference(&reference);
        Ok(())
    }
}

impl PlanVar {
    /// Its value for one task, if expressions can see it.
    fn value<'a>(&'a self, task: TaskId, results: &'a dyn Results) -> Result<Option<Cow<'a, Value>>, ExprError> {
        let Some(item) = task.item else { return Ok(None) };
        match &self.source {
            VarSource::Known(list) => {
                list.get(item as usize).map(|value| Some(Cow::Borrowed(value))).ok_or_else(|| self.missing(item))
            }
            VarSource::ItemResults(step) => {
                results.result(TaskId::item(*step, item)).map(Some).ok_or_else(|| self.missing(item))
            }
            VarSource::OutputResult { step, path } => {
                let result = results.result(TaskId::whole(*step)).ok_or_else(|| self.missing(item))?;
                Ok(Some(match result {
                    Cow::Borrowed(result) => Cow::Borrowed(self.entry(result, path, item)?),
                    Cow::Owned(result) => Cow::Owned(self.entry(&result, path, item)?.clone()),
                }))
            }
            VarSource::Items(_) | VarSource::Output { .. } | VarSource::Flatten(_) => Ok(None),
        }
    }

    /// One entry of the list at `path` in a result.
    fn entry<'a>(&self, result: &'a Value, path: &[PathPart], item: u32) -> Result<&'a Value, ExprError> {
        match lookup(result, path, "the result")? {
            Value::Array(list) => list.get(item as usize).ok_or_else(|| self.missing(item)),
            other => {
                let message = format!("item.{} must come from a list, not from {}", self.name, kind(other));
                Err(ExprError::mismatch(message))
            }
        }
    }

    fn missing(&self, item: u32) -> ExprError {
        ExprError::evaluation(format!("item.{} has no value for item {item}", self.name))
    }
}

impl ResultSpec {
    pub(super) fn of_step(name: &str, step: StepIx) -> Self {
        let source = ResultSource::Step { step, item: None, path: Vec::new(), gather: Gather::Whole };
        Self { name: name.to_owned(), source }
    }

    pub(super) fn nothing(name: &str) -> Self {
        Self { name: name.to_owned(), source: ResultSource::Literal(Value::Null) }
    }

    pub(super) fn of_node(
        name: &str,
        node: &Node,
        is_mapped: &dyn Fn(StepIx) -> bool,
        index: &BTreeMap<String, StepIx>,
        scope: &Scope<'_>,
    ) -> Result<Self, ExprError> {
        let mut dynamic = false;
        node.visit("", &mut |expr, column, _, _| {
            let found = mentions(expr, column);
            dynamic |= found.iter().any(|(mention, _)| matches!(mention, Mention::Result(_) | Mention::Output { .. }));
        });
        let source = match node {
            Node::Text(Text::Whole {
                expr: Expr::Path(Path { root: Root::Output { step, gather }, keys }), ..
            }) => match index.get(step) {
                Some(step) => match &keys[..] {
                    [PathPart::Index(item), path @ ..] if is_mapped(*step) => {
                        ResultSource::Step { step: *step, item: Some(*item), path: path.to_vec(), gather: *gather }
                    }
                    path => ResultSource::Step { step: *step, item: None, path: path.to_vec(), gather: *gather },
                },
                None => ResultSource::Literal(Value::Null),
            },
            _ if dynamic => ResultSource::Computed(Computed(node.clone())),
            _ => ResultSource::Literal(node_value(node, scope)?),
        };
        Ok(Self { name: name.to_owned(), source })
    }
}

/// Values in `value`, itself included.
pub fn values_of(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(values_of).sum(),
        Value::Object(map) => map.values().map(|value| 1 + values_of(value)).sum(),
        _ => 0,
    }
}

/// The value of a condition; anything but true or false is refused.
pub(super) fn condition(when: &Expr, scope: &Scope<'_>) -> Result<bool, ExprError> {
    match when.evaluate(scope)? {
        Value::Bool(value) => Ok(value),
        other => Err(ExprError::mismatch(format!("the condition is {}, it must be true or false", kind(&other)))),
    }
}
