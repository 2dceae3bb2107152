//! What to do about a run.

use std::time::Duration;

use super::support::{at, condition, facts, frozen, issue, open, reconcile, report, run, says};
use api::reason::Reason;
use decide::pipelinerun::facts::{ClusterFact, DriveFact, Facts, Live, Place, SpecFact};
use decide::pipelinerun::plan::{ClusterStep, DriveStep, FinalizerStep, State, plan};
use run_model::RunOutcome;

#[test]
fn a_run_is_written_down_then_given_a_cluster_then_held_and_driven() {
    let mut it = run();
    let planned = reconcile(&mut it, &facts(SpecFact::Valid));
    assert!(planned.freeze);
    assert_eq!(
        (planned.cluster, planned.drive, planned.finalizer),
        (ClusterStep::Keep, DriveStep::Keep, FinalizerStep::Keep)
    );

    let mut known = facts(frozen(Place::Own));
    let planned = reconcile(&mut it, &known);
    assert_eq!(
        (planned.cluster, planned.drive, planned.finalizer),
        (ClusterStep::Make, DriveStep::Keep, FinalizerStep::Keep)
    );

    (known.cluster, known.owned) = (ClusterFact::Waits(issue(Reason::Unschedulable, false)), true);
    let planned = reconcile(&mut it, &known);
    assert_eq!((planned.cluster, planned.drive), (ClusterStep::Keep, DriveStep::Keep));
    assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), "Unschedulable".into()));
    says(&it, "Succeeded", "about Unschedulable");

    known.cluster = ClusterFact::Answers(None);
    let planned = reconcile(&mut it, &known);
    assert_eq!((planned.finalizer, planned.drive), (FinalizerStep::Add, DriveStep::Run { cancel: false }));
    it.held = true;
    known.drive = DriveFact::Live(open());
    let planned = reconcile(&mut it, &known);
    assert_eq!((planned.finalizer, planned.drive), (FinalizerStep::Keep, DriveStep::Run { cancel: false }));
    assert_eq!(planned.condition.state, State::Running);
}

#[test]
fn the_end_is_written_before_anything_is_taken_away_and_stays() {
    for (outcome, reason, words) in [
        (RunOutcome::Succeeded, "Succeeded", "all steps succeeded"),
        (RunOutcome::Failed, "Failed", "a step failed"),
        (RunOutcome::Cancelled, "Cancelled", "cancel"),
    ] {
        let mut it = run();
        it.held = true;
        let mut known = facts(frozen(Place::Own));
        (known.cluster, known.owned) = (ClusterFact::Answers(None), true);
        known.drive = DriveFact::Done(Box::new(report(outcome)));
        let planned = reconcile(&mut it, &known);
        assert_eq!((planned.cluster, planned.finalizer), (ClusterStep::Keep, FinalizerStep::Keep), "{reason}");
        assert!(it.has_ended());
        assert_eq!(condition(&it, "Succeeded").1, reason);
        says(&it, "Succeeded", words);

        // Whatever is known later, the written end counts.
        let written = it.status.clone();
        known.drive = DriveFact::None;
        known.spec = SpecFact::Valid;
        it.spec.cancel = true;
        let planned = reconcile(&mut it, &known);
        assert_eq!((planned.cluster, planned.finalizer), (ClusterStep::Delete, FinalizerStep::Remove));
        assert_eq!(it.status, written);
        assert!(!planned.delete);
    }
}

#[test]
fn an_ended_run_goes_after_its_time_and_no_cluster_of_others_with_it() {
    let mut it = run();
    let mut known = facts(frozen(Place::Shared("c".into())));
    known.drive = DriveFact::Done(Box::new(report(RunOutcome::Succeeded)));
    reconcile(&mut it, &known);
    known.drive = DriveFact::None;
    it.spec.ttl_after_finished = Some("1m".parse().unwrap());
    let planned = plan(&it, &known);
    assert_eq!((planned.delete, planned.wake), (false, Some(Duration::from_secs(60))));
    assert_eq!(planned.cluster, ClusterStep::Keep);
    known.now = at(65);
    assert!(plan(&it, &known).delete);
}

#[test]
fn a_cancelled_run_is_closed_where_it_is_open_and_ended_at_once_where_it_never_was() {
    let mut it = run();
    it.spec.cancel = true;
    let known = facts(frozen(Place::Own));
    assert_eq!(plan(&it, &known).condition.state, State::Ended(RunOutcome::Cancelled), "nothing was begun");

    it.held = true;
    let mut known = facts(frozen(Place::Own));
    known.cluster = ClusterFact::Answers(None);
    assert_eq!(plan(&it, &known).drive, DriveStep::Run { cancel: true }, "it may be open");
    let pause = Some(Duration::from_secs(9));
    known.drive = DriveFact::Broken { issue: issue(Reason::AccessDenied, true), again: pause };
    assert_eq!(plan(&it, &known).condition.state, State::Ended(RunOutcome::Cancelled), "it cannot be opened");

    it.status.started_at = Some(at(1).to_string());
    let planned = plan(&it, &known);
    assert_eq!(
        (planned.condition.state, planned.wake),
        (State::Running, pause),
        "its finally steps have a right to run"
    );
    known.cancelling = Duration::from_secs(301);
    assert_eq!(plan(&it, &known).condition.state, State::Ended(RunOutcome::Cancelled));
}

