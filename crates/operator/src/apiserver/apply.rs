//! Writes. Each is harmless if done twice, touches only what belongs to the object, and puts the answer into the cache, so
//! that the next reconciliation knows of it even if the watch lags.

use std::collections::BTreeMap;

use http::HeaderValue;
use http::header::ACCEPT;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Api, Client};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::apiserver::cache::{Cache, Entry};
use crate::apiserver::compare::{contains, is_same};
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::{Body, Kind, Record};
use crate::apiserver::{shown, wire};
use crate::queue::Key;
use decide::cluster::names;

const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// Writes for one object, and for what belongs to it.
pub(crate) struct Writer<'a> {
    pub client: &'a Client,
    pub cache: &'a Cache,
    pub key: &'a Key,
    /// The object's.
    pub uid: &'a str,
}

/// What an object has to do with the cluster.
#[derive(Debug, PartialEq, Eq)]
enum Ownership {
    Ours,
    /// Of a cluster of the same name before this one.
    Leftover,
    /// Of whom.
    Foreign(String),
}

impl Writer<'_> {
    /// Makes a child as it was built, unless it is so already. Tells whether it wrote.
    pub async fn apply(&self, kind: Kind, built: &Value, entry: &Entry) -> Result<bool, ReconcileError> {
        let name = built.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let known = entry.children.get(&(kind, name.to_owned())).filter(|record| record.owner == self.uid);
        if let Some(known) = known
            && self.is_there(kind, name, known, built).await?
        {
            return Ok(false);
        }
        let Some(known) = known else { return self.create(kind, name, built).await };
        self.change(kind, name, built, &known.uid).await?;
        Ok(true)
    }

    /// Not by an apply, which would overwrite what somebody else made of that name in part, and which the API server reads as
    /// YAML, twice: that was a seventh of its time when clusters came.
    async fn create(&self, kind: Kind, name: &str, built: &Value) -> Result<bool, ReconcileError> {
        let failed = |error| ReconcileError::api("create", kind, name, error);
        let params = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
        let body = serde_json::to_vec(built).map_err(|error| failed(kube::Error::SerdeError(error)))?;
        let api = self.objects(kind);
        let request = Request::new(api.resource_url()).create(&params, body);
        let mut request = request.map_err(|error| failed(kube::Error::BuildRequest(error)))?;
        let answer = if kind == Kind::ConfigMap {
            // Its content need not come back.
            request.headers_mut().insert(ACCEPT, HeaderValue::from_static(METADATA));
            let answer = self.client.request::<PartialObjectMeta<DynamicObject>>(request).await;
            answer.map(|answer| shown::read_metadata(&answer.metadata, Body::Nothing))
        } else {
            self.client.request::<DynamicObject>(request).await.map(|answer| shown::read_child(&answer))
        };
        match answer {
            Ok(answer) => self.keep(kind, name, answer),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let found =
                    api.get_metadata(name).await.map_err(|error| ReconcileError::api("read", kind, name, error))?;
                let uid = self.own(kind, name, &found.metadata)?;
                if kind == Kind::ConfigMap {
                    // What it holds is in its name, and cannot be changed.
                    self.keep(kind, name, shown::read_metadata(&found.metadata, Body::Nothing));
                    return Ok(false);
                }
                self.change(kind, name, built, &uid).await?;
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(true)
    }

    /// Makes one of ours as it was built, if it is still that one; what somebody else wrote into it goes.
    async fn change(&self, kind: Kind, name: &str, built: &Value, uid: &str) -> Result<(), ReconcileError> {
        let mut wanted = built.clone();
        if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("uid".to_owned(), json!(uid));
        }
        let params = PatchParams::apply(names::MANAGER).force();
        let answer = self.objects(kind).patch(name, &params, &Patch::Apply(&wanted)).await;
        let answer = answer.map_err(|error| ReconcileError::api("apply", kind, name, error))?;
        self.keep(kind, name, shown::read_child(&answer));
        Ok(())
    }

    /// Makes a pod. One of that name that is the cluster's already is as good.
    pub async fn create_pod(&self, built: Value) -> Result<(), ReconcileError> {
        let api = self.pods();
        let name = built.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let pod: Pod = serde_json::from_value(built)
            .map_err(|error| ReconcileError::api("build", Kind::Pod, &name, kube::Error::SerdeError(error)))?;
        let params = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
        let answer = match api.create(&params, &pod).await {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let found =
                    api.get(&name).await.map_err(|error| ReconcileError::api("read", Kind::Pod, &name, error))?;
                self.own(Kind::Pod, &name, &found.metadata)?;
                Ok(found)
            }
            answer => answer,
        };
        let pod = answer.map_err(|error| ReconcileError::api("create", Kind::Pod, &name, error))?;
        self.keep(Kind::Pod, &name, shown::read_pod_record(&pod));
        Ok(())
    }

    /// Deletes a pod if it is still that one, and, where a version is given, still as it was seen.
    pub async fn delete_pod(
        &self,
        name: &str,
        uid: &str,
        version: Option<&str>,
        force: bool,
    ) -> Result<(), ReconcileError> {
        let params = DeleteParams {
            grace_period_seconds: force.then_some(0),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: version.map(ToOwned::to_owned),
            }),
            ..DeleteParams::default()
        };
        match self.pods().delete(name, &params).await {
            Ok(answer) => {
                match answer.left().filter(|pod| pod.metadata.deletion_timestamp.is_some() && !force) {
                    // It takes its time: the answer says since when.
                    Some(pod) => self.keep(Kind::Pod, name, shown::read_pod_record(&pod)),
                    None => drop(self.cache.remove(Kind::Pod, self.key, name, Some(uid))),
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.cache.remove(Kind::Pod, self.key, name, Some(uid));
                Ok(())
            }
            Err(error) => Err(ReconcileError::api("delete", Kind::Pod, name, error)),
        }
    }

    /// Deletes a child that is wanted no more, if it is still that one.
    pub async fn delete(&self, kind: Kind, name: &str, record: &Record) -> Result<(), ReconcileError> {
        let preconditions = Some(Preconditions { uid: Some(record.uid.clone()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match self.objects(kind).delete(name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(ReconcileError::api("delete", kind, name, error)),
            Ok(_) => {}
        }
        self.cache.remove(kind, self.key, name, Some(&record.uid));
        Ok(())
    }

    /// Notes on a pod which certificate it should show. The kubelet then looks at the mounted Secret at once instead of in
    /// a minute or two.
    pub async fn note_certificate(&self, name: &str, uid: &str, fingerprint: &str) -> Result<(), ReconcileError> {
        let note = json!({"metadata": {"uid": uid, "annotations": {names::CERTIFICATE_ANNOTATION: fingerprint}}});
        let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
        match self.pods().patch(name, &params, &Patch::Merge(&note)).await {
            Ok(pod) => self.keep(Kind::Pod, name, shown::read_pod_record(&pod)),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.cache.remove(Kind::Pod, self.key, name, Some(uid));
            }
            Err(error) => return Err(ReconcileError::api("patch", Kind::Pod, name, error)),
        }
        Ok(())
    }

    /// Gives a pod back the labels that it was made with.
    pub async fn relabel(
        &self,
        name: &str,
        uid: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ReconcileError> {
        let patch = json!({"metadata": {"uid": uid, "labels": labels}});
        let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
        match self.pods().patch(name, &params, &Patch::Merge(&patch)).await {
            Ok(pod) => self.keep(Kind::Pod, name, shown::read_pod_record(&pod)),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.cache.remove(Kind::Pod, self.key, name, Some(uid));
            }
            Err(error) => return Err(ReconcileError::api("patch", Kind::Pod, name, error)),
        }
        Ok(())
    }

    /// Replaces the status.
    pub async fn write_status(&self, kind: Kind, status: &impl Serialize) -> Result<(), ReconcileError> {
        let api = self.objects(kind);
        let name = &self.key.name;
        let failed = |error| ReconcileError::api("write the status of", kind, name, error);
        let patch = json!([
            {"op": "test", "path": "/metadata/uid", "value": self.uid},
            {"op": "add", "path": "/status", "value": status},
        ]);
        let patch = serde_json::from_value(patch).map_err(|error| failed(kube::Error::SerdeError(error)))?;
        let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
        let request =
            Request::new(api.resource_url()).patch_subresource("status", name, &params, &Patch::<()>::Json(patch));
        self.keep_root(kind, request, failed).await
    }

    /// Has the object itself changed, and keeps the answer. Of one that was deleted in the meantime nobody is left to be told.
    pub(crate) async fn keep_root(
        &self,
        kind: Kind,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
        failed: impl Fn(kube::Error) -> ReconcileError,
    ) -> Result<(), ReconcileError> {
        let request = request.map_err(|error| failed(kube::Error::BuildRequest(error)))?;
        let text = match wire::text(self.client, request).await {
            Ok(text) => text,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let seen = shown::read_root(kind, &text).map_err(|error| failed(kube::Error::SerdeError(error)))?;
        self.keep(kind, &self.key.name, seen.kept);
        Ok(())
    }

    /// Fails if the object that is looked at is another one by now, or has another spec.
    pub async fn confirm(&self, kind: Kind, generation: i64) -> Result<(), ReconcileError> {
        let name = &self.key.name;
        let found = self.objects(kind).get_metadata_opt(name).await;
        let found = found.map_err(|error| ReconcileError::api("read", kind, name, error))?;
        let is_known = |meta: &ObjectMeta| {
            meta.uid.as_deref() == Some(self.uid)
                && meta.generation.is_none_or(|live| live == generation)
                && meta.deletion_timestamp.is_none()
        };
        if found.is_some_and(|found| is_known(&found.metadata)) { Ok(()) } else { Err(ReconcileError::Behind) }
    }

    /// The version in which a pod was seen last.
    pub fn version(&self, pod: &str) -> Option<String> {
        let entry = self.cache.entry(self.key)?;
        entry.children.get(&(Kind::Pod, pod.to_owned())).map(|record| record.version.clone())
    }

    /// Looks whether an object is still there that no watch has shown for long.
    pub async fn verify(&self, kind: Kind, name: &str, uid: &str) -> Result<(), ReconcileError> {
        let failed = |error| ReconcileError::api("read", kind, name, error);
        let found = match kind {
            Kind::Pod => {
                let pod = self.pods().get_opt(name).await.map_err(failed)?;
                pod.as_ref().and_then(shown::read_pod_record)
            }
            // The others are looked at by name before they are written.
            _ => None,
        };
        match found {
            Some((key, mut record)) if key == *self.key && record.uid == uid => {
                record.unseen = Some(Instant::now());
                self.cache.remove(kind, self.key, name, Some(uid));
                self.cache.put(kind, self.key, name, record);
            }
            _ => drop(self.cache.remove(kind, self.key, name, Some(uid))),
        }
        Ok(())
    }

    /// Whether a child is as it was built; one that is too large to be kept is read for that.
    async fn is_there(&self, kind: Kind, name: &str, known: &Record, built: &Value) -> Result<bool, ReconcileError> {
        match &known.body {
            // Its content is in its name, and cannot be changed.
            Body::Nothing => Ok(true),
            Body::Json(_) => Ok(is_as_built(kind, &known.json(), built)),
            Body::Part(_) => {
                let found = self.objects(kind).get_opt(name).await;
                let found = found.map_err(|error| ReconcileError::api("read", kind, name, error))?;
                let live = found.filter(|found| found.metadata.uid.as_ref() == Some(&known.uid));
                let live = live.and_then(|live| serde_json::to_value(live).ok());
                Ok(live.is_some_and(|live| is_as_built(kind, &live, built)))
            }
            Body::Pod(_) => Ok(false),
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.key.namespace)
    }

    pub(crate) fn objects(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.key.namespace, &kind.resource())
    }

    pub(crate) fn keep(&self, kind: Kind, name: &str, answer: Option<(Key, Record)>) {
        if let Some((key, record)) = answer
            && key == *self.key
        {
            let record = Record { unseen: Some(Instant::now()), ..record };
            if kind.is_root() {
                self.cache.renew(kind, &key, record);
            } else {
                self.cache.put(kind, &key, name, record);
            }
        }
    }

    /// The uid of an object that is the cluster's own.
    fn own(&self, kind: Kind, name: &str, meta: &ObjectMeta) -> Result<String, ReconcileError> {
        match ownership(meta, &self.key.name, self.uid) {
            Ownership::Ours => Ok(meta.uid.clone().unwrap_or_default()),
            Ownership::Leftover => Err(ReconcileError::Leftover { kind, name: name.to_owned() }),
            Ownership::Foreign(owner) => Err(ReconcileError::Taken { kind, name: name.to_owned(), owner }),
        }
    }
}

fn ownership(meta: &ObjectMeta, cluster: &str, uid: &str) -> Ownership {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    if owners.iter().any(|owner| owner.uid == uid) {
        return Ownership::Ours;
    }
    if owners.iter().any(|owner| shown::is_cluster(owner) && owner.name == cluster) {
        return Ownership::Leftover;
    }
    let owner = owners.first().map(|owner| format!("the {} {}", owner.kind, owner.name));
    Ownership::Foreign(owner.unwrap_or_else(|| "nobody that daskade knows".to_owned()))
}

/// Whether a child is as it was built.
fn is_as_built(kind: Kind, live: &Value, built: &Value) -> bool {
    let compare = if kind == Kind::NetworkPolicy { is_same } else { contains };
    let part = |name: &str, compare: fn(&Value, &Value) -> bool| {
        built.get(name).is_none_or(|built| compare(&live[name], built))
    };
    part("metadata", contains) && part("spec", compare)
}
