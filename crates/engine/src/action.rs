//! What to do next: the decisions of the engine and the reasons they carry.

use std::fmt;

use super::types::{Attempt, FailureClass, StepIx, TaskId};

/// The answer of [`plan`](super::plan): what to do now, in this order, and when to ask again if nothing happens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub wake_at: Option<u64>,
}

/// One decision. Idempotent for the receiver: its key is the task and the attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Evaluate the condition and answer with `Decided` or `Refused`.
    Decide { task: TaskId },
    /// Run it as soon as all of `deps` are finished (or recorded as holes).
    Submit { task: TaskId, attempt: Attempt, deps: Vec<TaskDep>, priority: i32 },
    /// Submitted and not known to have started: must not start any more. Answered by `Stopped`.
    Withdraw { task: TaskId, attempt: Attempt },
    /// Started: end it. Answered by `Stopped`.
    Stop { task: TaskId, attempt: Attempt, why: StopReason },
    /// To the journal: a length that became known during the run.
    RecordLength { step: StepIx, len: u32 },
    /// To the journal: never runs. For a mapped step with `item: None` all items that have not ended.
    RecordSkipped { task: TaskId, reason: SkipReason },
    /// To the journal: failed for good.
    RecordFailed { task: TaskId, reason: FailReason },
    /// To the journal: what was committed of the task counts no more, and it runs again. For a mapped step with
    /// `item: None` its length.
    RecordInvalidated { task: TaskId, why: Invalid },
    /// Everything has ended. The last action of a run.
    Finish(RunOutcome),
}

/// What a submitted task waits for in the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskDep {
    Task(TaskId),
    All {
        step: StepIx,
        len: u32,
    },
    /// Order only.
    After(TaskId),
    /// Order only.
    AfterAll {
        step: StepIx,
        len: u32,
    },
}

/// Why a started attempt is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    Cancelled,
    DeadlineExceeded,
    /// Still there after its timeout and the grace period.
    Timeout,
    /// An input that it started on was lost and could not be made again.
    UpstreamFailed,
    /// An input that it started on counts no more: it starts again on the one that is made in its place.
    InputInvalidated,
}

/// Why what was committed counts no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invalid {
    /// It is not in storage any more as it was committed: `reader` has found that.
    Lost { reader: TaskId },
    /// It was made from an output of `input` that is another one now.
    InputChanged { input: TaskId },
}

impl Invalid {
    /// Stable name, as in the journal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost { .. } => "OutputLost",
            Self::InputChanged { .. } => "InputChanged",
        }
    }
}

/// Why a task whose output is lost does not run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoRerun {
    /// The pipeline says so.
    Policy,
    /// It has run again for that before.
    Again,
    /// It does not run in this run.
    Elsewhere,
    /// Nothing starts any more.
    Ending,
}

/// Why a task never ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkipReason {
    WhenFalse,
    /// An input was skipped by its condition.
    UpstreamSkipped,
    /// An input is a hole that `continueOnFailure` allows, and this task needs the value.
    UpstreamHole,
    /// The run is of a part of the pipeline to which it does not belong.
    NotSelected,
    /// An input failed for good.
    UpstreamFailed,
    /// Another step failed and the run ends at the first failure.
    FailFast,
    Cancelled,
    DeadlineExceeded,
}

impl SkipReason {
    /// Stable name, as in the journal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WhenFalse => "WhenFalse",
            Self::UpstreamSkipped => "UpstreamSkipped",
            Self::UpstreamHole => "UpstreamHole",
            Self::NotSelected => "NotSelected",
            Self::UpstreamFailed => "UpstreamFailed",
            Self::FailFast => "FailFast",
            Self::Cancelled => "Cancelled",
            Self::DeadlineExceeded => "DeadlineExceeded",
        }
    }

    /// The reason with this stable name.
    pub fn parse(name: &str) -> Option<Self> {
        [
            Self::WhenFalse,
            Self::UpstreamSkipped,
            Self::UpstreamHole,
            Self::NotSelected,
            Self::UpstreamFailed,
            Self::FailFast,
            Self::Cancelled,
            Self::DeadlineExceeded,
        ]
        .into_iter()
        .find(|reason| reason.name() == name)
    }

    /// Whether it was kept from running by a cancellation or the deadline of the run.
    pub const fn is_cancellation(self) -> bool {
        matches!(self, Self::Cancelled | Self::DeadlineExceeded)
    }

    /// Whether a list of all items may have a hole for this reason.
    pub const fn is_tolerated(self) -> bool {
        matches!(self, Self::WhenFalse | Self::UpstreamSkipped | Self::UpstreamHole | Self::NotSelected)
    }
}

