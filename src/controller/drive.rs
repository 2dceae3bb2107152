//! The task that drives one run: the same driver as the command's, on a scheduler that moves from pod to pod.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::board::known_reason;
use super::queue::{Key, Queue};
use crate::cluster::facts::Trouble;
use crate::run::{Counts, DriveError, Fabric, Note, Observer, Report, RunSpec, drive};
use crate::runs::facts::Live;
use crate::telemetry::panics::isolate;

/// Counts alone have the run looked at so long after they changed.
const COUNTS: Duration = Duration::from_secs(5);
/// News are bundled for so long.
const BUNDLE: Duration = Duration::from_millis(50);
/// Failures that are kept for the status.
const FAILURES: usize = 10;

/// How the task ended.
#[derive(Debug)]
pub(super) enum End {
    Done(Box<Report>),
    /// It may be tried again, unless `last`.
    Broken {
        trouble: Trouble,
        last: bool,
    },
}

/// A run that is being driven. Dropping it ends the task; what was handed to the scheduler goes on.
#[derive(Debug)]
pub(super) struct Drive {
    live: Arc<Mutex<Live>>,
    end: Arc<Mutex<Option<End>>>,
    cancel: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drive {
    /// Starts it. `queue` gets `key` whenever there is something to tell.
    pub fn start(spec: RunSpec, mut fabric: Fabric, key: Key, queue: Arc<Queue>, before: Option<Trouble>) -> Self {
        let live = Arc::new(Mutex::new(Live { before, ..Live::default() }));
        let end = Arc::new(Mutex::new(None));
        let (cancel, cancelled) = watch::channel(false);
        let mut teller = Teller { live: live.clone(), key: key.clone(), queue: queue.clone() };
        let told = end.clone();
        let task = tokio::spawn(async move {
            let ended = match isolate(drive(&spec, &mut fabric, &mut teller, cancelled)).await {
                Ok(Ok(report)) => End::Done(Box::new(report)),
                Ok(Err(error)) => {
                    let last = FOR_EVER.contains(&error.reason());
                    End::Broken { trouble: trouble(&error), last }
                }
                Err(panicked) => {
                    let message = format!("the operator made a mistake ({panicked}); it is tried again");
                    End::Broken { trouble: Trouble { reason: "ApiError", message, stalled: false }, last: false }
                }
            };
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
            queue.add(key);
        });
        Self { live, end, cancel, task }
    }

    /// What it says now.
    pub fn live(&self) -> Live {
        lock(&self.live).clone()
    }

    /// Ends it; the epoch under which the run is open, if that is known.
    pub fn end(self) -> Option<u64> {
        self.task.abort();
        lock(&self.live).epoch
    }

    /// How it ended, once.
    pub fn take_end(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks it to bring the run to an end.
    pub fn cancel(&self) {
        self.cancel.send_if_modified(|asked| !std::mem::replace(asked, true));
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(live: &Mutex<Live>) -> MutexGuard<'_, Live> {
    // Each change is whole before anything in it can panic.
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what the driver tells, and has the run looked at.
struct Teller {
    live: Arc<Mutex<Live>>,
    key: Key,
    queue: Arc<Queue>,
}

impl Observer for Teller {
    fn note(&mut self, note: Note) {
        let mut live = lock(&self.live);
        match note {
            Note::Opened { epoch, resumed } => {
                tracing::info!(run = %self.key, epoch, resumed, "the run is open");
                // What was blocked or down is told anew.
                let failures = std::mem::take(&mut live.failures);
                *live = Live { open: true, epoch: Some(epoch), failures, ..Live::default() };
            }
            Note::AttemptFailed(failure) if failure.terminal && live.failures.len() < FAILURES => {
                live.failures.push(failure);
            }
            Note::Blocked { step, count, message } => drop(live.blocked.insert(step, (count, message))),
            Note::Unblocked { step } => drop(live.blocked.remove(&step)),
            Note::StorageDown { reason, message } => {
                let reason = known_reason(&reason).unwrap_or("StorageUnreachable");
                live.storage = Some(Trouble { reason, message, stalled: STALLED.contains(&reason) });
            }
            Note::StorageUp => live.storage = None,
            Note::SchedulerLost { cause } => {
                tracing::info!(run = %self.key, cause, "the scheduler of the run is lost");
                // What it is opened under next is told once it is open.
                (live.open, live.epoch, live.lost) = (false, None, Some(cause));
            }
            Note::Cancelling => live.cancelling = true,
            Note::AttemptFailed(_)
            | Note::OutputLost { .. }
            | Note::WorkerLost { .. }
            | Note::Worker { .. }
            | Note::Log { .. } => return,
        }
        drop(live);
        self.queue.add_soon(self.key.clone(), BUNDLE);
    }

    fn counts(&mut self, counts: Counts) {
        let mut live = lock(&self.live);
        if live.counts != counts {
            live.counts = counts;
            drop(live);
            self.queue.add_soon(self.key.clone(), COUNTS);
        }
    }
}

/// What the journal or the runtime refuses and will refuse again.
const FOR_EVER: [&str; 12] = [
    "SpecMismatch",
    "RecordUnreadable",
    "UnsupportedDask",
    "InvalidRun",
    "CodeMismatch",
    "BadCode",
    "RequirementsMissing",
    "NoConditionalPut",
    "OutputMissing",
    "ReuseNotFound",
    "OutputsRemoved",
    "VersionNotFound",
];
/// What only a person can help.
const STALLED: [&str; 4] = ["AccessDenied", "CodeNotFound", "NoSuchBucket", "StorageFull"];

/// Why a run cannot be driven, or cleared away, in the words of a condition.
pub(super) fn trouble(error: &DriveError) -> Trouble {
    let (reason, message) = match error {
        DriveError::Fenced { .. } => {
            ("TakenOver", "another command has taken the run over; the operator goes on with it in a moment".to_owned())
        }
        DriveError::Refused { reason, message } => {
            let message = if known_reason(reason).is_some() { message.clone() } else { format!("{reason}: {message}") };
            (known_reason(reason).unwrap_or("OpenRefused"), message)
        }
        DriveError::Cluster(message) => ("SchedulerUnreachable", message.clone()),
        DriveError::Dask(error) => ("SchedulerUnreachable", format!("failed to {error}")),
    };
    Trouble { reason, message, stalled: STALLED.contains(&error.reason()) }
}
