//! The status of a run: computed from what is known, equal for equal knowledge, and bounded.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::json;

use super::facts::{DriveFact, Facts, Live, Run, SpecFact};
use super::plan::{ConditionUpdate, Plan, State};
use super::release::{self, PATIENCE, PATIENCE_DELETED, Release, ReleaseState};
use super::retention::{Due, Removal, RemovalState};
use crate::cluster::facts::Issue;
use api::condition::ConditionType;
use api::reason::Reason;
use api::status::{PipelineRunStatus, StepCounts, StepFailure, StepWaiting};
use run_model::{Counts, Failure, Released, Report, RunOutcome};

/// Bytes of the message of a condition.
const MESSAGE: usize = 2000;
/// Bytes of the message of one failure, with the command that shows more.
const FAILURE: usize = 1500;
/// Bytes of why one step waits.
const WAITING: usize = 500;
/// Failures and waiting steps that are told of.
const LISTED: usize = 10;
/// Bytes of one result, and of all together; larger ones are in the storage. With these a status stays below 64 KiB.
const RESULT: usize = 16 << 10;
const RESULTS: usize = 24 << 10;

/// Builds the status.
pub fn build_status(run: &Run, facts: &Facts, plan: &Plan) -> PipelineRunStatus {
    let mut status = run.status.clone();
    if plan.condition.state == State::AsWritten {
        if let Some(removal) = &plan.removal {
            put_removal(&mut status, run, removal, facts.now);
        }
        if let Some(release) = &plan.release {
            put_release(&mut status, run, facts, release);
        }
        return status;
    }
    status.observed_generation = Some(run.generation);
    status.conditions = conditions(run, &plan.condition, facts.now);
    if let Some(release) = &plan.release {
        put_release(&mut status, run, facts, release);
    }
    status.state = Some(state_text(plan.condition.state).to_owned());
    status.waiting.clear();
    if let SpecFact::Frozen(frozen) = &facts.spec {
        status.revision = Some(frozen.revision.clone());
        status.storage_url = Some(format!("{}/runs/{}", frozen.storage_url, run.uid));
        status.cluster = frozen.place.cluster(&run.name).map(ToOwned::to_owned);
    }
    match &facts.drive {
        DriveFact::Live(live) if live.open => follow(&mut status, run, facts, live),
        DriveFact::Done(report) => conclude(&mut status, run, report, facts.now),
        DriveFact::Live(_) | DriveFact::None | DriveFact::Broken { .. } => {}
    }
    if matches!(plan.condition.state, State::Ended(_)) {
        status.finished_at = Some(second(facts.now));
        if let Some(steps) = &mut status.steps {
            steps.running = 0;
        }
    }
    status
}

/// What a run that goes on says.
fn follow(status: &mut PipelineRunStatus, run: &Run, facts: &Facts, live: &Live) {
    status.started_at.get_or_insert_with(|| second(facts.now));
    count(status, &live.counts);
    status.failures = failures(run, &live.failures);
    let waiting = live.blocked.iter().take(LISTED).map(|(step, (count, message))| StepWaiting {
        step: step.clone(),
        count: small(*count),
        reason: Reason::NoWorkers.to_string(),
        message: bounded(message, WAITING),
    });
    status.waiting = waiting.collect();
}

fn conclude(status: &mut PipelineRunStatus, run: &Run, report: &Report, now: Timestamp) {
    // A short run is told of once, at its end.
    let began = now.checked_sub(SignedDuration::try_from(report.duration).unwrap_or_default()).unwrap_or(now);
    status.started_at.get_or_insert_with(|| second(began));
    count(status, &report.counts);
    if !report.failures.is_empty() || report.outcome == RunOutcome::Succeeded {
        status.failures = failures(run, &report.failures);
    }
    let (mut results, mut left) = (BTreeMap::new(), RESULTS);
    for (name, value) in &report.results {
        let value = value.to_json();
        let size = value.to_string().len();
        if size <= RESULT.min(left) {
            left -= size;
            results.insert(name.clone(), value);
        } else {
            let why = format!(
                "{size} bytes are too much for a status, which has {} KiB for one result and {} KiB for all; with \
                 `output.path` of its step it is an object of its own in the storage",
                RESULT >> 10,
                RESULTS >> 10
            );
            results.insert(name.clone(), json!({ "omitted": why }));
        }
    }
    status.results = results;
}

