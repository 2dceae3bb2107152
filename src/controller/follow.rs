//! Runs, as what belongs to their Pipeline: what the watch of runs shows is told to Pipelines too, reduced to what they
//! decide by, so that the progress of a run is no news to its Pipeline.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use super::cache::{Kind, Listed, Record};
use super::queue::Key;
use super::watch::{Sink, json_body};
use crate::trigger::{self, FROZEN_HASH, PIPELINE_LABEL};

/// Annotations that are kept.
const OURS: &str = "daskade.dev/";

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

    /// A run is as its record says.
    pub fn put(&mut self, meta: &ObjectMeta, record: &Record) {
        let name = meta.name.clone().unwrap_or_default();
        let Some((key, slim)) = read(&record.json(), meta, record) else { return };
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
pub(super) fn read(run: &Value, meta: &ObjectMeta, record: &Record) -> Option<(Key, Record)> {
    let annotations: Map<String, Value> = meta
        .annotations
        .iter()
        .flatten()
        .filter(|(name, _)| name.starts_with(OURS))
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let conditions = run.pointer("/status/conditions").and_then(Value::as_array);
    let succeeded = conditions.into_iter().flatten().find(|condition| condition["type"] == "Succeeded");
    // Only whose label says so has a spec of a Pipeline's of its own.
    let labelled = meta.labels.as_ref().is_some_and(|labels| labels.contains_key(PIPELINE_LABEL));
    let slim = json!({
        FROZEN_HASH: labelled.then(|| trigger::frozen_hash(run)).flatten(),
        "metadata": {
            "name": meta.name,
            "uid": meta.uid,
            "creationTimestamp": meta.creation_timestamp,
            "deletionTimestamp": meta.deletion_timestamp,
            "labels": meta.labels,
            "annotations": annotations,
        },
        "spec": {
            "pipelineRef": run.pointer("/spec/pipelineRef"),
            "suspend": run.pointer("/spec/suspend"),
            "cancel": run.pointer("/spec/cancel"),
            "retention": run.pointer("/spec/retention"),
        },
        "status": {
            "conditions": succeeded.map(|condition| {
                json!([{"type": condition["type"], "status": condition["status"]}])
            }),
            "revision": run.pointer("/status/revision"),
            "removed": run.pointer("/status/removed"),
        },
    });
    let (pipeline, _) = trigger::read_run(&slim)?;
    let key = Key::new(meta.namespace.clone()?, pipeline);
    Some((key, Record { body: json_body(&slim)?, ..record.clone() }))
}
