//! What Kubernetes says about pods and writes, in words that say what to do.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::support::{ago, now};
use api::reason::Reason;
use decide::cluster::facts::Role;
use decide::cluster::pod_problem::{find, from_api_error, quoted};
use decide::cluster::pods::read_pod;

fn pod(age: i64, status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "c-cpu-0-1", "creationTimestamp": ago(age).to_string()}, "status": status,
    }))
    .unwrap()
}

/// The reason, parts of the message, and whether a person must act.
#[track_caller]
fn check(status: &Value, expected: Option<(&str, &[&str], bool)>) {
    let found = find(&pod(600, status), now());
    let Some((reason, parts, stalled)) = expected else { return assert_eq!(found, None) };
    let found = found.expect(reason);
    assert_eq!((found.reason.as_str(), found.stalled), (reason, stalled), "{}", found.message);
    for part in parts.iter().chain(&["c-cpu-0-1"]) {
        assert!(found.message.contains(part), "{part} in {}", found.message);
    }
}

fn container(state: &Value, last: &Value, ready: bool, restarts: u32) -> Value {
    json!({"phase": "Running", "containerStatuses": [{
        "name": "worker", "image": "example.org/w:1", "imageID": "", "ready": ready, "restartCount": restarts,
        "state": state, "lastState": last,
    }]})
}

fn waiting(reason: &str, message: &str) -> Value {
    container(&json!({"waiting": {"reason": reason, "message": message}}), &json!({}), false, 0)
}

fn ended(reason: &str, code: i32, message: &str, restarts: u32) -> Value {
    let last = json!({"terminated": {"exitCode": code, "reason": reason, "message": message}});
    container(&json!({"waiting": {"reason": "CrashLoopBackOff"}}), &last, false, restarts)
}

#[test]
fn a_pod_that_starts_or_works_has_no_trouble() {
    check(&json!({}), None);
    check(&json!({"phase": "Pending"}), None);
    check(&container(&json!({"running": {}}), &json!({}), true, 0), None);
    check(&container(&json!({"running": {}}), &json!({}), false, 0), None);
    let before = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    check(&container(&json!({"running": {}}), &before, true, 1), None);
    check(&container(&json!({"terminated": {"exitCode": 0}}), &json!({}), false, 0), None);
    let young = waiting("ContainerCreating", "");
    assert_eq!(find(&pod(60, &young), now()), None);
}

#[test]
fn images_that_cannot_be_pulled() {
    for reason in ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"] {
        let status = waiting(reason, "rpc error: pull access denied,\n repository does not exist");
        let parts = ["example.org/w:1", "pull access denied,  repository does not exist", "imagePullSecrets"];
        check(&status, Some(("ImagePull", &parts, true)));
    }
}

#[test]
fn pods_without_a_node() {
    let unscheduled = |reason: &str, message: &str| {
        json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
        ]})
    };
    let words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.";
    check(&unscheduled("Unschedulable", words), Some(("Unschedulable", &[words, "tolerations"], false)));
    let words = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.";
    check(&unscheduled("Unschedulable", words), Some(("Unschedulable", &[words, "kubectl describe pvc"], false)));
    let words = "0/1 nodes are available: persistentvolumeclaim \"data\" not found.";
    check(&unscheduled("Unschedulable", words), Some(("Unschedulable", &[words, "create the claim"], false)));
    let words = "Scheduling is blocked due to non-empty scheduling gates";
    let gated = unscheduled("SchedulingGated", words);
    check(&gated, Some(("Gated", &[words, "waits for quota"], false)));

    let told = |queue: Option<&str>, gates: &[&str]| {
        let mut pod = pod(600, &gated);
        pod.metadata.labels =
            queue.map(|queue| [("kueue.x-k8s.io/queue-name".to_owned(), queue.to_owned())].into_iter().collect());
        let gates: Vec<Value> = gates.iter().map(|name| json!({"name": name})).collect();
        pod.spec = Some(serde_json::from_value(json!({"containers": [], "schedulingGates": gates})).unwrap());
        let found = find(&pod, now()).expect("it waits");
        assert_eq!(found.reason, Reason::Gated);
        assert!(!found.message.contains('\n'));
        found.message
    };
    let quota = told(Some("team"), &["kueue.x-k8s.io/admission"]);
    assert!(quota.contains("c-cpu-0-1 waits for quota of the queue team"), "{quota}");
    // Who put another gate there is not known.
    let other = told(Some("team"), &["kueue.x-k8s.io/admission", "example.org/review"]);
    assert!(other.contains("gate example.org/review") && !other.contains("quota"), "{other}");
}

