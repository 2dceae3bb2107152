//! `submit`, `status`, `runs` and `cancel` against the double: what is made, told and how the command ends.

use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::api::Api;

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
            while person.api.object(&path("pipelineruns", name)).is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            person.end(name, status, state);
        };
        let (said, ()) = tokio::join!(person.says(&words), ends);
        assert_eq!(said.code, Some(code), "{}", said.err);
        assert!(said.out.contains(&format!("{name}: {state} 1/2")), "{}", said.out);
        assert_eq!(said.out.contains("step a failed"), code != 0, "{}", said.out);
    }
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
    let said = person.says(&["status", "onee", "-n", "team"]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("there is no run onee in the namespace team; did you mean one?"), "{}", said.err);
    person.api.fail("/pipelineruns", 403);
    let said = person.says(&["runs", "-n", "team"]).await;
    assert_eq!(said.code, Some(3), "{}", said.err);
    assert!(said.err.contains("list the runs of team: told to fail"), "{}", said.err);
}
