//! What is told about a cluster.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::support::{cluster, cluster_with, facts, now, templates};
use api::reason::Reason;
use api::status::DaskClusterStatus;
use decide::cluster::facts::{Cluster, Facts, Issue, Refusal, Role, SchedulerFact, TlsFact};
use decide::cluster::plan::plan;
use decide::cluster::status::{build_status, invalid_status};

fn told(cluster: &Cluster, facts: &Facts) -> DaskClusterStatus {
    let templates = templates(cluster);
    build_status(cluster, &templates, facts, &plan(cluster, &templates, facts))
}

/// `Ready=False SchedulerNotReady`, …; reasons are checked to be declared.
fn gist(status: &DaskClusterStatus) -> Vec<String> {
    let conditions = status.conditions.iter();
    conditions
        .map(|condition| {
            assert!(condition.reason.parse::<Reason>().is_ok(), "{} is not declared", condition.reason);
            assert_eq!(condition.observed_generation, Some(3));
            format!("{}={} {}", condition.type_, condition.status, condition.reason)
        })
        .collect()
}

fn message<'a>(status: &'a DaskClusterStatus, kind: &str) -> &'a str {
    &status.conditions.iter().find(|condition| condition.type_ == kind).unwrap().message
}

/// Conditions in order: Ready, SchedulerReady, WorkersReady, Reconciling, Stalled.
#[track_caller]
fn check(spec: Value, pods: &[&str], scheduler: &str, expected: [&str; 5]) -> DaskClusterStatus {
    let status = told(&cluster(spec), &facts(pods, scheduler));
    let kinds = ["Ready", "SchedulerReady", "WorkersReady", "Reconciling", "Stalled"];
    let expected: Vec<String> = kinds.iter().zip(expected).map(|(kind, rest)| format!("{kind}={rest}")).collect();
    assert_eq!(gist(&status), expected, "{pods:?} {scheduler}");
    status
}

fn cpu(replicas: u32) -> Value {
    json!({"workers": [{"name": "cpu", "replicas": replicas}]})
}

const WORKS: &str = "True Progressing";
const FINE: &str = "False Progressing";

#[test]
fn conditions_tell_how_far_it_is() {
    let starting = "False SchedulerNotReady";
    check(cpu(1), &[], "unknown", [starting, starting, "Unknown SchedulerNotReady", WORKS, FINE]);
    let pods = ["scheduler-1 unready", "cpu-0-2 starting"];
    check(cpu(1), &pods, "unknown", [starting, starting, "Unknown SchedulerNotReady", WORKS, FINE]);
    let pods = ["scheduler-1", "cpu-0-2 starting"];
    check(cpu(1), &pods, "answers", ["False Progressing", "True Ready", "False Progressing", WORKS, FINE]);
    // Ready by its probe, and not known to the scheduler: no.
    let pods = ["scheduler-1", "cpu-0-2 unknown"];
    check(cpu(1), &pods, "answers", ["False Progressing", "True Ready", "False Progressing", WORKS, FINE]);
    let pods = ["scheduler-1", "cpu-0-2"];
    check(cpu(1), &pods, "answers", ["True Ready", "True Ready", "True Ready", "False Ready", FINE]);
    check(cpu(0), &["scheduler-1"], "answers", ["True Idle", "True Ready", "True Idle", "False Idle", FINE]);
}

#[test]
fn conditions_tell_what_is_under_way() {
    let pods = ["scheduler-1 old", "cpu-0-2"];
    let waits = ["True Ready", "True WaitingForIdle", "True Ready", WORKS, FINE];
    check(cpu(1), &pods, "answers clients=1", waits);
    let pods = ["scheduler-1", "cpu-0-2 old", "cpu-1-3"];
    let status = check(cpu(2), &pods, "answers", ["True RollingOut", "True Ready", "True RollingOut", WORKS, FINE]);
    assert_eq!(status.groups[0].outdated, Some(1));
    let pods = ["scheduler-1", "cpu-0-2", "cpu-1-3 draining tasks=1"];
    let status = check(cpu(1), &pods, "answers", ["True Ready", "True Ready", "True Ready", "False Ready", FINE]);
    assert_eq!((status.groups[0].ready, status.groups[0].draining), (1, Some(1)));
}

