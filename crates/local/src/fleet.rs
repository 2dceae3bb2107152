//! The scheduler and the workers of a local run, kept running: what ends is started again, and a scheduler that hangs
//! is replaced on request. A new scheduler means new workers, since Dask's workers never reconnect.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::devices;
use super::process::{Exit, Process, tail};
use super::spec::FleetSpec;
use run_model::{Endpoint, FleetState};

/// A scheduler that does not listen within this time is taken as failed: importing Dask and bokeh from a cold disk
/// takes about 10 s on a slow laptop.
const SCHEDULER_START: Duration = Duration::from_secs(90);
/// This many starts in a row that came to nothing end the run.
const MAX_FAILED_STARTS: u32 = 4;
/// A worker that lived shorter than this did not start properly.
const SHORT_LIFE: Duration = Duration::from_secs(20);
/// More scheduler losses than this within `LOSS_PERIOD` end the run.
const MAX_SCHEDULER_LOSSES: usize = 8;
const LOSS_PERIOD: Duration = Duration::from_secs(600);

/// Why the processes of a run could not be started; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// A process could not be started.
    #[error("start {what}: {source}")]
    Spawn {
        /// The process.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The scheduler ended before it listened.
    #[error("start the Dask scheduler: {cause}\n{log}")]
    Scheduler {
        /// How it ended.
        cause: String,
        /// The end of its log.
        log: String,
    },
}

/// Handle on the supervised processes. Dropping it kills them all.
#[derive(Debug)]
pub struct Fleet {
    state: watch::Receiver<FleetState>,
    replace: mpsc::UnboundedSender<u64>,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Fleet {
    /// Starts everything in the background; watch `state` for the endpoint.
    ///
    /// Call it on a thread that lives as long as the fleet: the kernel kills the processes when the thread that
    /// started them ends (`PR_SET_PDEATHSIG`).
    pub fn start(spec: FleetSpec) -> Self {
        let (publish, state) = watch::channel(FleetState::default());
        let (replace, replacements) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut supervisor = Supervisor::new(spec, publish);
            supervisor.run(replacements, stopped).await;
        });
        Self { state, replace, stop: Some(stop), task }
    }

    /// What the processes are, now and from now on.
    pub fn state(&self) -> watch::Receiver<FleetState> {
        self.state.clone()
    }

    /// Asks for a new scheduler in place of the one of `generation`, which hangs or does not answer.
    pub fn replacer(&self) -> mpsc::UnboundedSender<u64> {
        self.replace.clone()
    }

    /// Ends all processes and returns when they are gone.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        // A panic of the supervisor has been reported where it happened; its children are killed on drop.
        drop(self.task.await);
    }
}

struct Supervisor {
    spec: FleetSpec,
    /// `CUDA_VISIBLE_DEVICES` of each group's workers, by number.
    devices: Vec<Vec<Option<String>>>,
    publish: watch::Sender<FleetState>,
    exits: mpsc::UnboundedReceiver<Exit>,
    exit_sender: mpsc::UnboundedSender<Exit>,
    generation: u64,
    incarnation: u64,
    losses: VecDeque<Instant>,
}

/// A worker slot: group and number; its process is replaced when it ends.
struct Slot {
    group: usize,
    number: u32,
    process: Option<Process>,
    started: Instant,
    short_lives: u32,
    restart_at: Option<Instant>,
}

enum Outcome {
    Stopped,
    SchedulerLost,
    Failed(String),
}

impl Supervisor {
    fn new(spec: FleetSpec, publish: watch::Sender<FleetState>) -> Self {
        let (exit_sender, exits) = mpsc::unbounded_channel();
        let devices = devices::shared_out(&devices::of_this_machine(), &spec.groups);
        Self { spec, devices, publish, exits, exit_sender, generation: 0, incarnation: 0, losses: VecDeque::new() }
    }

