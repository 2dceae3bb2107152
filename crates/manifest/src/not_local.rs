//! The one table of fields that a local run does not carry out. They are refused by name: a field that changes what comes
//! out is never ignored.
//!
//! Fields that only say where pods run (image, nodeSelector, tolerations, affinity, idleTimeout, tls, …), when runs are
//! made (triggers, schedule), how long what they store is kept (retention), or with whose identity storage is reached mean
//! nothing on one machine; local runs accept them, so that the same manifest runs on a laptop.

use serde_json::Value;

use super::object::Object;
use api::problem::Problem;
use api::reason::Reason;

/// A row of the table. `path` is below `spec`; `*` stands for every entry of a list; a field matches when it is there
/// and, for truth values, true.
struct Row {
    object: &'static [Kind],
    path: &'static str,
    help: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pipeline,
    Cluster,
    Run,
}

const PIPELINE: &[Kind] = &[Kind::Pipeline];
const CLUSTER: &[Kind] = &[Kind::Cluster];
const RUN: &[Kind] = &[Kind::Run];

const fn row(object: &'static [Kind], path: &'static str, help: &'static str) -> Row {
    Row { object, path, help }
}

const TABLE: &[Row] = &[
    row(PIPELINE, "code.configMap", "a local run sees no ConfigMaps: use code.files, code.path or code.url"),
    row(CLUSTER, "suspend", "a local cluster lives as long as its run"),
    row(CLUSTER, "scheduler.env", "set the variables in the shell"),
    row(CLUSTER, "workers.*.env.*.valueFrom", "give a value, or set the variable in the shell"),
    row(CLUSTER, "scheduler.volumes", "local steps see the files of this machine"),
    row(CLUSTER, "workers.*.volumes", "local steps see the files of this machine"),
    row(RUN, "suspend", "a local run starts at once"),
    row(RUN, "cancel", "a local run is cancelled by Ctrl-C"),
];

/// Fields of the object that a local run does not carry out, each with its path.
pub fn not_local(object: &Object) -> Vec<Problem> {
    let mut problems = Vec::new();
    match object {
        Object::Pipeline(pipeline) => pipeline_spec(&to_value(&pipeline.spec), "spec", &mut problems),
        Object::DaskCluster(cluster) => search(Kind::Cluster, &to_value(&cluster.spec), "spec", &mut problems),
        Object::PipelineRun(run) => {
            let spec = to_value(&run.spec);
            search(Kind::Run, &spec, "spec", &mut problems);
            if let Some(inline) = spec.get("pipelineSpec") {
                pipeline_spec(inline, "spec.pipelineSpec", &mut problems);
            }
        }
    }
    problems
}

fn pipeline_spec(spec: &Value, base: &str, problems: &mut Vec<Problem>) {
    search(Kind::Pipeline, spec, base, problems);
    if let Some(template) = spec.pointer("/cluster/template") {
        search(Kind::Cluster, template, &format!("{base}.cluster.template"), problems);
    }
}

fn search(kind: Kind, spec: &Value, base: &str, problems: &mut Vec<Problem>) {
    for row in TABLE.iter().filter(|row| row.object.contains(&kind)) {
        descend(spec, row.path, base.to_owned(), row.help, problems);
    }
}

fn descend(value: &Value, path: &str, at: String, help: &str, problems: &mut Vec<Problem>) {
    let (head, rest) = path.split_once('.').map_or((path, None), |(head, rest)| (head, Some(rest)));
    if head == "*" {
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            descend(item, rest.unwrap_or_default(), format!("{at}[{index}]"), help, problems);
        }
        return;
    }
    let Some(found) = value.get(head) else { return };
    let at = format!("{at}.{head}");
    match rest {
        Some(rest) => descend(found, rest, at, help, problems),
        None if *found == Value::Bool(false) => {}
        None => {
            let problem = Problem::new(Reason::NotImplemented, at, "a local run does not carry this field out");
            problems.push(problem.help(help));
        }
    }
}

fn to_value(spec: &impl serde::Serialize) -> Value {
    serde_json::to_value(spec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check_value;
    use api::crd;

    fn check(kind: &str, spec: Value) -> Vec<String> {
        let value =
            json!({ "apiVersion": "daskade.dev/v1alpha1", "kind": kind, "metadata": { "name": "a" }, "spec": spec });
        let object = check_value(&value).unwrap();
        not_local(&object).into_iter().map(|problem| problem.path).collect()
    }

    #[test]
    fn what_is_not_carried_out_is_refused_with_its_path() {
        let spec = json!({
            "code": { "configMap": "flow" },
            "cluster": { "template": { "workers": [{ "name": "a", "env": [{ "name": "B", "value": "b" }, { "name": "A", "valueFrom": { "secretKeyRef": { "name": "a", "key": "b" } } }] }] } },
            "steps": [{ "name": "a", "call": "m:f" }]
        });
        let here = ["spec.code.configMap", "spec.cluster.template.workers[0].env[1].valueFrom"];
        assert_eq!(check("Pipeline", spec), here);
    }

    #[test]
    fn a_run_is_searched_with_its_pipeline_and_false_is_no_use() {
        let spec = json!({
            "suspend": true, "cancel": false, "select": { "only": ["a"] },
            "pipelineSpec": { "steps": [{ "name": "a", "call": "m:f" }], "code": { "configMap": "flow" } }
        });
        assert_eq!(check("PipelineRun", spec), ["spec.suspend", "spec.pipelineSpec.code.configMap"]);
    }

    #[test]
    fn what_means_nothing_on_a_laptop_is_accepted_there() {
        let spec = json!({
            "triggers": { "onChange": false }, "schedule": { "cron": "@daily" }, "retention": { "outputs": "30d" },
            "deadlines": { "finally": "10m" }, "storage": { "url": "s3://bucket/a", "secretRef": "keys" },
            "cluster": { "template": { "image": "a/b:1", "idleTimeout": "10m", "tls": { "mode": "Disabled" }, "workers": [
                { "name": "a", "nodeSelector": { "a": "b" }, "tolerations": [{ "operator": "Exists" }], "autoscale": { "max": 3 } }
            ] } },
            "steps": [{ "name": "a", "call": "m:f" }]
        });
        assert_eq!(check("Pipeline", spec), Vec::<String>::new());
    }

    #[test]
    fn every_row_names_a_field_of_the_schema() {
        let kinds = [(Kind::Pipeline, "Pipeline"), (Kind::Cluster, "DaskCluster"), (Kind::Run, "PipelineRun")];
        for (kind, name) in kinds {
            let schema = crd::checked_schema(name).unwrap();
            for row in TABLE.iter().filter(|row| row.object.contains(&kind)) {
                let mut at = &schema["properties"]["spec"];
                for part in row.path.split('.') {
                    at = if part == "*" { &at["items"] } else { &at["properties"][part] };
                    assert!(at.is_object(), "{name} has no {}", row.path);
                }
            }
        }
    }
}
