//! When what an ended run has stored is removed, and what to do about it.

use std::time::Duration;

use serde_json::json;

use super::support::{at, condition, facts, frozen, issue, reconcile, report, run, says};
use api::reason::Reason;
use decide::pipelinerun::facts::{ClusterFact, DriveFact, Facts, Place, Run, SpecFact, SweepFact};
use decide::pipelinerun::plan::{ClusterStep, FinalizerStep, plan};
use decide::pipelinerun::retention::{Due, Retention, SweepStep, pause, retention};
use run_model::RunOutcome;

const OUTPUTS: Due = Due { outputs: true, record: false };

/// A run that ended five seconds after it was made, and keeps outputs for a minute and the rest for two.
fn ended(place: Place) -> (Run, Facts) {
    let mut it = run();
    it.spec.retention = serde_json::from_value(json!({"outputs": "1m", "logs": "2m"})).unwrap();
    let mut known = facts(frozen(place));
    known.drive = DriveFact::Done(Box::new(report(RunOutcome::Succeeded)));
    reconcile(&mut it, &known);
    known.drive = DriveFact::None;
    (it, known)
}

#[test]
fn each_part_has_its_time_which_counts_from_the_end() {
    let (mut it, _) = ended(Place::Own);
    assert_eq!(retention(&it, at(6)), Retention::Later(Duration::from_secs(59)));
    assert_eq!(retention(&it, at(65)), Retention::Now(OUTPUTS));
    assert_eq!(retention(&it, at(125)), Retention::Now(Due { outputs: true, record: true }));
    it.status.removed = serde_json::from_value(json!({"outputsAt": "2026-01-01T00:01:05Z"})).unwrap();
    assert_eq!(retention(&it, at(70)), Retention::Later(Duration::from_secs(55)));
    assert_eq!(retention(&it, at(125)), Retention::Now(Due { outputs: false, record: true }));
    it.status.removed.as_mut().unwrap().logs_at = Some("2026-01-01T00:02:05Z".to_owned());
    assert_eq!(retention(&it, at(1000)), Retention::Nothing);

    let mut other = ended(Place::Own).0;
    other.status.revision = None;
    assert_eq!(retention(&other, at(1000)), Retention::Nothing, "it never began, and has stored nothing");
    assert_eq!(retention(&run(), at(1000)), Retention::Nothing);
    let mut running = run();
    running.spec.retention = it.spec.retention.clone();
    assert_eq!(retention(&running, at(1000)), Retention::Nothing);
}

#[test]
fn without_a_fresh_word_on_the_time_nothing_is_removed_and_what_has_begun_goes_on() {
    let (mut it, mut known) = ended(Place::Own);
    it.spec.ttl_after_finished = Some("1m".parse().unwrap());
    (known.now, known.fresh) = (at(1000), false);
    known.owned = true;
    let planned = plan(&it, &known);
    assert_eq!((planned.removal, planned.cluster, planned.delete), (None, ClusterStep::Keep, false));
    assert_eq!(planned.wake, Some(Duration::from_secs(10)), "it looks again");
    known.sweep = SweepFact::Live;
    assert!(plan(&it, &known).removal.is_some(), "it had begun by a time that was sure");
    known.sweep = SweepFact::None;
    known.fresh = true;
    assert!(plan(&it, &known).removal.is_some());

    it.spec.retention = None;
    assert!(plan(&it, &known).delete);
    known.fresh = false;
    let planned = plan(&it, &known);
    assert_eq!((planned.delete, planned.wake), (false, Some(Duration::from_secs(10))));
}

