//! What is done about a cluster.

use serde_json::{Value, json};

use super::support::{cluster, cluster_with, facts, templates};
use api::reason::Reason;
use decide::cluster::facts::{Issue, TlsFact};
use decide::cluster::names;
use decide::cluster::plan::{Plan, plan};

/// A plan as lines, without the cluster's name.
pub fn lines(plan: &Plan) -> Vec<String> {
    let short = |name: &str| name.trim_start_matches("c-").to_owned();
    let mut lines: Vec<String> = Vec::new();
    for deletion in &plan.delete {
        let verb = if deletion.force { "force" } else { "delete" };
        assert_eq!(deletion.uid, format!("uid-{}", short(&deletion.pod)), "a deletion names the pod that was seen");
        lines.push(format!("{verb} {}: {}", short(&deletion.pod), deletion.why));
    }
    lines.extend(plan.drain.iter().map(|name| format!("drain {}", short(name))));
    lines.extend(plan.retire.iter().map(|name| format!("retire {}", short(name))));
    lines.extend(plan.create.iter().map(|slot| format!("create {}", short(&names::pod("c", slot)))));
    lines.extend(plan.blind.then(|| "blind".to_owned()));
    lines.extend(plan.scheduler_waits.as_ref().map(|_| "waits".to_owned()));
    lines.extend(plan.wake.map(|wake| format!("wake {}", wake.as_secs())));
    lines
}

#[track_caller]
fn check(spec: Value, pods: &[&str], scheduler: &str, expected: &[&str]) {
    let cluster = cluster(spec);
    let plan = plan(&cluster, &templates(&cluster), &facts(pods, scheduler));
    assert_eq!(lines(&plan), expected);
}

fn cpu(replicas: u32) -> Value {
    json!({"workers": [{"name": "cpu", "replicas": replicas}]})
}

#[test]
fn a_new_cluster_gets_its_workers_and_one_scheduler() {
    check(json!({}), &[], "unknown", &["create scheduler-1", "create default-0-2"]);
    check(cpu(2), &[], "unknown", &["create scheduler-1", "create cpu-0-2", "create cpu-1-3"]);
    check(cpu(0), &[], "unknown", &["create scheduler-1"]);
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    check(cpu(2), &["scheduler-1", "cpu-0-2", "cpu-1-3"], "answers", &[]);
    check(cpu(2), &["scheduler-1 unready", "cpu-0-2 starting", "cpu-1-3 starting"], "unknown", &[]);
    check(cpu(1), &["scheduler-1", "cpu-0-2"], "unreachable=500", &[]);
}

#[test]
fn what_is_missing_is_made_with_a_number_that_no_pod_had() {
    check(cpu(2), &["scheduler-1", "cpu-1-3"], "answers", &["create cpu-0-4"]);
    check(cpu(2), &["cpu-0-2", "cpu-1-3"], "unknown", &["create scheduler-4"]);
    let cluster = cluster_with(cpu(1), json!({"incarnation": 70}));
    let plan = plan(&cluster, &templates(&cluster), &facts(&["scheduler-9"], "answers"));
    assert_eq!((lines(&plan), plan.incarnation), (vec!["create cpu-0-71".to_owned()], 71));
}

#[test]
fn of_two_schedulers_the_newer_one_stays() {
    check(cpu(0), &["scheduler-1", "scheduler-2"], "answers", &["delete scheduler-1: a newer scheduler exists"]);
}

#[test]
fn a_changed_scheduler_waits_until_nothing_uses_the_cluster_unless_told_otherwise() {
    let changed = ["delete scheduler-1: the spec of the scheduler has changed", "create scheduler-2"];
    for used in ["answers runs=1", "answers clients=1", "answers tasks=1", "unknown", "unreachable=9999"] {
        check(cpu(0), &["scheduler-1 old"], used, &["waits"]);
        let at_once = json!({"scheduler": {"rollout": "Immediately"}, "workers": [{"name": "cpu", "replicas": 0}]});
        check(at_once, &["scheduler-1 old"], used, &changed);
    }
    let changing = cluster(cpu(0));
    let unused = |scheduler: &str| {
        plan(&changing, &templates(&changing), &facts(&["scheduler-1 old"], scheduler)).scheduler_unused
    };
    assert!(unused("answers") && !unused("answers clients=1") && !unused("unknown"), "worth asking once more");
    check(cpu(0), &["scheduler-1 old"], "answers", &changed);
    check(cpu(0), &["scheduler-1 old starting"], "unknown", &changed);
}

