//! Ten thousand of anything, event by event, on a small stack. The time limits are far above what is needed even
//! without optimisation, and far below what anything quadratic takes.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use engine::*;

const TASKS: u32 = 10_000;

fn step(ix: u32, deps: Vec<Dep>) -> StepSpec {
    StepSpec { name: format!("step-{ix}"), deps, ..StepSpec::default() }
}

fn chain() -> Vec<StepSpec> {
    (0..TASKS).map(|ix| step(ix, ix.checked_sub(1).map(|up| Dep::Data(StepIx(up))).into_iter().collect())).collect()
}

fn fan_in() -> Vec<StepSpec> {
    let mut steps: Vec<StepSpec> = (1..TASKS).map(|ix| step(ix, Vec::new())).collect();
    steps.push(step(0, (0..TASKS - 1).map(|up| Dep::Data(StepIx(up))).collect()));
    steps
}

/// A dynamic map of 10 000, mapped again, reduced.
fn items() -> Vec<StepSpec> {
    let mut steps: Vec<StepSpec> = (0..4).map(|ix| step(ix, Vec::new())).collect();
    steps[1].map = Some(vec![MapSource::Output { step: StepIx(0), lens_slot: 0 }]);
    steps[2].map = Some(vec![MapSource::Items(StepIx(1))]);
    steps[3].deps = vec![Dep::Data(StepIx(2))];
    steps
}

/// Runs to the end, planning after every event. `fail`: the first task fails. `cancel`: after the first event.
fn run_to_end(steps: Vec<StepSpec>, limits: &Limits, fail: bool, cancel: bool) -> (RunOutcome, Counts) {
    let dag = Dag::build(steps).expect("a valid graph");
    let mut state = RunState::new(&dag, 1);
    let mut queue: VecDeque<Event> = VecDeque::new();
    if cancel {
        queue.push_back(Event::CancelRequested);
    }
    let mut first = true;
    let mut stopped = BTreeSet::new();
    loop {
        for action in plan(&dag, &mut state, limits, 0).actions {
            match action {
                Action::Submit { task, attempt, .. } => {
                    queue.push_back(Event::Started { task, attempt });
                    if std::mem::take(&mut first) && fail {
                        queue.push_back(Event::Failed { task, attempt, class: FailureClass::App });
                    } else {
                        queue.push_back(Event::Finished { task, attempt, lens: vec![TASKS] });
                        queue.push_back(Event::Committed { task, lens: vec![TASKS] });
                    }
                }
                Action::Withdraw { task, attempt } | Action::Stop { task, attempt, .. } => {
                    stopped.insert(task);
                    queue.push_back(Event::Stopped { task, attempt });
                }
                Action::Finish(outcome) => return (outcome, state.counts()),
                _ => {}
            }
        }
        let event = queue.pop_front().expect("something is in flight");
        let is_gone = match &event {
            Event::Started { task, .. } | Event::Finished { task, .. } | Event::Committed { task, .. } => {
                stopped.contains(task)
            }
            _ => false,
        };
        if is_gone {
            continue;
        }
        state.apply(&dag, &event, 0).expect("a possible event");
    }
}

#[track_caller]
fn check(steps: fn() -> Vec<StepSpec>, limits: Limits, fail: bool, cancel: bool, expected: RunOutcome) {
    let thread = std::thread::Builder::new().stack_size(128 * 1024);
    let run = move || {
        let start = Instant::now();
        let (outcome, counts) = run_to_end(steps(), &limits, fail, cancel);
        (outcome, counts, start.elapsed())
    };
    let (outcome, counts, took) = thread.spawn(run).expect("a thread").join().expect("no overflow, no panic");
    assert_eq!(outcome, expected);
    assert!(counts.total >= TASKS || fail || cancel, "{counts:?}");
    assert!(took < Duration::from_secs(20), "took {took:?}");
}

fn no_window() -> Limits {
    Limits { parallelism: Some(100), ..Limits::default() }
}

#[test]
fn chains_of_ten_thousand_run_fail_and_are_cancelled() {
    check(chain, Limits::default(), false, false, RunOutcome::Succeeded);
    check(chain, Limits { window: 100, ..Limits::default() }, true, false, RunOutcome::Failed);
    check(chain, no_window(), true, false, RunOutcome::Failed);
    check(chain, no_window(), false, true, RunOutcome::Cancelled);
}

#[test]
fn fan_ins_of_ten_thousand_steps_run_fail_and_are_cancelled() {
    check(fan_in, Limits::default(), false, false, RunOutcome::Succeeded);
    check(fan_in, no_window(), true, false, RunOutcome::Failed);
    check(fan_in, no_window(), false, true, RunOutcome::Cancelled);
}

#[test]
fn maps_of_ten_thousand_items_run_fail_and_are_cancelled() {
    check(items, Limits::default(), false, false, RunOutcome::Succeeded);
    check(items, no_window(), false, false, RunOutcome::Succeeded);
    check(items, no_window(), true, false, RunOutcome::Failed);
    check(items, no_window(), false, true, RunOutcome::Cancelled);
}

/// Every step needs resources of its own kind: the worst case for choosing what fits.
#[test]
fn ten_thousand_classes_of_resources_are_chosen_from_in_time() {
    let steps = || -> Vec<StepSpec> {
        let amount = |ix: u32| 1.0 + f64::from(ix) / 1e5;
        (0..TASKS)
            .map(|ix| StepSpec { resources: vec![("GPU".to_owned(), amount(ix))], ..step(ix, Vec::new()) })
            .collect()
    };
    let limits = Limits { resources: [("GPU".to_owned(), 8.0)].into(), ..Limits::default() };
    check(steps, limits, false, false, RunOutcome::Succeeded);
}
