//! The watches: what they show goes into a cache, and the object that it belongs to into a queue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::backoff::jittered;
use super::board::Waiters;
use super::cache::{Body, Cache, Kind, LATE, Listed, PodBody, Record};
use super::follow::Follow;
use super::queue::{Key, Queue};
use crate::api::{DaskCluster, GROUP, Pipeline, PipelineRun};
use crate::cluster::names;
use crate::cluster::pods::read_pod;
use crate::cluster::trouble;
use crate::telemetry::metrics::{self, Backlog, Metrics};
use crate::trigger::{FROZEN_HASH, PIPELINE_LABEL, QUEUED_ANNOTATION, frozen_hash};

/// Objects per page of a list: bounds the memory that a list takes.
const PAGE: u32 = 100;
/// A watch that is silent for so long (and five seconds) is opened anew, in seconds: the longest time for which a dead
/// connection goes unnoticed.
const SILENCE: u32 = 120;
/// Everything is listed anew after about this time: repairs what a watch may have left out. At a thousand clusters a list
/// takes a tenth of a second.
const RESYNC: Duration = Duration::from_secs(15 * 60);
/// News about children are bundled for so long: a pod that starts changes several times at once.
const BUNDLE: Duration = Duration::from_millis(50);

/// Where the watches of one kind, and of what belongs to it, lead.
#[derive(Clone)]
pub(super) struct Sink {
    pub cache: Arc<Cache>,
    pub queue: Arc<Queue>,
}

impl Sink {
    fn new(backlog: Backlog) -> Self {
        Self { cache: Arc::default(), queue: Arc::new(Queue::new(backlog)) }
    }
}

/// Where all watches lead.
#[derive(Clone)]
pub(super) struct Sinks {
    pub clusters: Sink,
    pub pipelines: Sink,
    pub runs: Sink,
    /// Runs that wait for one of these objects.
    pub waiters: Arc<Waiters>,
}

impl Sinks {
    pub fn new(metrics: &Metrics) -> Self {
        let sink = |controller| Sink::new(metrics.backlog(controller));
        Self {
            clusters: sink(metrics::Controller::DaskCluster),
            pipelines: sink(metrics::Controller::Pipeline),
            runs: sink(metrics::Controller::PipelineRun),
            waiters: Arc::default(),
        }
    }

    fn of(&self, kind: Kind) -> &Sink {
        match kind {
            Kind::Pipeline | Kind::RunOf => &self.pipelines,
            Kind::Run => &self.runs,
            Kind::Cluster | Kind::Pod | Kind::Service | Kind::ConfigMap | Kind::NetworkPolicy | Kind::Revision => {
                &self.clusters
            }
        }
    }

    /// Has every known object looked at whose namespace is one of these.
    pub fn look_at(&self, is_one: impl Fn(&str) -> bool) {
        for sink in [&self.clusters, &self.pipelines, &self.runs] {
            for key in sink.cache.keys().into_iter().filter(|key| is_one(&key.namespace)) {
                sink.queue.add(key);
            }
        }
    }
}

/// What the cache keeps of an object; nothing of one that is not ours.
type Reader<T> = fn(&T) -> Option<(Key, Record)>;

/// One kind in one namespace, or in all.
struct Feed {
    sink: Sink,
    /// Of runs: where their Pipelines are told of them.
    follow: Option<Follow>,
    waiters: Option<Arc<Waiters>>,
    kind: Kind,
    namespace: Option<String>,
    /// Told when the first list is complete.
    synced: Option<oneshot::Sender<()>>,
    /// Whether the watch works, as far as was told.
    broken: bool,
}