#[test]
fn what_is_to_end_does_not_wait_for_ever_for_a_worker_that_runs_its_finally_steps() {
    let mut live = open();
    (live.counts.running, live.counts.kept_back) = (0, 1);
    live.blocked.insert("tidy".to_owned(), (1, "no worker is connected".to_owned()));
    let mut known = facts(frozen(Place::Own));
    known.cluster = ClusterFact::Answers(Some(issue(Reason::ImagePull, true)));
    known.drive = DriveFact::Live(live);
    known.stuck = Duration::from_secs(299);
    let mut it = run();
    reconcile(&mut it, &known);
    assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), "Finalizing".into()));
    assert_eq!(it.status.conditions[0].message, "`finally` steps wait: about ImagePull");
    known.stuck = Duration::from_secs(300);
    let word = plan(&it, &known).condition;
    assert_eq!((word.state, word.reason.as_str()), (State::Ended(RunOutcome::Failed), "DeadlineExceeded"));
    assert!(word.message.ends_with("`finally` steps wait: about ImagePull"), "{}", word.message);
    (it.held, it.spec.cancel) = (true, true);
    let word = plan(&it, &known).condition;
    assert_eq!(word.state, State::Ended(RunOutcome::Cancelled));
    assert!(word.message.ends_with("`finally` steps wait: about ImagePull"), "{}", word.message);
}

#[test]
fn a_run_of_which_finally_steps_are_left_says_so() {
    let mut live = open();
    live.counts.finalizing = true;
    let mut known = facts(frozen(Place::Own));
    known.cluster = ClusterFact::Answers(None);
    known.drive = DriveFact::Live(live);
    let mut it = run();
    it.held = true;
    reconcile(&mut it, &known);
    assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), "Finalizing".into()));
    assert_eq!(it.status.conditions[0].message, "all other steps have ended, `finally` steps run");
}

#[test]
fn a_suspended_run_leaves_its_scheduler_and_gives_its_cluster_back() {
    let mut it = run();
    (it.held, it.spec.suspend) = (true, true);
    let mut known = facts(frozen(Place::Own));
    (known.cluster, known.owned) = (ClusterFact::Answers(None), true);
    known.drive = DriveFact::Live(open());
    let planned = reconcile(&mut it, &known);
    assert_eq!((planned.drive, planned.cluster), (DriveStep::Stop { leave: true }, ClusterStep::Delete));
    assert_eq!((it.status.state.as_deref(), planned.finalizer), (Some("Suspended"), FinalizerStep::Keep));
    it.queue = Some("nightly".to_owned());
    reconcile(&mut it, &known);
    let message = &it.status.conditions[0].message;
    assert!(message.contains("queue of the schedule of Pipeline nightly"), "{message}");
    // Before it was written down, nothing is.
    let mut new = run();
    new.spec.suspend = true;
    assert!(!reconcile(&mut new, &facts(SpecFact::Valid)).freeze);
}

#[test]
fn a_run_beyond_the_limit_of_its_namespace_waits_before_it_is_written_down() {
    let mut known = facts(SpecFact::Valid);
    known.full = Some(issue(Reason::RunLimit, false));
    let mut it = run();
    let planned = reconcile(&mut it, &known);
    assert!(!planned.freeze && planned.cluster == ClusterStep::Keep && planned.drive == DriveStep::Keep);
    assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), "RunLimit".into()));
    says(&it, "Succeeded", "about RunLimit");
    it.spec.cancel = true;
    assert_eq!(reconcile(&mut it, &known).condition.state, State::Ended(RunOutcome::Cancelled));
}

