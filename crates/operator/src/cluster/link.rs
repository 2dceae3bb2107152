//! What a cluster's scheduler says: one task per cluster holds a connection to the scheduler's pod, waits there for news,
//! and has the cluster looked at when there is some.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::jittered;
use crate::leader::clock::Clock;
use crate::queue::{Key, Queue};
use dask::ops::{ClusterInfo, ClusterWorker, Drain, Leader, Operation, Retire, Retired, WatchCluster};
use dask::{Address, Connection, Deadlines, Error, Limits, Tls};
use decide::cluster::facts::{Ask, SchedulerFact, SchedulerState, WorkerFact};
use decide::cluster::scale::remember;

/// How long the scheduler may keep us waiting for news, in seconds. An answer also says that it is alive.
const POLL: f64 = 30.0;
/// Beyond that, an answer counts as lost.
const LATE: Duration = Duration::from_secs(15);
/// Between two tries to reach it: it is in the same network, and a pod that is ready answers.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(15);
/// After so long a connection works.
const SETTLED: Duration = Duration::from_secs(30);
/// The same after it sent more than is taken of it, which it would do again.
const EXCESS_FIRST: Duration = Duration::from_secs(5);
const EXCESS_LONGEST: Duration = Duration::from_secs(300);
/// The runtime installs itself in the background once the scheduler listens; until then its operations are unknown.
const INSTALL: Duration = Duration::from_secs(20);
/// Our own news are bundled for so long.
const BUNDLE: Duration = Duration::from_millis(50);
/// `idle` comes with each answer, and its beginning is found by subtraction; within this it is the same beginning.
const SAME_IDLE: SignedDuration = SignedDuration::from_secs(3);
/// A scheduler that does not answer within these would hold up the work on its cluster.
const DEADLINES: Deadlines = Deadlines {
    connect: Duration::from_secs(3),
    handshake: Duration::from_secs(5),
    rpc: Duration::from_secs(10),
    slow: Duration::from_secs(10),
};
/// What a worker says of itself once it was told to drain.
const DRAINING: &str = "closing_gracefully";

/// Which scheduler to ask, and as whom.
#[derive(Debug, Clone)]
pub struct Target {
    /// Uid of the DaskCluster.
    pub cluster: String,
    /// Name of its pod.
    pub pod: String,
    /// Of the pod: another one is another scheduler.
    pub uid: String,
    pub address: Address,
    /// For connections to come.
    pub tls: Option<Tls>,
    /// As whom.
    pub lead: Leader,
}

/// The connection to the scheduler of one cluster. Dropping it ends the task.
#[derive(Debug)]
pub struct Link {
    target: watch::Sender<Target>,
    state: State,
    reporter: StateReporter,
    task: JoinHandle<()>,
}

/// What was heard last, and how often that has changed.
type State = Arc<watch::Sender<(SchedulerFact, u64)>>;

impl Link {
    /// Starts to ask. `queue` gets `key` whenever the answer changes.
    pub fn start(target: Target, key: Key, queue: Arc<Queue>, clock: Clock) -> Self {
        let (target, targets) = watch::channel(target);
        let state: State = Arc::new(watch::Sender::new((SchedulerFact::Unknown, 0)));
        let reporter = StateReporter { targets: targets.clone(), state: state.clone(), key, queue, clock };
        let poller = Poller { targets, reporter: reporter.clone() };
        Self { target, state, reporter, task: tokio::spawn(poller.run()) }
    }

    /// Whether it is about this pod.
    pub fn asks(&self, uid: &str) -> bool {
        self.target.borrow().uid == uid
    }

    /// What it said last, and a number that grows with every change of that.
    pub fn state(&self) -> (SchedulerFact, u64) {
        self.state.borrow().clone()
    }

    /// Waits until it has said anything, or could not be reached; for at most `most`.
    pub async fn heard(&self, most: Duration) {
        let mut state = self.state.subscribe();
        // Either way it is known now what there is to know.
        let _ = timeout(most, state.wait_for(|(fact, _)| *fact != SchedulerFact::Unknown)).await;
    }

    /// Asks another scheduler if it is another one; certificates and leader count from the next request on.
    pub fn aim(&self, target: Target) {
        self.state.send_modify(|(fact, version)| {
            if self.target.borrow().is_other(&target) {
                *fact = SchedulerFact::Unknown;
                *version += 1;
            }
            self.target.send_replace(target);
        });
    }

    /// Asks on a connection of its own, and keeps the answer: what was heard last may be a moment old.
    pub async fn ask(&self) -> SchedulerFact {
        let target = self.target.borrow().clone();
        let ask = target.watch(0, None, 0.0, true);
        let answer = async {
            let connection = connect(&target.address, target.tls.as_ref()).await?;
            connection.call(&ask).await.and_then(bounded)
        };
        match answer.await {
            Ok(info) => self.reporter.note_answer(&target, info),
            Err(error) => self.reporter.note_error(&target, &error),
        }
        self.state().0
    }

