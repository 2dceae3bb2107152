//! Objects as the API server shows them, and what the cache keeps of them. They are read from their text, so that of a large
//! one no more is unpacked than is kept: see [`crate::apiserver::room`].

use std::collections::BTreeMap;
use std::fmt;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::api::DynamicObject;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::apiserver::record::{Body, Kind, LATE, PodBody, Record};
use crate::apiserver::room;
use crate::queue::Key;
use api::{GROUP, PipelineSpec};
use decide::cluster::names;
use decide::cluster::pod_problem;
use decide::cluster::pods::read_pod;
use decide::pipeline::{
    self, FROZEN_HASH, GENERATION_ANNOTATION, MOMENT_ANNOTATION, PIPELINE_LABEL, QUEUED_ANNOTATION, TRIGGER_LABEL,
    UID_ANNOTATION,
};

/// Keeps a run until nothing of it is open on a scheduler.
pub(crate) const FINALIZER: &str = "daskade.dev/run";
/// Labels and annotations by which a Pipeline decides.
const LABELS: [&str; 2] = [PIPELINE_LABEL, TRIGGER_LABEL];
const ANNOTATIONS: [&str; 4] = [UID_ANNOTATION, GENERATION_ANNOTATION, MOMENT_ANNOTATION, QUEUED_ANNOTATION];

/// Annotations that are read.
const OURS: &str = "daskade.dev/";
/// Owners that are kept of a large object.
const OWNERS: usize = 8;
/// Bytes of a message about a pod that are kept.
const MESSAGE: usize = 4 << 10;

/// An object that was read.
pub(crate) struct Seen {
    /// Without what others manage.
    pub meta: ObjectMeta,
    /// What the cache keeps; nothing of one that is not ours.
    pub kept: Option<(Key, Record)>,
    /// Of a run: what its Pipeline keeps of it.
    pub of: Option<(Key, Record)>,
}

/// A DaskCluster, Pipeline or PipelineRun: its parts as text.
#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(deserialize_with = "read_meta")]
    metadata: ObjectMeta,
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
    /// Only of one that the cache kept.
    #[serde(rename = "frozenHash", default)]
    frozen: Option<String>,
}

/// What is kept of one as a whole, and what a reconciliation sees of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Slim<'a> {
    api_version: &'static str,
    kind: String,
    metadata: Value,
    spec: Part<'a>,
    status: Option<&'a RawValue>,
    #[serde(rename = "frozenHash", skip_serializing_if = "Option::is_none")]
    frozen: Option<&'a str>,
}

enum Part<'a> {
    Text(Option<&'a RawValue>),
    Fields(BTreeMap<String, &'a RawValue>),
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => text.serialize(serializer),
            Self::Fields(fields) => fields.serialize(serializer),
        }
    }
}

impl Part<'_> {
    fn sum(&self, of: fn(&str) -> usize) -> usize {
        match self {
            Self::Text(text) => text.map_or(0, |text| of(text.get())),
            Self::Fields(fields) => fields.values().map(|field| of(field.get())).sum(),
        }
    }

    fn values(&self) -> usize {
        self.sum(|text| room::values(text.as_bytes()))
    }
}

/// Fields of a run's spec and status by which others decide.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Fields<'a> {
    #[serde(borrow)]
    pub pipeline_ref: Option<&'a RawValue>,
    #[serde(borrow)]
    pipeline_spec: Option<&'a RawValue>,
    #[serde(borrow)]
    pub suspend: Option<&'a RawValue>,
    #[serde(borrow)]
    pub cancel: Option<&'a RawValue>,
    #[serde(borrow)]
    pub retention: Option<&'a RawValue>,
    #[serde(borrow)]
    pub conditions: Option<&'a RawValue>,
    #[serde(borrow)]
    pub revision: Option<&'a RawValue>,
    #[serde(borrow)]
    finished_at: Option<&'a RawValue>,
    #[serde(borrow)]
    pub removed: Option<&'a RawValue>,
}

