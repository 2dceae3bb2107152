//! Objects as large as the API server stores: what they cost the operator, and that it looks after them like after others.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::LEASE;
use crate::api::{Fault, Recorded};
use crate::objects::parameter;
use crate::pages::{steps, text, zeros};
use crate::process::Operator;
use crate::wait::{eventually, eventually_or, unchanged};
use crate::world::{SOON, World, cluster_path, plain, run_path};

/// Bytes of code that make an object nearly as large as the API server stores.
const LARGE: usize = 1_000_000;
/// Most that the operator may take beside its program, of the 256 MiB that its container has.
const MOST: usize = 112 << 20;

fn pipeline_path(name: &str) -> String {
    format!("/apis/daskade.dev/v1alpha1/namespaces/team/pipelines/{name}")
}

/// With code of so many bytes; its runs use a cluster that is there, or are waiting for it.
fn pipeline(bytes: usize) -> Value {
    json!({
        "cluster": {"ref": "c"},
        "storage": {"url": "s3://bucket/p"},
        "code": {"files": {"flow.py": text(bytes)}},
        "steps": [{"name": "a", "call": "flow:f"}],
    })
}

/// Of so many steps; ten thousand are the same size, and the most that a pipeline may have.
fn many_steps(count: usize) -> Value {
    let mut pipeline = pipeline(100);
    pipeline["steps"] = json!(steps(count));
    pipeline
}

/// The same size, of half a million values.
fn many_values() -> Value {
    let mut pipeline = pipeline(100);
    let param = |n: usize| json!({"name": format!("p{n}"), "default": zeros(120_000)});
    pipeline["params"] = (0..4).map(param).collect();
    pipeline
}

fn suspended(pipeline: Value) -> Value {
    json!({"suspend": true, "pipelineSpec": pipeline})
}

/// Its groups have environments that are as large as they may be.
fn large_cluster() -> Value {
    let group =
        |n: usize| json!({"name": format!("g{n}"), "replicas": 0, "env": [{"name": "X", "value": text(32_000)}]});
    json!({"suspend": true, "tls": {"mode": "Disabled"}, "workers": (0..31).map(group).collect::<Vec<_>>()})
}

/// Memory of a process in bytes: the most that it has had, and what it has. Without its program, which is several times as
/// large when it is not optimised.
fn memory(process: u32) -> (usize, usize) {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let of = |name: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    };
    (of("VmHWM:") - of("RssFile:"), of("RssAnon:"))
}

fn has_condition(object: &Value) -> bool {
    object["status"]["conditions"].as_array().is_some_and(|conditions| !conditions.is_empty())
}

/// The requests that list a kind, with what they ask for.
fn lists(world: &World, kind: &str) -> Vec<Recorded> {
    let is_list = |request: &Recorded| {
        request.method == Method::GET && request.path.ends_with(kind) && !request.query.contains("watch=")
    };
    world.api.requests().into_iter().filter(is_list).collect()
}

/// DASKADE_TEST_LARGE: how many objects of each kind; a thousand take some minutes with a program that is optimised.
/// Issue 13, point 3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_of_the_operator_has_a_bound_whatever_the_objects_are() {
    let given = std::env::var("DASKADE_TEST_LARGE").ok();
    let count = given.map_or(8, |count| count.parse().expect("DASKADE_TEST_LARGE is a number"));
    let world = World::new().await;
    let mut paths = Vec::new();
    for n in 0..count {
        let spec = match n % 8 {
            6 => many_values(),
            7 => many_steps(10_000),
            _ => pipeline(LARGE),
        };
        world.create_run("team", &format!("r{n}"), &suspended(spec.clone()));
        paths.push(run_path("team", &format!("r{n}")));
        let mut spec = spec;
        spec["triggers"] = json!({"onChange": false});
        let (name, path) = (format!("p{n}"), pipeline_path(&format!("p{n}")));
        world.api.put(&path, json!({"metadata": {"name": name, "namespace": "team"}, "spec": spec}));
        paths.push(path);
        world.create("team", &format!("l{n}"), &large_cluster());
        paths.push(cluster_path("team", &format!("l{n}")));
    }
    let operator = Operator::start(&world.api, &[]);
    world.create("other", "small", &plain(1));
    let what = || format!("{:#}; {:?}", world.object("other", "small")["status"], operator.lines().last());
    // Of a build for tests, on a busy machine.
    let long = SOON + Duration::from_secs(3) * count;
    eventually_or(what, long, || world.reason("other", "small") == "Ready").await;
    let left = || paths.iter().filter(|path| !has_condition(&world.api.object(path).unwrap_or_default())).count();
    let all = paths.len();
    println!("a small cluster is ready; {} of {all} large objects were looked at", all - left());
    eventually_or(|| format!("{} are left: {:?}", left(), operator.lines().last()), long, || left() == 0).await;
    assert_eq!(world.succeeded("team", "r0")[1], "Suspended");
    assert_eq!(world.succeeded("team", "r6")[1], "Invalid", "it has too many values");
    world.run_says("team", "r6", "the operator reads at most 150000");
    // What follows from its own writes comes, too.
    let requests = || world.api.requests().iter().filter(|request| !request.path.ends_with(LEASE)).count();
    unchanged("its requests", Duration::from_secs(1), long, requests).await;
    let (peak, now) = memory(operator.process());
    println!("{all} large objects: at most {} MiB, now {} MiB", peak >> 20, now >> 20);
    assert!(peak <= MOST, "it took {} MiB", peak >> 20);
}

