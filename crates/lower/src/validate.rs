//! Checks of a whole pipeline. All mistakes are reported together, in the order of the manifest.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    expr::{Expr, Text},
    fields,
    flow::{Flow, FlowArgs, FlowResult, FlowStep, FlowVar, limits_of},
    limits::{PIPELINE_BYTES, STEPS, json_size},
    node::{Node, below},
    objects::{Input, Target},
    order, params,
    placement::Placement,
    refs::{Found, Place, Refs},
};
use api::problem::Problem;
use api::reason::Reason;
use api::{
    args::Args,
    pipeline::PipelineSpec,
    step::{Isolation, Step},
};
use engine::StepIx;

/// Checks `spec`, whose place in its object is `object_path` (`spec`, or empty). Returns every mistake found.
pub fn validate(spec: &PipelineSpec, object_path: &str) -> Result<Flow, Vec<Problem>> {
    let mut problems = Vec::new();
    let count = spec.steps.len() + spec.finally.len();
    if count > STEPS {
        let message = format!("the pipeline has {count} steps, at most {STEPS} are allowed");
        let help = "a step with map runs once per item and counts as one";
        return Err(vec![Problem::new(Reason::TooLarge, below(object_path, "steps"), message).help(help)]);
    }
    if json_size(spec, PIPELINE_BYTES) > PIPELINE_BYTES {
        let message = format!("the pipeline is larger than {} KiB as JSON", PIPELINE_BYTES / 1024);
        let help = "put code into an archive or the image, and data into storage";
        return Err(vec![Problem::new(Reason::TooLarge, object_path, message).help(help)]);
    }
    params::validate(&spec.params, &below(object_path, "params"), &mut problems);
    fields::check_pipeline(spec, object_path, &mut problems);

    let main =
        spec.steps.iter().enumerate().map(|(i, step)| (step, format!("{}[{i}]", below(object_path, "steps")), false));
    let last = spec
        .finally
        .iter()
        .enumerate()
        .map(|(i, step)| (step, format!("{}[{i}]", below(object_path, "finally")), true));
    let all: Vec<(&Step, String, bool)> = main.chain(last).collect();
    let index = index(&all, &mut problems);
    let placement = Placement::of(spec);

    let mut refs = Refs::new(spec, &all, &index);
    let mut steps = Vec::with_capacity(all.len());
    for (ix, (step, at, finally)) in all.iter().enumerate() {
        fields::check_step(step, at, &mut problems);
        check_isolation(spec, step, at, &mut problems);
        let gpu_ok = placement.check(step, at, &mut problems);
        let mut checked = check_step(step, at, StepIx(ix as u32), &mut refs, &mut problems);
        (checked.finally, checked.gpu_ok, checked.asked) = (*finally, gpu_ok, placement.asked(step));
        steps.push(checked);
    }
    let mut results = Vec::new();
    let mut named = BTreeSet::new();
    for (i, result) in spec.results.iter().enumerate() {
        let at = format!("{}[{i}]", below(object_path, "results"));
        fields::check_name(&result.name, &format!("{at}.name"), &mut problems);
        if !named.insert(result.name.as_str()) {
            let message = format!("the result {} is declared twice", result.name);
            problems.push(Problem::new(Reason::Duplicate, format!("{at}.name"), message));
        }
        let at = format!("{at}.value");
        let value = Node::parse(&result.value, &at, &mut problems);
        refs.check(&value, &at, Place::Result, &mut problems);
        results.push(FlowResult { name: result.name.clone(), at, value });
    }
    let order = order::check(&steps, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    refs.settle(&mut steps, spec.results.is_empty());
    let index = index.into_iter().map(|(name, ix)| (name.to_owned(), ix)).collect();
    let requirements = spec.requirements.clone();
    let (params, limits) = (spec.params.clone(), limits_of(spec));
    let on_output_lost = spec.on_output_lost.unwrap_or_default();
    Ok(Flow { params, limits, on_output_lost, requirements, steps, index, order, results })
}

/// Steps by name; a name used twice stands for its first step.
/// Steps in threads share the worker's interpreter, which has only what is installed: the pipeline's own code is not there.
fn check_isolation(spec: &PipelineSpec, step: &Step, at: &str, problems: &mut Vec<Problem>) {
    if step.isolation != Some(Isolation::Thread) {
        return;
    }
    let (Some(code), Some((module, _))) = (&spec.code, step.call.as_deref().and_then(|call| call.split_once(':')))
    else {
        return;
    };
    let top = module.split('.').next().unwrap_or(module);
    let of_pipeline = code.files.as_ref().is_some_and(|files| {
        files.keys().any(|file| *file == format!("{top}.py") || file.starts_with(&format!("{top}/")))
    });
    if of_pipeline {
        let message = format!("a step in a thread runs only installed code, and {top} is code of the pipeline");
        let help = "leave out isolation, or install the module by requirements";
        problems.push(Problem::new(Reason::Conflict, below(at, "isolation"), message).help(help));
    }
}

fn index<'a>(all: &[(&'a Step, String, bool)], problems: &mut Vec<Problem>) -> BTreeMap<&'a str, StepIx> {
    let mut index: BTreeMap<&str, StepIx> = BTreeMap::new();
    for (ix, (step, at, _)) in all.iter().enumerate() {
        match index.get(step.name.as_str()) {
            Some(first) => {
                let first = &all[first.0 as usize].1;
                let message = format!("the name {} is used before, by {first}", params::shortened(&step.name));
                problems.push(Problem::new(Reason::DuplicateStep, format!("{at}.name"), message));
            }
            None => {
                index.insert(&step.name, StepIx(ix as u32));
            }
        }
    }
    index
}

