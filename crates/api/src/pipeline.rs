//! `Pipeline`: parameters, code, where it runs and its steps.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    cluster::DaskClusterSpec, duration, duration::Duration, retention::Retention, schema, status::PipelineStatus,
    step::Step, storage::Storage,
};

/// A pipeline: typed parameters, the code, the cluster and storage it uses, and a DAG of steps. Applying one whose
/// run-relevant fields changed makes one run, unless it has a schedule or `triggers.onChange` is false.
#[derive(CustomResource, Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "daskade.dev",
    version = "v1alpha1",
    kind = "Pipeline",
    plural = "pipelines",
    shortname = "dpl",
    category = "daskade",
    namespaced,
    status = "PipelineStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Last run","type":"string","jsonPath":".status.lastRun"}"#,
    printcolumn = r#"{"name":"Next","type":"string","jsonPath":".status.nextScheduleTime"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PipelineSpec {
    /// Parameters that a run may set, unique by name, for example `[{name: rows, type: integer, default: 100}]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub params: Vec<Param>,
    /// Where the steps' Python modules come from. Default: only what is installed in the image or environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// Python packages that the steps need, as requirement specifiers, for example `[scikit-learn, "pandas>=2"]`. Local
    /// runs install them into an environment of their own; in a cluster they are checked against the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500), inner(length(min = 1, max = 500)), extend("x-kubernetes-list-type" = "set"))]
    pub requirements: Vec<String>,
    /// The Dask cluster that runs the steps. Default: a cluster of the defaults, made for the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterChoice>,
    /// Where outputs and the run's journal are kept. Default: the cluster's storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// What makes runs besides a schedule and explicit PipelineRuns. Runs of a Pipeline stay when it is changed or deleted:
    /// each has its own copy of the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggers: Option<Triggers>,
    /// Makes runs at times; a local run ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// How long is kept what runs have stored that changes, the schedule and `daskade submit` make of it: their own
    /// `retention`. A run with a `pipelineRef` that others write says its own. A change makes no run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Limits of each run as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<RunLimits>,
    /// Longest times of a run's phases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadlines: Option<Deadlines>,
    /// What happens if a committed output was changed or deleted in storage. `Rerun` (default): its step runs again, once. Steps
    /// that read it run again only if the new output differs. `Fail`: steps that read it fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_output_lost: Option<OnOutputLost>,
    /// Values that a run leaves in its status and that `daskade run` prints: small (16 KiB of JSON each).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub results: Vec<RunResult>,
    /// The steps, unique by name, 1 to 10000. Their order in the list does not matter: references in `args`, `map`,
    /// `when` and `dependsOn` order them.
    #[schemars(length(min = 1, max = 10_000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub steps: Vec<Step>,
    /// Steps that run after all others have ended, whatever happened, also after a failure or a cancel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub finally: Vec<Step>,
}

/// Which Dask cluster runs the steps; exactly one of `template`, `ref` and `address`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.template), has(self.ref), has(self.address)].filter(x, x).size() == 1",
     "message": "give exactly one of template, ref and address"},
    {"rule": "!has(self.tls) || has(self.address)", "message": "tls belongs to address", "fieldPath": ".tls"}
]))]
pub struct ClusterChoice {
    /// A cluster made for the run and deleted with it: the fields of a DaskCluster's spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<DaskClusterSpec>,
    /// Name of a DaskCluster in the same namespace.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub ref_: Option<String>,
    /// Address of a scheduler that others run, for example `tls://dask.example.com:8786`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = ADDRESS_PATTERN))]
    pub address: Option<String>,
    /// Certificates for `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

/// Scheduler addresses: `tcp://host:port` or `tls://host:port`.
pub const ADDRESS_PATTERN: &str = r"^(tcp|tls)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$";

/// Certificates to reach a scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientTls {
    /// Name of a Secret in the same namespace with `ca.crt`, `tls.crt` and `tls.key`. Local runs take `--tls-ca`,
    /// `--tls-cert` and `--tls-key` instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub secret_ref: Option<String>,
}

