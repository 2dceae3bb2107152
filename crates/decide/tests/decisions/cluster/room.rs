//! Pods that wait for room which other workers of their cluster hold: who gives way, and what is told.

use api::status::DaskClusterStatus;
use decide::cluster::facts::{Cluster, Facts};
use decide::cluster::plan::plan;
use decide::cluster::room::Shortage;
use decide::cluster::status::build_status;
use serde_json::{Value, json};

use super::plan::lines;
use super::support::{cluster_with, facts, templates};

/// Workers for everything and one with a GPU, each with a CPU.
fn nightly() -> Value {
    let resources = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
    json!({"workers": [
        {"name": "cpu", "autoscale": {"min": 0, "max": 4}, "resources": resources},
        {"name": "gpu", "autoscale": {"min": 0, "max": 1}, "gpu": {"count": 1}, "resources": resources},
    ]})
}

/// With the numbers of workers that were wanted before.
fn known(spec: &Value, before: &[u32]) -> Cluster {
    let groups = spec["workers"].as_array().unwrap().iter().zip(before);
    let groups: Vec<Value> =
        groups.map(|(group, desired)| json!({"name": group["name"], "desired": desired, "ready": 0})).collect();
    cluster_with(spec.clone(), json!({ "groups": groups }))
}

#[track_caller]
fn check_facts(spec: &Value, before: &[u32], facts: &Facts, expected: &[&str]) {
    let cluster = known(spec, before);
    assert_eq!(lines(&plan(&cluster, &templates(&cluster), facts)), expected);
}

#[track_caller]
fn check(spec: &Value, before: &[u32], pods: &[&str], scheduler: &str, expected: &[&str]) {
    check_facts(spec, before, &facts(pods, scheduler), expected);
}

#[test]
fn an_idle_worker_gives_way_at_once_although_a_step_needs_one_after_the_step_that_waits() {
    // All items were loaded a second ago; the step that trains waits for its GPU, and a report comes after that.
    let pods = ["scheduler-1", "cpu-0-2", "cpu-1-3 lacks=cpu", "gpu-0-5 lacks=cpu"];
    let scheduler = "answers runs=1 ask=1*GPU:1 ask=1-1 was=4@1";
    let expected = ["delete cpu-1-3: it is not wanted any more", "drain cpu-0-2", "wake 2"];
    check(&nightly(), &[2, 1], &pods, scheduler, &expected);
    // Nor does it take half a minute where nothing is needed later.
    check(&nightly(), &[2, 1], &pods, "answers runs=1 ask=1*GPU:1 was=4@1", &expected);
    // From a runtime that does not tell the two apart, it may be needed any moment.
    check(
        &nightly(),
        &[1, 1],
        &["scheduler-1", "cpu-0-2", "gpu-0-5 lacks=cpu"],
        "answers runs=1 ask=1*GPU:1 ask=1",
        &[],
    );
}

#[test]
fn who_gave_way_is_not_made_again_while_the_pod_waits_unless_it_is_needed() {
    let scheduler = "answers runs=1 ask=1*GPU:1 ask=1-1 was=4@1";
    // The status that was written last may still have the number from before.
    let before = [2, 1];
    let check = |pods: &[&str], scheduler: &str, expected: &[&str]| {
        let mut facts = facts(pods, scheduler);
        facts.gave.insert("c-gpu-0-5".to_owned(), None);
        check_facts(&nightly(), &before, &facts, expected);
    };
    check(&["scheduler-1", "cpu-0-2 draining", "gpu-0-5 lacks=cpu"], scheduler, &["retire cpu-0-2", "wake 2"]);
    check(&["scheduler-1", "cpu-0-2 going=1", "gpu-0-5 lacks=cpu"], scheduler, &["wake 29"]);
    check(&["scheduler-1", "gpu-0-5 lacks=cpu"], scheduler, &["wake 29"]);
    let needed = "answers runs=1 ask=1*GPU:1 ask=2-1";
    check(&["scheduler-1", "gpu-0-5 lacks=cpu"], needed, &["create cpu-0-6"]);
    // What comes later counts again when the pod has its place.
    let later = "answers runs=1 ask=1*GPU:1 ask=1-1";
    check(&["scheduler-1", "gpu-0-5 starting on=a"], later, &["create cpu-0-6"]);
}