fn check_step(step: &Step, at: &str, ix: StepIx, refs: &mut Refs<'_>, problems: &mut Vec<Problem>) -> FlowStep {
    let mut found = Found::default();
    let map = step.map.as_ref().map(|map| {
        let vars = map.iter().map(|(name, value)| {
            let at = below(&format!("{at}.map"), name);
            let value = Node::parse(value, &at, problems);
            let source = refs.source(value, &at, ix, &mut found, problems);
            FlowVar { name: name.clone(), at, source }
        });
        vars.collect::<Vec<_>>()
    });
    let here = Here { step, at, ix, vars: map.as_deref() };
    let (args, mut mentioned) = check_args(here, refs, &mut found, problems);
    let inputs = check_inputs(here, refs, &mut mentioned, problems);
    found.merge(mentioned.clone());
    let args = passed(step, at, args, map.as_deref(), &mentioned, problems);
    let target = check_target(here, refs, &mut found, problems);
    let mut per_item = false;
    let when = step.when.as_ref().and_then(|text| {
        let at = format!("{at}.when");
        let (source, column) = match text.trim().strip_prefix("$(").and_then(|rest| rest.strip_suffix(')')) {
            Some(inside) => (inside, text.find("$(").unwrap_or(0) + 3),
            None => (text.as_str(), 1),
        };
        match Expr::parse(source) {
            Ok(expr) => {
                let place = Place::When { step: ix, vars: map.as_deref() };
                per_item = refs.expression(&expr, column, &at, true, place, &mut found, problems).mentions_item();
                Some(expr)
            }
            Err(error) => {
                let error = error.shifted(column - 1);
                problems.push(Problem::new(error.reason(), at, error.to_string()));
                None
            }
        }
    });
    let mut after = BTreeSet::new();
    let mut named = BTreeSet::new();
    for (i, name) in step.depends_on.iter().enumerate() {
        let at = format!("{at}.dependsOn[{i}]");
        if !named.insert(name) {
            let message = format!("{} is named twice", params::shortened(name));
            problems.push(Problem::new(Reason::DuplicateDependency, at, message));
        } else if let Some(target) = refs.target(name, Some(ix), &at, None, problems) {
            after.insert(target);
        }
    }
    after.retain(|step| !found.data.contains(step));
    // Whoever looks at what is there does so just before the step runs.
    let late = found.late || target.as_ref().is_some_and(Target::looks);
    FlowStep {
        spec: step.clone(),
        at: at.to_owned(),
        finally: false,
        args,
        map,
        when,
        per_item,
        inputs,
        target,
        data: found.data,
        after,
        late,
        lens: Vec::new(),
        container: false,
        result: 0,
        asked: BTreeMap::new(),
        gpu_ok: false,
    }
}

/// The step that is checked.
#[derive(Clone, Copy)]
struct Here<'a> {
    step: &'a Step,
    at: &'a str,
    ix: StepIx,
    /// Of its `map`.
    vars: Option<&'a [FlowVar]>,
}

/// The arguments, and the variables of `map` that they name.
fn check_args(
    Here { step, at, ix, vars }: Here<'_>,
    refs: &mut Refs<'_>,
    found: &mut Found,
    problems: &mut Vec<Problem>,
) -> (FlowArgs, Found) {
    let at = format!("{at}.args");
    let mut args = FlowArgs::default();
    let mut mentioned = Found::default();
    let mut check = |value: &serde_json::Value, at: &str| {
        let node = Node::parse(value, at, problems);
        let here = refs.check(&node, at, Place::Args { step: ix, vars }, problems);
        mentioned.merge(here);
        node
    };
    match &step.args {
        None => {}
        Some(Args::List(list)) => {
            args.positional = list.iter().enumerate().map(|(i, value)| check(value, &format!("{at}[{i}]"))).collect();
        }
        Some(Args::Map(map)) => {
            args.keyword = map.iter().map(|(key, value)| (key.clone(), check(value, &below(&at, key)))).collect();
        }
    }
    found.merge(mentioned.clone());
    (args, mentioned)
}

