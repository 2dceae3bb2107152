//! The checked step graph: immutable, built once per run.

use std::collections::{BTreeMap, BTreeSet};

use super::topology::build_ranks;
use super::types::{Dep, MapSource, StepIx, StepSpec, When};

/// Steps that one run may have.
pub const MAX_STEPS: usize = 10_000;

/// A checked graph of steps.
#[derive(Debug, Clone)]
pub struct Dag {
    pub(super) nodes: Vec<Node>,
}

/// A step with its edges in both directions.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub spec: StepSpec,
    /// Whole-step dependencies that gate the step: those of `deps`, `Output` and `Flatten`. Each step once. Those of a
    /// `finally` step on other steps are not here: it waits for all of them.
    pub gates: Vec<Gate>,
    /// Steps that this one is mapped over element-wise, each once.
    pub item_sources: Vec<StepIx>,
    /// Steps that have this one among their gates.
    pub dependents: Vec<StepIx>,
    /// Steps mapped element-wise over this one.
    pub item_dependents: Vec<StepIx>,
    /// Steps whose length depends on this one.
    pub length_dependents: Vec<StepIx>,
    /// How many of the reported lengths somebody reads.
    pub lens_wanted: usize,
    /// Length of the longest path to an end of the graph: the critical path goes first.
    pub rank: u32,
}

/// A whole-step dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gate {
    pub step: StepIx,
    /// Needs the output; otherwise order only.
    pub data: bool,
}

/// What is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum DagError {
    #[error("there are {count} steps, more than {MAX_STEPS}")]
    TooManySteps { count: usize },
    #[error("the name of step {name} is used twice")]
    DuplicateName { name: String },
    #[error("step {step} refers to a step number {index}, which does not exist")]
    UnknownStep { step: String, index: u32 },
    #[error("step {step} depends on itself")]
    SelfDependency { step: String },
    #[error("step {step} has a map without sources")]
    EmptyMap { step: String },
    #[error("step {step} is mapped over the items of {source_step}, which is not mapped")]
    MapOverUnmapped { step: String, source_step: String },
    #[error("step {step} is mapped over the output of {source_step}, which is itself mapped")]
    OutputOfMapped { step: String, source_step: String },
    #[error("step {step} depends on {finally}, which runs only when everything else has ended")]
    DependsOnFinally { step: String, finally: String },
    /// Each step needs the next, the last the first.
    #[error("the steps depend on each other: {} -> {}", .path.join(" -> "), .path.first().map_or("", String::as_str))]
    Cycle { path: Vec<String> },
}

impl DagError {
    /// Stable reason, as in conditions.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::TooManySteps { .. } => "TooLarge",
            Self::DuplicateName { .. } => "DuplicateStep",
            Self::UnknownStep { .. } => "UnknownStep",
            Self::SelfDependency { .. } => "SelfDependency",
            Self::EmptyMap { .. } => "EmptyMap",
            Self::MapOverUnmapped { .. } => "MapOverUnmapped",
            Self::OutputOfMapped { .. } => "OutputOfMapped",
            Self::DependsOnFinally { .. } => "DependsOnFinally",
            Self::Cycle { .. } => "DependencyCycle",
        }
    }
}