#[test]
fn a_cluster_is_made_for_it_and_given_back_once_it_is_written_down() {
    let (mut it, mut known) = ended(Place::Own);
    known.now = at(64);
    let before = plan(&it, &known);
    assert_eq!((before.removal, before.cluster, before.wake), (None, ClusterStep::Keep, Some(Duration::from_secs(1))));

    known.now = at(65);
    let planned = reconcile(&mut it, &known);
    assert_eq!(planned.cluster, ClusterStep::Make);
    assert_eq!(planned.removal.unwrap().step, SweepStep::Keep);
    assert_eq!(condition(&it, "Removed"), ("False".into(), "Removing".into()));
    says(&it, "Removed", "are being removed (spec.retention)");

    known.owned = true;
    known.cluster = ClusterFact::Waits(issue(Reason::Unschedulable, false));
    assert_eq!(reconcile(&mut it, &known).cluster, ClusterStep::Keep);
    assert_eq!(condition(&it, "Removed"), ("False".into(), "Unschedulable".into()));
    says(&it, "Removed", "about Unschedulable");

    known.cluster = ClusterFact::Answers(None);
    assert_eq!(reconcile(&mut it, &known).removal.unwrap().step, SweepStep::Start);
    known.sweep = SweepFact::Live;
    let planned = reconcile(&mut it, &known);
    assert_eq!((planned.removal.unwrap().step, planned.cluster), (SweepStep::Keep, ClusterStep::Keep));

    // By now the journal's time has come too: only what was done counts as done.
    known.now = at(130);
    known.sweep = SweepFact::Done { due: OUTPUTS, kept: 2 };
    assert_eq!(reconcile(&mut it, &known).cluster, ClusterStep::Keep);
    assert_eq!(condition(&it, "Removed"), ("True".into(), "Removed".into()));
    says(&it, "Removed", "were removed (spec.retention)");
    let removed = it.status.removed.clone().unwrap();
    assert_eq!((removed.outputs_kept, removed.outputs_at.is_some(), removed.logs_at), (Some(2), true, None));

    known.sweep = SweepFact::Waits(Duration::ZERO);
    assert_eq!(reconcile(&mut it, &known).removal.unwrap().due, Due { outputs: false, record: true });
    known.sweep = SweepFact::Done { due: Due { outputs: false, record: true }, kept: 0 };
    reconcile(&mut it, &known);
    known.sweep = SweepFact::None;
    let planned = reconcile(&mut it, &known);
    assert_eq!((planned.removal, planned.cluster), (None, ClusterStep::Delete));
    assert_eq!(condition(&it, "Succeeded").0, "True", "the run itself is as it was");
}

#[test]
fn the_object_stays_until_its_retention_is_carried_out_unless_a_person_deletes_it() {
    let (mut it, mut known) = ended(Place::Own);
    it.spec.ttl_after_finished = Some("1s".parse().unwrap());
    known.now = at(20);
    let planned = plan(&it, &known);
    assert_eq!((planned.delete, planned.wake), (false, Some(Duration::from_secs(45))));
    known.now = at(65);
    assert!(!plan(&it, &known).delete);
    it.status.removed = serde_json::from_value(json!({"outputsAt": "a", "logsAt": "b"})).unwrap();
    assert!(plan(&it, &known).delete);

    it.status.removed = None;
    (it.deleting, it.held) = (Some(at(60)), true);
    let planned = plan(&it, &known);
    assert_eq!((planned.removal, planned.finalizer), (None, FinalizerStep::Remove), "what it has stored stays");
}

#[test]
fn trouble_gives_the_cluster_back_and_is_tried_again_ever_more_rarely() {
    let (mut it, mut known) = ended(Place::Own);
    (known.now, known.owned) = (at(65), true);
    known.cluster = ClusterFact::Waits(issue(Reason::SecretNotFound, false));
    known.sweep = SweepFact::Waits(Duration::from_secs(599));
    assert_eq!(plan(&it, &known).removal.unwrap().wake, Some(Duration::from_secs(1)));
    known.sweep = SweepFact::Waits(Duration::from_secs(600));
    let planned = reconcile(&mut it, &known);
    assert_eq!(planned.removal.unwrap().step, SweepStep::Pause(issue(Reason::SecretNotFound, false)));
    assert_eq!(planned.cluster, ClusterStep::Delete);

    let left = Duration::from_secs(30);
    known.sweep = SweepFact::Paused { issue: issue(Reason::AccessDenied, true), left };
    let planned = reconcile(&mut it, &known);
    assert_eq!((planned.cluster, planned.wake), (ClusterStep::Delete, Some(left)));
    assert_eq!(condition(&it, "Removed"), ("False".into(), "AccessDenied".into()));
    says(&it, "Removed", "about AccessDenied");
    known.sweep = SweepFact::Crowded;
    (known.owned, known.cluster) = (false, ClusterFact::Missing);
    assert_eq!(plan(&it, &known).cluster, ClusterStep::Keep, "others have clusters made for theirs");

    let (mut it, mut known) = ended(Place::Shared("c".into()));
    (known.now, known.owned) = (at(65), false);
    let planned = reconcile(&mut it, &known);
    assert_eq!(planned.cluster, ClusterStep::Keep, "nobody makes a cluster of others");
    assert_eq!(condition(&it, "Removed"), ("False".into(), "ClusterNotFound".into()));
    says(&it, "Removed", "DaskCluster \"c\", through which");
    known.spec = SpecFact::Invalid("it is carried out from the ControllerRevision r, which is gone".to_owned());
    let planned = reconcile(&mut it, &known);
    assert!(matches!(planned.removal.unwrap().step, SweepStep::Pause(_)));
    assert!(it.status.conditions.iter().any(|condition| condition.message.contains("by hand")));

    let pauses: Vec<u64> = (1..10).map(|tries| pause(tries).as_secs()).collect();
    assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
}
