//! `daskade operator`: the process in the cluster. Starts its parts, and ends them in an order that leaves nothing half
//! written: first the controllers, then the lease, last the log.

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::{Client, Config, Resource};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

use super::operator_options::OperatorOptions;
use super::{Failure, exit};
use api::{DaskCluster, Pipeline, PipelineRun};
use operator::leader::clock::Clock;
use operator::leader::lead::Lead;
use operator::leader::lease::{self, LeaseSettings};
use operator::{
    apiserver::{crds, own},
    leader::fence::FenceLayer,
};
use runtime_bundle::RUNTIME;
use telemetry::health::Health;
use telemetry::log::{self, Telemetry};
use telemetry::metrics::Metrics;
use telemetry::{panics, server};

/// The work is waiting for others; more threads would only cost memory.
const THREADS_MAX: usize = 4;
/// For passes that are in the middle. With 2 s for the lease and 2.5 s for traces and log, the end takes less than 10 s.
const CONTROLLERS_END: Duration = Duration::from_secs(5);
/// A little more than what the lease allows itself.
const LEASE_END: Duration = Duration::from_millis(2_200);
/// For what still runs on the runtime's threads when everything has ended.
const RUNTIME_END: Duration = Duration::from_millis(200);
/// Why the operator ended; reads after "failed to".
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("start threads: {0}")]
    Runtime(io::Error),
    #[error("listen for signals: {0}")]
    Signals(io::Error),
    #[error("listen on {address} (--listen): {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("find a cluster; run it in a pod, or set KUBECONFIG: {0}")]
    Config(Box<kube::config::InferConfigError>),
    #[error("make a client of the Kubernetes API: {0}")]
    Client(Box<kube::Error>),
    #[error("answer on --listen: {0}")]
    Http(io::Error),
    #[error("run the controllers: {0}")]
    Controllers(#[from] operator::Error),
    #[error("keep {0} running: {1}")]
    Part(&'static str, JoinError),
    #[error("keep {0} running: it ended by itself")]
    Ended(&'static str),
}

/// Runs until it is told to end. Everything that happens after the options were read is told in the log.
pub(super) fn operator(options: OperatorOptions) -> Result<(), Failure> {
    let telemetry =
        log::start(&options.telemetry()).map_err(|error| Failure::environment(format!("failed to {error}")))?;
    let metrics = Arc::new(count_dropped_lines(&telemetry));
    panics::install(metrics.clone());
    let result = run(options, metrics);
    if let Err(error) = &result {
        tracing::error!("failed to {error}");
    }
    telemetry.finish();
    result.map_err(|_| Failure::silent(exit::ENVIRONMENT))
}

fn count_dropped_lines(telemetry: &Telemetry) -> Metrics {
    let dropped = telemetry.dropped();
    Metrics::new(move || u64::try_from(dropped.dropped_lines()).unwrap_or(u64::MAX))
}

fn run(options: OperatorOptions, metrics: Arc<Metrics>) -> Result<(), Error> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("daskade")
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let result = runtime.block_on(serve(options, metrics));
    runtime.shutdown_timeout(RUNTIME_END);
    result
}

async fn serve(options: OperatorOptions, metrics: Arc<Metrics>) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    // The ring provider is the only one that is built in; an error says that it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let address = options.listen;
    let listener = server::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let config = Config::infer().await.map_err(|error| Error::Config(Box::new(error)))?;
    let clock = Clock::default();
    let builder = || ClientBuilder::try_from(config.clone()).map_err(|error| Error::Client(Box::new(error)));
    let client = builder()?.with_layer(&clock).build();
    let own_namespace = options.own_namespace.clone().unwrap_or_else(|| config.default_namespace.clone());

    let health = Arc::new(Health::default());
    health.wait_for("lease", "the lease was not read yet");
    health.wait_for("crds", "the custom resource definitions were not looked for yet");
    let identity = identity();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity, namespace = own_namespace, listen = %address, "operator starts");
    let lease = LeaseSettings {
        namespace: own_namespace.clone(),
        name: options.lease_name.clone(),
        identity,
        duration: options.lease_duration.to_std(),
    };
    if let Ok(pod) = std::env::var("POD_NAME") {
        let (client, namespace) = (client.clone(), own_namespace.clone());
        tokio::spawn(async move { own::log_last_end(client, &namespace, &pod).await });
    }
    let (candidate, lead) = lease::candidate(client.clone(), clock.clone(), lease, health.clone());
    let fence = FenceLayer::new(lead.clone(), metrics.clone());
    let fenced = builder()?.with_layer(&fence).with_layer(&clock).build();

    let (found, definitions) = watch::channel(false);
    let (stop_lease, lease_stops) = watch::channel(false);
    let (stop_controllers, controllers_stop) = watch::channel(false);
    let settings = settings(&options, own_namespace, clock);
    let mut parts = Parts {
        http: tokio::spawn(server::serve(listener, health.clone(), metrics.clone())),
        definitions: tokio::spawn(crds::watch_definitions(client, needed(), health.clone(), found)),
        role: tokio::spawn(report_role(lead.clone(), metrics.clone(), health)),
        lease: tokio::spawn(candidate.run(told(lease_stops))),
        controllers: tokio::spawn(controllers(fenced, settings, lead, definitions, controllers_stop, metrics)),
    };
    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "operator ends");
            Ok(())
        }
        error = parts.first_end() => Err(error),
    };
    tokio::select! {
        () = parts.end(&stop_controllers, &stop_lease) => {}
        name = signals.next() => tracing::warn!(signal = name, "received a second signal; exiting immediately"),
    }
    ended
}

