//! Whether a Pipeline may make runs in a cluster.

use serde_json::{Map, Value};

use super::validate::validate;
use crate::cluster::{check_folder, check_shared, not_allowed};
use api::PipelineSpec;
use api::names::{OBJECT_NAME_MAX, check_label};
use api::problem::Problem;
use api::reason::Reason;
use lower::allowed::RunLimits;

/// Reads and checks the spec of the Pipeline `name`, as it is stored. Objects may be older than the schema that is there
/// now, or newer than this program. `limits`: what the operator allows a run; `allows`: whether schedulers at an address may
/// be used. All problems at once.
pub fn accept(
    name: &str,
    spec: &Value,
    limits: &RunLimits,
    allows: impl Fn(&str) -> bool,
) -> Result<PipelineSpec, Vec<Problem>> {
    let mut problems = Vec::new();
    if let Err(error) = check_label(name, OBJECT_NAME_MAX) {
        let problem = Problem::new(Reason::InvalidName, "metadata.name", format!("`{name}` {error}"));
        problems.push(problem.help("names of runs are made from it"));
    }
    let read: PipelineSpec = match serde_path_to_error::deserialize(spec) {
        Ok(read) => read,
        Err(error) => {
            let path = error.path().to_string();
            let path = if path == "." { "spec".to_owned() } else { format!("spec.{path}") };
            problems.push(Problem::new(Reason::InvalidValue, path, error.inner().to_string()));
            return Err(problems);
        }
    };
    problems.extend(lower::check(&read, "spec", None));
    problems.extend(validate(&read, "spec"));
    if read.code.as_ref().is_some_and(|code| code.path.is_some()) {
        let problem =
            Problem::new(Reason::Conflict, "spec.code.path", "a folder beside the manifest is not in the cluster");
        problems.push(problem.help("use code.files, or an image with the code"));
    }
    problems.extend(check_shared(&read, "spec"));
    let address = read.cluster.as_ref().and_then(|choice| choice.address.as_ref());
    problems.extend(address.filter(|address| !allows(address)).map(|address| not_allowed(address, "spec")));
    problems.extend(folder(&read));
    problems.extend(match makes_runs(&read) {
        true => limits.check_defaults(&read, "spec"),
        // How many steps there are is the parameters' to say that somebody gives.
        false => limits.check(&read, &Map::new(), "spec"),
    });
    let open = read.params.iter().position(|param| param.default.is_none());
    if let Some(param) = open.filter(|_| makes_runs(&read)) {
        let at = format!("spec.params[{param}].default");
        let problem =
            Problem::new(Reason::MissingParameter, at, "runs that a change or the schedule makes set no parameters");
        problems.push(problem.help("give a default, or set triggers.onChange: false and make runs by daskade submit"));
    }
    // Some fields are refused by two checks.
    let mut seen = std::collections::BTreeSet::new();
    problems.retain(|problem| seen.insert((problem.path.clone(), problem.reason)));
    if problems.is_empty() { Ok(read) } else { Err(problems) }
}

/// A folder as storage of a cluster that is made for each run.
fn folder(spec: &PipelineSpec) -> Vec<Problem> {
    let choice = spec.cluster.clone().unwrap_or_default();
    if choice.ref_.is_some() || choice.address.is_some() {
        return Vec::new();
    }
    let template = choice.template.unwrap_or_default();
    let (storage, at) = match (&spec.storage, &template.storage) {
        (Some(storage), _) => (storage, "spec.storage.url"),
        (None, Some(storage)) => (storage, "spec.cluster.template.storage.url"),
        (None, None) => return Vec::new(),
    };
    let volumes = "spec.cluster.template.scheduler.volumes, spec.cluster.template.workers[*].volumes";
    check_folder(&template, &storage.url, at, volumes)
}

