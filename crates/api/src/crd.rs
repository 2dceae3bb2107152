//! CustomResourceDefinitions, made from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::form::form;
use super::schema::OBJECT_REF_PATTERN;
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
                show_params(schema);
                say_forms(schema);
            }
            document
        })
        .collect()
}

/// The schema of `kind` for our own checks: the published one and the formats that only we know. Making one takes
/// milliseconds: keep it.
pub fn checked_schema(kind: &str) -> Option<Value> {
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
    if document["spec"]["names"]["kind"] == "DaskCluster" {
        let spec = root_schema(&mut document)?.pointer_mut("/properties/spec")?.as_object_mut()?;
        let rules = spec.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
        rules.as_array_mut()?.push(keep_tls());
    }
    Some(document)
}

/// Of a `DaskCluster` alone, since a pipeline's template makes a new one: who has other certificates, or none, cannot ask
/// the scheduler whether it is idle, nor have its workers drain.
fn keep_tls() -> Value {
    let same = |field: &str, default: &str| {
        let value = |of: &str| format!("(has({of}.tls) && has({of}.tls.{field}) ? {of}.tls.{field} : '{default}')");
        format!("{} == {}", value("self"), value("oldSelf"))
    };
    json!({
        "rule": format!(
            "(has(oldSelf.suspend) && oldSelf.suspend) || (has(self.scheduler) && has(self.scheduler.rollout) \
             && self.scheduler.rollout == 'Immediately') || ({} && {})",
            same("mode", "Auto"),
            same("secretRef", ""),
        ),
        "message": "tls cannot change while pods that have it otherwise are there: suspend the cluster before (suspend: true), \
                    or end what runs on it (scheduler.rollout: Immediately)",
    })
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

/// A rule of the API server sees no mapping whose values have no type, but one of which nothing is known: so it can say that
/// a run's parameters do not change.
fn show_params(schema: &mut Value) {
    let params = schema.pointer_mut("/properties/spec/properties/params").and_then(Value::as_object_mut);
    if let Some(params) = params
        && params.remove("additionalProperties").is_some()
    {
        params.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
    }
}

/// Of a pattern the API server shows the expression alone: where that is hard to read, a rule with words takes its place.
/// Not in steps, of which there may be thousands: a rule takes far more time than a pattern.
fn say_forms(schema: &mut Value) {
    match schema {
        Value::Object(map) if map.get("type").is_some_and(|kind| kind == "string") => {
            let pattern = map.get("pattern").and_then(Value::as_str).filter(|pattern| *pattern != OBJECT_REF_PATTERN);
            if let Some(rule) = pattern.and_then(form_rule) {
                map.remove("pattern");
                map.insert("x-kubernetes-validations".to_owned(), json!([rule]));
            }
        }
        Value::Object(map) => {
            let many = |name: &str, field: &Value| ["steps", "finally"].contains(&name) && field["type"] == "array";
            map.iter_mut().filter(|(name, field)| !many(name, field)).for_each(|(_, field)| say_forms(field));
        }
        Value::Array(list) => list.iter_mut().for_each(say_forms),
        _ => {}
    }
}

fn form_rule(pattern: &str) -> Option<Value> {
    Some(json!({"rule": format!("self.matches(r'{pattern}')"), "message": format!("must be {}", form(pattern)?)}))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_says_in_words_what_a_text_must_be_but_not_of_thousands_of_steps() {
        let published = documents();
        let schema = root_schema(&mut published[1].clone()).unwrap().clone();
        let at = |path: &str| schema.pointer(&format!("/properties/spec/properties/{path}")).cloned().unwrap();
        let finally = at("deadlines/properties/finally");
        assert_eq!(finally["pattern"], Value::Null);
        assert!(finally["x-kubernetes-validations"][0]["message"].as_str().unwrap().contains("for example 90s"));
        assert!(at("steps/items/properties/timeout")["pattern"].is_string());
        let checked = checked_schema("Pipeline").unwrap();
        assert!(checked.pointer("/properties/spec/properties/deadlines/properties/finally/pattern").is_some());
    }
}
