//! Writes the status of an object, if it says something new.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;
use tokio::time::Instant;

use crate::apiserver::apply::Writer;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Kind;
use crate::controller::events::{Events, Note, notes};
use api::reason::Reason;

/// Delays writes of a status in which only counts have changed, since counts change often.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    written: Option<Instant>,
}

impl Throttle {
    /// Notes that the status was written.
    pub fn note(&mut self) {
        self.written = Some(Instant::now());
    }

    /// The rest of `pause` since the last write, if it is not over.
    pub fn left(&self, pause: Duration) -> Option<Duration> {
        let left = pause.saturating_sub(self.written?.elapsed());
        (!left.is_zero()).then_some(left)
    }
}

/// Writes a status and publishes what is new in its conditions as Events.
pub(crate) struct StatusWriter<'a> {
    pub writer: &'a Writer<'a>,
    pub events: &'a Events,
    pub kind: Kind,
}

impl StatusWriter<'_> {
    /// Writes `status`. Its conditions were `before` and are `after`.
    pub async fn write(
        &self,
        status: &impl Serialize,
        before: &[Condition],
        after: &[Condition],
    ) -> Result<(), ReconcileError> {
        self.writer.write_status(self.kind, status).await?;
        // A run that has not started yet is no news.
        let is_news = |note: &Note| self.kind != Kind::Run || note.reason != Reason::Pending;
        self.publish(notes(before, after).into_iter().filter(is_news));
        Ok(())
    }

    /// Publishes Events of the object.
    pub fn publish(&self, notes: impl IntoIterator<Item = Note>) {
        for note in notes {
            self.events.publish(self.kind, self.writer.key, self.writer.uid, note);
        }
    }
}
