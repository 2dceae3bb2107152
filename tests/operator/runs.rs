//! Runs of pipelines against the doubles: in which order things are written, and what a new leader makes of what it finds.

use http::Method;
use operator::Namespaces;
use serde_json::{Value, json};

use crate::api::{Fault, Recorded};
use crate::scheduler::Scheduler;
use crate::wait::eventually;
use crate::world::{LEASE_UID, SOON, World, cluster_path, core_path, plain, run_path};

/// One step, on a cluster of its own.
fn pipeline() -> Value {
    json!({
        "steps": [{"name": "a", "call": "m:f"}],
        "cluster": {"template": plain(1)},
        "storage": {"url": "s3://bucket/p", "secretRef": "keys"},
    })
}

/// Writes about a run: `create controllerrevisions`, `hold`, `status Succeeded`, …
fn told(request: &Recorded) -> Option<String> {
    let parts: Vec<&str> = request.path.split('/').skip(6).collect();
    Some(match (&request.method, parts.as_slice()) {
        (&Method::POST, ["controllerrevisions"]) => "freeze".to_owned(),
        (&Method::POST, ["daskclusters"]) => "make cluster".to_owned(),
        (&Method::DELETE, ["daskclusters", _]) => "delete cluster".to_owned(),
        (&Method::DELETE, ["pipelineruns", _]) => "delete run".to_owned(),
        (_, ["pipelineruns", _, "status"]) => {
            format!("status {}", request.body[1]["value"]["state"].as_str().unwrap_or_default())
        }
        (_, ["pipelineruns", _]) => {
            let finalizers = request.body["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
            if finalizers > 0 { "hold".to_owned() } else { "let go".to_owned() }
        }
        _ => return None,
    })
}

fn lines(world: &World) -> Vec<String> {
    let mut lines: Vec<String> = world.writes().iter().filter_map(told).collect();
    lines.dedup();
    lines
}

/// Makes the cluster [`on_shared`] runs on; steps begin there, and do not end as long as `held` stays.
async fn holding(world: &World) -> Scheduler {
    world.create("team", "c", &shared());
    world.until_ready("team", "c").await;
    let scheduler = world.scheduler("team", "c");
    scheduler.change(|state| state.held = true);
    scheduler
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_written_down_made_room_for_held_driven_and_cleaned_up_after_in_this_order() {
    let world = World::new().await;
    let operator = world.operator();
    world.create_run("team", "r", &json!({"pipelineSpec": pipeline(), "params": {}}));
    world.until_run("team", "r", "Succeeded").await;
    eventually("its cluster is gone", SOON, || world.api.object(&cluster_path("team", "r")).is_none()).await;
    world.until_quiet().await;
    let made: Vec<String> = lines(&world).into_iter().filter(|line| !line.starts_with("status P")).collect();
    let made: Vec<&str> = made.iter().map(String::as_str).filter(|line| *line != "status Running").collect();
    assert_eq!(made, ["freeze", "make cluster", "hold", "status Succeeded", "delete cluster", "let go"]);
    let run = world.api.object(&run_path("team", "r")).expect("the run");
    let status = &run["status"];
    assert_eq!((&status["progress"], &status["state"]), (&json!("1/1"), &json!("Succeeded")));
    assert_eq!(run["metadata"]["finalizers"], json!([]));
    let revision = world.api.paths("/controllerrevisions/r-").remove(0);
    let revision = world.api.object(&revision).expect("the revision");
    assert_eq!(revision["metadata"]["ownerReferences"][0]["uid"], run["metadata"]["uid"]);
    assert_eq!(revision["metadata"]["name"], status["revision"]);
    let created = world.writes().into_iter().find(|write| told(write).as_deref() == Some("make cluster"));
    let created = created.expect("the cluster").body;
    assert_eq!(created["metadata"]["ownerReferences"][0]["uid"], run["metadata"]["uid"]);
    assert_eq!(created["spec"]["storage"], json!({"url": "s3://bucket/p", "secretRef": "keys"}));

    // Another look, and another operator, find nothing to do.
    let before = world.writes().len();
    operator.end().await;
    let operator = world.operator_with(2, operator::Namespaces::All);
    world.until_still().await;
    assert_eq!(world.writes().len(), before, "{:?}", &world.writes()[before..]);
    operator.end().await;
}

/// Somebody applies a Pipeline, then a run of it: the watch of Pipelines may bring the edit after the run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_takes_its_pipeline_as_it_is_however_late_the_watches_are() {
    let world = World::new().await;
    let operator = world.operator();
    let path = "/apis/daskade.dev/v1alpha1/namespaces/team/pipelines/p".to_owned();
    let mut spec = pipeline();
    spec["triggers"] = json!({"onChange": false});
    world.api.put(&path, json!({"metadata": {"name": "p", "namespace": "team"}, "spec": spec}));
    world.until_quiet().await;
    world.api.watches.hold_back("/pipelines");
    world.api.edit(&path, |object| object["spec"]["steps"][0]["displayName"] = json!("as edited"));
    world.create_run("team", "r", &json!({"pipelineRef": "p"}));
    world.until_run("team", "r", "Succeeded").await;
    let revision = world.api.object(&world.api.paths("/controllerrevisions/r-").remove(0)).expect("the revision");
    assert_eq!(revision["data"]["run"]["pipeline"]["steps"][0]["displayName"], "as edited");

    // One that is missing is waited for, and what is made of it is heard of.
    world.create_run("team", "early", &json!({"pipelineRef": "late"}));
    eventually("it waits", SOON, || world.succeeded("team", "early")[1] == "PipelineNotFound").await;
    world.api.watches.let_go_of("/pipelines");
    world.api.put(
        "/apis/daskade.dev/v1alpha1/namespaces/team/pipelines/late",
        json!({"metadata": {"name": "late", "namespace": "team"}, "spec": spec}),
    );
    world.until_run("team", "early", "Succeeded").await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_run_deletes_is_deleted_once_however_late_the_watches_are() {
    let world = World::new().await;
    world.hold_steps();
    let operator = world.operator();
    world.create_run("team", "r", &json!({"pipelineSpec": pipeline()}));
    eventually("its step was handed over", SOON, || world.journal("team", "r").submits == 1).await;
    world.until_quiet().await;
    let count = |what: &str, refused: bool| {
        let writes = world.writes();
        let counts = writes.iter().filter(|write| (write.status == 500) == refused);
        counts.filter_map(told).filter(|line| line == what).count()
    };
    // From now on the operator does not see what becomes of the cluster.
    world.api.watches.hold_back("/daskclusters");
    world.scheduler("team", "r").change(|state| state.held = false);
    eventually("its cluster is deleted", SOON, || count("delete cluster", false) > 0).await;
    eventually("it is let go", SOON, || count("let go", false) > 0).await;
    world.until_quiet().await;
    world.api.edit(&run_path("team", "r"), |run| run["metadata"]["labels"] = json!({"look": "again"}));
    world.until_quiet().await;
    assert_eq!(count("delete cluster", false), 1, "{:?}", lines(&world));
    // Nor that the run itself is gone, which is looked at once more for the end of its cluster.
    let method = Some(Method::DELETE);
    world.api.fault(Fault { method, part: "/pipelineruns/r".into(), status: 500, ..Fault::default() });
    world.api.edit(&run_path("team", "r"), |run| run["spec"]["ttlAfterFinished"] = json!("1s"));
    eventually("its deletion is tried", SOON, || count("delete run", true) > 0).await;
    world.api.watches.hold_back("/pipelineruns");
    world.api.heal();
    eventually("it is deleted", SOON, || count("delete run", false) > 0).await;
    world.api.watches.let_go_of("/daskclusters");
    world.until_quiet().await;
    assert_eq!(count("delete run", false), 1, "{:?}", lines(&world));
    world.api.watches.let_go_of("/pipelineruns");
    world.until_quiet().await;
    assert_eq!((count("delete cluster", false), count("delete run", false)), (1, 1));
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_asks_for_nothing_gets_no_worker_and_one_that_does_gets_all_that_it_names() {
    let world = World::new().await;
    let operator = world.operator();
    let workers = |run: &str| {
        let pods =
            world.writes().into_iter().filter(|write| write.method == Method::POST && write.path.ends_with("/pods"));
        let names = pods.map(|write| write.body["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        names.filter(|name| name.starts_with(&format!("{run}-cpu-"))).count()
    };
    // The double of the scheduler ends its step without a worker.
    let spec = json!({"pipelineSpec": {"steps": [{"name": "a", "call": "m:f"}], "cluster": {"template": plain(3)},
        "storage": {"url": "s3://bucket/p"}}});
    world.create_run("team", "idle", &spec);
    world.until_run("team", "idle", "Succeeded").await;
    assert_eq!(workers("idle"), 0);

    world.hold_steps();
    world.create_run("team", "busy", &spec);
    eventually("it is open", SOON, || world.journal("team", "busy").submits == 1).await;
    assert_eq!(workers("busy"), 0);
    let scheduler = world.scheduler("team", "busy");
    scheduler.change(|state| state.demand = vec![json!({"group": null, "resources": {}, "count": 1})]);
    eventually("its workers are made", SOON, || workers("busy") == 3).await;
    scheduler.change(|state| state.held = false);
    world.until_run("team", "busy", "Succeeded").await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_goes_on_with_a_run_that_is_open_and_hands_nothing_over_twice() {
    let world = World::new().await;
    let first = world.operator();
    let scheduler = holding(&world).await;
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared()}));
    eventually("its step was handed over", SOON, || world.journal("team", "r").submits == 1).await;
    first.kill();
    let second = world.operator_with(2, operator::Namespaces::All);
    eventually("it is open anew", SOON, || world.journal("team", "r").epoch == 2).await;
    scheduler.change(|state| state.held = false);
    world.until_run("team", "r", "Succeeded").await;
    let opens: Vec<Value> = scheduler.calls("daskade-open");
    let asked: Vec<Value> = opens.iter().map(|open| json!([open["create"], open["lead"], open["reopen"]])).collect();
    // The first one held the run itself, and knows that there is no journal.
    assert_eq!(asked, [json!([true, 1, false]), json!([false, 2, false])]);
    assert_eq!(lines(&world).iter().filter(|line| *line == "freeze").count(), 1);
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_more_runs_than_a_namespace_may_have_at_once_the_younger_wait_also_after_a_restart() {
    let mut world = World::new().await;
    world.limits.runs_per_namespace = Some(1);
    let first = world.operator();
    let scheduler = holding(&world).await;
    world.create_run("team", "b-first", &json!({"pipelineSpec": on_shared()}));
    eventually("it runs", SOON, || world.journal("team", "b-first").submits == 1).await;
    world.create_run("team", "a-second", &json!({"pipelineSpec": on_shared()}));
    let reason = |name: &str| {
        let run = world.api.object(&run_path("team", name)).unwrap_or_default();
        run["status"]["conditions"][0]["reason"].as_str().unwrap_or_default().to_owned()
    };
    eventually("the second one waits", SOON, || reason("a-second") == "RunLimit").await;
    world.run_says("team", "a-second", "the operator handles at most 1 runs of a namespace at once");
    first.kill();
    let second = world.operator_with(2, operator::Namespaces::All);
    eventually("the first one is open anew", SOON, || world.journal("team", "b-first").epoch == 2).await;
    world.until_still().await;
    assert_eq!((reason("a-second").as_str(), world.journal("team", "a-second").submits), ("RunLimit", 0));
    scheduler.change(|state| state.held = false);
    for name in ["b-first", "a-second"] {
        world.until_run("team", name, "Succeeded").await;
    }
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_with_hundreds_of_runs_that_wait_does_not_hold_up_another_one() {
    let mut world = World::new().await;
    world.limits.runs_per_namespace = Some(1);
    let operator = world.operator();
    holding(&world).await;
    for name in 0..500 {
        world.create_run("team", &format!("r{name}"), &json!({"pipelineSpec": on_shared()}));
    }
    let reason = |name: &str| {
        let run = world.api.object(&run_path("team", name)).unwrap_or_default();
        run["status"]["conditions"][0]["reason"].as_str().unwrap_or_default().to_owned()
    };
    eventually("they wait for the first one", SOON, || (490..500).any(|n| reason(&format!("r{n}")) == "RunLimit"))
        .await;
    world.create("other", "c", &shared());
    world.until_ready("other", "c").await;
    world.create_run("other", "r", &json!({"pipelineSpec": on_shared()}));
    world.until_run("other", "r", "Succeeded").await;
    let open = (0..500).filter(|n| world.journal("team", &format!("r{n}")).submits > 0).count();
    assert_eq!(open, 1, "one of the namespace at a time");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_with_more_steps_than_allowed_is_refused_and_nothing_is_made() {
    let mut world = World::new().await;
    world.limits.run.steps = Some(5);
    let operator = world.operator();
    let step = json!({"name": "a", "call": "m:f", "map": {"x": "$(range(6))"}});
    let spec = json!({"steps": [step], "cluster": {"template": plain(1)}, "storage": {"url": "s3://bucket/p"}});
    world.create_run("team", "r", &json!({"pipelineSpec": spec}));
    world.until_run("team", "r", "Invalid").await;
    let told = world.succeeded("team", "r")[2].clone();
    assert!(
        told.contains("spec.pipelineSpec.steps[0].map: LimitExceeded") && told.contains("--max-steps-per-run"),
        "{told}"
    );
    world.until_quiet().await;
    assert_eq!(lines(&world), ["status Failed"]);
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_asks_for_more_workers_than_allowed_is_refused_with_the_numbers() {
    let mut world = World::new().await;
    world.limits.workers_per_cluster = Some(2);
    let operator = world.operator();
    world.create("team", "c", &plain(3));
    world.until_reason("team", "c", "Invalid").await;
    let told = world.condition("team", "c", "Ready")["message"].as_str().unwrap_or_default().to_owned();
    assert!(told.contains("spec.workers: LimitExceeded") && told.contains('3') && told.contains('2'), "{told}");
    world.create("team", "d", &plain(2));
    world.until_ready("team", "d").await;
    operator.end().await;
    // Who has begun is not judged again with other limits.
    world.limits.workers_per_cluster = Some(1);
    let second = world.operator_with(2, operator::Namespaces::All);
    world.create("team", "e", &plain(2));
    world.until_reason("team", "e", "Invalid").await;
    world.says("team", "e", "Ready", "spec.workers: LimitExceeded");
    world.until_quiet().await;
    assert_eq!(world.condition("team", "d", "Ready")["status"], "True");
    assert_eq!(world.condition("team", "c", "Ready")["reason"], "Invalid");
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_closed_before_that_was_told_is_told_and_not_run_again() {
    let world = World::new().await;
    let first = world.operator();
    let scheduler = holding(&world).await;
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared()}));
    world.until_run("team", "r", "Running").await;
    world.api.fault(Fault { part: "/pipelineruns/r/status".into(), status: 503, ..Fault::default() });
    scheduler.change(|state| state.held = false);
    eventually("it is closed", SOON, || world.journal("team", "r").closed.is_some()).await;
    first.kill();
    world.api.heal();
    assert_eq!(world.succeeded("team", "r")[1], "Running");
    let submits = world.journal("team", "r").submits;
    let second = world.operator_with(2, operator::Namespaces::All);
    world.until_run("team", "r", "Succeeded").await;
    assert_eq!(world.journal("team", "r").submits, submits);
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_suspended_is_left_under_the_epochs_of_its_opening_and_of_the_leader() {
    let world = World::new().await;
    let operator = world.operator_with(7, Namespaces::All);
    let scheduler = holding(&world).await;
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared()}));
    world.until_run("team", "r", "Running").await;
    let suspend = |suspend: bool| {
        world.api.edit(&run_path("team", "r"), |object| object["spec"]["suspend"] = json!(suspend));
    };
    for epoch in [1, 2] {
        suspend(true);
        world.until_run("team", "r", "Suspended").await;
        let left = || scheduler.calls("daskade-forget");
        eventually("it is left", SOON, || left().len() == epoch).await;
        let call = left().remove(epoch - 1);
        assert_eq!([&call["epoch"], &call["lead"], &call["lease"]], [&json!(epoch), &json!(7), &json!(LEASE_UID)]);
        suspend(false);
        world.until_run("team", "r", "Running").await;
    }
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_lease_a_run_is_driven_no_more() {
    let world = World::new().await;
    let operator = world.operator();
    let scheduler = holding(&world).await;
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared()}));
    world.until_run("team", "r", "Running").await;
    let uid = world.api.object(&run_path("team", "r")).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    assert!(scheduler.is_followed(&uid));
    operator.grant.lose();
    eventually("nobody reads its events any more", SOON, || !scheduler.is_followed(&uid)).await;
    let writes = world.writes().len();
    scheduler.change(|state| state.held = false);
    world.until_still().await;
    assert!(world.journal("team", "r").closed.is_none(), "nobody closes it");
    assert_eq!(world.writes().len(), writes);
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_or_missing_is_told_and_nothing_is_made() {
    let world = World::new().await;
    let operator = world.operator();
    world.create_run("team", "wrong", &json!({"pipelineSpec": {"steps": [{"name": "a", "call": "m:f"}]}}));
    world.until_run("team", "wrong", "Invalid").await;
    assert!(world.succeeded("team", "wrong")[2].contains("spec.pipelineSpec.storage: MissingField"));
    world.create_run("team", "early", &json!({"pipelineSpec": on_shared()}));
    world.until_run("team", "early", "ClusterNotFound").await;
    world.run_says("team", "early", "DaskCluster \"c\" does not exist");
    // Somebody else's cluster has the name of a run.
    world.create("team", "taken", &plain(0));
    world.until_ready("team", "taken").await;
    world.create_run("team", "taken", &json!({"pipelineSpec": pipeline()}));
    world.until_run("team", "taken", "NameConflict").await;
    world.run_says("team", "taken", "the DaskCluster taken is not this run's and is not touched; delete it");
    world.until_quiet().await;
    assert!(
        world
            .api
            .object(&cluster_path("team", "taken"))
            .is_some_and(|it| it["metadata"]["deletionTimestamp"].is_null())
    );
    let made = lines(&world);
    assert!(!made.iter().any(|line| ["make cluster", "hold", "delete cluster"].contains(&line.as_str())), "{made:?}");
    // What was waited for comes.
    world.create("team", "c", &shared());
    world.until_run("team", "early", "Succeeded").await;
    assert!(world.api.object(&cluster_path("team", "c")).is_some(), "it is not the run's to delete");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_of_a_config_map_is_read_by_its_name_once_it_is_there_and_written_down() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &shared());
    let mut spec = on_shared();
    spec["code"] = json!({"configMap": "flow"});
    world.create_run("team", "r", &json!({ "pipelineSpec": spec }));
    world.until_run("team", "r", "ConfigMapNotFound").await;
    world.run_says("team", "r", "spec.pipelineSpec.code.configMap");
    world.run_says("team", "r", "flow");
    let path = core_path("team", "configmaps", "flow");
    world.api.put(&path, json!({"metadata": {"name": "flow", "namespace": "team"}, "data": {"flow.py": "x = 1"}}));
    world.until_run("team", "r", "Succeeded").await;
    let revision = world.api.object(&world.api.paths("/controllerrevisions/r-").remove(0)).expect("the revision");
    assert_eq!(revision["data"]["run"]["pipeline"]["code"], json!({"files": {"flow.py": "x = 1"}}));
    let asked: Vec<Recorded> = world.api.requests().into_iter().filter(|it| it.path.starts_with(&path)).collect();
    assert!(!asked.is_empty() && asked.iter().all(|it| it.method == Method::GET && it.path == path), "{asked:?}");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_one_step_on_a_warm_cluster_costs_few_writes() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &shared());
    world.until_ready("team", "c").await;
    world.until_quiet().await;
    let before = world.api.requests().iter().filter(|request| request.method != Method::GET).count();
    world.create_run("team", "r", &json!({"pipelineSpec": on_shared()}));
    world.until_run("team", "r", "Succeeded").await;
    world.until_quiet().await;
    let after = world.api.requests().iter().filter(|request| request.method != Method::GET).count();
    assert!(after - before <= 6, "{} writes, Events among them: {:?}", after - before, lines(&world));
    assert_eq!(lines(&world), ["freeze", "hold", "status Succeeded", "let go"]);
    let run = world.api.object(&run_path("team", "r")).expect("the run");
    assert!(run["status"]["startedAt"].is_string(), "{run:#}");
    operator.end().await;
}

fn shared() -> Value {
    let mut spec = plain(1);
    spec["storage"] = json!({"url": "s3://bucket/c"});
    spec
}

fn on_shared() -> Value {
    json!({"steps": [{"name": "a", "call": "m:f"}], "cluster": {"ref": "c"}})
}
