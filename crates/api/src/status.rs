//! Statuses: bounded views (at most 64 KiB), written by the operator only.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema;

/// What the operator knows of a DaskCluster.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaskClusterStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: `Ready`, `SchedulerReady`, `WorkersReady`, `Reconciling`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Address of the scheduler inside the Kubernetes cluster, for example `tls://name-scheduler.ns:8786`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Workers that the scheduler knows and that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers_ready: Option<u32>,
    /// Workers wanted now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers_desired: Option<u32>,
    /// GPUs of the workers that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus_ready: Option<u32>,
    /// Workers of each group, wanted and ready, and why some are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub groups: Vec<GroupStatus>,
    /// Versions that the scheduler reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
    /// Certificates in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsStatus>,
    /// Since when nothing has used the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub idle_since: Option<String>,
    /// Highest number that a pod of this cluster has had at the end of its name; the next pod gets a higher one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
}

/// Workers of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Name of the group.
    #[schemars(schema_with = "schema::group_name")]
    pub name: String,
    /// Workers wanted now.
    pub desired: u32,
    /// Workers ready.
    pub ready: u32,
    /// Workers that drain before they go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<u32>,
    /// Workers of an older spec, to be replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outdated: Option<u32>,
    /// GPUs of the workers that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// Why workers are missing, for example `Unschedulable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why workers are missing, in words, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// Versions in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// Version of Dask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dask: Option<String>,
    /// Version of Python.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    /// Digest of daskade's runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

/// Certificates of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsStatus {
    /// SHA-256 of the authority's certificate, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_fingerprint: Option<String>,
    /// When the certificates in use expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub expires: Option<String>,
}

/// What the operator knows of a Pipeline.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PipelineStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: `Accepted`, `Reconciling`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Versioned hash of the run-relevant fields for which a run was last made, for example `v1:3f2a…`; while a change
    /// makes no runs, of those that are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_triggered: Option<String>,
    /// Name of the latest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<String>,
    /// Moment of the schedule for which a run was last made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub last_schedule_time: Option<String>,
    /// Next moment of the schedule; earlier ones are decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub next_schedule_time: Option<String>,
    /// Names of active runs, at most 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub active: Vec<String>,
}

/// What the operator knows of a PipelineRun.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PipelineRunStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: `Succeeded` (True, False, or Unknown while it runs), `Reconciling`, `Stalled`; with `spec.retention`, when
    /// its time has come, `Removed`; on a shared cluster, when the operator has ended or suspended the run, `Released`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// One word for the state: `Pending`, `Running`, `Suspended`, `Succeeded`, `Failed` or `Cancelled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// When it was first open on a scheduler, so that its first step could start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub finished_at: Option<String>,
    /// Steps and items by state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<StepCounts>,
    /// Done of total, for people: `120/300`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Results that `spec.results` of the pipeline names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::any_map")]
    pub results: BTreeMap<String, Value>,
    /// The first failures, at most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub failures: Vec<StepFailure>,
    /// Why steps wait, at most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub waiting: Vec<StepWaiting>,
    /// Cluster that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Where journal, outputs and logs are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_url: Option<String>,
    /// ControllerRevision with the spec it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What was removed from the storage, as `spec.retention` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Removed>,
}

/// What was removed of a run's storage.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// When its outputs were removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub outputs_at: Option<String>,
    /// Outputs that stayed, since other runs have taken them over. They go when the last of those runs is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs_kept: Option<u64>,
    /// When journal, logs and code were removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub logs_at: Option<String>,
}

/// Steps and items by state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepCounts {
    /// All that are known so far.
    pub total: u32,
    /// Ended well.
    pub done: u32,
    /// Running now.
    pub running: u32,
    /// Failed for good.
    pub failed: u32,
    /// Not run.
    pub skipped: u32,
    /// Taken from earlier runs.
    pub cached: u32,
}

/// A step that failed for good.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepFailure {
    /// Name of the step.
    pub step: String,
    /// Item of a mapped step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<u32>,
    /// Attempts made.
    pub attempts: u32,
    /// Class of the failure: `app`, `oom`, `timeout`, `preempted`, `infra` or `data`.
    pub class: String,
    /// Type and text, capped, and the command that shows more.
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// Steps that wait for something that is not a step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepWaiting {
    /// Name of the step.
    pub step: String,
    /// Items that wait.
    pub count: u32,
    /// Reason, for example `NoWorkers`.
    pub reason: String,
    /// What it waits for.
    #[schemars(length(max = 1024))]
    pub message: String,
}