#[test]
fn conditions_tell_that_nobody_can_be_asked() {
    let lost = "False SchedulerUnreachable";
    let pods = ["scheduler-1", "cpu-0-2"];
    let status = check(cpu(1), &pods, "unreachable=9", [lost, lost, "Unknown SchedulerNotReady", WORKS, FINE]);
    assert_eq!(
        message(&status, "Ready"),
        "pod c-scheduler-1 does not answer: connect: refused; a NetworkPolicy may forbid it"
    );
    // The network is no suspect where something did answer.
    let closed = "unreachable=9 keep the connection: the peer closed it";
    let status = check(cpu(1), &pods, closed, [lost, lost, "Unknown SchedulerNotReady", WORKS, FINE]);
    assert_eq!(message(&status, "Ready"), "pod c-scheduler-1 does not answer: keep the connection: the peer closed it");
    // What cannot be read was an answer.
    let excess = "unreachable=9 read daskade-cluster: there are more than 64000 values; see docs/limits.md";
    let status = check(cpu(1), &pods, excess, [lost, lost, "Unknown SchedulerNotReady", WORKS, FINE]);
    let refused = "pod c-scheduler-1 sent an answer that the operator refuses: daskade-cluster: there are more than 64000 \
                   values; see docs/limits.md";
    assert_eq!(message(&status, "Ready"), refused);
    let pods = ["scheduler-1", "cpu-0-2", "cpu-1-3"];
    let status = check(cpu(1), &pods, "unreachable=9", [lost, lost, "Unknown SchedulerUnreachable", WORKS, FINE]);
    assert!(message(&status, "WorkersReady").contains("none is removed"));
}

#[test]
fn a_suspended_cluster_says_so_and_works_on_nothing() {
    let spec = json!({"suspend": true});
    let all = "False Suspended";
    check(spec.clone(), &[], "unknown", [all, all, all, all, FINE]);
    check(spec, &["scheduler-1", "default-0-2"], "answers", [all, all, all, all, FINE]);
}

#[test]
fn counts_are_of_groups_and_their_sums() {
    let spec = json!({"workers": [
        {"name": "cpu", "replicas": 2},
        {"name": "gpu", "gpu": {"count": 4}, "autoscale": {"max": 3}}
    ]});
    let pods = ["scheduler-1", "cpu-0-2", "cpu-1-3 starting", "gpu-0-4", "gpu-1-5", "gpu-2-6 going=1"];
    let status = told(&cluster(spec), &facts(&pods, "answers ask=3*GPU:4 idle=90"));
    let groups: Vec<_> =
        status.groups.iter().map(|group| (group.name.as_str(), group.desired, group.ready, group.gpus)).collect();
    assert_eq!(groups, [("cpu", 2, 1, None), ("gpu", 3, 2, Some(8))]);
    assert_eq!((status.workers_desired, status.workers_ready, status.gpus_ready), (Some(5), Some(3), Some(8)));
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(status.address.as_deref(), Some("tls://c-scheduler.n:8786"));
    assert_eq!(status.idle_since.as_deref(), Some("2025-01-01T11:58:30Z"));
    assert_eq!(status.incarnation, Some(7), "of the worker that this pass makes");
    assert_eq!(status.versions.and_then(|versions| versions.python).as_deref(), Some("3.12.1"));
    let plain = told(&cluster(json!({"tls": {"mode": "Disabled"}})), &facts(&[], "unknown"));
    assert_eq!((plain.address.as_deref(), plain.tls), (Some("tcp://c-scheduler.n:8786"), None));
}

#[test]
fn an_idle_time_that_begins_a_moment_off_is_the_same() {
    let facts = facts(&["scheduler-1", "cpu-0-2"], "answers idle=90");
    for (told_before, expected) in [
        ("2025-01-01T11:58:29Z", "2025-01-01T11:58:29Z"),
        ("2025-01-01T11:58:33Z", "2025-01-01T11:58:33Z"),
        ("2025-01-01T11:58:26Z", "2025-01-01T11:58:30Z"),
        ("2025-01-01T11:50:00Z", "2025-01-01T11:58:30Z"),
    ] {
        let before = cluster_with(cpu(1), json!({"idleSince": told_before}));
        assert_eq!(told(&before, &facts).idle_since.as_deref(), Some(expected));
    }
}

fn issue(reason: Reason, stalled: bool) -> Issue {
    Issue { reason, message: format!("{reason} it is; do this"), stalled }
}

fn refusal(role: Option<Role>, issue: Issue) -> Refusal {
    Refusal { role, issue }
}

