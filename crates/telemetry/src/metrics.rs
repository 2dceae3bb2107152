//! The few metrics of the operator. Every label has a fixed set of values: no name of an object is ever one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::process::ProcessCollector;

/// From a pass that finds nothing to do (milliseconds) to one that waits for a slow API server.
const SECONDS: [f64; 7] = [0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Which reconciler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Of DaskClusters.
    DaskCluster,
    /// Of Pipelines.
    Pipeline,
    /// Of PipelineRuns.
    PipelineRun,
}

/// How one reconciliation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as it should be.
    Settled,
    /// Something has to happen elsewhere first.
    Waiting,
    /// The object itself is wrong; waits for a change.
    Invalid,
    /// Somebody else wrote in between; tried again at once.
    Conflict,
    /// The API server or a scheduler failed; tried again later.
    Transient,
    /// The operator lacks a right.
    Forbidden,
    /// The lease was lost.
    Fenced,
    /// A bug.
    Panicked,
}

/// What a write to the API server did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// A new object.
    Create,
    /// A whole object.
    Update,
    /// Some fields of an object.
    Patch,
    /// An object less.
    Delete,
}

/// How a write to the API server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It was written.
    Done,
    /// Somebody else wrote in between.
    Conflict,
    /// The operator lacks a right.
    Forbidden,
    /// Refused for another reason that lies in the request.
    Refused,
    /// Not now: too many requests.
    Throttled,
    /// The API server failed.
    ServerError,
    /// No answer.
    Broken,
    /// Never sent: the lease was not held.
    Fenced,
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Labels<2>, Histogram, fn() -> Histogram>,
    backlog: Family<Labels<1>, Gauge>,
    clusters: Family<Labels<1>, Gauge>,
    workers: Family<Labels<1>, Gauge>,
    schedulers: Family<Labels<1>, Gauge>,
    writes: Family<Labels<3>, Counter>,
    leader: Gauge,
    clock_skew: Gauge<f64, AtomicU64>,
    panics: Counter,
    dropped_events: Counter,
}

impl Metrics {
    /// `dropped` tells how many log lines were dropped so far.
    pub fn new(dropped: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let reconciles = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let metrics = Self {
            registry: Registry::default(),
            reconciles,
            backlog: Family::default(),
            clusters: Family::default(),
            workers: Family::default(),
            schedulers: Family::default(),
            writes: Family::default(),
            leader: Gauge::default(),
            clock_skew: Gauge::default(),
            panics: Counter::default(),
            dropped_events: Counter::default(),
        };
        metrics.registered(Arc::new(dropped))
    }

    fn registered(mut self, dropped: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        let ours = self.registry.sub_registry_with_prefix("daskade");
        ours.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        ours.register(
            "leader",
            "1 if this process holds the lease; alert if the sum over all replicas is not 1 for 2 minutes",
            self.leader.clone(),
        );
        ours.register(
            "clock_skew_seconds",
            "Seconds by which this machine's clock is ahead of the API server's; alert above 30 or below -30",
            self.clock_skew.clone(),
        );
        ours.register(
            "reconcile_duration_seconds",
            "Passes over objects, by how they ended; alert on any outcome forbidden, and on transient above a tenth of all",
            self.reconciles.clone(),
        );
        ours.register(
            "backlog",
            "Objects with work left to do, those in progress included; alert if it stays above 0 for 30 minutes",
            self.backlog.clone(),
        );
        ours.register("clusters", "DaskClusters by their condition Ready", self.clusters.clone());
        ours.register(
            "workers",
            "Workers of all clusters, wanted and ready; alert if desired is above ready for longer than nodes take to come",
            self.workers.clone(),
        );
        ours.register(
            "schedulers",
            "Connections to Dask schedulers; alert if any is unreachable for 10 minutes: such a cluster is not scaled down",
            self.schedulers.clone(),
        );
        ours.register(
            "api_writes",
            "Writes to the Kubernetes API by resource and answer; alert if the rate stays above 1 per second while nothing is changed",
            self.writes.clone(),
        );
        ours.register("panics", "Panics caught; each is a bug, alert on any", self.panics.clone());
        ours.register(
            "events_dropped",
            "Kubernetes Events that were dropped because too many waited; conditions have the truth",
            self.dropped_events.clone(),
        );
        self.registry.register_collector(Box::new(ProcessCollector::new(dropped)));
        self
    }

