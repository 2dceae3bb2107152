//! One document → one object, or all that is wrong with it.

use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    check::{Findings, check, check_sound},
    metadata,
    shape::Shape,
    tree::{Content, Node, Path, quote},
};
use api::problem::{Problem, nearest};
use api::reason::Reason;
use api::{API_VERSION, DaskCluster, GROUP, Pipeline, PipelineRun, crd};

/// Largest object, as JSON: Kubernetes' store takes little more.
pub const OBJECT_BYTES_MAX: usize = 1024 * 1024;

/// A typed object of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A cluster.
    DaskCluster(Box<DaskCluster>),
    /// A pipeline.
    Pipeline(Box<Pipeline>),
    /// A run.
    PipelineRun(Box<PipelineRun>),
}

impl Object {
    /// Its kind, as in the manifest.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::DaskCluster(_) => "DaskCluster",
            Self::Pipeline(_) => "Pipeline",
            Self::PipelineRun(_) => "PipelineRun",
        }
    }

    /// Its name; empty where only `generateName` is given.
    pub fn name(&self) -> &str {
        let metadata = match self {
            Self::DaskCluster(object) => &object.metadata,
            Self::Pipeline(object) => &object.metadata,
            Self::PipelineRun(object) => &object.metadata,
        };
        metadata.name.as_deref().unwrap_or_default()
    }

    /// Its namespace, if the manifest names one.
    pub fn namespace(&self) -> Option<&str> {
        let metadata = match self {
            Self::DaskCluster(object) => &object.metadata,
            Self::Pipeline(object) => &object.metadata,
            Self::PipelineRun(object) => &object.metadata,
        };
        metadata.namespace.as_deref()
    }
}

/// What a document turned out to be.
pub(crate) enum Outcome {
    /// Nothing between two `---`.
    Empty,
    /// A resource of another group, left alone.
    Foreign { api_version: String, kind: String },
    /// Neither `apiVersion` nor `kind`.
    Untyped,
    /// One of ours.
    Ours(Object),
}

/// Kinds of the group.
pub(crate) const KINDS: [&str; 3] = ["DaskCluster", "Pipeline", "PipelineRun"];

/// Reads a document; `None` if it has problems, which are then among the findings.
pub(crate) fn read(root: &Node, findings: &mut Findings) -> Option<Outcome> {
    if root.value == Content::Null {
        return Some(Outcome::Empty);
    }
    if !matches!(root.value, Content::Map(_)) {
        let message = format!("a document must be a mapping with apiVersion and kind, is {}", root.describe());
        findings.push(root.line, Problem::new(Reason::InvalidType, "", message));
        return None;
    }
    let (api_version, kind) = (root.field("apiVersion"), root.field("kind"));
    if api_version.is_none() && kind.is_none() {
        return Some(Outcome::Untyped);
    }
    let kind = match identify(root, api_version, kind, findings)? {
        Ok(kind) => kind,
        Err(foreign) => return Some(foreign),
    };
    let mut path = Path::default();
    check_sound(root, &mut path, findings);
    check(root, shape_of(kind), &mut path, findings);
    check_named(root, kind, findings);
    if !findings.is_empty() {
        return None;
    }
    let mut value = root.to_json();
    if let Some(map) = value.as_object_mut() {
        map.shift_remove("status");
    }
    let size = value.to_string().len();
    if size > OBJECT_BYTES_MAX {
        let message = format!("the object has {size} bytes as JSON, may have at most {OBJECT_BYTES_MAX}");
        let help = "put code and data into files (code.path) or storage";
        findings.push(root.line, Problem::new(Reason::TooLarge, "", message).help(help));
        return None;
    }
    type_of(kind, value).map(Outcome::Ours).map_err(|problem| findings.push(root.line, problem)).ok()
}

/// What can be read of a document with problems: the object without the fields that the problems are about, for checks
/// that find more. `None` if nothing sensible is left.
pub(crate) fn read_rest(root: &Node, problems: &[Problem]) -> Option<Object> {
    let kind = root.field("kind").and_then(Node::text)?;
    let kind = KINDS.into_iter().find(|known| *known == kind)?;
    let mut value = root.to_json();
    value.as_object_mut()?.shift_remove("status");
    for problem in problems {
        remove(&mut value, &problem.path);
    }
    type_of(kind, value).ok()
}

/// Removes the field at `path`. An entry of a list stays, so that the places of the others do.
fn remove(value: &mut Value, path: &str) {
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    if field.ends_with(']') {
        return;
    }
    let pointer: String = parent
        .split(['.', '['])
        .filter(|part| !part.is_empty())
        .map(|part| format!("/{}", part.trim_end_matches(']')))
        .collect();
    if let Some(map) = value.pointer_mut(&pointer).and_then(Value::as_object_mut) {
        map.shift_remove(field);
    }
}

