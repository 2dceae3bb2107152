//! When a scheduler that others use is asked to forget a run, and what is told of it.

use std::time::Duration;

use jiff::SignedDuration;

use super::support::{at, condition, facts, frozen, issue, open, reconcile, report, run, says};
use api::reason::Reason;
use decide::pipelinerun::facts::{ClusterFact, DriveFact, Facts, Live, Place, Run, SpecFact};
use decide::pipelinerun::plan::{DriveStep, FinalizerStep, Plan, State, plan};
use decide::pipelinerun::release::{PATIENCE, PATIENCE_DELETED, ReleaseFact, is_due, is_settled};
use run_model::{Released, RunOutcome};

/// A run that is open on a cluster that others use.
fn on(place: Place) -> (Run, Facts) {
    let mut it = run();
    it.held = true;
    let mut known = facts(frozen(place));
    (known.cluster, known.drive) = (ClusterFact::Answers(None), DriveFact::Live(open()));
    reconcile(&mut it, &known);
    assert!(has_none(&it));
    (it, known)
}

fn shared() -> (Run, Facts) {
    on(Place::Shared("c".into()))
}

fn has_none(run: &Run) -> bool {
    run.status.conditions.iter().all(|condition| condition.type_ != "Released")
}

/// Nobody could run its last steps for too long.
fn give_up(it: &mut Run, known: &mut Facts) {
    known.stuck = Duration::from_secs(300);
    assert_eq!(reconcile(it, known).condition.state, State::Ended(RunOutcome::Failed));
    known.stuck = Duration::ZERO;
}

/// As another process finds the run: nothing is known but the object.
fn restarted(it: &mut Run, release: ReleaseFact) -> Plan {
    reconcile(it, &Facts { release, ..facts(frozen(Place::Shared("c".into()))) })
}

#[test]
fn a_run_that_the_operator_ends_has_ended_at_once_and_is_released_afterwards() {
    for place in
        [Place::Shared("c".into()), Place::Address { address: "tcp://dask.example.org:8786".into(), secret: None }]
    {
        let (mut it, mut known) = on(place);
        give_up(&mut it, &mut known);
        assert!(it.has_ended() && it.status.finished_at.is_some());
        assert_eq!(condition(&it, "Released"), ("False".into(), "Releasing".into()));

        known.release = ReleaseFact::Ready(None);
        let planned = reconcile(&mut it, &known);
        assert!(planned.release.is_some_and(|release| release.start));
        assert_eq!((planned.finalizer, planned.drive), (FinalizerStep::Keep, DriveStep::Stop { leave: false }));
        assert_eq!(planned.wake, Some(PATIENCE.unsigned_abs()));

        known.release = ReleaseFact::Live(None);
        assert!(reconcile(&mut it, &known).release.is_some_and(|release| !release.start));
        known.release = ReleaseFact::Done(Released::Forgotten);
        assert_eq!(reconcile(&mut it, &known).finalizer, FinalizerStep::Remove);
        assert_eq!(condition(&it, "Released"), ("True".into(), "Released".into()));
        assert_eq!(condition(&it, "Succeeded"), ("False".into(), "DeadlineExceeded".into()));

        // That is all that there is to do, and it stays told.
        known.release = ReleaseFact::None;
        let planned = reconcile(&mut it, &known);
        assert!(planned.release.is_none() && planned.finalizer == FinalizerStep::Remove);
        assert_eq!(condition(&it, "Released").0, "True");
    }
}

#[test]
fn whatever_ends_a_run_without_its_driver_begins_its_release() {
    let deadline = |known: &mut Facts| {
        (known.now, known.drive) = (at(601), DriveFact::Live(Live::default()));
    };
    let cannot_open = |known: &mut Facts| {
        known.drive = DriveFact::Broken { issue: issue(Reason::RecordUnreadable, false), again: None };
    };
    let no_revision = |known: &mut Facts| known.spec = SpecFact::Invalid("it is gone".into());
    let ends: [&dyn Fn(&mut Facts); 3] = [&deadline, &cannot_open, &no_revision];
    for end in ends {
        let (mut it, mut known) = shared();
        it.status.started_at = None;
        end(&mut known);
        reconcile(&mut it, &known);
        assert!(it.has_ended());
        assert_eq!(condition(&it, "Released"), ("False".into(), "Releasing".into()), "{:?}", known.drive);
    }
    let (mut it, mut known) = shared();
    it.spec.cancel = true;
    (known.drive, known.cancelling) = (DriveFact::None, Duration::from_secs(301));
    assert_eq!(reconcile(&mut it, &known).condition.state, State::Ended(RunOutcome::Cancelled));
    assert_eq!(condition(&it, "Released").1, "Releasing");
}

