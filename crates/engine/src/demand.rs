//! What a run has use for now and soon: by this, groups of workers grow just before they are needed.

use super::dag::Dag;
use super::state::{Phase, Queued, RunState, Step, Task};
use super::types::{Limits, StepIx};

/// Tasks of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    pub step: StepIx,
    /// They run, or could: their inputs are there.
    pub now: u32,
    /// What they wait for runs.
    pub soon: u32,
    /// What they wait for is next, and waits for a worker itself.
    pub later: u32,
}

/// Steps with tasks that could run now, soon or later. A task counts when each of its inputs is there, runs, or waits only
/// for a worker; of those that wait for a worker at most as many as run (or one), since a long queue is not soon over. It
/// comes soon if its inputs run, and later if one of them waits for a worker. A
/// condition that was not evaluated yet may keep its step from running at all: such a step counts for nothing. A map whose
/// length is not known yet counts as one task. Costs what there is, not what has changed: ask now and then.
pub fn demand(dag: &Dag, state: &RunState, limits: &Limits) -> Vec<Demand> {
    if state.outcome.is_some() {
        return Vec::new();
    }
    let ahead: Vec<Ahead> = state.steps.iter().map(Ahead::of_step).collect();
    let steps = (0..state.steps.len() as u32).map(|ix| {
        let step = &state.steps[ix as usize];
        let most = most_at_once(dag, state, limits, ix);
        let now = step.tasks.iter().filter(|task| is_now(task)).count();
        let now = u32::try_from(now).unwrap_or(u32::MAX).min(most);
        let (soon, later) = if may_come(dag, state, ix) { soon(dag, state, &ahead, ix) } else { (0, 0) };
        let soon = soon.min(most - now);
        Demand { step: StepIx(ix), now, soon, later: later.min(most - now - soon) }
    });
    steps.filter(|demand| demand.now > 0 || demand.soon > 0 || demand.later > 0).collect()
}

/// What has to end before what needs it.
#[derive(Debug, Clone, Copy, Default)]
struct Ahead {
    running: u32,
    /// Waits only for a worker, or for its turn.
    queued: u32,
    /// Something waits for more than a worker.
    far: bool,
}

impl Ahead {
    fn of_task(task: &Task) -> Self {
        match task.phase {
            Phase::Started => Self { running: 1, ..Self::default() },
            _ if is_now(task) => Self { queued: 1, ..Self::default() },
            Phase::Finished | Phase::Committed | Phase::Failed | Phase::Skipped(_) => Self::default(),
            Phase::Waiting | Phase::Backoff | Phase::Submitted | Phase::Stopping(_) => {
                Self { far: true, ..Self::default() }
            }
        }
    }

    fn of_step(step: &Step) -> Self {
        if step.ended || step.published.settled || step.whole.is_some() {
            return Self::default();
        }
        if !step.allocated {
            return Self { far: true, ..Self::default() };
        }
        step.tasks.iter().fold(Self::default(), |sum, task| sum.and(Self::of_task(task)))
    }

    fn and(self, other: Self) -> Self {
        Self {
            running: self.running.saturating_add(other.running),
            queued: self.queued.saturating_add(other.queued),
            far: self.far || other.far,
        }
    }

    fn is_short(self) -> bool {
        !self.far && self.queued <= self.running.max(1)
    }
}

fn is_now(task: &Task) -> bool {
    match task.phase {
        Phase::Started => true,
        Phase::Submitted => !task.ahead,
        Phase::Waiting => task.queued == Queued::Ready,
        _ => false,
    }
}

/// Whether tasks of the step that wait will run, as far as is known.
fn may_come(dag: &Dag, state: &RunState, ix: u32) -> bool {
    let (node, step) = (&dag.nodes[ix as usize], &state.steps[ix as usize]);
    !step.ended
        && step.whole.is_none()
        && step.len_problem.is_none()
        && step.bad == 0
        && step.skips == 0
        && !(node.spec.finally && state.main_open > 0)
        && (!dag.is_per_step(ix) || step.decided == Some(true))
        && state.halt(dag, ix).is_none()
}

fn soon(dag: &Dag, state: &RunState, ahead: &[Ahead], ix: u32) -> (u32, u32) {
    let (node, step) = (&dag.nodes[ix as usize], &state.steps[ix as usize]);
    let whole = node.gates.iter().fold(Ahead::default(), |sum, gate| sum.and(ahead[gate.step.0 as usize]));
    let sorted = |soon: u32, later: u32| if whole.queued == 0 { (soon, later) } else { (0, soon + later) };
    if !whole.is_short() {
        return (0, 0);
    }
    if !step.allocated {
        // Over a list that is being made.
        return sorted(u32::from(node.item_sources.is_empty()), 0);
    }
    let (mut next, mut later) = (0_u32, 0_u32);
    for (slot, task) in step.tasks.iter().enumerate() {
        let waits = match task.phase {
            Phase::Waiting => task.queued != Queued::Ready,
            Phase::Submitted => task.ahead,
            _ => false,
        };
        let decided = !dag.is_per_item(ix) || task.decided == Some(true);
        if !waits || !decided || task.bad > 0 || task.holes > 0 {
            continue;
        }
        let inputs = node.item_sources.iter().filter_map(|up| state.steps[up.0 as usize].tasks.get(slot));
        let inputs = inputs.fold(Ahead::default(), |sum, input| sum.and(Ahead::of_task(input)));
        match inputs {
            Ahead { far: true, .. } => {}
            Ahead { queued: 0, .. } => next += 1,
            _ => later += 1,
        }
    }
    sorted(next, later.min(next.max(1)))
}

/// Tasks of the step that limits let run at once.
fn most_at_once(dag: &Dag, state: &RunState, limits: &Limits, ix: u32) -> u32 {
    let (node, step) = (&dag.nodes[ix as usize], &state.steps[ix as usize]);
    if step.exceeds.is_some() {
        return 0;
    }
    let own = node.spec.parallelism.map(|most| most.max(1));
    let needs = state.admission.needs.get(step.class).into_iter().flatten();
    let pools = needs.map(|need| {
        let total = state.admission.pools[need.pool].total;
        u32::try_from(total / need.amount.max(1)).unwrap_or(u32::MAX)
    });
    own.into_iter().chain(limits.parallelism).chain(pools).min().unwrap_or(u32::MAX)
}
