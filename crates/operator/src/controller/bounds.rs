//! How often the same may go wrong.

use limits::Repetition;

/// How often the same may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// A mistake of the runtime or of the operator itself.
    pub internal: Repetition,
    /// Another refusal of the runtime.
    pub refused: Repetition,
    /// A write to the API server that meets another version of the object.
    pub conflict: Repetition,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { internal: limits::INTERNAL, refused: limits::REFUSED, conflict: limits::CONFLICT }
    }
}