/// The tasks of the process. None ends before it is told to, unless it is broken.
struct Parts {
    http: JoinHandle<io::Result<()>>,
    definitions: JoinHandle<()>,
    role: JoinHandle<()>,
    lease: JoinHandle<()>,
    controllers: JoinHandle<Result<(), operator::Error>>,
}

impl Parts {
    /// Waits until one of them ends, and says why.
    async fn first_end(&mut self) -> Error {
        tokio::select! {
            result = &mut self.http => match result {
                Ok(Ok(())) => Error::Ended("HTTP"),
                Ok(Err(error)) => Error::Http(error),
                Err(error) => Error::Part("HTTP", error),
            },
            result = &mut self.definitions => broken("the watch for definitions", result),
            result = &mut self.role => broken("the note of the role", result),
            result = &mut self.lease => broken("the lease", result),
            result = &mut self.controllers => match result {
                Ok(Ok(())) => Error::Ended("the controllers"),
                Ok(Err(error)) => Error::Controllers(error),
                Err(error) => Error::Part("the controllers", error),
            },
        }
    }

    /// Ends them in order: nobody writes any more when the lease is given back.
    async fn end(&mut self, stop_controllers: &watch::Sender<bool>, stop_lease: &watch::Sender<bool>) {
        stop_controllers.send_replace(true);
        // What has ended was awaited by `first_end`, and must not be again.
        if !self.controllers.is_finished() && timeout(CONTROLLERS_END, &mut self.controllers).await.is_err() {
            tracing::warn!("the controllers did not end in time; they are cut off");
            self.controllers.abort();
        }
        stop_lease.send_replace(true);
        if !self.lease.is_finished() && timeout(LEASE_END, &mut self.lease).await.is_err() {
            tracing::warn!("the lease could not be given back in time; others wait until it runs out");
        }
    }
}

fn broken(part: &'static str, result: Result<(), JoinError>) -> Error {
    result.map_or_else(|error| Error::Part(part, error), |()| Error::Ended(part))
}

/// The controllers start when their definitions are there.
async fn controllers(
    client: Client,
    settings: operator::Settings,
    lead: Lead,
    mut definitions: watch::Receiver<bool>,
    stop: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
) -> Result<(), operator::Error> {
    tokio::select! {
        () = told(stop.clone()) => return Ok(()),
        // The sender lives as long as the process; without it nothing is ever found.
        Ok(_) = definitions.wait_for(|found| *found) => {}
    }
    operator::run(client, settings, lead, told(stop), metrics).await
}

/// Shows in log, metrics and health whether this process leads. Ends with the lease.
async fn report_role(lead: Lead, metrics: Arc<Metrics>, health: Arc<Health>) {
    let mut epochs = lead.epochs();
    loop {
        let epoch = *epochs.borrow_and_update();
        metrics.set_leader(epoch.is_some());
        health.set_leads(epoch.is_some());
        match epoch {
            Some(epoch) => tracing::info!(epoch, "this process leads"),
            None => tracing::info!("this process stands by"),
        }
        if epochs.changed().await.is_err() {
            // Only at the end of the process, when nobody asks any more.
            return std::future::pending().await;
        }
    }
}

/// Ends when `stop` is told, or nobody can tell it any more.
async fn told(mut stop: watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// Kinds that must be there before the controllers start.
fn needed() -> Vec<String> {
    vec![
        DaskCluster::plural(&()).into_owned(),
        Pipeline::plural(&()).into_owned(),
        PipelineRun::plural(&()).into_owned(),
    ]
}

/// No two processes share it: a pod that is restarted keeps its host name.
fn identity() -> String {
    let host =
        std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_else(|_| "daskade".to_owned());
    format!("{host}_{}", uuid::Uuid::new_v4())
}

fn settings(options: &OperatorOptions, own_namespace: String, clock: Clock) -> operator::Settings {
    operator::Settings {
        image: options.image.clone(),
        runtime: RUNTIME,
        namespaces: options.namespaces(),
        own_namespace,
        own_labels: std::env::var_os("KUBERNETES_SERVICE_HOST")
            .map(|_| own::LABELS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        certificate_lifetime: options.certificate_lifetime.to_std(),
        concurrency: options.max_concurrent,
        limits: operator::Limits {
            runs_per_namespace: options.max_runs_per_namespace,
            run_memory: options.max_run_memory,
            workers_per_cluster: options.max_workers_per_cluster,
            run: options.run_limits(),
        },
        storage: options.default_storage(),
        allowed_addresses: options.allow_address.clone(),
        pauses: operator::Pauses::default(),
        clock,
    }
}

/// What tells a process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
        let interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
        Ok(Self { terminate, interrupt })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
