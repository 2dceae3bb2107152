//! What the status of a run says.

use decide::pipelinerun::facts::{ClusterFact, DriveFact, Live, Place};
use decide::pipelinerun::status::{bounded, says_the_same};
use run_model::{Counts, Failure, ResultValue, RunOutcome};
use serde_json::json;

use super::support::{UID, at, condition, facts, frozen, open, reconcile, report, run};

fn failure(item: u32, message: &str) -> Failure {
    Failure {
        step: "bad".into(),
        item: Some(item),
        attempt: 2,
        class: "app".into(),
        kind: "ValueError".into(),
        message: message.into(),
        terminal: true,
        ..Failure::default()
    }
}

#[test]
fn counts_say_what_ended_well_and_progress_says_it_to_people() {
    let mut it = run();
    let mut known = facts(frozen(Place::Own));
    known.cluster = ClusterFact::Answers(None);
    let counts = Counts { total: 20, done: 12, running: 3, cached: 5, failed: 2, skipped: 1, ..Counts::default() };
    known.drive = DriveFact::Live(Live { counts, ..open() });
    reconcile(&mut it, &known);
    let steps = it.status.steps.clone().expect("counts");
    assert_eq!(
        (steps.total, steps.done, steps.running, steps.failed, steps.skipped, steps.cached),
        (20, 9, 3, 2, 1, 5)
    );
    assert_eq!(it.status.progress.as_deref(), Some("9/20"));
    assert_eq!(it.status.cluster.as_deref(), Some("r"));
    assert_eq!(it.status.storage_url, Some(format!("s3://bucket/runs/p/runs/{UID}")));
    assert_eq!(it.status.started_at, Some(at(5).to_string()));
    assert_eq!(condition(&it, "Reconciling").0, "True");

    // While nobody can be asked, what was known last stays.
    let before = it.status.clone();
    known.drive = DriveFact::Live(Live { lost: Some("gone".into()), ..Live::default() });
    known.now = at(9);
    reconcile(&mut it, &known);
    assert_eq!((&it.status.steps, &it.status.started_at), (&before.steps, &before.started_at));
    assert!(!says_the_same(&it.status, &before));
}

#[test]
fn times_of_conditions_move_only_with_their_status() {
    let mut it = run();
    let mut known = facts(frozen(Place::Own));
    reconcile(&mut it, &known);
    let since = it.status.conditions[0].last_transition_time.clone();
    (known.now, known.drive) = (at(50), DriveFact::Live(open()));
    reconcile(&mut it, &known);
    assert_eq!(it.status.conditions[0].last_transition_time, since);
    known.drive = DriveFact::Done(Box::new(report(RunOutcome::Succeeded)));
    reconcile(&mut it, &known);
    assert_ne!(it.status.conditions[0].last_transition_time, since);
    assert_eq!(it.status.finished_at, Some(at(50).to_string()));
    assert_eq!((condition(&it, "Reconciling").0, condition(&it, "Stalled").0), ("False".into(), "False".into()));
}

#[test]
fn the_first_failures_are_told_with_the_command_that_shows_more() {
    let mut it = run();
    let mut known = facts(frozen(Place::Own));
    let mut ended = report(RunOutcome::Failed);
    ended.message = Some("step bad[0] failed".into());
    ended.failures = (0..20).map(|item| failure(item, "no\u{1b}[31m such thing")).collect();
    known.drive = DriveFact::Done(Box::new(ended));
    reconcile(&mut it, &known);
    assert_eq!(it.status.failures.len(), 10);
    let first = &it.status.failures[0];
    assert_eq!((first.item, first.attempts, first.class.as_str()), (Some(0), 2, "app"));
    assert_eq!(first.message, "ValueError: no[31m such thing; more: daskade logs -n team r bad --item 0");
    assert_eq!(condition(&it, "Succeeded"), ("False".into(), "Failed".into()));
    assert_eq!(condition(&it, "Stalled").0, "True");
}

#[test]
fn whatever_steps_say_a_status_stays_below_64_kib() {
    let long = "ä\n".repeat(20_000);
    let mut it = run();
    let mut known = facts(frozen(Place::Own));
    let mut ended = report(RunOutcome::Failed);
    ended.message = Some(long.clone());
    ended.failures = (0..20).map(|item| failure(item, &long)).collect();
    let large = |name: &str, bytes: usize| (name.to_owned(), ResultValue::Json(json!("x".repeat(bytes))));
    ended.results = vec![large("a", 10), large("b", 20_000), large("c", 16_000), large("d", 16_000)];
    let mut live = open();
    live.blocked = (0..1000).map(|step| (format!("step-{step}"), (1, long.clone()))).collect();
    known.drive = DriveFact::Live(live);
    reconcile(&mut it, &known);
    assert_eq!(it.status.waiting.len(), 10);
    assert!(serde_json::to_string(&it.status).unwrap().len() < 64 << 10);
    known.drive = DriveFact::Done(Box::new(ended));
    reconcile(&mut it, &known);
    assert!(serde_json::to_string(&it.status).unwrap().len() < 64 << 10);
    assert_eq!(it.status.results["a"], json!("x".repeat(10)));
    assert!(it.status.results["b"]["omitted"].is_string() && it.status.results["d"]["omitted"].is_string());
    let omitted = it.status.results["d"]["omitted"].as_str().unwrap();
    assert!(omitted.contains("16 KiB for one result and 24 KiB for all"), "{omitted}");
    assert_eq!(it.status.results["c"], json!("x".repeat(16_000)));
}

#[test]
fn text_is_bounded_at_a_character_and_cannot_steer_a_terminal() {
    assert_eq!(bounded("a\u{1b}[2J\tb\nc", 100), "a[2Jb\nc");
    assert_eq!(bounded(&"ä".repeat(10), 9), "äää…");
}
