//! CustomResourceDefinitions, made from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{DaskCluster, Pipeline, PipelineRun};
use crate::names::{DNS_LABEL_PATTERN, OBJECT_NAME_MAX};

/// Formats that only our own checks know; they are not part of the published CRDs.
const OWN_FORMATS: [&str; 3] = ["args", "files", "map"];
/// Formats that Kubernetes knows; others would be warned about on every apply.
const KNOWN_FORMATS: [&str; 5] = ["int32", "int64", "float", "double", "date-time"];

/// Largest CRD, as JSON: `kubectl apply` keeps a copy in an annotation and stops at 256 KiB.
pub const CRD_BYTES_MAX: usize = 200 * 1024;

/// All CRDs, in the order of their use: cluster, pipeline, run.
pub fn all() -> Vec<CustomResourceDefinition> {
    documents().into_iter().filter_map(|document| serde_json::from_value(document).ok()).collect()
}

/// All CRDs as JSON, as they are published.
pub fn documents() -> Vec<Value> {
    [DaskCluster::crd(), Pipeline::crd(), PipelineRun::crd()]
        .into_iter()
        .filter_map(tidied)
        .map(|mut document| {
            if let Some(schema) = root_schema(&mut document) {
                publish(schema);
            }
            document
        })
        .collect()
}

/// The schema of `kind` for our own checks: the published one and the formats that only we know. Making one takes
/// milliseconds: keep it.
pub(crate) fn checked_schema(kind: &str) -> Option<Value> {
    let crd = match kind {
        "DaskCluster" => DaskCluster::crd(),
        "Pipeline" => Pipeline::crd(),
        "PipelineRun" => PipelineRun::crd(),
        _ => return None,
    };
    root_schema(&mut tidied(crd)?).map(Value::take)
}

fn tidied(crd: CustomResourceDefinition) -> Option<Value> {
    let mut document = serde_json::to_value(crd).ok()?;
    let schema = root_schema(&mut document)?;
    tidy(schema);
    // What `kubectl explain` shows first; the derived text there says nothing.
    schema["description"] = schema.pointer("/properties/spec/description")?.clone();
    schema["x-kubernetes-validations"] = json!([{
        "rule": format!(
            "self.metadata.name.size() <= {OBJECT_NAME_MAX} && self.metadata.name.matches('{DNS_LABEL_PATTERN}')"
        ),
        "message": format!(
            "metadata.name must be a DNS label of at most {OBJECT_NAME_MAX} characters that begins with a letter"
        ),
    }]);
    Some(document)
}

fn root_schema(document: &mut Value) -> Option<&mut Value> {
    document.pointer_mut("/spec/versions/0/schema/openAPIV3Schema")
}

/// Null is never a value of ours: a field is there or it is not. Formats of Rust's integers say nothing to others.
fn tidy(schema: &mut Value) {
    each_object(schema, &mut |object| {
        object.remove("nullable");
        let foreign = object
            .get("format")
            .and_then(Value::as_str)
            .is_some_and(|format| !KNOWN_FORMATS.contains(&format) && !OWN_FORMATS.contains(&format));
        if foreign {
            object.remove("format");
        }
    });
}

fn publish(schema: &mut Value) {
    each_object(schema, &mut |object| {
        if object.get("format").and_then(Value::as_str).is_some_and(|format| OWN_FORMATS.contains(&format)) {
            object.remove("format");
        }
    });
}

fn each_object(value: &mut Value, visit: &mut impl FnMut(&mut serde_json::Map<String, Value>)) {
    match value {
        Value::Object(map) => {
            visit(map);
            map.values_mut().for_each(|value| each_object(value, visit));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| each_object(value, visit)),
        _ => {}
    }
}
