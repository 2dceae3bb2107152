use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::frame::Limits;
use wire::{PathPart, StepDef, Target};

fn message(value: &Value) -> Message {
    let body = rmp_serde::to_vec(value).unwrap_or_default();
    Message::new(vec![Bytes::from(body)], &Limits::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// What the peer's msgpack decoder sees of an operation's arguments.
fn wire<O: Operation>(operation: &O) -> Value {
    let body = rmp_serde::to_vec_named(operation).unwrap_or_default();
    let value: rmpv::Value = rmp_serde::from_slice(&body).unwrap_or(rmpv::Value::Nil);
    // Binary has no JSON form; its length shows that it is binary.
    fn plain(value: rmpv::Value) -> Value {
        match value {
            rmpv::Value::Binary(b) => json!({"bin": b.len()}),
            rmpv::Value::Array(items) => items.into_iter().map(plain).collect(),
            rmpv::Value::Map(items) => Value::Object(
                items.into_iter().map(|(k, v)| (k.as_str().unwrap_or_default().to_owned(), plain(v))).collect(),
            ),
            other => serde_json::to_value(other).unwrap_or_default(),
        }
    }
    plain(value)
}

#[test]
fn nil_means_an_unknown_operation() {
    let error = read_reply::<RuntimeInfo>("daskade-hello", &message(&Value::Null)).err();
    assert!(matches!(error, Some(Error::UnknownOp { op: "daskade-hello" })));
}

#[test]
fn refusals_and_exceptions_are_different_errors() {
    let refused = json!({"status": "error", "reason": "StaleEpoch", "message": "epoch 3\u{1b} is older"});
    let error = read_reply::<Accepted>("op", &message(&refused)).err();
    assert_eq!(error.as_ref().and_then(Error::refusal), Some("StaleEpoch"));
    assert_eq!(error.map(|e| e.to_string()).as_deref(), Some("call op: StaleEpoch: epoch 3 is older"));
    for status in ["uncaught-error", "error"] {
        let raised = json!({"status": status, "exception_text": "ValueError('x')", "traceback_text": "tb"});
        let error = read_reply::<Accepted>("op", &message(&raised)).err();
        assert!(
            matches!(error, Some(Error::Remote { text, traceback, .. }) if text == "ValueError('x')" && traceback == "tb")
        );
    }
    let bare = read_reply::<Accepted>("op", &message(&json!({"status": "error"}))).err();
    assert_eq!(bare.map(|e| e.category()), Some("remote"));
    assert!(read_reply::<Accepted>("op", &message(&json!({"status": "OK", "more": 1}))).is_ok());
}

#[test]
fn a_reply_of_another_shape_is_an_error_of_the_message() {
    for reply in [json!(5), json!("OK"), json!([]), json!({"status": "OK"}), json!({"protocol": "x"})] {
        assert_eq!(
            read_reply::<RuntimeInfo>("op", &message(&reply)).err().map(|e| e.category()),
            Some("message"),
            "{reply}"
        );
    }
}

#[test]
fn what_a_peer_sends_in_the_wrong_place_is_not_repeated_at_length() {
    let reply = json!({"host": {}, "packages": format!("\u{1b}[2J{}", "x".repeat(100_000))});
    let text = read_reply::<VersionInfo>("op", &message(&reply)).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(text.contains("xxx") && text.len() < 700 && !text.contains('\u{1b}'), "{}", text.len());
}

#[test]
fn tasks_are_written_as_tuples() {
    let items = [
        SubmitItem {
            task: TaskAddr::new(1, Some(2), 3),
            priority: -4,
            values: Some(Bytes::from_static(b"abc")),
            data_deps: vec![TaskDep::Task { step: 0, item: None }, TaskDep::Task { step: 0, item: Some(7) }],
            after_deps: vec![TaskDep::All { step: 0, len: 9 }],
        },
        SubmitItem {
            task: TaskAddr::new(0, None, 1),
            priority: 0,
            values: None,
            data_deps: vec![],
            after_deps: vec![],
        },
    ];
    assert_eq!(
        wire(&Submit { run: "u", epoch: 5, items: &items }),
        json!({"run": "u", "epoch": 5, "items": [
            [1, 2, 3, -4, {"bin": 3}, [[0, -1], [0, 7]], [[0, -2, 9]]],
            [0, -1, 1, 0, null, [], []],
        ]})
    );
    let stop = [TaskAddr::new(0, None, 1), TaskAddr::new(2, Some(0), 4)];
    assert_eq!(
        wire(&Stop { run: "u", epoch: 5, items: &stop }),
        json!({"run": "u", "epoch": 5, "items": [[0, -1, 1], [2, 0, 4]]})
    );
}

/// A runtime of an older release knows no `lead` there and looks at an epoch only if there is one.
/// Issue 13, point 15.
#[test]
fn epochs_that_are_not_known_are_left_out() {
    let forget = |epoch, lead, lease| wire(&Forget { run: "u", epoch, lead, lease });
    assert_eq!(forget(None, None, None), json!({"run": "u"}));
    assert_eq!(forget(Some(3), None, None), json!({"run": "u", "epoch": 3}));
    assert_eq!(forget(Some(3), Some(7), None), json!({"run": "u", "epoch": 3, "lead": 7}));
    assert_eq!(forget(Some(3), Some(7), Some("l")), json!({"run": "u", "epoch": 3, "lead": 7, "lease": "l"}));
    let storage = Storage { url: "file:///s".to_owned(), ..Storage::default() };
    let earlier = |lead, lease| {
        wire(&Earlier { run: "u", storage: storage.clone(), pipeline: "p", wanted: None, results: 9, lead, lease })
    };
    let code = |lead, lease| {
        let url = "file:///c.zip";
        wire(&FetchCode { run: "u", storage: storage.clone(), url, sha256: None, lead, lease })
    };
    for told in [earlier(None, None), code(None, None)] {
        assert!(told["lead"].is_null() && told["lease"].is_null(), "{told}");
    }
    for told in [earlier(Some(7), Some("l")), code(Some(7), Some("l"))] {
        assert_eq!((&told["lead"], &told["lease"]), (&json!(7), &json!("l")));
    }
    let drain = |cluster, lease| wire(&Drain { cluster, lead: 7, lease, names: vec!["w".to_owned()] });
    assert_eq!(drain(None, None), json!({"lead": 7, "names": ["w"]}));
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(drain(text("c"), text("l")), json!({"cluster": "c", "lead": 7, "lease": "l", "names": ["w"]}));
}

#[test]
fn records_are_written_as_tuples() {
    let decided = Decided { step: 1, item: None, reason: "WhenFalse".into(), message: "m".into() };
    let records = [Record::Length { step: 3, len: 4 }, Record::Skipped(decided.clone()), Record::Refused(decided)];
    assert_eq!(
        wire(&Records { run: "u", epoch: 1, records: &records }),
        json!({"run": "u", "epoch": 1, "records": [
            ["length", 3, 4], ["skipped", 1, -1, "WhenFalse", "m"], ["refused", 1, -1, "WhenFalse", "m"],
        ]})
    );
}

#[test]
fn a_run_is_opened_with_exactly_the_agreed_fields() {
    let open = Open {
        requirements: vec!["pandas>=2".into()],
        same_image: true,
        lead: None,
        lease: None,
        pipeline: None,
        run: "u".into(),
        name: "n".into(),
        epoch: None,
        create: true,
        reopen: false,
        spec: b"{}".to_vec(),
        spec_digest: "d".into(),
        pages: true,
        storage: Storage { url: "s3://b/p".into(), region: Some("r".into()), ..Storage::default() },
        code: Code { digest: "c".into(), zip: Some(vec![1, 2, 3]) },
        steps: vec![StepDef {
            name: "s".into(),
            call: Some("m:f".into()),
            script: None,
            args: vec![0x92, 0x90, 0x80],
            serializer: "pickle".into(),
            container: false,
            lens: vec![vec![], vec![PathPart::Key("k".into()), PathPart::Index(1)]],
            result: 1,
            resources: [("GPU".to_owned(), 1.0)].into(),
            group: None,
            gpu_ok: false,
            isolation: "process".into(),
            timeout: Some(1.5),
            env: [("A".to_owned(), "b".to_owned())].into(),
            inputs: vec![0x91, 0x90],
            target: Some(Target { place: vec![0x90], replace: true }),
        }],
        settings: Settings { inline_max: 1, cache_bytes: 2, log_cap: 3, tasks_per_slot: 4, pins: BTreeMap::new() },
    };
    assert_eq!(
        wire(&open),
        json!({
            "run": "u", "name": "n", "epoch": null, "create": true, "reopen": false, "spec": {"bin": 2}, "spec_digest": "d",
            "pages": true,
            "storage": {"url": "s3://b/p", "region": "r"}, "code": {"digest": "c", "zip": {"bin": 3}},
            "requirements": ["pandas>=2"], "same_image": true,
            "steps": [{
                "name": "s", "call": "m:f", "script": null, "args": {"bin": 3}, "serializer": "pickle",
                "container": false, "lens": [[], ["k", 1]], "result": 1, "resources": {"GPU": 1.0}, "group": null,
                "gpu_ok": false, "isolation": "process", "timeout": 1.5, "env": {"A": "b"},
                "inputs": {"bin": 2}, "target": {"place": {"bin": 1}, "replace": true},
            }],
            "settings": {"inline_max": 1, "cache_bytes": 2, "log_cap": 3, "tasks_per_slot": 4},
        })
    );
}

#[test]
fn a_snapshot_is_read() {
    let reply = json!({
        "status": "OK", "epoch": 2, "instance": "i", "cursor": 7,
        "snapshot": {
            "committed": [[0, -1, 1, [3], [{"x": 1}]], [1, 0, 2, null, null], [1, 1, 1, null, [null]]],
            "finished": [], "submitted": [[1, 1, 1]], "lengths": [[1, 3]],
            "skipped": [[2, -1, "WhenFalse", ""]], "failed": [[1, 2, 1, "oom"]], "lost": [[1, 2, 2]],
            "refused": [[3, 0, "StepFailed", "m"]], "final": {"state": "Succeeded", "results": {"a": [1]}}, "new": 1,
        },
    });
    let opened: Opened = read_reply("daskade-open", &message(&reply)).unwrap_or_else(|e| panic!("{e}"));
    let snapshot = opened.snapshot;
    assert_eq!((opened.epoch, opened.cursor), (2, 7));
    assert_eq!(snapshot.committed[0].lens.as_deref(), Some(&[3][..]));
    assert_eq!(snapshot.committed[0].json, Some(json!({"x": 1}).into()));
    assert_eq!(snapshot.committed[1], Done { task: TaskAddr::new(1, Some(0), 2), lens: None, json: None, away: None });
    assert_eq!(snapshot.committed[2].json, Some(serde_json::Value::Null.into()), "a result that is null");
    assert_eq!(snapshot.submitted, [TaskAddr::new(1, Some(1), 1)]);
    assert_eq!(snapshot.lost, [TaskAddr::new(1, Some(2), 2)]);
    assert_eq!(snapshot.failed[0].class, "oom");
    assert_eq!(snapshot.skipped[0].item, None);
    assert_eq!(snapshot.refused[0].item, Some(0));
    assert_eq!(snapshot.closed.and_then(|f| f.get("state").cloned()), Some(json!("Succeeded")));
}

#[test]
fn a_snapshot_is_read_page_by_page() {
    let opened =
        json!({"status": "OK", "epoch": 2, "instance": "i", "cursor": 7, "snapshot": {}, "more": "t", "keeps": true});
    let opened: Opened = read_reply("daskade-open", &message(&opened)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((opened.more.as_deref(), opened.keeps), (Some("t"), true));
    assert_eq!(wire(&NextPage { run: "u", token: "t", page: 1 }), json!({"run": "u", "token": "t", "page": 1}));
    let page = json!({
        "status": "OK", "more": null,
        "snapshot": {"committed": [[0, 3, 1, null, 70_000]], "results": [["r", 1, 2, "text"]]},
    });
    let page: SnapshotPage = read_reply("daskade-snapshot", &message(&page)).unwrap_or_else(|e| panic!("{e}"));
    let away = Done { task: TaskAddr::new(0, Some(3), 1), lens: None, json: None, away: Some(70_000) };
    assert_eq!((page.more, page.snapshot.committed), (None, vec![away]));
    assert_eq!(page.snapshot.results[0], ResultPart { name: "r".into(), index: 1, count: 2, text: "text".into() });

    let tasks = [Item { step: 0, item: Some(3) }, Item { step: 1, item: None }];
    let ask = ReadResults { run: "u", epoch: 2, tasks: &tasks };
    assert_eq!(wire(&ask), json!({"run": "u", "epoch": 2, "tasks": [[0, 3], [1, -1]]}));
    let results = json!({"status": "OK", "results": [[0, 3, [{"x": 1}]]]});
    let results: ResultsPage = read_reply("daskade-results", &message(&results)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(results.results, [TaskResult { task: tasks[0], json: json!({"x": 1}).into() }]);
}

#[test]
fn objects_are_asked_for_and_told_in_order() {
    let task = Item { step: 2, item: None };
    let keeps = [Kept { path: "m/x.pkl", task }, Kept { path: "m/0.pkl", task: Item { step: 3, item: Some(0) } }];
    let storage = Storage { url: "file:///s".into(), ..Storage::default() };
    assert_eq!(
        wire(&LookAt { run: "u", storage, reads: &["in/a.json"], keeps: &keeps, pins: &BTreeMap::new() }),
        json!({
            "run": "u", "storage": {"url": "file:///s"}, "reads": ["in/a.json"],
            "keeps": [["m/x.pkl", 2, -1], ["m/0.pkl", 3, 0]],
        })
    );
    let reply = json!({"status": "OK", "reads": ["v", null], "keeps": [null, ["w", true]]});
    let seen: SeenObjects = read_reply("daskade-look", &message(&reply)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(seen.reads, [Some("v".to_owned()), None]);
    assert_eq!(seen.keeps, [None, Some(Seen { version: "w".into(), own: true })]);
}

#[test]
fn what_earlier_runs_named_is_read_and_may_be_missing() {
    let run = |more: Value| {
        let mut run = json!({
            "uid": "u", "name": "n", "spec": [], "code": "c", "committed": [], "lengths": [], "skipped": [], "gone": []
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            run[name] = value.clone();
        }
        let reply = json!({"status": "OK", "runs": [run]});
        let found: EarlierRuns = read_reply("daskade-earlier", &message(&reply)).unwrap_or_else(|e| panic!("{e}"));
        found.runs.into_iter().next().unwrap_or_else(|| panic!("a run"))
    };
    let old = run(json!({}));
    assert!(old.named.is_empty() && old.made.is_empty(), "of a runtime of an earlier release");
    let new = run(json!({"named": [[1, 0, [["in/a.json", "v"]]]], "made": [1.5]}));
    assert_eq!(new.named[0].task, Item { step: 1, item: Some(0) });
    assert_eq!((new.named[0].versions[0].1.as_str(), new.made[0]), ("v", 1.5));
}

#[test]
fn draining_never_closes_and_closing_removes() {
    assert_eq!(
        wire(&RetireWorkers::drain(vec!["a".into()])),
        json!({"names": ["a"], "close_workers": false, "remove": false})
    );
    assert_eq!(
        wire(&RetireWorkers::close(vec!["tcp://x:1".into()]).by_address()),
        json!({"workers": ["tcp://x:1"], "close_workers": true, "remove": true})
    );
}

#[test]
fn encoding_ten_thousand_tasks_takes_one_buffer_and_little_time() {
    let shared = Bytes::from(vec![0x90; 64]);
    let items: Vec<SubmitItem> = (0..10_000)
        .map(|n| SubmitItem {
            task: TaskAddr::new(3, Some(n), 1),
            priority: 0,
            values: Some(shared.slice(..32)),
            data_deps: vec![TaskDep::Task { step: 2, item: Some(n) }],
            after_deps: vec![],
        })
        .collect();
    let began = std::time::Instant::now();
    let wire = crate::message::encode_request("daskade-submit", true, &Submit { run: "u", epoch: 1, items: &items });
    let took = began.elapsed();
    assert!(wire.is_ok_and(|w| w.len() < 600_000));
    // Even a slow machine without optimisation needs a tenth of this.
    assert!(took < std::time::Duration::from_secs(1), "{took:?}");
}

#[test]
fn the_answer_of_an_installation_is_bytes_with_json() {
    let answer = |text: &str| {
        let body = rmp_serde::to_vec(&json!({"status": "OK", "result": {"__Serialized__": 1}})).unwrap_or_default();
        let header = json!({"serializer": "dask", "type": "bytes", "compression": [null], "num-sub-frames": 1});
        let header = rmp_serde::to_vec(&header).unwrap_or_default();
        let frames = vec![body.into(), header.into(), Bytes::copy_from_slice(text.as_bytes())];
        let message = Message::new(frames, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
        read_installation(&message).map_err(|e| (e.category(), e.to_string()))
    };
    assert_eq!(answer(r#"{"status": "OK", "runtime": "x", "installed": true}"#), Ok(()));
    let refused = answer(r#"{"status": "error", "reason": "RuntimeMismatch", "message": "another"}"#);
    assert_eq!(refused, Err(("refused", "call run_function: RuntimeMismatch: another".to_owned())));
    assert_eq!(answer("[]").map_err(|e| e.0), Err("message"));
    assert_eq!(answer("\u{80}").map_err(|e| e.0), Err("message"));
    let raised = message(&json!({"status": "error", "exception_text": "E()"}));
    assert_eq!(read_installation(&raised).err().map(|e| e.category()), Some("remote"));
    let pickled = message(&json!({"status": "OK", "result": {"__Pickled__": 1}}));
    assert_eq!(read_installation(&pickled).err().map(|e| e.category()), Some("message"));
}
