//! The status of a Pipeline: computed from what is known, and equal for equal knowledge.

use std::cmp::Reverse;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::facts::{Facts, RunFact, Subject};
use super::plan::{Plan, last_triggered};
use api::condition::ConditionType;
use api::reason::Reason;
use api::status::PipelineStatus;

/// Names of active runs that a status tells.
const ACTIVE: usize = 50;
/// Bytes of a message.
const MESSAGE: usize = 8 * 1024;

/// The status of a valid Pipeline whose planned actions are done, as far as they could be.
pub fn build_status(subject: &Subject, facts: &Facts, plan: &Plan) -> PipelineStatus {
    let issue = facts.issue.as_ref().or(plan.issue.as_ref());
    let (reason, message) = match issue {
        Some(issue) => (issue.reason, issue.message.clone()),
        None => (Reason::Accepted, String::new()),
    };
    let stalled = issue.is_some_and(|issue| issue.stalled);
    let is = |truth| if truth { "True" } else { "False" };
    let updates = [
        (ConditionType::Accepted, "True", Reason::Accepted, "the spec is valid".to_owned()),
        (ConditionType::Reconciling, is(issue.is_some() && !stalled), reason, message.clone()),
        (ConditionType::Stalled, is(stalled), reason, message),
    ];
    PipelineStatus {
        observed_generation: Some(subject.generation),
        conditions: updates.map(|update| condition(update, subject, facts.now)).into(),
        last_triggered: plan.marks.last_triggered.clone(),
        last_schedule_time: plan.marks.last_schedule.map(|time| time.to_string()),
        next_schedule_time: plan.marks.next.map(|time| time.to_string()),
        ..runs(subject, facts)
    }
}

/// The status of a Pipeline that is not valid: it makes no runs, and its schedule begins anew when it is.
pub fn invalid_status(subject: &Subject, facts: &Facts, message: &str) -> PipelineStatus {
    let updates = [
        (ConditionType::Accepted, "False", Reason::Invalid, message.to_owned()),
        (ConditionType::Reconciling, "False", Reason::Invalid, message.to_owned()),
        (ConditionType::Stalled, "True", Reason::Invalid, message.to_owned()),
    ];
    PipelineStatus {
        observed_generation: Some(subject.generation),
        conditions: updates.map(|update| condition(update, subject, facts.now)).into(),
        last_triggered: last_triggered(subject, facts, None),
        last_schedule_time: subject.status.last_schedule_time.clone(),
        ..runs(subject, facts)
    }
}

fn runs(subject: &Subject, facts: &Facts) -> PipelineStatus {
    let mut runs: Vec<&RunFact> = facts.runs.iter().collect();
    // Made in the same second: the later moment, then the name, so that the answer is always the same.
    runs.sort_by_key(|run| Reverse((run.created, run.moment(), run.name.clone())));
    let active = runs.iter().filter(|run| run.is_active()).map(|run| run.name.clone());
    PipelineStatus {
        last_run: runs.first().map(|run| run.name.clone()).or_else(|| subject.status.last_run.clone()),
        active: active.take(ACTIVE).collect(),
        ..PipelineStatus::default()
    }
}

fn condition(update: (ConditionType, &str, Reason, String), subject: &Subject, now: Timestamp) -> Condition {
    let (kind, status, reason, message) = update;
    let before = subject.status.conditions.iter().find(|before| before.type_ == kind.as_str());
    let since = before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
    let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Condition {
        type_: kind.as_str().to_owned(),
        status: status.to_owned(),
        reason: reason.to_string(),
        message: bounded(&message),
        observed_generation: Some(subject.generation),
        last_transition_time: since.unwrap_or(Time(whole)),
    }
}

/// Without control characters, and short enough.
fn bounded(message: &str) -> String {
    let end = (0..=MESSAGE.min(message.len())).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
    message[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
