//! daskade runs pipelines on Dask. See ARCHITECTURE.md for how the parts fit together.

#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod cluster;
pub mod controller;
pub mod crd;
pub mod dask;
pub mod graph;
pub mod keys;
pub mod limits;
pub mod local;
pub mod manifest;
pub mod names;
pub mod pipeline;
pub mod problem;
pub mod repeats;
pub mod run;
pub mod run_model;
pub mod runs;
pub mod runtime_bundle;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod trigger;
