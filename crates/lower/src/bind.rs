//! Filling in parameters: from a validated pipeline to the plan of one run.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

use super::dag;
use super::{
    encode::{Encoder, node_value},
    expr::{Account, Scope, kind, no_values},
    flow::{Flow, FlowSource, FlowStep, FlowVar},
    limits::{ITEMS, KNOWN_BYTES, TEMPLATE_BYTES, TOTAL_ITEMS, json_size},
    params,
    plan::{Part, Plan, PlanStep, PlanVar, ResultSpec, VarSource},
};
use api::problem::Problem;
use api::reason::Reason;
use api::{
    pipeline::{OnOutputLost, RunLimits},
    step::{FailureClass as Class, IfExists, Isolation, Retry, Step},
};
use engine::{Dag, Dep, FailureClass, Limits, MapSource, OnLost, RetryPolicy, StepIx, StepSpec, When};
use wire::{PathPart, StepDef};

/// What expressions see of a run as `run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// `run.name`
    pub name: String,
    /// `run.uid`
    pub uid: String,
}

impl Flow {
    /// Fills in the parameters `given` and defaults, and lowers the steps. Every mistake that shows only now is
    /// reported: parameters, expressions over them, lengths of maps that are known.
    pub fn bind(&self, given: &Map<String, Value>, run: &RunInfo) -> Result<Plan, Vec<Problem>> {
        let params = params::bind(&self.params, given)?;
        let mut info = Map::new();
        info.insert("name".to_owned(), Value::String(run.name.clone()));
        info.insert("uid".to_owned(), Value::String(run.uid.clone()));
        let limits = engine_limits(&self.limits);
        let account = Account::default();
        let scope = Scope {
            params: &params,
            run: &info,
            item: no_values(),
            results: no_values(),
            max_items: limits.max_items,
            account: &account,
        };
        let mut problems: Vec<Vec<Problem>> = vec![Vec::new(); self.steps.len() + 1];
        let known = self.known_lists(&scope, &mut problems);
        let lengths = self.lengths(&known, &scope, &mut problems);

        let mut specs = Vec::with_capacity(self.steps.len());
        let mut steps = Vec::with_capacity(self.steps.len());
        let mut written = 0;
        for ((ix, step), known) in self.steps.iter().enumerate().zip(known) {
            let found = &mut problems[ix];
            check_when(step, &scope, found);
            let vars = plan_vars(step, known);
            let mut encoder = Encoder::new(self, &lengths, &scope, found);
            encoder.arguments(step);
            let inputs = encoder.inputs(step).into_bytes();
            let target = step.target.as_ref().map(|target| wire::Target {
                place: encoder.place(target).into_bytes(),
                replace: target.if_exists == IfExists::Replace,
            });
            let (template, slots) = encoder.finish();
            let args = template.clone().into_bytes();
            written += args.len() + inputs.len();
            if written > TEMPLATE_BYTES {
                break;
            }
            specs.push(self.engine_step(step, &vars));
            let def = StepDef { inputs, target, ..step_def(step, args) };
            let (mapped, tags) = (step.map.is_some(), step.spec.tags.clone());
            steps.push(PlanStep {
                def,
                mapped,
                vars,
                slots,
                inputs: step.inputs.clone(),
                target: step.target.clone(),
                cache: step.spec.cache.clone().unwrap_or_default(),
                when: step.when.clone(),
                template,
                tags,
                part: Part::Runs,
            });
        }
        if written > TEMPLATE_BYTES {
            let message = format!("the arguments of all steps together are larger than {} MiB", TEMPLATE_BYTES >> 20);
            let help = "put large data into storage and pass its URL";
            problems[self.steps.len()].push(Problem::new(Reason::TooLarge, "", message).help(help));
        }
        let results = self.plan_results(&scope, &mut problems[self.steps.len()]);
        let problems: Vec<Problem> = problems.into_iter().flatten().collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        let dag = Dag::build(specs).map_err(|errors| {
            let problem = |error: engine::DagError| dag::problem(&error, "");
            errors.into_iter().map(problem).collect::<Vec<_>>()
        })?;
        let requirements = self.requirements.clone();
        let (params, index) = (Value::Object(params), self.index.clone());
        let pins = BTreeMap::new();
        let plan = Plan { dag, limits, params, steps, index, run: info, results, requirements, pins };
        let problems = plan.check_objects();
        if problems.is_empty() { Ok(plan) } else { Err(problems) }
    }

