//! What is known about a run: facts per task, and the counts that make planning incremental.

use std::collections::{BTreeMap, BTreeSet};

use super::action::{Action, FailReason, RunOutcome, SkipReason};
use super::counts::Counts;
use super::dag::Dag;
use super::types::{Attempt, FailureClass, Limits, StepIx, TaskId};

/// Items that a step may have whatever the limits say: bounds what a journal or a peer can make us allocate.
pub const MAX_ITEMS: u32 = 1_000_000;

/// Everything known about one run. Belongs to the [`Dag`] that it was made for.
#[derive(Debug, Clone)]
pub struct RunState {
    pub(super) steps: Vec<Step>,
    pub(super) seed: u64,
    pub(super) counts: Counts,
    /// Steps that have not ended: of the main part, and all.
    pub(super) main_open: u32,
    pub(super) all_open: u32,
    /// Failures that fail the run.
    pub(super) fatal: u32,
    pub(super) failures: BTreeMap<TaskId, FailReason>,
    /// Why nothing of the main part may start any more.
    pub(super) cancel: Option<SkipReason>,
    pub(super) cancel_spread: bool,
    /// Something was cancelled indeed.
    pub(super) cut_short: bool,
    pub(super) fail_fast_spread: bool,
    /// When the main part had ended: the time of the `finally` steps counts from then.
    pub(super) finally_from: Option<u64>,
    /// That time is over: nothing of them may start any more.
    pub(super) finally_over: bool,
    pub(super) finally_spread: bool,
    /// Some of them were stopped or kept from running by that.
    pub(super) finally_cut: bool,
    pub(super) outcome: Option<RunOutcome>,

    /// Tasks and steps that something changed for since they were last looked at.
    pub(super) dirty_tasks: Vec<Key>,
    pub(super) dirty_steps: Vec<u32>,
    /// Ends that the journal does not have yet.
    pub(super) unrecorded: Vec<TaskId>,
    /// Tasks that have run again since their output was lost: not once more.
    pub(super) lost_once: BTreeSet<TaskId>,
    /// Steps with outputs that have changed: what was recorded of the lengths of those mapped over them may not hold.
    pub(super) changed: BTreeSet<u32>,
    /// Steps whose recorded length does not hold any more.
    pub(super) resized: BTreeSet<u32>,
    /// Last attempts of tasks that are not there at present.
    pub(super) numbers: BTreeMap<TaskId, Attempt>,
    /// Attempts to be withdrawn whose task has ended already.
    pub(super) orphans: Vec<(TaskId, Attempt)>,
    pub(super) actions: Vec<Action>,
    pub(super) timers: BTreeSet<(Timer, u64, Key)>,

    /// Limits of the last plan; queues and classes below depend on them.
    pub(super) limits: Option<Limits>,
    pub(super) admission: Admission,
}

/// Step and position in it (0 for an unmapped step).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub step: u32,
    pub slot: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Retry,
    Timeout,
}

/// What goes first and what still fits. Steps stand for their queued tasks, by their place in the fixed order.
#[derive(Debug, Clone, Default)]
pub(super) struct Admission {
    /// Step index by place, and place by step index.
    pub order: Vec<u32>,
    pub place: Vec<u32>,
    /// Steps with ready tasks, by class: all steps of a class need the same limited resources.
    pub ready: Vec<BTreeSet<u32>>,
    pub needs: Vec<Vec<Need>>,
    /// The first step of each class.
    pub heads: BTreeSet<(u32, usize)>,
    /// Nothing ready fits, and nothing has changed since that was found.
    pub is_stuck: bool,
    /// Steps with tasks that may be submitted ahead of their inputs.
    pub ahead: BTreeSet<u32>,
    /// Per limited resource, in the order of the limits: total and taken.
    pub pools: Vec<Pool>,
    /// Submitted and not finished; those of them that wait for inputs in the runtime.
    pub outstanding: u32,
    pub outstanding_ahead: u32,
}