/// Issue 13, point 3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_of_runs_in_progress_has_a_bound_and_all_of_them_come_to_their_end() {
    let world = World::new().await;
    world.hold_steps();
    world.create("team", "c", &json!({"tls": {"mode": "Disabled"}, "storage": {"url": "s3://bucket/p"}}));
    let names: Vec<String> = (0..12).map(|n| format!("r{n:02}")).collect();
    for (n, name) in names.iter().enumerate() {
        let spec = if n % 4 == 3 { many_steps(4000) } else { pipeline(LARGE) };
        world.create_run("team", name, &json!({"pipelineSpec": spec}));
    }
    let operator = Operator::start(&world.api, &["--max-run-memory=20Mi"]);
    world.until_ready("team", "c").await;
    let told = |reason: &str| names.iter().filter(|name| world.succeeded("team", name)[1] == reason).count();
    let all_told = || told("Running") + told("RunLimit") == names.len();
    eventually("each is open or waits", SOON * 2, all_told).await;
    let scheduler = world.scheduler("team", "c");
    let (peak, now) = memory(operator.process());
    let open = scheduler.open();
    println!("{} large runs, {open} of them open: at most {} MiB, now {} MiB", names.len(), peak >> 20, now >> 20);
    assert!((1..names.len() - 4).contains(&open), "{open}");
    assert_eq!(open, told("Running"));
    let says = |words: &str| names.iter().any(|name| world.succeeded("team", name)[2].contains(words));
    assert!(says("the operator has 20 MiB of memory for runs in progress; "));
    assert!(says("older runs wait, too; the run goes on when there is enough"));
    assert!(peak <= MOST + (20 << 20), "it took {} MiB", peak >> 20);
    scheduler.change(|state| state.held = false);
    let each = || names.iter().map(|name| world.succeeded("team", name)).collect::<Vec<_>>();
    eventually_or(|| format!("all succeed: {:#?}", each()), SOON * 2, || told("Succeeded") == names.len()).await;
}