fn count(status: &mut PipelineRunStatus, counts: &Counts) {
    let Counts { total, done, running, cached, failed, skipped, .. } = *counts;
    // Of what is at its end, only what ended well is done.
    let well = done.saturating_sub(failed).saturating_sub(skipped);
    status.steps = Some(StepCounts {
        total: small(total),
        done: small(well),
        running: small(running),
        failed: small(failed),
        skipped: small(skipped),
        cached: small(cached),
    });
    status.progress = Some(format!("{well}/{total}"));
}

fn failures(run: &Run, failures: &[Failure]) -> Vec<StepFailure> {
    failures.iter().filter(|failure| failure.terminal).take(LISTED).map(|failure| told(run, failure)).collect()
}

fn told(run: &Run, failure: &Failure) -> StepFailure {
    let item = failure.item.map(|item| format!(" --item {item}")).unwrap_or_default();
    // By the run's name the command finds out where the lines are, with endpoint and region.
    let more = format!("; more: daskade logs -n {} {} {}{item}", run.namespace, run.name, failure.step);
    let text = bounded(&format!("{}: {}", failure.kind, failure.message), FAILURE.saturating_sub(more.len()));
    StepFailure {
        step: failure.step.clone(),
        item: failure.item,
        attempts: failure.attempt,
        class: bounded(&failure.class, 20),
        message: format!("{text}{more}"),
    }
}

/// What retention has come to.
fn put_removal(status: &mut PipelineRunStatus, run: &Run, removal: &Removal, now: Timestamp) {
    let what = match removal.due {
        Due { outputs: true, record: true } => "outputs, journal and logs",
        Due { outputs: true, .. } => "outputs",
        Due { .. } => "journal and logs",
    };
    let (truth, reason, message) = match &removal.state {
        RemovalState::Working => ("False", Reason::Removing, format!("its {what} are being removed (spec.retention)")),
        RemovalState::Waits(Issue { reason, message, .. }) => {
            ("False", *reason, format!("cannot remove its {what}: {message}; retrying"))
        }
        RemovalState::Done { kept } => {
            let stay = match kept {
                0 => String::new(),
                1 => "; 1 output stays, since a later run has taken it over".to_owned(),
                many => format!("; {many} outputs stay, since later runs have taken them over"),
            };
            ("True", Reason::Removed, format!("its {what} were removed (spec.retention){stay}"))
        }
    };
    if let RemovalState::Done { kept } = removal.state {
        let removed = status.removed.get_or_insert_default();
        if removal.due.outputs {
            (removed.outputs_at, removed.outputs_kept) = (Some(second(now)), Some(kept).filter(|kept| *kept > 0));
        }
        if removal.due.record {
            removed.logs_at = Some(second(now));
        }
    }
    let update = ConditionUpdate { state: State::AsWritten, reason, message, stalled: false };
    put(status, condition(run, ConditionType::Removed.as_str(), truth, &update, now));
}

