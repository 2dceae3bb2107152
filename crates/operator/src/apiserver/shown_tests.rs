//! What is kept of objects of all sizes.

use super::*;

fn run(bytes: usize, change: impl FnOnce(&mut Value)) -> String {
    let mut run = json!({
        "apiVersion": "daskade.dev/v1alpha1",
        "kind": "PipelineRun",
        "metadata": {
            "name": "r", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 2,
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {PIPELINE_LABEL: "etl", "team": "a"},
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "x".repeat(bytes),
                QUEUED_ANNOTATION: "true",
            },
            "finalizers": ["others/one", FINALIZER],
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {"suspend": true, "pipelineSpec": {
            "code": {"files": {"flow.py": "y".repeat(bytes)}},
            "steps": [{"name": "a", "call": "flow:f"}],
        }},
        "status": {"conditions": [
            {"type": "Stalled", "status": "False"},
            {"type": "Succeeded", "status": "Unknown", "reason": "Suspended", "message": "it waits"},
        ]},
    });
    change(&mut run);
    run.to_string()
}

fn record(text: &str) -> Record {
    read_root(Kind::Run, text).expect("it can be read").kept.expect("it is ours").1
}

#[test]
fn a_small_object_is_kept_as_a_pass_sees_it() {
    let text = run(100, |_| {});
    let Record { version, body, .. } = record(&text);
    assert_eq!(version, "7");
    let Body::Json(kept) = body else { panic!("{body:?}") };
    let Read { value: whole, .. } = read_whole(Kind::Run, &text).expect("it can be read");
    assert_eq!(serde_json::from_slice::<Value>(&kept.json).expect("JSON"), whole);
    assert_eq!(whole["spec"]["pipelineSpec"]["steps"][0]["name"], "a");
    assert_eq!(whole["metadata"]["annotations"], json!({QUEUED_ANNOTATION: "true"}));
    assert_eq!(whole["metadata"]["finalizers"], json!(["others/one", FINALIZER]));
    assert!(whole["metadata"].get("managedFields").is_none());
}

#[test]
fn of_a_large_object_no_more_is_kept_than_others_decide_by() {
    let text = run(1 << 20, |_| {});
    let kept = record(&text);
    let Body::Part(part) = &kept.body else { panic!("{:?}", kept.body) };
    assert!(part.json.len() < 1000, "{}", part.json.len());
    assert!(kept.weight() > 4 << 20, "{}", kept.weight());
    let light = crate::pipelinerun::gather::read_run(&Key::new("n", "r"), &kept, &kept.json());
    assert!(light.held && light.spec.suspend && !light.has_ended());
    let ended = run(1 << 20, |run| run["status"]["conditions"][1]["status"] = json!("False"));
    let ended = record(&ended);
    assert!(crate::pipelinerun::gather::read_run(&Key::new("n", "r"), &ended, &ended.json()).has_ended());
    // Its reconciliation sees all of it.
    let Read { value: whole, .. } = read_whole(Kind::Run, &text).expect("it can be read");
    assert_eq!(whole["spec"]["pipelineSpec"]["code"]["files"]["flow.py"].as_str().map(str::len), Some(1 << 20));
}

#[test]
fn a_large_object_that_others_wrote_to_is_the_same_and_one_that_was_changed_is_not() {
    let part = |text: &str| match record(text).body {
        Body::Part(part) => part,
        body => panic!("{body:?}"),
    };
    let known = part(&run(1 << 20, |_| {}));
    let written = run(1 << 20, |run| {
        run["metadata"]["resourceVersion"] = json!("8");
        run["metadata"]["managedFields"] = json!([]);
        run["metadata"]["annotations"]["theirs"] = json!("b");
    });
    assert_eq!(part(&written), known);
    for (at, value) in [
        ("/spec/suspend", json!(false)),
        ("/spec/pipelineSpec/steps/0/call", json!("flow:g")),
        ("/status/conditions/1/reason", json!("Pending")),
        ("/metadata/labels/team", json!("b")),
    ] {
        let changed = run(1 << 20, |run| *run.pointer_mut(at).expect("it is there") = value);
        assert_ne!(part(&changed), known, "{at}");
    }
}

