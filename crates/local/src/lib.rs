//! Dask on this machine: the Python environment, and the scheduler and worker processes of one run.
//!
//! Processes end with the command: each asks the kernel to be killed when its parent dies, and watches its standard
//! input for the end of the pipe that only the command holds.

#![warn(missing_docs)]

mod devices;
pub mod environment;
pub mod fleet;
pub mod home;
pub mod packing;
mod process;
mod spec;

pub use environment::{Environment, EnvironmentError};
pub use fleet::{Fleet, FleetError};
pub use home::Home;
pub use spec::{FleetSpec, GroupSpec};