#[test]
fn troubles_of_pods_and_writes_are_told_where_they_belong() {
    const USUAL: [&str; 2] = ["Progressing", "Ready"];
    let worker = |number| Some(Role::Worker { group: "cpu".to_owned(), number });
    let check = |facts: &Facts, expected: [&str; 3]| {
        let status = told(&cluster(cpu(2)), facts);
        let found = gist(&status);
        assert_eq!([&found[0][6..], &found[2][13..], &found[4][8..]], expected);
        for (kind, expected) in ["Ready", "WorkersReady", "Stalled"].into_iter().zip(expected) {
            if let Some(reason) = expected.split_once(' ').map(|(_, reason)| reason).filter(|it| !USUAL.contains(it)) {
                assert!(message(&status, kind).contains(&format!("{reason} it is; do this")), "{kind}: {expected}");
            }
        }
        status
    };
    let mut known = facts(&["scheduler-1", "cpu-0-2", "cpu-1-3 starting"], "answers");
    known.pods[2].issue = Some(issue(Reason::ImagePull, true));
    let status = check(&known, ["False ImagePull", "False ImagePull", "True ImagePull"]);
    assert_eq!(message(&status, "Ready"), "group cpu: 1 of 2 ready; ImagePull it is; do this");
    assert_eq!(status.groups[0].reason.as_deref(), Some("ImagePull"));
    assert_eq!(status.groups[0].message.as_deref(), Some("ImagePull it is; do this"));
    let reconciling = &status.conditions[3];
    assert_eq!(reconciling.status, "False", "it waits for a person");

    known.pods[2].issue = Some(issue(Reason::Unschedulable, false));
    check(&known, ["False Unschedulable", "False Unschedulable", "False Progressing"]);
    known.refused = vec![refusal(worker(1), issue(Reason::QuotaExceeded, false))];
    check(&known, ["False QuotaExceeded", "False QuotaExceeded", "False Progressing"]);
    known.refused = vec![refusal(Some(Role::Scheduler), issue(Reason::PodRejected, true))];
    check(&known, ["False PodRejected", "False Unschedulable", "True PodRejected"]);
    known.refused = vec![refusal(None, issue(Reason::NameConflict, true))];
    check(&known, ["False NameConflict", "False Unschedulable", "True NameConflict"]);
    known.refused = Vec::new();
    known.tls = TlsFact { issue: Some(issue(Reason::SecretNotFound, false)), ..TlsFact::default() };
    check(&known, ["False SecretNotFound", "False Unschedulable", "False Progressing"]);

    // A trouble of a pod that nobody misses is none.
    let mut known = facts(&["scheduler-1", "cpu-0-2", "cpu-1-3"], "answers");
    known.pods[1].issue = Some(issue(Reason::OutOfMemory, true));
    let status = check(&known, ["True Ready", "True Ready", "False Progressing"]);
    assert_eq!(status.groups[0].reason, None);
}

#[test]
fn the_time_of_a_condition_moves_only_when_its_status_does() {
    let mut known = cluster(cpu(1));
    let pods = ["scheduler-1", "cpu-0-2 starting"];
    known.status = told(&known, &facts(&pods, "answers"));
    let times = |status: &DaskClusterStatus| -> Vec<String> {
        status.conditions.iter().map(|condition| condition.last_transition_time.0.to_string()).collect()
    };
    let first = times(&known.status);
    assert_eq!(first, vec!["2025-01-01T12:00:00Z"; 5]);
    let later = |pods: &[&str], scheduler| {
        let mut facts = facts(pods, scheduler);
        facts.now += SignedDuration::from_millis(90_700);
        facts
    };
    // The same later: the same, to the last byte.
    assert_eq!(told(&known, &later(&pods, "answers")), known.status);
    // Another reason: the same times.
    let mut refused = later(&pods, "answers");
    refused.pods[1].issue = Some(issue(Reason::Unschedulable, false));
    let status = told(&known, &refused);
    assert_ne!(status, known.status);
    assert_eq!(times(&status), first);
    // Another status: another time, in whole seconds, only there.
    let status = told(&known, &later(&["scheduler-1", "cpu-0-2"], "answers"));
    let moved = "2025-01-01T12:01:30Z";
    assert_eq!(times(&status), [moved, &first[1], moved, moved, &first[4]]);
}

#[test]
fn an_invalid_spec_is_told_and_what_was_known_is_kept() {
    let mut known = cluster(cpu(1));
    known.status = told(&known, &facts(&["scheduler-1", "cpu-0-2"], "answers"));
    known.generation = 3;
    let status = invalid_status(&known, Reason::Invalid, "spec.workers[0]: no\u{1b}[31m".to_owned(), now());
    assert_eq!(gist(&status), ["Ready=False Invalid", "Reconciling=False Invalid", "Stalled=True Invalid"]);
    assert_eq!(message(&status, "Ready"), "spec.workers[0]: no [31m", "no control characters");
    assert_eq!((status.groups, status.incarnation), (known.status.groups, known.status.incarnation));
}

#[test]
fn a_status_stays_below_64_kib_and_without_control_characters_whatever_others_say() {
    let groups: Vec<Value> = (0..32).map(|n| json!({"name": format!("group-{n:014}"), "replicas": 9999})).collect();
    let pods: Vec<String> = (0..32).map(|n| format!("group-{n:014}-0-{n} starting")).collect();
    let mut pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    pods.push("scheduler-99");
    let mut known = facts(&pods, "answers");
    let long = "😀\u{7}".repeat(100_000);
    for pod in &mut known.pods {
        pod.issue = Some(Issue { reason: Reason::ImagePull, message: long.clone(), stalled: true });
    }
    let SchedulerFact::Answers(state) = &mut known.scheduler else { unreachable!() };
    (state.dask, state.python, state.runtime) = (long.clone(), long.clone(), long);
    let status = serde_json::to_string(&told(&cluster(json!({ "workers": groups })), &known)).unwrap();
    assert!(status.len() < 64 << 10, "{}", status.len());
    assert!(!status.contains("\\u0007"));
}