/// Whether the scheduler has let go of a run that was left.
fn put_release(status: &mut PipelineRunStatus, run: &Run, facts: &Facts, release: &Release) {
    let (truth, reason, message) = match &release.state {
        ReleaseState::AsWritten => {
            release::condition(run).into_iter().for_each(|told| put(status, told.clone()));
            return;
        }
        ReleaseState::Working(end, issue) => {
            let issue = issue.as_ref().map(|issue| format!("; {}", issue.message)).unwrap_or_default();
            let message = format!(
                "asking the scheduler to stop the run's steps and forget the run, until {} at most{issue}",
                second(*end)
            );
            ("False", Reason::Releasing, message)
        }
        ReleaseState::Done(how) => {
            let message = match how {
                Released::Forgotten => "the scheduler has stopped the run's steps and forgotten the run",
                Released::Gone => "the scheduler that the run was open on is gone, and its workers with it",
                Released::TakenOver => "a command has resumed the run, so the operator no longer drives it",
            };
            ("True", Reason::Released, message.to_owned())
        }
        ReleaseState::GivenUp(issue) => {
            let patience = if run.deleting.is_some() { PATIENCE_DELETED } else { PATIENCE };
            let issue = issue.as_ref().map(|issue| format!(": {}", issue.message)).unwrap_or_default();
            let message = format!(
                "the scheduler did not confirm within {} s that it has forgotten the run{issue}; the run's steps may still \
                 run and hold workers; to stop them, restart the scheduler",
                patience.as_secs()
            );
            ("False", Reason::NotReleased, message)
        }
    };
    let update = ConditionUpdate { state: State::AsWritten, reason, message, stalled: false };
    put(status, condition(run, ConditionType::Released.as_str(), truth, &update, facts.now));
}

/// In place of what the condition said before.
fn put(status: &mut PipelineRunStatus, told: Condition) {
    match status.conditions.iter_mut().find(|known| known.type_ == told.type_) {
        Some(known) => *known = told,
        None => status.conditions.push(told),
    }
}

fn conditions(run: &Run, update: &ConditionUpdate, now: Timestamp) -> Vec<Condition> {
    let succeeded = match update.state {
        State::Ended(RunOutcome::Succeeded) => "True",
        State::Ended(RunOutcome::Failed | RunOutcome::Cancelled) => "False",
        _ => "Unknown",
    };
    let works = matches!(update.state, State::Pending | State::Running);
    let truth = |is: bool| if is { "True" } else { "False" };
    [
        (ConditionType::Succeeded, succeeded),
        (ConditionType::Reconciling, truth(works)),
        (ConditionType::Stalled, truth(update.stalled)),
    ]
    .into_iter()
    .map(|(kind, status)| condition(run, kind.as_str(), status, update, now))
    .collect()
}

fn condition(run: &Run, kind: &str, status: &str, update: &ConditionUpdate, now: Timestamp) -> Condition {
    let before = run.status.conditions.iter().find(|known| known.type_ == kind && known.status == status);
    let since = before.map_or_else(|| Time(floor(now)), |known| known.last_transition_time.clone());
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: update.reason.to_string(),
        message: bounded(&update.message, MESSAGE),
        observed_generation: Some(run.generation),
        last_transition_time: since,
    }
}

fn state_text(state: State) -> &'static str {
    match state {
        State::Pending => "Pending",
        State::Running => "Running",
        State::Suspended => "Suspended",
        State::Ended(outcome) => outcome.as_str(),
        State::AsWritten => "",
    }
}

/// Whether two statuses differ in counts only, which may wait a little.
pub fn says_the_same(one: &PipelineRunStatus, other: &PipelineRunStatus) -> bool {
    let gist = |status: &PipelineRunStatus| {
        let conditions = status.conditions.iter();
        let gist: Vec<_> = conditions.map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone())).collect();
        (gist, status.state.clone(), status.observed_generation, status.revision.clone())
    };
    gist(one) == gist(other)
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn floor(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn second(at: Timestamp) -> String {
    floor(at).to_string()
}

/// At most `most` bytes, without control characters but line breaks: text of steps and of others ends up here.
pub fn bounded(text: &str, most: usize) -> String {
    let clean: String = text.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    if clean.len() <= most {
        return clean;
    }
    let room = most.saturating_sub('…'.len_utf8());
    let end = (0..=room).rev().find(|at| clean.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &clean[..end])
}
