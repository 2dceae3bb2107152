//! The log and traces. Each test needs a process of its own, since the subscriber is one per process.

extern crate daskade_telemetry as telemetry;

mod blocked;
#[cfg(feature = "otlp")]
mod otlp;
