//! Pipelines in the whole operator against the double: which runs are made, how often, and that nothing else is written.

use http::Method;
use serde_json::{Value, json};

use crate::api::Fault;
use crate::wait::{eventually, eventually_or};
use crate::world::{SOON, World};

fn path(kind: &str, name: &str) -> String {
    format!("/apis/daskade.dev/v1alpha1/namespaces/team/{kind}/{name}")
}

/// Its runs wait for a cluster that never comes.
fn spec(version: u32) -> Value {
    json!({
        "cluster": {"ref": "absent"},
        "storage": {"url": "file:///data"},
        "code": {"files": {"flow.py": format!("x = {version}")}},
        "steps": [{"name": "a", "call": "flow:f"}],
    })
}

impl World {
    fn pipeline(&self, spec: &Value) {
        if self.api.object(&path("pipelines", "etl")).is_some() {
            return self.api.edit(&path("pipelines", "etl"), |object| object["spec"] = spec.clone());
        }
        let object = json!({"metadata": {"name": "etl", "namespace": "team"}, "spec": spec});
        self.api.put(&path("pipelines", "etl"), object);
    }

    fn told(&self) -> Value {
        self.api.object(&path("pipelines", "etl")).unwrap_or_default()["status"].clone()
    }

    fn runs(&self) -> Vec<String> {
        let paths = self.api.paths("/pipelineruns/");
        paths.iter().map(|path| path.rsplit('/').next().unwrap().to_owned()).collect()
    }

