//! An object as it was seen last: as little of it as decisions need.

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use crate::apiserver::room::Charge;
use decide::cluster::facts::{Issue, PodFact};

/// From this age on a pod that is being made is in trouble, in seconds: what it says then is found out when it is seen,
/// since the pod itself is not kept.
pub const LATE: i64 = 61;

/// Kinds that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Cluster,
    Pipeline,
    Run,
    /// A PipelineRun, as what belongs to its Pipeline.
    RunOf,
    Pod,
    Service,
    ConfigMap,
    NetworkPolicy,
    /// What a run is carried out from; not watched.
    Revision,
}

impl Kind {
    /// Whether it is looked at for itself; the others belong to one of these.
    pub const fn is_root(self) -> bool {
        matches!(self, Self::Cluster | Self::Pipeline | Self::Run)
    }
}

/// An object as it was seen last.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub uid: String,
    /// Resource version.
    pub version: String,
    /// Uid of the DaskCluster that owns it; its own of what is looked at for itself.
    pub owner: String,
    pub body: Body,
    /// We wrote it, and no watch has shown it since.
    pub unseen: Option<Instant>,
    /// We deleted it. It counts as terminating even while a lagging watch shows it unchanged.
    pub deleted: bool,
}

impl Record {
    /// The object without what is not kept of it; null of what is not kept as JSON. Of a [`Body::Part`] it is no more than
    /// what others decide by.
    pub fn json(&self) -> Value {
        match &self.body {
            Body::Json(text) => serde_json::from_slice(&text.json).unwrap_or_default(),
            Body::Part(part) => serde_json::from_slice(&part.json).unwrap_or_default(),
            Body::Pod(_) | Body::Nothing => Value::Null,
        }
    }

    /// What it takes to have it as a whole while it has its turn, if it has to be read for that.
    pub fn weight(&self) -> usize {
        match &self.body {
            Body::Part(part) => part.weight,
            Body::Json(_) | Body::Pod(_) | Body::Nothing => 0,
        }
    }
}

/// What is kept of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// The object without what others manage, as JSON: a tenth of the size that it has in memory when it is parsed, and
    /// it is parsed only when something is to be decided about it.
    Json(Arc<Text>),
    /// Of an object that is too large for that: who decides about it reads it.
    Part(Arc<Part>),
    Pod(Box<PodBody>),
    /// Its being there is all.
    Nothing,
}

/// An object as a whole.
#[derive(Debug)]
pub struct Text {
    pub json: Box<[u8]>,
    /// Of what a cache holds.
    pub charge: Option<Charge>,
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

/// A part of an object.
#[derive(Debug, PartialEq)]
pub struct Part {
    /// The fields by which others decide.
    pub json: Box<[u8]>,
    /// Of the whole.
    pub digest: [u8; 32],
    /// What the whole takes while it is looked at.
    pub weight: usize,
}

impl Body {
    pub fn json(json: Vec<u8>) -> Self {
        Self::Json(Arc::new(Text { json: json.into_boxed_slice(), charge: None }))
    }

    pub fn part(json: Box<[u8]>, digest: [u8; 32], weight: usize) -> Self {
        Self::Part(Arc::new(Part { json, digest, weight }))
    }
}

/// A pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodBody {
    pub fact: PodFact,
    /// What is wrong with it if it is still the same when it is older; see [`LATE`].
    pub late: Option<Issue>,
}
