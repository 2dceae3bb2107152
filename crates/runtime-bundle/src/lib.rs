//! The Python runtime, embedded in the program.

use run_model::Runtime;

/// The runtime of this version.
pub const RUNTIME: Runtime =
    Runtime { zip: include_bytes!(concat!(env!("OUT_DIR"), "/runtime.zip")), digest: env!("DASKADE_RUNTIME_DIGEST") };
