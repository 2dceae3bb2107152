//! What is remembered of one DaskCluster from one reconciliation to the next, and the sums of all.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::apiserver::error::{Class, ReconcileError};
use crate::cluster::link::Link;
use crate::controller::memory::Memories;
use crate::controller::status::Throttle;
use api::reason::Reason;
use decide::cluster::facts::{Facts, Issue, SchedulerFact, TlsFact};
use decide::cluster::plan::Plan;
use limits::Repetition;
use limits::repeats::Repeats;

/// Of one DaskCluster.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Of the object that this process serves, or has served.
    pub uid: String,
    pub link: Option<Link>,
    /// Highest number of a pod that was ever planned.
    pub incarnation: u64,
    /// When its Secrets were last looked at.
    pub secrets: Option<Instant>,
    pub tls: TlsFact,
    /// When the API server last said that the spec is still the one we know: its generation.
    pub confirmed: Option<(i64, Instant)>,
    /// What a reconciliation saw that found nothing to do: revisions of the cache and of the scheduler's answer, and until when that
    /// holds if nothing changes.
    pub settled: Option<(u64, u64, Instant)>,
    /// When the work is due that the last reconciliation left undone.
    pub left: Option<Instant>,
    pub status: Throttle,
    pub tally: Tally,
    /// Errors that reconciliation by themselves, unless they do not.
    pub conflicts: Repeats,
    /// Pods that wait for room, and for which workers gave way, each with their node.
    pub gave: BTreeMap<String, Option<String>>,
}

impl Memory {
    /// What to tell of an error. One that should pass in a moment is nobody's business before it has come too often.
    pub fn told(&mut self, error: &ReconcileError, limit: &Repetition, now: Timestamp) -> Option<Issue> {
        if error.class() != Class::Conflict {
            return error.issue();
        }
        let repeat = self.conflicts.note(&error.to_string(), limit);
        let told = repeat.told(now).filter(|_| repeat.is_over)?;
        let (reason, help) = match error {
            ReconcileError::Leftover { kind, name } => (
                Reason::NameConflict,
                format!("check the finalizers of {kind} {name}; the controllers that set them must remove them"),
            ),
            _ => (Reason::ApiError, "check the operator's log and the object's Events".to_owned()),
        };
        Some(Issue { reason, message: format!("failed to {error}; {told}; {help}"), stalled: true })
    }

    /// Time until the work is due that the last reconciliation left undone.
    pub fn left(&self) -> Option<Duration> {
        self.left.map(|left| left.saturating_duration_since(Instant::now()))
    }

    /// Notes for which pods workers gave way in a reconciliation, if the scheduler could be asked to drain them. Pods that do not wait
    /// any more are forgotten.
    pub fn note_giving(&mut self, facts: &Facts, plan: &Plan) {
        let waits = |name: &String| facts.pods.iter().any(|pod| pod.name == *name && pod.shortage.is_some());
        self.gave.retain(|name, _| waits(name));
        if !plan.blind {
            self.gave.extend(plan.giving.to.clone());
        }
    }
}

/// For the metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub ready: bool,
    pub desired: usize,
    pub workers: usize,
}

/// Sums of all clusters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub ready: usize,
    pub not_ready: usize,
    pub desired: usize,
    pub workers: usize,
    pub connected: usize,
    pub unreachable: usize,
}

impl Memories<Memory> {
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.each(|memory| {
            let Tally { ready, desired, workers } = memory.tally;
            totals.ready += usize::from(ready);
            totals.not_ready += usize::from(!ready);
            totals.desired += desired;
            totals.workers += workers;
            match memory.link.as_ref().map(|link| link.state().0) {
                Some(SchedulerFact::Answers(_)) => totals.connected += 1,
                Some(SchedulerFact::Unreachable { .. }) => totals.unreachable += 1,
                Some(SchedulerFact::Unknown) | None => {}
            }
        });
        totals
    }
}
