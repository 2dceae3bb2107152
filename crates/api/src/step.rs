//! One step of a pipeline.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{args::Args, duration, duration::Duration, schema};

/// One node of the DAG: a Python callable or script with its arguments, when it runs, where, and what it leaves.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.call) != has(self.script)", "message": "give exactly one of call and script"}
]))]
pub struct Step {
    /// Name, unique among `steps` and `finally`: a DNS label of at most 40 characters, for example `train`.
    #[schemars(schema_with = "schema::step_name")]
    pub name: String,
    /// Name for people, shown in progress, the dashboard and reports; may hold any text. Default: `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub display_name: Option<String>,
    /// What to call, as `module:function` (attributes with dots after the colon), for example `model:fit` or
    /// `builtins:sum`. Exactly one of `call` and `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 500), regex(pattern = CALL_PATTERN))]
    pub call: Option<String>,
    /// Python source run in place of a callable. Arguments are variables of the same names; the value of the variable
    /// `output` is the step's output. `$(…)` is not expanded in it. Exactly one of `call` and `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 262_144))]
    pub script: Option<String>,
    /// Arguments: a list (positional) or a mapping (by keyword), for example `[1, $(params.n)]` or
    /// `{data: $(steps.load.output), depth: 3}`. `$(…)` may stand anywhere inside nested lists and mappings; a text that
    /// is one expression keeps the expression's type; `$$(` is a literal `$(`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Args>,
    /// Fans the step out: for each name a list, whose elements become the keyword argument of that name, one item per
    /// element. A list is a literal, a parameter or `$(range(…))`, or an earlier step's output (`$(steps.inc.output)`,
    /// element by element). Several lists are zipped and must be of equal length. At least one entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::map_sources")]
    pub map: Option<BTreeMap<String, Value>>,
    /// Objects that other systems or earlier runs left in storage, by keyword argument, for example
    /// `{model: {path: models/current.pkl}}`. Each is read when the step starts; one that is not there is a failure of
    /// class `data`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 100))]
    pub inputs: BTreeMap<String, Input>,
    /// Steps that must be finished (or skipped) before this one starts although none of their outputs is used, for
    /// example `[load]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::step_names")]
    pub depends_on: Vec<String>,
    /// CEL condition over `params`, `run`, `item` and `steps.<name>.result`; the step is skipped when it is false, for
    /// example `params.n > 10`. With `map` and `item` in it, each item is decided alone. Default: runs always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub when: Option<String>,
    /// What to do when an attempt fails. Default: no retry. The loss of a worker is not a failure of the step and is
    /// not charged here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Longest time of one attempt, above zero, for example `2h`; then it is ended and has failed with class `timeout`.
    /// Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub timeout: Option<Duration>,
    /// Abstract Dask resources that one attempt holds while it runs, passed to Dask as they are, for example
    /// `{GPU: 1}`. A step that asks for no GPU does not go to a GPU worker. A request that no worker group can ever meet
    /// is refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::dask_resources")]
    pub resources: BTreeMap<String, f64>,
    /// Run only on workers of this group, for example `gpu`. Default: any group that fits `resources`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::group_name")]
    pub worker_group: Option<String>,
    /// Where the code runs: `process` (default: a child process of the worker; a timeout really ends it, a crash is
    /// the step's own) or `thread` (inside the worker: faster start, but cannot be ended and shares the interpreter).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Names of the outputs, when there are several: the callable then returns a mapping with these keys, and each is
    /// referred to as `steps.<step>.output.<name>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub outputs: Vec<Output>,
    /// How and where the output is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputStore>,
    /// Whether earlier runs' outputs of this step may be reused (`PipelineRun.spec.reuse`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// The run does not fail when this step fails; steps that use its output whole see `None` in its place.
    /// Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continue_on_failure: bool,
    /// Among steps that are ready, a higher number goes first: −1000000 to 1000000. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: Option<i32>,
    /// Limits of this step alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<StepLimits>,
    /// Environment variables of the step's process, for example `[{name: OMP_NUM_THREADS, value: "1"}]`.
    /// Only with `isolation: process`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<StepEnv>,
    /// Labels to select steps by, for example `[nightly]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::tags")]
    pub tags: Vec<String>,
}

/// Module and attribute: `package.module:function` or `module:Class.method`.
pub const CALL_PATTERN: &str =
    r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$";

