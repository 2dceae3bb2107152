//! How a run ends by definition: a plain recursion over the steps, without events, order or limits.

use engine::*;

use crate::sim::{Answer, Sim};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Failed,
    Skipped(SkipReason),
}

#[derive(Debug, Clone)]
struct StepEnd {
    /// The end of the step as a whole, if it did not get as far as its items.
    whole: Option<End>,
    tasks: Vec<End>,
}

/// Compares the ends of all tasks with the definition.
pub fn check_against_reference(sim: &Sim) {
    let ends = build_ends(&sim.dag, sim.seed());
    let mut is_failed = false;
    for ((ix, spec), end) in sim.dag.steps().zip(&ends) {
        let expected = |end: &End| match end {
            End::Done => TaskStatus::Committed { cached: false },
            End::Failed => TaskStatus::Failed,
            End::Skipped(reason) => TaskStatus::Skipped(*reason),
        };
        is_failed |= !spec.continue_on_failure && (end.whole == Some(End::Failed) || end.tasks.contains(&End::Failed));
        let summary = sim.state.step_summary(ix).expect("a step");
        let state = match end.whole {
            Some(End::Failed) => StepState::Failed,
            Some(End::Skipped(reason)) => StepState::Skipped(reason),
            _ if end.tasks.contains(&End::Failed) => StepState::Failed,
            _ if end.tasks.is_empty() || end.tasks.contains(&End::Done) => StepState::Succeeded,
            _ => StepState::Skipped(worst(end.tasks.iter()).expect("nothing was done")),
        };
        assert_eq!(summary.state, state, "{}: {end:?}", spec.name);
        if end.whole.is_none() {
            assert_eq!(summary.len, Some(end.tasks.len() as u32), "{}", spec.name);
        }
        for (item, end) in end.tasks.iter().enumerate() {
            let task = TaskId { step: ix, item: spec.map.is_some().then_some(item as u32) };
            let status = sim.state.task_view(&sim.dag, task).map(|view| view.status);
            assert_eq!(status, Some(expected(end)), "{} {item}", spec.name);
        }
    }
    let outcome = if is_failed { RunOutcome::Failed } else { RunOutcome::Succeeded };
    assert_eq!(sim.state.outcome(), Some(outcome));
}

fn build_ends(dag: &Dag, seed: u64) -> Vec<StepEnd> {
    let mut ends: Vec<StepEnd> = Vec::new();
    for (ix, spec) in dag.steps() {
        let end = match step_reason(dag, spec, &ends) {
            Some(reason) => End::Skipped(reason).into(),
            None => match items_of(spec, &ends, seed) {
                None => End::Failed.into(),
                Some(len) => build_step(dag, ix, spec, &ends, seed, len),
            },
        };
        // Of an unmapped step the whole is the task.
        let end = match end.whole {
            Some(whole) if spec.map.is_none() => StepEnd { whole: None, tasks: vec![whole] },
            _ => end,
        };
        ends.push(end);
    }
    ends
}

/// Why a step as a whole does not run because of those before it.
fn step_reason(dag: &Dag, spec: &StepSpec, ends: &[StepEnd]) -> Option<SkipReason> {
    let is_free = |up: StepIx| spec.finally && !dag.step(up).is_some_and(|up| up.finally);
    let gates = spec.deps.iter().filter(|dep| !is_free(dep.step())).copied();
    let sources = spec.map.iter().flatten().filter_map(|source| match source {
        MapSource::Output { step, .. } | MapSource::Flatten(step) => Some(Dep::Data(*step)),
        _ => None,
    });
    let mut reasons = Vec::new();
    for gate in gates.chain(sources) {
        let up = dag.step(gate.step()).expect("a step");
        let end = &ends[gate.step().0 as usize];
        let is_list = up.map.is_some() && end.whole.is_none();
        if is_list {
            let is_bad = end.tasks.iter().any(|end| hole_of(up, *end) == Some(SkipReason::UpstreamFailed));
            reasons.extend(is_bad.then_some(SkipReason::UpstreamFailed));
            continue;
        }
        let whole = end.whole.unwrap_or_else(|| end.tasks[0]);
        match hole_of(up, whole) {
            Some(SkipReason::UpstreamFailed) => reasons.push(SkipReason::UpstreamFailed),
            // The output of a step that may fail is a hole that its dependents see.
            Some(_) if whole == End::Failed && up.map.is_none() => {}
            Some(reason) if matches!(gate, Dep::Data(_)) => reasons.push(reason),
            _ => {}
        }
    }
    for source in spec.map.iter().flatten() {
        let Some(up) = source.step() else { continue };
        let (end, up_spec) = (&ends[up.0 as usize], dag.step(up).expect("a step"));
        match source {
            MapSource::Items(_) => reasons.extend(end.whole.and_then(|whole| hole_of(up_spec, whole))),
            MapSource::Output { .. } => {
                reasons.extend(end.tasks.first().and_then(|end| hole_of(up_spec, *end)));
            }
            _ => {}
        }
    }
    reasons.into_iter().max()
}

