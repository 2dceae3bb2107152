//! Failures of reading storage, with the documented reasons.

use super::segment::SegmentError;
use api::keys::KeyError;
use api::reason::Reason;

/// Why storage could not be read. `Display` reads after "failed to …"; texts of a server are cleaned and capped.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("there is no journal of run {0}")]
    RunNotFound(String),
    #[error("what run {0} had stored was removed by spec.retention")]
    Removed(String),
    #[error("segment {seg} of the journal of run {run} cannot be read: {why}")]
    Unreadable { run: String, seg: u64, why: SegmentError },
    #[error("{key} is not what was committed: {why}")]
    Corrupt { key: String, why: &'static str },
    #[error("{what} has {size} bytes, the limit is {limit}")]
    TooLarge { what: String, size: u64, limit: u64 },
    #[error("{what} is not there")]
    NotFound { what: String },
    /// The storage refused or did not answer.
    #[error("{what}: {detail}")]
    Failed { reason: Reason, transient: bool, what: String, detail: String },
}

impl StoreError {
    /// The documented reason.
    pub fn reason(&self) -> Reason {
        match self {
            StoreError::Invalid(_) => Reason::InvalidStorage,
            StoreError::Key(_) => Reason::InvalidKey,
            StoreError::RunNotFound(_) => Reason::RunNotFound,
            StoreError::Removed(_) => Reason::OutputsRemoved,
            StoreError::Unreadable { .. } => Reason::RecordUnreadable,
            StoreError::Corrupt { .. } => Reason::CorruptOutput,
            StoreError::TooLarge { .. } => Reason::OutputTooLarge,
            StoreError::NotFound { .. } => Reason::NotFound,
            StoreError::Failed { reason, .. } => *reason,
        }
    }

    /// Whether the same call may succeed later without anybody changing a setting.
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Failed { transient: true, .. })
    }

    /// The error for a failure of `object_store` while doing `what`.
    pub(super) fn from_client(what: String, error: &object_store::Error) -> Self {
        let text = chain(error);
        let status =
            after(&text, "status code: ", |c| c.is_ascii_digit()).and_then(|digits| digits.parse::<u16>().ok());
        let code = between(&text, "<Code>", "</Code>");
        let not_there = matches!(error, object_store::Error::NotFound { .. }) || status == Some(404);
        let (reason, transient) = match (code, status) {
            (Some("NoSuchBucket" | "InvalidBucketName"), _) => (Reason::NoSuchBucket, false),
            (Some("ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "InvalidToken"), _) => {
                (Reason::CredentialsExpired, true)
            }
            (Some("RequestTimeTooSkewed"), _) => (Reason::ClockSkew, false),
            (Some("PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed"), _)
            | (_, Some(301 | 302 | 307 | 308)) => (Reason::WrongRegion, false),
            // What S3 answers for a bucket of another region; the library keeps the body, which names it, to itself.
            _ if text.contains("redirect without LOCATION") => (Reason::WrongRegion, false),
            (_, Some(401 | 403)) => (Reason::AccessDenied, false),
            _ if not_there => return StoreError::NotFound { what },
            (_, Some(408 | 409 | 429)) => (Reason::StorageUnreachable, true),
            (_, Some(400..=499)) => (Reason::StorageRejected, false),
            _ if local_denied(error) => (Reason::AccessDenied, false),
            _ => (Reason::StorageUnreachable, true),
        };
        let mut detail = match (status, code) {
            (Some(status), Some(code)) => format!("{status} {code}"),
            (Some(status), None) => status.to_string(),
            _ => text.clone(),
        };
        if let Some(message) = between(&text, "<Message>", "</Message>") {
            detail = format!("{detail}: {message}");
        }
        if reason == Reason::WrongRegion
            && let Some(region) = between(&text, "<Region>", "</Region>").or_else(|| between(&text, "expecting '", "'"))
        {
            detail = format!("{detail}, the bucket is in {region}");
        }
        if reason == Reason::ClockSkew {
            let ours = between(&text, "<RequestTime>", "</RequestTime>").unwrap_or("?");
            let theirs = between(&text, "<ServerTime>", "</ServerTime>").unwrap_or("?");
            detail = format!("{detail}, our time {ours}, the server's {theirs}");
        }
        StoreError::Failed { reason, transient, what, detail: clean(&detail) }
    }
}

/// Text fit for a terminal: printable, one line, at most 500 characters.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

fn local_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::PermissionDenied;
        }
        next = error.source();
    }
    false
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    let (found, _) = rest.split_once(end)?;
    (found.len() <= 300).then_some(found)
}

fn after<'a>(text: &'a str, start: &str, keep: fn(char) -> bool) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    Some(&rest[..rest.find(|c| !keep(c)).unwrap_or(rest.len())])
}
