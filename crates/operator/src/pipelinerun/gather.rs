//! From what the watches have shown to facts.

use serde::Deserialize;
use serde_json::Value;

use crate::apiserver::record::Record;
use crate::apiserver::shown::FINALIZER;
use crate::queue::Key;
use decide::pipeline::{PIPELINE_LABEL, QUEUED_ANNOTATION};
use decide::pipelinerun::facts::Run;

/// Reads a PipelineRun. A spec that cannot be read is an empty one here: what is wrong with it is found when it is checked.
pub(crate) fn read_run(key: &Key, record: &Record, value: &Value) -> Run {
    let at = |path: &str| value.pointer(path).and_then(Value::as_str).and_then(|text| text.parse().ok());
    let finalizers = value.pointer("/metadata/finalizers").and_then(Value::as_array);
    let mark = |kind: &str, name: &str| Some(value["metadata"][kind].get(name)?.as_str()?.to_owned());
    Run {
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        uid: record.uid.clone(),
        generation: value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
        created: at("/metadata/creationTimestamp").unwrap_or_default(),
        deleting: at("/metadata/deletionTimestamp"),
        held: finalizers.is_some_and(|list| list.iter().any(|name| name == FINALIZER)),
        queue: mark("annotations", QUEUED_ANNOTATION).and_then(|_| mark("labels", PIPELINE_LABEL)),
        spec: value.get("spec").and_then(|spec| Deserialize::deserialize(spec).ok()).unwrap_or_default(),
        // A status that cannot be read is written anew.
        status: value.get("status").and_then(|status| Deserialize::deserialize(status).ok()).unwrap_or_default(),
    }
}
