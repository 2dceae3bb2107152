//! What a plan asks for.

use jiff::Timestamp;

/// Something to do. `why` reads after "because".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell a run to end.
    Cancel { name: String, uid: String, why: String },
    /// Make a run.
    Create { name: String, cause: Cause, queued: bool },
    /// Let a run begin that waited.
    Release { name: String, uid: String },
    /// Delete a run that has ended.
    Delete { name: String, uid: String, why: String },
}

/// Why a run is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The spec has another hash than that of the run before.
    Change { hash: String },
    /// A moment of the schedule has come.
    Schedule { moment: Timestamp },
}
