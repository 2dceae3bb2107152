//! What can go wrong between us and a Dask server, one variant for each thing that was attempted.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::frame::FrameError;

/// Longest text of a peer that is kept in an error.
pub(super) const TEXT_CAP: usize = 16 * 1024;

/// Failure of a connection or of one call on it.
///
/// Clean end, torn message, reset, TLS, handshake, silence, timeout, an answer that breaks the protocol and an error
/// reported by the peer are all different. Texts that came from the peer are capped and free of control characters.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The text is not an address.
    #[error("parse address {text:?}: {reason}")]
    Address {
        /// What was given, clipped.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No TCP connection could be made.
    #[error("connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// Certificates could not be used, or TLS was refused by either side.
    #[error("set up TLS: {reason}")]
    Tls {
        /// Which check failed.
        reason: String,
    },
    /// The peer did not introduce itself as a Dask server.
    #[error("shake hands: {reason}")]
    Handshake {
        /// What was wrong.
        reason: String,
    },
    /// Our own deadline passed.
    #[error("{during} within {after:?}")]
    Timeout {
        /// What was waited for.
        during: &'static str,
        /// How long.
        after: Duration,
    },
    /// The event stream was silent for longer than three beats.
    #[error("follow events: nothing was heard for {after:?}")]
    Silent {
        /// How long.
        after: Duration,
    },
    /// The peer closed the connection between two messages.
    #[error("keep the connection: the peer closed it")]
    Closed,
    /// The connection ended inside a message.
    #[error("read a message: the connection ended after {received} of its bytes")]
    Torn {
        /// Bytes of the unfinished message that had arrived.
        received: usize,
    },
    /// The connection broke.
    #[error("keep the connection: {0}")]
    Lost(Arc<io::Error>),
    /// This side closed the connection.
    #[error("use a connection that is closed on this side")]
    Shutdown,
    /// Bytes that are no frames, or more of them than is allowed.
    #[error("read frames: {0}")]
    Frame(#[from] FrameError),
    /// A message that is malformed or of the wrong shape, or larger than is allowed.
    #[error("read a message: {0}")]
    Message(#[from] MessageError),
    /// A message that has more than is taken of its kind.
    #[error("read {what}: {reason}; see docs/limits.md")]
    Excess {
        /// Which message: an operation, or a stream.
        what: &'static str,
        /// What it has too much of.
        reason: String,
        /// Category of the error without this.
        category: &'static str,
    },
    /// A well-formed message where none or another one is due.
    #[error("follow the protocol: {reason}")]
    Protocol {
        /// What was unexpected.
        reason: String,
    },
    /// A request that cannot be written down.
    #[error("encode {op}: {reason}")]
    Encode {
        /// The operation.
        op: &'static str,
        /// Why.
        reason: String,
    },
    /// The peer knows no such operation (it answered nil); for `daskade-*`: the runtime is not installed.
    #[error("call {op}: the peer does not know this operation")]
    UnknownOp {
        /// The operation.
        op: &'static str,
    },
    /// The handler at the peer raised an exception.
    #[error("call {op}: {text}")]
    Remote {
        /// The operation.
        op: &'static str,
        /// Type and message of the exception.
        text: String,
        /// Where it was raised; may be empty.
        traceback: String,
    },
    /// The runtime refused the request.
    #[error("call {op}: {reason}: {message}")]
    Refused {
        /// The operation.
        op: &'static str,
        /// Documented CamelCase reason, such as `StaleEpoch`.
        reason: String,
        /// For people.
        message: String,
    },
    /// Another scheduler process answers than the one that was expected: start from a new snapshot.
    #[error("follow events: the scheduler was replaced")]
    InstanceChanged {
        /// The process that we were following.
        expected: String,
        /// The process that answered.
        found: String,
    },
}

/// How to go on after an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Connect again, with back-off.
    Transient,
    /// The other side is no (well-behaved) Dask server, or of another version. Retry slowly and say so.
    Peer,
    /// The peer understood and said no: depends on the reason.
    Refused,
    /// Nothing changes without another configuration.
    Configuration,
}

impl Error {
    /// A stable name for metrics, events and tests.
    pub fn category(&self) -> &'static str {
        match self {
            Error::Address { .. } => "address",
            Error::Connect { .. } => "connect",
            Error::Tls { .. } => "tls",
            Error::Handshake { .. } => "handshake",
            Error::Timeout { .. } => "timeout",
            Error::Silent { .. } => "silent",
            Error::Closed => "closed",
            Error::Torn { .. } => "torn",
            Error::Lost(_) => "lost",
            Error::Shutdown => "shutdown",
            Error::Frame(_) => "frame",
            Error::Message(_) => "message",
            Error::Excess { category, .. } => category,
            Error::Protocol { .. } => "protocol",
            Error::Encode { .. } => "encode",
            Error::UnknownOp { .. } => "unknown-op",
            Error::Remote { .. } => "remote",
            Error::Refused { .. } => "refused",
            Error::InstanceChanged { .. } => "instance-changed",
        }
    }

    /// What drives retries.
    pub fn class(&self) -> Class {
        match self {
            Error::Connect { .. }
            | Error::Timeout { .. }
            | Error::Silent { .. }
            | Error::Closed
            | Error::Torn { .. }
            | Error::Lost(_)
            | Error::Shutdown
            | Error::InstanceChanged { .. } => Class::Transient,
            Error::Handshake { .. }
            | Error::Frame(_)
            | Error::Message(_)
            | Error::Excess { .. }
            | Error::Protocol { .. }
            | Error::UnknownOp { .. } => Class::Peer,
            Error::Remote { .. } | Error::Refused { .. } => Class::Refused,
            Error::Address { .. } | Error::Tls { .. } | Error::Encode { .. } => Class::Configuration,
        }
    }

    /// The runtime's reason if it refused the request, such as `RunExists`.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Error::Refused { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Whether the peer sent more than is taken of it. It would do so again: ask it less often.
    pub fn is_excess(&self) -> bool {
        matches!(self, Error::Excess { .. })
    }

    /// The error of `what`, if that has more than is allowed; else the error as it is.
    pub(super) fn of_limits(self, what: &'static str) -> Error {
        let category = self.category();
        let reason = match &self {
            Error::Frame(error @ (FrameError::TooLong { .. } | FrameError::TooManyFrames { .. })) => error.to_string(),
            Error::Message(error @ (MessageError::TooManyElements { .. } | MessageError::TooDeep { .. })) => {
                error.to_string()
            }
            _ => return self,
        };
        Error::Excess { what, reason, category }
    }

    /// `what` has too much of something: `reason` says of what, and how much is allowed.
    pub fn excess(what: &'static str, reason: String) -> Error {
        Error::Excess { what, reason, category: "message" }
    }

    pub(super) fn protocol(reason: impl Into<String>) -> Error {
        Error::Protocol { reason: reason.into() }
    }
}

