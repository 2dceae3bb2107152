//! A cluster for the operator: the double of the API server, a kubelet that starts and ends pods, and schedulers that answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use dask::ops::Leader;
use http::Method;
use kube::client::ClientBuilder;
use kube::client::retry::RetryPolicy;
use operator::leader::clock::Clock;
use operator::leader::fence::FenceLayer;
use operator::leader::lead::{Grant, lead};
use operator::{Namespaces, Pauses, Settings};
use serde_json::{Value, json};
use telemetry::metrics::Metrics;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::Layer;
use tower::retry::RetryLayer;

use crate::api::{Api, KINDS, Recorded};
use crate::scheduler::{Journal, Journals, Refusal, Scheduler};
use crate::trap::Trap;
use crate::wait::{self, eventually_or, unchanged};

pub const SOON: Duration = Duration::from_secs(20);
/// Without a write for so long, an operator with nothing to do is still.
const STILL: Duration = Duration::from_secs(2);

/// Uid of the lease by which operators lead.
pub const LEASE_UID: &str = "lease-1";
/// Collections that an operator watches at least.
const WATCHES: usize = 7;

pub struct World {
    pub api: Api,
    /// Of operators to come.
    pub limits: operator::Limits,
    /// Addresses of schedulers outside that they may use.
    pub allowed: Vec<regex::Regex>,
    /// Life of the certificates that they issue.
    pub lifetime: Duration,
    /// Theirs, shorter than those of people.
    pub pauses: Pauses,
    pub trap: Trap,
    kubelet: Arc<Kubelet>,
    /// Of the operator that was started last.
    begun: Mutex<Option<Begun>>,
    task: JoinHandle<()>,
}

/// An operator, as far as it can be observed.
#[derive(Debug, Clone)]
struct Begun {
    metrics: Arc<Metrics>,
    /// Objects that there were of each kind when it began: it looks at each of them at least once.
    objects: [usize; 3],
}

/// What starts pods.
#[derive(Debug, Default)]
struct Kubelet {
    /// By namespace, cluster and pod.
    schedulers: Mutex<BTreeMap<String, Scheduler>>,
    journals: Journals,
    idle: AtomicBool,
    /// Steps do not end on schedulers that are to come.
    holds: AtomicBool,
    /// What a DaskCluster that is gone has owned goes too.
    collects: AtomicBool,
    /// Of all storages.
    refusal: Refusal,
    /// CPUs of the one node, in thousandths; none if it has as many as are asked for.
    cpus: Mutex<Option<u64>>,
    /// Pods that never end.
    hung: Mutex<BTreeSet<String>>,
    /// The news up to which it has dealt with everything.
    done: AtomicU64,
}

/// An operator that leads.
pub struct Operator {
    pub grant: Grant,
    pub metrics: Arc<Metrics>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), operator::Error>>,
}

pub fn cluster_path(namespace: &str, name: &str) -> String {
    format!("/apis/daskade.dev/v1alpha1/namespaces/{namespace}/daskclusters/{name}")
}

pub fn run_path(namespace: &str, name: &str) -> String {
    format!("/apis/daskade.dev/v1alpha1/namespaces/{namespace}/pipelineruns/{name}")
}

pub fn core_path(namespace: &str, kind: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{kind}/{name}")
}

pub fn policy_path(namespace: &str, name: &str) -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}")
}

/// A spec without TLS: the doubles of schedulers speak in the clear.
pub fn plain(workers: u32) -> Value {
    json!({"tls": {"mode": "Disabled"}, "workers": [{"name": "cpu", "replicas": workers}]})
}

impl World {
    pub async fn new() -> Self {
        let api = Api::start().await;
        let kubelet = Arc::new(Kubelet::default());
        let task = tokio::spawn(run(api.clone(), kubelet.clone()));
        let lifetime = Duration::from_secs(90 * 86_400);
        Self {
            api,
            limits: operator::Limits::default(),
            allowed: Vec::new(),
            lifetime,
            pauses: Pauses {
                first_lists: Duration::from_millis(500),
                missing: Duration::from_millis(500),
                orphans: Duration::from_millis(500),
                ..Pauses::default()
            },
            trap: Trap::default(),
            kubelet,
            begun: Mutex::default(),
            task,
        }
    }

