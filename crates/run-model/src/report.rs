//! What the driver tells while a run goes on, and at its end.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use api::reason::Reason;

/// Tasks (items of mapped steps counted singly) by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All that are known by now; grows when the length of a map becomes known.
    pub total: u64,
    /// Committed or otherwise at their end: succeeded, cached, failed and skipped.
    pub done: u64,
    /// Handed to a worker.
    pub running: u64,
    /// Taken over from the journal of this run or of an earlier one.
    pub cached: u64,
    /// Failed for good.
    pub failed: u64,
    /// Never called.
    pub skipped: u64,
    /// Of the skipped, those that a cancellation or a deadline of the run kept back.
    #[serde(skip)]
    pub kept_back: u64,
    /// Nothing but `finally` steps is left.
    #[serde(skip)]
    pub finalizing: bool,
}

/// The last failed attempt of a task, as people want to see it.
#[derive(Debug, Clone, Default)]
pub struct Failure {
    /// The step.
    pub step: String,
    /// The item of a mapped step.
    pub item: Option<u32>,
    /// Which attempt it was, from 1 on.
    pub attempt: u32,
    /// app, oom, timeout, preempted, infra or data.
    pub class: String,
    /// Type of the exception, or a reason.
    pub kind: String,
    /// What the exception says.
    pub message: String,
    /// Where it was raised.
    pub traceback: String,
    /// The attempt's last log lines.
    pub tail: Vec<String>,
    /// Name of the worker.
    pub worker: String,
    /// No attempt is left: the step has failed.
    pub terminal: bool,
}

impl Failure {
    /// Bytes of its long texts.
    pub fn bytes(&self) -> usize {
        self.message.len() + self.traceback.len() + self.tail.iter().map(|line| line.len() + 24).sum::<usize>()
    }

    /// `step` or `step[item]`.
    pub fn task(&self) -> String {
        task_name(&self.step, self.item)
    }
}

/// `step`, or `step[item]` for an item of a mapped step.
pub fn task_name(step: &str, item: Option<u32>) -> String {
    match item {
        Some(item) => format!("{step}[{item}]"),
        None => step.to_owned(),
    }
}

/// Something that happened and that a person may want to know now.
#[derive(Debug, Clone)]
pub enum Note {
    /// The run is open: its journal is claimed with this epoch.
    Opened {
        /// Its epoch.
        epoch: u64,
        /// How many tasks the journal had.
        resumed: u64,
    },
    /// A worker has joined or left.
    Worker {
        /// Its name.
        name: String,
        /// It joined.
        added: bool,
    },
    /// An attempt has failed.
    AttemptFailed(Failure),
    /// A committed output cannot be read any more, nor can some more; their tasks run again.
    OutputLost {
        /// The first of them.
        task: String,
        /// How many more.
        more: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A worker has gone with a task.
    WorkerLost {
        /// The task.
        task: String,
        /// The worker.
        worker: String,
    },
    /// Nothing can run these tasks at present.
    Blocked {
        /// Their step.
        step: String,
        /// How many.
        count: u64,
        /// Why.
        message: String,
    },
    /// These tasks can run again.
    Unblocked {
        /// Their step.
        step: String,
    },
    /// `reason` as the runtime names it, for example `AccessDenied`; it may be empty.
    StorageDown {
        /// What the runtime calls it.
        reason: String,
        /// The same for people.
        message: String,
    },
    /// The storage answers again.
    StorageUp,
    /// The scheduler is gone; the run waits for another one.
    SchedulerLost {
        /// How that was found out.
        cause: String,
    },
    /// A line that a step has written.
    Log {
        /// The step.
        step: String,
        /// Its item.
        item: Option<u32>,
        /// `out` or `err`.
        stream: String,
        /// Without its line break.
        text: String,
    },
    /// The run is being cancelled.
    Cancelling,
}

/// Hears of a run's progress. Called on the driver's task: be quick.
pub trait Observer: Send {
    /// Something has happened.
    fn note(&mut self, note: Note);
    /// The tasks have these states now.
    fn counts(&mut self, counts: Counts);
    /// How many bytes what is known of its tasks takes by now.
    fn memory(&mut self, _bytes: usize) {}
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// All steps that count have succeeded.
    Succeeded,
    /// A step that counts has failed, or a deadline has passed.
    Failed,
    /// The user has cancelled it.
    Cancelled,
}

impl RunOutcome {
    /// Its name in a status and in the final record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// One result: its value if it is small JSON, else where it is.
#[derive(Debug, Clone, PartialEq)]
pub enum ResultValue {
    /// A small value.
    Json(Value),
    /// An output that is no JSON or a large one.
    Stored {
        /// Where it is.
        uri: String,
        /// Its bytes.
        size: u64,
        /// How it was written.
        serializer: String,
    },
    /// The step has no output, since it failed or was skipped, or what is asked for could not be made of it: `why`.
    Missing {
        /// What was wrong.
        why: Option<String>,
    },
}

impl ResultValue {
    /// As it stands in `-o json` and in the final record.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Json(value) => value.clone(),
            Self::Stored { uri, size, serializer } => {
                serde_json::json!({"uri": uri, "size": size, "serializer": serializer})
            }
            Self::Missing { .. } => Value::Null,
        }
    }
}

