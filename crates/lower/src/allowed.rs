//! What one run may ask for, where whoever runs the operator has said so.

use serde::Serialize;
use serde_json::{Map, Value};

use super::limits::json_size;
use super::{Part, Plan, RunInfo, validate};
use api::pipeline::PipelineSpec;
use api::problem::Problem;
use api::reason::Reason;

/// None: no limit but those that the formats have themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunLimits {
    /// Steps, items of maps counted singly.
    pub steps: Option<u32>,
    /// Attempts of one step.
    pub attempts: Option<u32>,
    /// Bytes of the pipeline as JSON.
    pub pipeline_bytes: Option<u64>,
    /// Bytes of all parameters of the run as JSON.
    pub params_bytes: Option<u64>,
}

impl RunLimits {
    /// What a pipeline, whose fields stand below `at`, and the parameters of its run ask for beyond the limits.
    pub fn check(&self, pipeline: &PipelineSpec, params: &Map<String, Value>, at: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        problems.extend(
            self.pipeline_bytes.and_then(|most| too_large(pipeline, most, at, "the pipeline", "--max-pipeline-size")),
        );
        problems.extend(
            self.params_bytes
                .and_then(|most| too_large(params, most, "spec.params", "the parameters", "--max-params-size")),
        );
        let steps = pipeline.steps.iter().enumerate().map(|(ix, step)| (format!("{at}.steps[{ix}]"), step));
        let last = pipeline.finally.iter().enumerate().map(|(ix, step)| (format!("{at}.finally[{ix}]"), step));
        for (path, step) in steps.chain(last) {
            let (Some(retry), Some(most)) = (&step.retry, self.attempts) else { continue };
            let asked = u64::from(retry.limit) + 1;
            if asked > u64::from(most) {
                let message = format!("{} retries make {asked} attempts, and the operator allows {most}", retry.limit);
                problems.push(exceeded(format!("{path}.retry.limit"), message, "--max-attempts"));
            }
        }
        problems
    }

    /// The same of a run of the pipeline to which nobody has given parameters.
    pub fn check_defaults(&self, pipeline: &PipelineSpec, at: &str) -> Vec<Problem> {
        let params = Map::new();
        let mut problems = self.check(pipeline, &params, at);
        let info = RunInfo { name: String::new(), uid: String::new() };
        // What else is wrong is told by other checks.
        if let Ok(plan) = validate(pipeline, at).and_then(|flow| flow.bind(&params, &info)) {
            problems.extend(self.check_steps(&plan, pipeline.steps.len(), at));
        }
        problems
    }

    /// The same of its steps, as far as their number is known before the run.
    pub fn check_steps(&self, plan: &Plan, main: usize, at: &str) -> Option<Problem> {
        let most = u64::from(self.steps?);
        let lens = plan.dag.steps().map(|(step, _)| step).zip(plan.known_lengths());
        let (mut largest, mut len, mut total) = (0, 0, 0);
        for (step, items) in lens.filter(|(step, _)| plan.part(*step) == Part::Runs) {
            total += items;
            if items > len {
                (largest, len) = (step.0 as usize, items);
            }
        }
        if total <= most {
            return None;
        }
        let path = match len {
            0 | 1 => format!("{at}.steps"),
            _ if largest < main => format!("{at}.steps[{largest}].map"),
            _ => format!("{at}.finally[{}].map", largest - main),
        };
        let message = format!("the run has {total} steps, items of maps included, and the operator allows {most}");
        Some(exceeded(path, message, "--max-steps-per-run"))
    }
}

fn too_large(value: &impl Serialize, most: u64, path: &str, what: &str, option: &str) -> Option<Problem> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    // Counting stops soon after the limit.
    if json_size(value, most) <= most {
        return None;
    }
    let message = format!("{what} take more than the {most} bytes of JSON that the operator allows");
    Some(exceeded(path.to_owned(), message, option))
}

fn exceeded(path: String, message: String, option: &str) -> Problem {
    Problem::new(Reason::LimitExceeded, path, message)
        .help(format!("who runs the operator sets the limit with {option}"))
}