    /// Starts and ends no pods, or does again.
    pub fn set_kubelet_idle(&self, idle: bool) {
        self.kubelet.idle.store(idle, Ordering::Relaxed);
        self.api.watches.tell();
    }

    /// Steps that are handed to schedulers which start from now on do not end.
    pub fn hold_steps(&self) {
        self.kubelet.holds.store(true, Ordering::Relaxed);
    }

    /// Has what a DaskCluster owned go soon after it, as Kubernetes does.
    pub fn collect(&self) {
        self.kubelet.collects.store(true, Ordering::Relaxed);
    }

    /// From now on there is one node with so many CPUs, and pods for which it has no room wait, as Kubernetes says it.
    pub fn set_cpus(&self, thousandths: u64) {
        *self.kubelet.cpus.lock().unwrap() = Some(thousandths);
        self.api.watches.tell();
    }

    /// A pod whose node is dead.
    pub fn hang(&self, pod: &str) {
        self.kubelet.hung.lock().unwrap().insert(pod.to_owned());
    }

    pub fn create(&self, namespace: &str, name: &str, spec: &Value) {
        let object = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
        self.api.put(&cluster_path(namespace, name), object);
    }

    /// A PipelineRun, as a person applies it.
    pub fn create_run(&self, namespace: &str, name: &str, spec: &Value) {
        let object = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
        self.api.put(&run_path(namespace, name), object);
    }

    /// The condition `Succeeded` of a run: status, reason, message.
    pub fn succeeded(&self, namespace: &str, name: &str) -> [String; 3] {
        let told = self.api.read(&run_path(namespace, name), |object| {
            let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            let found = conditions.find(|condition| condition["type"] == "Succeeded")?;
            Some(["status", "reason", "message"].map(|key| found[key].as_str().unwrap_or_default().to_owned()))
        });
        told.flatten().unwrap_or_default()
    }

    pub async fn until_run(&self, namespace: &str, name: &str, reason: &str) {
        let told = || self.api.object(&run_path(namespace, name)).unwrap_or_default()["status"].clone();
        let what = || format!("{namespace}/{name} is {reason}: {:#}", told());
        eventually_or(what, SOON, || self.succeeded(namespace, name)[1] == reason).await;
    }

    /// What the storage has of a run.
    pub fn journal(&self, namespace: &str, name: &str) -> Journal {
        let uid = self.api.object(&run_path(namespace, name)).unwrap_or_default()["metadata"]["uid"].clone();
        let journals = self.kubelet.journals.lock().unwrap();
        journals.get(uid.as_str().unwrap_or_default()).cloned().unwrap_or_default()
    }

    /// Changes what the storage has of a run.
    pub fn change_journal(&self, namespace: &str, name: &str, how: impl FnOnce(&mut Journal)) {
        let uid = self.api.object(&run_path(namespace, name)).unwrap_or_default()["metadata"]["uid"].clone();
        let mut journals = self.kubelet.journals.lock().unwrap();
        how(journals.get_mut(uid.as_str().unwrap_or_default()).expect("the run has a journal"));
        wait::ring();
    }

