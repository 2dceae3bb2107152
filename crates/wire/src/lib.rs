//! What the runtime is told of a step, in the form in which it goes over the wire.

#![warn(missing_docs)]

mod path;
mod step;

pub use path::PathPart;
pub use step::{StepDef, Target};
