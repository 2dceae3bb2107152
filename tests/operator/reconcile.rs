//! The whole operator against the double: what it makes, in which order, and that it then leaves everything alone.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};

use crate::api::Recorded;
use crate::wait::eventually;
use crate::world::{LEASE_UID, SOON, World, cluster_path, core_path, plain, policy_path};

/// `create Pod c-cpu-0-1`, `apply Service c-scheduler`, …
fn told(request: &Recorded) -> String {
    let parts: Vec<&str> = request.path.rsplit('/').collect();
    let verb = match (&request.method, request.content.as_str()) {
        (&Method::POST, _) => {
            return format!("create {} {}", parts[0], request.body["metadata"]["name"].as_str().unwrap_or_default());
        }
        (&Method::DELETE, _) => "delete",
        (&Method::PATCH, content) if content.starts_with("application/apply") => "apply",
        (&Method::PATCH, _) if parts[0] == "status" => return format!("status {}", parts[1]),
        _ => "patch",
    };
    format!("{verb} {} {}", parts[1], parts[0])
}

fn lines(requests: &[Recorded]) -> Vec<String> {
    let mut lines: Vec<String> = requests.iter().map(told).collect();
    lines.dedup();
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_comes_before_workloads_and_everything_only_once() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(2));
    world.until_ready("team", "c").await;
    world.until_quiet().await;
    let writes = world.writes();
    let made: Vec<String> = lines(&writes).into_iter().filter(|line| !line.starts_with("status")).collect();
    let runtime = world.api.paths("/configmaps/c-runtime-").remove(0);
    let expected = [
        &format!("create configmaps {}", runtime.rsplit('/').next().unwrap()),
        "create networkpolicies c-scheduler",
        "create networkpolicies c-worker",
        "create services c-scheduler",
        "create pods c-scheduler-1",
        "create pods c-cpu-0-2",
        "create pods c-cpu-1-3",
    ];
    assert_eq!(made, expected);
    for request in &writes {
        assert!(request.query.contains("fieldManager=daskade"), "{request:?}");
        assert!(request.status < 300, "{request:?}");
    }
    let status = &world.object("team", "c")["status"];
    assert_eq!((&status["workersReady"], &status["incarnation"]), (&json!(2), &json!(3)));
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_there_before_the_pods_that_mount_them_and_no_secret_is_ever_listed() {
    let world = World::new().await;
    world.set_kubelet_idle(true);
    let operator = world.operator();
    world.create("team", "c", &json!({}));
    eventually("a pod is made", SOON, || world.pods("team").len() == 2).await;
    world.until_quiet().await;
    let uid = world.object("team", "c")["metadata"]["uid"].as_str().unwrap().to_owned();
    let made = lines(&world.writes());
    let at = |line: &str| made.iter().position(|made| *made == line).unwrap_or_else(|| panic!("{line} in {made:?}"));
    let order = [
        // What exists is written down before it does, or nobody would find it again.
        "apply configmaps daskade-authorities",
        &format!("create secrets daskade-ca-{uid}"),
        "create secrets c-tls",
        "create secrets c-client-tls",
        "create pods c-scheduler-1",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{made:?}");
    for request in world.api.requests() {
        let is_collection = request.path.ends_with("/secrets");
        assert!(!(is_collection && request.method == Method::GET), "{request:?}");
    }
    let lists = world.api.requests().into_iter().filter(|request| request.query.contains("limit="));
    for request in lists.filter(|request| !request.path.starts_with("/apis/daskade.dev/")) {
        let ours = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Ddaskade";
        assert!(request.query.contains(ours), "what is not ours is not even listed: {request:?}");
    }
    let authority = world.api.object(&core_path("daskade", "secrets", &format!("daskade-ca-{uid}"))).unwrap();
    assert!(authority["data"]["ca.key"].is_string());
    for name in ["c-tls", "c-client-tls"] {
        let secret = world.api.object(&core_path("team", "secrets", name)).unwrap();
        assert!(secret["data"]["ca.key"].is_null(), "the authority's key stays with the operator");
        assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], json!(uid));
    }
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_cannot_be_read_is_replaced() {
    let world = World::new().await;
    world.set_kubelet_idle(true);
    let operator = world.operator();
    world.create("team", "c", &json!({}));
    eventually("a pod is made", SOON, || world.pods("team").len() == 2).await;
    operator.end().await;
    let uid = world.object("team", "c")["metadata"]["uid"].as_str().unwrap().to_owned();
    let path = core_path("daskade", "secrets", &format!("daskade-ca-{uid}"));
    let key = world.api.object(&path).unwrap()["data"]["ca.key"].clone();
    world.api.edit(&path, |secret| secret["data"] = json!({"ca.key": "bm9uZQ=="}));
    let certificate = || world.api.object(&core_path("team", "secrets", "c-tls")).unwrap()["data"]["tls.crt"].clone();
    let before = certificate();
    let operator = world.operator_with(2, operator::Namespaces::All);
    eventually("another certificate", SOON, || certificate() != before).await;
    let data = world.api.object(&path).unwrap()["data"].clone();
    assert!(data["ca.crt"].is_string() && data["ca.key"] != key, "{data}");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_is_done_neither_another_look_nor_another_operator_writes_anything() {
    let world = World::new().await;
    let operator = world.operator();
    for name in ["a", "b"] {
        world.create("team", name, &plain(1));
    }
    world.create("team", "secure", &json!({"workers": [{"name": "cpu", "replicas": 0}]}));
    world.until_ready("team", "a").await;
    world.until_ready("team", "b").await;
    world.until_quiet().await;
    let before = world.writes().len();
    for name in ["a", "b", "secure"] {
        world.api.edit(&cluster_path("team", name), |object| object["metadata"]["labels"] = json!({"look": "again"}));
    }
    world.until_quiet().await;
    assert_eq!(lines(&world.writes()[before..]), [""; 0], "another look");
    operator.end().await;
    let operator = world.operator_with(2, operator::Namespaces::All);
    world.until_quiet().await;
    let after: Vec<String> =
        lines(&world.writes()[before..]).into_iter().filter(|line| !line.contains("secure")).collect();
    assert_eq!(after, [""; 0], "another operator");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_deletes_or_changes_comes_back() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(1));
    world.until_ready("team", "c").await;
    let runtime = world.api.paths("/configmaps/c-runtime-").remove(0);
    let service = core_path("team", "services", "c-scheduler");
    let policies = [policy_path("team", "c-scheduler"), policy_path("team", "c-worker")];
    for path in [&runtime, &service, &policies[0], &policies[1]] {
        world.api.delete(path);
        eventually(&format!("{path} is back"), SOON, || world.api.object(path).is_some()).await;
    }
    let pods = world.pods("team");
    for pod in &pods {
        world.api.delete(&core_path("team", "pods", pod));
    }
    eventually("all pods are new", SOON, || {
        let now = world.pods("team");
        now.len() == pods.len() && now.iter().all(|pod| !pods.contains(pod))
    })
    .await;
    world.until_ready("team", "c").await;
    let wider = json!({"matchLabels": {"any": "one"}});
    for (path, at, value) in [
        (&service, "/spec/selector", json!({"app": "mine"})),
        (&service, "/metadata/labels/dask.org~1component", json!("other")),
        (&policies[1], "/spec/ingress", json!([])),
        (&policies[1], "/spec/podSelector", json!({})),
        // One field more in a peer lets other namespaces in.
        (&policies[1], "/spec/ingress/0/from/0", json!({"podSelector": wider, "namespaceSelector": {}})),
        (&policies[0], "/spec/ingress/0/ports/0", json!({"protocol": "TCP", "port": 8786, "endPort": 9000})),
    ] {
        let known = world.api.object(path).unwrap();
        world.api.edit(path, |object| *object.pointer_mut(at).unwrap() = value);
        eventually(&format!("{path}{at} is as it was"), SOON, || {
            world.api.object(path).is_some_and(|now| now.pointer(at) == known.pointer(at))
        })
        .await;
    }
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_whose_labels_somebody_changed_are_neither_lost_nor_doubled() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(1));
    world.until_ready("team", "c").await;
    let pods = world.pods("team");
    for pod in &pods {
        world.api.edit(&core_path("team", "pods", pod), |pod| {
            let labels = pod["metadata"]["labels"].as_object_mut().unwrap();
            labels.retain(|name, _| name.starts_with("app.kubernetes.io/") || name.starts_with("dask.org/"));
            labels.insert("daskade.dev/group".to_owned(), json!("other"));
        });
    }
    world.until_still().await;
    assert_eq!(world.pods("team"), pods);
    world.api.edit(&cluster_path("team", "c"), |object| object["spec"]["workers"][0]["replicas"] = json!(2));
    eventually("there is one more", SOON, || world.pods("team").len() == 3).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_that_somebody_took_off_a_pod_come_back_also_the_one_by_which_it_is_watched() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(1));
    world.until_ready("team", "c").await;
    world.until_quiet().await;
    let pods = world.pods("team");
    let labels = |pod: &str| world.api.object(&core_path("team", "pods", pod)).unwrap()["metadata"]["labels"].clone();
    let before: Vec<Value> = pods.iter().map(|pod| labels(pod)).collect();
    for pod in &pods {
        world.api.edit(&core_path("team", "pods", pod), |pod| {
            pod["metadata"]["labels"] = json!({"dask.org/component": "other", "mine": "stays"});
        });
    }
    for (pod, before) in pods.iter().zip(&before) {
        let is_back = || {
            let now = labels(pod);
            now["mine"] == "stays" && before.as_object().unwrap().iter().all(|(name, value)| now[name] == *value)
        };
        eventually(&format!("{pod} has its labels"), SOON, is_back).await;
    }
    world.until_quiet().await;
    assert_eq!(world.pods("team"), pods, "none was lost, none doubled");
    let made = world.writes().into_iter().filter(|write| write.method == Method::POST && write.path.ends_with("/pods"));
    assert_eq!(made.count(), pods.len());
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_object_with_a_childs_name_is_never_touched() {
    let world = World::new().await;
    let foreign =
        json!({"metadata": {"labels": {"app": "mine"}}, "spec": {"selector": {"app": "mine"}}, "data": {"a": "Yg=="}});
    let service = core_path("team", "services", "a-scheduler");
    let policy = policy_path("team", "b-worker");
    let secret = core_path("team", "secrets", "c-client-tls");
    for path in [&service, &policy, &secret] {
        world.api.put(path, foreign.clone());
    }
    let before = [&service, &policy, &secret].map(|path| world.api.object(path));
    let operator = world.operator();
    world.create("team", "a", &plain(1));
    world.create("team", "b", &plain(1));
    world.create("team", "c", &json!({}));
    world.create("team", "d", &plain(1));
    let nobody = "it belongs to nobody that daskade knows; it is not touched. Rename or delete it";
    for (name, words) in [
        ("a", format!("cannot use the name a-scheduler for a Service: {nobody}")),
        ("b", format!("cannot use the name b-worker for a NetworkPolicy: {nobody}")),
        ("c", "the Secret c-client-tls is not this cluster's and is not touched; rename or delete it".to_owned()),
    ] {
        world.until_reason("team", name, "NameConflict").await;
        assert_eq!(world.condition("team", name, "Stalled")["status"], "True");
        world.says("team", name, "Stalled", &words);
    }
    world.until_ready("team", "d").await;
    let of_conflicts = |pod: &String| !pod.starts_with("d-");
    assert_eq!(world.pods("team").iter().filter(|pod| of_conflicts(pod)).count(), 0, "nothing runs half made");
    assert_eq!([&service, &policy, &secret].map(|path| world.api.object(path)), before);

    // The ConfigMap is made without being looked for first; its name is known from another cluster's.
    let map = world.api.paths("/configmaps/d-runtime-").remove(0).replace("/d-runtime-", "/e-runtime-");
    world.api.put(&map, foreign);
    let before = world.api.object(&map);
    world.create("team", "e", &plain(1));
    world.until_reason("team", "e", "NameConflict").await;
    world.says("team", "e", "Ready", "for a ConfigMap: it belongs to nobody that daskade knows; it is not touched");
    assert_eq!(world.api.object(&map), before);
    assert!(
        operator.metric("daskade_reconcile_duration_seconds_count{controller=\"daskcluster\",outcome=\"forbidden\"}")
            >= 2.0
    );
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_pod_with_the_next_name_is_left_alone_and_the_next_number_taken() {
    let world = World::new().await;
    let path = core_path("team", "pods", "c-cpu-0-2");
    world.api.put(&path, json!({"spec": {"containers": []}, "status": {"phase": "Running"}}));
    let before = world.api.object(&path);
    let operator = world.operator();
    world.create("team", "c", &plain(1));
    world.until_ready("team", "c").await;
    assert_eq!(world.api.object(&path), before);
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_down_drains_retires_and_then_deletes_that_very_pod() {
    let world = World::new().await;
    let operator = world.operator_with(7, operator::Namespaces::All);
    world.create("team", "c", &plain(2));
    world.until_ready("team", "c").await;
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| state.workers.values_mut().for_each(|worker| worker.tasks = 1));
    world.until_quiet().await;
    let before = world.writes().len();
    world.api.edit(&cluster_path("team", "c"), |object| object["spec"]["workers"][0]["replicas"] = json!(1));
    eventually("it is told to drain", SOON, || !scheduler.calls("daskade-drain").is_empty()).await;
    let victim = scheduler.calls("daskade-drain")[0]["names"][0].as_str().unwrap().to_owned();
    assert_eq!(victim, "c-cpu-1-3");
    // As long as it is at work it stays.
    world.until_quiet().await;
    world.api.edit(&cluster_path("team", "c"), |object| object["metadata"]["labels"] = json!({"look": "again"}));
    world.until_still().await;
    assert!(world.pods("team").contains(&victim));
    assert!(scheduler.calls("daskade-retire").is_empty());
    assert_eq!(world.object("team", "c")["status"]["groups"][0]["draining"], 1);
    let uid = world.api.object(&core_path("team", "pods", &victim)).unwrap()["metadata"]["uid"].clone();
    scheduler.change(|state| state.workers.values_mut().for_each(|worker| worker.tasks = 0));
    eventually("it is gone", SOON, || !world.pods("team").contains(&victim)).await;
    let deletions: Vec<Recorded> =
        world.writes()[before..].iter().filter(|request| request.method == Method::DELETE).cloned().collect();
    assert_eq!(lines(&deletions), ["delete pods c-cpu-1-3"]);
    assert_eq!(deletions[0].body["preconditions"]["uid"], uid);
    assert!(deletions[0].body["gracePeriodSeconds"].is_null());
    let cluster = world.object("team", "c")["metadata"]["uid"].clone();
    for op in ["daskade-cluster", "daskade-drain", "daskade-retire"] {
        let calls = scheduler.calls(op);
        assert!(calls.iter().all(|call| call["lead"] == 7 && call["lease"] == LEASE_UID), "{op} names the leader");
        assert!(calls.iter().all(|call| call["cluster"] == cluster), "{op} names the DaskCluster");
    }
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_to_which_a_client_has_just_come_is_not_replaced() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(1));
    world.until_ready("team", "c").await;
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| (state.clients, state.unseen) = (0, 1));
    world.until_quiet().await;
    let path = cluster_path("team", "c");
    world.api.edit(&path, |object| object["spec"]["scheduler"] = json!({"env": [{"name": "A", "value": "b"}]}));
    eventually("it waits", SOON, || world.condition("team", "c", "SchedulerReady")["reason"] == "WaitingForIdle").await;
    world.says("team", "c", "SchedulerReady", "is replaced once no run, client or task uses the cluster");
    assert!(world.pods("team").contains(&"c-scheduler-1".to_owned()));
    scheduler.change(|state| state.unseen = 0);
    eventually("it is replaced", SOON, || !world.pods("team").contains(&"c-scheduler-1".to_owned())).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_comes_while_the_scheduler_is_in_use_has_its_image() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(2));
    world.until_ready("team", "c").await;
    let images = || -> BTreeMap<String, Value> {
        let pods = world.pods("team").into_iter();
        let image = |pod: &String| world.api.object(&core_path("team", "pods", pod));
        pods.filter_map(|pod| Some((pod.clone(), image(&pod)?["spec"]["containers"][0]["image"].clone()))).collect()
    };
    world.api.edit(&cluster_path("team", "c"), |object| object["spec"]["image"] = json!("example.org/worker:2"));
    eventually("it waits", SOON, || world.condition("team", "c", "SchedulerReady")["reason"] == "WaitingForIdle").await;
    world.says("team", "c", "SchedulerReady", "is replaced once no run, client or task uses the cluster");
    world.api.delete(&core_path("team", "pods", "c-cpu-0-2"));
    eventually("another is there", SOON, || images().contains_key("c-cpu-0-4")).await;
    assert!(images().values().all(|image| image == "example.org/worker:1"), "{:?}", images());
    world.until_ready("team", "c").await;
    world.scheduler("team", "c").change(|state| state.clients = 0);
    eventually("all have the new image", SOON, || {
        let images = images();
        images.len() == 3 && images.values().all(|image| image == "example.org/worker:2")
    })
    .await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_hangs_on_a_dead_node_is_replaced_and_then_deleted_by_force() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(1));
    world.until_ready("team", "c").await;
    let pod = world.pods("team").into_iter().find(|pod| pod.contains("-cpu-")).unwrap();
    world.hang(&pod);
    let path = core_path("team", "pods", &pod);
    let over = |seconds: i64| (jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds)).to_string();
    world.api.edit(&path, |object| {
        object["metadata"]["deletionTimestamp"] = json!(over(-30));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    });
    eventually("it is replaced", SOON, || world.pods("team").len() == 2 && !world.pods("team").contains(&pod)).await;
    world.until_ready("team", "c").await;
    assert!(world.api.object(&path).is_some(), "its node may still answer");
    world.api.edit(&path, |object| object["metadata"]["deletionTimestamp"] = json!(over(61)));
    let deletion = || world.writes().into_iter().rfind(|request| request.method == Method::DELETE);
    eventually("it is deleted by force", SOON, || world.api.object(&path).is_none() && deletion().is_some()).await;
    let forced = deletion().unwrap();
    assert_eq!(forced.body["gracePeriodSeconds"], 0);
    assert!(forced.body["preconditions"]["uid"].is_string());
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_cluster_is_empty_and_comes_back() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(2));
    world.until_ready("team", "c").await;
    world.api.edit(&cluster_path("team", "c"), |object| object["spec"]["suspend"] = json!(true));
    eventually("no pod is left", SOON, || world.pods("team").is_empty()).await;
    world.until_reason("team", "c", "Suspended").await;
    world.says("team", "c", "Ready", "spec.suspend is true");
    assert!(world.api.object(&core_path("team", "services", "c-scheduler")).is_some(), "its address stays");
    world.api.edit(&cluster_path("team", "c"), |object| object["spec"]["suspend"] = json!(false));
    world.until_ready("team", "c").await;
    assert_eq!(world.pods("team").len(), 3);
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_cluster_loses_its_workers_by_itself_and_gets_them_back_for_work() {
    let world = World::new().await;
    let operator = world.operator();
    let mut spec = plain(2);
    spec["idleTimeout"] = json!("3s");
    world.create("team", "c", &spec);
    world.until_ready("team", "c").await;
    let scheduler = world.scheduler("team", "c");
    // Once, and then it says nothing more: the operator has to look at its clock.
    // Each time a reconciliation knows of it already before its own turn comes, which then finds nothing new; the second time the
    // pass before it had nothing to write.
    for (look, demand) in [("again", json!([])), ("once more", json!([{"resources": {}, "count": 1}]))] {
        scheduler.change(|state| {
            state.clients = 0;
            state.demand = demand.as_array().unwrap().clone();
        });
        eventually("the operator has heard of it", SOON, || scheduler.is_heard()).await;
        world.api.edit(&cluster_path("team", "c"), |object| object["metadata"]["labels"] = json!({ "look": look }));
        world.until_quiet().await;
    }
    eventually("its workers are gone", SOON, || world.pods("team").len() == 1).await;
    world.until_reason("team", "c", "Idle").await;
    world.says("team", "c", "WorkersReady", "no worker is needed now");
    scheduler.change(|state| state.clients = 1);
    world.until_ready("team", "c").await;
    eventually("they are back", SOON, || world.pods("team").len() == 3).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand_makes_workers_from_zero() {
    let world = World::new().await;
    let operator = world.operator();
    let spec = json!({"tls": {"mode": "Disabled"}, "workers": [
        {"name": "cpu", "autoscale": {"max": 3}}, {"name": "gpu", "gpu": {"count": 1}, "autoscale": {"max": 2}}
    ]});
    world.create("team", "c", &spec);
    world.until_reason("team", "c", "Idle").await;
    world.says("team", "c", "WorkersReady", "no worker is needed now");
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| {
        state.demand = vec![json!({"group": null, "resources": {"GPU": 1.0}, "count": 2})];
    });
    eventually("GPU workers come", SOON, || world.pods("team").iter().filter(|pod| pod.contains("-gpu-")).count() == 2)
        .await;
    eventually("they are told", SOON, || {
        let status = &world.object("team", "c")["status"];
        (&status["gpusReady"], &status["workersDesired"]) == (&json!(2), &json!(2))
    })
    .await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_deleted_and_made_anew_gets_its_own_children() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(1));
    world.until_ready("team", "c").await;
    let old = world.object("team", "c")["metadata"]["uid"].clone();
    let service = core_path("team", "services", "c-scheduler");
    // Kubernetes has not collected the children yet.
    world.api.delete(&cluster_path("team", "c"));
    world.create("team", "c", &plain(1));
    let new = world.object("team", "c")["metadata"]["uid"].clone();
    assert_ne!(old, new);
    let conflicts = "daskade_reconcile_duration_seconds_count{controller=\"daskcluster\",outcome=\"conflict\"}";
    eventually("it has tried several times", SOON, || operator.metric(conflicts) >= 3.0).await;
    assert_eq!(world.api.object(&service).unwrap()["metadata"]["ownerReferences"][0]["uid"], old, "never adopted");
    let pods = world.pods("team");
    assert_eq!(pods.len(), 2, "no pod before its Service: {pods:?}");
    for path in world.api.paths("/namespaces/team/") {
        let object = world.api.object(&path).unwrap();
        if object["metadata"]["ownerReferences"][0]["uid"] == old {
            world.api.delete(&path);
        }
    }
    world.until_ready("team", "c").await;
    for path in world.api.paths("/namespaces/team/").into_iter().filter(|path| !path.contains("daskclusters")) {
        let object = world.api.object(&path).unwrap();
        if object["kind"] != "Event" {
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], new, "{path}");
        }
    }
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_lease_nothing_is_written_any_more() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &plain(1));
    world.until_ready("team", "c").await;
    world.until_quiet().await;
    operator.grant.lose();
    let before = world.writes().len();
    world.create("team", "d", &plain(1));
    world.api.delete(&core_path("team", "services", "c-scheduler"));
    world.until_still().await;
    assert_eq!(lines(&world.writes()[before..]), [""; 0]);
    // Who leads next finds everything.
    operator.end().await;
    let next = world.operator_with(2, operator::Namespaces::All);
    world.until_ready("team", "d").await;
    eventually("it is back", SOON, || world.api.object(&core_path("team", "services", "c-scheduler")).is_some()).await;
    next.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_is_killed_at_any_moment_leaves_nothing_doubled() {
    let world = World::new().await;
    for epoch in 1..12 {
        let number = usize::try_from(epoch).unwrap();
        let (writes, requests) = (world.writes().len(), world.api.requests().len());
        let operator = world.operator_with(epoch, operator::Namespaces::All);
        world.create("team", &format!("c{epoch}"), &plain(3));
        if number.is_multiple_of(2) {
            // A cluster takes eight, its status aside.
            let after = writes + 1 + number % 8;
            eventually("it has written so often", SOON, || world.writes().len() >= after).await;
        } else {
            // Ten lists and ten watches, then the cluster: at least 28.
            let after = requests + 2 * number;
            eventually("it has asked so often", SOON, || world.api.requests().len() >= after).await;
        }
        operator.kill();
    }
    let operator = world.operator_with(99, operator::Namespaces::All);
    for epoch in 1..12 {
        world.until_ready("team", &format!("c{epoch}")).await;
    }
    world.until_quiet().await;
    assert_eq!(world.pods("team").len(), 11 * 4);
    operator.end().await;
}
