//! `submit`, `status`, `runs` and `cancel` against the double: what is made, told and how the command ends.

use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::api::Api;
use crate::wait::eventually;
use crate::world::SOON;

struct Person {
    api: Api,
    folder: tempfile::TempDir,
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn path(kind: &str, name: &str) -> String {
    format!("/apis/daskade.dev/v1alpha1/namespaces/team/{kind}/{name}")
}

impl Person {
    async fn new() -> Self {
        let (api, folder) = (Api::start().await, tempfile::tempdir().unwrap());
        api.kubeconfig(folder.path());
        api.put(
            &path("pipelines", "etl"),
            json!({"metadata": {"name": "etl", "namespace": "team"}, "spec": {
                "params": [{"name": "n", "type": "integer", "default": 1}],
                "steps": [{"name": "a", "call": "m:f", "args": ["$(params.n)"]}],
            }}),
        );
        Self { api, folder }
    }

    async fn says(&self, words: &[&str]) -> Said {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_daskade")));
        command.args(words).env("KUBECONFIG", self.folder.path().join("kubeconfig")).current_dir(self.folder.path());
        let output = command.output().await.unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn end(&self, run: &str, status: &str, state: &str) {
        let told = json!({"state": state, "progress": "1/2", "conditions": [{"type": "Succeeded", "status": status,
            "reason": state, "message": "step a failed"}], "failures": [{"step": "a", "class": "app", "message": "ValueError: no"}]});
        self.api.edit(&path("pipelineruns", run), |object| object["status"] = told);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_that_is_there_is_run_by_its_name_with_parameters() {
    let person = Person::new().await;
    let said = person.says(&["submit", "etl", "-n", "team", "-p", "n=7"]).await;
    assert_eq!((said.code, &*said.err), (Some(0), ""));
    let name = said.out.trim();
    let run = person.api.object(&path("pipelineruns", name)).unwrap();
    assert!(name.starts_with("etl-") && name.len() == 9, "{name}");
    assert_eq!(run["spec"], json!({"pipelineRef": "etl", "params": {"n": 7}}));
    assert_eq!(run["metadata"]["labels"], json!({"daskade.dev/pipeline": "etl", "daskade.dev/trigger": "manual"}));
    for (words, told) in [
        (vec!["-p", "n=x"], "--param n=x: "),
        (vec!["-p", "m=1"], "UnknownParameter"),
        (vec!["--name", "A"], "--name: `A` has `A` at byte 0"),
    ] {
        let said = person.says(&[&["submit", "etl", "-n", "team"], &words[..]].concat()).await;
        assert_eq!(said.code, Some(2), "{}", said.err);
        assert!(said.err.contains(told), "{}", said.err);
    }
    let said = person.says(&["submit", "nothing", "-n", "team"]).await;
    assert_eq!(said.code, Some(2));
    assert!(
        said.err.contains("there is no file nothing, and no Pipeline nothing in the namespace team"),
        "{}",
        said.err
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_is_run_without_being_applied() {
    let person = Person::new().await;
    let manifest = "apiVersion: daskade.dev/v1alpha1\nkind: Pipeline\nmetadata: {name: p}\nspec:\n  schedule: {cron: '@daily'}\n  \
                    steps: [{name: a, call: 'm:f'}]\n";
    std::fs::write(person.folder.path().join("p.yaml"), manifest).unwrap();
    let said = person.says(&["submit", "p.yaml", "-n", "team", "--name", "mine", "-o", "json"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["name"], "mine");
    let run = person.api.object(&path("pipelineruns", "mine")).unwrap();
    assert_eq!(run["spec"]["pipelineSpec"], json!({"steps": [{"name": "a", "call": "m:f"}]}));
    let said = person.says(&["submit", "p.yaml", "-n", "team", "--name", "mine"]).await;
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("already exists"), "{}", said.err);
    std::fs::write(person.folder.path().join("bad.yaml"), manifest.replace("'m:f'", "3")).unwrap();
    let said = person.says(&["submit", "bad.yaml", "-n", "team"]).await;
    assert!(said.code == Some(2) && said.err.contains("spec.steps[0].call"), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_gets_the_exit_code_of_the_run() {
    let person = Person::new().await;
    for (name, status, state, code) in
        [("good", "True", "Succeeded", 0), ("bad", "False", "Failed", 1), ("gone", "False", "Cancelled", 130)]
    {
        let words = ["submit", "etl", "-n", "team", "--name", name, "--wait"];
        let ends = async {
            eventually("it is submitted", SOON, || person.api.object(&path("pipelineruns", name)).is_some()).await;
            person.end(name, status, state);
        };
        let (said, ()) = tokio::join!(person.says(&words), ends);
        assert_eq!(said.code, Some(code), "{}", said.err);
        assert!(said.out.contains(&format!("{name}: {state} 1/2")), "{}", said.out);
        assert_eq!(said.out.contains("step a failed"), code != 0, "{}", said.out);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_run_again_as_it_was_written_down_and_goes_on_from_what_it_committed() {
    let person = Person::new().await;
    let submitted = person.says(&["submit", "etl", "-n", "team", "-p", "n=7", "--name", "one"]).await;
    assert_eq!(submitted.code, Some(0), "{}", submitted.err);
    let said = person.says(&["retry", "one", "-n", "team"]).await;
    assert!(said.code == Some(2) && said.err.contains("one has not ended (Pending)"), "{}", said.err);
    person.end("one", "False", "Failed");
    let said = person.says(&["retry", "one", "-n", "team"]).await;
    assert!(said.code == Some(2) && said.err.contains("never started"), "{}", said.err);
    assert!(said.err.contains("daskade submit etl"), "{}", said.err);

    // It ran on a cluster of others, which stands in the revision with its groups.
    let pipeline = json!({"steps": [{"name": "a", "call": "m:f", "args": ["$(params.n)"]}],
        "params": [{"name": "n", "type": "integer", "default": 1}], "cluster": {"template": {"workers": []}}});
    let revision = "/apis/apps/v1/namespaces/team/controllerrevisions/one-1";
    let data = json!({"run": {"pipeline": pipeline}, "place": {"shared": "c"}, "storage": {"url": "s3://b/p"}});
    person.api.put(revision, json!({"metadata": {"name": "one-1", "namespace": "team"}, "revision": 1, "data": data}));
    let began = |run: &mut Value| {
        run["status"]["startedAt"] = json!("2026-01-01T00:00:00Z");
        run["status"]["revision"] = json!("one-1");
        run["spec"]["retention"] = json!({"outputs": "30d"});
    };
    person.api.edit(&path("pipelineruns", "one"), began);
    // The Pipeline has changed since: that does not matter.
    person.api.edit(&path("pipelines", "etl"), |pipeline| pipeline["spec"]["steps"] = json!([]));
    let said = person.says(&["retry", "one", "-n", "team"]).await;
    assert_eq!((said.code, &*said.err), (Some(0), ""));
    let name = said.out.trim();
    assert!(name.starts_with("one-retry-") && name.len() == 15, "{name}");
    let [first, second] = ["one", name].map(|run| person.api.object(&path("pipelineruns", run)).unwrap());
    let mut expected = pipeline.clone();
    expected["cluster"] = json!({"ref": "c"});
    assert_eq!(
        second["spec"],
        json!({"pipelineSpec": expected, "params": {"n": 7}, "retention": {"outputs": "30d"},
            "reuse": {"mode": "Missing", "run": first["metadata"]["uid"]}})
    );
    assert_eq!(second["metadata"]["labels"], first["metadata"]["labels"]);

    // A retry of a retry has no longer name, and a run of a part goes by its own spec.
    person.end(name, "False", "Cancelled");
    person.api.edit(&path("pipelineruns", name), |run| {
        began(run);
        run["spec"]["select"] = json!({"from": ["a"]});
        run["spec"]["reuse"] = json!({"run": "earlier"});
    });
    let again = person.says(&["retry", name, "-n", "team", "-o", "json"]).await;
    let again: Value = serde_json::from_str(&again.out).unwrap();
    let third = again["name"].as_str().unwrap();
    assert!(third.starts_with("one-retry-") && third.len() == 15, "{third}");
    let spec = person.api.object(&path("pipelineruns", third)).unwrap()["spec"].clone();
    assert_eq!((&spec["select"], &spec["reuse"]), (&json!({"from": ["a"]}), &json!({"run": "earlier"})));

    for (edit, told) in [
        (json!({"outputsAt": "2026-01-31T00:00:00Z"}), "what one had stored was removed at 2026-01-31T00:00:00Z"),
        (Value::Null, "what one was made of is gone (ControllerRevision one-1)"),
    ] {
        person.api.edit(&path("pipelineruns", "one"), |run| run["status"]["removed"] = edit);
        person.api.delete(revision);
        let said = person.says(&["retry", "one", "-n", "team"]).await;
        assert!(said.code == Some(2) && said.err.contains(told), "{}", said.err);
    }
    person
        .api
        .edit(&path("pipelineruns", "one"), |run| run["status"]["removed"] = json!({"logsAt": "2026-02-01T00:00:00Z"}));
    let said = person.says(&["logs", "one", "-n", "team"]).await;
    assert!(said.code == Some(2) && said.err.contains("were removed at 2026-02-01T00:00:00Z"), "{}", said.err);
    person.end("one", "True", "Succeeded");
    let said = person.says(&["retry", "one", "-n", "team"]).await;
    assert!(said.code == Some(2) && said.err.contains("one has succeeded"), "{}", said.err);
    let resumed = person.says(&["resume", "one", "-n", "team"]).await;
    assert!(resumed.code == Some(2) && resumed.err.contains("daskade retry one"), "{}", resumed.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_listed_told_and_cancelled() {
    let person = Person::new().await;
    let none = person.says(&["runs", "-n", "team"]).await;
    assert_eq!(none.out, "no runs in the namespace team\n");
    person.says(&["submit", "etl", "-n", "team", "--name", "one"]).await;
    let listed = person.says(&["runs", "-n", "team"]).await;
    for listed in [listed, person.says(&["status", "-n", "team"]).await] {
        let row: Vec<&str> = listed.out.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row[..3], ["one", "etl", "Pending"], "{}", listed.out);
    }
    let said = person.says(&["cancel", "one", "-n", "team"]).await;
    assert_eq!((said.code, &*said.out), (Some(0), "one is being cancelled\n"));
    assert_eq!(person.api.object(&path("pipelineruns", "one")).unwrap()["spec"]["cancel"], true);
    person.end("one", "False", "Cancelled");
    assert_eq!(person.says(&["cancel", "one", "-n", "team"]).await.out, "one has ended already: Cancelled\n");
    let told = person.says(&["status", "one", "-n", "team", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&told["state"], &told["pipeline"]), (&json!("Cancelled"), &json!("etl")));
    // What may still run is shown as long as it may.
    for (truth, is_shown) in [("False", true), ("True", false)] {
        person.api.edit(&path("pipelineruns", "one"), |run| {
            let conditions = run["status"]["conditions"].as_array_mut().expect("conditions");
            conditions.truncate(1);
            conditions.push(json!({"type": "Released", "status": truth, "message": "steps may still run"}));
        });
        let shown = person.says(&["status", "one", "-n", "team"]).await.out;
        assert_eq!(shown.contains("released  steps may still run"), is_shown, "{shown}");
    }
    let said = person.says(&["status", "onee", "-n", "team"]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("there is no run onee in the namespace team; did you mean one?"), "{}", said.err);
    person.api.fail("/pipelineruns", 403);
    let said = person.says(&["runs", "-n", "team"]).await;
    assert_eq!(said.code, Some(3), "{}", said.err);
    assert!(said.err.contains("list the runs of team: told to fail"), "{}", said.err);
}
