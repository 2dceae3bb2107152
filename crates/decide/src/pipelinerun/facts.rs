//! What is known of one run at one moment: everything that a decision may depend on.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::cluster::facts::Issue;
use api::duration::Duration as Span;
use api::run::PipelineRunSpec;
use api::status::PipelineRunStatus;
use run_model::{Counts, Failure, Released, Report};

/// A PipelineRun.
#[derive(Debug, Clone, Default)]
pub struct Run {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub generation: i64,
    pub created: Timestamp,
    /// When its deletion was asked for.
    pub deleting: Option<Timestamp>,
    /// Our finalizer is on it: it may be open on a scheduler.
    pub held: bool,
    /// The Pipeline in whose queue it waits while it is suspended.
    pub queue: Option<String>,
    pub spec: PipelineRunSpec,
    /// The last status that was written.
    pub status: PipelineRunStatus,
}

impl Run {
    /// Whether the end was written down: `Succeeded` is True or False.
    pub fn has_ended(&self) -> bool {
        let decided = |status: &str| status == "True" || status == "False";
        self.status.conditions.iter().any(|found| found.type_ == "Succeeded" && decided(&found.status))
    }
}

/// Everything that was found out in one reconciliation.
#[derive(Debug, Clone)]
pub struct Facts {
    pub now: Timestamp,
    /// The API server has told that time a moment ago. Without its word nothing that is over is removed.
    pub fresh: bool,
    pub spec: SpecFact,
    pub cluster: ClusterFact,
    /// A DaskCluster that was made for the run is there.
    pub owned: bool,
    pub drive: DriveFact,
    /// How long ago its cancellation was first seen.
    pub cancelling: Duration,
    /// For how long nothing but `finally` steps has been left to it, and no worker that could run them.
    pub stuck: Duration,
    /// What it waited for when it was last seen to wait, if no step has run since.
    pub waited: Option<String>,
    /// What Kubernetes refused in this reconciliation.
    pub issue: Option<Issue>,
    /// Why it may not begin, or go on, yet: its namespace has as many runs as it may have, or memory for runs is used up.
    pub full: Option<Issue>,
    pub sweep: SweepFact,
    pub release: ReleaseFact,
}

/// The removal of what an ended run has stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SweepFact {
    /// Nothing of it has begun.
    #[default]
    None,
    /// It waits for its scheduler, for so long by now.
    Waits(Duration),
    /// Too many others have clusters made for theirs; it looks again.
    Crowded,
    /// A scheduler is at it.
    Live,
    /// So much of it is done; so many outputs stayed.
    Done { due: Due, kept: u64 },
    /// It could not be done; it is tried again after a pause.
    Paused { issue: Issue, left: Duration },
}

/// What the run is to do.
#[derive(Debug, Clone, Default)]
pub enum SpecFact {
    /// Valid, and not written down yet.
    #[default]
    Valid,
    /// Written down: later changes of the Pipeline do not count.
    Frozen(Frozen),
    /// Refused for ever, with all its problems.
    Invalid(String),
    /// It cannot be told now: something that it names is not there yet, for which it waits so long after it was made; or what
    /// was written down cannot be read, which no time ends.
    Waits(Issue, Option<Span>),
}

/// Of a run whose spec is written down, what decisions need.
#[derive(Debug, Clone)]
pub struct Frozen {
    /// Name of the ControllerRevision.
    pub revision: String,
    /// When that was made: the start of the run.
    pub since: Timestamp,
    pub place: Place,
    pub storage_url: String,
    /// The Secret with the keys of the storage, if there is one.
    pub storage_secret: Option<String>,
    /// Longest time from the start to the first step.
    pub start: Duration,
    /// Longest time from the start to the end of all steps but the `finally` ones.
    pub active: Option<Duration>,
    /// Longest time of the `finally` steps after that: none if nothing bounds them, zero if there are none.
    pub finally: Option<Duration>,
}

impl Frozen {
    /// Whether the time to its end has passed.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.active.is_some_and(|active| {
            now.duration_since(self.since) >= SignedDuration::try_from(active).unwrap_or(SignedDuration::MAX)
        })
    }
}

/// Where a run runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// On a DaskCluster of its own, which has the run's name.
    Own,
    /// On a DaskCluster that others run.
    Shared(String),
    /// On a scheduler that is no DaskCluster, with the Secret for its certificates.
    #[serde(rename_all = "camelCase")]
    Address { address: String, secret: Option<String> },
}

impl Place {
    /// The name of the DaskCluster, if it is one.
    pub fn cluster<'a>(&'a self, run: &'a str) -> Option<&'a str> {
        match self {
            Self::Own => Some(run),
            Self::Shared(name) => Some(name),
            Self::Address { .. } => None,
        }
    }
}

/// The cluster of the run.
#[derive(Debug, Clone, Default)]
pub enum ClusterFact {
    /// There is none, or nobody has asked yet.
    #[default]
    Missing,
    /// It is there and its scheduler cannot be used, for this reason.
    Waits(Issue),
    /// The scheduler can be asked; why workers are missing, if they are.
    Answers(Option<Issue>),
}

/// The task that drives the run.
#[derive(Debug, Clone, Default)]
pub enum DriveFact {
    /// There is none.
    #[default]
    None,
    Live(Live),
    /// It brought the run to its end.
    Done(Box<Report>),
    /// It could not go on; it is tried again after a pause if `again` says so.
    Broken {
        issue: Issue,
        again: Option<Duration>,
    },
}

impl Live {
    /// Nothing but its `finally` steps is left: it was cancelled, or its time is over.
    pub fn is_ending(&self) -> bool {
        self.cancelling || self.counts.kept_back > 0
    }

    /// No step runs, since no worker can run those that wait.
    pub fn is_blocked(&self) -> bool {
        self.open && self.counts.running == 0 && !self.blocked.is_empty()
    }
}

/// What a run says while it is driven.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// It is open on a scheduler, and heard of.
    pub open: bool,
    pub counts: Counts,
    /// The most tasks that had come to their end, also before it was opened again.
    pub done: u64,
    /// Steps that failed for good, the first first; bounded.
    pub failures: Vec<Failure>,
    /// Steps that no worker can run now: count and why, by name.
    pub blocked: BTreeMap<String, (u64, String)>,
    /// Why the storage cannot be used now.
    pub storage: Option<Issue>,
    /// Why the scheduler was lost.
    pub lost: Option<String>,
    /// It was asked to end.
    pub cancelling: bool,
    /// How the try before this one ended.
    pub before: Option<Issue>,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ReleaseFact {
    /// It is not due, or the scheduler is not known.
    #[default]
    None,
    /// The scheduler can be asked; how the last try ended.
    Ready(Option<Issue>),
    /// It is being asked; how the try before ended.
    Live(Option<Issue>),
    /// It cannot be asked now.
    Waits(Issue),
    /// Asking failed, and is tried again after a pause.
    Paused {
        issue: Issue,
        left: Duration,
    },
    Done(Released),
}

/// Whose time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub outputs: bool,
    pub record: bool,
}