#[test]
fn a_pod_that_is_needed_only_later_has_nobody_give_way_and_stays() {
    let pods = ["scheduler-1", "cpu-0-6 lacks=cpu", "gpu-0-5 starting on=a"];
    check(&nightly(), &[1, 1], &pods, "answers runs=1 ask=1*GPU:1 ask=1-1", &[]);
    let pods = ["scheduler-1", "cpu-0-6 lacks=cpu", "gpu-0-5 tasks=1"];
    check(&nightly(), &[1, 1], &pods, "answers runs=1 ask=1*GPU:1 ask=1", &[]);
    // The GPU's worker in its turn gives way when it has nothing left to do.
    let pods = ["scheduler-1", "cpu-0-6 lacks=cpu", "gpu-0-5"];
    check(&nightly(), &[1, 1], &pods, "answers runs=1 ask=1 was=1*GPU:1@1", &["drain gpu-0-5", "wake 2"]);
}

#[test]
fn workers_that_steps_need_stay() {
    let pods = ["scheduler-1", "cpu-0-2 tasks=1", "cpu-1-3", "gpu-0-5 lacks=cpu"];
    let drained = ["drain cpu-1-3", "wake 2"];
    check(&nightly(), &[2, 1], &pods, "answers runs=1 ask=1*GPU:1 ask=1 was=2@1", &drained);
    check(&nightly(), &[2, 1], &pods, "answers runs=1 ask=1*GPU:1 ask=2", &[]);
    check(&nightly(), &[2, 1], &pods, "answers runs=1 ask=1*GPU:1 ask=2-1 was=2@1", &drained);
    // A worker that has not registered has nothing to lose, and goes before one that has.
    let pods = ["scheduler-1", "cpu-0-2 unready", "cpu-1-3", "gpu-0-5 lacks=cpu"];
    let gone = ["delete cpu-0-2: it is not wanted any more", "wake 29"];
    check(&nightly(), &[2, 1], &pods, "answers runs=1 ask=1*GPU:1 ask=1 was=2@1", &gone);
}

#[test]
fn the_numbers_that_the_spec_sets_stay() {
    let pods = ["scheduler-1", "cpu-0-2", "gpu-0-5 lacks=cpu"];
    let scheduler = "answers runs=1 ask=1*GPU:1";
    let mut fixed = nightly();
    fixed["workers"][0]["autoscale"] = json!({"min": 1, "max": 4});
    check(&fixed, &[1, 1], &pods, scheduler, &[]);
    fixed["workers"][0]["autoscale"] = Value::Null;
    fixed["workers"][0]["replicas"] = json!(1);
    check(&fixed, &[1, 1], &pods, scheduler, &[]);
    // Pods of a fixed number wait, too.
    let mut fixed = nightly();
    fixed["workers"][1]["autoscale"] = Value::Null;
    fixed["workers"][1]["replicas"] = json!(1);
    check(&fixed, &[1, 1], &pods, "answers clients=1 was=1@1", &["drain cpu-0-2", "wake 2"]);
}

#[test]
fn as_few_give_way_as_hold_what_the_pod_needs_and_on_one_node() {
    let mut spec = nightly();
    let pods = ["scheduler-1", "cpu-0-2 on=a", "cpu-1-3 on=b", "cpu-2-4 on=b", "cpu-3-6 on=a", "gpu-0-5 lacks=cpu"];
    let scheduler = "answers runs=1 ask=1*GPU:1 was=4@1";
    check(&spec, &[4, 1], &pods, scheduler, &["drain cpu-3-6", "wake 2"]);
    spec["workers"][1]["resources"] = json!({"limits": {"cpu": "2"}});
    check(&spec, &[4, 1], &pods, scheduler, &["drain cpu-0-2", "drain cpu-3-6", "wake 2"]);
    // What else the node has is not known: where they hold too little, all that are idle go.
    spec["workers"][1]["resources"] = json!({"limits": {"cpu": "3"}});
    check(&spec, &[4, 1], &pods, scheduler, &["drain cpu-0-2", "drain cpu-3-6", "wake 2"]);
    // Nobody's room is promised to two pods, whether they begin to wait together or one after the other.
    let mut two = nightly();
    two["workers"][1]["autoscale"]["max"] = json!(2);
    let pods = ["scheduler-1", "cpu-0-2 on=a", "cpu-1-3 on=a", "gpu-0-5 lacks=cpu", "gpu-1-6 lacks=cpu"];
    let scheduler = "answers runs=1 ask=2*GPU:1 was=4@1";
    check(&two, &[2, 2], &pods, scheduler, &["drain cpu-0-2", "drain cpu-1-3", "wake 2"]);
    let pods = ["scheduler-1", "cpu-0-2 on=a", "cpu-1-3 on=a draining", "gpu-0-5 lacks=cpu", "gpu-1-6 lacks=cpu"];
    let mut one_after_the_other = facts(&pods, scheduler);
    one_after_the_other.gave.insert("c-gpu-0-5".to_owned(), Some("a".to_owned()));
    check_facts(&two, &[1, 2], &one_after_the_other, &["drain cpu-0-2", "retire cpu-1-3", "wake 2"]);
    // What goes already counts, of whatever group.
    let pods = ["scheduler-1", "cpu-0-2 on=a", "cpu-1-3 on=a going=1", "gpu-0-5 lacks=cpu"];
    check(&nightly(), &[1, 1], &pods, "answers runs=1 ask=1*GPU:1 was=1@1", &["wake 29"]);
    let pods = ["scheduler-1", "cpu-0-2 on=a", "gpu-1-3 on=a going=1", "gpu-0-5 lacks=cpu"];
    check(&nightly(), &[1, 1], &pods, "answers runs=1 ask=1*GPU:1 was=1@1", &["wake 29"]);
}

