//! When what an ended run has stored is removed, and what to do about it now. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::action::ClusterStep;
pub use super::facts::Due;
use super::facts::{ClusterFact, Facts, Place, Run, SpecFact, SweepFact};
use crate::cluster::facts::Issue;
use api::reason::Reason;

/// A scheduler that is made for a removal has to be there within this time; then its cluster is given back, and made anew
/// after a pause.
const PROVISION: Duration = Duration::from_secs(600);
/// Pauses after tries that came to nothing: the first, doubled up to the longest.
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(3600);
/// How soon one that found no place looks again.
const CROWDED: Duration = Duration::from_secs(15);

/// What retention asks for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Nothing, now and later.
    Nothing,
    Later(Duration),
    Now(Due),
}

/// What a run's `spec.retention` asks for.
pub fn retention(run: &Run, now: Timestamp) -> Retention {
    let Some(asked) = run.spec.retention.as_ref().filter(|_| run.has_ended() && run.status.revision.is_some()) else {
        return Retention::Nothing;
    };
    let Some(ended) = run.status.finished_at.as_deref().and_then(|at| at.parse::<Timestamp>().ok()) else {
        return Retention::Nothing;
    };
    let done = run.status.removed.clone().unwrap_or_default();
    let passed = now.duration_since(ended);
    let left = |span: Option<api::duration::Duration>, done: &Option<String>| {
        let span = SignedDuration::try_from(span?.to_std()).unwrap_or(SignedDuration::MAX);
        done.is_none().then(|| span.saturating_sub(passed))
    };
    let outputs = left(asked.outputs, &done.outputs_at);
    let record = left(asked.logs, &done.logs_at);
    let is_due = |left: Option<SignedDuration>| left.is_some_and(|left| !left.is_positive());
    let due = Due { outputs: is_due(outputs), record: is_due(record) };
    if due.outputs || due.record {
        return Retention::Now(due);
    }
    match outputs.into_iter().chain(record).min() {
        Some(left) => Retention::Later(left.unsigned_abs()),
        None => Retention::Nothing,
    }
}

/// What to do about a removal that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub due: Due,
    pub step: SweepStep,
    pub state: RemovalState,
    /// Look again after this time even if nothing happens.
    pub wake: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SweepStep {
    Keep,
    /// Have the scheduler do it.
    Start,
    /// Give up for now, for this reason.
    Pause(Issue),
}

/// What to tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemovalState {
    Working,
    Waits(Issue),
    Done { kept: u64 },
}

/// Decides about a removal that is due, and about the cluster that it takes.
pub(super) fn remove(due: Due, facts: &Facts) -> (Removal, ClusterStep) {
    let removal = |step, state, wake| Removal { due, step, state, wake };
    let given_back = if facts.owned { ClusterStep::Delete } else { ClusterStep::Keep };
    let (frozen, waited) = match (&facts.spec, &facts.sweep) {
        // More may have become due meanwhile: of what was done alone is told.
        (_, SweepFact::Done { due, kept }) => {
            let state = RemovalState::Done { kept: *kept };
            let done = Removal { due: *due, step: SweepStep::Keep, state, wake: Some(Duration::ZERO) };
            return (done, ClusterStep::Keep);
        }
        (_, SweepFact::Paused { issue, left }) if !left.is_zero() => {
            return (removal(SweepStep::Keep, RemovalState::Waits(issue.clone()), Some(*left)), given_back);
        }
        (_, SweepFact::Live) => return (removal(SweepStep::Keep, RemovalState::Working, None), ClusterStep::Keep),
        (SpecFact::Frozen(frozen), SweepFact::Waits(waited)) => (frozen, *waited),
        (SpecFact::Frozen(frozen), _) => (frozen, Duration::ZERO),
        (SpecFact::Waits(issue, _), _) => {
            return (removal(SweepStep::Pause(issue.clone()), RemovalState::Waits(issue.clone()), None), given_back);
        }
        (SpecFact::Invalid(why), _) => {
            let message = format!("{why}; what it has stored has to be removed by hand");
            let issue = Issue::new(Reason::Invalid, message);
            return (removal(SweepStep::Pause(issue.clone()), RemovalState::Waits(issue), None), given_back);
        }
        (SpecFact::Valid, _) => return (removal(SweepStep::Keep, RemovalState::Working, None), ClusterStep::Keep),
    };
    if facts.sweep == SweepFact::Crowded {
        return (removal(SweepStep::Keep, RemovalState::Working, Some(CROWDED)), ClusterStep::Keep);
    }
    let issue = match (&facts.issue, &facts.cluster, &frozen.place) {
        (Some(issue), ..) | (None, ClusterFact::Waits(issue), _) => issue.clone(),
        (None, ClusterFact::Answers(_), _) => {
            return (removal(SweepStep::Start, RemovalState::Working, None), ClusterStep::Keep);
        }
        (None, ClusterFact::Missing, Place::Own) => {
            let left = PROVISION.saturating_sub(waited);
            return (removal(SweepStep::Keep, RemovalState::Working, Some(left)), ClusterStep::Make);
        }
        (None, ClusterFact::Missing, Place::Shared(name)) => {
            let message = format!(
                "DaskCluster \"{name}\", through which {}/runs/ was reached, no longer exists in the namespace; create \
                 it again, or remove what is there by hand",
                frozen.storage_url
            );
            Issue::new(Reason::ClusterNotFound, message).stalled(true)
        }
        (None, ClusterFact::Missing, Place::Address { .. }) => {
            Issue::new(Reason::Pending, "checking the address".to_owned())
        }
    };
    let left = PROVISION.saturating_sub(waited);
    if left.is_zero() {
        return (removal(SweepStep::Pause(issue.clone()), RemovalState::Waits(issue), None), given_back);
    }
    (removal(SweepStep::Keep, RemovalState::Waits(issue), Some(left)), ClusterStep::Keep)
}

/// The pause after so many tries in a row that came to nothing.
pub fn pause(tries: u32) -> Duration {
    FIRST.saturating_mul(1_u32 << tries.saturating_sub(1).min(10)).min(LONGEST)
}
