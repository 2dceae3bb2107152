//! Clusters, pods and schedulers in a few words.
//!
//! A pod is `<pod> <word>...`, named without its cluster: `scheduler-1`, `cpu-0-7`. It is ready and of the current template,
//! and a worker is known to the scheduler, unless words say otherwise: `old`, `starting` (no address yet), `unready` (has
//! one), `unknown`, `ended`, `draining`, `tasks=2`, `restarts=3`, `age=5` (seconds), `going=40` (deleted so long ago, with 30 s of grace),
//! `on=a` (its node), `lacks=cpu` (no node has room for it).
//!
//! A scheduler is `unknown`, `unreachable=5` (for so long) or `answers <word>...` with `runs=1`, `clients=1`, `tasks=1`,
//! `idle=60`, `ask=3` (tasks), `ask=3-1` (of which one comes later), `ask=3*gpu` (of a group), `ask=3*GPU:1,SSD:2` (by resources), `was=5@10` (asked for until 10 s ago).

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use api::reason::Reason;
use decide::cluster::effective_groups;
use decide::cluster::facts::{
    Ask, Base, Cluster, Facts, Issue, Phase, PodFact, Recent, Role, SchedulerFact, SchedulerState, Slot, TlsFact,
    WorkerFact,
};
use decide::cluster::plan::Templates;
use decide::cluster::room::Shortage;

pub fn now() -> Timestamp {
    "2025-01-01T12:00:00Z".parse().unwrap()
}

pub fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

pub fn cluster(spec: Value) -> Cluster {
    cluster_with(spec, json!({}))
}

pub fn cluster_with(spec: Value, status: Value) -> Cluster {
    Cluster {
        name: "c".to_owned(),
        namespace: "n".to_owned(),
        uid: "u".to_owned(),
        generation: 3,
        of_run: false,
        spec: serde_json::from_value(spec).unwrap(),
        status: serde_json::from_value(status).unwrap(),
    }
}

pub fn templates(cluster: &Cluster) -> Templates {
    let groups = effective_groups(&cluster.spec).into_iter().map(|group| (group.name, "new".to_owned()));
    Templates { scheduler: "new".to_owned(), groups: groups.collect() }
}

pub fn facts(pods: &[&str], scheduler: &str) -> Facts {
    let mut scheduler = scheduler_fact(scheduler);
    let mut facts = Vec::new();
    for text in pods {
        let (pod, worker) = pod_fact(text);
        if let (Some(worker), SchedulerFact::Answers(state)) = (worker, &mut scheduler) {
            state.workers.insert(pod.name.clone(), worker);
        }
        facts.push(pod);
    }
    let (refused, tls, gave) = (Vec::new(), TlsFact::default(), BTreeMap::new());
    Facts { now: now(), pods: facts, scheduler, refused, tls, gave }
}

fn slot(name: &str) -> Slot {
    let (rest, incarnation) = name.rsplit_once('-').unwrap();
    let incarnation = incarnation.parse().unwrap();
    let role = match rest.rsplit_once('-') {
        Some((group, number)) => Role::Worker { group: group.to_owned(), number: number.parse().unwrap() },
        None => Role::Scheduler,
    };
    Slot { role, incarnation }
}

fn pod_fact(text: &str) -> (PodFact, Option<WorkerFact>) {
    let mut words = text.split(' ');
    let name = words.next().unwrap();
    let slot = slot(name);
    let mut pod = PodFact {
        name: format!("c-{name}"),
        uid: format!("uid-{name}"),
        template: "new".to_owned(),
        base: Base::default(),
        certificate: None,
        phase: Phase::Running,
        ready: true,
        ip: Some("10.0.0.1".to_owned()),
        created: ago(3600),
        deleting: None,
        node: None,
        issue: None,
        shortage: None,
        restarts: 0,
        labelled: true,
        slot,
    };
    let mut worker = WorkerFact { draining: false, tasks: 0, certificate: None };
    let mut known = pod.slot.role != Role::Scheduler;
    for word in words {
        let (word, value) = word.split_once('=').unwrap_or((word, "0"));
        if word == "on" {
            pod.node = Some(value.to_owned());
            continue;
        }
        if word == "lacks" {
            let message = format!("no node for pod {}: 0/1 nodes are available: 1 Insufficient {value}.", pod.name);
            pod.issue = Some(Issue { reason: Reason::Unschedulable, message, stalled: false });
            pod.shortage = Some(Shortage { of: vec![value.to_owned()], all: true });
            (pod.phase, pod.ready, pod.ip, known) = (Phase::Pending, false, None, false);
            continue;
        }
        let value: i64 = value.parse().unwrap();
        match word {
            "old" => pod.template = "old".to_owned(),
            "starting" => (pod.phase, pod.ready, pod.ip, known) = (Phase::Pending, false, None, false),
            "unready" => (pod.ready, known) = (false, false),
            "unknown" => known = false,
            "ended" => (pod.phase, pod.ready, known) = (Phase::Ended, false, false),
            "draining" => worker.draining = true,
            "tasks" => worker.tasks = value as u64,
            "restarts" => pod.restarts = value as u32,
            "age" => pod.created = ago(value),
            "going" => pod.deleting = Some((ago(value), 30)),
            other => panic!("{other}"),
        }
    }
    (pod, known.then_some(worker))
}

pub fn scheduler_fact(text: &str) -> SchedulerFact {
    let mut words = text.split(' ');
    let first = words.next().unwrap();
    if first == "unknown" {
        return SchedulerFact::Unknown;
    }
    if let Some(since) = first.strip_prefix("unreachable=") {
        let told = words.collect::<Vec<_>>().join(" ");
        let cause = if told.is_empty() { "connect: refused".to_owned() } else { told };
        return SchedulerFact::Unreachable { since: ago(since.parse().unwrap()), cause };
    }
    assert_eq!(first, "answers");
    let mut state = answers();
    for word in words {
        let (word, value) = word.split_once('=').unwrap();
        let number = || value.parse::<u32>().unwrap();
        match word {
            "runs" => state.runs = number(),
            "clients" => state.clients = number(),
            "tasks" => state.tasks = number().into(),
            "idle" => state.idle_since = Some(ago(number().into())),
            "ask" => state.demand.push(ask(value)),
            "was" => {
                let (what, when) = value.split_once('@').unwrap();
                state.recent.push(Recent { ask: ask(what), until: ago(when.parse().unwrap()) });
            }
            other => panic!("{other}"),
        }
    }
    SchedulerFact::Answers(state)
}

pub fn answers() -> SchedulerState {
    SchedulerState {
        pod: "c-scheduler-1".to_owned(),
        workers: BTreeMap::new(),
        demand: Vec::new(),
        recent: Vec::new(),
        runs: 0,
        clients: 0,
        tasks: 0,
        idle_since: None,
        dask: "2025.1.0".to_owned(),
        python: "3.12.1".to_owned(),
        runtime: "abc".to_owned(),
        certificate: None,
    }
}

pub fn ask(text: &str) -> Ask {
    let (count, what) = text.split_once('*').unwrap_or((text, ""));
    let (count, later) = count.split_once('-').unwrap_or((count, "0"));
    let (count, later) = (count.parse().unwrap(), later.parse().unwrap());
    let mut ask = Ask { group: None, resources: BTreeMap::new(), count, later };
    for part in what.split(',').filter(|part| !part.is_empty()) {
        match part.split_once(':') {
            Some((name, amount)) => drop(ask.resources.insert(name.to_owned(), amount.parse().unwrap())),
            None => ask.group = Some(part.to_owned()),
        }
    }
    ask
}