/// Watches all kinds, in one namespace or in all, by `tasks`. Each of what is returned ends when a first list is complete.
pub(super) fn start(
    client: &Client,
    sinks: &Sinks,
    namespace: Option<&str>,
    tasks: &mut JoinSet<()>,
) -> Vec<oneshot::Receiver<()>> {
    let mut waits = Vec::new();
    let mut feed = |kind: Kind| {
        let (synced, wait) = oneshot::channel();
        waits.push(wait);
        let namespace = namespace.map(ToOwned::to_owned);
        let waiters = kind.is_root().then(|| sinks.waiters.clone());
        let follow = (kind == Kind::Run).then(|| Follow::new(sinks.pipelines.clone(), namespace.clone()));
        Feed { sink: sinks.of(kind).clone(), follow, waiters, kind, namespace, synced: Some(synced), broken: false }
    };
    let config = Config::default().page_size(PAGE).timeout(SILENCE);
    let (label, value) = names::MANAGED_BY;
    let ours = config.clone().labels(&format!("{label}={value}"));

    let objects = |kind: Kind| -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind.resource()),
            None => Api::all_with(client.clone(), &kind.resource()),
        }
    };
    let roots: [(Kind, Reader<DynamicObject>); 3] =
        [(Kind::Cluster, read_cluster), (Kind::Pipeline, read_pipeline), (Kind::Run, read_run)];
    for (kind, read) in roots {
        let (api, config) = (objects(kind), config.clone());
        tasks.spawn(feed(kind).run(move || watcher(api.clone(), config.clone()), read));
    }
    let pods: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let wanted = ours.clone();
    tasks.spawn(feed(Kind::Pod).run(move || watcher(pods.clone(), wanted.clone()), read_pod_record));
    for kind in [Kind::Service, Kind::NetworkPolicy] {
        let (api, wanted) = (objects(kind), ours.clone());
        tasks.spawn(feed(kind).run(move || watcher(api.clone(), wanted.clone()), read_child));
    }
    let maps: Api<PartialObjectMeta<ConfigMap>> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    tasks.spawn(
        feed(Kind::ConfigMap)
            .run(move || watcher(maps.clone(), ours.clone()), |map| read_metadata(&map.metadata, Body::Nothing)),
    );
    waits
}

impl Kind {
    /// All but pods are read and written without types: an object that this version cannot read must not hide the others,
    /// and what is built is JSON.
    pub(super) fn resource(self) -> ApiResource {
        match self {
            Self::Cluster => ApiResource::erase::<DaskCluster>(&()),
            Self::Pipeline => ApiResource::erase::<Pipeline>(&()),
            Self::Run | Self::RunOf => ApiResource::erase::<PipelineRun>(&()),
            Self::Pod => ApiResource::erase::<Pod>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            Self::Revision => ApiResource::erase::<ControllerRevision>(&()),
        }
    }
}