/// A resource that the limits name. Millionths, so that sums are exact.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub name: String,
    pub total: u64,
    pub taken: u64,
    /// The least that any step needs of it.
    pub least: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    pub pool: usize,
    pub amount: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Step {
    /// Number of tasks once known; 1 for an unmapped step.
    pub len: Option<u32>,
    /// Known from the graph alone or in the journal already.
    pub len_recorded: bool,
    pub len_problem: Option<FailReason>,
    /// Empty until the length is known and accepted.
    pub tasks: Vec<Task>,
    pub allocated: bool,
    /// A verdict on a mapped step as a whole, and whether the journal has it.
    pub whole: Option<Whole>,
    pub whole_recorded: bool,
    /// A map without items that has succeeded.
    pub complete: bool,
    /// Its gates are settled, its length is right, its condition true: nothing ends it as a whole, short of a loss.
    pub cleared: bool,
    pub ended: bool,
    pub asked: bool,
    pub decided: Option<bool>,
    pub dirty: bool,

    /// Gates that are not settled, not launched, bad, or skipped although their data is needed.
    pub open: u32,
    pub unlaunched: u32,
    pub bad: u32,
    pub skips: u32,

    /// Tasks of this step by what they mean to others.
    pub live_tasks: u32,
    pub unsettled_tasks: u32,
    pub unlaunched_tasks: u32,
    pub bad_tasks: u32,
    pub published: Signal,

    /// Lengths reported by committed tasks, as far as somebody wants them.
    pub lens: BTreeMap<u32, Vec<u32>>,
    /// Where the list of each item begins in the concatenation, and its end: set when a `Flatten` needed it.
    pub offsets: Vec<u32>,

    pub ready: BTreeSet<u32>,
    pub ahead: BTreeSet<u32>,
    pub outstanding: u32,
    /// Resource class; see [`Admission::needs`].
    pub class: usize,
    /// Waits for the engine: under a limit, so never submitted ahead.
    pub limited: bool,
    /// The resource of which it wants more than there is.
    pub exceeds: Option<String>,
}

/// What a step or task means to those that depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Signal {
    /// Submitted or further: dependents may be submitted along with it.
    pub launched: bool,
    /// Finished or ended: dependents need not wait any more.
    pub settled: bool,
    /// Will never be there, and dependents cannot do without.
    pub bad: bool,
    /// Will not be there, and that is allowed.
    pub hole: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    Skipped(SkipReason),
    Failed,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Task {
    pub phase: Phase,
    pub attempt: Attempt,
    /// Failures charged to the retry limit, and losses.
    pub retries: u32,
    pub losses: u32,
    pub last_class: Option<FailureClass>,
    /// Element-wise inputs that are not settled, not launched, bad, or holes.
    pub open: u32,
    pub unlaunched: u32,
    pub bad: u32,
    pub holes: u32,
    /// When the phase ends by itself: retry in `Backoff`, own timeout in `Started`.
    pub due: Option<u64>,
    pub asked: bool,
    pub decided: Option<bool>,
    pub ahead: bool,
    pub cached: bool,
    /// Its end is in the journal.
    pub recorded: bool,
    pub dirty: bool,
    pub queued: Queued,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Queued {
    #[default]
    No,
    Ready,
    Ahead,
}

/// Where a task is. `Committed`, `Failed` and `Skipped` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    #[default]
    Waiting,
    Backoff,
    Submitted,
    Started,
    Finished,
    /// Told to stop; what it becomes then.
    Stopping(Then),
    Committed,
    Failed,
    Skipped(SkipReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Skip(SkipReason),
    Timeout,
    Requeue,
}

impl Phase {
    pub fn is_final(self) -> bool {
        matches!(self, Self::Committed | Self::Failed | Self::Skipped(_))
    }

    /// Takes a place in the runtime.
    pub fn is_outstanding(self) -> bool {
        matches!(self, Self::Submitted | Self::Started | Self::Stopping(_))
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Backoff => "waiting for a retry",
            Self::Submitted => "submitted",
            Self::Started => "started",
            Self::Finished => "finished",
            Self::Stopping(_) => "stopping",
            Self::Committed => "committed",
            Self::Failed => "failed",
            Self::Skipped(_) => "skipped",
        }
    }

    /// What it means to dependents, given whether the step's failures are tolerated.
    pub fn signal(self, continue_on_failure: bool) -> Signal {
        let (launched, settled) = match self {
            Self::Waiting | Self::Backoff | Self::Stopping(_) => (false, false),
            Self::Submitted | Self::Started => (true, false),
            Self::Finished | Self::Committed | Self::Failed | Self::Skipped(_) => (true, true),
        };
        let (bad, hole) = match self {
            Self::Failed => (!continue_on_failure, continue_on_failure),
            Self::Skipped(reason) => (!reason.is_tolerated(), reason.is_tolerated()),
            _ => (false, false),
        };
        Signal { launched, settled, bad, hole }
    }
}

