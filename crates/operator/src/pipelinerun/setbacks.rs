//! A run that could not be driven: when it is tried again, what is told meanwhile, and when it has failed.

use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::delay;
use crate::controller::bounds::Bounds;
use crate::queue::Key;
use api::reason::{Reason, ReasonClass};
use decide::cluster::facts::Issue;
use driver::DriveError;
use limits::Repetition;
use limits::repeats::Repeats;

/// Longest pause between two tries of what is waited for.
const LONGEST: Duration = Duration::from_secs(30);
/// A run that was open for so long was not refused at once: the next try need not wait.
const GOT_ON: Duration = Duration::from_secs(60);
/// An error that has come so often will most likely come again.
const STALLS: u32 = 3;

/// What the same end means when it comes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recurs {
    /// It would come for ever: the run has failed.
    ForEver,
    /// What is away or missing may come back, whenever that is.
    Waits,
    /// It counts: without progress in between the run has failed after a while.
    Counts { error: String, limit: Repetition },
}

/// What has gone wrong with one run since there was progress last.
#[derive(Debug, Default)]
pub(crate) struct Setbacks {
    repeats: Repeats,
    /// Tries in a row, whatever ended them.
    tries: u32,
    /// The most tasks that had come to their end.
    done: u64,
}

/// A try that came to nothing.
#[derive(Debug)]
pub(crate) struct Try {
    pub issue: Issue,
    pub recurs: Recurs,
    /// Tasks that had come to their end.
    pub done: u64,
    /// For how long the run was open, if it was.
    pub open: Option<Duration>,
}

impl Setbacks {
    /// What is told of a try, and how long until the next one; none: the run has failed.
    pub fn note(&mut self, key: &Key, failed: Try, now: Timestamp) -> (Issue, Option<Duration>) {
        let Try { mut issue, recurs, done, open } = failed;
        if done > self.done {
            self.done = done;
            self.repeats.clear();
            self.tries = 0;
        }
        if open.is_some_and(|open| open > GOT_ON) {
            self.tries = 0;
        }
        self.tries = self.tries.saturating_add(1);
        match recurs {
            Recurs::ForEver => (issue, None),
            Recurs::Waits => (issue, Some(delay(key, self.tries).min(LONGEST))),
            Recurs::Counts { error, limit } => {
                let repeat = self.repeats.note(&error, &limit);
                if let Some(told) = repeat.told(now) {
                    let next = match repeat.is_over {
                        true => "so the run has failed; fix the cause, then use daskade retry",
                        false => "retrying at growing intervals; the run fails if this continues",
                    };
                    issue.message = format!("{}; {told}: {next}", issue.message);
                }
                issue.stalled |= repeat.times >= STALLS;
                let pause = delay(key, self.tries).min(limits::REFUSED_PAUSE);
                (issue, (!repeat.is_over).then_some(pause))
            }
        }
    }
}

impl Bounds {
    /// What `error` means when it comes again.
    pub(crate) fn recurs(&self, error: &DriveError) -> Recurs {
        match error {
            DriveError::Refused { reason, .. } => match reason.parse().map(Reason::class) {
                Ok(ReasonClass::Final) => Recurs::ForEver,
                // A storage, or what is kept there, is waited for.
                Ok(ReasonClass::Waits | ReasonClass::Stalled) => Recurs::Waits,
                _ => {
                    let limit = if Reason::Internal.is(reason) { self.internal } else { self.refused };
                    Recurs::Counts { error: reason.clone(), limit }
                }
            },
            // A scheduler, and certificates, may be replaced; another one that drives the run may end.
            DriveError::Cluster(_) | DriveError::Dask(_) | DriveError::Fenced { .. } => Recurs::Waits,
        }
    }

    /// The same of a panic of the task that drives the run.
    pub(crate) fn panicked(&self) -> Recurs {
        Recurs::Counts { error: "panic".to_owned(), limit: self.internal }
    }
}

/// Why a run cannot be driven, or cleared away, in the words of a condition.
pub(crate) fn issue(error: &DriveError) -> Issue {
    let (reason, message) = match error {
        DriveError::Fenced { .. } => {
            (Reason::TakenOver, "another command has taken over the run; the operator continues it soon".to_owned())
        }
        DriveError::Refused { reason, message } => match Reason::of_condition(reason) {
            Some(known) => (known, message.clone()),
            None => (Reason::OpenRefused, format!("{reason}: {message}")),
        },
        DriveError::Cluster(message) => (Reason::SchedulerUnreachable, message.clone()),
        DriveError::Dask(error) => (Reason::SchedulerUnreachable, format!("failed to {error}")),
    };
    Issue { reason, message, stalled: reason.stalled() }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;

    fn refusal(reason: &str) -> DriveError {
        DriveError::Refused { reason: reason.to_owned(), message: "as the runtime says".to_owned() }
    }

    /// Tries that all end with this error: how many there are within a day, and what is told of the last one.
    async fn tries(reason: &str, open: Duration, done: impl Fn(u64) -> u64) -> (u64, Option<Issue>, Duration) {
        let (mut setbacks, key) = (Setbacks::default(), Key::new("team".to_owned(), "r".to_owned()));
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let began = Instant::now();
        for count in 1.. {
            advance(open).await;
            let error = refusal(reason);
            let recurs = Bounds::default().recurs(&error);
            let failed = Try { issue: issue(&error), recurs, done: done(count), open: Some(open) };
            let (told, pause) = setbacks.note(&key, failed, now);
            match pause {
                None => return (count, Some(told), began.elapsed()),
                Some(_) if began.elapsed() > Duration::from_secs(86_400) => return (count, None, began.elapsed()),
                Some(pause) => advance(pause).await,
            }
        }
        unreachable!("it counts up to its end")
    }

    /// Each time the run is opened, and its first call is refused.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_repeats_fails_the_run_after_few_tries_although_it_was_open_each_time() {
        for (reason, least, most) in [("Internal", 300, 600), ("RuntimeVersion", 1800, 2400)] {
            let (count, told, took) = tries(reason, Duration::from_millis(10), |_| 3).await;
            let told = told.unwrap_or_else(|| panic!("{reason}: it goes on for ever"));
            assert!(count <= 50 && (least..most).contains(&took.as_secs()), "{reason}: {count} tries, {took:?}");
            assert!(told.stalled && told.message.contains(&format!("{reason}: as the runtime says")), "{told:?}");
            assert!(told.message.contains(&format!("it occurred {count} times since 2026-03-01T")), "{told:?}");
            assert!(told.message.contains("daskade retry"), "what to do: {told:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_away_is_waited_for_and_progress_counts_from_one_again() {
        for reason in ["StorageUnreachable", "AccessDenied", "CredentialsExpired"] {
            let (count, told, _) = tries(reason, Duration::from_millis(10), |_| 0).await;
            assert!(told.is_none() && count < 4000, "{reason}: twice a minute at most: {count} {told:?}");
        }
        let (_, told, _) = tries("Internal", Duration::from_secs(5), |count| count).await;
        assert_eq!(told, None, "each try commits a task");
        let (count, told, _) = tries("RecordUnreadable", Duration::ZERO, |_| 0).await;
        assert!(count == 1 && told.is_some());
    }
}
