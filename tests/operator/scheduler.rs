//! A scheduler with our runtime, as far as the operator knows it: answers for the cluster, drains, retires, and carries out
//! runs whose first step is told of, and whose others just end. Records what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::memory::Flood;
use crate::peer::{receive, send};
use crate::wait;

/// A worker that it knows.
#[derive(Debug, Clone, Default)]
pub struct Worker {
    pub draining: bool,
    pub tasks: u64,
}

#[derive(Debug, Default)]
pub struct State {
    pub workers: BTreeMap<String, Worker>,
    pub demand: Vec<Value>,
    pub clients: u32,
    /// A client that has just come: only who asks for a fresh look hears of it.
    pub unseen: u32,
    /// When it was last used.
    used: Option<Instant>,
    pub calls: Vec<Value>,
    /// Workers that were closed: they do not come back.
    pub closed: BTreeSet<String>,
    version: u64,
    /// Of each connection that waits for news: the version up to which it has dealt with everything.
    askers: BTreeMap<u64, u64>,
    next: u64,
    /// Streams of events that are read, by run.
    readers: BTreeMap<String, usize>,
    /// By uid.
    pub journals: Journals,
    /// Steps that were handed over do not end.
    pub held: bool,
    /// It hangs up whatever it is asked.
    pub deaf: bool,
    /// Runs that are open on it, and under which epoch.
    pub open: BTreeMap<String, u64>,
    pub refusal: Refusal,
    /// Why it refuses operations of runs, by their names.
    pub refuses: BTreeMap<&'static str, &'static str>,
    /// It closes each connection that asks for the state of the cluster instead of answering a second time.
    pub hangs_up: bool,
    /// Each page of a listing is the first one.
    pub lists_again: bool,
    /// Sent in place of the state of the cluster.
    pub flood: Option<Arc<Flood>>,
}

/// Why no storage can be used, for operations on what is stored, and how many of them succeed before.
pub type Refusal = Arc<Mutex<Option<(&'static str, usize)>>>;

/// What a storage keeps of runs: shared by schedulers that follow each other.
pub type Journals = Arc<Mutex<BTreeMap<String, Journal>>>;

/// Of one run of one step.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    pub epoch: u64,
    pub committed: bool,
    pub closed: Option<Value>,
    /// Times that its step was handed over.
    pub submits: u32,
    /// Steps besides the first one that were handed over.
    pub others: Vec<u64>,
    pub stored: Stored,
}

/// What it has in the storage besides its journal.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    pub data: BTreeSet<String>,
    pub logs: BTreeSet<String>,
    /// `<uid>/<epoch>`
    pub references: BTreeSet<String>,
    /// What others' runs need of `data`, by their uid; nothing of one that has not ended.
    pub users: BTreeMap<String, Option<Vec<String>>>,
    /// `outputs`, `record`
    pub removed: BTreeSet<String>,
}

/// The double. It ends with its last clone's task.
#[derive(Debug, Clone)]
pub struct Scheduler {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    pub ip: String,
    task: Arc<JoinHandle<()>>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Scheduler {
    /// Each has an address of this machine for itself, since the port is always the same.
    pub async fn start(journals: Journals, refusal: Refusal) -> Self {
        let state = Arc::new(Mutex::new(State { version: 1, clients: 1, journals, refusal, ..State::default() }));
        let changed = Arc::new(watch::Sender::new(1));
        loop {
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            let ip = format!("127.{}.{}.{}", 20 + std::process::id() % 200, 1 + next / 250, 1 + next % 250);
            let Ok(listener) = TcpListener::bind((ip.as_str(), 8786)).await else { continue };
            let (shared, news, instance) = (state.clone(), changed.clone(), ip.clone());
            let task = tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, shared.clone(), news.clone(), instance.clone()));
                }
            });
            return Self { state, changed, ip, task: Arc::new(task) };
        }
    }

    pub fn change(&self, how: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        how(&mut state);
        state.used = Some(Instant::now());
        tell(&mut state, &self.changed);
    }

    /// Whether who asks for news, if anybody does, has dealt with all that there are.
    pub fn is_heard(&self) -> bool {
        let state = lock(&self.state);
        state.askers.values().all(|known| *known >= state.version)
    }

    /// What changes with each of its changes.
    pub fn version(&self) -> u64 {
        lock(&self.state).version
    }

    /// Whether anybody reads the events of a run.
    pub fn is_followed(&self, uid: &str) -> bool {
        lock(&self.state).readers.get(uid).is_some_and(|readers| *readers > 0)
    }

    pub fn calls(&self, op: &str) -> Vec<Value> {
        lock(&self.state).calls.iter().filter(|call| call["op"] == op).cloned().collect()
    }

    pub fn all_calls(&self) -> Vec<Value> {
        lock(&self.state).calls.clone()
    }

    /// How many runs are open on it.
    pub fn open(&self) -> usize {
        lock(&self.state).open.len()
    }

    pub fn names(&self) -> BTreeSet<String> {
        lock(&self.state).workers.keys().cloned().collect()
    }

    /// Those that run and were not closed are the ones that it knows.
    pub fn sync(&self, running: &BTreeSet<String>) {
        let closed = lock(&self.state).closed.clone();
        let live: BTreeSet<&String> = running.difference(&closed).collect();
        if self.names().iter().collect::<BTreeSet<_>>() == live {
            return;
        }
        let mut state = lock(&self.state);
        state.workers.retain(|name, _| live.contains(name));
        for name in live {
            state.workers.entry(name.clone()).or_default();
        }
        tell(&mut state, &self.changed);
    }

    /// Takes no more connections.
    pub fn stop(&self) {
        self.task.abort();
    }
}