impl Feed {
    /// Never ends; what goes wrong is told once and tried again.
    async fn run<T, S>(mut self, open: impl Fn() -> S, read: Reader<T>)
    where
        T: Resource,
        S: Stream<Item = watcher::Result<Event<T>>> + Send,
    {
        loop {
            let end = Instant::now() + jittered(RESYNC, &(self.kind, Instant::now()));
            let mut events = std::pin::pin!(StreamBackoff::new(open(), watcher::DefaultBackoff::default()));
            let mut listed: Option<Listed> = None;
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    // Not in the middle of a list, which may take longer than that.
                    () = sleep_until(end), if listed.is_none() => break,
                };
                match event {
                    Some(Ok(event)) => self.take(event, &mut listed, read),
                    Some(Err(error)) => self.failed(&error),
                    None => break,
                }
            }
        }
    }

    fn take<T: Resource>(&mut self, event: Event<T>, listed: &mut Option<Listed>, read: Reader<T>) {
        match event {
            Event::Init => {
                *listed = Some(Listed::new());
                if let Some(follow) = &mut self.follow {
                    follow.begin();
                }
            }
            Event::InitApply(object) => {
                if let Some(at) = self.put(&object, read)
                    && let Some(listed) = listed
                {
                    listed.insert(at);
                }
            }
            Event::InitDone => {
                self.works();
                let listed = listed.take().unwrap_or_default();
                for key in self.sink.cache.complete(self.kind, self.namespace.as_deref(), &listed) {
                    self.sink.queue.add_soon(key, BUNDLE);
                }
                if let Some(follow) = &mut self.follow {
                    follow.complete();
                }
                if let Some(synced) = self.synced.take() {
                    // Nobody waits any more when the controllers end.
                    let _ = synced.send(());
                }
            }
            Event::Apply(object) => {
                self.works();
                self.put(&object, read);
            }
            Event::Delete(object) => {
                self.works();
                let meta = object.meta();
                if let Some(follow) = &self.follow {
                    follow.remove(meta);
                }
                let key = if self.kind.is_root() { own(meta) } else { owner(meta).or_else(|| labelled(meta)) };
                let Some(key) = key else { return };
                // A pod that lost the label by which it is watched looks as if it was deleted.
                let name = meta.name.as_deref().unwrap_or_default();
                let doubtful = self.kind == Kind::Pod && meta.deletion_timestamp.is_none();
                if doubtful && self.sink.cache.doubt(self.kind, &key, name, meta.uid.as_deref()) {
                    return self.sink.queue.add_soon(key, self.bundle());
                }
                self.remove(key, meta);
            }
        }
    }

    fn put<T: Resource>(&mut self, object: &T, read: Reader<T>) -> Option<(Key, String)> {
        let meta = object.meta();
        let Some((key, record)) = read(object) else {
            // Not, or no longer, of a cluster.
            if let Some(key) = labelled(meta) {
                self.remove(key, meta);
            }
            return None;
        };
        if let Some(follow) = &mut self.follow {
            follow.put(meta, &record);
        }
        let name = meta.name.clone().unwrap_or_default();
        if self.sink.cache.put(self.kind, &key, &name, record) {
            self.sink.queue.add_soon(key.clone(), self.bundle());
            if let Some(waiters) = &self.waiters {
                waiters.tell(self.kind, &key);
            }
        }
        Some((key, name))
    }

    fn remove(&self, key: Key, meta: &ObjectMeta) {
        let name = meta.name.as_deref().unwrap_or_default();
        if self.sink.cache.remove(self.kind, &key, name, meta.uid.as_deref()) {
            if let Some(waiters) = &self.waiters {
                waiters.tell(self.kind, &key);
            }
            self.sink.queue.add_soon(key, self.bundle());
        }
    }

    fn bundle(&self) -> Duration {
        if self.kind.is_root() { Duration::ZERO } else { BUNDLE }
    }

    fn failed(&mut self, error: &watcher::Error) {
        if !std::mem::replace(&mut self.broken, true) {
            let namespace = self.namespace.as_deref().unwrap_or("*");
            tracing::warn!(kind = %self.kind, namespace, "failed to watch; trying again: {}", WatchText(error));
        }
    }

    fn works(&mut self) {
        if std::mem::replace(&mut self.broken, false) {
            let namespace = self.namespace.as_deref().unwrap_or("*");
            tracing::info!(kind = %self.kind, namespace, "the watch works again");
        }
    }
}

/// What an error of a watch says, without the object that it may quote.
struct WatchText<'a>(&'a watcher::Error);

impl fmt::Display for WatchText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            watcher::Error::InitialListFailed(error) => write!(f, "list: {error}"),
            watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => write!(f, "watch: {error}"),
            watcher::Error::WatchError(status) => write!(f, "watch: {} ({})", status.message, status.code),
            watcher::Error::NoResourceVersion => f.write_str("the answer has no resource version"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "DaskCluster",
            Self::Pipeline => "Pipeline",
            Self::Run | Self::RunOf => "PipelineRun",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::ConfigMap => "ConfigMap",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Revision => "ControllerRevision",
        })
    }
}

/// A DaskCluster as the cache keeps it.
pub(super) fn read_cluster(object: &DynamicObject) -> Option<(Key, Record)> {
    read_root(Kind::Cluster, object)
}

/// A Pipeline as the cache keeps it.
pub(super) fn read_pipeline(object: &DynamicObject) -> Option<(Key, Record)> {
    read_root(Kind::Pipeline, object)
}

/// A PipelineRun as the cache keeps it.
pub(super) fn read_run(object: &DynamicObject) -> Option<(Key, Record)> {
    read_root(Kind::Run, object)
}