/// Makes a peer's text fit for logs and events: capped, and no control characters except line breaks and tabs.
pub(super) fn clean_text(text: &str, cap: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(cap));
    for c in text.chars() {
        if clean.len() >= cap {
            let _ = write!(clean, "… ({} bytes in all)", text.len());
            break;
        }
        if !c.is_control() || c == '\n' || c == '\t' {
            clean.push(c);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_peer_are_capped_and_cannot_steer_a_terminal() {
        assert_eq!(clean_text("a\x1b[31mb\r\n\tc\0", 100), "a[31mb\n\tc");
        let long = clean_text(&"x".repeat(1 << 20), TEXT_CAP);
        assert!(long.len() < TEXT_CAP + 40 && long.ends_with("(1048576 bytes in all)"));
    }
}

/// Bytes that are no message, or one that is too large or of the wrong shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A message without frames.
    #[error("there are no frames")]
    NoFrames,
    /// A value is longer than its bytes.
    #[error("a value ends before its announced length")]
    Truncated,
    /// The reserved msgpack marker.
    #[error("a marker is not msgpack")]
    Malformed,
    /// Bytes after the value.
    #[error("{bytes} bytes follow the value")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Arrays and maps nested too deeply.
    #[error("values are nested deeper than {limit}")]
    TooDeep {
        /// What is allowed.
        limit: usize,
    },
    /// Too many values.
    #[error("there are more than {limit} values")]
    TooManyElements {
        /// What is allowed.
        limit: usize,
    },
    /// Well-formed, but not what is expected here.
    #[error("unexpected shape: {0}")]
    Shape(String),
    /// A placeholder that points to no frame.
    #[error("a payload refers to frames that are not there")]
    NoPayload,
    /// A payload that we do not read: compressed, pickled or of another kind.
    #[error("a payload is {0}")]
    Opaque(&'static str),
}
