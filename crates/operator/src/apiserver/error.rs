//! What can go wrong in a reconciliation, and when to try again.

use std::time::Duration;

use kube::core::Status;

use crate::apiserver::record::Kind;
use crate::backoff::{delay, jittered};
use crate::cause::cause;
use crate::leader::fence::NoAnswer;
use crate::leader::lead::NotLeading;
use crate::queue::Key;
use api::reason::Reason;
use decide::cluster::facts::Issue;
use decide::cluster::pod_problem::from_api_error;
use telemetry::metrics::Outcome;

/// Why something could not be done; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("{verb} {kind} {name}: {text}", text = text(source))]
    Api { verb: &'static str, kind: Kind, name: String, source: Box<kube::Error> },
    /// Something that is not the cluster's has the name of a child.
    #[error("use the name {name} for a {kind}: it belongs to {owner}")]
    Taken { kind: Kind, name: String, owner: String },
    /// A child of a cluster of the same name that was deleted is not gone yet.
    #[error("make {kind} {name}: that of the deleted DaskCluster of the same name is still there")]
    Leftover { kind: Kind, name: String },
    /// The watch lags behind: it will show what has changed.
    #[error("do what was planned: the object has changed in the meantime")]
    Behind,
    #[error("{0}")]
    Certificates(#[from] crate::certificates::Error),
}

/// What drives retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Somebody wrote in between: look again, soon.
    Conflict,
    /// May pass by itself: with growing delays.
    Transient,
    /// The server says when.
    After(Duration),
    /// A right or a name is missing: slowly, until a person has done something.
    Slow,
    /// The same would be refused again until the object changes.
    Invalid,
    /// This process does not lead any more.
    Fenced,
}

impl ReconcileError {
    pub(crate) fn api(verb: &'static str, kind: Kind, name: &str, source: kube::Error) -> Self {
        Self::Api { verb, kind, name: name.to_owned(), source: Box::new(source) }
    }

    pub fn class(&self) -> Class {
        match self {
            Self::Api { source, .. } => classify(source),
            Self::Taken { .. } => Class::Slow,
            Self::Leftover { .. } | Self::Behind => Class::Conflict,
            Self::Certificates(error) => error.api().map_or(Class::Slow, classify),
        }
    }

    /// Whether the API server has certainly not done it, and nothing else has the name.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => (400..500).contains(&status.code) && status.code != 409,
                kube::Error::Service(error) => error.is::<NotLeading>(),
                _ => false,
            },
            _ => false,
        }
    }

    /// In the words of a condition; none if it is nobody's business because it will pass in a moment.
    pub fn issue(&self) -> Option<Issue> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) if !matches!(self.class(), Class::Conflict) => {
                    let message = format!("{}: {}", self.what(), status.message);
                    Some(from_api_error(status.code, &status.reason, &message))
                }
                _ => None,
            },

            Self::Taken { .. } => Some(Issue::new(
                Reason::NameConflict,
                format!("cannot {self}; it is not touched. Rename or delete it, or give the cluster another name"),
            )),
            Self::Certificates(error) => match error.api() {
                Some(kube::Error::Api(status)) => {
                    let message = format!("{}: {}", error.what(), status.message);
                    Some(from_api_error(status.code, &status.reason, &message))
                }
                _ => {
                    let message = format!("failed to {error}; retrying");
                    Some(Issue::new(Reason::ApiError, message))
                }
            },
            Self::Leftover { .. } | Self::Behind => None,
        }
    }

    /// What was tried.
    fn what(&self) -> String {
        match self {
            Self::Api { verb, kind, name, .. } => format!("{verb} {kind} {name}"),
            other => other.to_string(),
        }
    }
}

/// After somebody else wrote in between, the watch will soon show what.
const CONFLICT: Duration = Duration::from_millis(250);
/// After a refusal that a person has to do something about: soon enough for whoever has just done it.
const SLOW: Duration = Duration::from_secs(60);

impl Class {
    /// When to try again, after so many failures in a row.
    pub(crate) fn again(self, key: &Key, failures: u32) -> Option<Duration> {
        match self {
            Self::Conflict => Some(CONFLICT.saturating_mul(failures.min(20))),
            Self::Transient => Some(delay(key, failures)),
            Self::After(after) => Some(after.max(CONFLICT)),
            Self::Slow => Some(jittered(delay(key, failures.saturating_add(2)).min(SLOW), key)),
            Self::Invalid => Some(jittered(SLOW, key)),
            // Whoever leads looks at everything.
            Self::Fenced => None,
        }
    }

    /// Whether a retry alone may resolve it.
    pub(crate) fn passes(self) -> bool {
        matches!(self, Self::Conflict | Self::Transient | Self::After(_))
    }

    /// For metrics.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Conflict => Outcome::Conflict,
            Self::Transient | Self::After(_) => Outcome::Transient,
            Self::Slow => Outcome::Forbidden,
            Self::Invalid => Outcome::Invalid,
            Self::Fenced => Outcome::Fenced,
        }
    }
}

/// How to go on after an error of the client.
pub(crate) fn classify(error: &kube::Error) -> Class {
    match error {
        kube::Error::Api(status) => classify_status(status),
        kube::Error::Service(error) if error.is::<NotLeading>() => Class::Fenced,
        _ => Class::Transient,
    }
}

fn classify_status(status: &Status) -> Class {
    let after = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
    match (status.code, after) {
        (_, Some(seconds)) => Class::After(Duration::from_secs(seconds.into())),
        (409, None) => Class::Conflict,
        // A quota, a policy or a right: the text says which, and each needs somebody.
        (401 | 403, None) => Class::Slow,
        (400 | 422, None) => Class::Invalid,
        _ => Class::Transient,
    }
}

/// What an error says, without what it may quote of an object.
fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        kube::Error::Service(error) if error.is::<NotLeading>() => NotLeading.to_string(),
        kube::Error::Service(error) if error.is::<NoAnswer>() => NoAnswer.to_string(),
        kube::Error::SerdeError(_) => "the answer cannot be read".to_owned(),
        other => cause(other),
    }
}
