//! The ControllerRevision of a run: what it is carried out from, written down once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{GetParams, PostParams};
use kube::core::Request;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::apiserver::apply::Writer;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Kind;
use crate::apiserver::room::{self, Charge};
use crate::apiserver::wire;
use api::cluster::DaskClusterSpec;
use decide::cluster::names;
use decide::pipelinerun::admit::RunRevision;
use decide::pipelinerun::facts::{Frozen, Place};
use decide::pipelinerun::retention::Due;
use driver::Sweep;
use lower::Plan;
use run_model::{CodeSource, Moment, Patience, Requirements, RunSpec, START_DEADLINE, Start, StorageSpec, archive};

/// A revision as it was stored.
#[derive(Debug)]
pub(crate) struct StoredRevision {
    pub revision: RunRevision,
    /// Name of the ControllerRevision.
    pub name: String,
    pub since: Timestamp,
    weight: usize,
    in_progress: usize,
    charge: Option<Charge>,
}

/// Name of the ControllerRevision of a run: another run of the same name has another one.
pub(crate) fn revision_name(run: &str, uid: &str) -> String {
    format!("{run}-{}", uid.get(..8).unwrap_or(uid))
}

/// Why a ControllerRevision is not there.
#[derive(Debug)]
pub(crate) enum RevisionError {
    /// It never will be: the run cannot be carried out. Reads after "it".
    Unusable(String),
    /// It could not be read or written now.
    Api(ReconcileError),
}

impl Writer<'_> {
    /// Stores the revision of a run, unless one is stored already, which then counts.
    pub async fn store_revision(&self, revision: &RunRevision) -> Result<Arc<StoredRevision>, RevisionError> {
        let name = revision_name(&self.key.name, self.uid);
        let failed = |error| RevisionError::Api(ReconcileError::api("create", Kind::Revision, &name, error));
        let metadata = json!({
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "daskade",
                names::MANAGED_BY.0: names::MANAGED_BY.1,
                "daskade.dev/run": self.key.name,
            },
            "ownerReferences": [run_owner(&self.key.name, self.uid)],
        });
        let made = Made { api_version: "apps/v1", kind: "ControllerRevision", metadata, revision: 1, data: revision };
        let object = serde_json::to_vec(&made);
        let object = object.map_err(|error| failed(kube::Error::SerdeError(error)))?;
        let params = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
        let request = Request::new(self.objects(Kind::Revision).resource_url()).create(&params, object);
        let request = request.map_err(|error| failed(kube::Error::BuildRequest(error)))?;
        match wire::text(self.client, request).await {
            Ok(stored) => read(&name, self.uid, &stored),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => self.read_revision(&name).await,
            Err(error) => Err(failed(error)),
        }
    }

    /// Reads the revision of a run.
    pub async fn read_revision(&self, name: &str) -> Result<Arc<StoredRevision>, RevisionError> {
        let failed = |error| RevisionError::Api(ReconcileError::api("read", Kind::Revision, name, error));
        let request = Request::new(self.objects(Kind::Revision).resource_url()).get(name, &GetParams::default());
        let request = request.map_err(|error| failed(kube::Error::BuildRequest(error)))?;
        match wire::text(self.client, request).await {
            Ok(found) => read(name, self.uid, &found),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let why = format!("needs ControllerRevision {name}, which was deleted; create another run");
                Err(RevisionError::Unusable(why))
            }
            Err(error) => Err(failed(error)),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Value,
    revision: u32,
    data: &'a RunRevision,
}

#[derive(Deserialize)]
struct Found<'a> {
    metadata: Stamp,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stamp {
    creation_timestamp: Option<Time>,
}

