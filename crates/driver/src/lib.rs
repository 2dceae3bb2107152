//! The driver: feeds the engine with what the runtime reports, and the runtime with what the engine decides.
//!
//! One run, one task. It holds no truth of its own: whenever the scheduler was lost or replaced it opens the run again
//! and starts from the runtime's snapshot of the journal.

#![warn(missing_docs)]

mod code;
mod comeback;
mod counts;
mod demand;
mod driver;
mod earlier;
mod ended;
mod error;
mod fabric;
mod facts;
mod finish;
mod follow;
mod forecast;
mod heartbeat;
mod install;
mod intake;
mod objects;
mod open;
mod past;
mod release;
mod replay;
mod restore;
mod results;
mod resume;
mod retention;
mod reuse;
mod run_engine;
mod session;
mod supply;
mod sweep;
mod terms;
mod turn;

pub use driver::drive;
pub use error::DriveError;
pub use fabric::{ConnectionPool, Fabric, SchedulerEndpoint, TlsPaths};
pub use forecast::{Forecast, StepForecast, StepOutcome, Tally, forecast};
pub use release::release;
pub use reuse::Because;
pub use sweep::{Sweep, Swept, sweep};
