//! The schema of a kind, compiled once into the form that checks walk.

use std::{collections::BTreeMap, sync::OnceLock};

use regex::Regex;
use serde_json::Value;

use super::rules::Rule;

/// What a value must look like.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    pub(crate) kind: ShapeKind,
    /// Fields of an object, by name.
    pub(crate) fields: BTreeMap<String, Shape>,
    /// Other entries of an object, if it takes any name.
    pub(crate) entries: Option<Box<Shape>>,
    pub(crate) items: Option<Box<Shape>>,
    pub(crate) required: Vec<String>,
    pub(crate) choices: Vec<Value>,
    pub(crate) minimum: Option<f64>,
    pub(crate) maximum: Option<f64>,
    /// Bounds of a text's length in characters, a list's or a mapping's in entries.
    pub(crate) at_least: usize,
    pub(crate) at_most: Option<usize>,
    pub(crate) pattern: Option<Pattern>,
    pub(crate) set: bool,
    pub(crate) keys: Vec<String>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) format: Option<String>,
}

/// Type of a value.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShapeKind {
    /// Any JSON.
    #[default]
    Any,
    Object,
    Array,
    Text,
    Integer,
    Number,
    Boolean,
    IntOrText,
}

/// A regular expression with its text, which tells what is meant; compiled when a value first needs it.
#[derive(Debug)]
pub(crate) struct Pattern {
    pub(crate) text: String,
    regex: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// Whether the text has the form.
    pub(crate) fn fits(&self, text: &str) -> bool {
        let regex = self.regex.get_or_init(|| Regex::new(&self.text).ok());
        regex.as_ref().is_some_and(|regex| regex.is_match(text))
    }
}

impl Shape {
    /// Compiles a structural schema.
    pub(crate) fn compile(schema: &Value) -> Self {
        let count = |key: &str| schema[key].as_u64().and_then(|n| usize::try_from(n).ok());
        let bounds = |low, high| (count(low).unwrap_or(0), count(high));
        let kind = match schema["type"].as_str() {
            Some("object") => ShapeKind::Object,
            Some("array") => ShapeKind::Array,
            Some("string") => ShapeKind::Text,
            Some("integer") => ShapeKind::Integer,
            Some("number") => ShapeKind::Number,
            Some("boolean") => ShapeKind::Boolean,
            _ if schema["x-kubernetes-int-or-string"] == true => ShapeKind::IntOrText,
            _ => ShapeKind::Any,
        };
        let (at_least, at_most) = match kind {
            ShapeKind::Object => bounds("minProperties", "maxProperties"),
            ShapeKind::Array => bounds("minItems", "maxItems"),
            _ => bounds("minLength", "maxLength"),
        };
        Self {
            kind,
            fields: object(&schema["properties"]).map(|(key, value)| (key.clone(), Self::compile(value))).collect(),
            entries: schema["additionalProperties"]
                .is_object()
                .then(|| Box::new(Self::compile(&schema["additionalProperties"]))),
            items: schema["items"].is_object().then(|| Box::new(Self::compile(&schema["items"]))),
            required: texts(&schema["required"]),
            choices: schema["enum"].as_array().cloned().unwrap_or_default(),
            minimum: schema["minimum"].as_f64(),
            maximum: schema["maximum"].as_f64(),
            at_least,
            at_most,
            pattern: schema["pattern"].as_str().map(|text| Pattern { text: text.to_owned(), regex: OnceLock::new() }),
            set: schema["x-kubernetes-list-type"] == "set",
            keys: texts(&schema["x-kubernetes-list-map-keys"]),
            rules: array(&schema["x-kubernetes-validations"]).filter_map(Rule::read).collect(),
            format: schema["format"].as_str().map(str::to_owned),
        }
    }
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn texts(value: &Value) -> Vec<String> {
    array(value).filter_map(Value::as_str).map(str::to_owned).collect()
}