/// Issue 13, point 3.
#[test]
fn a_run_that_there_is_no_memory_for_is_not_driven_and_its_steps_go_on() {
    let mut it = run();
    it.held = true;
    it.status.started_at = Some(at(1).to_string());
    let mut known = facts(frozen(Place::Shared("c".to_owned())));
    known.cluster = ClusterFact::Answers(None);
    known.drive = DriveFact::Live(open());
    assert_eq!(reconcile(&mut it, &known).drive, DriveStep::Run { cancel: false });
    known.full = Some(issue(Reason::RunLimit, false));
    let planned = reconcile(&mut it, &known);
    assert_eq!(
        (planned.drive, planned.release, planned.finalizer),
        (DriveStep::Stop { leave: false }, None, FinalizerStep::Keep)
    );
    assert_eq!(it.status.state.as_deref(), Some("Running"));
    assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), "RunLimit".into()));
    known.drive = DriveFact::None;
    // One that is deleted waits for as long as it may take to stop its steps.
    it.deleting = Some(known.now);
    let planned = reconcile(&mut it, &known);
    assert_eq!((planned.drive, planned.finalizer), (DriveStep::Stop { leave: false }, FinalizerStep::Keep));
    assert_eq!((planned.release, planned.wake), (None, Some(Duration::from_secs(60))));
    it.deleting = Some(at(-60));
    assert!(reconcile(&mut it, &known).release.is_some());
}

#[test]
fn deadlines_end_a_run_that_nobody_else_can_end() {
    let mut known = facts(frozen(Place::Own));
    known.cluster = ClusterFact::Waits(issue(Reason::QuotaExceeded, false));
    let mut it = run();
    assert_eq!(reconcile(&mut it, &known).wake, Some(Duration::from_secs(595)));
    known.now = at(600);
    reconcile(&mut it, &known);
    assert_eq!(condition(&it, "Succeeded"), ("False".into(), "DeadlineExceeded".into()));
    assert!(it.status.conditions[0].message.contains("about QuotaExceeded"), "{:?}", it.status.conditions);

    // An open run is the driver's to end, who lets the `finally` steps run.
    let mut it = run();
    let mut known = facts(frozen(Place::Own));
    (known.now, known.drive) = (at(600), DriveFact::Live(open()));
    assert_eq!(reconcile(&mut it, &known).condition.state, State::Running);
    if let SpecFact::Frozen(frozen) = &mut known.spec {
        frozen.active = Some(Duration::from_secs(700));
    }
    known.now = at(719);
    assert_eq!(reconcile(&mut it, &known).condition.state, State::Running);
    known.now = at(820);
    assert_eq!(reconcile(&mut it, &known).condition.state, State::Ended(RunOutcome::Failed));

    // They have the time that `deadlines.finally` gives them, or as long as they take.
    let finally = |known: &mut Facts, span: Option<u64>| {
        if let SpecFact::Frozen(frozen) = &mut known.spec {
            frozen.finally = span.map(Duration::from_secs);
        }
    };
    finally(&mut known, Some(300));
    assert_eq!(plan(&run(), &known).condition.state, State::Running);
    known.now = at(1120);
    assert_eq!(plan(&run(), &known).condition.state, State::Ended(RunOutcome::Failed));
    finally(&mut known, None);
    assert_eq!(plan(&run(), &known).condition.state, State::Running);

    // Why no step began is told with the end.
    let mut late = report(RunOutcome::Failed);
    (late.reason, late.message) = (Some(Reason::DeadlineExceeded), Some("no step had started".into()));
    (known.drive, known.waited) = (DriveFact::Done(Box::new(late)), Some("0/3 nodes fit".into()));
    let word = plan(&run(), &known).condition;
    assert_eq!(
        (word.reason.as_str(), word.message.as_str()),
        ("DeadlineExceeded", "no step had started; it waited: 0/3 nodes fit")
    );

    // What it names does not come.
    let patience = Some("90s".parse().unwrap());
    let mut known = facts(SpecFact::Waits(issue(Reason::PipelineNotFound, false), patience));
    let planned = plan(&run(), &known);
    assert_eq!((planned.condition.state, planned.wake), (State::Pending, Some(Duration::from_secs(85))));
    known.now = at(90);
    let word = plan(&run(), &known).condition;
    assert_eq!(
        (word.reason.as_str(), word.message.as_str()),
        ("DeadlineExceeded", "timed out after 1m30s: about PipelineNotFound")
    );

    // What is written down and cannot be read now, since the API server refuses, is no reason to end anything.
    let mut known = facts(SpecFact::Waits(issue(Reason::ApiError, false), None));
    known.now = at(100_000);
    assert_eq!(plan(&run(), &known).condition.state, State::Pending);
    let mut it = run();
    it.status.started_at = Some(at(1).to_string());
    assert_eq!(plan(&it, &known).condition.state, State::Running);
}