    async fn run(&mut self, mut replacements: mpsc::UnboundedReceiver<u64>, mut stop: oneshot::Receiver<()>) {
        let mut failed_starts = 0;
        loop {
            let started = tokio::select! {
                started = self.start_scheduler() => started,
                _ = &mut stop => return,
            };
            let scheduler = match started {
                Ok(scheduler) => scheduler,
                Err(error) => {
                    failed_starts += 1;
                    if failed_starts >= MAX_FAILED_STARTS {
                        self.publish.send_modify(|state| state.failed = Some(error.to_string()));
                        return;
                    }
                    tracing::warn!(%error, "the scheduler did not start; trying again");
                    tokio::time::sleep(Duration::from_millis(300) * failed_starts).await;
                    continue;
                }
            };
            failed_starts = 0;
            match self.supervise(scheduler, &mut replacements, &mut stop).await {
                Outcome::Stopped => return,
                Outcome::Failed(message) => {
                    self.publish.send_modify(|state| state.failed = Some(message));
                    return;
                }
                Outcome::SchedulerLost => {
                    let now = Instant::now();
                    self.losses.push_back(now);
                    self.losses.retain(|lost| now.duration_since(*lost) < LOSS_PERIOD);
                    if self.losses.len() > MAX_SCHEDULER_LOSSES {
                        let count = self.losses.len();
                        let log = tail(&self.spec.scratch.join("scheduler.log"), 10);
                        let message = format!(
                            "SchedulerUnstable: the Dask scheduler was lost {count} times in 10 minutes\n{log}"
                        );
                        self.publish.send_modify(|state| state.failed = Some(message));
                        return;
                    }
                }
            }
        }
    }

    async fn start_scheduler(&mut self) -> Result<(Process, Endpoint), FleetError> {
        let log = self.spec.scratch.join("scheduler.log");
        let mut command = self.python(&["scheduler", "--port", "0", "--dashboard"]);
        let spawn = |source| FleetError::Spawn { what: "the Dask scheduler".into(), source };
        let mut process =
            Process::spawn("scheduler", &mut command, &log, true, self.exit_sender.clone()).map_err(spawn)?;
        let mut lines = process.json_lines().ok_or_else(|| spawn(io::Error::other("no standard output")))?;
        let ready = match timeout(SCHEDULER_START, lines.recv()).await {
            Ok(Some(line)) => serde_json::from_str::<Ready>(&line).map_err(|error| error.to_string()),
            Ok(None) => Err("the process ended".to_owned()),
            Err(_) => Err(format!("it did not listen within {} s", SCHEDULER_START.as_secs())),
        };
        match ready {
            Ok(ready) => {
                self.generation += 1;
                let endpoint = Endpoint {
                    address: ready.address,
                    dashboard: ready.dashboard,
                    pid: Some(process.pid),
                    generation: self.generation,
                };
                Ok((process, endpoint))
            }
            Err(cause) => {
                process.kill();
                Err(FleetError::Scheduler { cause, log: tail(&log, 10) })
            }
        }
    }

    /// Runs the workers of one scheduler until it is lost or all is to end. Everything is dead when this returns.
    async fn supervise(
        &mut self,
        (mut scheduler, endpoint): (Process, Endpoint),
        replacements: &mut mpsc::UnboundedReceiver<u64>,
        stop: &mut oneshot::Receiver<()>,
    ) -> Outcome {
        let now = Instant::now();
        let mut slots: Vec<Slot> = Vec::new();
        for (group, spec) in self.spec.groups.iter().enumerate() {
            slots.extend((0..spec.replicas).map(|number| Slot {
                group,
                number,
                process: None,
                started: now,
                short_lives: 0,
                restart_at: Some(now),
            }));
        }
        let generation = endpoint.generation;
        let outcome = loop {
            let mut failure = None;
            for slot in slots.iter_mut().filter(|slot| slot.restart_at.is_some_and(|at| at <= Instant::now())) {
                if let Err(error) = self.start_worker(slot, &endpoint.address) {
                    failure = Some(error.to_string());
                }
            }
            if let Some(message) = failure {
                break Outcome::Failed(message);
            }
            let workers =
                slots.iter().filter_map(|slot| slot.process.as_ref().map(|p| (p.name.clone(), p.pid))).collect();
            self.publish.send_modify(|state| {
                state.endpoint = Some(endpoint.clone());
                state.workers = workers;
            });
            let restart_at = slots.iter().filter_map(|slot| slot.restart_at).min();
            tokio::select! {
                _ = &mut *stop => break Outcome::Stopped,
                Some(asked) = replacements.recv() => {
                    if asked == generation {
                        break Outcome::SchedulerLost;
                    }
                }
                Some(exit) = self.exits.recv() => {
                    if exit.pid == scheduler.pid {
                        tracing::warn!(status = %describe(&exit), "the Dask scheduler ended; starting another");
                        break Outcome::SchedulerLost;
                    }
                    if let Some(message) = self.worker_ended(&mut slots, &exit) {
                        break Outcome::Failed(message);
                    }
                }
                () = sleep_until(restart_at.unwrap_or_else(Instant::now)), if restart_at.is_some() => {}
            }
        };
        self.publish.send_modify(|state| {
            state.endpoint = None;
            state.workers.clear();
        });
        scheduler.kill();
        let mut living = HashSet::from([scheduler.pid]);
        for process in slots.iter_mut().filter_map(|slot| slot.process.as_mut()) {
            process.kill();
            living.insert(process.pid);
        }
        // The scheduler's own exit may have been the reason to come here.
        loop {
            living.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
            if living.is_empty() {
                break;
            }
            match timeout(Duration::from_secs(5), self.exits.recv()).await {
                Ok(Some(exit)) => drop(living.remove(&exit.pid)),
                _ => break,
            }
        }
        outcome
    }