fn makes_runs(spec: &PipelineSpec) -> bool {
    let on_change = spec.triggers.as_ref().and_then(|triggers| triggers.on_change);
    spec.schedule.is_some() || on_change.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(spec: Value) -> Vec<String> {
        let problems =
            accept("p", &spec, &RunLimits::default(), |address| address == "tcp://ours:8786").err().unwrap_or_default();
        problems.into_iter().map(|problem| format!("{} {}", problem.path, problem.reason)).collect()
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let step = json!([{"name": "a", "call": "m:f", "dependsOn": ["b"]}]);
        let spec = json!({"steps": step, "schedule": {"cron": "x"}, "code": {"path": "src"}});
        assert_eq!(
            told(spec),
            ["spec.steps[0].dependsOn[0] UnknownStep", "spec.schedule.cron InvalidValue", "spec.code.path Conflict"]
        );
        assert_eq!(told(json!({"steps": 3})), ["spec.steps InvalidValue"]);
        assert_eq!(
            accept("P", &json!({"steps": [{"name": "a", "call": "m:f"}]}), &RunLimits::default(), |_| true)
                .unwrap_err()[0]
                .path,
            "metadata.name"
        );
    }

    #[test]
    fn what_the_operator_does_not_allow_its_runs_is_told_of_the_pipeline() {
        let limits = RunLimits { steps: Some(5), attempts: Some(2), ..RunLimits::default() };
        let step = json!({"name": "a", "call": "m:f", "map": {"x": "$(range(params.n))"}, "retry": {"limit": 2}});
        let spec = |n: Value| json!({"params": [{"name": "n", "type": "integer", "default": n}], "steps": [step]});
        let problems = accept("p", &spec(json!(6)), &limits, |_| true).unwrap_err();
        let told: Vec<String> = problems.iter().map(|problem| format!("{} {}", problem.path, problem.reason)).collect();
        assert_eq!(told, ["spec.steps[0].retry.limit LimitExceeded", "spec.steps[0].map LimitExceeded"]);
        assert_eq!(accept("p", &spec(json!(5)), &limits, |_| true).unwrap_err().len(), 1);
        let mut by_hand = spec(json!(6));
        by_hand["triggers"] = json!({"onChange": false});
        assert_eq!(
            accept("p", &by_hand, &limits, |_| true).unwrap_err().len(),
            1,
            "whoever makes runs says how many steps"
        );
        let small = RunLimits { pipeline_bytes: Some(50), ..RunLimits::default() };
        assert_eq!(accept("p", &spec(json!(5)), &small, |_| true).unwrap_err()[0].path, "spec");
    }

    #[test]
    fn what_every_run_on_a_cluster_that_it_names_would_be_refused_for_is_told_of_the_pipeline() {
        let spec = |cluster: Value, storage: Value| {
            told(json!({"steps": [{"name": "a", "call": "m:f"}], "cluster": cluster, "storage": storage}))
        };
        let (keys, plain) = (json!({"url": "s3://b/p", "secretRef": "s"}), json!({"url": "s3://b/p"}));
        assert_eq!(spec(json!({"ref": "c"}), keys.clone()), ["spec.storage.secretRef Conflict"]);
        assert_eq!(spec(json!({"ref": "c"}), plain.clone()), [""; 0]);
        assert_eq!(spec(json!({"template": {}}), keys), [""; 0]);
        assert_eq!(spec(json!({"address": "tcp://ours:8786"}), plain), [""; 0]);
        assert_eq!(
            spec(json!({"address": "tls://theirs:8786"}), Value::Null),
            ["spec.cluster.tls.secretRef MissingField", "spec.storage MissingField", "spec.cluster.address NotAllowed"]
        );
    }

    #[test]
    fn runs_that_nobody_gives_parameters_need_defaults() {
        let spec = |more: Value| {
            let mut spec = json!({"params": [{"name": "n"}], "steps": [{"name": "a", "call": "m:f"}]});
            spec["triggers"] = more;
            spec
        };
        assert_eq!(told(spec(json!({}))), ["spec.params[0].default MissingParameter"]);
        assert_eq!(told(spec(json!({"onChange": false}))), [""; 0]);
    }
}
