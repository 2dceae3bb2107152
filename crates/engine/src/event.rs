//! What happened: the facts that a run state is made of.

use super::action::SkipReason;
use super::types::{Attempt, FailureClass, StepIx, TaskId};

/// One fact. Facts about attempts come from the runtime, `Decided` and `Refused` from the caller, the rest from the
/// journal when a run is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Restore on a live runtime: it holds this attempt already.
    Submitted {
        task: TaskId,
        attempt: Attempt,
    },
    Started {
        task: TaskId,
        attempt: Attempt,
    },
    /// The output exists: dependents may start, the journal does not have it yet. `lens`: see [`Event::Committed`].
    Finished {
        task: TaskId,
        attempt: Attempt,
        lens: Vec<u32>,
    },
    /// In the journal: final. `lens` are the lengths of the lists that later steps map over, by slot.
    Committed {
        task: TaskId,
        lens: Vec<u32>,
    },
    /// Like `Committed`, for an output that an earlier run made.
    Cached {
        task: TaskId,
        lens: Vec<u32>,
    },
    Failed {
        task: TaskId,
        attempt: Attempt,
        class: FailureClass,
    },
    /// The attempt could not read `inputs`, whose committed outputs are lost; those are left out that have another output
    /// by now.
    InputLost {
        task: TaskId,
        attempt: Attempt,
        inputs: Vec<TaskId>,
    },
    /// The task, which was run again, is about to be committed with another output than the one that was lost. Before its
    /// `Committed`.
    Changed {
        task: TaskId,
    },
    /// The worker went away with the attempt, or with an output that was not committed.
    Lost {
        task: TaskId,
        attempt: Attempt,
    },
    /// Answer to `Stop` and `Withdraw`.
    Stopped {
        task: TaskId,
        attempt: Attempt,
    },
    /// Answer to `Decide`.
    Decided {
        task: TaskId,
        run: bool,
    },
    /// Condition or arguments could not be evaluated, or the data was refused: fails without retry.
    Refused {
        task: TaskId,
        reason: String,
    },
    /// The scheduler is gone with everything that was not committed. Open questions are asked again.
    RuntimeLost,
    CancelRequested,
    /// Restore: the length that was recorded for a mapped step.
    MapLength {
        step: StepIx,
        len: u32,
    },
    /// Restore: a recorded skip.
    Skipped {
        task: TaskId,
        reason: SkipReason,
    },
    /// Restore: a recorded final failure.
    FailedFinal {
        task: TaskId,
    },
    /// Restore: what had been committed of the task by this attempt counts no more. `lost`: since it was lost.
    Invalidated {
        task: TaskId,
        attempt: Attempt,
        lost: bool,
    },
    /// Restore: a recorded failed attempt. Attempt numbers and charged retries continue from it.
    AttemptFailed {
        task: TaskId,
        attempt: Attempt,
        class: FailureClass,
    },
}

impl Event {
    /// Stable name for messages and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Submitted { .. } => "submitted",
            Self::Started { .. } => "started",
            Self::Finished { .. } => "finished",
            Self::Committed { .. } => "committed",
            Self::Cached { .. } => "cached",
            Self::Failed { .. } => "failed",
            Self::InputLost { .. } => "input-lost",
            Self::Changed { .. } => "changed",
            Self::Invalidated { .. } => "invalidated",
            Self::Lost { .. } => "lost",
            Self::Stopped { .. } => "stopped",
            Self::Decided { .. } => "decided",
            Self::Refused { .. } => "refused",
            Self::RuntimeLost => "runtime-lost",
            Self::CancelRequested => "cancel-requested",
            Self::MapLength { .. } => "map-length",
            Self::Skipped { .. } => "skipped",
            Self::FailedFinal { .. } => "failed-final",
            Self::AttemptFailed { .. } => "attempt-failed",
        }
    }
}

/// An event that contradicts what is known. The state is unchanged; report it and go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    #[error("apply {event}: there is no step {}", .step.0)]
    UnknownStep { event: &'static str, step: StepIx },
    #[error("apply {event}: step {} has no such task (item {:?})", .task.step.0, .task.item)]
    UnknownTask { event: &'static str, task: TaskId },
    #[error("apply {event}: attempts are counted from 1 (step {}, item {:?})", .task.step.0, .task.item)]
    NoAttempt { event: &'static str, task: TaskId },
    #[error("apply {event}: the task is {state} (step {}, item {:?})", .task.step.0, .task.item)]
    Contradiction { event: &'static str, task: TaskId, state: &'static str },
    #[error("apply {event}: the step has no condition at this level (step {}, item {:?})", .task.step.0, .task.item)]
    NotConditional { event: &'static str, task: TaskId },
    #[error("apply map-length: step {} has {known} items, not {got}", .step.0)]
    LengthContradicts { step: StepIx, known: u32, got: u32 },
    #[error("apply map-length: {len} items of step {} are more than any run may have", .step.0)]
    TooManyItems { step: StepIx, len: u32 },
}

impl TransitionError {
    /// Stable name for metrics and events.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::UnknownStep { .. } => "UnknownStep",
            Self::UnknownTask { .. } => "UnknownTask",
            Self::NoAttempt { .. } => "NoAttempt",
            Self::Contradiction { .. } => "Contradiction",
            Self::NotConditional { .. } => "NotConditional",
            Self::LengthContradicts { .. } => "LengthContradicts",
            Self::TooManyItems { .. } => "TooManyItems",
        }
    }
}