/// The objects that the step reads. Their paths name variables of `map` as arguments do.
fn check_inputs(
    Here { step, at, ix, vars }: Here<'_>,
    refs: &mut Refs<'_>,
    mentioned: &mut Found,
    problems: &mut Vec<Problem>,
) -> Vec<Input> {
    let mut inputs = Vec::new();
    for (name, given) in &step.inputs {
        let at = below(&format!("{at}.inputs"), name);
        let by_args = matches!(&step.args, Some(Args::Map(args)) if args.contains_key(name));
        if by_args || vars.unwrap_or_default().iter().any(|var| var.name == *name) {
            let message = format!("the argument {name} is given here and by {}", if by_args { "args" } else { "map" });
            problems.push(Problem::new(Reason::Conflict, &at, message).help("rename one of them"));
        }
        let at = format!("{at}.path");
        let Some(path) = check_path(&given.path, &at, Place::Path { step: ix, vars }, refs, mentioned, problems) else {
            continue;
        };
        let (name, written) = (name.clone(), given.path.clone());
        let input = Input { name, at, written, path, serializer: given.serializer };
        problems.extend(input.check().err().map(|wrong| wrong.problem(&input.at)));
        inputs.push(input);
    }
    inputs
}

/// Where the output is kept besides the run's record.
fn check_target(
    Here { step, at, ix, vars }: Here<'_>,
    refs: &mut Refs<'_>,
    found: &mut Found,
    problems: &mut Vec<Problem>,
) -> Option<Target> {
    let output = step.output.as_ref()?;
    let Some(text) = &output.path else {
        if output.if_exists.is_some() {
            let problem = Problem::new(Reason::Conflict, format!("{at}.output.ifExists"), "ifExists belongs to path");
            problems.push(problem.help("add path: where the output is kept, or leave it out"));
        }
        return None;
    };
    let at = format!("{at}.output.path");
    let mut here = Found::default();
    let before = problems.len();
    let path = check_path(text, &at, Place::Path { step: ix, vars }, refs, &mut here, problems)?;
    if let Some(vars) = vars.filter(|_| !here.mentions_item() && problems.len() == before) {
        let message =
            format!("all items of {} would keep their output at the same path", params::shortened(&step.name));
        let seen = vars.iter().find(|var| var.source.is_known_to_expressions());
        let help = match seen {
            Some(var) => format!("name the item in it: $(item.{})", var.name),
            None => "map over a .result, whose items a path can name".to_owned(),
        };
        problems.push(Problem::new(Reason::Conflict, &at, message).help(help));
    }
    found.merge(here);
    let (if_exists, serializer) = (output.if_exists.unwrap_or_default(), output.serializer.unwrap_or_default());
    let target = Target { at, path, if_exists, serializer };
    problems.extend(target.check().err().map(|wrong| wrong.problem(&target.at)));
    Some(target)
}

fn check_path(
    text: &str,
    at: &str,
    place: Place<'_>,
    refs: &mut Refs<'_>,
    found: &mut Found,
    problems: &mut Vec<Problem>,
) -> Option<Text> {
    match Text::parse(text) {
        Ok(path) => {
            let whole = matches!(path, Text::Whole { .. });
            for (expr, column) in path.expressions() {
                refs.expression(expr, column, at, whole, place, found, problems);
            }
            Some(path)
        }
        Err(error) => {
            problems.push(Problem::new(error.reason(), at, error.to_string()));
            None
        }
    }
}

/// Adds the variables of `map` that are passed by their names: all that no argument names, unless arguments are a list.
fn passed(
    step: &Step,
    at: &str,
    mut args: FlowArgs,
    vars: Option<&[FlowVar]>,
    mentioned: &Found,
    problems: &mut Vec<Problem>,
) -> FlowArgs {
    if matches!(step.args, Some(Args::List(_))) {
        return args;
    }
    for (i, var) in vars.unwrap_or_default().iter().enumerate() {
        if mentioned.all_items || mentioned.items.contains(&var.name) {
            continue;
        }
        if args.keyword.iter().any(|(name, _)| *name == var.name) {
            let message = format!("the argument {} is given here and by map", var.name);
            let help = format!("use $(item.{}) in args, or rename one of them", var.name);
            problems.push(Problem::new(Reason::Conflict, below(&format!("{at}.args"), &var.name), message).help(help));
            continue;
        }
        args.passed.push(i as u32);
    }
    args
}