    /// The lists of variables that are known now, by step and variable.
    fn known_lists(&self, scope: &Scope<'_>, problems: &mut [Vec<Problem>]) -> Vec<Vec<Option<Arc<Vec<Value>>>>> {
        let (mut bytes, mut items) = (0, 0);
        let mut lists = Vec::with_capacity(self.steps.len());
        for (ix, step) in self.steps.iter().enumerate() {
            let mut known = Vec::new();
            for var in step.map.iter().flatten() {
                let list = known_list(var, scope, &mut problems[ix]);
                if let Some(list) = &list {
                    items += list.len();
                    bytes += json_size(list.as_ref(), KNOWN_BYTES);
                }
                known.push(list);
            }
            lists.push(known);
            if items > TOTAL_ITEMS || bytes > KNOWN_BYTES {
                let message = format!(
                    "the lists of all maps together have more than {TOTAL_ITEMS} entries or {} MiB",
                    KNOWN_BYTES >> 20
                );
                problems[ix].push(Problem::new(Reason::TooManyItems, format!("{}.map", step.at), message));
                lists.resize(self.steps.len(), Vec::new());
                break;
            }
        }
        lists
    }

    /// Number of items of each mapped step, where it is known. Unequal and too long lists go to `problems`.
    fn lengths(
        &self,
        known: &[Vec<Option<Arc<Vec<Value>>>>],
        scope: &Scope<'_>,
        problems: &mut [Vec<Problem>],
    ) -> Vec<Option<u32>> {
        let mut lengths: Vec<Option<u32>> = vec![None; self.steps.len()];
        for ix in &self.order {
            let step = self.step(*ix);
            let ix = ix.0 as usize;
            let mut first: Option<(&FlowVar, u32)> = None;
            for (var, list) in step.map.iter().flatten().zip(&known[ix]) {
                let length = match (&var.source, list) {
                    (_, Some(list)) => u32::try_from(list.len()).ok(),
                    (FlowSource::Items(up) | FlowSource::ItemResults(up), None) => lengths[up.0 as usize],
                    _ => None,
                };
                let Some(length) = length else { continue };
                if length > scope.max_items {
                    let message = format!("the map has {length} items, the limit is {}", scope.max_items);
                    let help = format!("limits.maxItems can be set, up to {}", super::limits::ITEMS_MAX);
                    problems[ix].push(Problem::new(Reason::TooManyItems, &var.at, message).help(help));
                    break;
                }
                match first {
                    None => first = Some((var, length)),
                    Some((other, expected)) if expected != length => {
                        let message = format!(
                            "the lists of map differ in length: {} has {expected}, {} has {length}",
                            other.name, var.name
                        );
                        problems[ix].push(Problem::new(Reason::UnequalLengths, format!("{}.map", step.at), message));
                        break;
                    }
                    Some(_) => {}
                }
            }
            lengths[ix] = first.map(|(_, length)| length);
        }
        lengths
    }

    fn engine_step(&self, step: &FlowStep, vars: &[PlanVar]) -> StepSpec {
        let map = step.map.as_ref().map(|_| vars.iter().map(|var| self.map_source(&var.source)).collect());
        let data = step.data.iter().map(|step| Dep::Data(*step));
        let when = match (&step.when, step.per_item) {
            (None, _) => When::Always,
            (Some(_), false) => When::PerStep,
            (Some(_), true) => When::PerItem,
        };
        StepSpec {
            name: step.spec.name.clone(),
            map,
            deps: data.chain(step.after.iter().map(|step| Dep::After(*step))).collect(),
            when,
            late: step.late,
            finally: step.finally,
            continue_on_failure: step.spec.continue_on_failure,
            retry: retry_policy(step.spec.retry.as_ref()),
            priority: step.spec.priority.unwrap_or(0),
            parallelism: step.spec.limits.as_ref().and_then(|limits| limits.parallelism),
            resources: step.spec.resources.iter().map(|(name, amount)| (name.clone(), *amount)).collect(),
            timeout_ms: step.spec.timeout.map(|timeout| timeout.as_millis()),
            on_lost: match self.on_output_lost {
                OnOutputLost::Rerun => OnLost::Rerun,
                OnOutputLost::Fail => OnLost::Fail,
            },
        }
    }

    fn map_source(&self, source: &VarSource) -> MapSource {
        let slot = |step: StepIx, path: &[PathPart]| {
            let slot = self.step(step).lens.iter().position(|lens| lens == path);
            MapSource::Output { step, lens_slot: slot.and_then(|slot| u32::try_from(slot).ok()).unwrap_or(0) }
        };
        match source {
            VarSource::Known(list) => MapSource::Len(u32::try_from(list.len()).unwrap_or(u32::MAX)),
            VarSource::Items(step) | VarSource::ItemResults(step) => MapSource::Items(*step),
            VarSource::Output { step, path } | VarSource::OutputResult { step, path } => slot(*step, path),
            VarSource::Flatten(step) => MapSource::Flatten(*step),
        }
    }

    /// The declared results, or every step that nobody uses.
    fn plan_results(&self, scope: &Scope<'_>, problems: &mut Vec<Problem>) -> Vec<ResultSpec> {
        if self.results.is_empty() {
            let wanted = self.steps.iter().enumerate().filter(|(_, step)| step.result == 1);
            return wanted.map(|(ix, step)| ResultSpec::of_step(&step.spec.name, StepIx(ix as u32))).collect();
        }
        let is_mapped = |step: StepIx| self.step(step).map.is_some();
        let declared = self.results.iter().map(|result| {
            ResultSpec::of_node(&result.name, &result.value, &is_mapped, &self.index, scope).unwrap_or_else(|error| {
                problems.push(Problem::new(error.reason(), &result.at, error.to_string()));
                ResultSpec::nothing(&result.name)
            })
        });
        declared.collect()
    }
}

