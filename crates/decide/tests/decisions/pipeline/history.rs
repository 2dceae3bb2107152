//! Whole histories: edits, time, ends of runs, and a process that ends anywhere.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::world::World;

#[derive(Debug, Clone)]
enum Step {
    /// Seconds.
    Time(u32),
    Code(u8),
    Schedule(usize),
    /// The oldest or the newest active run ends.
    End {
        oldest: bool,
        succeeded: bool,
    },
    /// A reconciliation whose process ends after so many actions.
    Crash(usize),
    Pass,
    DropStatus,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_u32..4000).prop_map(Step::Time),
        2 => (0_u8..3).prop_map(Step::Code),
        1 => (0_usize..SCHEDULES).prop_map(Step::Schedule),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(oldest, succeeded)| Step::End { oldest, succeeded }),
        3 => (0_usize..4).prop_map(Step::Crash),
        5 => Just(Step::Pass),
        1 => Just(Step::DropStatus),
    ];
    prop::collection::vec(step, 1..60)
}

const SCHEDULES: usize = 5;

fn schedule(index: usize, policy: &str, catch_up: u32) -> Value {
    let mut schedule = match index {
        0 => json!({"cron": "*/10 * * * *"}),
        1 => json!({"interval": "7m"}),
        2 => json!({"cron": "30 2,14 * * *", "timeZone": "Europe/Berlin"}),
        3 => json!({"interval": "15m", "start": "2026-01-15T12:03:00Z", "startingDeadline": "20m"}),
        _ => return Value::Null,
    };
    schedule["concurrencyPolicy"] = json!(policy);
    schedule["catchUp"] = json!(catch_up);
    schedule["successfulRunsHistoryLimit"] = json!(2);
    schedule
}

/// What must hold after each single action.
fn check(world: &World, policy: &str) {
    let moments: Vec<_> = world.made.iter().filter_map(|(_, moment)| *moment).collect();
    assert_eq!(moments.iter().collect::<BTreeSet<_>>().len(), moments.len(), "a moment ran twice: {moments:?}");
    let live: Vec<_> =
        world.facts().runs.into_iter().filter(|run| run.is_active() && !run.queued && !run.cancelled).collect();
    let by_schedule = live.iter().filter(|run| run.moment().is_some()).count();
    if policy != "Allow" {
        assert!(by_schedule <= 1, "{policy}: {by_schedule} runs of the schedule at once");
    }
    if policy != "Queue" {
        assert!(world.queued().is_empty());
    }
}

fn run(steps: Vec<Step>, policy: &str, catch_up: u32, on_change: bool) {
    let mut world = World::new(json!({"triggers": {"onChange": on_change}, "schedule": schedule(0, policy, catch_up)}));
    // A status that is lost together with all runs of the schedule is a new Pipeline to anybody.
    let mut dropped = false;
    for step in steps {
        match step {
            Step::Time(seconds) => world.pass_time(&format!("{seconds}s")),
            Step::Code(version) => world.code(&version.to_string()),
            Step::Schedule(index) => world.edit("schedule", schedule(index, policy, catch_up)),
            Step::End { oldest, succeeded } => {
                let active = world.active();
                let name = if oldest { active.first() } else { active.last() };
                if let Some(name) = name.cloned() {
                    world.end(&name, succeeded);
                }
            }
            Step::Crash(actions) => drop(world.reconcile(actions)),
            Step::Pass => world.settle(),
            Step::DropStatus => {
                dropped = true;
                world.subject.status = Default::default();
            }
        }
        check(&world, policy);
    }
    world.settle();
    check(&world, policy);
    let made = world.made.len();
    world.settle();
    assert_eq!(world.made.len(), made, "a pass without news makes nothing");
    assert!(world.planned().actions.is_empty());
    if !dropped {
        // As many runs by change as the passes saw changes; at least the last one.
        let seen = world.subject.status.last_triggered.clone();
        assert_eq!(seen, Some(decide::pipeline::hash(&world.subject.spec)));
    }
    let ended = world
        .facts()
        .runs
        .iter()
        .filter(|run| run.moment().is_some() && run.end == Some(decide::pipeline::End::Succeeded))
        .count();
    assert!(world.subject.spec.schedule.is_none() || ended <= 2, "{ended} succeeded runs are kept");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_moment_runs_twice_and_never_more_at_once_than_allowed(
        steps in steps(),
        policy in prop_oneof![Just("Allow"), Just("Forbid"), Just("Replace"), Just("Queue")],
        catch_up in 0_u32..4,
        on_change in any::<bool>(),
    ) {
        run(steps, policy, catch_up, on_change);
    }

    /// A process that ends after any action leaves what another one completes to the same end.
    #[test]
    fn where_the_process_ends_makes_no_difference(
        versions in prop::collection::vec((0_u8..3, prop::collection::vec(0_usize..4, 0..4)), 1..8),
        policy in prop_oneof![Just("Allow"), Just("Forbid"), Just("Replace"), Just("Queue")],
    ) {
        let start = || World::new(json!({"triggers": {"onChange": true}, "schedule": schedule(0, policy, 2)}));
        let (mut smooth, mut rough) = (start(), start());
        // From the first status on: before it, moments that a process left half done are as decided.
        smooth.settle();
        rough.settle();
        for (version, crashes) in versions {
            for world in [&mut smooth, &mut rough] {
                world.pass_time("25m");
                world.end_all();
                world.code(&version.to_string());
            }
            for actions in crashes {
                rough.reconcile(actions);
            }
            smooth.settle();
            rough.settle();
            prop_assert_eq!(&smooth.made, &rough.made);
            prop_assert_eq!(&smooth.subject.status, &rough.subject.status);
        }
    }
}