    async fn until_runs(&self, count: usize) {
        let what = || {
            let runs: Vec<_> = self.runs().iter().map(|run| self.api.object(&path("pipelineruns", run))).collect();
            format!("there are {count} runs: {runs:#?}")
        };
        eventually_or(what, SOON, || self.runs().len() == count).await;
        self.until_quiet().await;
        assert_eq!(self.runs().len(), count, "{:?}", self.runs());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_makes_one_run_by_two_writes() {
    let world = World::new().await;
    let operator = world.operator();
    world.pipeline(&spec(1));
    world.until_runs(1).await;
    let run = world.api.object(&path("pipelineruns", &world.runs()[0])).unwrap();
    assert_eq!(run["spec"], json!({ "pipelineSpec": spec(1) }));
    assert_eq!(world.told()["lastRun"], run["metadata"]["name"]);
    assert_eq!(world.told()["active"], json!([run["metadata"]["name"]]));
    let writes = world.writes();
    let written: Vec<String> = writes
        .iter()
        .map(|request| format!("{} {}", request.method, request.path.rsplit("team/").next().unwrap()))
        .filter(|line| line.contains("POST pipelineruns") || line.contains("pipelines/"))
        .collect();
    assert_eq!(written, ["POST pipelineruns", "PATCH pipelines/etl/status"]);

    world.pipeline(&spec(1));
    world.until_quiet().await;
    world.pipeline(&spec(2));
    world.until_runs(2).await;
    world.pipeline(&spec(1));
    world.until_runs(3).await;
    assert!(world.runs().iter().any(|run| run.ends_with("-2")));
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_valid_is_told_and_makes_nothing() {
    let world = World::new().await;
    let operator = world.operator();
    let mut bad = spec(1);
    bad["schedule"] = json!({"cron": "0 0 30 2 *"});
    bad["steps"][0]["dependsOn"] = json!(["b"]);
    world.pipeline(&bad);
    let accepted = || {
        let conditions = world.told()["conditions"].clone();
        let found =
            conditions.as_array().into_iter().flatten().find(|condition| condition["type"] == "Accepted").cloned();
        found.unwrap_or_default()
    };
    eventually("it is refused", SOON, || accepted()["status"] == "False").await;
    let message = accepted()["message"].as_str().unwrap().to_owned();
    for part in ["spec.steps[0].dependsOn[0]: UnknownStep", "spec.schedule.cron: InvalidValue: it never comes"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(world.runs().is_empty());
    world.pipeline(&spec(1));
    world.until_runs(1).await;
    assert_eq!(accepted()["status"], "True");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_whose_runs_would_be_refused_for_a_limit_is_not_accepted_and_makes_none() {
    let mut world = World::new().await;
    world.limits.run.steps = Some(5);
    let operator = world.operator();
    let mut large = spec(1);
    large["steps"][0]["map"] = json!({"x": "$(range(6))"});
    world.pipeline(&large);
    let accepted = || world.told()["conditions"][0].clone();
    eventually("it is refused", SOON, || accepted()["status"] == "False").await;
    let message = accepted()["message"].as_str().unwrap_or_default().to_owned();
    assert!(
        message.contains("spec.steps[0].map: LimitExceeded") && message.contains("--max-steps-per-run"),
        "{message}"
    );
    assert!(world.runs().is_empty());
    large["steps"][0]["map"] = json!({"x": "$(range(5))"});
    world.pipeline(&large);
    world.until_runs(1).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_makes_no_second_run_and_a_refusal_is_told_and_tried_again() {
    let world = World::new().await;
    let operator = world.operator();
    let fault = |status, after, times| Fault {
        method: Some(Method::POST),
        part: "/pipelineruns".to_owned(),
        status,
        message: "exceeded quota: runs".to_owned(),
        times,
        after,
        ..Fault::default()
    };
    world.api.fault(fault(500, true, 1));
    world.pipeline(&spec(1));
    world.until_runs(1).await;
    eventually("the status tells", SOON, || world.told()["lastTriggered"].is_string()).await;
    world.api.fault(fault(403, false, 0));
    world.pipeline(&spec(2));
    let reconciling = || {
        let conditions = world.told()["conditions"].clone();
        conditions.as_array().into_iter().flatten().any(|condition| {
            condition["type"] == "Reconciling" && condition["message"].as_str().unwrap().contains("exceeded quota")
        })
    };
    eventually("the refusal is told", SOON, reconciling).await;
    world.api.heal();
    world.until_runs(2).await;
    assert!(!reconciling());
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_operator_makes_nothing_twice_with_or_without_the_status() {
    let world = World::new().await;
    let operator = world.operator();
    world.pipeline(&spec(1));
    world.until_runs(1).await;
    operator.end().await;
    let operator = world.operator_with(2, operator::Namespaces::All);
    world.until_runs(1).await;
    world.api.edit(&path("pipelines", "etl"), |object| drop(object.as_object_mut().unwrap().remove("status")));
    eventually("it is told again", SOON, || world.told()["lastTriggered"].is_string()).await;
    world.until_runs(1).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interval_replaces_its_runs_and_keeps_no_more_than_it_should() {
    let world = World::new().await;
    let operator = world.operator();
    let mut scheduled = spec(1);
    scheduled["schedule"] = json!({"interval": "1s", "concurrencyPolicy": "Replace", "failedRunsHistoryLimit": 3});
    world.pipeline(&scheduled);
    eventually("three runs", SOON, || world.runs().len() >= 3).await;
    let cancelled = || {
        let runs = world.runs();
        let objects = runs.iter().filter_map(|run| world.api.object(&path("pipelineruns", run)));
        objects.filter(|run| run["spec"]["cancel"] == true).count()
    };
    eventually("those before are cancelled", SOON, || cancelled() >= 2).await;
    scheduled["schedule"]["suspend"] = json!(true);
    scheduled["schedule"]["failedRunsHistoryLimit"] = json!(1);
    world.pipeline(&scheduled);
    eventually("it stops", SOON, || world.told()["nextScheduleTime"].is_null()).await;
    for run in world.runs() {
        if world.api.object(&path("pipelineruns", &run)).is_some() {
            world.api.edit(&path("pipelineruns", &run), |object| object["spec"]["cancel"] = json!(true));
        }
    }
    world.until_runs(1).await;
    world.api.delete(&path("pipelines", "etl"));
    world.until_runs(1).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_anothers_is_left_alone() {
    let world = World::new().await;
    world.pipeline(&spec(1));
    let operator = world.operator();
    world.until_runs(1).await;
    operator.end().await;
    let name = world.runs().remove(0);
    world.api.delete(&path("pipelineruns", &name));
    world.api.delete(&path("pipelines", "etl"));
    world.api.put(
        &path("pipelineruns", &name),
        json!({"metadata": {"name": name, "namespace": "team"}, "spec": {"pipelineRef": "other"}}),
    );
    world.pipeline(&spec(1));
    let operator = world.operator_with(2, operator::Namespaces::All);
    world.until_runs(2).await;
    assert!(world.runs().contains(&format!("{name}-2")), "{:?}", world.runs());
    operator.end().await;
}

/// Who may only patch runs makes none: one `kubectl annotate` made hundreds in seconds.
/// Issue 13, point 2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_written_on_a_run_by_change_the_pipeline_makes_no_other() {
    let world = World::new().await;
    let mut operator = world.operator();
    world.pipeline(&spec(1));
    world.until_runs(1).await;
    let name = world.runs().remove(0);
    let run = path("pipelineruns", &name);
    let (nothing, key) = ("v1:00000000000000000000000000000000", |name: &str| format!("daskade.dev/{name}"));
    for (at, (annotations, labels)) in [
        (json!({"hash": nothing, "pipeline-generation": "999"}), json!({})),
        (json!({"hash": nothing, "pipeline-generation": "1"}), json!({})),
        (json!({"hash": null}), json!({})),
        (json!({"pipeline-generation": null, "pipeline-uid": null}), json!({"trigger": "manual"})),
        (json!({"moment": "2026-01-15T13:00:00Z"}), json!({"trigger": "schedule"})),
        (json!({}), json!({"pipeline": null})),
    ]
    .into_iter()
    .enumerate()
    {
        world.api.edit(&run, |run| {
            for (part, changes) in [("annotations", &annotations), ("labels", &labels)] {
                for (name, value) in changes.as_object().into_iter().flatten() {
                    match value {
                        Value::Null => drop(run["metadata"][part].as_object_mut().unwrap().remove(&key(name))),
                        value => run["metadata"][part][key(name)] = value.clone(),
                    }
                }
            }
        });
        world.until_runs(1).await;
        // Nor does an operator that knows nothing but what is there.
        operator.end().await;
        operator = world.operator_with(at as u64 + 2, operator::Namespaces::All);
        world.until_runs(1).await;
    }
    world.pipeline(&spec(2));
    world.until_runs(2).await;
    operator.end().await;
}