/// Reads a DaskCluster, Pipeline or PipelineRun. A run is kept without a pipeline of its own once that is written down
/// elsewhere, or the run has ended. Of what is large still only the fields are kept by which others decide.
pub(crate) fn read_root(kind: Kind, text: &str) -> serde_json::Result<Seen> {
    let shown: Shown = serde_json::from_str(text)?;
    let view = View::of(kind, &shown);
    let slim = view.slim(kind, &shown);
    let Some((key, uid)) = own(&shown.metadata).zip(shown.metadata.uid.clone()) else {
        return Ok(Seen { meta: shown.metadata, kept: None, of: None });
    };
    let size = slim.spec.sum(str::len) + shown.status.map_or(0, |status| status.get().len());
    let body = body(&slim, size, || view.light(kind, &shown.metadata))?;
    let version = shown.metadata.resource_version.clone().unwrap_or_default();
    let record = Record { owner: uid.clone(), uid, version, body, unseen: None, deleted: false };
    let of = (kind == Kind::Run).then(|| of_pipeline(&view, &shown.metadata, &record)).flatten();
    Ok(Seen { meta: shown.metadata, kept: Some((key, record)), of })
}

/// The same of an object that was unpacked.
pub(crate) fn read_object(kind: Kind, object: &DynamicObject) -> Option<Seen> {
    read_root(kind, &serde_json::to_string(object).ok()?).ok()
}

/// An object as a reconciliation sees it: as what is kept of a small one.
pub(crate) struct Read {
    pub meta: ObjectMeta,
    pub value: Value,
    /// Why its spec is not unpacked; then `value` has only those fields of it by which others decide.
    pub refused: Option<String>,
}

/// Reads a DaskCluster, Pipeline or PipelineRun for a reconciliation.
pub(crate) fn read_whole(kind: Kind, text: &str) -> serde_json::Result<Read> {
    let shown: Shown = serde_json::from_str(text)?;
    let view = View::of(kind, &shown);
    let mut slim = view.slim(kind, &shown);
    let refused = too_many_values(slim.spec.values());
    if refused.is_some() {
        slim.spec = Part::Text(None);
    }
    let mut value = serde_json::to_value(slim)?;
    if refused.is_some() {
        value["spec"] = view.light_spec(kind);
    }
    Ok(Read { meta: shown.metadata, value, refused })
}

fn too_many_values(values: usize) -> Option<String> {
    let most = limits::OBJECT_VALUES;
    let message = || {
        format!(
            "spec: it has about {values} values, and the operator reads at most {most} (docs/limits.md); put data into files or \
             into the storage, or split the object"
        )
    };
    (values > most).then(message)
}

/// What stays of what is kept as a whole when there is no room for it.
pub(crate) fn reduce(kind: Kind, json: &[u8]) -> Option<Body> {
    if !kind.is_root() {
        return Some(Body::part(b"{}".as_slice().into(), digest_of(json), 0));
    }
    let text = std::str::from_utf8(json).ok()?;
    let shown: Shown = serde_json::from_str(text).ok()?;
    let light = serde_json::to_vec(&View::of(kind, &shown).light(kind, &shown.metadata)).ok()?;
    Some(Body::part(light.into(), digest_of(json), room::weight(text)))
}

/// A run, as far as its fields matter.
pub(crate) struct View<'a> {
    pub spec: Fields<'a>,
    pub status: Fields<'a>,
    /// Hash of the spec that it has; only of one that a Pipeline made.
    pub frozen: Option<String>,
}

