//! What a run is and what it reports: its specification, frozen and ready to be driven, its counts, its outcome. Pure: no
//! network, no clock but the one that a [`Moment`] holds.

#![warn(missing_docs)]

pub mod archive;
mod fleet;
mod frozen;
mod moment;
mod released;
pub mod report;
mod runtime;
mod spec;

pub use fleet::{Endpoint, FleetState};
pub use frozen::{Frozen, run_deadlines};
pub use moment::Moment;
pub use released::Released;
pub use report::{Counts, Failure, Note, Observer, Report, ResultValue, RunOutcome};
pub use runtime::Runtime;
pub use spec::{CodeSource, Patience, Requirements, Reuse, RunSpec, START_DEADLINE, Start, StorageSpec};