/// Checks an object that comes from elsewhere than a file (the API server): the same problems, without lines.
pub fn check_value(value: &Value) -> Result<Object, Vec<Problem>> {
    let mut findings = Findings::default();
    let outcome = read(&Node::from_json(value), &mut findings);
    let problem = |reason, message: String| Err(vec![Problem::new(reason, "", message)]);
    match outcome {
        Some(Outcome::Ours(object)) => Ok(object),
        Some(Outcome::Foreign { api_version, kind }) => {
            problem(Reason::UnknownVersion, format!("{kind} of {api_version}"))
        }
        Some(Outcome::Untyped | Outcome::Empty) => {
            problem(Reason::MissingField, "apiVersion and kind are missing".into())
        }
        None => Err(findings.into_list().into_iter().map(|finding| finding.problem).collect()),
    }
}

/// The shape of a kind, made when the first object of the kind is read.
fn shape_of(kind: &str) -> &'static Shape {
    static SHAPES: [OnceLock<Shape>; KINDS.len()] = [const { OnceLock::new() }; KINDS.len()];
    let index = KINDS.iter().position(|known| *known == kind).unwrap_or_default();
    SHAPES[index].get_or_init(|| {
        let mut schema = crd::checked_schema(KINDS[index]).unwrap_or_else(|| json!({ "type": "object" }));
        schema["properties"]["apiVersion"] = json!({ "type": "string" });
        schema["properties"]["kind"] = json!({ "type": "string" });
        schema["properties"]["metadata"] = metadata::schema();
        // A status in a file is what `kubectl get -o yaml` left there; nobody reads it.
        schema["properties"]["status"] = json!({});
        schema["required"] = json!(["metadata", "spec"]);
        Shape::compile(&schema)
    })
}

/// Our kind, or a foreign resource; `None` with a finding when neither is clear.
fn identify(
    root: &Node,
    api_version: Option<&Node>,
    kind: Option<&Node>,
    findings: &mut Findings,
) -> Option<Result<&'static str, Outcome>> {
    let mut text_of = |node: Option<&Node>, field: &str| match node {
        None => {
            findings.push(root.line, Problem::new(Reason::MissingField, field, "the field is missing"));
            None
        }
        Some(node) => {
            let text = node.text().map(str::to_owned);
            if text.is_none() {
                let message = format!("must be a text, is {}", node.describe());
                findings.push(node.line, Problem::new(Reason::InvalidType, field, message));
            }
            text
        }
    };
    let (api_text, kind_text) = (text_of(api_version, "apiVersion"), text_of(kind, "kind"));
    let (api_text, kind_text) = (api_text?, kind_text?);
    let known = KINDS.into_iter().find(|known| *known == kind_text);
    let group = api_text.split_once('/').map_or("", |(group, _)| group);
    if api_text == API_VERSION {
        if known.is_none() {
            let line = kind.map_or(root.line, |node| node.line);
            let problem =
                Problem::new(Reason::UnknownKind, "kind", format!("{} has no kind {}", GROUP, quote(&kind_text)));
            findings.push(
                line,
                match nearest(&kind_text, KINDS) {
                    Some(name) => problem.help(format!("did you mean {name}?")),
                    None => problem.help(format!("kinds are {}", KINDS.join(", "))),
                },
            );
        }
        return known.map(Ok);
    }
    // Dask's own operator has a DaskCluster too; only what looks like a slip of the pen is one.
    let slip =
        group == GROUP || (group != "kubernetes.dask.org" && (known.is_some() || nearest(group, [GROUP]).is_some()));
    if slip {
        let line = api_version.map_or(root.line, |node| node.line);
        let message = format!("{} is not a version that this release knows", quote(&api_text));
        findings.push(
            line,
            Problem::new(Reason::UnknownVersion, "apiVersion", message).help(format!("write {API_VERSION}")),
        );
        return None;
    }
    Some(Err(Outcome::Foreign { api_version: api_text, kind: kind_text }))
}

/// A name there must be, unless a run leaves it to the API server; label keys have a form.
fn check_named(root: &Node, kind: &str, findings: &mut Findings) {
    let Some(metadata) = root.field("metadata") else { return };
    if !matches!(metadata.value, Content::Map(_)) {
        return;
    }
    let generated = kind == "PipelineRun" && metadata.field("generateName").is_some();
    if metadata.field("name").is_none() && !generated {
        findings.push(metadata.line, Problem::new(Reason::MissingField, "metadata.name", "the field is missing"));
    }
    if let Some(Content::Map(labels)) = metadata.field("labels").map(|node| &node.value) {
        for label in labels {
            if !metadata::is_label_key(&label.key) {
                let mut path = Path::default();
                ["metadata", "labels", &label.key].into_iter().for_each(|key| path.push_key(key));
                let message = format!("{} is not the key of a label", quote(&label.key));
                findings.push(label.line, Problem::new(Reason::InvalidName, path.as_str(), message));
            }
        }
    }
}

fn type_of(kind: &str, value: Value) -> Result<Object, Problem> {
    fn typed<T: DeserializeOwned>(value: Value) -> Result<Box<T>, Problem> {
        serde_path_to_error::deserialize(value).map(Box::new).map_err(|error| {
            let path = error.path().to_string();
            let path = if path == "." { String::new() } else { path };
            Problem::new(Reason::InvalidValue, path, error.into_inner().to_string())
        })
    }
    match kind {
        "DaskCluster" => typed(value).map(Object::DaskCluster),
        "Pipeline" => typed(value).map(Object::Pipeline),
        _ => typed(value).map(Object::PipelineRun),
    }
}