impl<'a> View<'a> {
    fn of(kind: Kind, shown: &Shown<'a>) -> Self {
        if kind != Kind::Run {
            return Self { spec: Fields::default(), status: Fields::default(), frozen: None };
        }
        let (spec, status): (Fields, Fields) = (fields(shown.spec), fields(shown.status));
        // Only whose label says so has a spec of a Pipeline's of its own.
        let labelled = shown.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PIPELINE_LABEL));
        let hash = || match spec.pipeline_spec {
            // What has too many values is refused.
            Some(spec) if room::values(spec.get().as_bytes()) > limits::OBJECT_VALUES => None,
            Some(spec) => serde_json::from_str::<PipelineSpec>(spec.get()).ok().map(|spec| pipeline::hash(&spec)),
            None => shown.frozen.clone(),
        };
        let frozen = labelled.then(hash).flatten();
        Self { spec, status, frozen }
    }

    /// Its pipeline is written down elsewhere, or is not needed any more.
    fn is_over(&self) -> bool {
        self.status.revision.is_some() || self.status.finished_at.is_some()
    }

    fn slim<'b>(&'b self, kind: Kind, shown: &Shown<'b>) -> Slim<'b> {
        let over = self.is_over();
        let mut spec = Part::Text(shown.spec);
        if over
            && let Some(text) = shown.spec
            && let Ok(mut fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(text.get())
        {
            fields.remove("pipelineSpec");
            spec = Part::Fields(fields);
        }
        Slim {
            api_version: api::API_VERSION,
            kind: kind.to_string(),
            metadata: metadata(kind, &shown.metadata),
            spec,
            status: shown.status,
            // What its Pipeline decides by is kept.
            frozen: self.frozen.as_deref().filter(|_| over),
        }
    }

    /// The fields by which others decide, and nothing that may be large.
    fn light(&self, kind: Kind, meta: &ObjectMeta) -> Value {
        let owners = meta.owner_references.iter().flatten();
        let owners: Vec<_> =
            owners.filter(|owner| owner.kind == "PipelineRun" && is_short(owner)).take(OWNERS).collect();
        let held = meta.finalizers.iter().flatten().filter(|name| *name == FINALIZER).take(1);
        let mut light = json!({
            "metadata": {
                "name": meta.name,
                "namespace": meta.namespace,
                "uid": meta.uid,
                "generation": meta.generation,
                "creationTimestamp": meta.creation_timestamp,
                "deletionTimestamp": meta.deletion_timestamp,
                "ownerReferences": owners,
                "finalizers": held.collect::<Vec<_>>(),
            },
        });
        if kind == Kind::Run {
            light["spec"] = self.light_spec(kind);
            light["status"] = json!({
                "conditions": self.succeeded().unwrap_or_else(|| json!([])),
                "revision": name(self.status.revision),
            });
        }
        light
    }

    fn light_spec(&self, kind: Kind) -> Value {
        if kind != Kind::Run {
            return Value::Null;
        }
        json!({
            "pipelineRef": name(self.spec.pipeline_ref),
            "suspend": is_true(self.spec.suspend),
            "cancel": is_true(self.spec.cancel),
        })
    }

    /// The condition that tells how the run ended, without its words.
    pub fn succeeded(&self) -> Option<Value> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Condition {
            r#type: String,
            status: String,
        }
        let conditions = self.status.conditions.and_then(|all| serde_json::from_str::<Vec<Condition>>(all.get()).ok());
        let found = conditions?.into_iter().find(|condition| condition.r#type == "Succeeded")?;
        // Conditions cannot be read without it.
        let time = "1970-01-01T00:00:00Z";
        let status = found.status.get(..limits::WORD).unwrap_or(&found.status);
        Some(json!([{"type": "Succeeded", "status": status, "lastTransitionTime": time}]))
    }
}

fn fields<'a, T: Deserialize<'a> + Default>(part: Option<&'a RawValue>) -> T {
    part.and_then(|part| serde_json::from_str(part.get()).ok()).unwrap_or_default()
}

pub(crate) fn is_true(field: Option<&RawValue>) -> bool {
    field.is_some_and(|field| field.get() == "true")
}

/// A name that is none if it is longer than names are.
pub(crate) fn name(field: Option<&RawValue>) -> Option<String> {
    let text: Option<String> = field.and_then(|field| serde_json::from_str(field.get()).ok());
    text.filter(|text| text.len() <= limits::WORD)
}