#[test]
fn what_makes_an_object_large_does_not_matter() {
    let names = |n: usize| format!("{n:0200}");
    let owner = |n| json!({"apiVersion": "v1", "kind": "PipelineRun", "name": names(n), "uid": names(n)});
    let many: Vec<Value> = (0..5000).map(|n| json!(names(n))).collect();
    let text = run(10, |run| {
        run["metadata"]["labels"] = (0..5000).map(|n| (names(n), json!("x"))).collect();
        run["metadata"]["finalizers"] = json!(many);
        run["metadata"]["ownerReferences"] = (0..5000).map(owner).collect();
        run["spec"]["pipelineRef"] = json!("p".repeat(1 << 20));
        run["status"]["results"] = json!(many);
    });
    let seen = read_root(Kind::Run, &text).expect("it can be read");
    let (_, record) = seen.kept.expect("it is ours");
    let Body::Part(part) = record.body else { panic!("{:?}", record.body) };
    assert!(part.json.len() < 8 << 10, "{}", part.json.len());
    assert!(seen.of.is_none(), "a name that long is that of no Pipeline");
}

#[test]
fn a_pipeline_is_told_of_its_runs_alike_whatever_their_size() {
    let of = |text: &str| {
        let (key, record) = read_root(Kind::Run, text).expect("it can be read").of.expect("it has a Pipeline");
        (key, record.json())
    };
    let spec = |text: &str| serde_json::from_str::<Value>(text).expect("JSON")["spec"]["pipelineSpec"].clone();
    for bytes in [10, 1 << 20] {
        let text = run(bytes, |_| {});
        let (key, slim) = of(&text);
        assert_eq!(key, Key::new("n", "etl"));
        let hash = pipeline::hash(&serde_json::from_value(spec(&text)).expect("a spec"));
        assert_eq!(slim["frozenHash"], json!(hash));
        assert_eq!(pipeline::read_run(&slim).map(|(_, run)| run.queued), Some(true));
        let size = slim.to_string().len();
        assert!(size < 1000, "{size}");
        // Once it has begun its spec is written down elsewhere, and its hash stays.
        let begun = run(bytes, |run| run["status"]["revision"] = json!("r-1"));
        assert_eq!(of(&begun).1["frozenHash"], json!(hash));
        let kept = record(&begun);
        assert!(matches!(kept.body, Body::Json(_)), "{:?}", kept.body);
        assert_eq!(kept.json()["frozenHash"], json!(hash));
    }
}

#[test]
fn a_spec_with_too_many_values_is_not_unpacked() {
    let zeros = |count| run(10, |run| run["spec"]["params"] = json!({"x": vec![0; count]}));
    let read = |text: &str| read_whole(Kind::Run, text).expect("it can be read");
    assert_eq!(read(&zeros(limits::OBJECT_VALUES - 100)).refused, None);
    let Read { value, refused, .. } = read(&zeros(limits::OBJECT_VALUES));
    assert!(refused.is_some_and(|why| why.starts_with("spec: it has about 1500") && why.contains("docs/limits.md")));
    assert_eq!(value["spec"], json!({"pipelineRef": null, "suspend": true, "cancel": false}));
    assert_eq!(value["status"]["conditions"][1]["reason"], "Suspended", "its status is compared with the next one");
}

#[test]
fn what_there_is_no_room_for_is_kept_in_part() {
    let text = run(100, |_| {});
    let whole = record(&text);
    let Body::Json(json) = &whole.body else { panic!("{:?}", whole.body) };
    let reduced = Record { body: reduce(Kind::Run, &json.json).expect("it can be reduced"), ..whole.clone() };
    assert!(reduced.weight() > 0 && reduced.json()["spec"]["suspend"] == true);
    assert!(reduced.json()["spec"].get("pipelineSpec").is_none());
}
