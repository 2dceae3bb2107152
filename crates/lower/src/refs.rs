//! References from expressions to parameters, items and steps: that they exist, are upstream and have a fitting form.

use std::collections::{BTreeMap, BTreeSet};
use wire::PathPart;

use super::{
    expr::{Expr, Gather, Path, Root, Text, kind},
    flow::{FlowSource, FlowStep, FlowVar},
    mentions::{Mention, mentions},
    node::Node,
    params::{listed, shortened, unknown},
};
use api::problem::{Problem, nearest};
use api::reason::Reason;
use api::{
    pipeline::{Param, ParamType, PipelineSpec},
    step::Step,
};
use engine::StepIx;

/// Entries of `run`.
pub(super) const RUN: [&str; 2] = ["name", "uid"];

/// Where an expression stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    Args {
        step: StepIx,
        vars: Option<&'a [FlowVar]>,
    },
    When {
        step: StepIx,
        vars: Option<&'a [FlowVar]>,
    },
    /// Of an object in storage.
    Path {
        step: StepIx,
        vars: Option<&'a [FlowVar]>,
    },
    Map {
        step: StepIx,
    },
    Result,
}

impl<'a> Place<'a> {
    fn step(self) -> Option<StepIx> {
        match self {
            Self::Args { step, .. } | Self::When { step, .. } | Self::Path { step, .. } | Self::Map { step } => {
                Some(step)
            }
            Self::Result => None,
        }
    }

    fn vars(self) -> Option<&'a [FlowVar]> {
        match self {
            Self::Args { vars, .. } | Self::When { vars, .. } | Self::Path { vars, .. } => vars,
            Self::Map { .. } | Self::Result => None,
        }
    }

    fn takes_outputs(self) -> bool {
        matches!(self, Self::Args { .. } | Self::Result)
    }
}

/// What expressions refer to.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub data: BTreeSet<StepIx>,
    /// Results of other steps are needed.
    pub late: bool,
    pub items: BTreeSet<String>,
    pub all_items: bool,
}

impl Found {
    pub fn merge(&mut self, other: Self) {
        self.data.extend(other.data);
        self.late |= other.late;
        self.items.extend(other.items);
        self.all_items |= other.all_items;
    }

    pub fn mentions_item(&self) -> bool {
        self.all_items || !self.items.is_empty()
    }
}

/// Resolves references and remembers what is wanted of each step.
pub(super) struct Refs<'a> {
    params: &'a [Param],
    steps: Vec<(&'a Step, bool)>,
    index: &'a BTreeMap<&'a str, StepIx>,
    wants: Vec<Wants>,
}

#[derive(Debug, Clone, Default)]
struct Wants {
    result: bool,
    in_results: bool,
    consumed: bool,
    container: bool,
    lens: Vec<Vec<PathPart>>,
}

