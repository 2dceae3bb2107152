//! What is known when it is decided.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::names::{
    GENERATION_ANNOTATION, HASH_ANNOTATION, MOMENT_ANNOTATION, PIPELINE_LABEL, QUEUED_ANNOTATION, TRIGGER_LABEL,
    UID_ANNOTATION,
};
use crate::api::PipelineSpec;
use crate::api::status::PipelineStatus;

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
    /// What kept the last action from being done.
    pub trouble: Option<Trouble>,
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
        hash: String,
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

/// Why something could not be done, in the words of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// A documented reason.
    pub reason: String,
    pub message: String,
    /// It will not pass by itself.
    pub stalled: bool,
}

/// Name of the Pipeline that a PipelineRun belongs to and what matters of the run; none if it belongs to no Pipeline.
pub fn read_run(run: &Value) -> Option<(String, RunFact)> {
    let text = |path: &str| run.pointer(path).and_then(Value::as_str);
    let annotation = |name: &str| run.get("metadata")?.get("annotations")?.get(name)?.as_str();
    let label = |name: &str| run.get("metadata")?.get("labels")?.get(name)?.as_str();
    let pipeline = label(PIPELINE_LABEL).or_else(|| text("/spec/pipelineRef"))?.to_owned();
    let origin = match label(TRIGGER_LABEL) {
        Some("schedule") => annotation(MOMENT_ANNOTATION)
            .and_then(|moment| moment.parse().ok())
            .map(|moment| Origin::Schedule { moment }),
        Some("change") => annotation(HASH_ANNOTATION).map(|hash| Origin::Change {
            hash: hash.to_owned(),
            pipeline: annotation(UID_ANNOTATION).unwrap_or_default().to_owned(),
            generation: annotation(GENERATION_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or_default(),
        }),
        _ => None,
    };
    let is_set = |path: &str| run.pointer(path).and_then(Value::as_bool).unwrap_or(false);
    let fact = RunFact {
        name: text("/metadata/name")?.to_owned(),
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
    pub(super) fn run_of(&self, moment: Timestamp) -> Option<&RunFact> {
        self.runs.iter().find(|run| run.moment() == Some(moment))
    }
}