/// What makes runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Triggers {
    /// A changed spec makes exactly one run. Default: true, unless `schedule` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_change: Option<bool>,
}

/// When runs are made; exactly one of `cron` and `interval`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.cron) != has(self.interval)", "message": "give exactly one of cron and interval"},
    {"rule": "!has(self.start) || has(self.interval)", "message": "start belongs to interval", "fieldPath": ".start"},
    {"rule": "!has(self.timeZone) || has(self.cron)", "message": "timeZone belongs to cron", "fieldPath": ".timeZone"}
]))]
pub struct Schedule {
    /// Five fields (minute, hour, day of month, month, day of week) or a macro (`@hourly`, `@daily`, `@weekly`, `@monthly`,
    /// `@yearly`), for example `*/5 * * * *`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub cron: Option<String>,
    /// Time from one run to the next, at least one second, for example `1m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub interval: Option<Duration>,
    /// First time of `interval` (RFC 3339), for example `2026-01-01T00:00:00Z`. Default: when the Pipeline was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub start: Option<String>,
    /// Time zone of `cron` (IANA name), for example `Europe/Berlin`. Default: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = TIME_ZONE_PATTERN))]
    pub time_zone: Option<String>,
    /// When a run that the schedule or a change made is still active: `Forbid` (default: the new one is left out),
    /// `Allow`, `Replace` (the old one is cancelled) or `Queue` (the new one waits, suspended, until the old one ends).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_policy: Option<ConcurrencyPolicy>,
    /// A run that could not start within this time of its moment is left out, for example `10m`. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub starting_deadline: Option<Duration>,
    /// Moments missed while the operator was down that are made up for, 0 to 100, latest first; with `Forbid` and
    /// `Replace` at most one. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub catch_up: Option<u32>,
    /// No new runs by the schedule while true; what it missed then is not made up for. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// Succeeded runs of the schedule that are kept, 0 to 1000. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub successful_runs_history_limit: Option<u32>,
    /// Failed and cancelled runs of the schedule that are kept, 0 to 1000. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub failed_runs_history_limit: Option<u32>,
}

/// Names of time zones.
pub const TIME_ZONE_PATTERN: &str = "^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$";

/// When a run that the schedule or a change made is still active: `Forbid` (default: the new one is left out), `Allow`,
/// `Replace` (the old one is cancelled) or `Queue` (the new one waits, suspended, until the old one ends).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ConcurrencyPolicy {
    /// Runs overlap.
    Allow,
    /// The new run is left out.
    #[default]
    Forbid,
    /// The old run is cancelled.
    Replace,
    /// The new run waits until the old one has ended; at most 100 wait, in the order of their moments.
    Queue,
}

/// Limits of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunLimits {
    /// Steps and items that may run at once, 1 to 100000. Default: as many as fit the workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub parallelism: Option<u32>,
    /// Most that all running steps together hold of a resource, for example `{DB: 4}`. A name that no worker offers
    /// is then a limit across the run alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::dask_resources")]
    pub resources: BTreeMap<String, f64>,
    /// Start nothing more after the first failure that counts. Default: false (independent branches go on).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fail_fast: bool,
    /// Most items of one mapped step, 1 to 1000000. Default: 100000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_items: Option<u32>,
}

/// What happens if a committed output was changed or deleted in storage. `Rerun` (default): its step runs again, once. Steps
/// that read it run again only if the new output differs. `Fail`: steps that read it fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum OnOutputLost {
    /// Its step runs again, once.
    #[default]
    Rerun,
    /// Steps that read it fail.
    Fail,
}

