//! Which runs of a schedule are kept.

use std::cmp::Reverse;

use super::action::Action;
use super::facts::{End, Facts, RunFact};
use api::pipeline::Schedule;

/// Runs kept unless the schedule says otherwise.
const KEPT: u32 = 3;

/// Deletes the oldest ended runs of the schedule beyond its limits. Runs that changes or people made are theirs. One whose
/// retention is not carried out yet stays until it is.
pub(super) fn plan(schedule: &Schedule, facts: &Facts, actions: &mut Vec<Action>) {
    for (end, limit, field) in [
        (End::Succeeded, schedule.successful_runs_history_limit, "successfulRunsHistoryLimit"),
        (End::Failed, schedule.failed_runs_history_limit, "failedRunsHistoryLimit"),
    ] {
        let limit = limit.unwrap_or(KEPT);
        let mut ended: Vec<&RunFact> =
            facts.runs.iter().filter(|run| run.moment().is_some() && run.end == Some(end) && !run.deleting).collect();
        ended.sort_by_key(|run| Reverse((run.moment(), run.name.clone())));
        let beyond = ended.into_iter().skip(limit as usize).filter(|run| !run.retains);
        actions.extend(beyond.map(|run| Action::Delete {
            name: run.name.clone(),
            uid: run.uid.clone(),
            why: format!("{field} is {limit}"),
        }));
    }
}