    /// Has workers take no further tasks, and closes those that are done, on a connection of its own.
    pub async fn command(&self, drain: &[String], retire: &[String]) -> Result<Retired, Error> {
        let Target { cluster, address, tls, lead, .. } = self.target.borrow().clone();
        let connection = connect(&address, tls.as_ref()).await?;
        let (cluster, Leader { epoch: lead, lease }) = (Some(cluster), lead);
        if !drain.is_empty() {
            let drain = Drain { cluster: cluster.clone(), lead, lease: lease.clone(), names: drain.to_vec() };
            connection.call(&drain).await?;
        }
        if retire.is_empty() {
            return Ok(Retired { closed: Vec::new(), busy: Vec::new() });
        }
        connection.call(&Retire { cluster, lead, lease, names: retire.to_vec() }).await
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Target {
    fn is_other(&self, other: &Self) -> bool {
        self.uid != other.uid || self.address != other.address
    }

    fn watch(&self, since: u64, instance: Option<String>, wait: f64, fresh: bool) -> WatchCluster {
        let (cluster, Leader { epoch: lead, lease }) = (Some(self.cluster.clone()), self.lead.clone());
        WatchCluster { cluster, lead, lease, since, instance, wait, fresh }
    }
}

/// The task behind a [`Link`].
struct Poller {
    targets: watch::Receiver<Target>,
    reporter: StateReporter,
}

impl Poller {
    async fn run(mut self) {
        let (mut pause, mut penalty) = (RETRY_FIRST, EXCESS_FIRST);
        let mut began = Instant::now();
        loop {
            let target = self.targets.borrow_and_update().clone();
            let (mut answered, asked) = (false, Instant::now());
            let error = tokio::select! {
                error = follow(&self.targets, |target, info| {
                    answered = true;
                    self.reporter.note_answer(target, info);
                }) => error,
                () = moved(self.targets.clone(), &target) => {
                    (pause, penalty, began) = (RETRY_FIRST, EXCESS_FIRST, Instant::now());
                    continue;
                }
            };
            if !answered && matches!(error, Error::UnknownOp { .. }) && began.elapsed() < INSTALL {
                sleep(RETRY_FIRST).await;
                continue;
            }
            // One that answers once and then fails each time is asked ever less often.
            if answered && asked.elapsed() > SETTLED {
                pause = RETRY_FIRST;
            }
            let wait = if error.is_excess() { penalty } else { pause };
            self.reporter.note_error(&target, &error);
            tokio::select! {
                () = sleep(jittered(wait, &(&self.reporter.key, Instant::now()))) => {}
                () = moved(self.targets.clone(), &target) => {}
            }
            if error.is_excess() {
                penalty = (penalty * 2).min(EXCESS_LONGEST);
            } else {
                pause = (pause * 2).min(RETRY_LONGEST);
            }
        }
    }
}

async fn connect(address: &Address, tls: Option<&Tls>) -> Result<Connection, Error> {
    Connection::connect_limited(address, tls, DEADLINES, Limits::operator()).await
}

/// The answer without what decisions do not need; refused if it has more workers than a cluster can.
fn bounded(mut info: ClusterInfo) -> Result<ClusterInfo, Error> {
    let workers = info.workers.len();
    if workers > limits::WORKERS {
        let reason = format!("the scheduler reports {workers} workers; at most {} are allowed", limits::WORKERS);
        return Err(Error::excess(WatchCluster::OP, reason));
    }
    info.demand.truncate(limits::ASKS);
    for text in [&mut info.instance, &mut info.runtime, &mut info.dask, &mut info.python] {
        limits::clip(text, limits::WORD);
    }
    Ok(info)
}

/// Ends when the target is another scheduler.
async fn moved(mut targets: watch::Receiver<Target>, from: &Target) {
    if targets.wait_for(|target| from.is_other(target)).await.is_err() {
        // The link is being dropped, and this task with it.
        std::future::pending().await
    }
}

/// Asks one scheduler for news until it cannot be asked any more.
async fn follow(targets: &watch::Receiver<Target>, mut tell: impl FnMut(&Target, ClusterInfo)) -> Error {
    let target = targets.borrow().clone();
    let connection = match connect(&target.address, target.tls.as_ref()).await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    let (mut since, mut instance) = (0, None);
    loop {
        let ask = targets.borrow().watch(since, instance.take(), POLL, false);
        match connection.call_within(&ask, Duration::from_secs_f64(POLL) + LATE).await.and_then(bounded) {
            Ok(info) => {
                (since, instance) = (info.version, Some(info.instance.clone()));
                tell(&target, info);
            }
            Err(error) => return error,
        }
    }
}

/// Keeps what was heard, and has the cluster looked at when it is news.
#[derive(Debug, Clone)]
struct StateReporter {
    targets: watch::Receiver<Target>,
    state: State,
    key: Key,
    queue: Arc<Queue>,
    /// What it notes is compared with the time of reconciliations.
    clock: Clock,
}

impl StateReporter {
    fn note_answer(&self, target: &Target, info: ClusterInfo) {
        self.tell(target, |known| {
            let now = self.clock.now();
            let mut state = read_info(&target.pod, info, now);
            if let SchedulerFact::Answers(known) = known {
                if let (Some(before), Some(now)) = (known.idle_since, state.idle_since)
                    && now.duration_since(before).abs() <= SAME_IDLE
                {
                    state.idle_since = Some(before);
                }
                let same = known.demand == state.demand;
                state.recent = if same { known.recent.clone() } else { remember(known, now) };
            }
            Some(SchedulerFact::Answers(state))
        });
    }

    fn note_error(&self, target: &Target, error: &Error) {
        tracing::debug!(cluster = %self.key, pod = target.pod, category = error.category(), "failed to {error}");
        let cause = error.to_string();
        self.tell(target, |known| match known {
            // The first cause stands for those like it that follow, so that the status stays as it is.
            SchedulerFact::Unreachable { cause: first, .. } if stage(first) == stage(&cause) => None,
            SchedulerFact::Unreachable { since, .. } => Some(SchedulerFact::Unreachable { since: *since, cause }),
            _ => Some(SchedulerFact::Unreachable { since: self.clock.now(), cause }),
        });
    }

    fn tell(&self, target: &Target, fact: impl FnOnce(&SchedulerFact) -> Option<SchedulerFact>) {
        let changed = self.state.send_if_modified(|(known, version)| {
            // What was on its way when the link was aimed at another scheduler is about the one before.
            let fact = if self.targets.borrow().is_other(target) { None } else { fact(known) };
            let Some(fact) = fact.filter(|fact| fact != known) else { return false };
            *known = fact;
            *version += 1;
            true
        });
        if changed {
            self.queue.add_soon(self.key.clone(), BUNDLE);
        }
    }
}

/// How far a call came that failed: what stands before the first colon.
fn stage(cause: &str) -> Option<&str> {
    cause.split(':').next()
}

/// The scheduler's answer in the words of decisions.
fn read_info(pod: &str, info: ClusterInfo, now: Timestamp) -> SchedulerState {
    let idle = SignedDuration::try_from_secs_f64(info.idle).unwrap_or_default();
    let unused = info.runs == 0 && info.clients == 0 && info.tasks == 0;
    SchedulerState {
        pod: pod.to_owned(),
        workers: info.workers.into_iter().map(read_worker).collect(),
        demand: info.demand.into_iter().map(read_ask).collect(),
        recent: Vec::new(),
        runs: info.runs,
        clients: info.clients,
        tasks: info.tasks,
        idle_since: unused.then(|| now.checked_sub(idle).unwrap_or(now)),
        dask: info.dask,
        python: info.python,
        runtime: info.runtime,
        certificate: info.certificate.map(|certificate| certificate.fingerprint),
    }
}

fn read_worker(worker: ClusterWorker) -> (String, WorkerFact) {
    let ClusterWorker { name, status, tasks, certificate, .. } = worker;
    (name, WorkerFact { draining: status == DRAINING, tasks, certificate })
}

fn read_ask(ask: dask::ops::Ask) -> Ask {
    let dask::ops::Ask { group, resources, count, later } = ask;
    let resources: BTreeMap<String, f64> = resources;
    Ask { group, resources, count, later }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_scheduler_tells_is_capped() {
        let worker = |n: usize| ClusterWorker {
            name: format!("w{n}"),
            address: "tls://10.0.0.1:40000".to_owned(),
            status: "running".to_owned(),
            threads: 1,
            resources: BTreeMap::new(),
            tasks: 0,
            certificate: None,
        };
        let ask = dask::ops::Ask { group: None, resources: BTreeMap::new(), count: 1, later: 0 };
        let info = |workers: usize, asks: usize| ClusterInfo {
            version: 1,
            instance: "me".to_owned(),
            runtime: "r".to_owned(),
            dask: "x".repeat(1000),
            python: "3".to_owned(),
            workers: (0..workers).map(worker).collect(),
            demand: vec![ask.clone(); asks],
            runs: 0,
            clients: 0,
            tasks: 0,
            idle: 0.0,
            certificate: None,
        };
        let told = bounded(info(limits::WORKERS, limits::ASKS + 1)).unwrap();
        assert_eq!((told.demand.len(), told.dask.len()), (limits::ASKS, limits::WORD));
        let error = bounded(info(limits::WORKERS + 1, 0)).unwrap_err();
        assert!(error.is_excess() && error.to_string().contains("4001 workers; at most 4000 are allowed"), "{error}");
    }

    #[test]
    fn causes_of_one_stage_are_alike_and_others_are_news() {
        let connect = "connect to tls://10.0.0.1:8786: refused";
        assert_eq!(stage(connect), stage("connect to tls://10.0.0.2:8786: no route"));
        assert_ne!(stage(connect), stage("set up TLS: BadSignature"));
    }
}
