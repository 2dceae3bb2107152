//! What is refused before a run starts, and what is written down of one that may start.

use api::cluster::DaskClusterSpec;
use api::storage::Storage;
use decide::pipelinerun::admit::{Admission, RunRevision, admit};
use decide::pipelinerun::code::{ConfigMap, config_map};
use decide::pipelinerun::facts::Place;
use decide::pipelinerun::references::References;
use lower::allowed::RunLimits;
use serde_json::{Value, json};

use super::support::UID;

/// One Pipeline `p` (and a `bad` one), one DaskCluster `c` with storage and a GPU group, one address.
#[derive(Default)]
struct Around {
    limits: RunLimits,
    /// The operator's default.
    storage: Option<&'static str>,
}

impl References for Around {
    fn pipeline(&self, name: &str) -> Option<Value> {
        let spec = json!({"steps": [{"name": "a", "call": "m:f", "dependsOn": ["b"]}]});
        let good =
            json!({"steps": [{"name": "a", "call": "m:f"}], "cluster": {"ref": "c"}, "deadlines": {"start": "1h"}});
        let spec = match name {
            "p" => good,
            "bad" => spec,
            "coded" => json!({"steps": [], "code": {"configMap": "flow"}}),
            _ => return None,
        };
        Some(
            json!({"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": name}, "spec": spec}),
        )
    }

    fn cluster(&self, name: &str) -> Option<DaskClusterSpec> {
        let spec = json!({"workers": [{"name": "cpu"}, {"name": "gpu", "gpu": {"count": 1}}], "storage": {"url": "s3://bucket/c"}});
        (name == "c").then(|| serde_json::from_value(spec).unwrap())
    }

    fn storage(&self) -> Option<Storage> {
        self.storage.map(|url| Storage { url: url.to_owned(), ..Storage::default() })
    }

    fn config_map(&self, name: &str) -> ConfigMap {
        let found = |files: &[(&str, &str)], binary: &[&str]| ConfigMap::Found {
            files: files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
            binary: binary.iter().map(|name| (*name).to_owned()).collect(),
        };
        match name {
            "flow" => found(&[("flow.py", "x = 1")], &[]),
            "empty" => found(&[], &[]),
            "binary" => found(&[("flow.py", "")], &["flow.so"]),
            "large" => found(&[("flow.py", &"\n".repeat(500_000))], &[]),
            _ => ConfigMap::Missing,
        }
    }

    fn most_workers(&self) -> Option<u32> {
        Some(20)
    }

    fn limits(&self) -> RunLimits {
        self.limits
    }

    fn allows(&self, address: &str) -> bool {
        address == "tls://dask.example.com:8786"
    }
}

fn ask(spec: Value) -> Admission {
    ask_with(spec, Around::default())
}

fn ask_with(spec: Value, around: Around) -> Admission {
    let meta = json!({"name": "r", "namespace": "team", "uid": UID, "deletionTimestamp": null, "finalizers": []});
    admit(
        &json!({"apiVersion": "daskade.dev/v1alpha1", "kind": "PipelineRun", "metadata": meta, "spec": spec, "status": {}}),
        &around,
    )
}

fn run_revision(spec: Value) -> RunRevision {
    match ask(spec) {
        Admission::Ready(run_revision) => *run_revision,
        other => panic!("{other:?}"),
    }
}

fn refused(spec: Value) -> String {
    match ask(spec) {
        Admission::Invalid(problems) => problems.join("\n"),
        other => panic!("{other:?}"),
    }
}

fn steps() -> Value {
    json!([{"name": "a", "call": "m:f"}])
}

#[test]
fn a_pipeline_is_resolved_with_the_runs_own_deadlines_and_the_clusters_storage() {
    let it = run_revision(json!({"pipelineRef": "p", "deadlines": {"active": "2h"}}));
    assert_eq!(it.place, Place::Shared("c".into()));
    assert_eq!(it.storage.url, "s3://bucket/c");
    let deadlines = it.run.pipeline.deadlines.clone().unwrap();
    assert_eq!(
        (deadlines.start.unwrap().to_string(), deadlines.active.unwrap().to_string()),
        ("1h".into(), "2h".into())
    );
    assert_eq!((it.run.uid.as_str(), it.run.name.as_str()), (UID, "r"));
    // What is stored and read back is the same to the byte: the journal compares its digest.
    let back: RunRevision = serde_json::from_value(serde_json::to_value(&it).unwrap()).unwrap();
    assert_eq!(back.run.to_bytes().unwrap(), it.run.to_bytes().unwrap());
}

