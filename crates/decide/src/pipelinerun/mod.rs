//! PipelineRun: what is wrong with one, what to do about it now, what to tell. Pure: no clock, no I/O.

mod action;
pub mod admit;
mod advice;
pub mod code;
pub mod facts;
pub mod plan;
pub mod references;
pub mod release;
pub mod retention;
pub mod status;
