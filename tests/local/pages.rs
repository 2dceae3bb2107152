//! Snapshots that come page by page, and results that stay with the runtime: the driver is the same in a command and in the
//! operator.

use run_model::{Patience, ResultValue, RunOutcome, Start};
use serde_json::{Value, json};

use crate::driver::{Scheduler, driven, ok, run_of_pipeline, usual};

/// A mapped step that has run, one that sees its results, and the list of them as a result of the run.
fn flow(items: u32) -> Value {
    json!({
        "steps": [
            {"name": "each", "call": "m:f", "map": {"x": format!("$(range({items}))")}},
            {"name": "after", "call": "m:g", "args": {"all": "$(steps.each.result)"}},
        ],
        "results": [{"name": "each", "value": "$(steps.each.result)"}],
    })
}

fn opened(page: Value, more: Value) -> Value {
    json!({"status": "OK", "epoch": 1, "instance": "me", "cursor": 0, "snapshot": page, "more": more, "keeps": true})
}

/// What a scheduler answers that has a run with results of 100 bytes and more, in pages of two tasks; the results of odd items
/// are not in it.
fn in_pages(op: &str, request: &Value, items: u64) -> Value {
    let page = |number: u64| {
        let rows: Vec<Value> = (2 * number..(2 * number + 2).min(items))
            .map(|item| json!([0, item, 1, null, if item % 2 == 0 { json!([result(item)]) } else { json!(200) }]))
            .collect();
        let more = if 2 * number + 2 < items { json!("token") } else { Value::Null };
        (json!({ "committed": rows }), more)
    };
    match op {
        "daskade-open" => {
            let (first, more) = page(0);
            opened(first, more)
        }
        "daskade-snapshot" => {
            assert_eq!((&request["token"], &request["run"]), (&json!("token"), &json!("uid")));
            let (page, more) = page(request["page"].as_u64().expect("a number"));
            json!({"status": "OK", "snapshot": page, "more": more})
        }
        // As many as fit: here three.
        "daskade-results" => {
            let asked = request["tasks"].as_array().expect("tasks");
            let rows =
                asked.iter().take(3).map(|task| json!([0, task[1], [result(task[1].as_u64().expect("an item"))]]));
            json!({"status": "OK", "results": rows.collect::<Vec<_>>()})
        }
        "daskade-events" => {
            let task = json!({"s": 1, "i": -1, "a": 1, "w": "w"});
            let event = |n: u64, kind: &str, more: Value| {
                let mut event = task.clone();
                event["n"] = json!(n);
                event["k"] = json!(kind);
                more.as_object().into_iter().flatten().for_each(|(name, value)| event[name] = value.clone());
                event
            };
            let events = [
                event(1, "started", json!({"t": 1.0})),
                event(2, "finished", json!({"t0": 1.0, "t1": 2.0, "z": 1})),
                json!({"k": "committed", "n": 3, "tasks": [[1, -1, 1]], "seg": 1}),
            ];
            usual(op, &events)
        }
        _ => usual(op, &[]),
    }
}

fn result(item: u64) -> Value {
    json!({"item": item, "text": "x".repeat(100)})
}

/// The run goes on from a snapshot in many messages; an expression sees results that the runtime has kept, and the run ends
/// with them.
#[tokio::test]
async fn a_run_is_gone_on_with_from_pages_and_results_are_fetched_when_they_are_looked_at() {
    const ITEMS: u64 = 25;
    let scheduler = Scheduler::new(|op, request| Some(in_pages(op, request, ITEMS))).await;
    let spec = run_of_pipeline(flow(ITEMS as u32), Start::Again, Patience::default());
    let (ended, _, _) = driven(&spec, &scheduler.address).await;
    let report = ended.expect("it ends");
    assert_eq!((report.outcome, report.counts.done, report.counts.cached), (RunOutcome::Succeeded, ITEMS + 1, ITEMS));
    assert_eq!(scheduler.asked("daskade-open")[0]["pages"], json!(true));
    let pages: Vec<Value> = scheduler.asked("daskade-snapshot").into_iter().map(|ask| ask["page"].clone()).collect();
    assert_eq!(pages, (1..=12).map(|page| json!(page)).collect::<Vec<_>>());
    let submitted = scheduler.asked("daskade-submit");
    assert_eq!(submitted[0]["items"].as_array().map(Vec::len), Some(1), "only what has not run: {submitted:?}");
    let whole = Value::Array((0..ITEMS).map(result).collect());
    assert_eq!(report.results, [("each".to_owned(), ResultValue::Json(whole.clone()))]);
    assert_eq!(scheduler.asked("daskade-close")[0]["final"]["results"]["each"], whole);
    let fetched = scheduler.asked("daskade-results");
    assert!(fetched.iter().all(|ask| ask["tasks"][0][1].as_u64().is_some_and(|item| item % 2 == 1)), "{fetched:?}");
}