impl<'a> Refs<'a> {
    pub fn new(spec: &'a PipelineSpec, all: &[(&'a Step, String, bool)], index: &'a BTreeMap<&'a str, StepIx>) -> Self {
        let steps: Vec<(&Step, bool)> = all.iter().map(|(step, _, finally)| (*step, *finally)).collect();
        let wants = vec![Wants::default(); steps.len()];
        Self { params: &spec.params, steps, index, wants }
    }

    /// Writes into `steps` what others want of them. Without declared results, every step that nobody uses is one.
    pub fn settle(self, steps: &mut [FlowStep], results_by_default: bool) {
        for (step, wants) in steps.iter_mut().zip(self.wants) {
            let by_default = results_by_default && !wants.consumed && !step.finally;
            step.result = match (wants.result, wants.in_results || by_default) {
                (true, _) => 2,
                (false, true) => 1,
                (false, false) => 0,
            };
            step.container = wants.container;
            step.lens = wants.lens;
            step.lens.sort_by_key(|path| !path.is_empty());
        }
    }

    /// Checks all expressions in `node`.
    pub fn check(&mut self, node: &Node, at: &str, place: Place<'_>, problems: &mut Vec<Problem>) -> Found {
        let mut found = Found::default();
        node.visit(at, &mut |expr, column, at, whole| {
            self.expression(expr, column, at, whole, place, &mut found, problems);
        });
        found
    }

    /// Checks one expression; what it refers to is added to `found` and returned.
    #[expect(clippy::too_many_arguments, reason = "one expression, its place, and two sinks")]
    pub fn expression(
        &mut self,
        expr: &Expr,
        column: usize,
        at: &str,
        whole: bool,
        place: Place<'_>,
        found: &mut Found,
        problems: &mut Vec<Problem>,
    ) -> Found {
        let mut here = Found::default();
        for (mention, column) in mentions(expr, column) {
            match mention {
                Mention::Param(name) => self.parameter(name, expr, at, column, problems),
                Mention::Run(name) => run_entry(name, expr, at, column, problems),
                Mention::Item(name) => item(name, expr, at, column, whole, place, &mut here, problems),
                Mention::Result(name) => {
                    let Some(target) = self.target(name, place.step(), at, Some(column), problems) else { continue };
                    if let Expr::Path(path) = expr {
                        self.output(target, Gather::Whole, &path.keys, "result", at, problems);
                    }
                    let wants = &mut self.wants[target.0 as usize];
                    wants.result = true;
                    wants.consumed |= place.step().is_some();
                    here.data.insert(target);
                    here.late = true;
                }
                Mention::Output { step: name, gather, keys } => {
                    if !place.takes_outputs() || !whole {
                        problems.push(opaque_here(&format!("steps.{name}.output"), at, column, place));
                    }
                    let Some(target) = self.target(name, place.step(), at, Some(column), problems) else { continue };
                    self.output(target, gather, keys, "output", at, problems);
                    let wants = &mut self.wants[target.0 as usize];
                    wants.consumed |= place.step().is_some();
                    wants.in_results |= place.step().is_none();
                    here.data.insert(target);
                }
            }
        }
        found.merge(here.clone());
        here
    }

    /// The source of a variable of `map`.
    pub fn source(
        &mut self,
        node: Node,
        at: &str,
        step: StepIx,
        found: &mut Found,
        problems: &mut Vec<Problem>,
    ) -> FlowSource {
        if let Node::Text(Text::Whole { expr: Expr::Path(path), column }) = &node
            && let Some(source) = self.dynamic_source(path, *column, at, step, found, problems)
        {
            return source;
        }
        let here = self.check(&node, at, Place::Map { step }, problems);
        if here.late {
            let message = "a map takes the result of a step as it is, or a list in it, not computed with";
            let help = "let the step return the list, and map over $(steps.<name>.output)";
            problems.push(Problem::new(Reason::InvalidExpression, at, message).help(help));
        }
        let wrong = match &node {
            Node::Literal(value) if !value.is_array() => Some(kind(value)),
            Node::Map(_) => Some("a mapping"),
            Node::Text(Text::Mixed(_)) => Some("a string"),
            Node::Text(Text::Whole { expr: Expr::Path(path), .. }) => self.not_a_list(path),
            _ => None,
        };
        if let Some(wrong) = wrong {
            problems.push(Problem::new(Reason::TypeMismatch, at, format!("a map goes over a list, this is {wrong}")));
        }
        found.merge(here);
        FlowSource::Known(node)
    }

    /// What a parameter's declaration says of `path` if that is no list.
    fn not_a_list(&self, path: &Path) -> Option<&'static str> {
        let [PathPart::Key(name)] = &path.keys[..] else { return None };
        if path.root != Root::Params {
            return None;
        }
        let param = self.params.iter().find(|param| param.name == *name)?;
        match param.type_.unwrap_or_default() {
            ParamType::Array => None,
            ParamType::String => Some("a parameter of type string"),
            ParamType::Integer => Some("a parameter of type integer"),
            ParamType::Number => Some("a parameter of type number"),
            ParamType::Boolean => Some("a parameter of type boolean"),
            ParamType::Object => Some("a parameter of type object"),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one path, its place, and two sinks")]
    fn dynamic_source(
        &mut self,
        path: &Path,
        column: usize,
        at: &str,
        step: StepIx,
        found: &mut Found,
        problems: &mut Vec<Problem>,
    ) -> Option<FlowSource> {
        let (name, gather, result) = match &path.root {
            Root::Output { step, gather } => (step, *gather, false),
            Root::Result { step } => (step, Gather::Whole, true),
            _ => return None,
        };
        let nothing = FlowSource::Known(Node::List(Vec::new()));
        let Some(target) = self.target(name, Some(step), at, Some(column), problems) else { return Some(nothing) };
        let before = problems.len();
        let place = if result { "result" } else { "output" };
        self.output(target, gather, &path.keys, place, at, problems);
        if problems.len() > before {
            return Some(nothing);
        }
        let (spec, _) = self.steps[target.0 as usize];
        let mapped = spec.map.is_some();
        if mapped && !path.keys.is_empty() {
            let message = format!("a map goes over the items of {name} as they are, not over a place in one of them");
            problems.push(Problem::new(Reason::TypeMismatch, at, message).help("take the place in the step's code"));
            return Some(nothing);
        }
        if gather == Gather::Compact {
            let message = "compact(…) leaves out items, so that others would not pair any more; a map keeps holes";
            problems.push(
                Problem::new(Reason::InvalidExpression, at, message).help(format!("map over $(steps.{name}.output)")),
            );
            return Some(nothing);
        }
        if !mapped && path.keys.is_empty() && !spec.outputs.is_empty() {
            let names: Vec<&str> = spec.outputs.iter().map(|output| output.name.as_str()).collect();
            let message = format!("a map goes over a list, steps.{name}.{place} is a mapping of {}", listed(&names));
            problems.push(Problem::new(Reason::TypeMismatch, at, message));
            return Some(nothing);
        }
        let wants = &mut self.wants[target.0 as usize];
        wants.consumed = true;
        wants.result |= result;
        found.late |= result;
        let path = path.keys.clone();
        if (!mapped || gather == Gather::Flatten) && !wants.lens.contains(&path) {
            wants.lens.push(path.clone());
        }
        Some(match (mapped, gather, result) {
            (true, Gather::Flatten, _) => {
                wants.container = true;
                FlowSource::Flatten(target)
            }
            (true, _, true) => FlowSource::ItemResults(target),
            (true, _, false) => FlowSource::Items(target),
            (false, _, true) => FlowSource::OutputResult { step: target, path },
            (false, _, false) => {
                wants.container |= path.is_empty();
                FlowSource::Output { step: target, path }
            }
        })
    }

    /// The step named `name`, if the step `from` may use it.
    pub fn target(
        &self,
        name: &str,
        from: Option<StepIx>,
        at: &str,
        column: Option<usize>,
        problems: &mut Vec<Problem>,
    ) -> Option<StepIx> {
        let before = column.map(|column| format!("column {column}: ")).unwrap_or_default();
        let Some(target) = self.index.get(name) else {
            let message = format!("{before}there is no step {:?}", shortened(name));
            let problem = Problem::new(Reason::UnknownStep, at, message);
            problems.push(match nearest(name, self.index.keys().copied()) {
                Some(meant) => problem.help(format!("did you mean {meant}?")),
                None => problem.help(format!("there are {}", listed(&self.index.keys().copied().collect::<Vec<_>>()))),
            });
            return None;
        };
        let Some(from) = from else { return Some(*target) };
        if *target == from {
            problems.push(Problem::new(
                Reason::SelfDependency,
                at,
                format!("{before}the step {name} depends on itself"),
            ));
            return None;
        }
        let (_, target_last) = self.steps[target.0 as usize];
        let (step, last) = self.steps[from.0 as usize];
        if target_last && !last {
            let message = format!(
                "{before}{name} is under finally and runs after {}, which cannot use it",
                shortened(&step.name)
            );
            problems.push(Problem::new(Reason::NotUpstream, at, message));
            return None;
        }
        Some(*target)
    }

    /// Whether the output of `target` can be referred to in this form.
    #[expect(clippy::too_many_arguments, reason = "one path, its place, and a sink")]
    fn output(
        &self,
        target: StepIx,
        gather: Gather,
        keys: &[PathPart],
        what: &str,
        at: &str,
        problems: &mut Vec<Problem>,
    ) {
        let (spec, _) = self.steps[target.0 as usize];
        let name = &spec.name;
        let mapped = spec.map.is_some();
        if gather != Gather::Whole && !mapped {
            let message = format!("{name} has no map: its output is not a list of items to put together");
            problems.push(Problem::new(Reason::TypeMismatch, at, message).help(format!("use $(steps.{name}.output)")));
            return;
        }
        let key = match (mapped, keys) {
            (_, []) | (true, [PathPart::Index(_)]) => return,
            (true, [PathPart::Key(key), ..]) => {
                let message = format!("steps.{name}.{what} is a list with one entry per item, it has no key {key:?}");
                problems.push(
                    Problem::new(Reason::TypeMismatch, at, message).help(format!("an item: steps.{name}.{what}[0]")),
                );
                return;
            }
            (true, [PathPart::Index(_), key, ..]) | (false, [key, ..]) => key,
        };
        let outputs: Vec<&str> = spec.outputs.iter().map(|output| output.name.as_str()).collect();
        if outputs.is_empty() {
            return;
        }
        match key {
            PathPart::Key(key) if outputs.contains(&key.as_str()) => {}
            PathPart::Key(key) => {
                let problem = Problem::new(
                    Reason::UnknownOutput,
                    at,
                    format!("the step {name} has no output {:?}", shortened(key)),
                );
                problems.push(problem.help(format!("its outputs are {}", listed(&outputs))));
            }
            PathPart::Index(index) => {
                let message =
                    format!("steps.{name}.{what} is a mapping of {}, it has no index {index}", listed(&outputs));
                problems.push(Problem::new(Reason::TypeMismatch, at, message));
            }
        }
    }

    fn parameter(&self, name: Option<&str>, expr: &Expr, at: &str, column: usize, problems: &mut Vec<Problem>) {
        match name {
            Some(name) if self.params.iter().any(|param| param.name == name) => {}
            Some(name) => {
                let known = self.params.iter().map(|param| param.name.as_str());
                let mut problem = unknown(Reason::UndefinedParameter, at, name, known);
                problem.message = format!("column {column}: {}", problem.message);
                problems.push(problem);
            }
            None => no_index(expr, "params", at, column, problems),
        }
    }
}