#[test]
fn a_deleted_run_is_closed_for_a_minute_and_then_let_go() {
    let mut it = run();
    it.deleting = Some(at(0));
    let mut known = facts(frozen(Place::Shared("c".into())));
    known.cluster = ClusterFact::Answers(None);
    assert_eq!(plan(&it, &known).finalizer, FinalizerStep::Keep, "there is none to release");
    it.held = true;
    known.drive = DriveFact::Live(open());
    let planned = plan(&it, &known);
    assert_eq!((planned.finalizer, planned.drive), (FinalizerStep::Keep, DriveStep::Run { cancel: true }));
    assert_eq!(planned.wake, Some(Duration::from_secs(55)));
    known.now = at(60);
    let planned = plan(&it, &known);
    assert_eq!(
        (planned.finalizer, planned.drive),
        (FinalizerStep::Keep, DriveStep::Stop { leave: false }),
        "it is released first"
    );
    (known.now, known.drive, known.cluster) = (at(5), DriveFact::None, ClusterFact::Missing);
    assert_eq!(plan(&it, &known).finalizer, FinalizerStep::Remove, "there is nowhere to close it");
}

#[test]
fn why_a_run_waits_is_told_and_it_is_tried_again_after_a_pause() {
    let check = |known: &decide::pipelinerun::facts::Facts, reason: &str, words: &str, stalled: &str| {
        let mut it = run();
        it.held = true;
        let planned = reconcile(&mut it, known);
        assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), reason.into()));
        says(&it, "Succeeded", words);
        assert_eq!(condition(&it, "Stalled").0, stalled, "{reason}");
        planned
    };
    let mut known = facts(frozen(Place::Shared("c".into())));
    check(&known, "ClusterNotFound", "DaskCluster \"c\" does not exist", "False");
    known.cluster = ClusterFact::Answers(None);
    let pause = Some(Duration::from_secs(7));
    known.drive = DriveFact::Broken { issue: issue(Reason::AccessDenied, true), again: pause };
    let planned = check(&known, "AccessDenied", "about AccessDenied", "True");
    assert_eq!((planned.drive, planned.wake), (DriveStep::Keep, pause));
    known.drive = DriveFact::Broken { issue: issue(Reason::AccessDenied, true), again: Some(Duration::ZERO) };
    assert_eq!(check(&known, "AccessDenied", "about AccessDenied", "True").drive, DriveStep::Run { cancel: false });
    known.drive = DriveFact::Live(Live { before: Some(issue(Reason::AccessDenied, true)), ..Live::default() });
    check(&known, "AccessDenied", "about AccessDenied", "True");
    known.drive = DriveFact::Live(Live { lost: Some("it is gone".into()), ..Live::default() });
    check(&known, "SchedulerUnreachable", "it is gone", "False");
    known.drive = DriveFact::Broken { issue: issue(Reason::RecordUnreadable, false), again: None };
    assert_eq!(plan(&run(), &known).condition.state, State::Ended(RunOutcome::Failed));

    let mut live = open();
    live.counts.running = 0;
    live.blocked.insert("train".into(), (3, "no worker offers GPU: 1".into()));
    known.drive = DriveFact::Live(live.clone());
    check(&known, "NoWorkers", "no worker offers GPU: 1", "False");
    known.cluster = ClusterFact::Answers(Some(issue(Reason::Unschedulable, false)));
    check(&known, "Unschedulable", "about Unschedulable", "False");
    live.storage = Some(issue(Reason::StorageUnreachable, false));
    known.drive = DriveFact::Live(live.clone());
    check(&known, "StorageUnreachable", "about StorageUnreachable", "False");
    live.storage = Some(issue(Reason::AccessDenied, true));
    known.drive = DriveFact::Live(live);
    check(&known, "AccessDenied", "about AccessDenied", "True");
}

#[test]
fn keys_that_the_storage_refuses_are_told_with_the_secret_and_what_to_do() {
    let told = |url: &str, secret: Option<&str>, drive: DriveFact| {
        let SpecFact::Frozen(mut spec) = frozen(Place::Own) else { panic!("it is frozen") };
        (spec.storage_url, spec.storage_secret) = (url.to_owned(), secret.map(ToOwned::to_owned));
        let known = Facts { cluster: ClusterFact::Answers(None), drive, ..facts(SpecFact::Frozen(spec)) };
        plan(&run(), &known).condition
    };
    let denied = issue(Reason::AccessDenied, true);
    let broken = DriveFact::Broken { issue: denied.clone(), again: Some(Duration::from_secs(7)) };
    let live = DriveFact::Live(Live { storage: Some(denied), ..open() });
    for drive in [broken, live] {
        for (url, secret, part) in [
            ("s3://bucket/p", Some("keys"), "the keys in the Secret keys (storage.secretRef)"),
            ("s3://bucket/p", None, "no storage.secretRef is set"),
            ("file:///data", None, "let user 1000"),
        ] {
            let word = told(url, secret, drive.clone());
            assert_eq!((word.reason.as_str(), word.stalled), ("AccessDenied", true));
            assert!(
                word.message.starts_with("about AccessDenied; ") && word.message.contains(part),
                "{}",
                word.message
            );
        }
    }
}
