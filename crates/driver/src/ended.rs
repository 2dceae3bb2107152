//! How a session ends before its run, and what a failed call means for it.

use super::error::DriveError;
use api::reason::Reason;
use limits::Repetition;

/// Why a session ended without the run's end.
#[derive(Debug)]
pub(super) enum Ended {
    /// The scheduler is lost, or cannot be used now; another session may go on.
    Lost {
        cause: String,
        loss: Loss,
    },
    /// The scheduler is there and says why the run does not go on as it was opened: another opening may go on, so often.
    Again {
        reason: String,
        message: String,
        limit: Repetition,
    },
    Fatal(DriveError),
}

/// How a scheduler was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It does not answer any more.
    Silent,
    /// It answers, and says that it cannot now.
    Busy,
    /// It answers with something that cannot be read.
    Garbled,
    /// It sent more than is taken of it, and would again.
    Excess,
    /// It has no runtime: however long that was waited for, nothing has begun.
    Bare,
}

impl Loss {
    /// One that answers is alive: it is asked again. Another one is replaced.
    pub fn answered(self) -> bool {
        matches!(self, Self::Busy | Self::Excess)
    }
}

pub(super) fn lost(cause: String) -> Ended {
    Ended::Lost { cause, loss: Loss::Silent }
}

pub(super) fn refused(reason: Reason, message: String) -> Ended {
    Ended::Fatal(DriveError::Refused { reason: reason.to_string(), message })
}

pub(super) fn fatal(error: dask::Error) -> Ended {
    Ended::Fatal(DriveError::Dask(Box::new(error)))
}

/// The runtime has stopped the run, and says why.
pub(super) fn stopped(reason: String, message: String) -> Ended {
    Ended::Again { reason, message, limit: limits::STOPPED }
}

/// The same for who has no other session.
pub(super) fn into_error(ended: Ended) -> DriveError {
    match ended {
        Ended::Lost { cause, .. } => DriveError::Cluster(cause),
        Ended::Again { reason, message, .. } => DriveError::Refused { reason, message },
        Ended::Fatal(error) => error,
    }
}

/// Whether another session may go on after `error`.
pub(super) fn classify(error: dask::Error) -> Ended {
    let loss = |error: &dask::Error, loss| Ended::Lost { cause: error.to_string(), loss };
    match error.class() {
        dask::Class::Transient => loss(&error, Loss::Silent),
        dask::Class::Configuration => fatal(error),
        dask::Class::Peer if error.is_excess() => loss(&error, Loss::Excess),
        dask::Class::Peer => loss(&error, Loss::Garbled),
        dask::Class::Refused => match error {
            // Another opening with a higher epoch has the run.
            dask::Error::Refused { reason, message, .. } if Reason::StaleEpoch.is(&reason) => {
                Ended::Fatal(DriveError::Fenced { how: Some(message) })
            }
            dask::Error::Refused { reason, message, .. } => Ended::Fatal(DriveError::Refused { reason, message }),
            other => loss(&other, Loss::Garbled),
        },
    }
}
