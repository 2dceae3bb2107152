//! Writes about a run: its cluster, its finalizer, and its end.

use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use serde_json::json;

use crate::apiserver::apply::Writer;
use crate::apiserver::cache::Cache;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Kind;
use crate::apiserver::shown::{self, FINALIZER};
use crate::pipelinerun::revision::run_owner;
use crate::queue::Key;
use api::cluster::DaskClusterSpec;
use decide::cluster::names;

impl Writer<'_> {
    /// Makes the DaskCluster of a run, unless it is there. `queue` is Kueue's, from the run's label.
    pub async fn make_cluster(
        &self,
        spec: &DaskClusterSpec,
        queue: Option<&str>,
        clusters: &Cache,
    ) -> Result<(), ReconcileError> {
        let name = &self.key.name;
        let failed = |error| ReconcileError::api("create", Kind::Cluster, name, error);
        let mut object = json!({
            "apiVersion": api::API_VERSION,
            "kind": "DaskCluster",
            "metadata": {
                "name": name,
                "labels": {
                    "app.kubernetes.io/name": "daskade",
                    names::MANAGED_BY.0: names::MANAGED_BY.1,
                    "daskade.dev/run": name,
                },
                "ownerReferences": [run_owner(name, self.uid)],
            },
            "spec": spec,
        });
        if let Some(queue) = queue {
            object["metadata"]["labels"][names::QUEUE_LABEL] = json!(queue);
        }
        let object: DynamicObject =
            serde_json::from_value(object).map_err(|error| failed(kube::Error::SerdeError(error)))?;
        let params = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
        let made = match self.objects(Kind::Cluster).create(&params, &object).await {
            // Whose it is shows when the watch has it.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => return Ok(()),
            made => made.map_err(failed)?,
        };
        if let Some((key, record)) = shown::read_object(Kind::Cluster, &made).and_then(|seen| seen.kept) {
            clusters.put(Kind::Cluster, &key, name, record);
        }
        Ok(())
    }

    /// Deletes the DaskCluster of a run, if it is still that one.
    pub async fn delete_cluster(&self, uid: &str, clusters: &Cache) -> Result<(), ReconcileError> {
        self.delete_root(Kind::Cluster, uid, clusters).await
    }

    /// Deletes the run itself.
    pub async fn delete_run(&self) -> Result<(), ReconcileError> {
        self.delete_root(Kind::Run, self.uid, self.cache).await
    }

    async fn delete_root(&self, kind: Kind, uid: &str, cache: &Cache) -> Result<(), ReconcileError> {
        let name = &self.key.name;
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::background() };
        match self.objects(kind).delete(name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(ReconcileError::api("delete", kind, name, error)),
            Ok(_) => {}
        }
        // The watch may lag: without this mark the next reconciliation would delete it again.
        cache.mark_deleted(self.key, uid);
        Ok(())
    }

    /// Puts our finalizer on the run, or takes it away. `version` is the one in which `others` were seen.
    pub async fn set_finalizer(&self, wanted: bool, others: &[String], version: &str) -> Result<(), ReconcileError> {
        let name = &self.key.name;
        let mut finalizers: Vec<&str> = others.iter().map(String::as_str).filter(|other| *other != FINALIZER).collect();
        if wanted {
            finalizers.push(FINALIZER);
        }
        let patch = json!({"metadata": {"uid": self.uid, "resourceVersion": version, "finalizers": finalizers}});
        let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.objects(Kind::Run);
        let request = Request::new(api.resource_url()).patch(name, &params, &Patch::Merge(&patch));
        self.keep_root(Kind::Run, request, |error| ReconcileError::api("patch", Kind::Run, name, error)).await
    }
}

/// The DaskCluster that has a run's name, in the cache's words: its uid, whether it is the run's, and whether it goes.
pub(crate) fn own_cluster(clusters: &Cache, key: &Key, uid: &str) -> Option<(String, bool, bool)> {
    let record = clusters.entry(key)?.root?;
    let value = record.json();
    let owners = value.pointer("/metadata/ownerReferences").and_then(serde_json::Value::as_array);
    let ours = owners.into_iter().flatten().any(|owner| owner["uid"] == uid);
    let goes = value.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null());
    Some((record.uid, ours, goes || record.deleted))
}
