//! How many tasks do what.

/// Tasks by what they are doing. A mapped step whose length is not known counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// The sum of the others, `cached` excepted.
    pub total: u32,
    /// Not submitted: inputs, condition, limit or retry are missing.
    pub waiting: u32,
    /// In the runtime and not known to have started.
    pub submitted: u32,
    /// Started and not committed, or told to stop.
    pub running: u32,
    /// Committed.
    pub done: u32,
    /// Those of `done` that an earlier run made.
    pub cached: u32,
    pub failed: u32,
    pub skipped: u32,
    pub cancelled: u32,
}
