//! What is known when it is decided.

use crate::cluster::facts::Issue;
use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::action::Cause;
use super::hash;
use super::names::{
    self, GENERATION_ANNOTATION, MOMENT_ANNOTATION, PIPELINE_LABEL, QUEUED_ANNOTATION, TRIGGER_LABEL, UID_ANNOTATION,
};
use api::PipelineSpec;
use api::status::PipelineStatus;

/// A Pipeline.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Subject {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub generation: i64,
    pub created: Timestamp,
    pub spec: PipelineSpec,
    /// As it was written last.
    pub status: PipelineStatus,
    /// Kueue's queue, which its runs get too.
    pub queue: Option<String>,
}

/// Everything that a decision may depend on besides the Pipeline.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    pub now: Timestamp,
    /// Runs of the Pipeline, whoever made them.
    pub runs: Vec<RunFact>,
    /// Names of runs that belong to something else.
    pub taken: BTreeSet<String>,
    /// What this process made for the Pipeline's present generation. It counts whatever became of those runs since.
    pub made: Vec<Cause>,
    /// What kept the last action from being done.
    pub issue: Option<Issue>,
}

/// A run of the Pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFact {
    pub name: String,
    pub uid: String,
    pub created: Timestamp,
    pub origin: Origin,
    /// How it ended; none while it has not.
    pub end: Option<End>,
    /// It was told to end.
    pub cancelled: bool,
    /// It waits for the run before it.
    pub queued: bool,
    pub deleting: bool,
    /// What it has stored is to be removed later, because of it.
    pub retains: bool,
}

/// What made a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A change of the spec; of which Pipeline and which generation of it.
    Change {
        /// Of the spec that the run has.
        hash: String,
        /// What it says itself: a hint.
        pipeline: String,
        generation: i64,
    },
    Schedule {
        moment: Timestamp,
    },
    /// A person.
    Manual,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Succeeded,
    /// Or cancelled.
    Failed,
}

/// Where a run that is kept without its spec has the hash of it.
pub const FROZEN_HASH: &str = "frozenHash";

/// Hash of the spec that a run has, which nobody can change; none of one that names a Pipeline, or whose spec cannot be
/// read.
pub fn frozen_hash(run: &Value) -> Option<String> {
    match run.pointer("/spec/pipelineSpec").filter(|spec| !spec.is_null()) {
        Some(spec) => PipelineSpec::deserialize(spec).ok().map(|spec| hash::hash(&spec)),
        None => run.get(FROZEN_HASH).and_then(Value::as_str).map(ToOwned::to_owned),
    }
}

/// Name of the Pipeline that a PipelineRun belongs to and what matters of the run; none if it belongs to no Pipeline.
///
/// Whoever may write runs may change labels and annotations: what they say of the origin counts only where name and spec,
/// which stay, agree.
pub fn read_run(run: &Value) -> Option<(String, RunFact)> {
    let text = |path: &str| run.pointer(path).and_then(Value::as_str);
    let annotation = |name: &str| run.get("metadata")?.get("annotations")?.get(name)?.as_str();
    let label = |name: &str| run.get("metadata")?.get("labels")?.get(name)?.as_str();
    let pipeline = label(PIPELINE_LABEL).or_else(|| text("/spec/pipelineRef"))?.to_owned();
    let name = text("/metadata/name")?.to_owned();
    let trigger = label(TRIGGER_LABEL);
    let moment = annotation(MOMENT_ANNOTATION).filter(|_| trigger == Some("schedule"));
    let moment = moment.and_then(|moment| moment.parse().ok());
    let moment = moment.filter(|moment| names::is_moment_name(&pipeline, *moment, &name));
    let change = || {
        let hash = frozen_hash(run)?;
        (trigger == Some("change") || names::is_change_name(&pipeline, &hash, &name)).then(|| Origin::Change {
            hash,
            pipeline: annotation(UID_ANNOTATION).unwrap_or_default().to_owned(),
            generation: annotation(GENERATION_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or_default(),
        })
    };
    let origin = moment.map(|moment| Origin::Schedule { moment }).or_else(change);
    let is_set = |path: &str| run.pointer(path).and_then(Value::as_bool).unwrap_or(false);
    let fact = RunFact {
        name,
        uid: text("/metadata/uid").unwrap_or_default().to_owned(),
        created: text("/metadata/creationTimestamp").and_then(|time| time.parse().ok()).unwrap_or_default(),
        origin: origin.unwrap_or(Origin::Manual),
        end: end(run),
        cancelled: is_set("/spec/cancel"),
        queued: is_set("/spec/suspend") && annotation(QUEUED_ANNOTATION).is_some(),
        deleting: text("/metadata/deletionTimestamp").is_some(),
        retains: retains(run),
    };
    Some((pipeline, fact))
}

/// Whether a part of `spec.retention` is not carried out yet. What never began has stored nothing.
fn retains(run: &Value) -> bool {
    let is_there = |path: &str| run.pointer(path).is_some_and(|value| !value.is_null());
    let parts = [("outputs", "outputsAt"), ("logs", "logsAt")];
    let open = |(asked, done): &(&str, &str)| {
        is_there(&format!("/spec/retention/{asked}")) && !is_there(&format!("/status/removed/{done}"))
    };
    is_there("/status/revision") && parts.iter().any(open)
}

fn end(run: &Value) -> Option<End> {
    let conditions = run.pointer("/status/conditions").and_then(Value::as_array);
    let succeeded = conditions.into_iter().flatten().find(|condition| condition["type"] == "Succeeded")?;
    match succeeded["status"].as_str()? {
        "True" => Some(End::Succeeded),
        "False" => Some(End::Failed),
        _ => None,
    }
}

impl RunFact {
    /// It has not ended, and counts towards what may run at once.
    pub fn is_active(&self) -> bool {
        self.end.is_none() && !self.deleting
    }

    /// The moment of the schedule that made it.
    pub fn moment(&self) -> Option<Timestamp> {
        match self.origin {
            Origin::Schedule { moment } => Some(moment),
            Origin::Change { .. } | Origin::Manual => None,
        }
    }
}

impl Facts {
    /// Whether a moment has its run. Names tell moments apart by the second, and so does this.
    pub(super) fn has_run(&self, moment: Timestamp) -> bool {
        let is_it = |other: Timestamp| other.as_second() == moment.as_second();
        let made = |cause: &Cause| matches!(cause, Cause::Schedule { moment } if is_it(*moment));
        self.runs.iter().filter_map(RunFact::moment).any(is_it) || self.made.iter().any(made)
    }

    /// Whether this process made a run by change of the spec with this hash.
    pub(super) fn has_made(&self, wanted: &str) -> bool {
        self.made.iter().any(|cause| matches!(cause, Cause::Change { hash } if hash == wanted))
    }
}
