//! Manifests: files → documents → typed objects, strictly. Unknown fields, wrong types and values are refused with file,
//! document, line, path and the nearest valid name; all problems of a file are reported at once.
//!
//! YAML is read by `saphyr-parser` (pure Rust, YAML 1.2, positions) as events; trees, typing and limits are ours, so that
//! a mistake keeps its line and a hostile file is refused before it grows.

mod check;
pub mod crd;
mod emit;
mod explain;
mod files;
mod metadata;
mod not_local;
mod object;
mod reader;
mod rules;
mod scalar;
mod shape;
mod tree;
mod yaml;

pub use emit::to_yaml;
pub use files::{FILE_BYTES_MAX, FILES_MAX};
pub use not_local::not_local;
pub use object::{OBJECT_BYTES_MAX, Object, check_value};
pub use reader::{FileProblem, Loaded, Note, Reading, load, read, read_text, read_value};
