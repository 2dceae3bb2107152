//! What is known of one run on one scheduler, whatever becomes of the connection.

use tokio::sync::watch;
use tokio::time::Instant;

use super::ended::{Ended, Loss, classify, stopped};
use api::reason::Reason;
use run_model::RunSpec;
use run_model::report::{Observer, Report};

pub(super) struct Session<'a> {
    pub spec: &'a RunSpec,
    pub observer: &'a mut dyn Observer,
    pub started: Instant,
    pub cancel: &'a watch::Receiver<bool>,
    pub opened_before: &'a mut bool,
    pub tried_to_open: &'a mut bool,
    /// The end of the run as it was asked to be written; whether it was is unknown when the scheduler is lost then.
    pub closing: &'a mut Option<Report>,
    /// Others run the workers, and may start more of them.
    pub scaled: bool,
    /// Events that may be on their way without being acknowledged.
    pub window: u32,
    /// Tasks that have come to their end.
    pub done: &'a mut u64,
}

impl Session<'_> {
    /// Until the journal was opened once, an unreachable storage is told at once; then it is waited for.
    pub(super) fn ended_by(&self, error: dask::Error) -> Ended {
        match error {
            dask::Error::Refused { reason, message, .. }
                if Reason::StorageUnreachable.is(&reason) && *self.opened_before =>
            {
                Ended::Lost { cause: format!("{reason}: {message}"), loss: Loss::Busy }
            }
            other => classify(other),
        }
    }

    /// Outputs could not be taken over: those that are being removed are not offered again.
    pub(super) fn missed(&self, error: dask::Error) -> Ended {
        match error {
            dask::Error::Refused { reason, message, .. } if Reason::OutputsRemoved.is(&reason) => {
                stopped(reason, message)
            }
            other => self.ended_by(other),
        }
    }

    /// The run is kept in a folder.
    pub(super) fn is_folder(&self) -> bool {
        self.spec.storage.url.starts_with("file://")
    }

    pub(super) fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