/// Why a task, or a mapped step as a whole, failed for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailReason {
    /// The last attempt failed and no retry is left or allowed for its class.
    Attempt(FailureClass),
    /// More losses than the run forgives.
    WorkerLost {
        losses: u32,
    },
    /// Condition or arguments could not be evaluated, or the data was refused.
    Refused(String),
    /// The sources of the map differ in length; as many lengths as sources.
    UnequalLengths(Vec<u64>),
    TooManyItems {
        len: u64,
        max: u32,
    },
    /// With the items of its map there are more tasks than a run may have.
    TooManyTasks {
        len: u32,
        total: u64,
        max: u32,
    },
    /// A source of the map did not report a length: its output is not a list.
    NotAList {
        step: StepIx,
    },
    /// An input is lost, and is not made again.
    OutputLost {
        why: NoRerun,
    },
    /// Asks for more of a resource than the run may use at all.
    ExceedsLimit {
        resource: String,
    },
    /// Known from the journal only.
    Recorded,
}

impl FailReason {
    /// Stable name for conditions, journals and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Attempt(FailureClass::App) => "StepError",
            Self::Attempt(FailureClass::Oom) => "OutOfMemory",
            Self::Attempt(FailureClass::Timeout) => "Timeout",
            Self::Attempt(FailureClass::Preempted) => "Preempted",
            Self::Attempt(FailureClass::Infra) => "InfrastructureError",
            Self::Attempt(FailureClass::Data) => "DataError",
            Self::Attempt(FailureClass::Input) | Self::OutputLost { .. } => "OutputLost",
            Self::WorkerLost { .. } => "WorkerLost",
            Self::Refused(_) => "Refused",
            Self::UnequalLengths(_) => "UnequalLengths",
            Self::TooManyItems { .. } => "TooManyItems",
            Self::TooManyTasks { .. } => "LimitExceeded",
            Self::NotAList { .. } => "TypeMismatch",
            Self::ExceedsLimit { .. } => "ExceedsLimit",
            Self::Recorded => "Failed",
        }
    }
}

impl fmt::Display for FailReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempt(class) => write!(f, "the last attempt failed ({})", class.name()),
            Self::WorkerLost { losses } => write!(f, "its worker was lost {losses} times"),
            Self::Refused(reason) => f.write_str(reason),
            Self::UnequalLengths(lens) => {
                let lens: Vec<String> = lens.iter().map(u64::to_string).collect();
                write!(f, "the sources of its map have {} items", lens.join(" and "))
            }
            Self::TooManyItems { len, max } => write!(f, "its map has {len} items, more than {max}"),
            Self::TooManyTasks { len, total, max } => write!(
                f,
                "the {len} items of its map make {total} steps of the run, and the operator allows {max} \
                 (who runs the operator sets the limit with --max-steps-per-run)"
            ),
            Self::NotAList { step } => write!(f, "its map reads an output of step {} that is not a list", step.0),
            Self::OutputLost { why } => f.write_str(match why {
                NoRerun::Policy => {
                    "onOutputLost is Fail, so its step does not run again: put the object back and resume the run, or start \
                     a new run"
                }
                NoRerun::Again => {
                    "its step already ran again once: find out what changes or deletes objects in this storage, then \
                     resume the run"
                }
                NoRerun::Elsewhere => {
                    "it comes from an earlier run, and its step is not selected in this run: select the step too"
                }
                NoRerun::Ending => "its step does not run again, since the run is ending",
            }),
            Self::ExceedsLimit { resource } => write!(f, "it asks for more {resource} than the run may use"),
            Self::Recorded => f.write_str("it failed before the run was restored"),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RunOutcome {
    Succeeded,
    Failed,
    Cancelled,
    DeadlineExceeded,
    /// All others had ended, and the `finally` steps took longer than they may.
    FinallyDeadlineExceeded,
}
