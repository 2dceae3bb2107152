//! A moment by somebody's clock, and what has passed since by one that nobody sets.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

/// The time as whoever drives a run has it: the API server's in a cluster, this machine's elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at: Timestamp,
    since: Instant,
}

impl Moment {
    /// It is `at` now.
    pub fn of(at: Timestamp) -> Self {
        Self { at, since: Instant::now() }
    }

    /// By the clock of this machine.
    pub fn here() -> Self {
        Self::of(Timestamp::now())
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.since.elapsed()).unwrap_or(SignedDuration::MAX);
        self.at.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }
}
