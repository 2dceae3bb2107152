//! The removal of what an ended run has stored: a task of its own on the run's scheduler, and what is remembered of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backoff::jittered;
use crate::pipelinerun::setbacks::issue;
use crate::queue::{Key, Queue};
use api::reason::Reason;
use decide::cluster::facts::Issue;
use decide::pipelinerun::facts::SweepFact;
use decide::pipelinerun::retention::{Due, pause};
use driver::{SchedulerEndpoint, Sweep, Swept, sweep};
use limits::Repetition;
use limits::repeats::Repeats;
use telemetry::panics::isolate;

/// Clusters that are made at once for nothing but this: runs that end together are due together.
pub(crate) const CLUSTERS: usize = 4;

/// What is remembered. Without it, it is begun anew, which does no harm.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    task: Option<Task>,
    done: Option<(Due, Swept)>,
    broken: Option<(Issue, Instant)>,
    tries: u32,
    repeats: Repeats,
    /// Since when it waits for a scheduler.
    waits: Option<Instant>,
    /// Its place among those for which clusters are made.
    place: Option<OwnedSemaphorePermit>,
}

/// A removal is tried until it is done.
const UNBOUNDED: Repetition = Repetition { times: u32::MAX, span: Duration::ZERO, quiet: None };

type End = Arc<Mutex<Option<Result<Swept, Issue>>>>;

#[derive(Debug)]
struct Task {
    due: Due,
    end: End,
    task: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Removal {
    /// How far it is. `places`: only if a cluster is made for it.
    pub fn fact(&mut self, key: &Key, places: Option<&Arc<Semaphore>>, now: Timestamp) -> SweepFact {
        let ended = self.task.as_ref().and_then(|task| {
            let end = task.end.lock().take();
            end.map(|end| (task.due, end))
        });
        match ended {
            Some((due, Ok(swept))) => (self.done, self.task) = (Some((due, swept)), None),
            Some((_, Err(issue))) => drop(self.pause(key, issue, now)),
            None => {}
        }
        if let Some((due, Swept { kept })) = self.done {
            return SweepFact::Done { due, kept };
        }
        if self.task.is_some() {
            return SweepFact::Live;
        }
        if let Some((issue, until)) = &self.broken {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return SweepFact::Paused { issue: issue.clone(), left };
            }
        }
        if let Some(places) = places.filter(|_| self.place.is_none()) {
            match places.clone().try_acquire_owned() {
                Ok(place) => self.place = Some(place),
                Err(_) => return SweepFact::Crowded,
            }
        }
        SweepFact::Waits(self.waits.get_or_insert_with(Instant::now).elapsed())
    }

    /// Has the scheduler do it. `queue` gets `key` when it has ended.
    pub fn start(&mut self, order: Sweep, due: Due, endpoint: SchedulerEndpoint, key: &Key, queue: Arc<Queue>) {
        let end = End::default();
        let (told, key) = (end.clone(), key.clone());
        let task = tokio::spawn(async move {
            let ended = match isolate(sweep(&order, &endpoint)).await {
                Ok(ended) => ended.map_err(|error| issue(&error)),
                Err(panicked) => {
                    let message = format!("internal error in the operator ({panicked})");
                    Err(Issue::new(Reason::ApiError, message))
                }
            };
            *told.lock() = Some(ended);
            queue.add(key);
        });
        self.task = Some(Task { due, end, task });
    }

    /// It could not be done; how long until it is tried again. Its place is another's.
    pub fn pause(&mut self, key: &Key, mut issue: Issue, now: Timestamp) -> Duration {
        self.tries = self.tries.saturating_add(1);
        let pause = jittered(pause(self.tries), key);
        // It is not given up, since what is stored would stay; the pause between two tries has a bound.
        if let Some(told) = self.repeats.note(issue.reason.as_str(), &UNBOUNDED).told(now) {
            issue.message = format!("{}; {told}", issue.message);
        }
        tracing::info!(reason = %issue.reason, again = ?pause, "cannot remove what the run has stored: {}", issue.message);
        self.broken = Some((issue, Instant::now() + pause));
        (self.task, self.waits, self.place) = (None, None, None);
        pause
    }
}