#[test]
fn where_nothing_is_left_to_be_released_nothing_is_told() {
    // Its own cluster goes with it.
    let (mut it, mut known) = on(Place::Own);
    give_up(&mut it, &mut known);
    assert!(has_none(&it) && !is_due(&it));
    assert_eq!(reconcile(&mut it, &known).finalizer, FinalizerStep::Remove);
    // The driver has told the scheduler.
    let (mut it, mut known) = shared();
    known.drive = DriveFact::Done(Box::new(report(RunOutcome::Failed)));
    reconcile(&mut it, &known);
    assert!(it.has_ended() && has_none(&it) && !is_due(&it));
    // It was never open.
    let (mut it, mut known) = shared();
    it.held = false;
    give_up(&mut it, &mut known);
    assert!(has_none(&it) && !is_due(&it));
}

#[test]
fn another_process_finds_in_the_object_what_is_due() {
    let (mut it, mut known) = shared();
    give_up(&mut it, &mut known);
    assert!(is_due(&it) && !is_settled(&it));
    let planned = restarted(&mut it, ReleaseFact::Ready(None));
    assert!(planned.release.is_some_and(|release| release.start) && planned.finalizer == FinalizerStep::Keep);
    // Also without what was written down.
    known.spec = SpecFact::Invalid("it is gone".into());
    known.release = ReleaseFact::Ready(None);
    assert!(plan(&it, &known).release.is_some_and(|release| release.start));
    restarted(&mut it, ReleaseFact::Done(Released::Gone));
    says(&it, "Released", "is gone");
    assert!(is_settled(&it) && !is_due(&it));
}

#[test]
fn a_scheduler_that_does_not_confirm_is_asked_until_the_deadline_and_holds_nothing_up_for_longer() {
    let (mut it, mut known) = shared();
    give_up(&mut it, &mut known);
    let waits = ReleaseFact::Paused { issue: issue(Reason::SchedulerUnreachable, false), left: Duration::from_secs(9) };
    let planned = restarted(&mut it, waits.clone());
    assert_eq!((planned.finalizer, planned.wake), (FinalizerStep::Keep, Some(Duration::from_secs(9))));
    assert_eq!(condition(&it, "Released"), ("False".into(), "Releasing".into()));
    says(&it, "Released", "about SchedulerUnreachable");
    // What is asked again says the same meanwhile.
    let written = it.status.clone();
    restarted(&mut it, ReleaseFact::Ready(Some(issue(Reason::SchedulerUnreachable, false))));
    assert_eq!(it.status, written);

    it.spec.ttl_after_finished = Some("1s".parse().unwrap());
    let planned = restarted(&mut it, waits.clone());
    assert!(!planned.delete, "it is still asked");
    (known.now, known.release) = (at(5) + PATIENCE, waits);
    let planned = reconcile(&mut it, &known);
    assert!(planned.finalizer == FinalizerStep::Remove && planned.delete);
    assert_eq!(condition(&it, "Released"), ("False".into(), "NotReleased".into()));
    says(&it, "Released", "within 600 s");
    says(&it, "Released", "may still run");
    assert!(!is_due(&it));
    known.release = ReleaseFact::None;
    assert_eq!(reconcile(&mut it, &known).finalizer, FinalizerStep::Remove);
    assert_eq!(condition(&it, "Released").1, "NotReleased");
}

