//! The task that drives one run: the same driver as the command's, on a scheduler that moves from pod to pod.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::controller::bounds::Bounds;
use crate::pipelinerun::driven::Driven;
use crate::pipelinerun::setbacks::{Recurs, issue};
use crate::queue::{Key, Queue};
use api::reason::Reason;
use decide::cluster::facts::Issue;
use decide::pipelinerun::facts::Live;
use driver::{Fabric, drive};
use run_model::{Counts, Note, Observer, Report, RunSpec};
use telemetry::panics::isolate;

/// Counts alone have the run looked at so long after they changed.
const COUNTS: Duration = Duration::from_secs(5);
/// News are bundled for so long.
const BUNDLE: Duration = Duration::from_millis(50);
/// Bytes that a run grows by before it is told.
const GROWTH: usize = 256 << 10;
/// Failures that are kept for the status.
const FAILURES: usize = 10;

/// How the task ended.
#[derive(Debug)]
pub(crate) enum End {
    Done(Box<Report>),
    Broken { issue: Issue, recurs: Recurs },
}

/// A run that is being driven. Dropping it ends the task; what was handed to the scheduler goes on.
#[derive(Debug)]
pub(crate) struct Drive {
    live: Arc<Mutex<Live>>,
    end: Arc<Mutex<Option<End>>>,
    cancel: watch::Sender<bool>,
    task: JoinHandle<()>,
    began: Instant,
}

/// The run that is driven, and who hears of it.
pub(crate) struct DrivenRun {
    pub key: Key,
    /// Gets the key whenever something has changed.
    pub queue: Arc<Queue>,
    pub driven: Arc<Driven>,
    /// Bytes that it takes besides its tasks.
    pub memory: usize,
}

impl Drive {
    /// Starts it. `before`: how the last try ended.
    pub fn start(spec: RunSpec, mut fabric: Fabric, run: DrivenRun, before: Option<Issue>, bounds: Bounds) -> Self {
        let DrivenRun { key, queue, driven, memory } = run;
        let live = Arc::new(Mutex::new(Live { before, ..Live::default() }));
        let end = Arc::new(Mutex::new(None));
        let (cancel, cancelled) = watch::channel(false);
        let (told_of, queue_of) = (live.clone(), queue.clone());
        let mut observer =
            RunObserver { live: told_of, key: key.clone(), queue: queue_of, driven, own: memory, told: memory };
        let told = end.clone();
        let task = tokio::spawn(async move {
            let ended = match isolate(drive(&spec, &mut fabric, &mut observer, cancelled)).await {
                Ok(Ok(report)) => End::Done(Box::new(report)),
                Ok(Err(error)) => End::Broken { issue: issue(&error), recurs: bounds.recurs(&error) },
                Err(panicked) => {
                    let message = format!("internal error in the operator ({panicked})");
                    let issue = Issue::new(Reason::ApiError, message);
                    End::Broken { issue, recurs: bounds.panicked() }
                }
            };
            *told.lock() = Some(ended);
            queue.add(key);
        });
        Self { live, end, cancel, task, began: Instant::now() }
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// What it says now.
    pub fn live(&self) -> Live {
        lock(&self.live).clone()
    }

    /// Ends it. Nothing is sent to the scheduler after that.
    pub async fn end(mut self) {
        self.task.abort();
        // How it ended does not matter any more.
        let _ = (&mut self.task).await;
    }

    /// How it ended, once.
    pub fn take_end(&self) -> Option<End> {
        self.end.lock().take()
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
    live.lock()
}

/// Keeps what the driver tells, and has the run looked at.
struct RunObserver {
    live: Arc<Mutex<Live>>,
    key: Key,
    queue: Arc<Queue>,
    driven: Arc<Driven>,
    /// Bytes that it takes besides its tasks, and all that were told.
    own: usize,
    told: usize,
}

impl Observer for RunObserver {
    fn note(&mut self, note: Note) {
        let mut live = lock(&self.live);
        match note {
            Note::Opened { epoch, resumed } => {
                tracing::info!(run = %self.key, epoch, resumed, "the run is open");
                // What was blocked or down is told anew.
                let Live { failures, done, .. } = std::mem::take(&mut *live);
                *live = Live { open: true, failures, done, ..Live::default() };
            }
            Note::AttemptFailed(failure) if failure.terminal && live.failures.len() < FAILURES => {
                live.failures.push(failure);
            }
            Note::Blocked { step, count, message } => drop(live.blocked.insert(step, (count, message))),
            Note::Unblocked { step } => drop(live.blocked.remove(&step)),
            Note::StorageDown { reason, message } => {
                let reason = Reason::of_condition(&reason).unwrap_or(Reason::StorageUnreachable);
                live.storage = Some(Issue { reason, message, stalled: reason.stalled() });
            }
            Note::StorageUp => live.storage = None,
            Note::SchedulerLost { cause } => {
                tracing::info!(run = %self.key, cause, "the scheduler of the run is lost");
                (live.open, live.lost) = (false, Some(cause));
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
            live.done = live.done.max(counts.done);
            drop(live);
            self.queue.add_soon(self.key.clone(), COUNTS);
        }
    }

    fn memory(&mut self, bytes: usize) {
        let bytes = self.own + bytes;
        if bytes.abs_diff(self.told) >= GROWTH {
            self.told = bytes;
            self.driven.grows(&self.key, bytes).into_iter().for_each(|key| self.queue.add(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each reason that a storage can fail with: in a condition, those of errors are `StorageUnreachable`.
    #[test]
    fn an_outage_has_a_reason_of_a_condition() {
        let mut observer = RunObserver {
            live: Arc::default(),
            key: Key::new("team", "r"),
            queue: Arc::default(),
            driven: Arc::new(Driven::new(1 << 20)),
            own: 0,
            told: 0,
        };
        for (reason, expected, stalled) in [
            ("AccessDenied", Reason::AccessDenied, true),
            ("CredentialsExpired", Reason::CredentialsExpired, false),
            ("WrongRegion", Reason::StorageUnreachable, false),
            ("", Reason::StorageUnreachable, false),
        ] {
            observer.note(Note::StorageDown { reason: reason.to_owned(), message: "why".to_owned() });
            let storage = lock(&observer.live).storage.clone();
            assert_eq!(storage, Some(Issue { reason: expected, message: "why".to_owned(), stalled }), "{reason}");
        }
    }
}
