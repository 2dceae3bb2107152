//! Every decision about a cluster, as tables: what is known goes in, what is done or told comes out.

mod build;
mod converge;
mod plan;
mod pod_problem;
mod room;
mod scale;
mod status;
mod support;
