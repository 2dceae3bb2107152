//! The decisions of the three reconcilers, which do no I/O: facts go in, actions and statuses come out.

extern crate daskade_decide as decide;

mod cluster;
mod pipeline;
mod pipelinerun;