/// Number of tasks; `None` if the sources disagree.
fn items_of(spec: &StepSpec, ends: &[StepEnd], seed: u64) -> Option<usize> {
    let Some(sources) = &spec.map else { return Some(1) };
    let lens: Vec<u32> = sources
        .iter()
        .map(|source| match source {
            MapSource::Len(len) => *len,
            MapSource::Recorded => 0,
            MapSource::Items(up) => ends[up.0 as usize].tasks.len() as u32,
            MapSource::Output { step, lens_slot } => Sim::lens_of(seed, TaskId::whole(*step))[*lens_slot as usize],
            MapSource::Flatten(up) => {
                let tasks = ends[up.0 as usize].tasks.iter().enumerate();
                let done = tasks.filter(|(_, end)| **end == End::Done);
                done.map(|(item, _)| Sim::lens_of(seed, TaskId::item(*up, item as u32))[0]).sum()
            }
        })
        .collect();
    lens.iter().all(|len| *len == lens[0]).then_some(lens[0] as usize)
}

fn build_step(dag: &Dag, ix: StepIx, spec: &StepSpec, ends: &[StepEnd], seed: u64, len: usize) -> StepEnd {
    let is_mapped = spec.map.is_some();
    let asks_once = spec.when == When::PerStep || (spec.when == When::PerItem && !is_mapped);
    if asks_once {
        match Sim::answer_of(seed, TaskId::whole(ix)) {
            Answer::Run => {}
            Answer::Skip => return End::Skipped(SkipReason::WhenFalse).into(),
            Answer::Refuse => return End::Failed.into(),
        }
    }
    let tasks = (0..len).map(|item| {
        let sources = spec.map.iter().flatten().filter_map(|source| match source {
            MapSource::Items(up) => Some(*up),
            _ => None,
        });
        let holes = sources.filter_map(|up| hole_of(dag.step(up)?, ends[up.0 as usize].tasks[item]));
        if let Some(reason) = holes.max() {
            return End::Skipped(reason);
        }
        let task = TaskId { step: ix, item: is_mapped.then_some(item as u32) };
        if spec.when == When::PerItem && is_mapped {
            match Sim::answer_of(seed, task) {
                Answer::Run => {}
                Answer::Skip => return End::Skipped(SkipReason::WhenFalse),
                Answer::Refuse => return End::Failed,
            }
        }
        if Sim::failures_of(seed, task) > spec.retry.limit { End::Failed } else { End::Done }
    });
    StepEnd { whole: None, tasks: tasks.collect() }
}

/// What the end of a task or step means to those that need its value.
fn hole_of(spec: &StepSpec, end: End) -> Option<SkipReason> {
    match end {
        End::Done => None,
        End::Failed if spec.continue_on_failure => Some(SkipReason::UpstreamHole),
        End::Failed => Some(SkipReason::UpstreamFailed),
        End::Skipped(SkipReason::WhenFalse | SkipReason::UpstreamSkipped) => Some(SkipReason::UpstreamSkipped),
        End::Skipped(SkipReason::UpstreamHole) => Some(SkipReason::UpstreamHole),
        End::Skipped(_) => Some(SkipReason::UpstreamFailed),
    }
}

fn worst<'a>(ends: impl Iterator<Item = &'a End>) -> Option<SkipReason> {
    ends.filter_map(|end| match end {
        End::Skipped(reason) => Some(*reason),
        _ => None,
    })
    .max()
}

impl From<End> for StepEnd {
    fn from(end: End) -> Self {
        Self { whole: Some(end), tasks: Vec::new() }
    }
}
