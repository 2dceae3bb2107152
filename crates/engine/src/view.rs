//! What can be read from a run state: counts, summaries, failures. Bounded by what is asked for.

use super::action::{FailReason, RunOutcome, SkipReason};
use super::counts::Counts;
use super::dag::Dag;
use super::state::{Key, Phase, Queued, RunState, Whole};
use super::types::{Attempt, MapSource, StepIx, TaskId};

/// One step at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSummary {
    pub state: StepState,
    /// Number of tasks, if known.
    pub len: Option<u32>,
    pub counts: Counts,
    /// Tasks whose inputs are there and that wait for a limit only.
    pub ready: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepState {
    Pending,
    Running,
    Succeeded,
    /// A task failed, or the step as a whole.
    Failed,
    /// No task ran, or none did apart from those that were skipped.
    Skipped(SkipReason),
}

/// One task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskView {
    pub status: TaskStatus,
    /// The last attempt; 0 if none was submitted.
    pub attempt: Attempt,
    pub retries: u32,
    pub losses: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskStatus {
    Waiting,
    /// Waits for a limit only.
    Ready,
    /// Its retry is due then.
    Backoff {
        until_ms: u64,
    },
    Submitted,
    Started,
    Finished,
    Stopping,
    Committed {
        cached: bool,
    },
    Failed,
    Skipped(SkipReason),
}

/// What element `i` of a map source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Entry of a list known before the run.
    Index(u32),
    /// The output of this task.
    Output(TaskId),
    /// Entry `index` of a list inside the output of this task.
    Entry { task: TaskId, index: u32 },
}

impl RunState {
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Nothing but `finally` steps is left, and not all of them have ended.
    pub fn is_finalizing(&self) -> bool {
        self.main_open == 0 && self.all_open > 0
    }

    /// How the run ended, after the plan that held `Finish`.
    pub fn outcome(&self) -> Option<RunOutcome> {
        self.outcome
    }

    /// Why the run is being cancelled, if it is.
    pub fn cancelling(&self) -> Option<SkipReason> {
        self.cancel
    }

    /// Final failures by step and item, tolerated ones included.
    pub fn failures(&self) -> impl Iterator<Item = (TaskId, &FailReason)> {
        self.failures.iter().map(|(task, reason)| (*task, reason))
    }

    /// Why a task, or a mapped step as a whole, has failed for good.
    pub fn failure(&self, task: TaskId) -> Option<&FailReason> {
        self.failures.get(&task)
    }

    /// Number of tasks of a step, once known.
    pub fn step_len(&self, step: StepIx) -> Option<u32> {
        self.steps.get(step.0 as usize)?.len
    }

    /// A look at one task, if it exists yet.
    pub fn task_view(&self, dag: &Dag, task: TaskId) -> Option<TaskView> {
        let key = self.key_of(dag, task)?;
        let task = self.task(key);
        let status = match task.phase {
            Phase::Waiting if task.queued == Queued::Ready => TaskStatus::Ready,
            Phase::Waiting => TaskStatus::Waiting,
            Phase::Backoff => TaskStatus::Backoff { until_ms: task.due.unwrap_or_default() },
            Phase::Submitted => TaskStatus::Submitted,
            Phase::Started => TaskStatus::Started,
            Phase::Finished => TaskStatus::Finished,
            Phase::Stopping(_) => TaskStatus::Stopping,
            Phase::Committed => TaskStatus::Committed { cached: task.cached },
            Phase::Failed => TaskStatus::Failed,
            Phase::Skipped(reason) => TaskStatus::Skipped(reason),
        };
        Some(TaskView { status, attempt: task.attempt, retries: task.retries, losses: task.losses })
    }

    /// A look at one step; cost proportional to its tasks.
    pub fn step_summary(&self, ix: StepIx) -> Option<StepSummary> {
        let step = self.steps.get(ix.0 as usize)?;
        let mut counts = Counts::default();
        let mut skip = None;
        for task in &step.tasks {
            counts.add(task.phase, task.cached);
            if let Phase::Skipped(reason) = task.phase {
                skip = skip.max(Some(reason));
            }
        }
        if !step.allocated {
            counts.add(step.whole.map_or(Phase::Waiting, Whole::phase), false);
        }
        let state = match step.whole {
            Some(Whole::Failed) => StepState::Failed,
            _ if counts.failed > 0 => StepState::Failed,
            Some(Whole::Skipped(reason)) if step.ended => StepState::Skipped(reason),
            _ if step.ended => match skip.filter(|_| counts.done == 0) {
                Some(reason) => StepState::Skipped(reason),
                None => StepState::Succeeded,
            },
            _ if counts.submitted + counts.running + counts.done > 0 => StepState::Running,
            _ => StepState::Pending,
        };
        Some(StepSummary { state, len: step.len, counts, ready: step.ready.len() as u32 })
    }

    /// What a task gets from source number `source` of its step's map. `None` if there is no such task or source, or
    /// the lengths of a flattened source are not known yet.
    pub fn map_element(&self, dag: &Dag, task: TaskId, source: usize) -> Option<Element> {
        let item = task.item?;
        let step = self.steps.get(task.step.0 as usize)?;
        if step.len.is_none_or(|len| item >= len) {
            return None;
        }
        Some(match *dag.step(task.step)?.map.as_ref()?.get(source)? {
            MapSource::Len(_) | MapSource::Recorded => Element::Index(item),
            MapSource::Items(up) => Element::Output(TaskId::item(up, item)),
            MapSource::Output { step: up, .. } => Element::Entry { task: TaskId::whole(up), index: item },
            MapSource::Flatten(up) => {
                let (list, index) = self.flat_position(up, item)?;
                Element::Entry { task: TaskId::item(up, list), index }
            }
        })
    }

    /// Where a task is kept, if it exists yet.
    pub(super) fn key_of(&self, dag: &Dag, task: TaskId) -> Option<Key> {
        let step = self.steps.get(task.step.0 as usize)?;
        let slot = match (dag.step(task.step)?.map.is_some(), task.item) {
            (false, None) => 0,
            (true, Some(item)) => item,
            _ => return None,
        };
        ((slot as usize) < step.tasks.len()).then_some(Key { step: task.step.0, slot })
    }
}

impl Counts {
    fn add(&mut self, phase: Phase, cached: bool) {
        self.total += 1;
        *self.field(phase) += 1;
        self.cached += u32::from(cached && phase == Phase::Committed);
    }
}

impl Whole {
    /// Why an item that is left over does not run.
    pub(super) fn skip_reason(self) -> SkipReason {
        match self {
            Self::Skipped(reason) => reason,
            Self::Failed => SkipReason::UpstreamFailed,
        }
    }

    pub(super) fn phase(self) -> Phase {
        match self {
            Self::Skipped(reason) => Phase::Skipped(reason),
            Self::Failed => Phase::Failed,
        }
    }
}