/// `params[0]` and the like, which cannot be.
fn no_index(expr: &Expr, root: &str, at: &str, column: usize, problems: &mut Vec<Problem>) {
    if let Expr::Path(Path { keys, .. }) = expr
        && !keys.is_empty()
    {
        let message = format!("column {column}: {root} is a mapping, not a list");
        problems.push(Problem::new(Reason::TypeMismatch, at, message));
    }
}

fn run_entry(name: Option<&str>, expr: &Expr, at: &str, column: usize, problems: &mut Vec<Problem>) {
    match name {
        Some(name) if !RUN.contains(&name) => {
            let message = format!("column {column}: run has no entry {:?}", shortened(name));
            problems
                .push(Problem::new(Reason::InvalidExpression, at, message).help(format!("there are {}", listed(&RUN))));
        }
        Some(_) => {}
        None => no_index(expr, "run", at, column, problems),
    }
}

#[expect(clippy::too_many_arguments, reason = "one mention, its place, and two sinks")]
fn item(
    name: Option<&str>,
    expr: &Expr,
    at: &str,
    column: usize,
    whole: bool,
    place: Place<'_>,
    found: &mut Found,
    problems: &mut Vec<Problem>,
) {
    let Some(vars) = place.vars() else {
        let message = format!("column {column}: item is known only in args, when and paths of a step with map");
        problems.push(Problem::new(Reason::InvalidExpression, at, message));
        return;
    };
    let passes = whole && place.takes_outputs() && matches!(expr, Expr::Path(_));
    let names = || vars.iter().map(|var| var.name.as_str());
    match name {
        Some(name) => match vars.iter().find(|var| var.name == name) {
            Some(var) => {
                if !passes && !var.source.is_known_to_expressions() {
                    problems.push(opaque_item(var, at, column));
                }
                found.items.insert(name.to_owned());
            }
            None => {
                let message = format!("column {column}: map has no variable {:?}", shortened(name));
                let problem = Problem::new(Reason::InvalidExpression, at, message);
                problems.push(match nearest(name, names()) {
                    Some(meant) => problem.help(format!("did you mean item.{meant}?")),
                    None => problem.help(format!("there are {}", listed(&names().collect::<Vec<_>>()))),
                });
            }
        },
        None => {
            no_index(expr, "item", at, column, problems);
            let hidden = vars.iter().filter(|var| !passes && !var.source.is_known_to_expressions());
            problems.extend(hidden.map(|var| opaque_item(var, at, column)));
            found.all_items = true;
        }
    }
}

fn opaque_item(var: &FlowVar, at: &str, column: usize) -> Problem {
    let message =
        format!("column {column}: item.{} is {}; an expression cannot compute with it", var.name, var.source.opaque());
    let help = format!("pass $(item.{}) alone, or map over a .result", var.name);
    Problem::new(Reason::TypeMismatch, at, message).help(help)
}

fn opaque_here(what: &str, at: &str, column: usize, place: Place<'_>) -> Problem {
    let message = match place {
        Place::Args { .. } | Place::Result => {
            format!(
                "column {column}: {what} is an opaque value that only the step's code sees, it cannot stand within text"
            )
        }
        Place::Map { .. } => {
            format!("column {column}: {what} is an opaque value, a map takes it only as the whole list")
        }
        Place::When { .. } | Place::Path { .. } => {
            format!("column {column}: {what} is an opaque value that only the step's code sees")
        }
    };
    let help = "steps.<name>.result is the output as JSON, if it is small";
    Problem::new(Reason::TypeMismatch, at, message).help(help)
}
