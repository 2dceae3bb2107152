//! Writes of a Pipeline's controller about its runs. Each is harmless if done twice, and its answer goes
//! into the cache, so that the next round knows of it even if the watch lags.

use kube::api::{DeleteParams, DynamicObject, GetParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::apiserver::cache::Cache;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::{Kind, Record};
use crate::apiserver::shown::{self, Seen};
use crate::apiserver::wire;
use crate::queue::Key;
use decide::cluster::names::MANAGER;
use decide::pipeline::{Cause, PIPELINE_LABEL, QUEUED_ANNOTATION, Subject, build_run};

/// Writes about the runs of one Pipeline.
pub(crate) struct RunWriter<'a> {
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
pub(crate) enum Made {
    /// It was made.
    Ours,
    /// The Pipeline had a run of that name already.
    Known,
    /// Something else has the name.
    Foreign,
}

impl RunWriter<'_> {
    pub async fn create(&self, name: &str, cause: &Cause, queued: bool) -> Result<Made, ReconcileError> {
        let built = build_run(self.subject, self.spec, name, cause, queued);
        let failed = |verb: &'static str, error| ReconcileError::api(verb, Kind::Run, name, error);
        let run = serde_json::to_vec(&built).map_err(|error| failed("build", kube::Error::SerdeError(error)))?;
        drop(built);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let runs = self.runs();
        match self.ask(Request::new(runs.resource_url()).create(&params, run)).await {
            Ok(seen) => {
                self.keep(seen);
                Ok(Made::Ours)
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let found = match self.ask(Request::new(runs.resource_url()).get(name, &GetParams::default())).await {
                    Ok(found) => found,
                    // Gone again: the next round makes it.
                    Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Made::Known),
                    Err(error) => return Err(failed("read", error)),
                };
                let labels = found.meta.labels.as_ref();
                let is_ours = labels.and_then(|labels| labels.get(PIPELINE_LABEL)) == Some(&self.key.name);
                self.keep(found);
                Ok(if is_ours { Made::Known } else { Made::Foreign })
            }
            Err(error) => Err(failed("create", error)),
        }
    }

    /// Takes a run out of the queue; `cancel` ends it.
    pub async fn patch(&self, name: &str, uid: &str, cancel: bool) -> Result<(), ReconcileError> {
        let mut patch = json!({
            "metadata": {"uid": uid, "annotations": {QUEUED_ANNOTATION: null}},
            "spec": {"suspend": false},
        });
        if cancel {
            patch["spec"]["cancel"] = json!(true);
        }
        let runs = self.runs();
        match self.ask(Request::new(runs.resource_url()).patch(name, &params(), &Patch::Merge(&patch))).await {
            Ok(seen) => self.keep(seen),
            Err(kube::Error::Api(status)) if status.code == 404 => self.forget(name, uid),
            Err(error) => return Err(ReconcileError::api("patch", Kind::Run, name, error)),
        }
        Ok(())
    }

    /// Deletes a run if it is still that one.
    pub async fn delete(&self, name: &str, uid: &str) -> Result<(), ReconcileError> {
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match self.runs().delete(name, &params).await {
            Ok(answer) => match answer.left().filter(|run| run.metadata.deletion_timestamp.is_some()) {
                // A finalizer holds it for a while.
                Some(run) => shown::read_object(Kind::Run, &run).into_iter().for_each(|seen| self.keep(seen)),
                None => self.forget(name, uid),
            },
            Err(kube::Error::Api(status)) if status.code == 404 => self.forget(name, uid),
            Err(error) => return Err(ReconcileError::api("delete", Kind::Run, name, error)),
        }
        Ok(())
    }

    fn runs(&self) -> Api<DynamicObject> {
        objects(self.client, self.key, Kind::Run)
    }

    /// Sends a request that a run answers.
    async fn ask(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Seen, kube::Error> {
        let text = wire::text(self.client, request.map_err(kube::Error::BuildRequest)?).await?;
        shown::read_root(Kind::Run, &text).map_err(kube::Error::SerdeError)
    }

    fn keep(&self, seen: Seen) {
        let name = seen.meta.name.as_deref().unwrap_or_default();
        if let Some((key, record)) = seen.of.filter(|(key, _)| key == self.key) {
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
