//! What the three reconcilers decide, one folder for each. Pure: facts in, plans out; no clock, no I/O.

pub mod cluster;
pub mod pipeline;
pub mod pipelinerun;
