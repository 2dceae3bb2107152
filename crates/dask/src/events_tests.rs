use serde_json::{Value, json};

use super::*;

fn batch(events: Value, cursor: u64) -> Result<EventBatch, Error> {
    let body = rmp_serde::to_vec(&json!({"instance": "abc", "events": events, "seq": 9})).unwrap_or_default();
    read_batch(&body.into(), "abc", cursor)
}

fn task(step: u32, item: Option<u32>, attempt: u32) -> TaskAddr {
    TaskAddr { step, item, attempt }
}

fn one(event: Value) -> RuntimeEvent {
    let batch = batch(json!([event]), 0).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((batch.events.len(), batch.unknown), (1, 0));
    batch.events.into_iter().next().unwrap_or_else(|| unreachable!())
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table of kinds")]
fn every_kind_is_read() {
    let t = || "w".to_owned();
    let cases = [
        (
            json!({"s": 0, "i": -1, "a": 1, "w": "w", "t": 1.5, "k": "started", "n": 1}),
            RuntimeEvent::Started { task: task(0, None, 1), worker: t(), at: 1.5 },
        ),
        (
            json!({"k": "finished", "n": 1, "s": 2, "i": 3, "a": 1, "w": "w", "t0": 1, "t1": 2.0, "z": 7,
                   "lens": [4, 5], "json": {"a": [1, null]}}),
            RuntimeEvent::Finished {
                task: task(2, Some(3), 1),
                worker: t(),
                began: 1.0,
                ended: 2.0,
                size: 7,
                lens: vec![4, 5],
                json: Some(json!({"a": [1, null]}).into()),
            },
        ),
        (
            json!({"k": "finished", "n": 1, "s": 0, "i": -1, "a": 1, "w": "w", "t0": 0.0, "t1": 1.0, "z": 4, "json": null}),
            RuntimeEvent::Finished {
                task: task(0, None, 1),
                worker: t(),
                began: 0.0,
                ended: 1.0,
                size: 4,
                lens: vec![],
                json: Some(Value::Null.into()),
            },
        ),
        (
            json!({"k": "committed", "n": 1, "tasks": [[0, -1, 1], [1, 2, 3]], "seg": 4}),
            RuntimeEvent::Committed { tasks: vec![task(0, None, 1), task(1, Some(2), 3)], changed: vec![], segment: 4 },
        ),
        (
            json!({"k": "failed", "n": 1, "s": 0, "i": -1, "a": 2, "w": null, "t0": 0.0, "t1": 1.0, "class": "app",
                   "type": "ValueError", "message": "m", "traceback": "tb", "tail": ["x"]}),
            RuntimeEvent::Failed {
                task: task(0, None, 2),
                worker: String::new(),
                began: 0.0,
                ended: 1.0,
                class: "app".into(),
                lost: vec![],
                kind: "ValueError".into(),
                message: "m".into(),
                traceback: "tb".into(),
                tail: vec!["x".into()],
            },
        ),
        (
            json!({"k": "failed", "n": 1, "s": 1, "i": 2, "a": 1, "w": "w", "class": "input", "lost": [[0, -1]]}),
            RuntimeEvent::Failed {
                task: task(1, Some(2), 1),
                worker: t(),
                began: 0.0,
                ended: 0.0,
                class: "input".into(),
                lost: vec![Item { step: 0, item: None }],
                kind: String::new(),
                message: String::new(),
                traceback: String::new(),
                tail: vec![],
            },
        ),
        (
            json!({"k": "committed", "n": 1, "tasks": [[0, -1, 2]], "changed": [[0, -1]], "seg": 5}),
            RuntimeEvent::Committed {
                tasks: vec![task(0, None, 2)],
                changed: vec![Item { step: 0, item: None }],
                segment: 5,
            },
        ),
        (
            json!({"k": "lost", "n": 1, "s": 0, "i": 0, "a": 1, "w": "w", "message": "gone"}),
            RuntimeEvent::Lost { task: task(0, Some(0), 1), worker: t(), message: "gone".into() },
        ),
        (json!({"k": "stopped", "n": 1, "s": 0, "i": 0, "a": 1}), RuntimeEvent::Stopped { task: task(0, Some(0), 1) }),
        (
            json!({"k": "logs", "w": "w", "lines": [[0, -1, 1, 2.5, "stdout", "hi"]]}),
            RuntimeEvent::Logs {
                worker: t(),
                lines: vec![LogLine { task: task(0, None, 1), at: 2.5, stream: "stdout".into(), text: "hi".into() }],
            },
        ),
        (
            json!({"k": "worker", "n": 1, "state": "added", "address": "tcp://a:1", "name": "g-0-1", "group": "g",
                   "threads": 2, "resources": {"GPU": 1}}),
            RuntimeEvent::Worker(WorkerChange {
                added: true,
                address: "tcp://a:1".into(),
                name: "g-0-1".into(),
                group: Some("g".into()),
                threads: 2,
                resources: [("GPU".to_owned(), 1.0)].into(),
            }),
        ),
        (
            json!({"k": "blocked", "n": 1, "s": 1, "count": 3, "reason": "NoWorker", "message": "m"}),
            RuntimeEvent::Blocked { step: 1, count: 3, reason: "NoWorker".into(), message: "m".into() },
        ),
        (json!({"k": "unblocked", "n": 1, "s": 1}), RuntimeEvent::Unblocked { step: 1 }),
        (
            json!({"k": "storage", "n": 1, "state": "down", "message": "m", "pending": 5, "reason": "AccessDenied"}),
            RuntimeEvent::Storage { up: false, message: "m".into(), pending: 5, reason: "AccessDenied".into() },
        ),
        (json!({"k": "fenced", "n": 1, "epoch": 8}), RuntimeEvent::Fenced { epoch: Some(8) }),
        (json!({"k": "fenced", "n": 1}), RuntimeEvent::Fenced { epoch: None }),
        (json!({"k": "fenced", "n": 1, "epoch": null}), RuntimeEvent::Fenced { epoch: None }),
        // No opening has it: nothing is known.
        (json!({"k": "fenced", "n": 1, "epoch": 0}), RuntimeEvent::Fenced { epoch: None }),
        (json!({"k": "closing"}), RuntimeEvent::Closing { reason: String::new(), message: String::new() }),
    ];
    for (wire, event) in cases {
        assert_eq!(one(wire), event);
    }
}

#[test]
fn unknown_kinds_are_counted_and_move_the_cursor() {
    let read =
        batch(json!([{"k": "stopped", "n": 6, "s": 0, "i": 0, "a": 1}, {"k": "new", "n": 7, "w": {"x": []}}]), 5);
    let read = read.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((read.events.len(), read.unknown, read.cursor, read.repeated), (1, 1, 7, 0));
}

#[test]
fn repeated_events_are_skipped_and_gaps_refused() {
    let stopped = |n: u64| json!({"k": "stopped", "n": n, "s": 0, "i": 0, "a": 1});
    let read = batch(json!([stopped(4), stopped(5), stopped(6)]), 5).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((read.events.len(), read.repeated, read.cursor), (1, 2, 6));
    for events in [json!([stopped(7)]), json!([stopped(6), stopped(8)])] {
        assert_eq!(batch(events, 5).err().map(|e| e.category()), Some("protocol"));
    }
}

#[test]
fn malformed_events_are_refused() {
    for event in [
        json!(5),
        json!({"n": 1}),
        json!({"k": 5, "n": 1}),
        json!({"k": "stopped", "n": "x"}),
        json!({"k": "stopped", "n": -1, "s": 0, "i": 0, "a": 1}),
        json!({"k": "stopped", "n": 1, "s": 0, "i": 0}),
        json!({"k": "stopped", "n": 1, "s": 0, "i": -2, "a": 1}),
        json!({"k": "stopped", "n": 1, "s": -1, "i": 0, "a": 1}),
        json!({"k": "stopped", "n": 1, "s": 0, "i": 5_000_000_000u64, "a": 1}),
        json!({"k": "storage", "n": 1, "state": "sideways"}),
        json!({"k": "committed", "n": 1, "tasks": [[0, 1]], "seg": 0}),
    ] {
        let category = batch(json!([event.clone()]), 0).err().map(|e| e.category());
        assert!(matches!(category, Some("protocol" | "message")), "{event}: {category:?}");
    }
    assert!(batch(json!({}), 0).is_err());
}

#[test]
fn another_instance_is_told_apart() {
    let body = rmp_serde::to_vec(&json!({"instance": "new", "events": [], "seq": 0})).unwrap_or_default();
    let error = read_batch(&body.into(), "old", 0).err();
    assert!(matches!(error, Some(Error::InstanceChanged { expected, found }) if expected == "old" && found == "new"));
    let body = rmp_serde::to_vec(&json!({"events": []})).unwrap_or_default();
    assert_eq!(read_batch(&body.into(), "old", 0).err().map(|e| e.category()), Some("protocol"));
}