impl Dag {
    /// Checks the steps and links them. Reports all problems: by step, then cycles by their first step.
    pub fn build(steps: Vec<StepSpec>) -> Result<Self, Vec<DagError>> {
        if steps.len() > MAX_STEPS {
            return Err(vec![DagError::TooManySteps { count: steps.len() }]);
        }
        let mut errors = check_steps(&steps);
        let edges = build_edges(&steps);
        let ranks = match build_ranks(steps.len(), &edges) {
            Ok(ranks) => ranks,
            Err(cycles) => {
                errors.extend(cycles.into_iter().map(|mut path| {
                    // Edges lead to the dependent; people read an arrow as "needs".
                    path[1..].reverse();
                    DagError::Cycle { path: path.into_iter().map(|ix| steps[ix].name.clone()).collect() }
                }));
                Vec::new()
            }
        };
        if errors.is_empty() { Ok(Self { nodes: link(steps, &ranks) }) } else { Err(errors) }
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All steps, in manifest order.
    pub fn steps(&self) -> impl Iterator<Item = (StepIx, &StepSpec)> {
        self.nodes.iter().enumerate().map(|(ix, node)| (StepIx(ix as u32), &node.spec))
    }

    /// The step at `ix`.
    pub fn step(&self, ix: StepIx) -> Option<&StepSpec> {
        self.nodes.get(ix.0 as usize).map(|node| &node.spec)
    }

    pub(super) fn is_mapped(&self, ix: u32) -> bool {
        self.nodes[ix as usize].spec.map.is_some()
    }

    /// One condition for the step. An unmapped step has one item, so both kinds of condition are this one.
    pub(super) fn is_per_step(&self, ix: u32) -> bool {
        match self.nodes[ix as usize].spec.when {
            When::Always => false,
            When::PerStep => true,
            When::PerItem => !self.is_mapped(ix),
        }
    }

    pub(super) fn is_per_item(&self, ix: u32) -> bool {
        self.nodes[ix as usize].spec.when == When::PerItem && self.is_mapped(ix)
    }

    pub(super) fn node(&self, ix: StepIx) -> &Node {
        &self.nodes[ix.0 as usize]
    }
}

/// Every step that `spec` refers to, with repetitions.
fn references(spec: &StepSpec) -> impl Iterator<Item = StepIx> {
    let sources = spec.map.iter().flatten().filter_map(|source| source.step());
    spec.deps.iter().map(|dep| dep.step()).chain(sources)
}

fn check_steps(steps: &[StepSpec]) -> Vec<DagError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (ix, spec) in steps.iter().enumerate() {
        if !seen.insert(spec.name.as_str()) {
            errors.push(DagError::DuplicateName { name: spec.name.clone() });
        }
        if spec.map.as_ref().is_some_and(Vec::is_empty) {
            errors.push(DagError::EmptyMap { step: spec.name.clone() });
        }
        let referred: BTreeSet<StepIx> = references(spec).collect();
        for target in referred {
            let step = spec.name.clone();
            match steps.get(target.0 as usize) {
                None => errors.push(DagError::UnknownStep { step, index: target.0 }),
                Some(_) if target.0 as usize == ix => errors.push(DagError::SelfDependency { step }),
                Some(other) if other.finally && !spec.finally => {
                    errors.push(DagError::DependsOnFinally { step, finally: other.name.clone() });
                }
                Some(_) => {}
            }
        }
        for source in spec.map.iter().flatten() {
            let Some(other) = source.step().and_then(|ix| steps.get(ix.0 as usize)) else { continue };
            let (step, source_step) = (spec.name.clone(), other.name.clone());
            match source {
                MapSource::Items(_) | MapSource::Flatten(_) if other.map.is_none() => {
                    errors.push(DagError::MapOverUnmapped { step, source_step });
                }
                MapSource::Output { .. } if other.map.is_some() => {
                    errors.push(DagError::OutputOfMapped { step, source_step });
                }
                _ => {}
            }
        }
    }
    errors
}

/// Edges between existing, different steps; each pair once.
fn build_edges(steps: &[StepSpec]) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    for (to, spec) in steps.iter().enumerate() {
        let froms: BTreeSet<usize> = references(spec).map(|ix| ix.0 as usize).collect();
        edges.extend(froms.into_iter().filter(|from| *from < steps.len() && *from != to).map(|from| (from, to)));
    }
    edges
}

fn link(steps: Vec<StepSpec>, ranks: &[u32]) -> Vec<Node> {
    let finally: Vec<bool> = steps.iter().map(|spec| spec.finally).collect();
    let mut nodes: Vec<Node> =
        steps.into_iter().zip(ranks).map(|(spec, rank)| link_up(spec, *rank, &finally)).collect();
    for ix in 0..nodes.len() {
        let this = StepIx(ix as u32);
        let gates: Vec<StepIx> = nodes[ix].gates.iter().map(|gate| gate.step).collect();
        let items = nodes[ix].item_sources.clone();
        let sources: Vec<MapSource> = nodes[ix].spec.map.iter().flatten().copied().collect();
        for gate in gates {
            nodes[gate.0 as usize].dependents.push(this);
        }
        for item in items {
            nodes[item.0 as usize].item_dependents.push(this);
        }
        for source in sources {
            let Some(up) = source.step() else { continue };
            let up = &mut nodes[up.0 as usize];
            if up.length_dependents.last() != Some(&this) {
                up.length_dependents.push(this);
            }
            let wanted = match source {
                MapSource::Output { lens_slot, .. } => lens_slot as usize + 1,
                MapSource::Flatten(_) => 1,
                MapSource::Len(_) | MapSource::Recorded | MapSource::Items(_) => 0,
            };
            up.lens_wanted = up.lens_wanted.max(wanted);
        }
    }
    nodes
}

/// The edges of a step to those that it needs.
fn link_up(spec: StepSpec, rank: u32, finally: &[bool]) -> Node {
    let mut gates: BTreeMap<StepIx, bool> = BTreeMap::new();
    let mut items = BTreeSet::new();
    for dep in &spec.deps {
        // A finally step waits for all others and takes what is there, so its dependencies on them gate nothing.
        if !spec.finally || finally[dep.step().0 as usize] {
            *gates.entry(dep.step()).or_default() |= matches!(dep, Dep::Data(_));
        }
    }
    for source in spec.map.iter().flatten() {
        match source {
            MapSource::Len(_) | MapSource::Recorded => {}
            MapSource::Items(step) => {
                items.insert(*step);
            }
            MapSource::Output { step, .. } | MapSource::Flatten(step) => {
                gates.insert(*step, true);
            }
        }
    }
    Node {
        gates: gates.into_iter().map(|(step, data)| Gate { step, data }).collect(),
        item_sources: items.into_iter().collect(),
        dependents: Vec::new(),
        item_dependents: Vec::new(),
        length_dependents: Vec::new(),
        lens_wanted: 0,
        rank,
        spec,
    }
}