#[test]
fn only_workers_that_hold_what_is_short_give_way() {
    let mut spec = nightly();
    let pods = ["scheduler-1", "cpu-0-2", "gpu-0-5 lacks=nvidia.com/gpu"];
    check(&spec, &[1, 1], &pods, "answers runs=1 ask=1*GPU:1 was=1@1", &["wake 29"]);
    let other = json!({"name": "big", "autoscale": {"max": 1}, "gpu": {"count": 2}, "daskResources": {"BIG": 1}});
    spec["workers"].as_array_mut().unwrap().push(other);
    let pods = ["scheduler-1", "cpu-0-2", "gpu-0-5", "big-0-6 lacks=nvidia.com/gpu"];
    let scheduler = "answers runs=1 ask=1*GPU:2,BIG:1 was=1@1 was=1*GPU:1@1";
    check(&spec, &[1, 1, 1], &pods, scheduler, &["drain gpu-0-5", "wake 2"]);
}

#[test]
fn what_kubernetes_says_tells_whether_room_would_help() {
    let all = |of: &[&str]| Some(Shortage { of: of.iter().map(|name| (*name).to_owned()).collect(), all: true });
    let some = |of: &[&str]| Some(Shortage { all: false, ..all(of).unwrap() });
    let taint = "node(s) had untolerated taint {nvidia.com/gpu: true}";
    for (message, expected) in [
        ("0/1 nodes are available: 1 Insufficient cpu.", all(&["cpu"])),
        (
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory. preemption: 0/1 nodes are available: 1 No \
             preemption victims found for incoming pod.",
            all(&["cpu", "memory"]),
        ),
        (
            "0/3 nodes are available: 1 Insufficient cpu, 3 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: \
             0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
            all(&["nvidia.com/gpu"]),
        ),
        ("0/2 nodes are available: 1 Insufficient cpu, 1 Too many pods.", some(&["cpu", "pods"])),
        (&format!("0/3 nodes are available: 1 Insufficient cpu, 2 {taint}."), all(&["cpu"])),
        (&format!("0/3 nodes are available: 3 {taint}."), None),
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", None),
        ("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.", None),
        ("0/0 nodes are available: 1 Insufficient cpu.", None),
        ("0/99999999999999999999999 nodes are available: 1 Insufficient cpu.", None),
        ("no nodes available to schedule pods", None),
        ("", None),
    ] {
        assert_eq!(Shortage::read(message), expected, "{message}");
    }
}

#[test]
fn workers_make_room_for_the_scheduler_without_which_they_are_of_no_use() {
    let spec = json!({"workers": [{"name": "cpu", "replicas": 4, "resources": {"limits": {"cpu": "1"}}}]});
    let pods = ["scheduler-7 lacks=cpu", "cpu-0-2 unready on=a", "cpu-1-3 unready on=a", "cpu-2-4 lacks=cpu"];
    let room = "its scheduler waits for room";
    let expected = [format!("delete cpu-1-3: {room}"), format!("delete cpu-2-4: {room}")];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    // None is made in their place before the scheduler has its own.
    check(&spec, &[4], &pods, "unknown", &expected);
    // One that is ready may not have noticed yet that its scheduler is gone, or be at work.
    check(&spec, &[4], &["scheduler-7 lacks=cpu", "cpu-0-2", "cpu-1-3"], "unknown", &[]);
    // What goes already is enough, and so is the scheduler from before.
    let pods = ["scheduler-7 lacks=cpu", "cpu-0-2 unready on=a", "cpu-1-3 unready on=a going=1"];
    check(&spec, &[4], &pods, "unknown", &["wake 89"]);
    let pods =
        ["scheduler-1 going=1", "scheduler-7 lacks=cpu", "cpu-0-2 unready", "cpu-1-3 unready", "cpu-2-4", "cpu-3-5"];
    check(&spec, &[4], &pods, "unknown", &["wake 89"]);
}

