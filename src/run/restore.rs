//! From the runtime's snapshot of a run to the events that bring a fresh engine to the same point.

use std::collections::HashSet;

use crate::dask::ops::{Item, Snapshot};
use crate::graph::{Event, SkipReason, StepIx, TaskId};

use super::wire::{failure_class, task_id};

/// The events of `snapshot`, in an order that the engine accepts. Failures of a run that had ended and was opened again
/// are not in the snapshot: they are tried anew.
pub(super) fn events(snapshot: &Snapshot) -> Vec<Event> {
    let mut events = Vec::new();
    events.extend(snapshot.lengths.iter().map(|(step, len)| Event::MapLength { step: StepIx(*step), len: *len }));
    let invalidated = snapshot.invalidated.iter().map(|invalid| {
        let (task, attempt) = (task_id(invalid.task), invalid.task.attempt);
        Event::Invalidated { task, attempt, lost: invalid.lost }
    });
    events.extend(invalidated);
    let changed: HashSet<Item> = snapshot.changed.iter().copied().collect();
    let adopted: HashSet<Item> = snapshot.adopted.iter().copied().collect();
    for done in &snapshot.committed {
        let (task, lens) = (task_id(done.task), done.lens.clone().unwrap_or_default());
        let item = Item { step: done.task.step, item: done.task.item };
        // What stands before it was committed before it had changed.
        if changed.contains(&item) {
            events.push(Event::Changed { task });
        }
        let cached = adopted.contains(&item);
        events.push(if cached { Event::Cached { task, lens } } else { Event::Committed { task, lens } });
    }
    // Items before whole steps: the decision on a step ends those of its items that have not ended.
    let mut skipped: Vec<_> = snapshot.skipped.iter().collect();
    skipped.sort_by_key(|decided| decided.item.is_none());
    for skipped in skipped {
        let task = TaskId { step: StepIx(skipped.step), item: skipped.item };
        match SkipReason::parse(&skipped.reason) {
            Some(reason) => events.push(Event::Skipped { task, reason }),
            // Written by a later version: decide again.
            None => tracing::warn!(reason = skipped.reason, "the journal holds a skip for an unknown reason"),
        }
    }
    let mut refused: Vec<_> = snapshot.refused.iter().collect();
    refused.sort_by_key(|decided| decided.item.is_none());
    for refused in refused {
        events.push(Event::FailedFinal { task: TaskId { step: StepIx(refused.step), item: refused.item } });
    }
    for failed in &snapshot.failed {
        let (task, attempt) = (task_id(failed.task), failed.task.attempt);
        events.push(Event::AttemptFailed { task, attempt, class: failure_class(&failed.class) });
    }
    for lost in &snapshot.lost {
        events.push(Event::Lost { task: task_id(*lost), attempt: lost.attempt });
    }
    for task in &snapshot.submitted {
        events.push(Event::Submitted { task: task_id(*task), attempt: task.attempt });
    }
    for done in &snapshot.finished {
        let lens = done.lens.clone().unwrap_or_default();
        events.push(Event::Submitted { task: task_id(done.task), attempt: done.task.attempt });
        events.push(Event::Finished { task: task_id(done.task), attempt: done.task.attempt, lens });
    }
    events
}

/// Tasks that this run has committed itself before it was opened.
pub(super) fn resumed(snapshot: &Snapshot) -> HashSet<TaskId> {
    let adopted: HashSet<TaskId> =
        snapshot.adopted.iter().map(|item| TaskId { step: StepIx(item.step), item: item.item }).collect();
    snapshot.committed.iter().map(|done| task_id(done.task)).filter(|task| !adopted.contains(task)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dask::ops::{Decided, Done, FailedAttempt, Invalidated, TaskAddr};
    use crate::graph::{Dag, Dep, RetryPolicy, RunState, StepSpec, TaskStatus, When};

    #[test]
    fn a_fresh_engine_takes_a_snapshot_without_contradiction() {
        let step = |name: &str| StepSpec { name: name.into(), ..StepSpec::default() };
        let conditional = StepSpec { when: When::PerStep, ..step("skipped") };
        let retry = RetryPolicy { limit: 2, ..RetryPolicy::default() };
        let flaky = StepSpec { retry, ..step("flaky") };
        let dag = Dag::build(vec![step("done"), conditional, step("failed"), flaky, step("live")]).unwrap();
        let decided = |step, reason: &str| Decided { step, item: None, reason: reason.into(), message: String::new() };
        let at = |step, attempt| TaskAddr::new(step, None, attempt);
        let snapshot = Snapshot {
            committed: vec![Done { task: at(0, 1), lens: None, json: None }],
            skipped: vec![decided(1, "WhenFalse")],
            refused: vec![decided(2, "StepError")],
            failed: vec![
                FailedAttempt { task: at(2, 1), class: "app".into() },
                FailedAttempt { task: at(3, 1), class: "app".into() },
            ],
            lost: vec![at(3, 2)],
            submitted: vec![at(4, 1)],
            ..Snapshot::default()
        };
        let mut state = RunState::new(&dag, 1);
        for event in events(&snapshot) {
            state.apply(&dag, &event, 0).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        }
        let view = |step| state.task_view(&dag, TaskId::whole(StepIx(step))).unwrap();
        assert_eq!(view(0).status, TaskStatus::Committed { cached: false });
        assert_eq!(view(1).status, TaskStatus::Skipped(SkipReason::WhenFalse));
        assert_eq!(view(2).status, TaskStatus::Failed);
        assert_eq!((view(3).attempt, view(3).losses), (2, 1));
        assert_eq!(view(4).status, TaskStatus::Submitted);
    }

    #[test]
    fn what_was_made_from_an_output_that_has_changed_since_is_found_by_its_place() {
        let step = |name: &str| StepSpec { name: name.into(), ..StepSpec::default() };
        let reads = |name: &str, up| StepSpec { deps: vec![Dep::Data(StepIx(up))], ..step(name) };
        let dag = Dag::build(vec![step("a"), reads("before", 0), reads("after", 0)]).unwrap();
        let done = |step, attempt| Done { task: TaskAddr::new(step, None, attempt), lens: None, json: None };
        let snapshot = Snapshot {
            committed: vec![done(1, 1), done(0, 2), done(2, 1)],
            invalidated: vec![Invalidated { task: TaskAddr::new(0, None, 1), lost: true }],
            changed: vec![Item { step: 0, item: None }],
            ..Snapshot::default()
        };
        let mut state = RunState::new(&dag, 1);
        for event in events(&snapshot) {
            state.apply(&dag, &event, 0).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        }
        let status = |step| state.task_view(&dag, TaskId::whole(StepIx(step))).unwrap().status;
        let committed = TaskStatus::Committed { cached: false };
        assert_eq!([status(0), status(1), status(2)], [committed, TaskStatus::Waiting, committed]);
    }
}
