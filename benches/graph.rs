//! Whole runs of 10 000 tasks: every event is applied and planned for by itself, as in the worst case of a driver.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use engine::*;

const TASKS: u32 = 10_000;

fn step(ix: u32, deps: Vec<Dep>) -> StepSpec {
    StepSpec { name: format!("step-{ix}"), deps, ..StepSpec::default() }
}

fn independent() -> Vec<StepSpec> {
    (0..TASKS).map(|ix| step(ix, Vec::new())).collect()
}

fn chain() -> Vec<StepSpec> {
    (0..TASKS).map(|ix| step(ix, ix.checked_sub(1).map(|up| Dep::Data(StepIx(up))).into_iter().collect())).collect()
}

fn fan_in_of_steps() -> Vec<StepSpec> {
    let mut steps: Vec<StepSpec> = (0..TASKS - 1).map(|ix| step(ix, Vec::new())).collect();
    steps.push(step(TASKS - 1, (0..TASKS - 1).map(|up| Dep::Data(StepIx(up))).collect()));
    steps
}

/// A map of 10 000 items, one over it element by element, and a reduction.
fn fan_in_of_items() -> Vec<StepSpec> {
    let mut steps = vec![step(0, Vec::new()), step(1, Vec::new()), step(2, vec![Dep::Data(StepIx(1))])];
    steps[0].map = Some(vec![MapSource::Len(TASKS)]);
    steps[1].map = Some(vec![MapSource::Items(StepIx(0))]);
    steps
}

/// Layers of 100 steps, each needing three of the layer before.
fn layers() -> Vec<StepSpec> {
    let up = |ix: u32, shift: u32| StepIx((ix / 100 - 1) * 100 + (ix + shift * 37) % 100);
    (0..TASKS)
        .map(|ix| match ix {
            0..100 => step(ix, Vec::new()),
            _ => step(ix, (0..3).map(|shift| Dep::Data(up(ix, shift))).collect()),
        })
        .collect()
}

/// Plans and plays the runtime until the run ends; returns how many events that took.
fn run_to_end(dag: &Dag, limits: &Limits) -> u64 {
    let mut state = RunState::new(dag, 1);
    let mut queue = std::collections::VecDeque::new();
    let mut events = 0;
    let mut apply = |state: &mut RunState, event: Event| {
        events += 1;
        assert!(state.apply(dag, &event, events).is_ok());
        plan(dag, state, limits, events).actions
    };
    let mut actions = plan(dag, &mut state, limits, 0).actions;
    loop {
        for action in actions.drain(..) {
            match action {
                Action::Submit { task, attempt, .. } => queue.push_back((task, attempt)),
                Action::Finish(outcome) => {
                    assert_eq!(outcome, RunOutcome::Succeeded);
                    return events;
                }
                _ => {}
            }
        }
        let (task, attempt) = queue.pop_front().expect("a run that has not ended has something in flight");
        actions = apply(&mut state, Event::Started { task, attempt });
        actions.extend(apply(&mut state, Event::Finished { task, attempt, lens: Vec::new() }));
        actions.extend(apply(&mut state, Event::Committed { task, lens: Vec::new() }));
    }
}

/// What a driver does after a restart: 10 000 commits from the journal, then one plan.
fn restore(dag: &Dag, limits: &Limits) -> RunState {
    let mut state = RunState::new(dag, 1);
    for (step, _) in dag.steps() {
        let event = Event::Committed { task: TaskId::whole(step), lens: Vec::new() };
        assert!(state.apply(dag, &event, 0).is_ok());
    }
    plan(dag, &mut state, limits, 0);
    state
}

type Steps = fn() -> Vec<StepSpec>;

fn bench(c: &mut Criterion) {
    let window = Limits::default();
    let limited = Limits { parallelism: Some(64), ..Limits::default() };
    let graphs: [(&str, Steps); 5] = [
        ("10000 independent steps", independent),
        ("10000 deep chain", chain),
        ("10000 wide fan-in of steps", fan_in_of_steps),
        ("10000 items, mapped again and reduced", fan_in_of_items),
        ("100 layers of 100 steps", layers),
    ];
    for (name, steps) in graphs {
        let mut group = c.benchmark_group(name);
        group.sample_size(10);
        group.bench_function("build", |b| {
            b.iter_batched(steps, |steps| Dag::build(black_box(steps)).map(|dag| dag.len()), BatchSize::LargeInput);
        });
        let dag = Dag::build(steps()).expect("a valid graph");
        group.bench_function("first plan", |b| {
            b.iter(|| plan(&dag, &mut RunState::new(&dag, 1), &window, 0).actions.len());
        });
        group.bench_function("whole run", |b| b.iter(|| run_to_end(&dag, &window)));
        group.bench_function("whole run, 64 at a time", |b| b.iter(|| run_to_end(&dag, &limited)));
        group.finish();
    }
    let dag = Dag::build(chain()).expect("a valid graph");
    c.benchmark_group("restore").sample_size(10).bench_function("10000 commits", |b| b.iter(|| restore(&dag, &window)));
}

criterion_group!(benches, bench);
criterion_main!(benches);
