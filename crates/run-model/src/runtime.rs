//! The Python runtime as it is put into a scheduler.

/// A zip archive and its SHA-256 in hexadecimal, which names the runtime's version.
#[derive(Debug, Clone, Copy)]
pub struct Runtime {
    /// The archive.
    pub zip: &'static [u8],
    /// Its digest.
    pub digest: &'static str,
}
