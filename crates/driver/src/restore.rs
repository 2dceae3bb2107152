//! From the runtime's snapshot of a run to the events that bring a fresh engine to the same point.

use std::collections::HashSet;

use super::run_engine::Engine;
use super::terms::{failure_class, task_id};
use dask::ops::{Done, Item, Snapshot};
use engine::{Event, SkipReason, StepIx, TaskId};
use lower::Plan;

/// What is to be remembered of a snapshot besides the engine's state and the facts. Read page by page, so that nothing
/// else grows with it.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// Tasks whose output is an earlier run's, in the order of the journal.
    pub adopted: Vec<Item>,
    is_adopted: HashSet<Item>,
    /// Tasks that were handed over, where it matters which objects they name.
    pub naming: Vec<TaskId>,
    is_naming: HashSet<TaskId>,
    /// Tasks that were made again and have another output than before.
    changed: HashSet<Item>,
    /// Tasks that this run had committed itself.
    pub resumed: HashSet<TaskId>,
}

impl Restored {
    /// Brings the engine and the facts on by a page. Of tasks that the run does not have nothing is taken; fails if there is
    /// more of something than any run has.
    pub fn take(&mut self, engine: &mut Engine<'_>, mut page: Snapshot, now: u64) -> Result<(), String> {
        let plan = engine.plan;
        // No other length is ever written down.
        page.lengths.retain(|(_, len)| *len <= plan.limits.max_items);
        for event in lengths(&page).into_iter().chain(invalidated(&page)) {
            engine.apply(&event, now);
        }
        let changed = std::mem::take(&mut page.changed).into_iter();
        self.changed.extend(changed.filter(|item| engine.has(TaskId { step: StepIx(item.step), item: item.item })));
        for item in std::mem::take(&mut page.adopted) {
            let task = TaskId { step: StepIx(item.step), item: item.item };
            if engine.has(task) && self.is_adopted.insert(item) {
                self.adopted.push(item);
            }
        }
        for named in std::mem::take(&mut page.named) {
            if engine.has(TaskId { step: StepIx(named.task.step), item: named.task.item }) {
                engine.facts.named(named);
            }
        }
        if engine.facts.named_bytes() > limits::NAMED {
            return Err(format!("the object names of the run's tasks have more than {} MiB", limits::NAMED >> 20));
        }
        for event in events(&page, &self.is_adopted, &self.changed) {
            engine.apply(&event, now);
        }
        let own = page.committed.iter().filter(|done| !self.is_adopted.contains(&item_of(done)));
        self.resumed.extend(own.map(|done| task_id(done.task)).filter(|task| engine.has(*task)));
        for done in page.committed.into_iter().chain(page.finished) {
            let task = task_id(done.task);
            if !engine.has(task) {
                continue;
            }
            engine.facts.finished(task, done.lens.unwrap_or_default(), done.json);
            if let Some(bytes) = done.away {
                engine.facts.result_away(task, bytes.min(limits::RESULT));
            }
            self.names(plan, task);
        }
        for task in page.submitted.iter().map(|task| task_id(*task)) {
            if engine.has(task) {
                self.names(plan, task);
            }
        }
        Ok(())
    }

    fn names(&mut self, plan: &Plan, task: TaskId) {
        if plan.names_objects() && self.is_naming.insert(task) {
            self.naming.push(task);
        }
    }
}

fn item_of(done: &Done) -> Item {
    Item { step: done.task.step, item: done.task.item }
}

fn lengths(snapshot: &Snapshot) -> Vec<Event> {
    snapshot.lengths.iter().map(|(step, len)| Event::MapLength { step: StepIx(*step), len: *len }).collect()
}

fn invalidated(snapshot: &Snapshot) -> Vec<Event> {
    let invalidated = snapshot.invalidated.iter().map(|invalid| {
        let (task, attempt) = (task_id(invalid.task), invalid.task.attempt);
        Event::Invalidated { task, attempt, lost: invalid.lost }
    });
    invalidated.collect()
}

/// The events of `snapshot` after those of its lengths and of what was invalidated, in an order that the engine accepts. Failures of a run that had ended
/// and was opened again are not in the snapshot: they are tried anew.
fn events(snapshot: &Snapshot, adopted: &HashSet<Item>, changed: &HashSet<Item>) -> Vec<Event> {
    let mut events = Vec::new();
    for done in &snapshot.committed {
        let (task, lens) = (task_id(done.task), done.lens.clone().unwrap_or_default());
        let item = item_of(done);
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

#[cfg(test)]
mod tests {
    use super::*;
    use dask::ops::{Decided, Done, FailedAttempt, Invalidated, TaskAddr};
    use engine::{Dag, Dep, RetryPolicy, RunState, StepSpec, TaskStatus, When};

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
            committed: vec![Done { task: at(0, 1), lens: None, json: None, away: None }],
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
        for event in events(&snapshot, &HashSet::new(), &HashSet::new()) {
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
        let done =
            |step, attempt| Done { task: TaskAddr::new(step, None, attempt), lens: None, json: None, away: None };
        let snapshot = Snapshot {
            committed: vec![done(1, 1), done(0, 2), done(2, 1)],
            invalidated: vec![Invalidated { task: TaskAddr::new(0, None, 1), lost: true }],
            changed: vec![Item { step: 0, item: None }],
            ..Snapshot::default()
        };
        let mut state = RunState::new(&dag, 1);
        let changed = snapshot.changed.iter().copied().collect();
        for event in invalidated(&snapshot).into_iter().chain(events(&snapshot, &HashSet::new(), &changed)) {
            state.apply(&dag, &event, 0).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        }
        let status = |step| state.task_view(&dag, TaskId::whole(StepIx(step))).unwrap().status;
        let committed = TaskStatus::Committed { cached: false };
        assert_eq!([status(0), status(1), status(2)], [committed, TaskStatus::Waiting, committed]);
    }
}