/// There are news.
fn tell(state: &mut State, changed: &watch::Sender<u64>) {
    state.version += 1;
    changed.send_replace(state.version);
    wait::ring();
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no panic while it was held")
}

#[expect(clippy::too_many_lines, reason = "one arm for each operation")]
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>, changed: Arc<watch::Sender<u64>>, instance: String) {
    send(&mut stream, &json!({"compression": null, "python": [3, 11, 7], "pickle-protocol": 5})).await;
    // A client that opens with a TLS greeting is disconnected.
    if receive(&mut stream).await.is_none() {
        return;
    }
    let (mut asker, mut answered) = (None, false);
    while let Some(call) = receive(&mut stream).await {
        if lock(&state).deaf {
            return;
        }
        lock(&state).calls.push(call.clone());
        wait::ring();
        let names = || call["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let reply = match call["op"].as_str().unwrap_or_default() {
            "daskade-cluster" => {
                if std::mem::replace(&mut answered, true) && lock(&state).hangs_up {
                    return;
                }
                let since = if call["instance"] == *instance { call["since"].as_u64().unwrap_or(0) } else { 0 };
                if call["fresh"] != true {
                    asker.get_or_insert_with(|| Asker::new(&state)).knows(since);
                }
                let mut news = changed.subscribe();
                let wait = Duration::from_secs_f64(call["wait"].as_f64().unwrap_or(0.0));
                tokio::select! {
                    _ = tokio::time::timeout(wait, news.wait_for(|version| *version > since)) => {}
                    () = closed(&stream) => return,
                }
                let flood = lock(&state).flood.clone();
                if let Some(flood) = flood {
                    flood.send(&mut stream).await;
                    continue;
                }
                let unseen = if call["fresh"] == true { lock(&state).unseen } else { 0 };
                info(&lock(&state), &instance, unseen)
            }
            "daskade-drain" => {
                let mut state = lock(&state);
                for name in names() {
                    if let Some(worker) = state.workers.get_mut(name) {
                        worker.draining = true;
                    }
                }
                tell(&mut state, &changed);
                json!({"status": "OK"})
            }
            "daskade-retire" => {
                let mut state = lock(&state);
                let (mut closed, mut busy) = (Vec::new(), Vec::new());
                for name in names() {
                    match state.workers.get(name) {
                        Some(worker) if !worker.draining || worker.tasks > 0 => busy.push(name.to_owned()),
                        _ => closed.push(name.to_owned()),
                    }
                }
                for name in &closed {
                    state.workers.remove(name);
                    state.closed.insert(name.clone());
                }
                tell(&mut state, &changed);
                json!({"status": "OK", "closed": closed, "busy": busy})
            }
            "daskade-hello" => {
                let open = lock(&state).open.clone();
                json!({"status": "OK", "protocol": [1, 1], "runtime": "abc", "instance": instance, "dask": "2025.1.0",
                    "python": "3.12.1", "led": open.keys().collect::<Vec<_>>(), "runs": open, "opening": []})
            }
            "daskade-read" => json!({"status": "OK", "serializer": "json", "size": 2, "digest": "d", "path": null,
                "bytes": null, "json": null}),
            "daskade-events" => return follow(stream, &call, &state, &changed, &instance).await,
            "daskade-open" | "daskade-submit" | "daskade-record" | "daskade-stop" | "daskade-close"
            | "daskade-forget" => run(&mut lock(&state), &call, &instance),
            "daskade-stored" | "daskade-references" | "daskade-user" | "daskade-mark" | "daskade-seal"
            | "daskade-objects" | "daskade-discard" => stored(&lock(&state), &call),
            _ => continue,
        };
        send(&mut stream, &reply).await;
        // Also what an answer says of a journal may be waited for, by a test or by who follows a run.
        changed.send_modify(|_| {});
        wait::ring();
    }
}