#[test]
fn the_operators_storage_is_for_those_who_name_none_and_whose_cluster_is_their_own() {
    let around = || Around { storage: Some("s3://all/team"), ..Around::default() };
    let own = |url: &str, spec: Value| match ask_with(spec, around()) {
        Admission::Ready(run_revision) => {
            assert_eq!(run_revision.storage.url, url);
            assert_eq!(run_revision.run.cluster.storage.unwrap().url, url, "its pods reach it");
        }
        other => panic!("{other:?}"),
    };
    own("s3://all/team", json!({"pipelineSpec": {"steps": steps()}}));
    own("s3://bucket/p", json!({"pipelineSpec": {"steps": steps(), "storage": {"url": "s3://bucket/p"}}}));
    let template = json!({"template": {"storage": {"url": "s3://bucket/t"}}});
    own("s3://bucket/t", json!({"pipelineSpec": {"steps": steps(), "cluster": template}}));
    let outside = json!({"address": "tls://dask.example.com:8786", "tls": {"secretRef": "t"}});
    let refused = ask_with(json!({"pipelineSpec": {"steps": steps(), "cluster": outside}}), around());
    assert!(matches!(refused, Admission::Invalid(_)), "its pods have no such identity: {refused:?}");
}

#[test]
fn a_cluster_of_its_own_gets_the_pipelines_storage() {
    let storage = json!({"url": "s3://bucket/p", "secretRef": "keys"});
    let template = json!({"template": {"storage": {"url": "s3://bucket/other"}}});
    let it = run_revision(json!({"pipelineSpec": {"steps": steps(), "storage": storage, "cluster": template}}));
    assert_eq!(it.place, Place::Own);
    assert_eq!(it.run.cluster.storage.as_ref().unwrap().secret_ref.as_deref(), Some("keys"));
    assert_eq!(it.run.cluster.workers[0].name, "default");
    let it = run_revision(json!({"pipelineSpec": {"steps": steps(), "storage": storage}}));
    assert_eq!((it.place, it.storage.url.as_str()), (Place::Own, "s3://bucket/p"));
}

#[test]
fn every_problem_is_told_with_object_and_field() {
    for (spec, parts) in [
        (json!({"pipelineRef": "bad"}), &["Pipeline bad: spec.steps[0].dependsOn[0]: UnknownStep"][..]),
        (
            json!({"pipelineSpec": {"steps": steps()}, "select": {"loadVersions": {"a": "r"}}}),
            &["spec.select.loadVersions.a: UnknownInput"][..],
        ),
        (
            json!({"pipelineSpec": {"steps": [{"name": "a", "call": "m:f", "inputs": {"x": {"path": "in/x.json"}}}],
                "cluster": {"ref": "c"}}, "select": {"fromInputs": ["in/y.json"]}}),
            &["spec.select.fromInputs[0]: UnknownInput", "did you mean in/x.json?"][..],
        ),
        (
            json!({"pipelineSpec": {"steps": steps(), "cluster": {"ref": "c"}}, "select": {"only": ["aa"]}}),
            &["spec.select.only[0]: UnknownStep"][..],
        ),
        (json!({"pipelineSpec": {"steps": steps()}}), &["spec.pipelineSpec.storage: MissingField"][..]),
        (
            json!({"pipelineSpec": {"steps": steps(), "storage": {"url": "s3://bucket/p"}, "cluster": {"template": {"workers": [
                {"name": "a", "replicas": 11}, {"name": "b", "autoscale": {"max": 10}}]}}}}),
            &["spec.pipelineSpec.cluster.template.workers: LimitExceeded", "21", "20"],
        ),
        (
            json!({"pipelineSpec": {"steps": [{"name": "a", "call": "m:f", "resources": {"GPU": 2}}], "cluster": {"ref": "c"}},
                "params": {"x": 1}}),
            &["UnsatisfiableResources"][..],
        ),
        (
            json!({"pipelineSpec": {"steps": steps(), "code": {"path": "flow"}, "cluster": {"ref": "c"},
                "storage": {"url": "s3://bucket/x", "secretRef": "keys"}}}),
            &["spec.pipelineSpec.code.path: InvalidValue", "spec.pipelineSpec.storage.secretRef: Conflict"][..],
        ),
        (
            json!({"pipelineSpec": {"steps": steps(), "cluster": {"address": "tls://other:8786"}}}),
            &[
                "cluster.address: NotAllowed",
                "--allow-address",
                "cluster.tls.secretRef: MissingField",
                "storage: MissingField",
            ][..],
        ),
        (
            json!({"pipelineSpec": {"steps": steps(), "storage": {"url": "file:///data"}}}),
            &[
                "spec.pipelineSpec.storage.url: InvalidValue: /data lies on no volume of the scheduler, group default",
                "spec.pipelineSpec.cluster.template.scheduler.volumes",
                "persistentVolumeClaim",
            ],
        ),
        (
            json!({"pipelineSpec": {"steps": steps(), "cluster": {"ref": "c"}, "storage": {"url": "file:///data"}}}),
            &["spec.pipelineSpec.storage.url: InvalidValue", "spec.scheduler.volumes", "of the DaskCluster c"],
        ),
        (json!({"pipelineSpec": {"steps": []}}), &["spec.pipelineSpec.steps"][..]),
    ] {
        let told = refused(spec.clone());
        for part in parts {
            assert!(told.contains(part), "{part} in {told} of {spec}");
        }
    }
}