#[test]
fn a_changed_scheduler_that_cannot_start_is_replaced_at_once() {
    let cluster = cluster(cpu(0));
    let mut known = facts(&["scheduler-1 old unready restarts=4"], "unknown");
    known.pods[0].issue =
        Some(Issue { reason: Reason::WorkerStartFailed, message: "no module".to_owned(), stalled: false });
    let found = plan(&cluster, &templates(&cluster), &known);
    let changed = ["delete scheduler-1: the spec of the scheduler has changed", "create scheduler-2"];
    assert_eq!(lines(&found), changed);
    known.pods[0].ready = true;
    assert_eq!(lines(&plan(&cluster, &templates(&cluster), &known)), ["waits"], "it works in spite of it");
}

#[test]
fn who_goes_first_is_outdated_then_unknown_then_idle_then_of_a_high_number() {
    let pods = ["scheduler-1", "cpu-0-2 tasks=1", "cpu-1-3", "cpu-2-4 tasks=2", "cpu-3-5", "cpu-4-6 old tasks=9"];
    let order = ["cpu-4-6", "cpu-3-5", "cpu-1-3", "cpu-0-2", "cpu-2-4"];
    for left in 0..5_usize {
        let mut drained: Vec<&str> = order[..5 - left].to_vec();
        drained.reverse();
        let mut expected: Vec<String> = drained.iter().map(|name| format!("drain {name}")).collect();
        expected.push("wake 2".to_owned());
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(cpu(left as u32), &pods, "answers clients=1", &expected);
    }
    let pods = ["scheduler-1", "cpu-0-2 unknown", "cpu-1-3"];
    check(cpu(1), &pods, "answers", &["delete cpu-0-2: it is not wanted any more"]);
}

#[test]
fn a_worker_that_drains_is_closed_when_it_has_nothing_left_to_do_and_its_place_is_free() {
    let pods = ["scheduler-1", "cpu-0-2", "cpu-1-3 draining tasks=1"];
    check(cpu(1), &pods, "answers", &["wake 2"]);
    check(cpu(2), &pods, "answers", &["create cpu-2-4", "wake 2"]);
    let pods = ["scheduler-1", "cpu-0-2", "cpu-1-3 draining"];
    check(cpu(1), &pods, "answers", &["retire cpu-1-3", "wake 2"]);
    // Its deletion was asked for: nothing is left to say about it.
    check(cpu(1), &["scheduler-1", "cpu-0-2", "cpu-1-3 draining going=1"], "answers", &["wake 89"]);
}

#[test]
fn without_a_scheduler_nothing_that_may_be_at_work_is_taken_away() {
    for silent in ["unknown", "unreachable=9999"] {
        check(cpu(1), &["scheduler-1", "cpu-0-2", "cpu-1-3"], silent, &["blind"]);
        check(cpu(1), &["scheduler-1", "cpu-0-2", "cpu-1-3 unready"], silent, &["blind"]);
        let never = ["delete cpu-1-3: it has not started and is not wanted any more"];
        check(cpu(1), &["scheduler-1", "cpu-0-2", "cpu-1-3 starting"], silent, &never);
        check(cpu(0), &["scheduler-1", "gone-0-2"], silent, &["blind"]);
        // Nor is it replaced, and no pod is made in its place.
        check(
            cpu(4),
            &["scheduler-1", "cpu-0-2 old", "cpu-1-3 old", "cpu-2-4 old", "cpu-3-5 old unready"],
            silent,
            &[],
        );
        check(
            cpu(1),
            &["scheduler-1", "cpu-0-2 old starting"],
            silent,
            &["delete cpu-0-2: it has not started and is not wanted any more", "create cpu-1-3"],
        );
    }
}

#[test]
fn workers_of_a_group_that_is_gone_drain_each_once() {
    let pods = ["scheduler-1", "old-0-2", "old-1-3", "old-2-4 unknown"];
    check(
        cpu(0),
        &pods,
        "answers clients=1",
        &["delete old-2-4: it is not wanted any more", "drain old-0-2", "drain old-1-3", "wake 2"],
    );
}

