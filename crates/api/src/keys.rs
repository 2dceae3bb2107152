//! Keys of objects in a storage: what may stand as one.

/// S3's limit for a key, prefix included, in bytes.
pub const KEY_LIMIT: usize = 1024;

/// Why a text is not a key, or not a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Too long, or empty; its bytes.
    #[error("a key has {0} bytes, allowed are 1 to {KEY_LIMIT}")]
    Length(usize),
    /// A control character or a backslash.
    #[error("a key has a control character or a backslash")]
    Character,
    /// A part such as `..`.
    #[error("{0:?} is not allowed as a part of a key")]
    Part(String),
    /// Not the uid of a run.
    #[error("{0:?} is not the uid of a run")]
    Run(String),
}

/// Checks a key: no empty, `.` or `..` part, no control character or backslash, 1 to 1024 bytes, and nothing that looks
/// like a temporary file of the directory store.
pub fn check_key(key: &str) -> Result<(), KeyError> {
    if key.is_empty() || key.len() > KEY_LIMIT {
        return Err(KeyError::Length(key.len()));
    }
    if key.chars().any(|c| c.is_control() || c == '\\') {
        return Err(KeyError::Character);
    }
    match key.split('/').find(|part| matches!(*part, "" | "." | "..") || part.starts_with(".tmp-")) {
        Some(part) => Err(KeyError::Part(part.chars().take(64).collect())),
        None => Ok(()),
    }
}