/// An operation of a run.
fn run(state: &mut State, call: &Value, instance: &str) -> Value {
    let refused = |reason: &str| json!({"status": "error", "reason": reason, "message": "refused by the double"});
    let uid = call["run"].as_str().unwrap_or_default().to_owned();
    let State { journals, open, .. } = state;
    let mut journals = journals.lock().expect("no panic while it was held");
    let op = call["op"].as_str().unwrap_or_default();
    if let Some(reason) = state.refuses.get(op) {
        return refused(reason);
    }
    if op == "daskade-open" {
        let create = call["create"] == true;
        if journals.contains_key(&uid) == create {
            return refused(if create { "RunExists" } else { "RunNotFound" });
        }
        let journal = journals.entry(uid.clone()).or_default();
        journal.epoch += 1;
        open.insert(uid, journal.epoch);
        let committed = if journal.committed { json!([[0, -1, 1, null, null]]) } else { json!([]) };
        let snapshot = json!({"committed": committed, "final": journal.closed});
        return json!({"status": "OK", "epoch": journal.epoch, "instance": instance, "cursor": 0, "snapshot": snapshot});
    }
    let Some(journal) = journals.get_mut(&uid) else { return refused("RunNotFound") };
    // Whoever lets go of a run may not know under which epoch it is open.
    let may_not_know = op == "daskade-forget" && call["epoch"].is_null() && call["lead"].is_u64();
    if !may_not_know && call["epoch"] != journal.epoch {
        return refused("StaleEpoch");
    }
    if ["daskade-close", "daskade-forget"].contains(&op) {
        open.remove(&uid);
    }
    match op {
        "daskade-submit" => {
            journal.submits += 1;
            let steps = call["items"].as_array().into_iter().flatten().filter_map(|item| item[0].as_u64());
            journal.others.extend(steps.filter(|step| *step > 0));
        }
        "daskade-close" => journal.closed = Some(call["final"].clone()),
        _ => {}
    }
    json!({"status": "OK"})
}

