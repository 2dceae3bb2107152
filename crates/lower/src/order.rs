//! Order of the steps and cycles among them.

use std::collections::BTreeSet;

use super::flow::FlowStep;
use api::problem::Problem;
use api::reason::Reason;
use engine::{Dag, DagError, Dep, StepIx, StepSpec};

/// The steps so that each stands behind those that it needs. Cycles go to `problems`, printed in order.
pub(super) fn check(steps: &[FlowStep], problems: &mut Vec<Problem>) -> Vec<StepIx> {
    let edges: Vec<BTreeSet<StepIx>> = steps.iter().map(upstream).collect();
    let order = sorted(&edges);
    if order.len() == steps.len() {
        return order;
    }
    // positions as names: a name may stand twice in what is being checked
    let specs = edges.iter().enumerate().map(|(ix, edges)| StepSpec {
        name: ix.to_string(),
        deps: edges.iter().map(|step| Dep::After(*step)).collect(),
        ..StepSpec::default()
    });
    for error in Dag::build(specs.collect()).err().unwrap_or_default() {
        let DagError::Cycle { path } = error else { continue };
        let cycle: Vec<&FlowStep> =
            path.iter().filter_map(|position| position.parse::<usize>().ok()).filter_map(|ix| steps.get(ix)).collect();
        // along the references: each step needs the next one
        let Some(start) = cycle.iter().enumerate().min_by_key(|(_, step)| &step.at).map(|(start, _)| start) else {
            continue;
        };
        let names: Vec<&str> = (0..=cycle.len()).map(|i| cycle[(start + i) % cycle.len()].spec.name.as_str()).collect();
        let message = format!("the steps need each other: {}", shown(&names));
        problems.push(Problem::new(Reason::DependencyCycle, &cycle[start].at, message));
    }
    order
}

/// Everything that a step needs.
fn upstream(step: &FlowStep) -> BTreeSet<StepIx> {
    let sources = step.map.iter().flatten().filter_map(|var| var.source.step());
    step.data.iter().chain(&step.after).copied().chain(sources).collect()
}

/// Kahn's algorithm; steps on cycles and behind them are missing from the result.
fn sorted(edges: &[BTreeSet<StepIx>]) -> Vec<StepIx> {
    let mut waiting: Vec<usize> = edges.iter().map(BTreeSet::len).collect();
    let mut downstream: Vec<Vec<StepIx>> = vec![Vec::new(); edges.len()];
    for (ix, up) in edges.iter().enumerate() {
        for step in up {
            downstream[step.0 as usize].push(StepIx(ix as u32));
        }
    }
    let mut order: Vec<StepIx> = (0..edges.len()).filter(|ix| waiting[*ix] == 0).map(|ix| StepIx(ix as u32)).collect();
    let mut next = 0;
    while next < order.len() {
        for down in &downstream[order[next].0 as usize] {
            waiting[down.0 as usize] -= 1;
            if waiting[down.0 as usize] == 0 {
                order.push(*down);
            }
        }
        next += 1;
    }
    order
}

/// A long cycle is cut in its middle.
fn shown(names: &[&str]) -> String {
    const ENDS: usize = 10;
    if names.len() <= 2 * ENDS {
        return names.join(" -> ");
    }
    let (first, last) = (&names[..ENDS], &names[names.len() - ENDS..]);
    format!("{} -> … ({} more) … -> {}", first.join(" -> "), names.len() - 2 * ENDS, last.join(" -> "))
}
