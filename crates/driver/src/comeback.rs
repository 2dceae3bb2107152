//! What follows from a session that ended before its run: another one after a pause, or the end of the run.

use std::time::Duration;

use tokio::time::Instant;

use super::ended::{Ended, Loss};
use super::error::DriveError;

use limits::repeats::Repeats;
use run_model::Patience;

/// Waits between attempts to reach a scheduler that others run, in turn; the last one repeats.
const RECONNECT: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// Waits after a scheduler that sent more than is taken of it, in turn; the last one repeats.
const EXCESS: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(30), Duration::from_secs(60)];
/// A session of this length has got somewhere: an outage before it is over.
const GOT_ON: Duration = Duration::from_secs(30);

/// Keeps count of what ends the sessions of one run.
#[derive(Debug)]
pub(super) struct Comeback {
    patience: Patience,
    /// Since when the scheduler cannot be used, and how often that was tried.
    outage: Option<(Instant, usize)>,
    repeats: Repeats,
    /// The most tasks that had come to their end.
    done: u64,
}

/// A session that ended.
#[derive(Debug)]
pub(super) struct Past<'a> {
    /// Of its scheduler.
    pub address: &'a str,
    pub lasted: Duration,
    /// Tasks that had come to their end, as far as it knew.
    pub done: u64,
    /// The run was open once.
    pub opened: bool,
    /// How often a scheduler of our own is started again is the fleet's to bound.
    pub own: bool,
}

/// How to go on.
#[derive(Debug)]
pub(super) struct Next {
    pub cause: String,
    pub pause: Duration,
    pub loss: Loss,
}

impl Comeback {
    pub fn new(patience: Patience) -> Self {
        Self { patience, outage: None, repeats: Repeats::default(), done: 0 }
    }

    /// How the run goes on after `ended`; an error if it does not.
    pub fn after(&mut self, ended: Ended, past: &Past<'_>) -> Result<Next, DriveError> {
        if past.done > self.done {
            self.done = past.done;
            self.outage = None;
            self.repeats.clear();
        }
        let (cause, loss) = match ended {
            Ended::Fatal(error) => return Err(error),
            Ended::Lost { cause, loss: Loss::Garbled } => {
                let repeat = self.repeats.note("", &limits::REFUSED);
                if repeat.is_over {
                    let Past { address, .. } = past;
                    let times = repeat.times;
                    let message = format!("the scheduler {address} sent {times} answers that cannot be used: {cause}");
                    return Err(DriveError::Cluster(message));
                }
                (cause, Loss::Garbled)
            }
            Ended::Lost { cause, loss } => (cause, loss),
            Ended::Again { reason, message, limit } => {
                let repeat = self.repeats.note(&reason, &limit);
                if repeat.is_over {
                    let times = repeat.times - 1;
                    let message = format!("{message}; reopening the run failed {times} times");
                    return Err(DriveError::Refused { reason, message });
                }
                (format!("{reason}: {message}"), Loss::Busy)
            }
        };
        if past.lasted > GOT_ON && !matches!(loss, Loss::Excess | Loss::Bare) {
            self.outage = None;
        }
        let (since, tries) = self.outage.get_or_insert((Instant::now(), 0));
        let Patience { open, first } = self.patience;
        let patience = if past.opened || past.own { open } else { first };
        if since.elapsed() > patience {
            return Err(DriveError::Cluster(format!("lost the scheduler {}: {cause}", past.address)));
        }
        let waits: &[Duration] = if loss == Loss::Excess { &EXCESS } else { &RECONNECT };
        let pause = waits[(*tries).min(waits.len() - 1)];
        *tries += 1;
        Ok(Next { cause, pause, loss })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::super::ended::{lost, stopped};
    use super::*;

    fn past(lasted: u64, done: u64) -> Past<'static> {
        Past { address: "tcp://s", lasted: Duration::from_secs(lasted), done, opened: true, own: false }
    }

    /// How many sessions there are, each of which lasts so many seconds and ends like this, and how the run ends; it is still
    /// tried after two days.
    async fn sessions(lasted: u64, ended: impl Fn() -> Ended, done: impl Fn(u64) -> u64) -> (u64, Option<DriveError>) {
        let mut comeback = Comeback::new(Patience::default());
        let end = Instant::now() + Duration::from_secs(2 * 86_400);
        let mut count = 0;
        while Instant::now() < end {
            count += 1;
            advance(Duration::from_secs(lasted)).await;
            match comeback.after(ended(), &past(lasted, done(count))) {
                Ok(next) => advance(next.pause).await,
                Err(error) => return (count, Some(error)),
            }
        }
        (count, None)
    }

    /// The runtime stops the run since it cannot write what a step gave: the step runs again, and again.
    #[tokio::test(start_paused = true)]
    async fn a_run_that_the_runtime_stops_is_not_opened_for_ever_however_long_each_time_lasts() {
        let stopped = || stopped("JournalStopped".to_owned(), "a record does not fit".to_owned());
        for lasted in [0, 31, 3600] {
            let (count, error) = sessions(lasted, stopped, |_| 3).await;
            let error = error.unwrap_or_else(|| panic!("{lasted} s: it goes on for ever"));
            // What was committed at first counts once.
            assert_eq!((count, error.reason()), (5, "JournalStopped"), "{lasted} s");
            assert!(error.to_string().contains("reopening the run failed 4 times"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_are_missing_again_and_again_end_the_run_but_not_if_hours_lie_in_between() {
        let gap = || Ended::Again { reason: "Gap".into(), message: "events are gone".into(), limit: limits::REOPENED };
        for lasted in [0, 31, 120] {
            assert_eq!(sessions(lasted, gap, |_| 0).await.0, 5, "{lasted} s");
        }
        let (count, error) = sessions(3600, gap, |_| 0).await;
        assert!(error.is_none() && count > 40, "a scheduler that is replaced each hour: {count} {error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn progress_counts_from_one_again() {
        let stopped = || stopped("JournalStopped".to_owned(), "a record does not fit".to_owned());
        let (count, error) = sessions(3600, stopped, |count| count).await;
        assert!(error.is_none() && count > 40, "{count} {error:?}");
        let (count, _) = sessions(10, stopped, |count| count.min(10)).await;
        assert_eq!(count, 14, "five times at ten tasks");
    }

    /// Each session waits for the runtime longer than makes other sessions count as progress.
    #[tokio::test(start_paused = true)]
    async fn a_scheduler_in_which_no_runtime_comes_up_is_given_up() {
        let bare = || Ended::Lost { cause: "no runtime".into(), loss: Loss::Bare };
        let (count, error) = sessions(31, bare, |_| 0).await;
        assert!(matches!(error, Some(DriveError::Cluster(_))) && count < 70, "{count} {error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_scheduler_that_cannot_be_understood_is_given_up_and_one_that_is_lost_is_not() {
        let garbled = || Ended::Lost { cause: "read frames".into(), loss: Loss::Garbled };
        let (count, error) = sessions(60, garbled, |_| 0).await;
        assert!(error.is_some_and(|error| error.to_string().contains("cannot be used: read frames")), "{count}");
        assert!((20..40).contains(&count), "{count}");
        for loss in [Loss::Silent, Loss::Busy] {
            let (_, error) = sessions(60, || Ended::Lost { cause: "storage".into(), loss }, |_| 0).await;
            assert!(error.is_none(), "{loss:?}: an outage that comes back each minute: {error:?}");
        }
        let (_, error) = sessions(0, || lost("nobody is there".into()), |_| 0).await;
        assert!(matches!(error, Some(DriveError::Cluster(_))), "{error:?}");
    }
}
