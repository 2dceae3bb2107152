//! What is wrong with an input: one type for every check of a manifest, a parameter or a run request, so that the
//! command line and the operator print the same text for the same mistake.

use std::fmt;

use crate::reason::Reason;

/// One mistake in an input: stable reason, where it is, what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Field path inside the object, for example `spec.steps[3].map.x`; empty for the whole document.
    pub path: String,
    /// Stable CamelCase reason, documented in `docs/reasons.md`.
    pub reason: Reason,
    /// What is wrong, as a sentence fragment without a full stop.
    pub message: String,
    /// What to do about it, if that is not evident from the message.
    pub help: Option<String>,
}

impl Problem {
    /// A problem at `path` without a remedy.
    pub fn new(reason: Reason, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), reason, message: message.into(), help: None }
    }

    /// Adds what to do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "{}: {}", self.reason, self.message)?;
        } else {
            write!(f, "{}: {}: {}", self.path, self.reason, self.message)?;
        }
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// Problems that a message lists; more would only hide them.
const LISTED: usize = 10;

/// The problems as one message.
pub fn listed(problems: &[impl fmt::Display]) -> String {
    let shown: Vec<String> = problems.iter().take(LISTED).map(ToString::to_string).collect();
    let more = problems.len().saturating_sub(LISTED);
    if more == 0 { shown.join("; ") } else { format!("{}; and {more} more", shown.join("; ")) }
}

/// The candidate most like `wrong` (Jaro-Winkler, at least 0.75), for "did you mean …".
pub fn nearest<'a>(wrong: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(wrong, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_slip_finds_its_field() {
        assert_eq!(nearest("replcias", ["replicas", "name", "resources"]), Some("replicas"));
        assert_eq!(nearest("zzz", ["replicas", "name"]), None);
    }
}
