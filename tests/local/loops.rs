//! A scheduler that answers the same each time: the driver does not go on with it for ever.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use run_model::{Note, Patience, RunOutcome, Start};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::driver::{Scheduler, driven, run_of, run_of_one_step, usual};

/// The end of a run that the runtime has stopped.
fn stopped() -> Vec<Value> {
    vec![json!({"k": "closing", "n": 1, "reason": "JournalStopped", "message": "a record does not fit"})]
}

/// The journal takes nothing more: the run is opened anew, and stopped for the same reason.
#[tokio::test]
async fn a_run_that_the_runtime_stops_each_time_ends_with_its_reason() {
    let scheduler = Scheduler::new(|op, _| Some(usual(op, &stopped()))).await;
    let (ended, notes, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
    let error = ended.expect_err("it comes to nothing");
    assert_eq!(error.reason(), "JournalStopped");
    let text = error.to_string();
    assert!(text.contains("a record does not fit; reopening the run failed 4 times"), "{text}");
    assert_eq!(scheduler.asked("daskade-open").len(), 5);
    let is_told = |note: &&Note| matches!(note, Note::SchedulerLost { cause } if cause.contains("does not fit"));
    assert_eq!(notes.iter().filter(is_told).count(), 4, "{notes:?}");
}

/// A task that is committed in between is progress, however often the same comes again.
#[tokio::test]
async fn a_run_that_gets_on_a_little_each_time_is_opened_as_often_as_it_takes() {
    let opens = AtomicUsize::new(0);
    let scheduler = Scheduler::new(move |op, _| {
        let mut answer = usual(op, &stopped());
        if op == "daskade-open" {
            let before = opens.fetch_add(1, Ordering::Relaxed);
            answer["epoch"] = json!(before + 1);
            answer["snapshot"]["committed"] = (0..before).map(|item| json!([0, item, 1, null, null])).collect();
        }
        Some(answer)
    })
    .await;
    let step = json!({"name": "a", "call": "m:f", "map": {"x": "$(range(8))"}});
    let (ended, _, _) = driven(&run_of(&step, Start::New, Patience::default()), &scheduler.address).await;
    assert_eq!(ended.expect("it ends").outcome, RunOutcome::Succeeded);
    assert_eq!(scheduler.asked("daskade-open").len(), 9);
}

#[tokio::test]
async fn a_runtime_that_does_not_come_up_is_asked_for_ever_less_often() {
    let scheduler = Scheduler::new(|op, _| match op {
        "daskade-hello" => Some(Value::Null),
        _ => Some(usual(op, &[])),
    })
    .await;
    let spec = run_of_one_step(Start::New, Patience::default());
    let waiting = timeout(Duration::from_secs(4), driven(&spec, &scheduler.address)).await;
    assert!(waiting.is_err(), "it is waited for: {waiting:?}");
    // Also whoever feels the heartbeat asks.
    let asked = scheduler.asked("daskade-hello").len();
    assert!((3..=20).contains(&asked), "{asked} times within 4 s");
}

/// Nothing has begun when the time for all of it is over, and there is more time for that.
#[tokio::test]
async fn the_deadline_that_has_passed_is_the_one_that_is_told() {
    for (start, active, told) in [
        (Some(60_000), Some(300), "the run was not finished within deadlines.active"),
        (None, Some(300), "the run was not finished within deadlines.active"),
        (Some(300), Some(60_000), "no step had started within deadlines.start"),
        (Some(300), None, "no step had started within deadlines.start"),
    ] {
        // The worker begins just before it hears that it is to stop.
        let begins = json!({"k": "started", "n": 2, "s": 0, "i": -1, "a": 1, "w": "w", "t": 1.0});
        let stops = json!({"k": "stopped", "n": 1, "s": 0, "i": -1, "a": 1});
        let scheduler = Scheduler::new(move |op, _| {
            let mut answer = usual(op, &[]);
            if let Some(messages) = answer.as_array_mut() {
                messages.push(json!({"instance": "me", "events": [&stops, &begins], "seq": 2}));
            }
            Some(answer)
        })
        .await;
        let mut spec = run_of_one_step(Start::New, Patience::default());
        spec.start_deadline = start.map(Duration::from_millis);
        spec.deadline = active.map(Duration::from_millis);
        let (ended, _, _) = driven(&spec, &scheduler.address).await;
        let report = ended.expect("an end");
        assert_eq!(
            (report.outcome, report.message.as_deref()),
            (RunOutcome::Failed, Some(told)),
            "{start:?} {active:?}"
        );
    }
}