/// Which of these fields are given, as an object that has true for each.
pub(crate) fn given(part: Option<&RawValue>, names: [&str; 2]) -> Value {
    let fields: BTreeMap<String, Option<IgnoredAny>> = fields(part);
    names
        .into_iter()
        .filter(|name| matches!(fields.get(*name), Some(Some(_))))
        .map(|name| (name.to_owned(), json!(true)))
        .collect()
}

fn metadata(kind: Kind, meta: &ObjectMeta) -> Value {
    let mut slim = json!({
        "name": meta.name,
        "namespace": meta.namespace,
        "uid": meta.uid,
        "generation": meta.generation,
        "labels": meta.labels.as_ref().map_or_else(Default::default, |labels| labels.clone()),
        "deletionTimestamp": meta.deletion_timestamp,
    });
    if let Some(owners) = &meta.owner_references {
        slim["ownerReferences"] = json!(owners);
    }
    if kind == Kind::Run
        && let Some(queued) = meta.annotations.as_ref().and_then(|all| all.get(QUEUED_ANNOTATION))
    {
        slim["annotations"] = json!({QUEUED_ANNOTATION: queued});
    }
    if kind != Kind::Cluster {
        slim["creationTimestamp"] = json!(meta.creation_timestamp);
        slim["finalizers"] = json!(meta.finalizers.as_deref().unwrap_or_default());
    }
    slim
}

/// Keeps a small object as a whole, and of a large one the rest and a digest. `size`: what it has at least.
fn body(slim: &impl Serialize, size: usize, light: impl FnOnce() -> Value) -> serde_json::Result<Body> {
    if size <= limits::OBJECT_KEPT {
        let json = serde_json::to_vec(slim)?;
        if json.len() <= limits::OBJECT_KEPT {
            return Ok(Body::json(json));
        }
    }
    let text = serde_json::to_string(slim)?;
    Ok(Body::part(serde_json::to_vec(&light())?.into(), digest_of(text.as_bytes()), room::weight(&text)))
}

/// Tells whether an object has changed.
pub(crate) fn digest_of(json: &[u8]) -> [u8; 32] {
    Sha256::digest(json).into()
}

/// Reads a Service or NetworkPolicy.
pub(crate) fn read_child(object: &DynamicObject) -> Option<(Key, Record)> {
    let DynamicObject { metadata, data, .. } = object;
    let slim = json!({
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "labels": metadata.labels,
            "ownerReferences": metadata.owner_references,
        },
        "spec": data.get("spec"),
    });
    read_metadata(metadata, body(&slim, 0, || json!({})).ok()?)
}

/// Reads a pod, as if it were just made. What only its age tells is added when it is looked at.
pub(crate) fn read_pod_record(pod: &Pod) -> Option<(Key, Record)> {
    let made = pod.metadata.creation_timestamp.as_ref()?.0;
    let mut fact = read_pod(pod, made)?;
    let old = fact.created.checked_add(SignedDuration::from_secs(LATE)).ok()?;
    let mut late = pod_problem::find(pod, old);
    limits::clip(&mut fact.template, limits::WORD);
    for issue in [&mut fact.issue, &mut late].into_iter().flatten() {
        limits::clip(&mut issue.message, MESSAGE);
    }
    if let Some(certificate) = &mut fact.certificate {
        limits::clip(certificate, limits::WORD);
    }
    read_metadata(&pod.metadata, Body::Pod(Box::new(PodBody { fact, late })))
}

pub(crate) fn read_metadata(meta: &ObjectMeta, body: Body) -> Option<(Key, Record)> {
    let owner = meta.owner_references.iter().flatten().find(|owner| is_cluster(owner))?;
    let key = Key::new(meta.namespace.clone()?, owner.name.clone());
    let version = meta.resource_version.clone().unwrap_or_default();
    Some((
        key,
        Record { uid: meta.uid.clone()?, version, owner: owner.uid.clone(), body, unseen: None, deleted: false },
    ))
}

