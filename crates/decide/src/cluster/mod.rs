//! DaskCluster: what the schema cannot say, and what a spec means with its defaults filled in. Pure.

pub mod build;
pub mod facts;
mod folder;
mod group;
mod held;
pub mod names;
pub mod plan;
pub mod pod_problem;
pub mod pods;
pub mod room;
pub mod scale;
mod shared;
mod shortage;
pub mod status;
mod validate;

pub use folder::check_folder;
pub use group::{DEFAULT_GROUP, effective_groups, memory_bytes, offers, threads};
pub use shared::{check_shared, not_allowed};
pub use validate::{too_many_workers, validate, validate_named};
