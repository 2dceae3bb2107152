//! The shell of the operator: everything that talks to Kubernetes.

#![warn(missing_docs)]

pub mod apiserver;
mod backoff;
pub mod cause;
pub mod certificates;
mod cluster;
mod controller;
pub mod leader;
mod pipeline;
mod pipelinerun;
mod queue;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use parking_lot::Mutex;
use regex::Regex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use self::apiserver::scope::{self, Scope};
use self::apiserver::watch::{self, Sinks};
use self::certificates::{CertificateSettings, Certificates};
use self::cluster::registry::SchedulerRegistry;
use self::cluster::totals;
use self::cluster::work::ClusterReconciler;
use self::controller::Controller;
pub use self::controller::bounds::Bounds;
use self::controller::events::Events;
use self::leader::clock::{self, Clock};
use self::leader::lead::Lead;
use self::pipeline::reconcile::PipelineReconciler;
pub use self::pipelinerun::allowance::Limits;
use self::pipelinerun::driven::{self, Driven};
use self::pipelinerun::quota::RunQuota;
use self::pipelinerun::removal;
use self::pipelinerun::work::RunReconciler;
use api::storage::Storage;
use decide::cluster::build::{self, Peer};
pub use lower::allowed::RunLimits;
use run_model::Runtime;
use telemetry::metrics::Metrics;

/// Which namespaces are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    /// All of them.
    All,
    /// These, at least one.
    Names(Vec<String>),
    /// Those whose labels match a selector.
    Selector(String),
}

/// Settings of all controllers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Image of clusters that name none.
    pub image: String,
    /// What goes into schedulers.
    pub runtime: Runtime,
    /// Where runs that name no storage, on clusters made for them, keep their data: each namespace below it, by its name.
    pub storage: Option<Storage>,
    /// Which namespaces are served.
    pub namespaces: Namespaces,
    /// Where the operator keeps what tenants must not see, and where it runs.
    pub own_namespace: String,
    /// Labels of the operator's own pods; none if it runs outside the cluster.
    pub own_labels: Option<BTreeMap<String, String>>,
    /// Life of the certificates that it issues.
    pub certificate_lifetime: Duration,
    /// Objects of a kind that are worked on at once.
    pub concurrency: u16,
    /// Addresses of schedulers that are no DaskClusters and that runs may use.
    pub allowed_addresses: Vec<Regex>,
    /// What tenants may not go beyond.
    pub limits: Limits,
    /// How often the controllers check what no watch reports.
    pub pauses: Pauses,
    /// The time by which they decide: a layer of their client.
    pub clock: Clock,
}

/// How often the controllers check what no watch reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    /// At the start: how long the namespaces wait for each other's first lists.
    pub first_lists: Duration,
    /// How often to look for a missing Secret or ConfigMap of a user. These are not watched.
    pub missing: Duration,
    /// How long the authority of a cluster that no watch shows stays at least: a watch may lag.
    pub orphans: Duration,
    /// How often the same may go wrong.
    pub bounds: Bounds,
}

impl Default for Pauses {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { first_lists: seconds(10), missing: seconds(10), orphans: seconds(30), bounds: Bounds::default() }
    }
}

/// Why the controllers ended; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that never ends has ended.
    #[error("keep {0} running: it ended by itself")]
    Ended(&'static str),
}

/// Life of a cluster's authority: longer than that of any certificate that it issues.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Runs the controllers until `shutdown` ends; reconciliations that are in the middle then have a few seconds. Watches run all the
/// time, so that a process that stands by knows everything when it begins to lead; nothing is written while `lead` says no.
pub async fn run(
    client: Client,
    settings: Settings,
    lead: Lead,
    shutdown: impl Future<Output = ()> + Send,
    metrics: Arc<Metrics>,
) -> Result<(), Error> {
    let sinks = Sinks::new(&metrics);
    let mut background = JoinSet::new();
    let several = matches!(&settings.namespaces, Namespaces::Names(names) if names.len() > 1);
    let (scope, waits) = watches(&client, &settings.namespaces, &sinks, &mut background);
    let (events, publish) = Events::start(client.clone(), metrics.clone());
    background.spawn(publish);
    background.spawn(clock::watch(settings.clock.clone(), metrics.clone()));
    let (pauses, concurrency) = (settings.pauses, usize::from(settings.concurrency));
    let Reconcilers { clusters, runs, pipelines } =
        Reconcilers::new(client, settings, Shared { sinks, lead, metrics, events, scope });
    let mut shutdown = std::pin::pin!(shutdown);
    // Nothing is decided from caches that are half filled.
    tokio::select! {
        () = &mut shutdown => return Ok(()),
        () = synced(waits) => tracing::debug!("the first lists are complete"),
        // One namespace of several may give no right to list; the others need not wait for it.
        () = tokio::time::sleep(pauses.first_lists), if several => tracing::warn!("some initial lists are not complete; their namespaces wait"),
        _ = background.join_next() => return Err(Error::Ended("a watch")),
    }
    background.spawn(controller::follow_lead(clusters.clone()));
    background.spawn(controller::follow_lead(pipelines.clone()));
    background.spawn(controller::follow_lead(runs.clone()));
    background.spawn(totals::count(clusters.clone()));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let dispatch = async {
        tokio::join!(
            controller::dispatch(clusters, concurrency, told(stopped.clone())),
            controller::dispatch(pipelines, concurrency, told(stopped.clone())),
            controller::dispatch(runs, concurrency, told(stopped)),
        )
    };
    let mut dispatch = std::pin::pin!(dispatch);
    tokio::select! {
        () = &mut shutdown => {}
        _ = &mut dispatch => return Err(Error::Ended("the controllers")),
        _ = background.join_next() => return Err(Error::Ended("a watch")),
    }
    stop.send_replace(true);
    dispatch.await;
    Ok(())
}

