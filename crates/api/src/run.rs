//! `PipelineRun`: one run of a pipeline.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::retention::Retention;
use super::{
    duration::Duration,
    pipeline::{Deadlines, PipelineSpec},
    schema,
    status::PipelineRunStatus,
};

/// One run of a pipeline. The spec that it runs is frozen when it starts; afterwards only `suspend`, `cancel` and
/// `ttlAfterFinished` may change.
#[derive(CustomResource, Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "daskade.dev",
    version = "v1alpha1",
    kind = "PipelineRun",
    plural = "pipelineruns",
    shortname = "dpr",
    category = "daskade",
    namespaced,
    status = "PipelineRunStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Progress","type":"string","jsonPath":".status.progress"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.steps.failed"}"#,
    printcolumn = r#"{"name":"Pipeline","type":"string","priority":1,"jsonPath":".metadata.labels['daskade\\.dev/pipeline']"}"#,
    printcolumn = r#"{"name":"Started","type":"date","jsonPath":".status.startedAt"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.pipelineRef) != has(self.pipelineSpec)", "message": "give exactly one of pipelineRef and pipelineSpec"},
    {"rule": "!has(self.pipelineSpec) || !(has(self.pipelineSpec.triggers) || has(self.pipelineSpec.schedule) || has(self.pipelineSpec.retention))",
     "message": "triggers and schedule belong to a Pipeline, not to one run; retention stands beside pipelineSpec", "fieldPath": ".pipelineSpec"},
    {"rule": "has(self.pipelineRef) == has(oldSelf.pipelineRef) && (!has(self.pipelineRef) || self.pipelineRef == oldSelf.pipelineRef)",
     "message": "pipelineRef cannot be changed; make another run"},
    {"rule": "has(self.pipelineSpec) == has(oldSelf.pipelineSpec) && (!has(self.pipelineSpec) || self.pipelineSpec == oldSelf.pipelineSpec)",
     "message": "pipelineSpec cannot be changed; make another run"},
    {"rule": "has(self.params) == has(oldSelf.params) && (!has(self.params) || self.params == oldSelf.params)",
     "message": "params cannot be changed; make another run"},
    {"rule": "has(self.select) == has(oldSelf.select) && (!has(self.select) || self.select == oldSelf.select)",
     "message": "select cannot be changed; make another run"},
    {"rule": "has(self.reuse) == has(oldSelf.reuse) && (!has(self.reuse) || self.reuse == oldSelf.reuse)",
     "message": "reuse cannot be changed; make another run"},
    {"rule": "has(self.deadlines) == has(oldSelf.deadlines) && (!has(self.deadlines) || self.deadlines == oldSelf.deadlines)",
     "message": "deadlines cannot be changed; make another run"},
    {"rule": "has(self.retention) == has(oldSelf.retention) && (!has(self.retention) || self.retention == oldSelf.retention)",
     "message": "retention cannot be changed; make another run"},
    {"rule": "!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)", "message": "a cancel cannot be taken back"}
]))]
pub struct PipelineRunSpec {
    /// Name of a Pipeline in the same namespace (or the same files). Exactly one of `pipelineRef` and `pipelineSpec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub pipeline_ref: Option<String>,
    /// A pipeline for this run alone: the fields of a Pipeline's spec, without `triggers`, `schedule` and
    /// `retention`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_spec: Option<PipelineSpec>,
    /// Values of parameters, by name, for example `{rows: 10}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::params")]
    pub params: BTreeMap<String, Value>,
    /// Run a part of the pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Select>,
    /// Take outputs of earlier runs where nothing changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
    /// While true no step runs: running ones are stopped and run again afterwards, and a cluster that was made for the run is
    /// given back. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// True ends the run: running steps are stopped, `finally` steps run. Cannot be taken back. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    /// Longest times of the run's phases, each in place of the pipeline's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadlines: Option<Deadlines>,
    /// The object (not what it has stored) is deleted this long after the end, for example `7d`; not before `retention` is
    /// carried out. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished: Option<Duration>,
    /// How long what the run has stored is kept. Local runs keep everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// Which steps to run; `finally` steps do in any case. Parts that are given must all hold. What the chosen steps need from
/// others is loaded from an earlier run: that of `reuse.run`, or the latest one of the pipeline that has all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Select {
    /// Only these steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::step_names")]
    pub only: Vec<String>,
    /// These steps and all that come after them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::step_names")]
    pub from: Vec<String>,
    /// These steps and all that come before them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::step_names")]
    pub to: Vec<String>,
    /// Steps that read these inputs (paths, as written or with expressions filled in), and all that come after them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 1024)))]
    pub from_inputs: Vec<String>,
    /// Steps with any of these tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::tags")]
    pub tags: Vec<String>,
    /// Versions of objects that are read in place of those that are there, by the name of an input (`inputs` of a step) or by
    /// path: on S3 the version id, for example `{model: 3HL4kqtJlcpXroDTDmJ}`. A folder keeps none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 1000))]
    pub load_versions: BTreeMap<String, String>,
}

/// Reuse of earlier outputs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reuse {
    /// `None` (default) or `Missing`: run only the steps whose output no earlier run has made from the same inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ReuseMode>,
    /// Name or UID of the run whose outputs are taken. Default: the earlier runs of the pipeline, the newest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub run: Option<String>,
}

/// `None` (default) or `Missing`: run only the steps whose output no earlier run has made from the same inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ReuseMode {
    /// Nothing.
    #[default]
    None,
    /// Whatever exists; the rest runs.
    Missing,
}
