//! The schema of `metadata`: what people may write and what `kubectl get -o yaml` adds.

use serde_json::{Value, json};

use api::names::{DNS_LABEL_PATTERN, OBJECT_NAME_MAX};

const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// Whether a text can be the key of a label: an optional domain and a name of at most 63 characters.
pub(crate) fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let edges = |text: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        ends(text.chars().next()) && ends(text.chars().next_back())
    };
    let inner = |c: char, more: &[char]| c.is_ascii_alphanumeric() || more.contains(&c);
    let domain = |text: &str| text.len() <= 253 && edges(text) && text.chars().all(|c| inner(c, &['-', '.']));
    prefix.is_none_or(domain) && name.len() <= 63 && edges(name) && name.chars().all(|c| inner(c, &['-', '_', '.']))
}

/// Schema of an object's metadata.
pub(crate) fn schema() -> Value {
    let name = json!({ "type": "string", "pattern": DNS_LABEL_PATTERN, "minLength": 1, "maxLength": OBJECT_NAME_MAX });
    let any = json!({});
    json!({
        "type": "object",
        "properties": {
            "name": name,
            "generateName": { "type": "string", "pattern": "^[a-z][-a-z0-9]*$", "minLength": 1, "maxLength": OBJECT_NAME_MAX - 5 },
            "namespace": { "type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "minLength": 1, "maxLength": 63 },
            "labels": {
                "type": "object",
                "additionalProperties": { "type": "string", "pattern": LABEL_VALUE, "maxLength": 63 }
            },
            "annotations": { "type": "object", "additionalProperties": { "type": "string" } },
            "finalizers": { "type": "array", "items": { "type": "string" } },
            "ownerReferences": { "type": "array", "items": any },
            "managedFields": { "type": "array", "items": any },
            "creationTimestamp": any,
            "deletionTimestamp": any,
            "deletionGracePeriodSeconds": { "type": "integer" },
            "generation": { "type": "integer" },
            "resourceVersion": { "type": "string" },
            "selfLink": { "type": "string" },
            "uid": { "type": "string" }
        }
    })
}
