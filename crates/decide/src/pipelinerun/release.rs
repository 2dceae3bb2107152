//! A run that the operator has left while it may be open on a scheduler that other runs use, too: what to do until that
//! scheduler has forgotten it, and what to tell. Pure. What is due is found in the object alone.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

pub use super::facts::ReleaseFact;
use super::facts::{Facts, Place, Run, SpecFact};
use crate::cluster::facts::Issue;
use api::condition::ConditionType;
use api::reason::Reason;
use run_model::Released;

/// How long a scheduler is asked to confirm that it has forgotten a run.
pub const PATIENCE: SignedDuration = SignedDuration::from_secs(600);
/// The same of a run that is deleted, from its deletion on.
pub const PATIENCE_DELETED: SignedDuration = SignedDuration::from_secs(120);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Ask the scheduler now.
    pub start: bool,
    pub state: ReleaseState,
    /// Look again after this time even if nothing happens.
    pub wake: Option<Duration>,
}

/// What to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseState {
    /// Until this moment; what is in the way.
    Working(Timestamp, Option<Issue>),
    Done(Released),
    /// Nobody has confirmed it in time.
    GivenUp(Option<Issue>),
    /// What was told before counts.
    AsWritten,
}

impl Release {
    /// Whether nothing is left to do about it.
    pub fn is_over(&self) -> bool {
        !matches!(self.state, ReleaseState::Working(..))
    }

    /// Whether the scheduler has let go of the run, and not only was given up.
    pub fn is_confirmed(&self, run: &Run) -> bool {
        match &self.state {
            ReleaseState::Done(_) => true,
            ReleaseState::AsWritten => condition(run).is_some_and(|told| told.status == "True"),
            ReleaseState::Working(..) | ReleaseState::GivenUp(_) => false,
        }
    }

    fn of(state: ReleaseState, wake: Option<Duration>) -> Self {
        Self { start: false, state, wake }
    }
}

/// Where a run is open, unless it is on a cluster of its own. Without its spec the status still names the cluster.
pub fn shared_place(run: &Run, spec: &SpecFact) -> Option<Place> {
    let place = match spec {
        SpecFact::Frozen(frozen) => frozen.place.clone(),
        _ => Place::Shared(run.status.cluster.clone().filter(|cluster| *cluster != run.name)?),
    };
    Some(place).filter(|place| *place != Place::Own)
}

/// What was told of it.
pub fn condition(run: &Run) -> Option<&Condition> {
    let kind = ConditionType::Released.as_str();
    run.status.conditions.iter().find(|condition| condition.type_ == kind)
}

/// It is done, or was given up.
pub fn is_settled(run: &Run) -> bool {
    condition(run).is_some_and(|told| told.status == "True" || told.reason.parse() == Ok(Reason::NotReleased))
}

/// Whether a scheduler may have to be asked.
pub fn is_due(run: &Run) -> bool {
    if is_settled(run) {
        return false;
    }
    if run.has_ended() {
        return condition(run).is_some();
    }
    run.held && (run.deleting.is_some() || run.spec.suspend && !run.spec.cancel)
}

/// What an end that nobody has told the scheduler of leaves to do.
pub(super) fn begin(run: &Run, facts: &Facts) -> Option<Release> {
    shared_place(run, &facts.spec).filter(|_| run.held)?;
    if is_settled(run) {
        return Some(Release::of(ReleaseState::AsWritten, None));
    }
    Some(Release::of(ReleaseState::Working(end(run, facts.now), None), None))
}

/// Decides about a run that is to be released.
pub(super) fn release(run: &Run, facts: &Facts) -> Release {
    if is_settled(run) {
        return Release::of(ReleaseState::AsWritten, None);
    }
    let end = end(run, facts.now);
    let left = end.duration_since(facts.now);
    let (start, issue, pause) = match &facts.release {
        ReleaseFact::Done(how) => return Release::of(ReleaseState::Done(*how), None),
        ReleaseFact::None => (false, None, None),
        ReleaseFact::Ready(before) => (true, before.clone(), None),
        ReleaseFact::Live(before) => (false, before.clone(), None),
        ReleaseFact::Waits(issue) => (false, Some(issue.clone()), None),
        ReleaseFact::Paused { issue, left } => (false, Some(issue.clone()), Some(*left)),
    };
    if !left.is_positive() {
        return Release::of(ReleaseState::GivenUp(issue), None);
    }
    let left = left.unsigned_abs();
    let wake = Some(pause.map_or(left, |pause| pause.min(left)));
    Release { start, state: ReleaseState::Working(end, issue), wake }
}

/// Until when it is tried.
fn end(run: &Run, now: Timestamp) -> Timestamp {
    let since = condition(run).map_or(now, |told| told.last_transition_time.0);
    let after = |since: Timestamp, patience| since.saturating_add(patience).unwrap_or(Timestamp::MAX);
    let deleted = run.deleting.map(|since| after(since, PATIENCE_DELETED));
    deleted.into_iter().chain([after(since, PATIENCE)]).min().unwrap_or(now)
}
