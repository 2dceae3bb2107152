//! Writes of a Pipeline's controller about its runs. Each is harmless if done twice, and its answer goes
//! into the cache, so that the next round knows of it even if the watch lags.

use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::cache::{Cache, Kind, Record};
use super::error::PassError;
use super::queue::Key;
use super::{follow, watch};
use crate::cluster::names::MANAGER;
use crate::trigger::{Cause, PIPELINE_LABEL, QUEUED_ANNOTATION, Subject, build_run};

/// Writes about the runs of one Pipeline.
pub(super) struct Writer<'a> {
    pub client: &'a Client,
    /// Of Pipelines.
    pub cache: &'a Cache,
    pub key: &'a Key,
    pub subject: &'a Subject,
    /// The Pipeline's spec as it is stored.
    pub spec: &'a Value,
}

/// What became of a run that was to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// It was made.
    Ours,
    /// The Pipeline had a run of that name already.
    Known,
    /// Something else has the name.
    Foreign,
}

impl Writer<'_> {
    pub async fn create(&self, name: &str, cause: &Cause, queued: bool) -> Result<Made, PassError> {
        let built = build_run(self.subject, self.spec, name, cause, queued);
        let failed = |verb: &'static str, error| PassError::api(verb, Kind::Run, name, error);
        let run: DynamicObject =
            serde_json::from_value(built).map_err(|error| failed("build", kube::Error::SerdeError(error)))?;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match self.runs().create(&params, &run).await {
            Ok(run) => {
                self.keep(&run);
                Ok(Made::Ours)
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let found = self.runs().get_opt(name).await.map_err(|error| failed("read", error))?;
                // Gone again: the next round makes it.
                let Some(found) = found else { return Ok(Made::Known) };
                let labels = found.metadata.labels.as_ref();
                let is_ours = labels.and_then(|labels| labels.get(PIPELINE_LABEL)) == Some(&self.key.name);
                self.keep(&found);
                Ok(if is_ours { Made::Known } else { Made::Foreign })
            }
            Err(error) => Err(failed("create", error)),
        }
    }

    /// Takes a run out of the queue; `cancel` ends it.
    pub async fn patch(&self, name: &str, uid: &str, cancel: bool) -> Result<(), PassError> {
        let mut patch = json!({
            "metadata": {"uid": uid, "annotations": {QUEUED_ANNOTATION: null}},
            "spec": {"suspend": false},
        });
        if cancel {
            patch["spec"]["cancel"] = json!(true);
        }
        match self.runs().patch(name, &params(), &Patch::Merge(&patch)).await {
            Ok(run) => self.keep(&run),
            Err(kube::Error::Api(status)) if status.code == 404 => self.forget(name, uid),
            Err(error) => return Err(PassError::api("patch", Kind::Run, name, error)),
        }
        Ok(())
    }

    /// Deletes a run if it is still that one.
    pub async fn delete(&self, name: &str, uid: &str) -> Result<(), PassError> {
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match self.runs().delete(name, &params).await {
            Ok(answer) => match answer.left().filter(|run| run.metadata.deletion_timestamp.is_some()) {
                // A finalizer holds it for a while.
                Some(run) => self.keep(&run),
                None => self.forget(name, uid),
            },
            Err(kube::Error::Api(status)) if status.code == 404 => self.forget(name, uid),
            Err(error) => return Err(PassError::api("delete", Kind::Run, name, error)),
        }
        Ok(())
    }

    fn runs(&self) -> Api<DynamicObject> {
        objects(self.client, self.key, Kind::Run)
    }

    fn keep(&self, run: &DynamicObject) {
        let read = watch::read_run(run).and_then(|(_, record)| follow::read(&run.data, &run.metadata, &record));
        let name = run.metadata.name.as_deref().unwrap_or_default();
        if let Some((key, record)) = read.filter(|(key, _)| key == self.key) {
            self.cache.put(Kind::RunOf, &key, name, Record { unseen: Some(Instant::now()), ..record });
        }
    }

    fn forget(&self, name: &str, uid: &str) {
        self.cache.remove(Kind::RunOf, self.key, name, Some(uid));
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

fn objects(client: &Client, key: &Key, kind: Kind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), &key.namespace, &kind.resource())
}
