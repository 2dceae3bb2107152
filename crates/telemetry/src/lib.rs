//! What the operator tells about itself: log lines, traces, metrics, health. Knows nothing of what it is told about.

#![warn(missing_docs)]

mod error;
pub mod health;
pub mod log;
pub mod metrics;
pub mod panics;
pub mod process;
pub mod server;
#[cfg(feature = "otlp")]
mod traces;
#[cfg(not(feature = "otlp"))]
#[path = "no_traces.rs"]
mod traces;