/// The reference of what a run owns.
pub(crate) fn run_owner(name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": api::API_VERSION, "kind": "PipelineRun", "name": name, "uid": uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// What a run takes while it is in progress.
pub(crate) fn in_progress(revision: &RunRevision) -> usize {
    serde_json::to_string(revision).map_or(0, |json| room::in_progress(&json))
}

fn read(name: &str, uid: &str, stored: &str) -> Result<Arc<StoredRevision>, RevisionError> {
    let unread = |error: serde_json::Error| {
        RevisionError::Unusable(format!("has a ControllerRevision {name} that this version cannot read: {error}"))
    };
    let Found { metadata, data } = serde_json::from_str(stored).map_err(unread)?;
    let data = data.map_or("null", RawValue::get);
    let revision: RunRevision = serde_json::from_str(data).map_err(unread)?;
    if revision.run.uid != uid {
        let why = format!("has a ControllerRevision {name} that is of another run; it is not touched");
        return Err(RevisionError::Unusable(why));
    }
    let since = metadata.creation_timestamp.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let charge = room::REVISIONS.charge(room::size(data));
    let (weight, in_progress) = (room::weight(data), room::in_progress(data));
    Ok(Arc::new(StoredRevision { revision, name: name.to_owned(), since, weight, in_progress, charge }))
}

impl StoredRevision {
    /// Whether there is room to keep it.
    pub fn is_kept(&self) -> bool {
        self.charge.is_some()
    }

    /// What it takes while it is looked at.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// What it takes while its run is in progress.
    pub fn in_progress(&self) -> usize {
        self.in_progress
    }

    /// What decisions need of it.
    pub fn frozen(&self) -> Frozen {
        let deadlines = self.revision.run.pipeline.deadlines.as_ref();
        let start = deadlines.and_then(|deadlines| deadlines.start.as_ref()).map(|span| span.to_std());
        Frozen {
            revision: self.name.clone(),
            since: self.since,
            place: self.revision.place.clone(),
            storage_url: self.revision.storage.url.trim_end_matches('/').to_owned(),
            storage_secret: self.revision.run.cluster.storage.as_ref().and_then(|storage| storage.secret_ref.clone()),
            start: start.unwrap_or(START_DEADLINE),
            active: deadlines.and_then(|deadlines| deadlines.active.as_ref()).map(|span| span.to_std()),
            finally: match deadlines.and_then(|deadlines| deadlines.finally.as_ref()) {
                _ if self.revision.run.pipeline.finally.is_empty() => Some(Duration::ZERO),
                span => span.map(|span| span.to_std()),
            },
        }
    }

    /// How what the run has stored is removed. `ended`: uids of runs that are known to have ended.
    pub fn sweep(&self, due: Due, ended: BTreeSet<String>) -> Sweep {
        let RunRevision { run, .. } = &self.revision;
        let pipeline = run.pipeline_name.clone();
        let (storage, Due { outputs, record }) = (self.storage(), due);
        Sweep { uid: run.uid.clone(), pipeline, storage, outputs, record, ended }
    }

    fn storage(&self) -> StorageSpec {
        let storage = &self.revision.storage;
        StorageSpec {
            url: storage.url.trim_end_matches('/').to_owned(),
            endpoint: storage.endpoint.clone(),
            region: storage.region.clone(),
        }
    }

    /// What the driver needs, or why there is nothing to drive; that reads after "it". `begun`: a step was seen running, so that the time to the first one does not count any more.
    /// `steps`: how many the operator allows.
    pub fn run_spec(&self, now: Timestamp, begun: bool, start: Start, steps: Option<u32>) -> Result<RunSpec, String> {
        let RunRevision { run, .. } = &self.revision;
        let mut plan: Plan = run.plan("spec").map_err(|problems| {
            let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
            format!("is refused by this version of the operator: {}", texts.join("; "))
        })?;
        plan.limits.max_tasks = steps.unwrap_or(u32::MAX);
        let (spec, spec_digest) = run.to_bytes().map_err(|error| format!("cannot be written down: {error}"))?;
        let code = run.pipeline.code.clone().unwrap_or_default();
        let code = match code.url {
            Some(url) => CodeSource::Archive { url, sha256: code.sha256 },
            None => {
                let packed = archive::pack_files(&code.files.unwrap_or_default());
                CodeSource::Packed(packed.map_err(|error| format!("has code that cannot be used: failed to {error}"))?)
            }
        };
        let frozen = self.frozen();
        let passed = Duration::try_from(now.duration_since(self.since)).unwrap_or_default();
        let left = |span: Duration| span.saturating_sub(passed);
        let finally = run.pipeline.deadlines.as_ref().and_then(|deadlines| deadlines.finally);
        Ok(RunSpec {
            uid: run.uid.clone(),
            name: run.name.clone(),
            plan,
            spec,
            spec_digest,
            code,
            requirements: Requirements {
                wanted: run.pipeline.requirements.clone(),
                same_image: !matches!(self.revision.place, Place::Address { .. }) && has_one_image(&run.cluster),
            },
            image: run.cluster.image.clone(),
            pipeline: run.pipeline_name.clone(),
            reuse: run.reuse(),
            storage: self.storage(),
            start,
            reopen: false,
            logs: false,
            ignore_resources: false,
            deadline: frozen.active.map(left),
            start_deadline: (!begun).then(|| left(frozen.start)),
            finally_deadline: finally.map(|span| span.to_std()),
            patience: Patience { open: Duration::MAX, first: FIRST },
            time: Moment::of(now),
        })
    }
}

/// Scheduler and workers are of the same image.
fn has_one_image(cluster: &DaskClusterSpec) -> bool {
    cluster.workers.iter().all(|group| group.image.is_none() || group.image == cluster.image)
}

/// How long a run that was never open waits for a scheduler that does not answer, before that is told and tried anew.
const FIRST: Duration = Duration::from_secs(20);
