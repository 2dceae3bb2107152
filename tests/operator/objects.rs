//! Objects and paths of the double of the API server.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A parameter of a query, decoded as far as selectors need it.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// The parts of a label selector: key and value.
pub fn selector(query: &str) -> Vec<(String, String)> {
    let text = parameter(query, "labelSelector").unwrap_or_default();
    let parts = text.split(',').filter_map(|part| part.split_once('='));
    parts.map(|(key, value)| (key.trim_end_matches('=').to_owned(), value.to_owned())).collect()
}

pub fn matches(labels: &Value, selector: &[(String, String)]) -> bool {
    selector.iter().all(|(key, value)| labels[key] == *value)
}

/// Path of the group and version, the namespace if there is one, the kind, and the name if there is one.
fn parts(path: &str) -> (String, Option<String>, Option<String>, Option<String>) {
    let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let group = if words.first() == Some(&"api") { 2 } else { 3 };
    let base = words.iter().take(group).copied().collect::<Vec<_>>().join("/");
    let rest = words.get(group..).unwrap_or_default();
    let text = |at: usize| rest.get(at).map(|text| (*text).to_owned());
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        (base, text(1), text(2), text(3))
    } else {
        (base, None, text(0), text(1))
    }
}

pub fn namespace(path: &str) -> Option<String> {
    parts(path).1
}

pub fn is_collection(path: &str) -> bool {
    let (_, _, kind, name) = parts(path);
    kind.is_some() && name.is_none()
}

/// Whether an object is in a collection: of a namespace, or of all.
pub fn is_in(path: &str, collection: &str) -> bool {
    let (base, namespace, kind, name) = parts(path);
    let (of, only, kinds, _) = parts(collection);
    name.is_some() && base == of && kind == kinds && (only.is_none() || only == namespace)
}

/// Gives an object the kind that its path says.
pub fn describe(path: &str, object: &mut Value) {
    let (base, _, kind, _) = parts(path);
    let kind = match kind.as_deref() {
        Some("daskclusters") => "DaskCluster",
        Some("pipelines") => "Pipeline",
        Some("pipelineruns") => "PipelineRun",
        Some("controllerrevisions") => "ControllerRevision",
        Some("pods") => "Pod",
        Some("services") => "Service",
        Some("configmaps") => "ConfigMap",
        Some("networkpolicies") => "NetworkPolicy",
        Some("secrets") => "Secret",
        Some("leases") => "Lease",
        Some("namespaces") => "Namespace",
        Some("events") => "Event",
        _ => "Unknown",
    };
    object["kind"] = json!(kind);
    object["apiVersion"] = json!(base.trim_start_matches("apis/").trim_start_matches("api/"));
}

/// What is left of an object, or of a list, for those who asked for metadata alone.
pub fn metadata_of(document: Value) -> Value {
    let slim = |object: &Value| json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
    match document["items"].as_array() {
        // An empty one has `null`, as the API server writes it.
        Some(items) => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": document["metadata"],
            "items": (!items.is_empty()).then(|| items.iter().map(slim).collect::<Vec<_>>()),
        }),
        None => slim(&document),
    }
}

/// Maps that are applied as a whole, as their types say.
const ATOMIC: [&str; 2] = ["/spec/selector", "/spec/podSelector"];

/// The fields that an applied object has a say in; lists are one field each.
pub fn leaves(object: &Value) -> BTreeMap<String, Value> {
    fn walk(value: &Value, at: &str, found: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(map) if !map.is_empty() && !ATOMIC.contains(&at) => {
                for (key, value) in map {
                    walk(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), found);
                }
            }
            _ => drop(found.insert(at.to_owned(), value.clone())),
        }
    }
    let mut found = BTreeMap::new();
    walk(object, "", &mut found);
    for own in ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace", "/metadata/uid"] {
        found.remove(own);
    }
    found
}

fn steps(field: &str) -> Vec<String> {
    field[1..].split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}

pub fn set(object: &mut Value, field: &str, value: Value) {
    let mut at = object;
    for step in steps(field) {
        at = &mut at[&step];
    }
    *at = value;
}

pub fn take_away(object: &mut Value, field: &str) {
    let mut steps = steps(field);
    let last = steps.pop().unwrap_or_default();
    let mut at = object;
    for step in steps {
        at = &mut at[&step];
    }
    if let Some(map) = at.as_object_mut() {
        map.remove(&last);
    }
}

/// A merge patch.
pub fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return *object = patch.clone() };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            object.as_object_mut().map(|object| object.remove(key));
        } else {
            merge(&mut object[key], value);
        }
    }
}

/// A write that changes nothing is no event.
pub fn is_same(known: &Value, object: &Value) -> bool {
    let plain = |object: &Value| {
        let mut object = object.clone();
        for field in ["resourceVersion", "managedFields"] {
            object["metadata"].as_object_mut().map(|meta| meta.remove(field));
        }
        for field in ["kind", "apiVersion"] {
            object.as_object_mut().map(|object| object.remove(field));
        }
        object
    };
    plain(known) == plain(object)
}

/// A time as Kubernetes writes it.
pub fn second(time: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(time.as_second()).expect("a time").to_string()
}
