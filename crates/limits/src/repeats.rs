//! Errors that repeat without progress: how often and since when each has come, and when it is enough.
//!
//! What an outage explains (a scheduler, a storage or an API server that is away) is not counted here: it is waited for.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::Repetition;

/// Errors that are told apart. They may take turns, and each of them still counts.
const KINDS: usize = 8;

/// What has gone wrong since there was progress last.
#[derive(Debug, Default)]
pub struct Repeats {
    /// The one that came last is the last.
    seen: VecDeque<Seen>,
}

#[derive(Debug)]
struct Seen {
    error: String,
    times: u32,
    first: Instant,
    last: Instant,
}

/// How often an error has come by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// Including this one.
    pub times: u32,
    /// From the first time to this one.
    pub lasting: Duration,
    /// It has come more often, and for longer, than the limit allows.
    pub is_over: bool,
}

impl Repeats {
    /// `error` has come, or has come again. Give it a name, not a text that differs from time to time.
    pub fn note(&mut self, error: &str, limit: &Repetition) -> Repeat {
        let now = Instant::now();
        let known = self.seen.iter().position(|seen| seen.error == error).and_then(|at| self.seen.remove(at));
        let known = known.filter(|seen| limit.quiet.is_none_or(|quiet| now.duration_since(seen.last) < quiet));
        let (times, first) = known.map_or((1, now), |seen| (seen.times.saturating_add(1), seen.first));
        if self.seen.len() == KINDS {
            self.seen.pop_front();
        }
        self.seen.push_back(Seen { error: error.to_owned(), times, first, last: now });
        let lasting = now.duration_since(first);
        Repeat { times, lasting, is_over: times >= limit.times && lasting >= limit.span }
    }

    /// There was progress: what went wrong before does not count any more.
    pub fn clear(&mut self) {
        self.seen.clear();
    }
}

impl Repeat {
    /// For a condition: how often, and since when. Nothing of an error that has come once.
    pub fn told(&self, now: Timestamp) -> Option<String> {
        let lasting = SignedDuration::try_from(self.lasting).ok()?;
        let since = now.checked_sub(lasting).and_then(|at| Timestamp::from_second(at.as_second())).ok()?;
        (self.times > 1).then(|| format!("it occurred {} times since {since} without progress", self.times))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LIMIT: Repetition = Repetition { times: 3, span: Duration::from_secs(60), quiet: None };

    #[tokio::test(start_paused = true)]
    async fn an_error_is_over_once_it_came_often_enough_and_for_long_enough() {
        let mut repeats = Repeats::default();
        for times in 1..=5 {
            let repeat = repeats.note("Internal", &LIMIT);
            assert_eq!((repeat.times, repeat.is_over), (times, false), "within a moment");
        }
        advance(LIMIT.span).await;
        assert!(repeats.note("Internal", &LIMIT).is_over);
        let mut repeats = Repeats::default();
        repeats.note("Internal", &LIMIT);
        advance(LIMIT.span * 2).await;
        assert!(!repeats.note("Internal", &LIMIT).is_over, "twice only");
        repeats.clear();
        assert_eq!(repeats.note("Internal", &LIMIT).times, 1, "there was progress");
    }

    #[tokio::test(start_paused = true)]
    async fn errors_that_take_turns_count_each_and_many_kinds_take_no_more_room() {
        let mut repeats = Repeats::default();
        for times in 1..=4 {
            for error in ["Internal", "BadRequest"] {
                assert_eq!(repeats.note(error, &LIMIT).times, times);
            }
        }
        for number in 0..100 {
            repeats.note(&format!("error {number}"), &LIMIT);
        }
        assert_eq!(repeats.seen.len(), KINDS);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_quiet_time_an_error_is_another_one() {
        let limit = Repetition { quiet: Some(Duration::from_secs(600)), ..LIMIT };
        let mut repeats = Repeats::default();
        for _ in 0..10 {
            assert_eq!(repeats.note("Gap", &limit).times, 1);
            advance(Duration::from_secs(600)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_how_often_and_since_when() {
        let mut repeats = Repeats::default();
        let now: Timestamp = "2026-03-01T12:00:00.5Z".parse().unwrap();
        assert_eq!(repeats.note("Internal", &LIMIT).told(now), None);
        advance(Duration::from_secs(90)).await;
        let told = repeats.note("Internal", &LIMIT).told(now);
        assert_eq!(told.as_deref(), Some("it occurred 2 times since 2026-03-01T11:58:30Z without progress"));
    }
}
