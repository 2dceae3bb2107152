//! The custom resources of `daskade.dev/v1alpha1`, data only. Doc comments here are the texts that `kubectl explain`
//! and `docs/reference.md` show.

#![warn(missing_docs)]

pub mod args;
pub mod cluster;
pub mod condition;
pub mod crd;
pub mod duration;
pub mod form;
pub mod keys;
pub mod names;
pub mod pipeline;
pub mod pod;
pub mod problem;
pub mod quantity;
pub mod reason;
pub mod retention;
pub mod run;
pub mod schema;
pub mod status;
pub mod step;
pub mod storage;

pub use args::Args;
pub use cluster::{DaskCluster, DaskClusterSpec};
pub use duration::Duration;
pub use pipeline::{Pipeline, PipelineSpec};
pub use quantity::Quantity;
pub use run::{PipelineRun, PipelineRunSpec};
pub use step::Step;
pub use storage::Storage;

/// API group of all resources.
pub const GROUP: &str = "daskade.dev";
/// The one version served.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of every manifest.
pub const API_VERSION: &str = "daskade.dev/v1alpha1";