#[test]
fn containers_that_end() {
    let help = ["memory limit", "raise resources.limits.memory"];
    check(&ended("OOMKilled", 137, "", 2), Some(("OutOfMemory", &help, false)));
    // Between two starts it runs and is not ready.
    let last = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    check(&container(&json!({"running": {}}), &last, false, 2), Some(("OutOfMemory", &help, false)));

    let log = "1\n2\n3\n4\n5\n6\nImportError: no module named \u{1b}[31mnope\n";
    let parts = ["ended with 1 (2 restarts)", "2 | 3 | 4 | 5 | 6 | ImportError: no module named  [31mnope"];
    check(&ended("Error", 1, log, 2), Some(("WorkerStartFailed", &parts, false)));
    check(&ended("Error", 1, log, 4), Some(("WorkerStartFailed", &["4 restarts"], true)));
    check(&ended("Error", 127, "", 0), Some(("WorkerStartFailed", &["ended with 127"], false)));
}

/// Issue 13, point 18.
#[test]
fn a_scheduler_that_ends_again_and_again_is_unstable() {
    let read = |name: &str, status: &Value| {
        let mut pod = pod(600, status);
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.uid = Some("u1".to_owned());
        let owner = json!([{"apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "name": "c", "uid": "u"}]);
        pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
        read_pod(&pod, now()).expect("a pod").issue
    };
    let reason = |status: &Value| read("c-scheduler-1", status).map(|issue| issue.reason);
    let found = read("c-scheduler-1", &ended("Error", 1, "MemoryError", 3)).expect("trouble");
    assert_eq!((found.reason, found.stalled), (Reason::SchedulerUnstable, false));
    assert!(found.message.contains("restarted 3 times") && found.message.contains("MemoryError"), "{}", found.message);
    let starved = read("c-scheduler-1", &ended("OOMKilled", 137, "", 5)).expect("trouble");
    assert_eq!(starved.reason, Reason::SchedulerUnstable);
    assert!(starved.message.contains("raise resources.limits.memory"), "{}", starved.message);
    // Between two starts it runs and is not ready.
    let last = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
    assert_eq!(reason(&container(&json!({"running": {}}), &last, false, 4)), Some(Reason::SchedulerUnstable));

    assert_eq!(reason(&ended("Error", 1, "", 2)), Some(Reason::WorkerStartFailed), "it has only begun");
    assert_eq!(reason(&container(&json!({"running": {}}), &last, true, 9)), None, "it works");
    let said = json!({"reason": "ImageLacks", "message": "there is no distributed"}).to_string();
    assert_eq!(reason(&ended("Error", 1, &said, 9)), Some(Reason::ImageLacks), "the cause is known");
    let times = json!({"exitCode": 1, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T01:00:00Z"});
    let long = container(&json!({"waiting": {"reason": "CrashLoopBackOff"}}), &json!({"terminated": times}), false, 9);
    assert_eq!(reason(&long), Some(Reason::WorkerStartFailed), "it had lasted for an hour");
    let worker = read("c-cpu-0-1", &ended("Error", 1, "", 9)).expect("trouble");
    assert_eq!(worker.reason, Reason::WorkerStartFailed);
}

#[test]
fn what_our_entry_point_says() {
    let said =
        |reason: &str, message: &str| format!("some line\n{}\n", json!({ "reason": reason, "message": message }));
    for (reason, found, stalled) in [
        ("UnsupportedDask", "UnsupportedDask", true),
        ("ImageLacks", "ImageLacks", true),
        ("SchedulerGone", "SchedulerUnreachable", false),
        ("<script>", "WorkerStartFailed", false),
    ] {
        let status = ended("Error", 3, &said(reason, "needs dask 2024.8 or newer"), 1);
        check(&status, Some((found, &["example.org/w:1", "needs dask 2024.8 or newer"], stalled)));
    }
}

#[test]
fn pods_that_others_ended() {
    let failed = |reason: &str, message: &str| json!({"phase": "Failed", "reason": reason, "message": message});
    let low = "The node was low on resource: memory.";
    check(&failed("Evicted", low), Some(("Evicted", &[low, "is replaced"], false)));
    for disk in ["Pod ephemeral local storage usage exceeds the total limit", "low on resource: ephemeral-storage."] {
        check(&failed("Evicted", disk), Some(("DiskFull", &[disk], false)));
    }
    check(&failed("NodeLost", "node gone"), Some(("NodeLost", &["node gone"], false)));
    check(&failed("NodeShutdown", "node going"), Some(("NodeLost", &["node going"], false)));
    let device = "Allocate failed due to no healthy devices present";
    check(&failed("UnexpectedAdmissionError", device), Some(("WorkerStartFailed", &[device], false)));
}

#[test]
fn containers_that_are_not_made() {
    let missing = "couldn't find key password in Secret n/s3";
    let status = waiting("CreateContainerConfigError", missing);
    check(&status, Some(("SecretNotFound", &[missing, "make the Secret"], false)));
    let status = waiting("CreateContainerError", "exec: \"python3\": not found");
    check(&status, Some(("WorkerStartFailed", &["python3"], true)));
    let mut status = waiting("ContainerCreating", "");
    check(&status, Some(("ContainerCreating", &["kubectl describe pod"], false)));
    status["conditions"] = json!([{"type": "Ready", "status": "False", "message": "volume data is not there"}]);
    check(&status, Some(("ContainerCreating", &["volume data is not there"], false)));
}

#[test]
fn a_pod_that_goes_has_no_trouble_any_more() {
    let mut going = pod(600, &waiting("ImagePullBackOff", "denied"));
    going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    assert_eq!(find(&going, now()), None);
}

#[test]
fn refused_writes() {
    for (code, reason, message, expected, stalled) in [
        (
            403,
            "Forbidden",
            "pods \"c-cpu-0-1\" is forbidden: exceeded quota: team, requested: pods=1, used: pods=9, limited: pods=9",
            "QuotaExceeded",
            false,
        ),
        (
            403,
            "Forbidden",
            "pods \"c-cpu-0-1\" is forbidden: violates PodSecurity \"restricted:latest\": seccompProfile",
            "PodRejected",
            true,
        ),
        (
            403,
            "Forbidden",
            "pods is forbidden: User \"system:serviceaccount:daskade:op\" cannot create resource \"pods\" in API group \"\"",
            "Forbidden",
            false,
        ),
        (401, "Unauthorized", "Unauthorized", "Forbidden", false),
        (
            403,
            "Forbidden",
            "pods \"c-cpu-0-1\" is forbidden: unable to create new content in namespace n because it is being terminated",
            "NamespaceTerminating",
            true,
        ),
        (404, "NotFound", "namespaces \"n\" not found", "NamespaceTerminating", true),
        (
            403,
            "Forbidden",
            "pods \"p\" is forbidden: error looking up service account n/sa: serviceaccount \"sa\" not found",
            "ServiceAccountNotFound",
            false,
        ),
        (403, "Forbidden", "pods \"p\" is forbidden: maximum memory usage per Container is 1Gi", "PodRejected", true),
        (
            403,
            "Forbidden",
            "ValidatingAdmissionPolicy 'x' with binding 'y' denied request: latest tags cannot be used",
            "PodRejected",
            true,
        ),
        (422, "Invalid", "Pod \"p\" is invalid: spec.nodeSelector: no", "PodRejected", true),
        (
            500,
            "InternalError",
            "Internal error occurred: failed calling webhook \"w.example.org\": context deadline exceeded",
            "AdmissionFailed",
            false,
        ),
        (400, "BadRequest", "admission webhook \"w.example.org\" denied the request: no", "AdmissionFailed", false),
        (500, "InternalError", "etcdserver: mvcc: database space exceeded", "ApiError", false),
        (503, "ServiceUnavailable", "", "ApiError", false),
    ] {
        let found = from_api_error(code, reason, message);
        assert_eq!((found.reason.as_str(), found.stalled), (expected, stalled), "{message}");
        assert!(found.message.starts_with(message), "{}", found.message);
    }
}

#[test]
fn what_others_say_is_quoted_in_one_line_and_not_at_length() {
    assert_eq!(quoted(" a\nb\u{0}c\u{1b}[1m "), "a b c [1m");
    assert_eq!(quoted(&"ä".repeat(600)).chars().count(), 600);
    assert_eq!(quoted(&"ä".repeat(601)).chars().count(), 602);
}

#[test]
fn pods_are_known_by_their_names_whatever_their_labels_say() {
    let read = |name: &str, status: &Value| {
        let mut pod = pod(600, status);
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.uid = Some("u1".to_owned());
        let owner = json!([{"apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "name": "c", "uid": "u"}]);
        pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
        read_pod(&pod, now())
    };
    let running = json!({"phase": "Running"});
    let fact = read("c-cpu-3-17", &running).unwrap();
    assert_eq!((fact.slot.incarnation, fact.ready, fact.ip, fact.template.as_str()), (17, false, None, ""));
    let ready = json!({"phase": "Running", "podIP": "10.0.0.9", "conditions": [{"type": "Ready", "status": "True"}]});
    let fact = read("c-cpu-3-17", &ready).unwrap();
    assert_eq!((fact.ready, fact.ip.as_deref()), (true, Some("10.0.0.9")));
    let mut over = ready.clone();
    over["phase"] = json!("Succeeded");
    assert!(!read("c-cpu-3-17", &over).unwrap().ready);
    let role = |name: &str| read(name, &ready).map(|fact| fact.slot.role);
    let worker = |group: &str, number| Some(Role::Worker { group: group.to_owned(), number });
    for (name, expected) in [
        ("c-scheduler-4", Some(Role::Scheduler)),
        ("c-scheduler-0-4", worker("scheduler", 0)),
        ("c-a-b-2-2-4", worker("a-b-2", 2)),
        ("c-cpu-3-x", None),
        ("c-cpu-3--1", None),
        ("c-cpu-03-1", None),
        ("c-cpu-4294967296-1", None),
        ("c-other-4", None),
        ("d-scheduler-4", None),
        ("cc-scheduler-4", None),
        ("c-", None),
        ("c", None),
    ] {
        assert_eq!(role(name), expected, "{name}");
    }
    assert!(read_pod(&pod(600, &ready), now()).is_none(), "it has no owner");
}