/// Key of what is looked at for itself.
pub(crate) fn own(meta: &ObjectMeta) -> Option<Key> {
    Some(Key::new(meta.namespace.clone()?, meta.name.clone()?))
}

/// The DaskCluster that owns an object.
pub(crate) fn owner(meta: &ObjectMeta) -> Option<Key> {
    let owner = meta.owner_references.iter().flatten().find(|owner| is_cluster(owner))?;
    Some(Key::new(meta.namespace.clone()?, owner.name.clone()))
}

/// The DaskCluster that an object names in its labels.
pub(crate) fn labelled(meta: &ObjectMeta) -> Option<Key> {
    let name = meta.labels.as_ref()?.get(names::CLUSTER_LABEL)?;
    Some(Key::new(meta.namespace.clone()?, name.clone()))
}

pub(crate) fn is_cluster(owner: &OwnerReference) -> bool {
    owner.kind == "DaskCluster" && owner.api_version.split('/').next() == Some(GROUP) && is_short(owner)
}

/// The API server does not look at what an owner is called.
fn is_short(owner: &OwnerReference) -> bool {
    owner.name.len() <= limits::WORD && owner.uid.len() <= limits::WORD
}

/// Metadata without what others manage, and without annotations of others.
fn read_meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Meta {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        finalizers: Option<Vec<String>>,
        owner_references: Option<Vec<OwnerReference>>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<Annotations>,
    }
    let meta = Meta::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        uid: meta.uid,
        resource_version: meta.resource_version,
        generation: meta.generation,
        creation_timestamp: meta.creation_timestamp,
        deletion_timestamp: meta.deletion_timestamp,
        finalizers: meta.finalizers,
        owner_references: meta.owner_references,
        labels: meta.labels,
        annotations: meta.annotations.map(|Annotations(all)| all),
        ..ObjectMeta::default()
    })
}

struct Annotations(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ours;
        impl<'de> Visitor<'de> for Ours {
            type Value = Annotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name.starts_with(OURS) {
                        ours.insert(name, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Annotations(ours))
            }
        }
        deserializer.deserialize_map(Ours)
    }
}

#[cfg(test)]
#[path = "shown_tests.rs"]
mod tests;

/// The Pipeline of a run, and the run as that Pipeline's entry keeps it; none if it belongs to no Pipeline.
fn of_pipeline(run: &View<'_>, meta: &ObjectMeta, record: &Record) -> Option<(Key, Record)> {
    let slim = json!({
        FROZEN_HASH: run.frozen,
        "metadata": {
            "name": meta.name,
            "uid": meta.uid,
            "creationTimestamp": meta.creation_timestamp,
            "deletionTimestamp": meta.deletion_timestamp,
            "labels": some_of(meta.labels.as_ref(), &LABELS),
            "annotations": some_of(meta.annotations.as_ref(), &ANNOTATIONS),
        },
        "spec": {
            "pipelineRef": name(run.spec.pipeline_ref),
            "suspend": is_true(run.spec.suspend),
            "cancel": is_true(run.spec.cancel),
            "retention": given(run.spec.retention, ["outputs", "logs"]),
        },
        "status": {
            "conditions": run.succeeded(),
            "revision": run.status.revision.map(|_| true),
            "removed": given(run.status.removed, ["outputsAt", "logsAt"]),
        },
    });
    let (pipeline, _) = pipeline::read_run(&slim)?;
    let key = Key::new(meta.namespace.clone()?, pipeline);
    Some((key, Record { body: Body::json(serde_json::to_vec(&slim).ok()?), ..record.clone() }))
}

/// Those of the labels or annotations with these names, as far as they are not longer than ours are.
fn some_of(all: Option<&BTreeMap<String, String>>, names: &[&str]) -> Map<String, Value> {
    let found = names.iter().filter_map(|name| Some((*name, all?.get(*name)?)));
    found
        .filter(|(_, value)| value.len() <= limits::WORD)
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect()
}
