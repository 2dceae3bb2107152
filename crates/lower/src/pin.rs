//! A version of an object that a run fixes.

/// A version that is read in place of the one that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// As the storage calls it: the version id on S3.
    pub version: String,
    /// Where that is said.
    pub at: String,
}
