//! How many workers a group should have.

use std::time::Duration;

use decide::cluster::effective_groups;
use decide::cluster::facts::Recent;
use decide::cluster::room::Giving;
use decide::cluster::scale::{Desired, desired, remember};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::support::{ago, answers, ask, cluster_with, facts, now};

#[track_caller]
fn check(spec: &Value, before: &[u32], scheduler: &str, expected: &[u32], until: Option<u64>) {
    let groups: Vec<Value> = spec["workers"]
        .as_array()
        .unwrap()
        .iter()
        .zip(before)
        .map(|(group, desired)| json!({"name": group["name"], "desired": desired, "ready": 0}))
        .collect();
    let cluster = cluster_with(spec.clone(), json!({ "groups": groups }));
    let found = desired(&cluster, &effective_groups(&cluster.spec), &facts(&[], scheduler));
    let (workers, until) = (expected.to_vec(), until.map(Duration::from_secs));
    let wanted = Desired { workers, until, giving: Giving::default() };
    assert_eq!(found, wanted, "{scheduler}");
}

/// A group for everything, one with GPUs, one with disks.
fn three() -> Value {
    json!({"workers": [
        {"name": "cpu", "threads": 4, "autoscale": {"min": 0, "max": 10}},
        {"name": "gpu", "threads": 8, "gpu": {"count": 2}, "autoscale": {"max": 4}},
        {"name": "ssd", "daskResources": {"SSD": 1}, "autoscale": {"min": 1, "max": 3}}
    ]})
}

#[test]
fn groups_follow_the_demand_from_zero_to_their_bounds() {
    for (scheduler, expected) in [
        ("answers", [0, 0, 1]),
        ("answers ask=1", [1, 0, 1]),
        ("answers ask=5", [2, 0, 1]),
        ("answers ask=40", [10, 0, 1]),
        // What has no room elsewhere goes to the last group that takes it; never to a GPU.
        ("answers ask=1000", [10, 0, 3]),
        ("answers ask=5*GPU:1", [0, 3, 1]),
        ("answers ask=3*GPU:2", [0, 3, 1]),
        ("answers ask=100*GPU:1", [0, 4, 1]),
        ("answers ask=2*SSD:1", [0, 0, 2]),
        ("answers ask=4*SSD:0.5", [0, 0, 3]),
        ("answers ask=9*gpu", [0, 2, 1]),
        ("answers ask=3*cpu,GPU:1", [0, 0, 1]),
        ("answers ask=3*nobody", [0, 0, 1]),
        ("answers ask=1*GPU:8", [0, 0, 1]),
        ("answers ask=1*TPU:1", [0, 0, 1]),
        ("answers ask=4 ask=2*GPU:1 ask=2*SSD:1", [1, 1, 2]),
        ("answers ask=18446744073709551615", [10, 0, 3]),
        ("answers ask=1*GPU:NaN", [1, 0, 1]),
        ("answers ask=1*GPU:-1", [1, 0, 1]),
    ] {
        check(&three(), &[0, 0, 1], scheduler, &expected, None);
    }
}

#[test]
fn steps_without_a_gpu_take_gpu_workers_only_where_that_is_allowed_or_nothing_else_is_there() {
    let mut spec = three();
    spec["workers"][1]["gpu"]["allowCpuSteps"] = json!(true);
    check(&spec, &[0, 0, 0], "answers ask=48", &[10, 1, 1], None);
    let only = json!({"workers": [{"name": "gpu", "threads": 2, "gpu": {"count": 1}, "autoscale": {"max": 4}}]});
    check(&only, &[0], "answers ask=3", &[2], None);
}

#[test]
fn fixed_groups_stay_fixed_and_take_their_share_of_the_demand() {
    let spec = json!({"workers": [
        {"name": "fixed", "threads": 2, "replicas": 3}, {"name": "more", "threads": 1, "autoscale": {"max": 9}}
    ]});
    check(&spec, &[3, 0], "answers ask=6", &[3, 0], None);
    check(&spec, &[3, 0], "answers ask=8", &[3, 2], None);
}

#[test]
fn without_a_word_of_the_scheduler_numbers_stay_as_they_were() {
    for scheduler in ["unknown", "unreachable=1000"] {
        check(&three(), &[7, 9, 0], scheduler, &[7, 4, 1], None);
    }
    let fixed = json!({"workers": [{"name": "a", "replicas": 3}]});
    check(&fixed, &[0], "unknown", &[3], None);
    // After the idle time: an operator that has just begun does not bring back what nobody uses.
    let idle = json!({"idleTimeout": "5m", "workers": [{"name": "a", "replicas": 3}]});
    check(&idle, &[0], "unknown", &[0], None);
    check(&idle, &[3], "unknown", &[3], None);
    check(&idle, &[], "unknown", &[3], None);
}

