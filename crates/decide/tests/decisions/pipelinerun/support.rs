//! Runs and facts to begin with.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use api::reason::Reason;
use decide::cluster::facts::Issue;
use decide::pipelinerun::facts::{ClusterFact, DriveFact, Facts, Frozen, Live, Place, Run, SpecFact, SweepFact};
use decide::pipelinerun::plan::{Plan, plan};
use decide::pipelinerun::release::ReleaseFact;
use decide::pipelinerun::status::build_status;
use run_model::{Counts, Report, RunOutcome};

pub const UID: &str = "1e85002b-8511-4f19-a101-694a17f10e67";

pub fn at(seconds: i64) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

/// A run that was just made.
pub fn run() -> Run {
    let names = ("r".to_owned(), "team".to_owned(), UID.to_owned());
    Run { name: names.0, namespace: names.1, uid: names.2, generation: 1, created: at(0), ..Run::default() }
}

pub fn frozen(place: Place) -> SpecFact {
    SpecFact::Frozen(Frozen {
        revision: "r-1e85002b".to_owned(),
        since: at(0),
        place,
        storage_url: "s3://bucket/runs/p".to_owned(),
        storage_secret: Some("keys".to_owned()),
        start: Duration::from_secs(600),
        active: None,
        finally: Some(Duration::ZERO),
    })
}

/// Nothing is known yet but the spec, five seconds after the run was made.
pub fn facts(spec: SpecFact) -> Facts {
    Facts {
        now: at(5),
        fresh: true,
        spec,
        cluster: ClusterFact::Missing,
        owned: false,
        drive: DriveFact::None,
        cancelling: Duration::ZERO,
        stuck: Duration::ZERO,
        waited: None,
        issue: None,
        full: None,
        sweep: SweepFact::None,
        release: ReleaseFact::None,
    }
}

pub fn issue(reason: Reason, stalled: bool) -> Issue {
    Issue { reason, message: format!("about {reason}"), stalled }
}

pub fn open() -> Live {
    let counts = Counts { total: 10, done: 4, running: 2, ..Counts::default() };
    Live { open: true, counts, ..Live::default() }
}

pub fn report(outcome: RunOutcome) -> Report {
    Report {
        outcome,
        reason: None,
        message: None,
        counts: Counts { total: 10, done: 10, ..Counts::default() },
        results: Vec::new(),
        failures: Vec::new(),
        duration: Duration::ZERO,
    }
}

/// Decides, and writes the status down as the operator does.
pub fn reconcile(run: &mut Run, facts: &Facts) -> Plan {
    let planned = plan(run, facts);
    run.status = build_status(run, facts, &planned);
    planned
}

/// Whether a condition says these words.
pub fn says(run: &Run, kind: &str, words: &str) {
    let found = run.status.conditions.iter().find(|condition| condition.type_ == kind).expect("the condition");
    assert!(found.message.contains(words), "{kind}: {}", found.message);
}

/// A condition: status and reason.
pub fn condition(run: &Run, kind: &str) -> (String, String) {
    let found = run.status.conditions.iter().find(|condition| condition.type_ == kind).expect("the condition");
    (found.status.clone(), found.reason.clone())
}