/// What is told of a run under limits; nothing if it may run.
fn told(spec: Value, limits: RunLimits) -> String {
    match ask_with(spec, Around { limits, ..Around::default() }) {
        Admission::Invalid(problems) => problems.join("\n"),
        Admission::Ready(_) => String::new(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn more_than_the_operator_allows_is_refused_by_field_with_the_numbers_and_who_set_them() {
    let none = RunLimits::default;
    let run = |fields: Value| {
        let mut spec = json!({"pipelineSpec": {"steps": steps(), "cluster": {"ref": "c"}}});
        for (name, value) in fields.as_object().unwrap() {
            spec["pipelineSpec"][name] = value.clone();
        }
        spec
    };
    let retried = |limit: u32| {
        let step = json!({"name": "b", "call": "m:f", "retry": {"limit": limit}});
        run(
            json!({"steps": [{"name": "a", "call": "m:f"}, step], "finally": [{"name": "z", "call": "m:f", "retry": {"limit": limit}}]}),
        )
    };
    let mapped = |n: u32| {
        let b = json!({"name": "b", "call": "m:f", "map": {"x": format!("$(range({n}))")}});
        let c = json!({"name": "c", "call": "m:f", "map": {"x": "$(steps.b.output)"}});
        run(json!({"steps": [{"name": "a", "call": "m:f"}, b, c]}))
    };
    let params = |text: String| {
        let mut spec = run(json!({"params": [{"name": "p", "type": "string"}]}));
        spec["params"] = json!({"p": text});
        spec
    };
    let code = |bytes: usize| run(json!({"code": {"files": {"m.py": "#".repeat(bytes)}}}));
    let steps = RunLimits { steps: Some(21), ..none() };
    let attempts = RunLimits { attempts: Some(4), ..none() };
    let pipeline = RunLimits { pipeline_bytes: Some(1000), ..none() };
    let parameters = RunLimits { params_bytes: Some(100), ..none() };
    let at = "spec.pipelineSpec";
    for (within, beyond, limits, parts) in [
        (
            mapped(10),
            mapped(11),
            steps,
            vec![format!("{at}.steps[1].map"), "23 steps".into(), "allows 21".into(), "--max-steps-per-run".into()],
        ),
        (
            retried(3),
            retried(4),
            attempts,
            vec![
                format!("{at}.steps[1].retry.limit"),
                format!("{at}.finally[0].retry.limit"),
                "5 attempts".into(),
                "allows 4".into(),
                "--max-attempts".into(),
            ],
        ),
        (code(500), code(1000), pipeline, vec![format!("{at}: "), "1000 bytes".into(), "--max-pipeline-size".into()]),
        (
            params("x".repeat(50)),
            params("x".repeat(100)),
            parameters,
            vec!["spec.params: ".into(), "100 bytes".into(), "--max-params-size".into()],
        ),
    ] {
        assert_eq!(told(within, limits), "");
        assert_eq!(told(beyond.clone(), none()), "");
        let text = told(beyond, limits);
        for part in parts {
            assert!(text.contains(&part) && text.contains("LimitExceeded"), "{part} in {text}");
        }
    }
    // Without maps it is the steps themselves that are too many.
    let two = run(json!({"steps": [{"name": "a", "call": "m:f"}, {"name": "b", "call": "m:f"}]}));
    assert!(told(two, RunLimits { steps: Some(1), ..none() }).contains("spec.pipelineSpec.steps: LimitExceeded"));
    // What a run leaves out does not count.
    let mut part = mapped(50);
    part["select"] = json!({"only": ["a"]});
    assert_eq!(told(part, steps), "");
}

#[test]
fn the_files_of_a_config_map_are_written_down_with_the_run() {
    let spec = |name: &str| {
        let code = json!({ "configMap": name });
        json!({"pipelineSpec": {"steps": steps(), "code": code, "storage": {"url": "s3://bucket/p"}}})
    };
    let it = run_revision(spec("flow"));
    let code = it.run.pipeline.code.unwrap();
    assert_eq!((code.config_map, code.files.unwrap()["flow.py"].as_str()), (None, "x = 1"));
    for (name, words) in [
        ("empty", &["spec.pipelineSpec.code.configMap: Empty", "--from-file"][..]),
        ("binary", &["code.configMap: InvalidText", "flow.so", "code.url"]),
        // Twice as long as JSON.
        ("large", &["code.configMap: TooLarge", "code.url"]),
    ] {
        let told = refused(spec(name));
        for word in words {
            assert!(told.contains(word), "{word} in {told}");
        }
    }
    let ask = |spec: Value| config_map(&serde_json::from_value(spec).unwrap(), &Around::default());
    assert_eq!(ask(spec("flow")), Some("flow".to_owned()));
    assert_eq!(ask(json!({"pipelineRef": "coded"})), Some("flow".to_owned()));
    assert_eq!(ask(json!({"pipelineRef": "p"})), None);
}

#[test]
fn a_folder_on_a_claim_is_a_storage() {
    let volumes = json!([{"name": "data", "mountPath": "/data", "persistentVolumeClaim": "data"}]);
    let template = json!({"scheduler": {"volumes": volumes}, "workers": [{"name": "a", "volumes": volumes}]});
    let spec = |at: &str, mut template: Value| {
        let storage = json!({"url": "file:///data/runs"});
        let mut spec = json!({"steps": steps()});
        if at == "pipeline" {
            spec["storage"] = storage
        } else {
            template["storage"] = storage
        }
        spec["cluster"] = json!({ "template": template });
        json!({ "pipelineSpec": spec })
    };
    for at in ["pipeline", "template"] {
        assert_eq!(run_revision(spec(at, template.clone())).storage.url, "file:///data/runs");
    }
    let told = refused(spec("template", json!({"workers": [{"name": "a", "volumes": volumes}]})));
    assert!(told.contains("spec.pipelineSpec.cluster.template.storage.url: InvalidValue"), "{told}");
}

#[test]
fn what_is_not_there_yet_is_waited_for_as_long_as_the_deadlines_say() {
    let later = json!({"ref": "later"});
    for (spec, expected) in [
        (json!({"pipelineRef": "later", "deadlines": {"start": "2h"}}), "2h"),
        (json!({"pipelineRef": "later", "deadlines": {"active": "2h"}}), "30m"),
        (json!({"pipelineRef": "later", "deadlines": {"active": "4s"}}), "4s"),
        (json!({"pipelineSpec": {"steps": steps(), "cluster": later, "deadlines": {"start": "5s"}}}), "5s"),
        (
            json!({
                "pipelineSpec": {"steps": steps(), "cluster": later, "deadlines": {"start": "5s", "active": "1m"}},
                "deadlines": {"start": "3h"},
            }),
            "1m",
        ),
    ] {
        match ask(spec) {
            Admission::Waits(_, patience) => assert_eq!(patience.to_string(), expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_not_there_yet_is_waited_for() {
    for (spec, reason) in [
        (json!({"pipelineRef": "later"}), "PipelineNotFound"),
        (json!({"pipelineSpec": {"steps": steps(), "cluster": {"ref": "later"}}}), "ClusterNotFound"),
        (json!({"pipelineSpec": {"steps": steps(), "code": {"configMap": "later"}}}), "ConfigMapNotFound"),
    ] {
        match ask(spec) {
            Admission::Waits(issue, patience) => {
                assert_eq!((issue.reason.as_str(), patience.to_string().as_str()), (reason, "30m"));
                assert!(issue.message.contains("later"), "{}", issue.message);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_address_that_is_allowed_is_used_with_its_secret() {
    let cluster = json!({"address": "tls://dask.example.com:8786", "tls": {"secretRef": "dask"}});
    let spec = json!({"steps": steps(), "cluster": cluster, "storage": {"url": "s3://bucket/x"}});
    let address = "tls://dask.example.com:8786".to_owned();
    let place = Place::Address { address, secret: Some("dask".into()) };
    assert_eq!(run_revision(json!({"pipelineSpec": spec})).place, place);
}
