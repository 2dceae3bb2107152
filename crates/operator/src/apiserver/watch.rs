//! The watches: what they show goes into a cache, and the object that it belongs to into a queue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::apiserver::cache::Listed;
use crate::apiserver::collection::{Collection, News, SILENCE, WatchError};
use crate::apiserver::follow::Follow;
use crate::apiserver::record::{Body, Kind};
use crate::apiserver::shown::{self, Seen, labelled, own, owner, read_child, read_metadata, read_pod_record};
use crate::apiserver::sink::Sink;
use crate::apiserver::waiters::Waiters;
use crate::backoff::jittered;
use crate::queue::Key;
use api::{DaskCluster, Pipeline, PipelineRun};
use decide::cluster::names;
use telemetry::metrics::{self, Metrics};

/// A watch may be silent for so long before it is opened anew: a little longer than the API server keeps it open.
const SILENT: Duration = Duration::from_secs(SILENCE as u64 + 5);
/// Everything is listed anew after about this time: repairs what a watch may have left out. At a thousand clusters a list
/// takes a tenth of a second.
const RESYNC: Duration = Duration::from_secs(15 * 60);
/// News about children are bundled for so long: a pod that starts changes several times at once.
const BUNDLE: Duration = Duration::from_millis(50);

/// Where all watches lead.
#[derive(Clone)]
pub(crate) struct Sinks {
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

/// Reads an object from its text.
type Reader = fn(&str) -> serde_json::Result<Seen>;

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
pub(crate) fn start(
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
    let (label, value) = names::MANAGED_BY;
    let ours = format!("{label}={value}");
    let collection = |kind: Kind, labels| Collection::new(client, &kind.resource(), namespace, labels);
    let roots: [(Kind, Reader); 3] = [
        (Kind::Cluster, |text| shown::read_root(Kind::Cluster, text)),
        (Kind::Pipeline, |text| shown::read_root(Kind::Pipeline, text)),
        (Kind::Run, |text| shown::read_root(Kind::Run, text)),
    ];
    for (kind, read) in roots {
        tasks.spawn(feed(kind).run(collection(kind, None), read));
    }
    let children: [(Kind, Reader); 3] =
        [(Kind::Pod, read_pod), (Kind::Service, read_other), (Kind::NetworkPolicy, read_other)];
    for (kind, read) in children {
        tasks.spawn(feed(kind).run(collection(kind, Some(&ours)), read));
    }
    tasks.spawn(feed(Kind::ConfigMap).run(collection(Kind::ConfigMap, Some(&ours)).metadata(), read_mark));
    waits
}

fn read_pod(text: &str) -> serde_json::Result<Seen> {
    let pod: Pod = serde_json::from_str(text)?;
    let kept = read_pod_record(&pod);
    Ok(Seen { meta: pod.metadata, kept, of: None })
}

fn read_other(text: &str) -> serde_json::Result<Seen> {
    let object: DynamicObject = serde_json::from_str(text)?;
    let kept = read_child(&object);
    Ok(Seen { meta: object.metadata, kept, of: None })
}

/// Of what is known by its name alone.
fn read_mark(text: &str) -> serde_json::Result<Seen> {
    let object: DynamicObject = serde_json::from_str(text)?;
    let kept = read_metadata(&object.metadata, Body::Nothing);
    Ok(Seen { meta: object.metadata, kept, of: None })
}

impl Kind {
    /// All but pods are read and written without types: an object that this version cannot read must not hide the others,
    /// and what is built is JSON.
    pub(crate) fn resource(self) -> ApiResource {
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
    async fn run(mut self, collection: Collection, read: Reader) {
        let mut backoff = DefaultBackoff::default();
        loop {
            let end = Instant::now() + jittered(RESYNC, &(self.kind, Instant::now()));
            backoff.reset();
            match self.list(&collection, read).await {
                Ok(version) => tokio::select! {
                    () = self.watch(&collection, version, read, &mut backoff) => {}
                    () = sleep_until(end) => {}
                },
                Err(issue) => self.failed(&issue, &mut backoff).await,
            }
        }
    }

    /// Shows all that there is; the version up to which that is so.
    async fn list(&mut self, collection: &Collection, read: Reader) -> Result<String, WatchError> {
        let mut listed = Listed::new();
        if let Some(follow) = &mut self.follow {
            follow.begin();
        }
        let mut walk = collection.walk();
        while walk
            .next(|text| {
                listed.extend(self.put(read(text)?));
                Ok(())
            })
            .await?
        {}
        let version = walk.version()?;
        self.works();
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
        Ok(version)
    }

    /// Shows what happens after a version, until everything has to be listed anew.
    async fn watch(
        &mut self,
        collection: &Collection,
        mut version: String,
        read: Reader,
        backoff: &mut DefaultBackoff,
    ) {
        loop {
            let mut lines = match collection.watch(&version).await {
                Ok(lines) => lines,
                Err(issue) => {
                    self.failed(&issue, backoff).await;
                    if issue.is_expired() {
                        return;
                    }
                    continue;
                }
            };
            while let Ok(got) = timeout(SILENT, lines.next(|line| News::read(line, read))).await {
                let issue = match got {
                    Ok(None) => break,
                    Ok(Some(Ok(news))) => match self.take(news) {
                        Some(shown) => {
                            version = shown;
                            backoff.reset();
                            continue;
                        }
                        None => WatchError::NoVersion,
                    },
                    Ok(Some(Err(issue))) => issue,
                    Err(error) => {
                        self.failed(&WatchError::Watch(error), backoff).await;
                        break;
                    }
                };
                self.failed(&issue, backoff).await;
                if issue.is_expired() {
                    return;
                }
            }
        }
    }

    /// Takes what a watch shows; the version up to which that is, if it has one.
    fn take(&mut self, news: News<Seen>) -> Option<String> {
        let given = |version: Option<String>| version.filter(|version| !version.is_empty());
        match news {
            News::Bookmark(version) => given(Some(version)),
            News::Applied(seen) => {
                let version = given(seen.meta.resource_version.clone())?;
                self.works();
                self.put(seen);
                Some(version)
            }
            News::Deleted(Seen { meta, .. }) => {
                let version = given(meta.resource_version.clone())?;
                self.works();
                self.gone(&meta);
                Some(version)
            }
        }
    }

    fn gone(&self, meta: &ObjectMeta) {
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

    fn put(&mut self, seen: Seen) -> Option<(Key, String)> {
        let Seen { meta, kept, of } = seen;
        let Some((key, record)) = kept else {
            // Not, or no longer, of a cluster.
            if let Some(key) = labelled(&meta) {
                self.remove(key, &meta);
            }
            return None;
        };
        let name = meta.name.unwrap_or_default();
        if let (Some(follow), Some(of)) = (&mut self.follow, of) {
            follow.put(name.clone(), of);
        }
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

    /// Tells what went wrong, unless it is known, and waits a while.
    async fn failed(&mut self, issue: &WatchError, backoff: &mut DefaultBackoff) {
        if !std::mem::replace(&mut self.broken, true) {
            let namespace = self.namespace.as_deref().unwrap_or("*");
            tracing::warn!(kind = %self.kind, namespace, "failed to watch; trying again: {issue}");
        }
        sleep(backoff.next().unwrap_or(SILENT)).await;
    }

    fn works(&mut self) {
        if std::mem::replace(&mut self.broken, false) {
            let namespace = self.namespace.as_deref().unwrap_or("*");
            tracing::info!(kind = %self.kind, namespace, "the watch works again");
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