/// The end of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// How it ended.
    pub outcome: RunOutcome,
    /// Why, unless it succeeded.
    pub reason: Option<Reason>,
    /// The same for people.
    pub message: Option<String>,
    /// Its tasks by what became of them.
    pub counts: Counts,
    /// By their names, in the order of the pipeline.
    pub results: Vec<(String, ResultValue)>,
    /// Steps that failed, the first first.
    pub failures: Vec<Failure>,
    /// From its opening on.
    pub duration: Duration,
}

/// A deadline of a run, from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// `deadlines.start`
    Start,
    /// `deadlines.active`
    Active,
}

impl Deadline {
    /// The one that passes first.
    pub fn next(start: Option<Duration>, active: Option<Duration>) -> Option<(Duration, Self)> {
        let start = start.map(|start| (start, Self::Start));
        let active = active.map(|active| (active, Self::Active));
        start.into_iter().chain(active).min_by_key(|(deadline, _)| *deadline)
    }
}

/// Outcome, reason and message of a run's end; `passed`: the deadline that has stopped it.
pub fn summary(
    outcome: engine::RunOutcome,
    failures: &[Failure],
    passed: Option<Deadline>,
) -> (RunOutcome, Option<Reason>, Option<String>) {
    match outcome {
        engine::RunOutcome::Succeeded => (RunOutcome::Succeeded, None, None),
        engine::RunOutcome::Cancelled => {
            (RunOutcome::Cancelled, Some(Reason::Cancelled), Some("cancelled by the user".into()))
        }
        engine::RunOutcome::DeadlineExceeded => {
            let message = match passed {
                Some(Deadline::Start) => "no step had started within deadlines.start",
                Some(Deadline::Active) | None => "the run was not finished within deadlines.active",
            };
            (RunOutcome::Failed, Some(Reason::DeadlineExceeded), Some(message.into()))
        }
        engine::RunOutcome::FinallyDeadlineExceeded => {
            let before = first_failure(failures).map(|failure| format!("; before that, {failure}")).unwrap_or_default();
            let message = format!("the finally steps had not ended within deadlines.finally and were stopped{before}");
            (RunOutcome::Failed, Some(Reason::DeadlineExceeded), Some(message))
        }
        engine::RunOutcome::Failed => (RunOutcome::Failed, Some(Reason::StepFailed), first_failure(failures)),
    }
}

fn first_failure(failures: &[Failure]) -> Option<String> {
    let failure = failures.first()?;
    let first = failure.message.lines().next().unwrap_or_default();
    Some(format!("step {} failed: {}: {first}", failure.task(), failure.kind))
}

/// The report of a run that was closed before, from its closing record.
pub fn read_closing(closing: &serde_json::Map<String, Value>) -> Option<Report> {
    let text = |key: &str| closing.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
    let outcome = [RunOutcome::Succeeded, RunOutcome::Failed, RunOutcome::Cancelled]
        .into_iter()
        .find(|outcome| text("state").as_deref() == Some(outcome.as_str()))?;
    let number = |key: &str| closing.get("steps").and_then(|steps| steps.get(key)).and_then(Value::as_u64).unwrap_or(0);
    let results = closing.get("results").and_then(Value::as_object);
    let results = results.into_iter().flatten();
    Some(Report {
        outcome,
        reason: text("reason").and_then(|reason| reason.parse().ok()),
        message: text("message"),
        counts: Counts {
            total: number("total"),
            done: number("done"),
            running: 0,
            cached: number("cached"),
            failed: number("failed"),
            skipped: number("skipped"),
            kept_back: 0,
            finalizing: false,
        },
        results: results.map(|(name, value)| (name.clone(), ResultValue::Json(value.clone()))).collect(),
        failures: Vec::new(),
        duration: Duration::ZERO,
    })
}
