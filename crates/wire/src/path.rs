use std::fmt;

use serde::{Serialize, Serializer};

/// One element of a path into a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathPart {
    /// Key of a mapping.
    Key(String),
    /// Index of a list, from 0.
    Index(u32),
}

impl Serialize for PathPart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Key(key) => serializer.serialize_str(key),
            Self::Index(index) => serializer.serialize_u32(*index),
        }
    }
}

impl fmt::Display for PathPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(name) if is_identifier(name) => write!(f, ".{name}"),
            Self::Key(name) => write!(f, "[{name:?}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

fn is_identifier(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(is_letter) && name.starts_with(|c: char| is_letter(c) && !c.is_ascii_digit())
}