#[test]
fn a_suspended_run_says_so_once_its_steps_have_stopped_whoever_started_them() {
    let (mut it, mut known) = shared();
    it.spec.suspend = true;
    // An operator of an older release has written that it is suspended, and told nobody.
    it.status.conditions[0].reason = "Suspended".to_owned();
    (known.drive, known.release) = (DriveFact::None, ReleaseFact::Ready(None));
    assert!(is_due(&it));
    let planned = reconcile(&mut it, &known);
    assert!(planned.release.is_some_and(|release| release.start));
    assert_eq!(planned.drive, DriveStep::Stop { leave: false });
    assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), "Releasing".into()));
    assert_eq!(condition(&it, "Released"), ("False".into(), "Releasing".into()));
    assert_eq!(it.status.state.as_deref(), Some("Running"));

    known.release = ReleaseFact::Done(Released::Forgotten);
    reconcile(&mut it, &known);
    assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), "Suspended".into()));
    assert_eq!(condition(&it, "Released"), ("True".into(), "Released".into()));
    known.release = ReleaseFact::None;
    let written = it.status.clone();
    assert!(reconcile(&mut it, &known).release.is_some_and(|release| !release.start));
    assert_eq!((&it.status, is_due(&it)), (&written, false));

    // It goes on, but not before that is not told any more: who finds it suspended again may rely on it.
    it.spec.suspend = false;
    let planned = reconcile(&mut it, &known);
    assert_eq!((planned.drive, planned.wake), (DriveStep::Keep, Some(Duration::ZERO)));
    assert!(has_none(&it));
    assert_eq!(reconcile(&mut it, &known).drive, DriveStep::Run { cancel: false });
    it.spec.suspend = true;
    assert!(is_due(&it));
}

#[test]
fn a_suspended_run_whose_scheduler_does_not_confirm_says_what_may_still_run() {
    let (mut it, mut known) = shared();
    it.spec.suspend = true;
    known.release = ReleaseFact::Waits(issue(Reason::SchedulerNotReady, false));
    reconcile(&mut it, &known);
    says(&it, "Succeeded", "about SchedulerNotReady");
    known.now = at(5) + PATIENCE;
    for _ in 0..2 {
        reconcile(&mut it, &known);
        assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), "Suspended".into()));
        says(&it, "Succeeded", "its steps may still run");
        assert_eq!(condition(&it, "Released"), ("False".into(), "NotReleased".into()));
    }
    // Where it is open cannot be told while what was written down cannot be read.
    let (mut it, mut known) = shared();
    (it.spec.suspend, it.status.cluster) = (true, None);
    known.spec = SpecFact::Waits(issue(Reason::ApiError, false), None);
    reconcile(&mut it, &known);
    assert_eq!(condition(&it, "Succeeded"), ("Unknown".into(), "ApiError".into()));
}

#[test]
fn a_deleted_run_is_let_go_when_it_is_released_or_cannot_be() {
    let (mut it, mut known) = shared();
    it.deleting = Some(at(0));
    (known.now, known.release) = (at(60), ReleaseFact::Ready(None));
    let planned = plan(&it, &known);
    assert!(planned.release.is_some_and(|release| release.start) && planned.finalizer == FinalizerStep::Keep);
    known.release = ReleaseFact::Done(Released::Forgotten);
    assert_eq!(plan(&it, &known).finalizer, FinalizerStep::Remove);
    // One whose scheduler cannot be had is not kept for longer.
    (known.cluster, known.drive) = (ClusterFact::Waits(issue(Reason::SchedulerNotReady, false)), DriveFact::None);
    known.release = ReleaseFact::Waits(issue(Reason::SchedulerNotReady, false));
    known.now = at(0) + PATIENCE_DELETED - SignedDuration::from_secs(1);
    let planned = plan(&it, &known);
    assert_eq!((planned.finalizer, planned.wake), (FinalizerStep::Keep, Some(Duration::from_secs(1))));
    known.now = at(0) + PATIENCE_DELETED;
    assert_eq!(plan(&it, &known).finalizer, FinalizerStep::Remove);
    // The same of one that had ended.
    let (mut it, mut known) = shared();
    give_up(&mut it, &mut known);
    it.deleting = Some(at(10));
    known.release = ReleaseFact::Waits(issue(Reason::SchedulerNotReady, false));
    known.now = at(10) + PATIENCE_DELETED;
    assert_eq!(reconcile(&mut it, &known).finalizer, FinalizerStep::Remove);
    says(&it, "Released", "within 120 s");
}

#[test]
fn a_command_that_has_resumed_the_run_keeps_it() {
    let (mut it, mut known) = shared();
    give_up(&mut it, &mut known);
    restarted(&mut it, ReleaseFact::Done(Released::TakenOver));
    assert_eq!(condition(&it, "Released").0, "True");
    says(&it, "Released", "a command has resumed the run, so the operator no longer drives it");
}