impl RunState {
    /// The state of a run of `dag` of which nothing is known yet. `seed` makes the jitter of retries its own.
    pub fn new(dag: &Dag, seed: u64) -> Self {
        let mut order: Vec<u32> = (0..dag.nodes.len() as u32).collect();
        order.sort_by_key(|ix| {
            let node = &dag.nodes[*ix as usize];
            (std::cmp::Reverse(node.spec.priority), std::cmp::Reverse(node.rank), *ix)
        });
        let mut place = vec![0; order.len()];
        for (at, ix) in order.iter().enumerate() {
            place[*ix as usize] = at as u32;
        }
        let steps: Vec<Step> = dag.nodes.iter().map(|node| Step::new(node.gates.len() as u32)).collect();
        let main_open = dag.nodes.iter().filter(|node| !node.spec.finally).count() as u32;
        let total = steps.len() as u32;
        let mut state = Self {
            steps,
            seed,
            counts: Counts { total, waiting: total, ..Counts::default() },
            main_open,
            all_open: total,
            fatal: 0,
            failures: BTreeMap::new(),
            cancel: None,
            cancel_spread: false,
            cut_short: false,
            fail_fast_spread: false,
            finally_from: None,
            finally_over: false,
            finally_spread: false,
            finally_cut: false,
            outcome: None,
            dirty_tasks: Vec::new(),
            dirty_steps: Vec::new(),
            unrecorded: Vec::new(),
            lost_once: BTreeSet::new(),
            changed: BTreeSet::new(),
            resized: BTreeSet::new(),
            numbers: BTreeMap::new(),
            orphans: Vec::new(),
            actions: Vec::new(),
            timers: BTreeSet::new(),
            limits: None,
            admission: Admission { order, place, ..Admission::default() },
        };
        for (ix, node) in dag.nodes.iter().enumerate() {
            if node.spec.map.is_none() {
                state.steps[ix].len = Some(1);
                state.allocate(dag, ix as u32);
            }
        }
        state.resolve_lengths(dag, (0..total).collect());
        for ix in 0..total {
            let step = &mut state.steps[ix as usize];
            step.len_recorded = step.len.is_some();
            state.mark_step(ix);
        }
        state
    }

    /// Makes the tasks of a step whose length is known.
    pub(super) fn allocate(&mut self, dag: &Dag, ix: u32) {
        let Some(len) = self.steps[ix as usize].len else { return };
        if self.steps[ix as usize].allocated {
            return;
        }
        let node = &dag.nodes[ix as usize];
        let mut tasks = vec![Task::default(); len as usize];
        for source in &node.item_sources {
            let up = &self.steps[source.0 as usize];
            let tolerant = dag.node(*source).spec.continue_on_failure;
            for (slot, task) in tasks.iter_mut().enumerate() {
                let signal = up.tasks.get(slot).map_or(Signal::default(), |input| input.phase.signal(tolerant));
                task.open += u32::from(!signal.settled);
                task.unlaunched += u32::from(!signal.launched);
                task.bad += u32::from(signal.bad);
                task.holes += u32::from(signal.hole);
            }
        }
        let items = TaskId::item(StepIx(ix), 0)..TaskId::item(StepIx(ix), len);
        for (id, attempt) in self.numbers.range(items) {
            if let Some(task) = id.item.and_then(|item| tasks.get_mut(item as usize)) {
                task.attempt = *attempt;
            }
        }
        let step = &mut self.steps[ix as usize];
        step.tasks = tasks;
        step.allocated = true;
        step.live_tasks = len;
        step.unsettled_tasks = len;
        step.unlaunched_tasks = len;
        // Until now the step counted as one waiting task.
        self.counts.total = self.counts.total - 1 + len;
        self.counts.waiting = self.counts.waiting - 1 + len;
        self.mark_tasks(ix);
    }

    pub(super) fn mark_step(&mut self, ix: u32) {
        let step = &mut self.steps[ix as usize];
        if !step.dirty && !step.ended {
            step.dirty = true;
            self.dirty_steps.push(ix);
        }
    }

    pub(super) fn mark_task(&mut self, key: Key) {
        let Some(task) = self.steps[key.step as usize].tasks.get_mut(key.slot as usize) else { return };
        if !task.dirty && !task.phase.is_final() {
            task.dirty = true;
            self.dirty_tasks.push(key);
        }
    }

    pub(super) fn mark_tasks(&mut self, ix: u32) {
        for slot in 0..self.steps[ix as usize].tasks.len() as u32 {
            self.mark_task(Key { step: ix, slot });
        }
    }

    /// Looks at everything again: after a change that concerns all, such as other limits or a cancellation.
    pub(super) fn mark_all(&mut self) {
        for ix in 0..self.steps.len() as u32 {
            if !self.steps[ix as usize].ended {
                self.mark_step(ix);
                self.mark_tasks(ix);
            }
        }
    }

    pub(super) fn task(&self, key: Key) -> &Task {
        &self.steps[key.step as usize].tasks[key.slot as usize]
    }

    pub(super) fn task_mut(&mut self, key: Key) -> &mut Task {
        &mut self.steps[key.step as usize].tasks[key.slot as usize]
    }
}

impl Step {
    fn new(gates: u32) -> Self {
        Self { open: gates, unlaunched: gates, ..Self::default() }
    }
}

impl Key {
    pub fn id(self, dag: &Dag) -> TaskId {
        let step = StepIx(self.step);
        let item = dag.node(step).spec.map.as_ref().map(|_| self.slot);
        TaskId { step, item }
    }
}