    fn start_worker(&mut self, slot: &mut Slot, address: &str) -> Result<(), FleetError> {
        self.incarnation += 1;
        let group = &self.spec.groups[slot.group];
        let name = format!("{}-{}-{}", group.name, slot.number, self.incarnation);
        let mut arguments = vec![
            "worker".to_owned(),
            address.to_owned(),
            "--name".to_owned(),
            name.clone(),
            "--nthreads".to_owned(),
            group.threads.to_string(),
            "--local-directory".to_owned(),
            self.spec.scratch.join("workers").display().to_string(),
        ];
        if let Some(bytes) = group.memory_limit {
            arguments.extend(["--memory-limit".to_owned(), bytes.to_string()]);
        }
        if !group.resources.is_empty() {
            let resources: Vec<String> = group.resources.iter().map(|(name, n)| format!("{name}={n}")).collect();
            arguments.extend(["--resources".to_owned(), resources.join(" ")]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.python(&arguments);
        if let Some(Some(devices)) = self.devices[slot.group].get(slot.number as usize) {
            command.env("CUDA_VISIBLE_DEVICES", devices);
        }
        command.envs(group.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let log = self.spec.scratch.join(format!("worker-{}-{}.log", group.name, slot.number));
        let process = Process::spawn(&name, &mut command, &log, false, self.exit_sender.clone())
            .map_err(|source| FleetError::Spawn { what: format!("worker {name}"), source })?;
        slot.process = Some(process);
        slot.started = Instant::now();
        slot.restart_at = None;
        Ok(())
    }

    /// Plans the next start of a worker that ended; a message if it never starts properly.
    fn worker_ended(&self, slots: &mut [Slot], exit: &Exit) -> Option<String> {
        let slot = slots.iter_mut().find(|slot| slot.process.as_ref().is_some_and(|p| p.pid == exit.pid))?;
        let log = slot.process.take().map(|process| process.log);
        // Killed from outside says nothing about whether it can start.
        let killed = matches!(&exit.status, Ok(status) if status.code().is_none());
        let short = slot.started.elapsed() < SHORT_LIFE && !killed;
        slot.short_lives = if short { slot.short_lives + 1 } else { 0 };
        tracing::warn!(worker = %exit.name, status = %describe(exit), "a worker ended; starting another");
        if slot.short_lives >= MAX_FAILED_STARTS {
            let log = log.map(|log| tail(&log, 10)).unwrap_or_default();
            return Some(format!(
                "WorkerStartFailed: worker {} ended {} times right after its start, the last time with {}\n{log}",
                exit.name,
                slot.short_lives,
                describe(exit)
            ));
        }
        slot.restart_at = Some(Instant::now() + Duration::from_millis(500) * slot.short_lives);
        None
    }

    fn python(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.spec.environment.python);
        command.args(["-m", "daskade_runtime.local"]).args(arguments);
        let mut path = self.spec.environment.runtime.clone().into_os_string();
        if let Some(users) = std::env::var_os("PYTHONPATH").filter(|path| !path.is_empty()) {
            path.push(":");
            path.push(users);
        }
        command.env("PYTHONPATH", path).env("PYTHONUNBUFFERED", "1");
        // Modules of the folder that the command happens to run in are no part of a pipeline.
        command.env("PYTHONSAFEPATH", "1");
        command.env("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0");
        command.env("DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION", "inf");
        // As Dask's nanny does: each slot of a worker is one thread of numeric libraries unless the user says more.
        for variable in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
            if std::env::var_os(variable).is_none() {
                command.env(variable, "1");
            }
        }
        command
    }
}

fn describe(exit: &Exit) -> String {
    match &exit.status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// The line by which the scheduler says that it listens.
#[derive(Debug, Deserialize)]
struct Ready {
    address: String,
    #[serde(default)]
    dashboard: Option<String>,
}