/// Longest times of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deadlines {
    /// From the start of the run to its first step, above zero, for example `15m`: time for cluster and images.
    /// Default: 30m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub start: Option<Duration>,
    /// From the start of the run to its end, above zero, for example `6h`; then it is cancelled and has failed with
    /// reason `DeadlineExceeded`. `finally` steps still run. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub active: Option<Duration>,
    /// For the `finally` steps, from the moment at which all others have ended, above zero, for example `10m`; then they are
    /// stopped, and the run has failed with reason `DeadlineExceeded`. Counts anew after the loss of a scheduler or of the
    /// operator. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub finally: Option<Duration>,
}

/// A named result of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunResult {
    /// Name, for example `total`.
    #[schemars(schema_with = "schema::identifier")]
    pub name: String,
    /// Its value, usually a reference to an output: `$(steps.total.output)`. Any JSON.
    #[schemars(schema_with = "schema::any")]
    pub value: Value,
}

/// A typed parameter.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Param {
    /// Name, as in `$(params.<name>)`: letters, digits and underscores, not beginning with a digit.
    #[schemars(schema_with = "schema::identifier")]
    pub name: String,
    /// Type of its values. Default: string.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<ParamType>,
    /// Value when a run sets none, of the declared type. Without a default every run must set it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "schema::present")]
    #[schemars(schema_with = "schema::any")]
    pub default: Option<Value>,
    /// The values allowed, of the declared type, for example `[small, large]`. Default: any.
    #[serde(default, rename = "enum", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::any_list")]
    pub enum_: Option<Vec<Value>>,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
}

/// Type of its values. Default: string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ParamType {
    /// Text.
    #[default]
    String,
    /// Whole number of 64 bits.
    Integer,
    /// Number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// List.
    Array,
    /// Mapping.
    Object,
}

/// URLs of archives that are accepted: no part of the path is empty, `.` or `..`, which would mean another place to some.
pub const ARCHIVE_URL_PATTERN: &str = concat!(
    r"^(s3|gs)://[a-z0-9][a-z0-9._-]{1,221}[a-z0-9]",
    r"(/([^./\x00-\x20\x7f?#][^/\x00-\x20\x7f?#]*|\.[^./\x00-\x20\x7f?#][^/\x00-\x20\x7f?#]*|\.\.[^/\x00-\x20\x7f?#]+))+$",
    r"|^file://",
    r"(/([^./\x00-\x1f\x7f?#][^/\x00-\x1f\x7f?#]*|\.[^./\x00-\x1f\x7f?#][^/\x00-\x1f\x7f?#]*|\.\.[^/\x00-\x1f\x7f?#]+))+$"
);

/// Source of the steps' modules: exactly one of files, path, configMap and url.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.files), has(self.path), has(self.configMap), has(self.url)].filter(x, x).size() == 1",
     "message": "give exactly one of files, path, configMap and url"},
    {"rule": "!has(self.sha256) || has(self.url)", "message": "sha256 belongs to url", "fieldPath": ".sha256"}
]))]
pub struct Code {
    /// Modules in the manifest: file name to content, for example `{flow.py: "def inc(x): return x + 1"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::files")]
    pub files: Option<BTreeMap<String, String>>,
    /// A folder (or one file) beside the manifest, packed by the command line; relative to the manifest's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub path: Option<String>,
    /// Name of a ConfigMap in the same namespace whose keys are file names, for example `flow.py`. It is copied when a run
    /// starts: later edits count for later runs only. Not in local runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub config_map: Option<String>,
    /// A zip or tar.gz archive on S3 or in a folder, for example `s3://bucket/code/flow.tar.gz`: at most 64 MiB, 256 MiB
    /// unpacked. The run's own scheduler fetches it when a run starts, from the service and with the identity of the storage,
    /// and keeps a copy: what is there later counts for later runs only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = ARCHIVE_URL_PATTERN))]
    pub url: Option<String>,
    /// SHA-256 of the archive at `url`, 64 hexadecimal digits: anything else there is refused. Default: whatever is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
}
