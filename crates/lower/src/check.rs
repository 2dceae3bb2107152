//! All that can be told of a pipeline before it runs.

use serde_json::{Map, Value};

use super::bind::RunInfo;
use super::validate::validate;
use api::PipelineSpec;
use api::problem::Problem;

/// What is wrong with a pipeline whose spec is at `base`, also with the parameters that a run gives; without a run, with
/// its defaults if every parameter has one.
pub fn check(spec: &PipelineSpec, base: &str, given: Option<Map<String, Value>>) -> Vec<Problem> {
    let flow = match validate(spec, base) {
        Ok(flow) => flow,
        Err(problems) => return problems,
    };
    if given.is_none() && spec.params.iter().any(|param| param.default.is_none()) {
        return Vec::new();
    }
    let run = RunInfo { name: "run".to_owned(), uid: uuid::Uuid::nil().to_string() };
    flow.bind(&given.unwrap_or_default(), &run).err().unwrap_or_default()
}