/// What the reconcilers share.
struct Shared {
    sinks: Sinks,
    lead: Lead,
    metrics: Arc<Metrics>,
    events: Events,
    scope: Scope,
}

/// One reconciler for each resource.
struct Reconcilers {
    clusters: Arc<ClusterReconciler>,
    runs: Arc<RunReconciler>,
    pipelines: Arc<PipelineReconciler>,
}

impl Reconcilers {
    fn new(client: Client, settings: Settings, shared: Shared) -> Self {
        let Settings { image, runtime, storage, allowed_addresses, limits, pauses, clock, .. } = settings;
        let Shared { sinks, lead, metrics, events, scope } = shared;
        let own_namespace = settings.own_namespace;
        let operator = settings.own_labels.map(|labels| Peer { namespace: own_namespace.clone(), labels });
        let certificates = CertificateSettings {
            operator_namespace: own_namespace,
            lifetime: settings.certificate_lifetime,
            ca_lifetime: AUTHORITY_LIFETIME.max(settings.certificate_lifetime * 4),
        };
        let certificates = Arc::new(Certificates::new(client.clone(), certificates));
        let registry = Arc::new(SchedulerRegistry::new(sinks.waiters.clone()));
        sinks.waiters.lead_to(sinks.runs.queue.clone());
        let pipelines = PipelineReconciler {
            client: client.clone(),
            controller: Controller::new(sinks.pipelines.clone(), lead.clone(), metrics.clone()),
            events: events.clone(),
            scope: scope.clone(),
            limits: limits.run,
            allowed: allowed_addresses.clone(),
            clock: clock.clone(),
        };
        let runs = RunReconciler {
            client: client.clone(),
            controller: Controller::new(sinks.runs.clone(), lead.clone(), metrics.clone()),
            clusters: sinks.clusters.clone(),
            pipelines: sinks.pipelines.clone(),
            waiters: sinks.waiters.clone(),
            registry: registry.clone(),
            certificates: certificates.clone(),
            events: events.clone(),
            scope: scope.clone(),
            storage,
            runtime,
            allowed: allowed_addresses,
            quota: RunQuota::new(limits.runs_per_namespace.map(|most| most as usize)),
            driven: Arc::new(Driven::new(driven::room(limits.run_memory))),
            limits,
            missing: pauses.missing,
            bounds: pauses.bounds,
            removals: Arc::new(Semaphore::new(removal::CLUSTERS)),
            clock: clock.clone(),
        };
        let clusters = ClusterReconciler {
            most_workers: limits.workers_per_cluster,
            missing: pauses.missing,
            orphans: pauses.orphans,
            bounds: pauses.bounds,
            client,
            settings: build::Settings { image, runtime: runtime.zip, runtime_digest: runtime.digest, operator },
            controller: Controller::new(sinks.clusters, lead, metrics),
            certificates,
            registry,
            events,
            scope,
            clock,
        };
        Self { clusters: Arc::new(clusters), runs: Arc::new(runs), pipelines: Arc::new(pipelines) }
    }
}

/// Ends when it is told, or nobody is left to tell.
async fn told(mut stop: tokio::sync::watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// Starts the watches that the namespaces need. The scope, and what tells that first lists are complete.
fn watches(
    client: &Client,
    namespaces: &Namespaces,
    sinks: &Sinks,
    background: &mut JoinSet<()>,
) -> (Scope, Vec<oneshot::Receiver<()>>) {
    match namespaces {
        Namespaces::All => (Scope::All, watch::start(client, sinks, None, background)),
        Namespaces::Names(names) => {
            let served = Arc::new(Mutex::new(BTreeSet::new()));
            let mut waits = Vec::new();
            for name in names {
                let lists = watch::start(client, sinks, Some(name), background);
                let (told, wait) = oneshot::channel();
                waits.push(wait);
                let (name, served, sinks) = (name.clone(), served.clone(), sinks.clone());
                background.spawn(async move {
                    synced(lists).await;
                    scope::join(&served, &name, &sinks);
                    // Nobody waits any more if that took long.
                    let _ = told.send(());
                    std::future::pending::<()>().await;
                });
            }
            (Scope::Named(served), waits)
        }
        Namespaces::Selector(selector) => {
            let mut waits = watch::start(client, sinks, None, background);
            let (told, wait) = oneshot::channel();
            waits.push(wait);
            let names = Arc::new(Mutex::new(BTreeSet::new()));
            let follow = scope::follow_selector(client.clone(), selector.clone(), names.clone(), sinks.clone(), told);
            background.spawn(follow);
            (Scope::Matching(names), waits)
        }
    }
}

async fn synced(waits: Vec<oneshot::Receiver<()>>) {
    for wait in waits {
        // A watch that ended is found by whoever waits for it.
        if wait.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