#[test]
fn outdated_workers_are_replaced_a_quarter_at_a_time() {
    let names: Vec<String> = (0..8).map(|n| format!("cpu-{n}-{} old tasks={n}", n + 2)).collect();
    let mut pods = vec!["scheduler-1"];
    pods.extend(names.iter().map(String::as_str));
    let first = ["drain cpu-0-2", "drain cpu-1-3", "create cpu-8-10", "create cpu-9-11", "wake 2"];
    check(cpu(8), &pods, "answers runs=1", &first);
    // Not before those that were replaced are there.
    let mut next = pods.clone();
    next.extend(["cpu-8-10 starting", "cpu-9-11 starting"]);
    (next[1], next[2]) = ("cpu-0-2 old draining tasks=1", "cpu-1-3 old draining tasks=1");
    check(cpu(8), &next, "answers runs=1", &["wake 2"]);
    next.drain(1..3);
    check(cpu(8), &next, "answers runs=1", &[]);
    let at = next.len();
    (next[at - 2], next[at - 1]) = ("cpu-8-10", "cpu-9-11 unknown");
    let one = ["drain cpu-2-4", "create cpu-0-12", "wake 2"];
    check(cpu(8), &next, "answers runs=1", &one);
    // At least one at a time.
    let one = ["drain cpu-0-2", "create cpu-1-3", "wake 2"];
    check(cpu(1), &["scheduler-1", "cpu-0-2 old"], "answers runs=1", &one);
}

#[test]
fn workers_are_not_replaced_before_their_scheduler() {
    check(cpu(1), &["scheduler-1 old", "cpu-0-2 old"], "answers runs=1", &["waits"]);
    check(cpu(1), &["scheduler-1 going=1", "cpu-0-2 old"], "unknown", &["create scheduler-3", "wake 89"]);
}

#[test]
fn outdated_workers_that_never_got_ready_are_all_replaced_at_once() {
    let pods = ["scheduler-1", "cpu-0-2 old starting", "cpu-1-3 old unready", "cpu-2-4"];
    check(
        cpu(3),
        &pods,
        "answers",
        &[
            "delete cpu-0-2: it is not wanted any more",
            "delete cpu-1-3: it is not wanted any more",
            "create cpu-3-5",
            "create cpu-4-6",
        ],
    );
}

#[test]
fn what_ended_is_replaced_at_once_or_after_a_wait_that_grows() {
    let replaced = ["delete cpu-0-2: it has ended", "create cpu-1-3"];
    for (words, expected) in [
        ("age=3600", &replaced[..]),
        ("age=61", &replaced),
        ("age=10", &replaced),
        ("age=4", &["wake 6"]),
        ("restarts=1 age=4", &["wake 16"]),
        ("restarts=4 age=100", &["wake 60"]),
        ("restarts=40 age=299", &["wake 1"]),
        ("restarts=40 age=300", &replaced),
    ] {
        check(cpu(1), &["scheduler-1", &format!("cpu-0-2 ended {words}")], "answers", expected);
    }
    let replaced = ["delete scheduler-1: it has ended", "create scheduler-2"];
    check(cpu(0), &["scheduler-1 ended"], "unknown", &replaced);
    check(cpu(0), &["scheduler-1 ended age=1"], "unknown", &["wake 9"]);
}

#[test]
fn what_ended_and_is_not_wanted_goes_before_a_worker_that_works() {
    let pods = ["scheduler-1", "cpu-0-2", "cpu-1-3 ended age=1 restarts=9"];
    check(cpu(1), &pods, "answers", &["delete cpu-1-3: it has ended"]);
    check(cpu(1), &pods, "unreachable=5", &["delete cpu-1-3: it has ended"]);
    check(cpu(2), &pods, "answers", &["wake 299"]);
}