/// An object in storage that a step takes as an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// Path below the pipeline's storage, or a whole URL (`s3://`, `gs://`, `file:///`) that the storage's identity
    /// reaches; may hold `$(…)`, for example `models/$(params.name).pkl`.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
    /// Form of the object. Default: by the ending of the path: `.pkl`, `.pickle`, `.json`, `.parquet` or `.npy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serializer: Option<Serializer>,
}

/// Retries of a step, or of each item of a mapped step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Attempts after the first, 0 to 100, for example 3.
    #[schemars(range(min = 0, max = 100))]
    pub limit: u32,
    /// Wait before each retry. Default: 1s, doubled each time, at most 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// Share of the wait that is left to chance, 0 to 1, so that many items do not return at once. Default: 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub jitter: Option<f64>,
    /// Classes of failure to retry, for example `[timeout, oom]`. Default: `app`, `oom`, `timeout`, `preempted` and
    /// `infra`; `data` only if named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 6), extend("x-kubernetes-list-type" = "set"))]
    pub on: Option<Vec<FailureClass>>,
}

/// How the wait between retries grows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// First wait, for example `10s`. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// Each wait is the one before times this, 1 to 10, for example 2. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 10.0))]
    pub factor: Option<f64>,
    /// Longest wait, for example `5m`. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<Duration>,
}

/// Why an attempt failed, as retries and reports tell causes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum FailureClass {
    /// The step's own code raised.
    App,
    /// It took more memory than its share.
    Oom,
    /// It ran longer than `timeout`.
    Timeout,
    /// Its worker was taken away.
    Preempted,
    /// Storage, network or cluster failed.
    Infra,
    /// An input could not be read or an output not be written as declared.
    Data,
}

/// Where the code runs: `process` (default: a child process of the worker; a timeout really ends it, a crash is the step's
/// own) or `thread` (inside the worker: faster start, but cannot be ended and shares the interpreter).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Isolation {
    /// In a child process of the worker.
    #[default]
    Process,
    /// In a thread of the worker.
    Thread,
}

/// One named output of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Key in the mapping that the callable returns, for example `model`.
    #[schemars(schema_with = "schema::identifier")]
    pub name: String,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub description: Option<String>,
}

/// Form and place of a step's output.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutputStore {
    /// Form: `pickle` (default), `json`, `parquet` (data frames) or `numpy` (arrays).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serializer: Option<Serializer>,
    /// A path below the pipeline's storage where the output is kept under a name of its own, besides the run's record;
    /// may hold `$(…)`, for example `models/$(run.name)/model.pkl`. It is written before the output counts. With `map`
    /// it must name the item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path: Option<String>,
    /// What to do when something is at `path` already: `Fail` (default), `Replace` or `Skip` (the step is not called,
    /// what is there is its output).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_exists: Option<IfExists>,
}

/// Form of the object: `pickle`, `json`, `parquet` (data frames) or `numpy` (arrays). Default: of an input by the ending of
/// its path, of an output `pickle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Serializer {
    /// Python's pickle: any value, readable by Python only.
    #[default]
    Pickle,
    /// JSON text.
    Json,
    /// Parquet, for data frames.
    Parquet,
    /// NumPy's npy, for arrays.
    Numpy,
}

impl Serializer {
    /// The name as it stands in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pickle => "pickle",
            Self::Json => "json",
            Self::Parquet => "parquet",
            Self::Numpy => "numpy",
        }
    }
}

/// What to do when an output's path is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum IfExists {
    /// The step fails.
    #[default]
    Fail,
    /// The object is replaced.
    Replace,
    /// The step is not called; the object is its output.
    Skip,
}

/// Reuse of a step's output by later runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// Whether the output may be reused. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// A text that becomes part of the content key: changing it makes earlier outputs stale, for example `v2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub version: Option<String>,
    /// Outputs older than this are not reused, for example `7d`. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub max_age: Option<Duration>,
}

/// Limits of one step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepLimits {
    /// Items of this step that may run at once, 1 to 100000. Default: as many as fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub parallelism: Option<u32>,
}

/// An environment variable of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepEnv {
    /// Name, for example `OMP_NUM_THREADS`.
    #[schemars(length(min = 1, max = 256), regex(pattern = crate::names::IDENTIFIER_PATTERN))]
    pub name: String,
    /// Value, a text (quote numbers and `true`/`false`); may be empty.
    #[schemars(length(max = 32_768))]
    pub value: String,
}
