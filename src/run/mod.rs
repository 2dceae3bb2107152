//! The driver: feeds the engine with what the runtime reports, and the runtime with what the engine decides.
//!
//! One run, one task. It holds no truth of its own: whenever the scheduler was lost or replaced it opens the run again
//! and starts from the runtime's snapshot of the journal.

mod code;
mod comeback;
mod demand;
mod driver;
mod earlier;
mod ended;
mod fabric;
mod facts;
mod finish;
mod forecast;
mod frozen;
mod install;
mod intake;
mod moment;
mod objects;
mod past;
mod pulse;
mod release;
mod replay;
pub mod report;
mod restore;
mod results;
mod resume;
mod retention;
mod reuse;
mod session;
mod supply;
mod sweep;
mod turn;
mod wire;

pub use driver::{
    CodeSource, DriveError, Patience, Requirements, Reuse, RunSpec, START_DEADLINE, Start, StorageSpec, drive,
};
pub use fabric::{Fabric, Lines, Seat, TlsPaths};
pub use forecast::{Fate, Forecast, StepForecast, Tally, forecast};
pub use frozen::{Frozen, run_deadlines};
pub use moment::Moment;
pub use release::{Released, release};
pub use report::{Counts, Failure, Note, Observer, Report, ResultValue, RunOutcome};
pub use reuse::Because;
pub use sweep::{Sweep, Swept, sweep};