fn known_list(var: &FlowVar, scope: &Scope<'_>, problems: &mut Vec<Problem>) -> Option<Arc<Vec<Value>>> {
    let FlowSource::Known(node) = &var.source else { return None };
    match node_value(node, scope) {
        Ok(Value::Array(list)) => Some(Arc::new(list)),
        Ok(other) => {
            let message = format!("a map goes over a list, this is {}", kind(&other));
            problems.push(Problem::new(Reason::TypeMismatch, &var.at, message));
            None
        }
        Err(error) => {
            problems.push(Problem::new(error.reason(), &var.at, error.to_string()));
            None
        }
    }
}

/// A condition over parameters alone is tried now, so that its mistakes show before anything starts.
fn check_when(step: &FlowStep, scope: &Scope<'_>, problems: &mut Vec<Problem>) {
    let Some(when) = &step.when else { return };
    let early = super::mentions::mentions(when, 1)
        .iter()
        .all(|(mention, _)| matches!(mention, super::mentions::Mention::Param(_) | super::mentions::Mention::Run(_)));
    if early && let Err(error) = super::plan::condition(when, scope) {
        problems.push(Problem::new(error.reason(), format!("{}.when", step.at), error.to_string()));
    }
}

fn plan_vars(step: &FlowStep, known: Vec<Option<Arc<Vec<Value>>>>) -> Vec<PlanVar> {
    let known = known.into_iter().chain(std::iter::repeat(None));
    let vars = step.map.iter().flatten().zip(known).map(|(var, list)| PlanVar {
        name: var.name.clone(),
        source: match &var.source {
            FlowSource::Known(_) => VarSource::Known(list.unwrap_or_default()),
            FlowSource::Items(step) => VarSource::Items(*step),
            FlowSource::ItemResults(step) => VarSource::ItemResults(*step),
            FlowSource::Output { step, path } => VarSource::Output { step: *step, path: path.clone() },
            FlowSource::OutputResult { step, path } => VarSource::OutputResult { step: *step, path: path.clone() },
            FlowSource::Flatten(step) => VarSource::Flatten(*step),
        },
    });
    vars.collect()
}

fn step_def(step: &FlowStep, args: Vec<u8>) -> StepDef {
    let Step { name, call, script, output, worker_group, isolation, timeout, env, .. } = &step.spec;
    StepDef {
        name: name.clone(),
        call: call.clone(),
        script: script.clone(),
        args,
        serializer: output.as_ref().and_then(|output| output.serializer).unwrap_or_default().as_str().to_owned(),
        container: step.container,
        lens: step.lens.clone(),
        result: step.result,
        resources: step.asked.clone(),
        group: worker_group.clone(),
        gpu_ok: step.gpu_ok,
        isolation: match isolation.unwrap_or_default() {
            Isolation::Process => "process".to_owned(),
            Isolation::Thread => "thread".to_owned(),
        },
        timeout: timeout.map(|timeout| timeout.as_secs_f64()),
        env: env.iter().map(|var| (var.name.clone(), var.value.clone())).collect::<BTreeMap<_, _>>(),
        inputs: Vec::new(),
        target: None,
    }
}

fn engine_limits(limits: &RunLimits) -> Limits {
    Limits {
        parallelism: limits.parallelism,
        resources: limits.resources.clone(),
        max_items: limits.max_items.unwrap_or(ITEMS),
        fail_fast: limits.fail_fast,
        ..Limits::default()
    }
}

/// Failures of class `data` come back the same each time, so they are retried only if named.
fn retry_policy(retry: Option<&Retry>) -> RetryPolicy {
    let Some(retry) = retry else { return RetryPolicy::default() };
    let class = |class: &Class| match class {
        Class::App => FailureClass::App,
        Class::Oom => FailureClass::Oom,
        Class::Timeout => FailureClass::Timeout,
        Class::Preempted => FailureClass::Preempted,
        Class::Infra => FailureClass::Infra,
        Class::Data => FailureClass::Data,
    };
    let default = [Class::App, Class::Oom, Class::Timeout, Class::Preempted, Class::Infra];
    let classes = retry.on.as_deref().unwrap_or(&default).iter().map(class).collect();
    let backoff = retry.backoff.clone().unwrap_or_default();
    let policy = RetryPolicy::default();
    RetryPolicy {
        limit: retry.limit,
        initial_ms: backoff.duration.map_or(policy.initial_ms, |duration| duration.as_millis()),
        factor: backoff.factor.unwrap_or(policy.factor),
        cap_ms: backoff.cap.map_or(policy.cap_ms, |cap| cap.as_millis()),
        jitter: retry.jitter.unwrap_or(policy.jitter),
        classes: Some(classes),
    }
}
