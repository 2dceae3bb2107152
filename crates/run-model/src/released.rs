//! What became of a run on a scheduler that its driver has left.

/// Why a run is not open any more on the scheduler that it was left on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The scheduler does not have it, or not any more.
    Forgotten,
    /// The scheduler itself is gone, and its workers with it.
    Gone,
    /// A command has opened it since, and has it now.
    TakenOver,
}