    /// Why what is stored cannot be looked at or removed from now on, after so many operations that succeed.
    pub fn refuse_storage(&self, refusal: Option<(&'static str, usize)>) {
        *self.kubelet.refusal.lock().unwrap() = refusal;
    }

    /// A condition of a run.
    pub fn run_condition(&self, namespace: &str, name: &str, kind: &str) -> Value {
        let object = self.api.object(&run_path(namespace, name)).unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
    }

    pub fn operator(&self) -> Operator {
        self.operator_with(1, Namespaces::All)
    }

    pub fn operator_with(&self, epoch: u64, namespaces: Namespaces) -> Operator {
        let (grant, lead) = lead();
        let leader = Leader { epoch, lease: Some(LEASE_UID.to_owned()) };
        grant.renew(leader, Instant::now(), SystemTime::now(), Duration::from_secs(3600));
        wait::hear_the_operator();
        let metrics = Arc::new(Metrics::default());
        let objects = KINDS.map(|kind| self.api.paths(&format!("/{kind}/")).len());
        self.api.watches.begin();
        *self.begun.lock().unwrap() = Some(Begun { metrics: metrics.clone(), objects });
        let layer = FenceLayer::new(lead.clone(), metrics.clone());
        // As kube makes it, without the network.
        let retries = RetryLayer::new(RetryPolicy::default());
        let client = ClientBuilder::new(retries.layer(self.api.direct()), "daskade").with_layer(&layer);
        let clock = Clock::default();
        let client = client.with_layer(&self.trap).with_layer(&clock).build();
        let settings = Settings {
            image: "example.org/worker:1".to_owned(),
            runtime: runtime_bundle::RUNTIME,
            namespaces,
            own_namespace: "daskade".to_owned(),
            own_labels: None,
            certificate_lifetime: self.lifetime,
            concurrency: 4,
            storage: None,
            allowed_addresses: self.allowed.clone(),
            limits: self.limits,
            pauses: self.pauses,
            clock,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let run = operator::run(client, settings, lead, async { drop(stopped.await) }, metrics.clone());
        Operator { grant, metrics, stop, task: tokio::spawn(run) }
    }

    pub fn object(&self, namespace: &str, name: &str) -> Value {
        self.api.object(&cluster_path(namespace, name)).unwrap_or_default()
    }

    pub fn condition(&self, namespace: &str, name: &str, kind: &str) -> Value {
        let object = self.object(namespace, name);
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
    }

    /// Asserts that a condition of a cluster contains these words.
    pub fn says(&self, namespace: &str, name: &str, kind: &str, words: &str) {
        let condition = self.condition(namespace, name, kind);
        assert!(condition["message"].as_str().is_some_and(|message| message.contains(words)), "{words}: {condition:#}");
    }

    /// Asserts that the condition of a run contains these words.
    pub fn run_says(&self, namespace: &str, name: &str, words: &str) {
        let told = self.succeeded(namespace, name);
        assert!(told[2].contains(words), "{words}: {told:?}");
    }

    pub fn reason(&self, namespace: &str, name: &str) -> String {
        self.condition(namespace, name, "Ready")["reason"].as_str().unwrap_or_default().to_owned()
    }

    pub async fn until_ready(&self, namespace: &str, name: &str) {
        let is_ready = || {
            let object = self.object(namespace, name);
            let ready = self.condition(namespace, name, "Ready");
            ready["status"] == "True" && ready["observedGeneration"] == object["metadata"]["generation"]
        };
        let what = || {
            let status = self.object(namespace, name)["status"].clone();
            format!("{namespace}/{name} is ready: {status:#}; {:?}", self.pods(namespace))
        };
        eventually_or(what, SOON, is_ready).await;
    }

    pub async fn until_reason(&self, namespace: &str, name: &str, reason: &str) {
        let status = || self.object(namespace, name)["status"].clone();
        let what = || format!("{namespace}/{name} is {reason}: {:#}", status());
        eventually_or(what, SOON, || self.reason(namespace, name) == reason).await;
    }

    /// Names of the pods of a namespace that do not go.
    pub fn pods(&self, namespace: &str) -> Vec<String> {
        let paths = self.api.paths(&format!("/namespaces/{namespace}/pods/"));
        let live = paths
            .into_iter()
            .filter(|path| self.api.object(path).is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_null()));
        live.map(|path| path.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    }

    /// The scheduler that answers for a cluster now.
    pub fn scheduler(&self, namespace: &str, name: &str) -> Scheduler {
        let prefix = format!("{namespace}/{name}-scheduler-");
        let schedulers = self.kubelet.schedulers.lock().unwrap();
        schedulers.iter().rfind(|(pod, _)| pod.starts_with(&prefix)).expect("a scheduler").1.clone()
    }

    /// All requests that wrote, events aside.
    pub fn writes(&self) -> Vec<Recorded> {
        let mut requests = self.api.requests();
        requests.retain(|request| request.method != Method::GET && !request.path.contains("/events"));
        requests
    }

    /// Waits until everything that has happened so far has had all its effects: the operator has taken what watches and
    /// schedulers have to show, has nothing left to do, and so has who starts pods. Steps of runs that are carried out, and
    /// what the operator does at its own time, are not waited for.
    pub async fn until_quiet(&self) {
        let what = || format!("it comes to rest: {:?}; {:?}", self.unrest(), self.writes().last());
        eventually_or(what, SOON, || self.unrest().is_empty()).await;
    }

    /// Waits until it is quiet, and then until nothing was written for a while: what it does at its own time would show.
    pub async fn until_still(&self) {
        self.until_quiet().await;
        unchanged("its writes", STILL, SOON, || self.writes().len()).await;
    }

    /// What keeps it from being at rest.
    fn unrest(&self) -> Vec<String> {
        let begun = self.begun.lock().unwrap().clone().expect("an operator was started");
        // In the direction in which effects go, so that none slips by: what comes last may only have led to a write, and
        // then the state is another one than before.
        let before = self.versions();
        let version = self.api.lock().version;
        let mut unrest = Vec::new();
        let mut check = |what: &str, rests: bool| {
            if !rests {
                unrest.push(what.to_owned());
            }
        };
        let idle = self.kubelet.idle.load(Ordering::Relaxed);
        check("the kubelet", idle || self.kubelet.done.load(Ordering::SeqCst) >= self.api.watches.count());
        check("watches", self.api.watches.are_read(version, WATCHES));
        let schedulers = self.kubelet.schedulers.lock().unwrap();
        check("schedulers", schedulers.values().all(Scheduler::is_heard));
        drop(schedulers);
        let text = begun.metrics.encode().expect("metrics");
        for (kind, objects) in ["daskcluster", "pipeline", "pipelinerun"].into_iter().zip(begun.objects) {
            check(
                &format!("backlog of {kind}s"),
                metric(&text, &format!("daskade_backlog{{controller=\"{kind}\"}}")) == 0.0,
            );
            let passes = format!("daskade_reconcile_duration_seconds_count{{controller=\"{kind}\",");
            let passes: f64 = text
                .lines()
                .filter_map(|line| line.strip_prefix(&passes)?.rsplit(' ').next()?.parse::<f64>().ok())
                .sum();
            check(&format!("first passes over {kind}s"), passes >= objects as f64);
        }
        check("something has changed meanwhile", before == self.versions());
        unrest
    }

    fn versions(&self) -> (u64, u64, Vec<u64>) {
        let version = self.api.lock().version;
        let schedulers = self.kubelet.schedulers.lock().unwrap();
        (version, self.api.watches.count(), schedulers.values().map(Scheduler::version).collect())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
        for scheduler in self.kubelet.schedulers.lock().unwrap().values() {
            scheduler.stop();
        }
    }
}

impl Operator {
    /// Ends it, as a signal does.
    pub async fn end(self) {
        drop(self.stop);
        self.task.await.expect("no panic").expect("it ends when it is told to");
    }

    /// Ends it in the middle of whatever it is at.
    pub fn kill(self) {
        self.task.abort();
    }

    /// A metric's value.
    pub fn metric(&self, series: &str) -> f64 {
        metric(&self.metrics.encode().expect("metrics"), series)
    }
}

fn metric(text: &str, series: &str) -> f64 {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap_or(0.0)
}

async fn run(api: Api, kubelet: Arc<Kubelet>) {
    let mut news = api.watches.subscribe();
    loop {
        let seen = *news.borrow_and_update();
        if kubelet.collects.load(Ordering::Relaxed) {
            collect(&api);
        }
        if !kubelet.idle.load(Ordering::Relaxed) {
            for path in api.paths("/pods/") {
                let Some(pod) = api.object(&path) else { continue };
                step(&api, &kubelet, &path, &pod).await;
            }
            kubelet.forget_who_is_gone(&api);
        }
        kubelet.done.store(seen, Ordering::SeqCst);
        wait::ring();
        if news.changed().await.is_err() {
            return;
        }
    }
}

/// Removes what is owned by clusters that are not there.
fn collect(api: &Api) {
    let clusters = api.paths("/daskclusters/").into_iter().filter_map(|path| api.object(&path));
    let live: BTreeSet<String> = clusters.map(|object| object["metadata"]["uid"].to_string()).collect();
    for part in ["/pods/", "/services/", "/networkpolicies/", "/configmaps/", "/secrets/"] {
        for path in api.paths(part) {
            let owners = api.object(&path).unwrap_or_default()["metadata"]["ownerReferences"].clone();
            let of_cluster = |owner: &&Value| owner["kind"] == "DaskCluster";
            let owner = owners.as_array().into_iter().flatten().find(of_cluster).cloned();
            if owner.is_some_and(|owner| !live.contains(&owner["uid"].to_string())) {
                api.delete(&path);
            }
        }
    }
}

async fn step(api: &Api, kubelet: &Kubelet, path: &str, pod: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meta = &pod["metadata"];
    let (namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
    if !meta["deletionTimestamp"].is_null() {
        if !kubelet.hung.lock().unwrap().contains(&name) {
            api.delete(path);
        }
        return;
    }
    if pod["status"]["phase"] != "Pending" {
        return;
    }
    let cpus = *kubelet.cpus.lock().unwrap();
    if cpus.is_some_and(|cpus| taken(api) + asked(pod) > cpus) {
        let told = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption \
            victims found for incoming pod."}]);
        if pod["status"]["conditions"] != told {
            api.edit(path, |pod| pod["status"]["conditions"] = told);
        }
        return;
    }
    let mut ip = "127.0.0.2".to_owned();
    if meta["labels"]["dask.org/component"] == "scheduler" {
        let scheduler = Scheduler::start(kubelet.journals.clone(), kubelet.refusal.clone()).await;
        ip.clone_from(&scheduler.ip);
        if kubelet.holds.load(Ordering::Relaxed) {
            scheduler.change(|state| state.held = true);
        }
        kubelet.schedulers.lock().unwrap().insert(format!("{namespace}/{name}"), scheduler);
    }
    if api.object(path).is_none() {
        return;
    }
    api.edit(path, |pod| {
        pod["spec"]["nodeName"] = json!("node");
        pod["status"] = json!({"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]});
    });
}

/// CPUs that a pod asks for, in thousandths.
fn asked(pod: &Value) -> u64 {
    let text = pod["spec"]["containers"][0]["resources"]["requests"]["cpu"].as_str().unwrap_or("0");
    let (number, unit) = text.strip_suffix('m').map_or((text, 1000), |number| (number, 1));
    number.parse::<u64>().expect("whole CPUs, or thousandths") * unit
}

/// What pods that have a node ask for.
fn taken(api: &Api) -> u64 {
    let pods = api.paths("/pods/").into_iter().filter_map(|path| api.object(&path));
    pods.filter(|pod| !pod["spec"]["nodeName"].is_null()).map(|pod| asked(&pod)).sum()
}

impl Kubelet {
    /// Workers that run are known to their scheduler, and others are not.
    fn forget_who_is_gone(&self, api: &Api) {
        let mut schedulers = self.schedulers.lock().unwrap();
        schedulers.retain(|pod, scheduler| {
            let (namespace, name) = pod.split_once('/').expect("a namespace");
            let lives = api.object(&core_path(namespace, "pods", name)).is_some();
            if !lives {
                scheduler.stop();
            }
            lives
        });
        for (pod, scheduler) in schedulers.iter() {
            let (namespace, name) = pod.split_once('/').expect("a namespace");
            let cluster = name.rsplit_once("-scheduler-").expect("a scheduler's name").0;
            let mut live = BTreeSet::new();
            for path in api.paths(&format!("/namespaces/{namespace}/pods/{cluster}-")) {
                let Some(pod) = api.object(&path) else { continue };
                let labels = &pod["metadata"]["labels"];
                let is_worker = labels["dask.org/component"] == "worker" && labels["daskade.dev/cluster"] == cluster;
                if is_worker && pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null() {
                    live.extend(pod["metadata"]["name"].as_str().map(ToOwned::to_owned));
                }
            }
            scheduler.sync(&live);
        }
    }
}
