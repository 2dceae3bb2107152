//! What is decided about a PipelineRun, and what its status says: tables of facts.

mod admit;
mod plan;
mod release;
mod retention;
mod status;
mod support;