/// An operation on what a run has left.
fn stored(state: &State, call: &Value) -> Value {
    let mut journals = state.journals.lock().expect("no panic while it was held");
    if let Some((reason, left)) = &mut *state.refusal.lock().expect("no panic while it was held") {
        if *left == 0 {
            return json!({"status": "error", "reason": *reason, "message": "the double's storage does not work"});
        }
        *left -= 1;
    }
    let text = |key: &str| call[key].as_str().unwrap_or_default().to_owned();
    let texts = |key: &str| -> Vec<String> {
        call[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(ToOwned::to_owned).collect()
    };
    let whose = if call["op"] == "daskade-user" { text("of") } else { text("run") };
    let there = journals.contains_key(&whose);
    let journal = journals.entry(whose).or_default();
    let stored = &mut journal.stored;
    match call["op"].as_str().unwrap_or_default() {
        "daskade-stored" => {
            let told = there.then(|| json!({"closed": journal.closed.is_some(), "origins": []}));
            json!({"status": "OK", "open": false, "removed": stored.removed, "journal": told})
        }
        "daskade-references" => json!({"status": "OK", "names": stored.references}),
        "daskade-user" => {
            let needs = stored.users.get(&text("run")).cloned().flatten();
            json!({"status": "OK", "removed": false, "closed": needs.is_some(), "name": "later",
                "paths": needs.unwrap_or_default()})
        }
        "daskade-mark" => {
            stored.removed.extend(texts("what"));
            json!({"status": "OK"})
        }
        "daskade-seal" => {
            journal.closed = Some(call["final"].clone());
            json!({"status": "OK"})
        }
        "daskade-objects" => {
            let none = BTreeSet::new();
            let paths = match call["folder"].as_str() {
                Some("data") => &stored.data,
                Some("logs") => &stored.logs,
                _ => &none,
            };
            json!({"status": "OK", "paths": paths, "more": state.lists_again})
        }
        _ => {
            for path in texts("paths") {
                let mark = if path.starts_with("data/") { "outputs" } else { "record" };
                assert!(stored.removed.contains(mark) || path.starts_with("refs/"), "{path} was not marked");
                stored.data.remove(&path);
                stored.logs.remove(&path);
            }
            json!({"status": "OK"})
        }
    }
}

/// Events of one message, at most.
const PAGE: usize = 1000;

/// The stream of a run's events: its step ends soon after it was handed over.
async fn follow(
    mut stream: TcpStream,
    call: &Value,
    state: &Arc<Mutex<State>>,
    changed: &watch::Sender<u64>,
    instance: &str,
) {
    let uid = call["run"].as_str().unwrap_or_default();
    let _reader = Reader::new(state, uid);
    let mut news = changed.subscribe();
    let (mut told, mut ended) = (0, 0);
    loop {
        news.borrow_and_update();
        let mut events = Vec::new();
        {
            let state = lock(state);
            let mut journals = state.journals.lock().expect("no panic while it was held");
            let Some(journal) = journals.get_mut(uid).filter(|journal| call["epoch"] == journal.epoch) else { return };
            if journal.submits > 0 && told == 0 {
                events.push(json!({"k": "started", "n": 1, "s": 0, "i": -1, "a": 1, "w": "w", "t": 1.0}));
            }
            if journal.submits > 0 && told <= 1 && !state.held {
                journal.committed = true;
                journal.stored.data.insert("data/0/-1-1-x".to_owned());
                journal.stored.logs.insert("logs/w-x-000001.jsonl".to_owned());
                events.push(
                    json!({"k": "finished", "n": 2, "s": 0, "i": -1, "a": 1, "w": "w", "t0": 1.0, "t1": 2.0, "z": 1}),
                );
                events.push(json!({"k": "committed", "n": 3, "tasks": [[0, -1, 1]], "seg": 1}));
            }
            let others = if state.held { &[] } else { journal.others.get(ended..).unwrap_or_default() };
            ended += others.len();
            for step in others {
                let number = told + events.len();
                events.push(json!({"k": "finished", "n": number + 1, "s": step, "i": -1, "a": 1, "w": "w", "t0": 1.0,
                    "t1": 2.0, "z": 1}));
                events.push(json!({"k": "committed", "n": number + 2, "tasks": [[step, -1, 1]], "seg": 1}));
            }
        }
        // Without events it is a sign of life.
        let pages = if events.is_empty() { vec![&events[..]] } else { events.chunks(PAGE).collect() };
        for page in pages {
            told += page.len();
            send(&mut stream, &json!({"instance": instance, "events": page, "seq": told})).await;
        }
        wait::ring();
        tokio::select! {
            _ = news.changed() => {}
            () = closed(&stream) => return,
            () = wait::beat() => {}
        }
    }
}

/// Waits until the other side closes the connection. What it says until then is not heard.
async fn closed(stream: &TcpStream) {
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut [0; 1024]) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// A connection that waits for news.
struct Asker(Arc<Mutex<State>>, u64);

impl Asker {
    fn new(state: &Arc<Mutex<State>>) -> Self {
        let mut inner = lock(state);
        inner.next += 1;
        Self(state.clone(), inner.next)
    }

    fn knows(&self, version: u64) {
        lock(&self.0).askers.insert(self.1, version);
        wait::ring();
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        lock(&self.0).askers.remove(&self.1);
        wait::ring();
    }
}

/// Somebody who reads the events of a run.
struct Reader(Arc<Mutex<State>>, String);

impl Reader {
    fn new(state: &Arc<Mutex<State>>, uid: &str) -> Self {
        *lock(state).readers.entry(uid.to_owned()).or_default() += 1;
        Self(state.clone(), uid.to_owned())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(readers) = lock(&self.0).readers.get_mut(&self.1) {
            *readers -= 1;
        }
        wait::ring();
    }
}

fn info(state: &State, instance: &str, unseen: u32) -> Value {
    let workers: Vec<Value> = state
        .workers
        .iter()
        .map(|(name, worker)| {
            let status = if worker.draining { "closing_gracefully" } else { "running" };
            json!({"name": name, "address": format!("tcp://{name}"), "status": status, "threads": 1,
                "resources": {}, "tasks": worker.tasks, "certificate": null})
        })
        .collect();
    let idle = state.used.filter(|_| state.clients == 0).map_or(0.0, |used| used.elapsed().as_secs_f64());
    let tasks: u64 = state.workers.values().map(|worker| worker.tasks).sum();
    json!({
        "status": "OK", "version": state.version, "instance": instance, "runtime": "abc", "dask": "2025.1.0",
        "python": "3.12.1", "workers": workers, "demand": state.demand, "runs": 0, "clients": state.clients + unseen,
        "tasks": tasks, "idle": idle, "certificate": null,
    })
}
