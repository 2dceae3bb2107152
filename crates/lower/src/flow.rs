//! A pipeline that is free of mistakes: what `validate` returns, and what runs are bound from.

use std::collections::{BTreeMap, BTreeSet};
use wire::PathPart;

use super::{
    expr::Expr,
    node::Node,
    objects::{Input, Target},
};
use api::{
    pipeline::{OnOutputLost, Param, PipelineSpec, RunLimits},
    step::Step,
};
use engine::StepIx;

/// A validated pipeline. Parameters are not filled in yet: see [`Flow::bind`].
#[derive(Debug, Clone)]
pub struct Flow {
    pub(super) params: Vec<Param>,
    pub(super) limits: RunLimits,
    pub(super) on_output_lost: OnOutputLost,
    pub(super) requirements: Vec<String>,
    /// In manifest order, `finally` last.
    pub(super) steps: Vec<FlowStep>,
    pub(super) index: BTreeMap<String, StepIx>,
    /// Steps so that each stands behind those that it needs.
    pub(super) order: Vec<StepIx>,
    pub(super) results: Vec<FlowResult>,
}

/// A step with its expressions parsed and its references resolved.
#[derive(Debug, Clone)]
pub(super) struct FlowStep {
    pub spec: Step,
    /// Path of the step in the object.
    pub at: String,
    pub finally: bool,
    pub args: FlowArgs,
    /// Variables of `map`; `None`: not mapped.
    pub map: Option<Vec<FlowVar>>,
    pub when: Option<Expr>,
    /// `when` names `item`.
    pub per_item: bool,
    /// Objects that it reads, in the order of their names.
    pub inputs: Vec<Input>,
    /// Where its output is kept besides the run's record.
    pub target: Option<Target>,
    /// Steps whose outputs or results are used whole, besides the sources of `map`.
    pub data: BTreeSet<StepIx>,
    pub after: BTreeSet<StepIx>,
    /// Arguments, condition or map need results of other steps.
    pub late: bool,
    /// Places in the output whose length is reported, the output itself first.
    pub lens: Vec<Vec<PathPart>>,
    /// Somebody maps over the whole output, or flattens it.
    pub container: bool,
    /// 0: nobody wants the result, 1: the run's results do, 2: expressions need it.
    pub result: u8,
    /// Resources that workers are asked for.
    pub asked: BTreeMap<String, f64>,
    /// It may use GPU workers although it asks for no GPU.
    pub gpu_ok: bool,
}

/// Arguments of a step.
#[derive(Debug, Clone, Default)]
pub(super) struct FlowArgs {
    pub positional: Vec<Node>,
    pub keyword: Vec<(String, Node)>,
    /// Variables of `map` that are passed by their names.
    pub passed: Vec<u32>,
}

/// A variable of `map`.
#[derive(Debug, Clone)]
pub(super) struct FlowVar {
    pub name: String,
    pub at: String,
    pub source: FlowSource,
}

/// Where the values of a variable of `map` come from.
#[derive(Debug, Clone)]
pub(super) enum FlowSource {
    /// Known when the run begins.
    Known(Node),
    /// The output of each item of a mapped step.
    Items(StepIx),
    /// The result of each item of a mapped step.
    ItemResults(StepIx),
    /// The entries of a list in the output of a step.
    Output { step: StepIx, path: Vec<PathPart> },
    /// The entries of a list in the result of a step.
    OutputResult { step: StepIx, path: Vec<PathPart> },
    /// The entries of the lists that the items of a mapped step return.
    Flatten(StepIx),
}

impl FlowSource {
    /// Its values are seen by expressions.
    pub fn is_known_to_expressions(&self) -> bool {
        matches!(self, Self::Known(_) | Self::ItemResults(_) | Self::OutputResult { .. })
    }

    /// For messages: what the values are if expressions cannot see them.
    pub fn opaque(&self) -> &'static str {
        if self.is_known_to_expressions() { "a value" } else { "an output, which only the step's code sees" }
    }

    pub fn step(&self) -> Option<StepIx> {
        match self {
            Self::Known(_) => None,
            Self::Items(step) | Self::ItemResults(step) | Self::Flatten(step) => Some(*step),
            Self::Output { step, .. } | Self::OutputResult { step, .. } => Some(*step),
        }
    }
}

/// A declared result.
#[derive(Debug, Clone)]
pub(super) struct FlowResult {
    pub name: String,
    pub at: String,
    pub value: Node,
}

impl Flow {
    /// Python packages that the steps need.
    pub fn requirements(&self) -> &[String] {
        &self.requirements
    }

    /// The declared parameters.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Names of the steps in manifest order, `finally` last.
    pub fn step_names(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| step.spec.name.as_str())
    }

    pub(super) fn step(&self, step: StepIx) -> &FlowStep {
        &self.steps[step.0 as usize]
    }
}

/// Limits that `validate` has checked.
pub(super) fn limits_of(spec: &PipelineSpec) -> RunLimits {
    spec.limits.clone().unwrap_or_default()
}
