//! Step definitions as they are sent to the runtime.

#![warn(missing_docs)]

mod path;
mod step;

pub use path::PathPart;
pub use step::{StepDef, Target};
