//! Schema fragments that several types share, in the form that Kubernetes' structural schemas allow.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::names::{DNS_LABEL_PATTERN, GROUP_NAME_MAX, IDENTIFIER_PATTERN, STEP_NAME_MAX};

/// Longest name of another object (RFC 1123 subdomain).
pub const OBJECT_REF_MAX: u32 = 253;
/// Names of objects that are referred to (Secrets, ConfigMaps, Pipelines, …).
pub const OBJECT_REF_PATTERN: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";

/// Any JSON value.
pub fn any(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}

/// The lists that a step is mapped over, by name of the argument.
pub fn map_sources(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": { "x-kubernetes-preserve-unknown-fields": true },
        "minProperties": 1,
        "maxProperties": 100,
        "format": "map"
    })
}

/// Files of code: relative path to content.
pub fn files(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": { "type": "string" },
        "minProperties": 1,
        "maxProperties": 1000,
        "format": "files"
    })
}

/// A mapping from names to any JSON value.
pub fn any_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": { "x-kubernetes-preserve-unknown-fields": true }
    })
}

/// A list of any JSON values.
pub fn any_list(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "x-kubernetes-preserve-unknown-fields": true },
        "minItems": 1,
        "maxItems": 1000
    })
}

/// Name of a step.
pub fn step_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": DNS_LABEL_PATTERN, "minLength": 1, "maxLength": STEP_NAME_MAX })
}

/// A set of step names.
pub fn step_names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "string", "pattern": DNS_LABEL_PATTERN, "maxLength": STEP_NAME_MAX },
        "maxItems": 10_000,
        "x-kubernetes-list-type": "set"
    })
}

/// Name of a worker group.
pub fn group_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": DNS_LABEL_PATTERN, "minLength": 1, "maxLength": GROUP_NAME_MAX })
}

/// A name that expressions and Python can use.
pub fn identifier(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": IDENTIFIER_PATTERN, "minLength": 1, "maxLength": 63 })
}

/// Name of another object in the same namespace.
pub fn object_ref(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": OBJECT_REF_PATTERN, "minLength": 1, "maxLength": OBJECT_REF_MAX })
}

/// Amounts of abstract Dask resources, by name.
pub fn dask_resources(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": { "type": "number", "minimum": 0, "maximum": 1_000_000_000 },
        "maxProperties": 32
    })
}

/// Short labels without order or repetition.
pub fn tags(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "string", "pattern": "^[A-Za-z0-9]([-A-Za-z0-9_.:/]*[A-Za-z0-9])?$", "maxLength": 63 },
        "maxItems": 32,
        "x-kubernetes-list-type": "set"
    })
}

/// A moment (RFC 3339).
pub fn date_time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time", "maxLength": 40 })
}

/// A schema made by another crate, without its texts: they would be most of the CRD.
pub fn undocumented<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut value = generator.subschema_for::<T>().to_value();
    strip_descriptions(&mut value);
    Schema::try_from(value).unwrap_or_default()
}

/// A list of such schemas.
pub fn undocumented_list<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let items = undocumented::<T>(generator);
    json_schema!({ "type": "array", "items": items, "maxItems": 64, "x-kubernetes-list-type": "atomic" })
}

fn strip_descriptions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("description").is_some_and(Value::is_string) {
                map.shift_remove("description");
            }
            map.values_mut().for_each(strip_descriptions);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_descriptions),
        _ => {}
    }
}

/// Reads a field that may hold `null` as a value of its own: absent is `None`, `null` is `Some(Null)`.
pub fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// A set of names of objects in the same namespace.
pub fn object_refs(generator: &mut SchemaGenerator) -> Schema {
    let items = object_ref(generator);
    json_schema!({ "type": "array", "items": items, "maxItems": 16, "x-kubernetes-list-type": "set" })
}

/// Labels of nodes.
pub fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {
            "type": "string",
            "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
            "maxLength": 63
        },
        "maxProperties": 64
    })
}

/// An image reference.
pub fn image(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": IMAGE_PATTERN, "minLength": 1, "maxLength": 512 })
}

/// Image references: repository, tag, digest.
pub const IMAGE_PATTERN: &str = r"^[A-Za-z0-9][A-Za-z0-9._/-]*(:[0-9]{1,5}/[A-Za-z0-9._/-]+)?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$";

/// Kubernetes' conditions, keyed by type.
pub fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let items = undocumented::<Condition>(generator);
    json_schema!({
        "type": "array",
        "items": items,
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"]
    })
}

/// Values of parameters, by name; immutable once given.
pub fn params(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": { "x-kubernetes-preserve-unknown-fields": true },
        "maxProperties": 256
    })
}