/// Issue 13, point 3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_run_grows_the_youngest_waits_and_its_steps_go_on() {
    let mut world = World::new().await;
    world.limits.run_memory = Some(3 << 20);
    let operator = world.operator();
    world.hold_steps();
    world.create("team", "c", &json!({"tls": {"mode": "Disabled"}, "storage": {"url": "s3://bucket/p"}}));
    world.until_ready("team", "c").await;
    let mut grows = pipeline(10);
    grows["params"] = json!([{"name": "n", "type": "integer", "default": 20_000}]);
    grows["steps"][0]["map"] = json!({"x": "$(range(params.n))"});
    world.create_run("team", "a", &suspended(grows));
    world.create_run("team", "b", &json!({"pipelineSpec": pipeline(100_000)}));
    world.until_run("team", "b", "Running").await;
    world.api.edit(&run_path("team", "a"), |run| run["spec"]["suspend"] = json!(false));
    world.until_run("team", "a", "Running").await;
    world.until_run("team", "b", "RunLimit").await;
    let scheduler = world.scheduler("team", "c");
    assert_eq!(scheduler.open(), 2, "the scheduler still has it");
    assert!(scheduler.calls("daskade-stop").is_empty() && scheduler.calls("daskade-forget").is_empty());
    world.api.edit(&run_path("team", "a"), |run| run["spec"]["suspend"] = json!(true));
    scheduler.change(|state| state.held = false);
    world.until_run("team", "b", "Succeeded").await;
    assert_eq!(world.journal("team", "b").epoch, 2, "it was opened again");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_list_shrink_with_the_size_of_its_objects() {
    let world = World::new().await;
    let mut names = BTreeSet::new();
    for n in 0..120 {
        world.create_run("team", &format!("a{n:03}"), &suspended(pipeline(10)));
        names.insert(format!("a{n:03}"));
    }
    for n in 0..12 {
        world.create_run("team", &format!("b{n:03}"), &suspended(pipeline(LARGE)));
        names.insert(format!("b{n:03}"));
    }
    let operator = world.operator();
    let is_told = || names.iter().all(|name| world.succeeded("team", name)[1] == "Suspended");
    eventually("every run has its status", SOON * 2, is_told).await;
    let limits: Vec<u32> = lists(&world, "/pipelineruns")
        .iter()
        .map(|list| parameter(&list.query, "limit").and_then(|limit| limit.parse().ok()).expect("a limit"))
        .collect();
    assert_eq!(limits[..3], [4, 16, 64], "they grow while the objects are small: {limits:?}");
    // The page in which the large ones begin is given up as soon as it is too large, and asked for again.
    assert_eq!(limits[3..5], [100, 25], "{limits:?}");
    assert!(limits[limits.len() - 4..].iter().all(|limit| *limit <= 2), "{limits:?}");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_whose_next_page_is_too_old_begins_anew_and_takes_nothing_away() {
    let world = World::new().await;
    for n in 0..10 {
        world.create("team", &format!("c{n}"), &plain(0));
    }
    let gone = Fault {
        part: "continue=".to_owned(),
        status: 410,
        message: "the continue parameter is too old".to_owned(),
        times: 1,
        ..Fault::default()
    };
    world.api.fault(gone);
    let operator = world.operator();
    for n in 0..10 {
        world.until_ready("team", &format!("c{n}")).await;
    }
    let begun = lists(&world, "/daskclusters").iter().filter(|list| !list.query.contains("continue=")).count();
    assert_eq!(begun, 2, "from its beginning");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_run_that_was_suspended_is_carried_out() {
    let world = World::new().await;
    let operator = world.operator();
    world.create("team", "c", &json!({"tls": {"mode": "Disabled"}, "storage": {"url": "s3://bucket/p"}}));
    world.until_ready("team", "c").await;
    world.create_run("team", "r", &suspended(pipeline(200_000)));
    world.until_run("team", "r", "Suspended").await;
    world.until_quiet().await;
    world.api.edit(&run_path("team", "r"), |run| run["spec"]["suspend"] = json!(false));
    world.until_run("team", "r", "Succeeded").await;
    // What it was carried out from has the code, not what the cache has of it.
    let revision = world.api.paths("/controllerrevisions/r-").remove(0);
    let data = &world.api.object(&revision).expect("the revision")["data"];
    let code = data["run"]["pipeline"]["code"]["files"]["flow.py"].as_str().map_or(0, str::len);
    assert!(code > 150_000, "{code}");
    world.until_quiet().await;
    let run = world.api.object(&run_path("team", "r")).expect("the run");
    assert_eq!(run["metadata"]["finalizers"], json!([]), "it was let go");
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_pipeline_makes_its_runs_and_is_not_read_again_while_nothing_happens() {
    let world = World::new().await;
    let operator = world.operator();
    let mut spec = pipeline(200_000);
    spec["cluster"] = json!({"ref": "absent"});
    world.api.put(&pipeline_path("etl"), json!({"metadata": {"name": "etl", "namespace": "team"}, "spec": spec}));
    let runs = || world.api.paths("/pipelineruns/");
    eventually("it has a run", SOON, || runs().len() == 1).await;
    world.until_still().await;
    // Whose spec is told apart from others by its hash, however large it is.
    world.api.edit(&pipeline_path("etl"), |object| object["metadata"]["labels"] = json!({"a": "b"}));
    world.until_still().await;
    assert_eq!(runs().len(), 1, "{:?}", runs());
    world.api.edit(&pipeline_path("etl"), |object| object["spec"]["code"]["files"]["flow.py"] = json!(text(200_100)));
    eventually("it has another run", SOON, || runs().len() == 2).await;
    operator.end().await;
}
