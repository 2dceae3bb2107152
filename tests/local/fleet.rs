//! What the supervisor of local processes does when they do not do what they should: each bound is reached for real, by
//! processes that misbehave in the place of Python.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use local::{Environment, Fleet, FleetSpec, GroupSpec};
use tempfile::TempDir;
use tokio::time::timeout;

/// The script gets `-m daskade_runtime.local scheduler|worker …`; every start is one line in `starts`.
const HEAD: &str = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho \"$3\" >> starts\n";
const LISTENS: &str = "echo '{\"ready\": true, \"address\": \"tcp://127.0.0.1:1\", \"dashboard\": null}'\n";

struct Stage {
    folder: TempDir,
    fleet: Fleet,
}

impl Stage {
    /// Starts a fleet whose scheduler and workers are these shell commands.
    fn new(scheduler: &str, worker: &str, workers: u32) -> Stage {
        let folder = tempfile::tempdir().expect("a folder");
        let python = folder.path().join("python");
        let script = format!("{HEAD}if [ \"$3\" = scheduler ]; then\n{scheduler}\nelse\n{worker}\nfi\n");
        fs::write(&python, script).expect("a script");
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("rights");
        let fleet = Fleet::start(FleetSpec {
            environment: Environment { python, runtime: folder.path().to_owned() },
            scratch: folder.path().to_owned(),
            groups: vec![GroupSpec {
                name: "cpu".to_owned(),
                replicas: workers,
                threads: 1,
                resources: BTreeMap::new(),
                memory_limit: None,
                env: Vec::new(),
            }],
        });
        Stage { folder, fleet }
    }

    fn starts(&self, kind: &str) -> usize {
        starts(self.folder.path(), kind)
    }

    /// Why the fleet has given up.
    async fn failure(&self) -> String {
        let mut state = self.fleet.state();
        let failed = timeout(Duration::from_secs(60), state.wait_for(|state| state.failed.is_some())).await;
        failed.expect("it gives up in time").expect("it lives").failed.clone().expect("a reason")
    }
}

fn starts(folder: &Path, kind: &str) -> usize {
    let text = fs::read_to_string(folder.join("starts")).unwrap_or_default();
    text.lines().filter(|line| *line == kind).count()
}

#[tokio::test]
async fn a_scheduler_that_never_listens_is_given_up_after_four_starts() {
    let stage = Stage::new("echo no module named distributed >&2; exit 3", "sleep 60", 1);
    let failure = stage.failure().await;
    assert!(failure.contains("start the Dask scheduler: the process ended"), "{failure}");
    assert!(failure.contains("no module named distributed"), "{failure}");
    assert_eq!((stage.starts("scheduler"), stage.starts("worker")), (4, 0));
    stage.fleet.stop().await;
}

#[tokio::test]
async fn a_scheduler_that_says_something_else_does_not_count_as_listening() {
    let stage = Stage::new("echo chatter; echo '{\"ready\": false}'; exec sleep 60", "sleep 60", 1);
    let failure = stage.failure().await;
    assert!(failure.starts_with("start the Dask scheduler:"), "{failure}");
    assert_eq!(stage.starts("worker"), 0);
    stage.fleet.stop().await;
}

/// The clock runs by itself while all wait: the minute and a half of each start takes no time.
#[tokio::test(start_paused = true)]
async fn a_scheduler_that_hangs_while_it_starts_is_given_up_too() {
    let stage = Stage::new("exec sleep 600", "sleep 60", 1);
    let mut state = stage.fleet.state();
    let state = state.wait_for(|state| state.failed.is_some()).await.expect("it lives").clone();
    let failure = state.failed.expect("a reason");
    assert!(failure.contains("it did not listen within 90 s"), "{failure}");
    stage.fleet.stop().await;
}

#[tokio::test]
async fn a_scheduler_that_is_lost_again_and_again_ends_the_run() {
    let stage = Stage::new(&format!("{LISTENS}echo out of luck >&2; exit 1"), "exec sleep 60", 1);
    let failure = stage.failure().await;
    assert!(failure.starts_with("SchedulerUnstable: the Dask scheduler was lost 9 times in 10 minutes"), "{failure}");
    assert!(failure.contains("out of luck"), "{failure}");
    assert_eq!(stage.starts("scheduler"), 9);
    stage.fleet.stop().await;
}

#[tokio::test]
async fn a_worker_that_ends_right_after_each_start_ends_the_run() {
    let stage = Stage::new(&format!("{LISTENS}exec sleep 60"), "echo cannot import numpy >&2; exit 7", 1);
    let failure = stage.failure().await;
    assert!(failure.starts_with("WorkerStartFailed: worker cpu-0-4 ended 4 times right after its start"), "{failure}");
    assert!(failure.contains("exit status: 7") && failure.contains("cannot import numpy"), "{failure}");
    assert_eq!((stage.starts("scheduler"), stage.starts("worker")), (1, 4));
    stage.fleet.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_is_started_as_often_as_it_takes() {
    let stage = Stage::new(&format!("{LISTENS}exec sleep 60"), "kill -9 $$", 1);
    // Each start, and each end, changes the state.
    let mut state = stage.fleet.state();
    let enough = state.wait_for(|_| stage.starts("worker") >= 8);
    timeout(Duration::from_secs(60), enough).await.expect("it is started again and again").expect("it lives");
    assert_eq!(stage.fleet.state().borrow().failed, None);
    assert_eq!(stage.starts("scheduler"), 1);
    stage.fleet.stop().await;
}

#[tokio::test]
async fn only_the_scheduler_of_now_is_replaced_on_request() {
    let stage = Stage::new(&format!("{LISTENS}exec sleep 60"), "exec sleep 60", 2);
    let mut state = stage.fleet.state();
    let up = |generation: u64| {
        move |state: &run_model::FleetState| {
            state.endpoint.as_ref().is_some_and(|endpoint| endpoint.generation == generation)
                && state.workers.len() == 2
        }
    };
    let patience = Duration::from_secs(30);
    let before = timeout(patience, state.wait_for(up(1))).await.expect("in time").expect("it lives").clone();
    stage.fleet.replacer().send(7).expect("it listens");
    stage.fleet.replacer().send(1).expect("it listens");
    let after = timeout(patience, state.wait_for(up(2))).await.expect("in time").expect("it lives").clone();
    stage.fleet.replacer().send(1).expect("it listens");
    stage.fleet.replacer().send(2).expect("it listens");
    let last = timeout(patience, state.wait_for(up(3))).await.expect("in time").expect("it lives").clone();
    assert_eq!(stage.starts("scheduler"), 3, "a request about an older scheduler changes nothing");
    for (name, pid) in &before.workers {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{name} outlives its scheduler");
        assert!(after.workers.iter().all(|(other, _)| other != name), "a name is used once");
    }
    stage.fleet.stop().await;
    assert_eq!(starts(stage.folder.path(), "scheduler"), 3);
    for (name, pid) in after.workers.iter().chain(&last.workers) {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{name} is left");
    }
}
