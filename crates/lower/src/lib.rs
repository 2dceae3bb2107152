//! Meaning of a Pipeline: checks of the whole, expressions, and lowering to the engine's graph and to what the runtime
//! is told. Pure: no clock, no I/O.
//!
//! [`validate`] → [`Flow`] (no mistakes left that show without parameters) → [`Flow::bind`] → [`Plan`] (one run).

#![warn(missing_docs)]

pub mod allowed;
mod bind;
mod check;
mod dag;
mod encode;
pub mod expr;
mod fields;
mod flow;
mod key;
pub mod limits;
mod mentions;
mod node;
mod objects;
mod order;
mod params;
mod pin;
mod pins;
mod placement;
mod plan;
mod plan_objects;
mod refs;
mod select;
mod template;
#[cfg(test)]
mod tests;
mod validate;

pub use self::{
    bind::RunInfo,
    check::check,
    expr::{ExprError, Gather},
    flow::Flow,
    key::{Aspect, Key, Keyring, Known, Parts},
    objects::Named,
    params::read as read_parameter,
    pin::Pin,
    plan::{Computed, Part, Plan, ResultSource, ResultSpec, Results, values_of},
    template::{Reference, Template},
    validate::validate,
};
