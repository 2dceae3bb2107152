//! How a session ends before its run, and what a failed call means for it.

use super::driver::DriveError;
use crate::dask;

/// Why a session ended without the run's end.
#[derive(Debug)]
pub(super) enum Ended {
    /// The scheduler is lost, or says that it cannot now (`answered`); another session may go on.
    Lost {
        cause: String,
        answered: bool,
        /// It sent more than is taken of it, and would again.
        excess: bool,
    },
    /// The scheduler is there and does not have the run as it was opened: another opening may go on.
    Again {
        reason: String,
        message: String,
    },
    Fatal(DriveError),
}

pub(super) fn lost(cause: String) -> Ended {
    Ended::Lost { cause, answered: false, excess: false }
}

pub(super) fn refused(reason: &str, message: String) -> Ended {
    Ended::Fatal(DriveError::Refused { reason: reason.to_owned(), message })
}

pub(super) fn fatal(error: dask::Error) -> Ended {
    Ended::Fatal(DriveError::Dask(Box::new(error)))
}

/// The same for who has no other session.
pub(super) fn into_error(ended: Ended) -> DriveError {
    match ended {
        Ended::Lost { cause, .. } => DriveError::Cluster(cause),
        Ended::Again { reason, message } => DriveError::Refused { reason, message },
        Ended::Fatal(error) => error,
    }
}

/// Whether another session may go on after `error`.
pub(super) fn classify(error: dask::Error) -> Ended {
    match error.class() {
        dask::Class::Transient => lost(error.to_string()),
        dask::Class::Configuration => fatal(error),
        dask::Class::Peer if error.is_excess() => {
            Ended::Lost { cause: error.to_string(), answered: true, excess: true }
        }
        dask::Class::Peer => lost(error.to_string()),
        dask::Class::Refused => match error {
            // Another opening with a higher epoch has the run.
            dask::Error::Refused { reason, message, .. } if reason == "StaleEpoch" => {
                Ended::Fatal(DriveError::Fenced { how: Some(message) })
            }
            dask::Error::Refused { reason, message, .. } => refused(&reason, message),
            other => lost(other.to_string()),
        },
    }
}