/// What is looked at for itself, as the cache keeps it. A run is kept without a pipeline of its own once that is written
/// down elsewhere, or the run has ended: it may be large.
pub(super) fn read_root(kind: Kind, object: &DynamicObject) -> Option<(Key, Record)> {
    let meta = &object.metadata;
    let mut spec = object.data.get("spec").cloned();
    let mut frozen = None;
    let is_over = ["/status/revision", "/status/finishedAt"].iter().any(|at| object.data.pointer(at).is_some());
    if kind == Kind::Run
        && is_over
        && let Some(spec) = spec.as_mut().and_then(Value::as_object_mut)
    {
        spec.remove("pipelineSpec");
        // What its Pipeline decides by is kept.
        let labelled = meta.labels.as_ref().is_some_and(|labels| labels.contains_key(PIPELINE_LABEL));
        frozen = labelled.then(|| frozen_hash(&object.data)).flatten();
    }
    let mut slim = json!({
        "apiVersion": crate::api::API_VERSION,
        "kind": kind.to_string(),
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
            "generation": meta.generation,
            "labels": meta.labels.as_ref().map_or_else(Default::default, |labels| labels.clone()),
            "deletionTimestamp": meta.deletion_timestamp,
        },
        "spec": spec,
        "status": object.data.get("status"),
    });
    if let Some(frozen) = frozen {
        slim[FROZEN_HASH] = json!(frozen);
    }
    if let Some(owners) = &meta.owner_references {
        slim["metadata"]["ownerReferences"] = json!(owners);
    }
    if kind == Kind::Run
        && let Some(queued) = meta.annotations.as_ref().and_then(|all| all.get(QUEUED_ANNOTATION))
    {
        slim["metadata"]["annotations"] = json!({QUEUED_ANNOTATION: queued});
    }
    if kind != Kind::Cluster {
        slim["metadata"]["creationTimestamp"] = json!(meta.creation_timestamp);
        slim["metadata"]["finalizers"] = json!(meta.finalizers.as_deref().unwrap_or_default());
    }
    let uid = meta.uid.clone()?;
    let version = meta.resource_version.clone().unwrap_or_default();
    Some((
        own(meta)?,
        Record { owner: uid.clone(), uid, version, body: json_body(&slim)?, unseen: None, deleted: false },
    ))
}

/// A Service or NetworkPolicy as the cache keeps it.
pub(super) fn read_child(object: &DynamicObject) -> Option<(Key, Record)> {
    let DynamicObject { metadata, data, .. } = object;
    let slim = json!({
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "labels": metadata.labels,
            "ownerReferences": metadata.owner_references,
        },
        "spec": data.get("spec"),
    });
    read_metadata(metadata, json_body(&slim)?)
}

/// A pod as the cache keeps it: as if it were just made. What only its age tells is added when it is looked at.
pub(super) fn read_pod_record(pod: &Pod) -> Option<(Key, Record)> {
    let made = pod.metadata.creation_timestamp.as_ref()?.0;
    let fact = read_pod(pod, made)?;
    let old = fact.created.checked_add(SignedDuration::from_secs(LATE)).ok()?;
    let late = trouble::find(pod, old);
    read_metadata(&pod.metadata, Body::Pod(Box::new(PodBody { fact, late })))
}

pub(super) fn read_metadata(meta: &ObjectMeta, body: Body) -> Option<(Key, Record)> {
    let owner = meta.owner_references.iter().flatten().find(|owner| is_cluster(owner))?;
    let key = Key::new(meta.namespace.clone()?, owner.name.clone());
    let version = meta.resource_version.clone().unwrap_or_default();
    Some((
        key,
        Record { uid: meta.uid.clone()?, version, owner: owner.uid.clone(), body, unseen: None, deleted: false },
    ))
}

pub(super) fn json_body(object: &impl Serialize) -> Option<Body> {
    // What came as JSON can be written as JSON.
    serde_json::to_vec(object).ok().map(|json| Body::Json(json.into_boxed_slice()))
}

fn own(meta: &ObjectMeta) -> Option<Key> {
    Some(Key::new(meta.namespace.clone()?, meta.name.clone()?))
}

/// The DaskCluster that owns an object.
fn owner(meta: &ObjectMeta) -> Option<Key> {
    let owner = meta.owner_references.iter().flatten().find(|owner| is_cluster(owner))?;
    Some(Key::new(meta.namespace.clone()?, owner.name.clone()))
}

/// The DaskCluster that an object names in its labels.
fn labelled(meta: &ObjectMeta) -> Option<Key> {
    let name = meta.labels.as_ref()?.get(names::CLUSTER_LABEL)?;
    Some(Key::new(meta.namespace.clone()?, name.clone()))
}

pub(super) fn is_cluster(owner: &OwnerReference) -> bool {
    owner.kind == "DaskCluster" && owner.api_version.split('/').next() == Some(GROUP)
}