/// A scheduler that has no more of it tells so; the run is opened again, and goes on.
#[tokio::test]
async fn a_snapshot_that_is_not_kept_any_more_is_asked_for_anew() {
    let lost = std::sync::atomic::AtomicBool::new(false);
    let scheduler = Scheduler::new(move |op, request| {
        if request["page"] == json!(3) && !lost.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Some(json!({"status": "error", "reason": "Gap", "message": "page 3 has expired"}));
        }
        Some(in_pages(op, request, 25))
    })
    .await;
    let spec = run_of_pipeline(flow(25), Start::Again, Patience::default());
    let (ended, _, _) = driven(&spec, &scheduler.address).await;
    assert_eq!(ended.expect("it goes on").outcome, RunOutcome::Succeeded);
    assert_eq!(scheduler.asked("daskade-open").len(), 2);
}

/// Other results than were asked for are not taken for them.
#[tokio::test]
async fn results_of_other_tasks_are_refused() {
    for wrong in [json!([]), json!([[0, 0, [1]]]), json!([[0, 1, [1]], [7, 7, [1]]])] {
        let scheduler = Scheduler::new(move |op, request| match op {
            "daskade-results" => Some(json!({"status": "OK", "results": wrong})),
            _ => Some(in_pages(op, request, 5)),
        })
        .await;
        let patience = Patience { open: std::time::Duration::ZERO, first: std::time::Duration::ZERO };
        let spec = run_of_pipeline(flow(5), Start::Again, patience);
        let (ended, _, _) = driven(&spec, &scheduler.address).await;
        let error = ended.expect_err("they are refused").to_string();
        assert!(error.contains("read daskade-results: the answer has other results"), "{error}");
    }
}

/// How a run ended may come in pages too.
#[tokio::test]
async fn results_of_a_run_that_has_ended_come_in_parts() {
    let large = "x".repeat(10_000);
    let text = json!({ "text": large }).to_string();
    let closing = json!({"state": "Succeeded", "results": {"small": 1, "large": {"uri": "…", "size": text.len()}}});
    let scheduler = Scheduler::new(move |op, request| match op {
        "daskade-open" => Some(opened(json!({ "final": closing }), json!("token"))),
        "daskade-snapshot" => {
            let page = request["page"].as_u64().expect("a number");
            let part = &text[(page as usize - 1) * 5000..(page as usize * 5000).min(text.len())];
            let more = if page < 3 { json!("token") } else { Value::Null };
            Some(json!({"status": "OK", "snapshot": {"results": [["large", page - 1, 3, part]]}, "more": more}))
        }
        "daskade-hello" => Some(usual(op, &[])),
        _ => Some(ok()),
    })
    .await;
    let mut spec = run_of_pipeline(flow(5), Start::Again, Patience::default());
    spec.reopen = false;
    let (ended, _, _) = driven(&spec, &scheduler.address).await;
    let report = ended.expect("it has ended");
    assert_eq!(report.outcome, RunOutcome::Succeeded);
    let expected = [("small", json!(1)), ("large", json!({ "text": large }))];
    assert_eq!(report.results, expected.map(|(name, value)| (name.to_owned(), ResultValue::Json(value))));
}