#[test]
fn a_pod_on_a_dead_node_is_replaced_at_once_and_deleted_by_force_long_after_its_grace() {
    check(cpu(1), &["scheduler-1", "cpu-0-2 going=10"], "answers", &["create cpu-0-3", "wake 80"]);
    check(cpu(1), &["scheduler-1", "cpu-0-2 going=10", "cpu-0-3"], "answers", &["wake 80"]);
    let forced = "force cpu-0-2: its node does not answer";
    check(cpu(1), &["scheduler-1", "cpu-0-2 going=90", "cpu-0-3"], "answers", &[forced]);
    check(cpu(1), &["scheduler-1", "cpu-0-2 going=90", "cpu-0-3"], "unknown", &[forced]);
    let forced = ["force scheduler-1: its node does not answer", "create scheduler-2"];
    check(cpu(0), &["scheduler-1 going=90"], "unknown", &forced);
    check(cpu(0), &["scheduler-1 going=89"], "unknown", &["create scheduler-2", "wake 1"]);
}

fn suspended() -> Value {
    json!({"suspend": true, "workers": [{"name": "cpu", "replicas": 2}]})
}

#[test]
fn a_suspended_cluster_drains_its_workers_and_then_loses_its_scheduler() {
    let pods = ["scheduler-1", "cpu-0-2", "cpu-1-3 unknown", "cpu-2-4 ended age=1"];
    check(
        suspended(),
        &pods,
        "answers runs=1",
        &["delete cpu-2-4: it has ended", "delete cpu-1-3: it is not wanted any more", "drain cpu-0-2", "wake 2"],
    );
    check(suspended(), &["scheduler-1", "cpu-0-2 draining tasks=1"], "answers", &["wake 2"]);
    let last = ["delete scheduler-1: the cluster is suspended"];
    check(suspended(), &["scheduler-1", "cpu-0-2 going=1"], "answers", &[last[0], "wake 89"]);
    check(suspended(), &["scheduler-1"], "unknown", &last);
    check(suspended(), &[], "unknown", &[]);
}

#[test]
fn a_suspended_cluster_whose_scheduler_does_not_answer_waits_a_minute_for_it() {
    let pods = ["scheduler-1", "cpu-0-2"];
    let all = ["delete scheduler-1: the cluster is suspended", "delete cpu-0-2: the cluster is suspended"];
    // An operator that has just begun has not asked yet.
    check(suspended(), &pods, "unknown", &["blind"]);
    check(suspended(), &pods, "unreachable=10", &["blind", "wake 50"]);
    check(suspended(), &pods, "unreachable=60", &all);
    // Nobody will drain them any more.
    check(suspended(), &["cpu-0-2"], "unknown", &all[1..]);
    check(suspended(), &["scheduler-1 unready", "cpu-0-2"], "unknown", &all);
    let cluster = cluster(suspended());
    let mut known = facts(&pods, "unknown");
    let issue = Issue { reason: Reason::SecretNotFound, message: String::new(), stalled: false };
    known.tls = TlsFact { issue: Some(issue), ..TlsFact::default() };
    assert_eq!(lines(&plan(&cluster, &templates(&cluster), &known)), all, "nor can it be asked without certificates");
}

#[test]
fn a_cluster_that_goes_on_after_a_pause_is_complete_again() {
    check(
        cpu(2),
        &["scheduler-1 going=1"],
        "unknown",
        &["create scheduler-2", "create cpu-0-3", "create cpu-1-4", "wake 89"],
    );
}

#[test]
fn the_end_of_the_idle_time_is_looked_for() {
    let spec = json!({"idleTimeout": "10m", "workers": [{"name": "cpu", "replicas": 1}]});
    check(spec.clone(), &["scheduler-1", "cpu-0-2"], "answers idle=100", &["wake 500"]);
    check(spec.clone(), &["scheduler-1", "cpu-0-2"], "answers idle=600", &["drain cpu-0-2", "wake 2"]);
    check(spec, &["scheduler-1"], "answers", &["create cpu-0-2"]);
}

#[test]
fn a_group_of_ten_thousand_is_planned_in_no_time() {
    let begun = std::time::Instant::now();
    let cluster = cluster(cpu(10_000));
    let found = plan(&cluster, &templates(&cluster), &facts(&["scheduler-1"], "answers"));
    assert_eq!(found.create.len(), 10_000);
    assert!(begun.elapsed() < std::time::Duration::from_secs(1), "{:?}", begun.elapsed());
}