fn told(spec: &Value, pods: &[&str], scheduler: &str) -> DaskClusterStatus {
    let cluster = known(spec, &[1, 1]);
    let (templates, facts) = (templates(&cluster), facts(pods, scheduler));
    build_status(&cluster, &templates, &facts, &plan(&cluster, &templates, &facts))
}

/// Reason and message of a condition.
fn word(status: &DaskClusterStatus, kind: &str) -> (String, String) {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    (found.reason.clone(), found.message.clone())
}

#[test]
fn a_wait_that_the_cluster_itself_causes_is_told_as_such() {
    let pods = ["scheduler-1", "cpu-0-2", "gpu-0-5 lacks=cpu"];
    let begin =
        "group gpu: 0 of 1 ready; pod c-gpu-0-5 waits for cpu that other workers of this cluster hold: group cpu: ";
    let end = "; no node for pod c-gpu-0-5: 0/1 nodes are available: 1 Insufficient cpu.";
    let check = |spec: &Value, pods: &[&str], scheduler: &str, words: &str| {
        let status = told(spec, pods, scheduler);
        for kind in ["Ready", "WorkersReady"] {
            assert_eq!(word(&status, kind), ("HeldByCluster".to_owned(), format!("{begin}{words}{end}")), "{kind}");
        }
        assert_eq!(status.groups[1].reason.as_deref(), Some("HeldByCluster"));
        assert_eq!(word(&status, "Stalled").0, "Progressing", "no change by a person is needed");
    };
    let leaving = "1 leaving, each with 1 cpu; the pod starts once the leaving workers are gone";
    check(&nightly(), &pods, "answers runs=1 ask=1*GPU:1 was=1@1", leaving);
    let mut kept = nightly();
    kept["workers"][0]["autoscale"]["min"] = json!(1);
    let words = "1 idle (kept by autoscale.min: 1), each with 1 cpu; lower that number or add nodes";
    check(&kept, &pods, "answers runs=1 ask=1*GPU:1", words);
    kept["workers"][0]["autoscale"] = Value::Null;
    kept["workers"][0]["replicas"] = json!(1);
    let words = "1 idle (kept by replicas: 1), each with 1 cpu; lower that number or add nodes";
    check(&kept, &pods, "answers runs=1 ask=1*GPU:1", words);
    let words = "1 idle, each with 1 cpu; the pod starts once they are no longer needed";
    check(&nightly(), &pods, "answers runs=1 ask=1*GPU:1 ask=1", words);
    let busy = ["scheduler-1", "cpu-0-2 tasks=1", "gpu-0-5 lacks=cpu"];
    let words = "1 busy, each with 1 cpu; the pod starts once they are no longer needed";
    check(&nightly(), &busy, "answers runs=1 ask=1*GPU:1 ask=1", words);
}

#[test]
fn a_wait_that_the_cluster_does_not_cause_is_told_in_the_words_of_kubernetes() {
    let alone = |spec: &Value, pods: &[&str], scheduler: &str| {
        let status = told(spec, pods, scheduler);
        assert_eq!(word(&status, "WorkersReady").0, "Unschedulable", "{:?}", word(&status, "WorkersReady"));
    };
    alone(&nightly(), &["scheduler-1", "gpu-0-5 lacks=cpu"], "answers runs=1 ask=1*GPU:1");
    let pods = ["scheduler-1", "cpu-0-2 tasks=1", "gpu-0-5 lacks=nvidia.com/gpu"];
    alone(&nightly(), &pods, "answers runs=1 ask=1*GPU:1 ask=1");
    // Busy workers that hold less than is needed are not the cause, as far as is known.
    let mut large = nightly();
    large["workers"][1]["resources"] = json!({"limits": {"cpu": "64"}});
    let pods = ["scheduler-1", "cpu-0-2 tasks=1", "gpu-0-5 lacks=cpu"];
    alone(&large, &pods, "answers runs=1 ask=1*GPU:1 ask=1");
    // Of the same group none gives way.
    let pods = ["scheduler-1", "cpu-0-2 tasks=1", "cpu-1-3 lacks=cpu"];
    alone(&nightly(), &pods, "answers runs=1 ask=2");
}

#[test]
fn a_scheduler_that_waits_for_its_workers_room_says_so() {
    let spec = json!({"workers": [{"name": "cpu", "replicas": 2, "resources": {"limits": {"cpu": "1"}}}]});
    let status = told(&spec, &["scheduler-7 lacks=cpu", "cpu-0-2", "cpu-1-3"], "unknown");
    let (reason, message) = word(&status, "SchedulerReady");
    assert_eq!(reason, "HeldByCluster");
    let words = "pod c-scheduler-7 waits for cpu that other workers of this cluster hold: group cpu: 2 there, each with 1 cpu; ";
    assert!(message.starts_with(words), "{message}");
}
