use std::collections::BTreeMap;

use serde::Serialize;

use crate::PathPart;

/// What all items of a step have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepDef {
    /// Name of the step.
    pub name: String,
    /// `module:function`, or
    pub call: Option<String>,
    /// a script.
    pub script: Option<String>,
    /// Template of the arguments, msgpack.
    #[serde(with = "serde_bytes")]
    pub args: Vec<u8>,
    /// `pickle`, `json`, `parquet` or `numpy`.
    pub serializer: String,
    /// Whether a list output is stored so that elements can be read alone.
    pub container: bool,
    /// Where in the output the lists are whose lengths to report; an empty path is the output itself.
    pub lens: Vec<Vec<PathPart>>,
    /// Whether the output is wanted as JSON: 0 no, 1 if it can be, 2 it must be.
    pub result: u8,
    /// Dask resources.
    pub resources: BTreeMap<String, f64>,
    /// Only workers of this group.
    pub group: Option<String>,
    /// Whether a GPU worker may be used without asking for a GPU.
    pub gpu_ok: bool,
    /// `process` or `thread`.
    pub isolation: String,
    /// Seconds for one attempt.
    pub timeout: Option<f64>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Template of the objects that it reads, msgpack `[name, [path, serializer]]` each; nothing without any.
    #[serde(with = "serde_bytes", skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<u8>,
    /// Where the output is kept under a name of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// Where an output is kept besides the run's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Template of `[path, taken]`; `taken`: what is there is the output, and the step is not called.
    #[serde(with = "serde_bytes")]
    pub place: Vec<u8>,
    /// Whether it may replace what is there.
    pub replace: bool,
}
