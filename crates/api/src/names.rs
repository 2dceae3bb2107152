//! Validated names: what may stand as a step, a group, a field of a parameter. Each pattern is kept beside the type that
//! enforces it, so that the CRD schema and the checks in Rust cannot part ways.

use std::fmt;

/// Longest name of a step; leaves room for the prefixes and suffixes that derived names need.
pub const STEP_NAME_MAX: u32 = 40;
/// Longest name of a worker group.
pub const GROUP_NAME_MAX: u32 = 20;
/// Longest name of a DaskCluster, Pipeline or PipelineRun: a pod is `<cluster>-<group>-<n>-<incarnation>`.
pub const OBJECT_NAME_MAX: usize = 53;
/// Longest host name and label value.
pub const DNS_NAME_MAX: usize = 63;
/// Digits kept free for a pod's incarnation.
pub const INCARNATION_DIGITS: usize = 6;

/// Lower-case letters, digits and dashes, beginning with a letter, ending with a letter or digit.
pub const DNS_LABEL_PATTERN: &str = "^[a-z]([-a-z0-9]*[a-z0-9])?$";
/// An identifier that expressions and Python keyword arguments can name.
pub const IDENTIFIER_PATTERN: &str = "^[A-Za-z_][A-Za-z0-9_]*$";

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameError {
    /// Nothing there.
    Empty,
    /// Longer than the limit given.
    TooLong(usize),
    /// A character (at a byte offset) that the form does not allow.
    Character(char, usize),
    /// Does not begin with a letter.
    Start,
    /// Ends with a dash.
    End,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "is empty"),
            Self::TooLong(max) => write!(f, "is longer than {max} characters"),
            Self::Character(c, at) => write!(f, "has {} at byte {at}", shown(*c)),
            Self::Start => write!(f, "does not begin with a lower-case letter"),
            Self::End => write!(f, "ends with a dash"),
        }
    }
}

/// Checks a DNS label of at most `max` characters that begins with a letter (RFC 1035 form).
pub fn check_label(text: &str, max: usize) -> Result<(), NameError> {
    let Some(first) = text.chars().next() else { return Err(NameError::Empty) };
    if let Some((at, c)) = text.char_indices().find(|(_, c)| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::Character(c, at));
    }
    if !first.is_ascii_lowercase() {
        return Err(NameError::Start);
    }
    if text.ends_with('-') {
        return Err(NameError::End);
    }
    if text.len() > max {
        return Err(NameError::TooLong(max));
    }
    Ok(())
}

/// A character for a message: invisible, combining and directional ones as code points, so that twins can be told apart.
fn shown(c: char) -> String {
    if c.is_ascii_graphic() { format!("`{c}`") } else { format!("U+{:04X}", u32::from(c)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_lower_case_and_say_what_is_wrong() {
        for good in ["a", "inc", "train-2", "con"] {
            assert_eq!(check_label(good, 40), Ok(()), "{good}");
        }
        let bad = [
            ("", "is empty"),
            ("A", "has `A` at byte 0"),
            ("a.b", "has `.` at byte 1"),
            ("..", "has `.` at byte 0"),
            ("__proto__", "has `_` at byte 0"),
            ("e\u{301}", "has U+0301 at byte 1"),
            ("a\u{202e}b", "has U+202E at byte 1"),
            ("1a", "does not begin with a lower-case letter"),
            ("-a", "does not begin with a lower-case letter"),
            ("a-", "ends with a dash"),
            ("abcdef", "is longer than 5 characters"),
        ];
        for (text, message) in bad {
            assert_eq!(check_label(text, 5).unwrap_err().to_string(), message, "{text}");
        }
    }
}
