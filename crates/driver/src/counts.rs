//! Tasks counted for progress and reports.

use super::facts::Facts;
use engine::RunState;
use run_model::Counts;

pub(super) fn counts(state: &RunState, facts: &Facts) -> Counts {
    let counts = state.counts();
    Counts {
        total: counts.total.into(),
        done: (counts.done + counts.failed + counts.skipped + counts.cancelled).into(),
        running: counts.running.into(),
        cached: u64::from(counts.cached) + facts.resumed.len() as u64,
        failed: counts.failed.into(),
        skipped: (counts.skipped + counts.cancelled).into(),
        kept_back: counts.cancelled.into(),
        finalizing: state.is_finalizing(),
    }
}
