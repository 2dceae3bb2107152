//! Runs, as what belongs to their Pipeline: what the watch of runs shows is told to Pipelines too, reduced to what they
//! decide by, so that the progress of a run is no news to its Pipeline.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use super::cache::{Body, Kind, Listed, Record};
use super::queue::Key;
use super::shown::{self, View};
use super::watch::Sink;

use decide::pipeline::{
    self, FROZEN_HASH, GENERATION_ANNOTATION, MOMENT_ANNOTATION, PIPELINE_LABEL, QUEUED_ANNOTATION, TRIGGER_LABEL,
    UID_ANNOTATION,
};

/// Labels and annotations by which a Pipeline decides.
const LABELS: [&str; 2] = [PIPELINE_LABEL, TRIGGER_LABEL];
const ANNOTATIONS: [&str; 4] = [UID_ANNOTATION, GENERATION_ANNOTATION, MOMENT_ANNOTATION, QUEUED_ANNOTATION];

/// Tells Pipelines of their runs.
pub(super) struct Follow {
    sink: Sink,
    namespace: Option<String>,
    /// While a list comes in: what it has shown.
    listed: Option<Listed>,
}

impl Follow {
    pub fn new(sink: Sink, namespace: Option<String>) -> Self {
        Self { sink, namespace, listed: None }
    }

    /// A list begins.
    pub fn begin(&mut self) {
        self.listed = Some(Listed::new());
    }

    /// A run is like this, of the Pipeline with this key.
    pub fn put(&mut self, name: String, (key, slim): (Key, Record)) {
        if let Some(listed) = &mut self.listed {
            listed.insert((key.clone(), name.clone()));
        }
        if self.sink.cache.put(Kind::RunOf, &key, &name, slim) {
            self.sink.queue.add(key);
        }
    }

    /// A run is gone.
    pub fn remove(&self, meta: &ObjectMeta) {
        let name = meta.name.as_deref().unwrap_or_default();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let label = meta.labels.as_ref().and_then(|labels| labels.get(PIPELINE_LABEL));
        // A run that only its spec says a Pipeline of has to be looked for.
        let key = match label {
            Some(pipeline) => Some(Key::new(namespace, pipeline)),
            None => self.sink.cache.parent(Kind::RunOf, namespace, name),
        };
        if let Some(key) = key
            && self.sink.cache.remove(Kind::RunOf, &key, name, meta.uid.as_deref())
        {
            self.sink.queue.add(key);
        }
    }

    /// The list is complete.
    pub fn complete(&mut self) {
        let listed = self.listed.take().unwrap_or_default();
        for key in self.sink.cache.complete(Kind::RunOf, self.namespace.as_deref(), &listed) {
            self.sink.queue.add(key);
        }
    }
}

/// The Pipeline of a run, and the run as that Pipeline's entry keeps it; none if it belongs to no Pipeline.
pub(super) fn read(run: &View<'_>, meta: &ObjectMeta, record: &Record) -> Option<(Key, Record)> {
    let slim = json!({
        FROZEN_HASH: run.frozen,
        "metadata": {
            "name": meta.name,
            "uid": meta.uid,
            "creationTimestamp": meta.creation_timestamp,
            "deletionTimestamp": meta.deletion_timestamp,
            "labels": some_of(meta.labels.as_ref(), &LABELS),
            "annotations": some_of(meta.annotations.as_ref(), &ANNOTATIONS),
        },
        "spec": {
            "pipelineRef": shown::name(run.spec.pipeline_ref),
            "suspend": shown::is_true(run.spec.suspend),
            "cancel": shown::is_true(run.spec.cancel),
            "retention": shown::given(run.spec.retention, ["outputs", "logs"]),
        },
        "status": {
            "conditions": run.succeeded(),
            "revision": run.status.revision.map(|_| true),
            "removed": shown::given(run.status.removed, ["outputsAt", "logsAt"]),
        },
    });
    let (pipeline, _) = pipeline::read_run(&slim)?;
    let key = Key::new(meta.namespace.clone()?, pipeline);
    Some((key, Record { body: Body::json(serde_json::to_vec(&slim).ok()?), ..record.clone() }))
}

/// Those of the labels or annotations with these names, as far as they are not longer than ours are.
fn some_of(all: Option<&BTreeMap<String, String>>, names: &[&str]) -> Map<String, Value> {
    let found = names.iter().filter_map(|name| Some((*name, all?.get(*name)?)));
    found
        .filter(|(_, value)| value.len() <= limits::WORD)
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect()
}
