//! Has a scheduler forget a run that the operator has left: a task of its own, and what is remembered of it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backoff::delay;
use crate::pipelinerun::setbacks::issue;
use crate::queue::{Key, Queue};
use decide::cluster::facts::Issue;
use decide::pipelinerun::release::ReleaseFact;
use driver::{DriveError, SchedulerEndpoint, release};
use run_model::Released;
use telemetry::panics::isolate;

/// Longest pause between two tries.
const LONGEST: Duration = Duration::from_secs(30);

/// What is remembered. Without it, the scheduler is asked once more, which does no harm.
#[derive(Debug, Default)]
pub(crate) struct Releasing {
    task: Option<Task>,
    done: Option<Released>,
    /// How the last try ended, and when the next one may begin.
    broken: Option<(Issue, Instant)>,
    /// Tries in a row that ended so.
    tries: u32,
}

type End = Arc<Mutex<Option<Result<Released, Issue>>>>;

#[derive(Debug)]
struct Task {
    end: End,
    task: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Who is to forget the run.
#[derive(Debug)]
pub(crate) enum Whom {
    Scheduler,
    /// Nobody: the scheduler is gone.
    Gone,
    /// It cannot be asked now.
    Later(Issue),
}

impl Releasing {
    /// How far it is.
    pub fn fact(&mut self, key: &Key, whom: Whom) -> ReleaseFact {
        let ended = self.task.as_ref().and_then(|task| task.end.lock().take());
        match ended {
            Some(Ok(released)) => (self.done, self.task) = (Some(released), None),
            Some(Err(issue)) => {
                self.tries = self.tries.saturating_add(1);
                let pause = delay(key, self.tries).min(LONGEST);
                tracing::info!(reason = %issue.reason, again = ?pause, "the scheduler has not released the run: {}", issue.message);
                (self.broken, self.task) = (Some((issue, Instant::now() + pause)), None);
            }
            None => {}
        }
        if let Some(released) = self.done {
            return ReleaseFact::Done(released);
        }
        let before = self.broken.as_ref().map(|(issue, _)| issue.clone());
        let left = self.broken.as_ref().map(|(_, until)| until.saturating_duration_since(Instant::now()));
        match (whom, left.filter(|left| !left.is_zero()), before) {
            (Whom::Gone, ..) => ReleaseFact::Done(Released::Gone),
            (_, _, before) if self.task.is_some() => ReleaseFact::Live(before),
            (Whom::Later(issue), ..) => ReleaseFact::Waits(issue),
            (Whom::Scheduler, Some(left), Some(issue)) => ReleaseFact::Paused { issue, left },
            (Whom::Scheduler, _, before) => ReleaseFact::Ready(before),
        }
    }

    /// Asks the scheduler. `queue` gets `key` when it has answered, or has not.
    pub fn start(&mut self, run: String, endpoint: SchedulerEndpoint, key: &Key, queue: Arc<Queue>) {
        let end = End::default();
        let (told, key) = (end.clone(), key.clone());
        let task = tokio::spawn(async move {
            let ended = match isolate(release(&run, &endpoint)).await {
                Ok(ended) => ended,
                Err(panicked) => Err(DriveError::Cluster(format!("internal error in the operator ({panicked})"))),
            };
            let ended = ended.map_err(|error| issue(&error));
            *told.lock() = Some(ended);
            queue.add(key);
        });
        self.task = Some(Task { end, task });
    }
}