    /// A pass over one object took so long and ended so.
    pub fn observe_reconcile(&self, controller: Controller, outcome: Outcome, took: Duration) {
        let labels = [("controller", controller.as_str()), ("outcome", outcome.as_str())];
        self.reconciles.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Where a controller reports how many objects have work left to do.
    pub fn backlog(&self, controller: Controller) -> Backlog {
        Backlog(self.backlog.get_or_create(&[("controller", controller.as_str())]).clone())
    }

    /// How many clusters are ready, and how many are not.
    pub fn set_clusters(&self, ready: usize, not_ready: usize) {
        set(&self.clusters, "ready", "true", ready);
        set(&self.clusters, "ready", "false", not_ready);
    }

    /// Workers of all clusters.
    pub fn set_workers(&self, desired: usize, ready: usize) {
        set(&self.workers, "state", "desired", desired);
        set(&self.workers, "state", "ready", ready);
    }

    /// Schedulers that answer, and those that should and do not.
    pub fn set_schedulers(&self, connected: usize, unreachable: usize) {
        set(&self.schedulers, "state", "connected", connected);
        set(&self.schedulers, "state", "unreachable", unreachable);
    }

    /// Whether this process holds the lease.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// How far the clock of this machine is ahead of the API server's.
    pub fn set_clock_skew(&self, seconds: f64) {
        self.clock_skew.set(seconds);
    }

    /// A write was tried. `resource` is the plural of a kind that the operator writes; anything else counts as `other`.
    pub fn count_write(&self, verb: Verb, resource: &str, answer: Answer) {
        let resource = RESOURCES.into_iter().find(|known| *known == resource).unwrap_or("other");
        let labels = [("verb", verb.as_str()), ("resource", resource), ("answer", answer.as_str())];
        self.writes.get_or_create(&labels).inc();
    }

    /// An Event was dropped.
    pub fn count_dropped_event(&self) {
        self.dropped_events.inc();
    }

    /// A panic was caught.
    pub fn count_panic(&self) {
        self.panics.inc();
    }

    /// As text in the OpenMetrics format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut encoded = String::new();
        text::encode(&mut encoded, &self.registry)?;
        Ok(encoded)
    }
}

/// The number of objects with work left to do.
#[derive(Debug, Default)]
pub struct Backlog(Gauge);

impl Backlog {
    /// There are so many now.
    pub fn set(&self, objects: usize) {
        self.0.set(i64::try_from(objects).unwrap_or(i64::MAX));
    }
}

impl Default for Metrics {
    /// Of a process whose log drops nothing.
    fn default() -> Self {
        Self::new(|| 0)
    }
}

/// Everything that the operator writes.
const RESOURCES: [&str; 11] = [
    "pods",
    "services",
    "configmaps",
    "secrets",
    "networkpolicies",
    "daskclusters",
    "pipelines",
    "pipelineruns",
    "controllerrevisions",
    "events",
    "leases",
];

impl Controller {
    /// Name in labels and in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DaskCluster => "daskcluster",
            Self::Pipeline => "pipeline",
            Self::PipelineRun => "pipelinerun",
        }
    }
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Waiting => "waiting",
            Self::Invalid => "invalid",
            Self::Conflict => "conflict",
            Self::Transient => "transient",
            Self::Forbidden => "forbidden",
            Self::Fenced => "fenced",
            Self::Panicked => "panicked",
        }
    }
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

impl Answer {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Conflict => "conflict",
            Self::Forbidden => "forbidden",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::ServerError => "server_error",
            Self::Broken => "broken",
            Self::Fenced => "fenced",
        }
    }
}

fn set(family: &Family<Labels<1>, Gauge>, label: &'static str, value: &'static str, count: usize) {
    family.get_or_create(&[(label, value)]).set(i64::try_from(count).unwrap_or(i64::MAX));
}
