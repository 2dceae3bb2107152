//! The frozen specification of a run: enough to carry it out, and to resume it, without the manifest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use api::cluster::DaskClusterSpec;
use api::pipeline::{Deadlines, PipelineSpec};
use api::problem::Problem;
use api::reason::Reason;
use api::run::{Reuse, ReuseMode, Select};
use api::step::Step;
use lower::{Plan, RunInfo};

/// As the journal keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Frozen {
    /// Version of this form.
    pub format: u32,
    /// The uid of the run.
    pub uid: String,
    /// The name of the run.
    pub name: String,
    /// What its Pipeline said then.
    pub pipeline: PipelineSpec,
    /// As given, before defaults.
    pub params: Map<String, Value>,
    /// The workers of a local run; in Kubernetes those of the cluster when the run began.
    pub cluster: DaskClusterSpec,
    /// Name of the pipeline: runs of the same one can be reused. Unknown for runs of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_name: Option<String>,
    /// The part that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Select>,
    /// What is taken from earlier runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
}

impl Frozen {
    /// The version that this release writes.
    pub const FORMAT: u32 = 1;

    /// The text for the journal, and its digest.
    pub fn to_bytes(&self) -> Result<(Vec<u8>, String), serde_json::Error> {
        let bytes = serde_json::to_vec(self)?;
        let digest = hex::encode(Sha256::digest(&bytes));
        Ok((bytes, digest))
    }

    /// All steps, also those of `finally`.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.pipeline.steps.iter().chain(&self.pipeline.finally)
    }

    /// Names for people of the steps that have one.
    pub fn titles(&self) -> BTreeMap<String, String> {
        let titles = self.steps().filter_map(|step| Some((step.name.clone(), step.display_name.clone()?)));
        titles.collect()
    }

    /// Checks and lowers the specification, whose fields stand below `at`; all problems together.
    pub fn plan(&self, at: &str) -> Result<Plan, Vec<Problem>> {
        let flow = lower::validate(&self.pipeline, at)?;
        let plan = flow.bind(&self.params, &RunInfo { name: self.name.clone(), uid: self.uid.clone() })?;
        let reuse = self.reuse();
        if reuse.run.is_some() && !reuse.missing && self.select.is_none() {
            let problem = Problem::new(Reason::Conflict, "spec.reuse.run", "nothing is taken from an earlier run");
            return Err(vec![problem.help("add mode: Missing, or a select")]);
        }
        match &self.select {
            Some(select) => plan.select(select, "spec.select"),
            None => Ok(plan),
        }
    }

    /// What is taken from earlier runs.
    pub fn reuse(&self) -> super::Reuse {
        let reuse = self.reuse.clone().unwrap_or_default();
        super::Reuse { missing: reuse.mode == Some(ReuseMode::Missing), run: reuse.run }
    }
}

/// A run's deadlines; those that it does not set are the pipeline's.
pub fn run_deadlines(pipeline: Option<Deadlines>, run: Option<&Deadlines>) -> Option<Deadlines> {
    let Some(run) = run else { return pipeline };
    let pipeline = pipeline.unwrap_or_default();
    Some(Deadlines {
        start: run.start.or(pipeline.start),
        active: run.active.or(pipeline.active),
        finally: run.finally.or(pipeline.finally),
    })
}
