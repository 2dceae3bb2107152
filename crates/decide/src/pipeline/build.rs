//! The object of a run.

use serde_json::{Map, Value, json};

use super::action::Cause;
use super::facts::Subject;
use super::hash::hash;
use super::names::{
    GENERATION_ANNOTATION, HASH_ANNOTATION, MOMENT_ANNOTATION, PIPELINE_LABEL, QUEUED_ANNOTATION, TRIGGER_LABEL,
    UID_ANNOTATION,
};
use crate::cluster::names::{MANAGED_BY, QUEUE_LABEL};
use api::API_VERSION;

/// A run with a copy of `spec`, the Pipeline's spec as it is stored, so that neither a later change nor a deletion of the
/// Pipeline touches it. It has no owner: Kubernetes deletes what is owned together with its owner.
pub fn build_run(subject: &Subject, spec: &Value, name: &str, cause: &Cause, queued: bool) -> Value {
    let mut labels = Map::new();
    let mut annotations = Map::new();
    labels.insert(MANAGED_BY.0.to_owned(), json!(MANAGED_BY.1));
    labels.insert(PIPELINE_LABEL.to_owned(), json!(subject.name));
    if let Some(queue) = &subject.queue {
        labels.insert(QUEUE_LABEL.to_owned(), json!(queue));
    }
    annotations.insert(UID_ANNOTATION.to_owned(), json!(subject.uid));
    annotations.insert(GENERATION_ANNOTATION.to_owned(), json!(subject.generation.to_string()));
    match cause {
        Cause::Change { hash } => {
            labels.insert(TRIGGER_LABEL.to_owned(), json!("change"));
            annotations.insert(HASH_ANNOTATION.to_owned(), json!(hash));
        }
        Cause::Schedule { moment } => {
            labels.insert(TRIGGER_LABEL.to_owned(), json!("schedule"));
            annotations.insert(HASH_ANNOTATION.to_owned(), json!(hash(&subject.spec)));
            annotations.insert(MOMENT_ANNOTATION.to_owned(), json!(moment.to_string()));
        }
    }
    if queued {
        annotations.insert(QUEUED_ANNOTATION.to_owned(), json!("true"));
    }
    let mut pipeline = spec.as_object().cloned().unwrap_or_default();
    for field in ["triggers", "schedule"] {
        pipeline.shift_remove(field);
    }
    let retention = pipeline.shift_remove("retention").filter(|retention| !retention.is_null());
    let mut spec = json!({ "pipelineSpec": pipeline });
    if let Some(retention) = retention {
        spec["retention"] = retention;
    }
    if queued {
        spec["suspend"] = json!(true);
    }
    json!({
        "apiVersion": API_VERSION,
        "kind": "PipelineRun",
        "metadata": {
            "name": name,
            "namespace": subject.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": spec,
    })
}