#[test]
fn after_the_idle_time_all_groups_are_empty_until_there_is_work() {
    let mut spec = three();
    spec["idleTimeout"] = json!("5m");
    spec["workers"][2] = json!({"name": "ssd", "replicas": 2});
    check(&spec, &[3, 0, 2], "answers idle=200", &[0, 0, 2], Some(100));
    check(&spec, &[0, 0, 2], "answers idle=300", &[0, 0, 0], None);
    check(&spec, &[0, 0, 0], "answers idle=90000", &[0, 0, 0], None);
    check(&spec, &[0, 0, 0], "answers clients=1", &[0, 0, 2], None);
    check(&spec, &[0, 0, 0], "answers runs=1 ask=4", &[1, 0, 2], None);
    // A clock that was set back.
    check(&spec, &[0, 0, 2], "answers idle=0", &[0, 0, 2], Some(300));
}

#[test]
fn what_was_needed_a_moment_ago_is_kept_for_half_a_minute() {
    let spec = json!({"workers": [{"name": "cpu", "threads": 1, "autoscale": {"max": 10}}]});
    check(&spec, &[8], "answers clients=1 ask=2 was=8@10", &[8], Some(20));
    check(&spec, &[8], "answers clients=1 was=8@10 was=5@3", &[8], Some(20));
    check(&spec, &[8], "answers clients=1 was=8@30 was=5@3", &[5], Some(27));
    check(&spec, &[8], "answers clients=1 was=8@30", &[0], None);
    // Kept, not brought back.
    check(&spec, &[3], "answers clients=1 was=8@10", &[3], Some(20));
    check(&spec, &[3], "answers clients=1 ask=9 was=8@10", &[9], None);
    // One that has just begun knows since when nothing was used.
    check(&spec, &[8], "answers idle=10", &[8], Some(20));
    check(&spec, &[8], "answers idle=30", &[0], None);
}

#[test]
fn a_cluster_of_a_run_has_no_worker_until_the_run_asks_for_one() {
    let spec = json!({"workers": [
        {"name": "fixed", "replicas": 3}, {"name": "more", "autoscale": {"min": 1, "max": 9}}
    ]});
    let wanted = |before: [u32; 2], scheduler: &str| {
        let known = json!([{"name": "fixed", "desired": before[0], "ready": 0}, {"name": "more", "desired": before[1], "ready": 0}]);
        let mut cluster = cluster_with(spec.clone(), json!({ "groups": known }));
        cluster.of_run = true;
        desired(&cluster, &effective_groups(&cluster.spec), &facts(&[], scheduler)).workers
    };
    for scheduler in ["unknown", "unreachable=9", "answers", "answers runs=1", "answers runs=1 was=3@10"] {
        assert_eq!(wanted([0, 0], scheduler), [0, 0], "{scheduler}");
    }
    assert_eq!(wanted([0, 0], "answers runs=1 ask=1"), [3, 1]);
    // From then on they are there, also between two steps and while the scheduler is replaced.
    for scheduler in ["unknown", "answers runs=1"] {
        assert_eq!(wanted([3, 1], scheduler), [3, 1], "{scheduler}");
    }
    check(&spec, &[0, 0], "answers", &[3, 1], None);
}

#[test]
fn a_suspended_cluster_wants_no_worker() {
    let mut spec = three();
    spec["suspend"] = json!(true);
    check(&spec, &[5, 1, 2], "answers ask=100", &[0, 0, 0], None);
}

#[test]
fn of_ended_demands_the_largest_are_remembered_for_a_while_and_not_many() {
    let recent = |text: &str, seconds| Recent { ask: ask(text), until: ago(seconds) };
    let mut before = answers();
    before.demand = vec![ask("3"), ask("2*GPU:1")];
    before.recent = vec![recent("5", 20), recent("2", 5), recent("9", 31), recent("1*GPU:1", 2)];
    assert_eq!(remember(&before, now()), [recent("5", 20), recent("3", 0), recent("2*GPU:1", 0)]);
    let mut state = answers();
    for count in 0..1000_u32 {
        state.recent = remember(&state, now() + SignedDuration::from_millis(i64::from(count)));
        state.demand = vec![ask(&format!("{}", 1000 - count))];
    }
    assert_eq!(state.recent.len(), 64);
    assert_eq!(state.recent[0].ask.count, 1000, "the largest stays");
}
