//! How long what a run has stored is kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{duration, duration::Duration};

/// How long what a run has stored is kept after its end. It is removed by the scheduler of the cluster that it ran on; for a
/// run with a cluster of its own that one is made again, without workers. Deleting the PipelineRun before keeps everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Outputs are removed this long after the end, above zero, for example `30d`. Those that later runs have taken over
    /// (`reuse`, `select`) stay until these are removed too. Default: kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub outputs: Option<Duration>,
    /// Journal, logs and code are removed this long after the end, above zero, for example `90d`. Without a journal no later
    /// run finds the outputs. Default: kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub logs: Option<Duration>,
}
