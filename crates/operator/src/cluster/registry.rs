//! What the controller of clusters knows and runs need: which scheduler to speak to, and why there is none.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::apiserver::record::Kind;
use crate::apiserver::waiters::Waiters;
use crate::cluster::link::Target;
use crate::queue::Key;
use api::status::DaskClusterStatus;
use decide::cluster::facts::Issue;
use driver::{ConnectionPool, SchedulerEndpoint};

/// What is known of one cluster.
#[derive(Debug)]
struct Registered {
    endpoint: watch::Sender<Option<SchedulerEndpoint>>,
    /// Of the pod of the scheduler.
    uid: String,
    state: ClusterState,
}

/// How a cluster is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ClusterState {
    /// There is a scheduler to speak to.
    pub reachable: bool,
    /// Why there is none.
    pub scheduler: Option<Issue>,
    /// Why workers are missing.
    pub workers: Option<Issue>,
}

/// Of all clusters.
#[derive(Debug)]
pub(crate) struct SchedulerRegistry {
    clusters: Mutex<HashMap<Key, Registered>>,
    waiters: Arc<Waiters>,
}

impl SchedulerRegistry {
    pub fn new(waiters: Arc<Waiters>) -> Self {
        Self { clusters: Mutex::default(), waiters }
    }

    /// How a cluster is; nothing if it was not looked at yet.
    pub fn state(&self, cluster: &Key) -> Option<ClusterState> {
        self.lock().get(cluster).map(|known| known.state.clone())
    }

    /// The scheduler of a cluster, now and from now on.
    pub fn endpoints(&self, cluster: &Key) -> watch::Receiver<Option<SchedulerEndpoint>> {
        let mut clusters = self.lock();
        if !clusters.contains_key(cluster) {
            // Of those that nobody follows, and that were never or are no more, nothing is known.
            clusters.retain(|_, known| !known.is_vacant());
        }
        clusters.entry(cluster.clone()).or_insert_with(Registered::new).endpoint.subscribe()
    }

    /// Which scheduler a cluster has now.
    pub fn endpoint(&self, cluster: &Key, target: Option<&Target>) {
        self.change(cluster, |known| {
            known.aim(target);
            ClusterState { reachable: target.is_some(), ..known.state.clone() }
        });
    }

    /// What the status of a cluster says.
    pub fn report(&self, cluster: &Key, status: &DaskClusterStatus) {
        let (scheduler, workers) = (issue(status, "SchedulerReady"), issue(status, "WorkersReady"));
        self.change(cluster, |known| ClusterState { reachable: known.state.reachable, scheduler, workers });
    }

    fn change(&self, cluster: &Key, how: impl FnOnce(&mut Registered) -> ClusterState) {
        let mut clusters = self.lock();
        let known = clusters.entry(cluster.clone()).or_insert_with(Registered::new);
        let state = how(known);
        let news = known.state != state;
        known.state = state;
        drop(clusters);
        if news {
            self.waiters.tell(Kind::Cluster, cluster);
        }
    }

    /// The cluster is gone.
    pub fn forget(&self, cluster: &Key) {
        let mut clusters = self.lock();
        let Some(known) = clusters.get_mut(cluster) else { return };
        known.aim(None);
        known.state = ClusterState::default();
        // A follower would miss the next cluster of that name.
        if known.endpoint.is_closed() {
            clusters.remove(cluster);
        }
        drop(clusters);
        self.waiters.tell(Kind::Cluster, cluster);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Registered>> {
        // Each change is whole before anything in it can panic.
        self.clusters.lock()
    }
}

impl Registered {
    fn new() -> Self {
        Self { endpoint: watch::Sender::new(None), uid: String::new(), state: ClusterState::default() }
    }

    /// Nothing is known of the cluster, and nobody follows it.
    fn is_vacant(&self) -> bool {
        self.endpoint.is_closed() && self.endpoint.borrow().is_none() && self.state == ClusterState::default()
    }

    /// Certificates and epoch are replaced in silence; another pod is news.
    fn aim(&mut self, target: Option<&Target>) {
        let Self { endpoint, uid, .. } = self;
        endpoint.send_if_modified(|known| {
            let Some(target) = target else { return known.take().is_some() };
            let generation = known.as_ref().map_or(0, |endpoint| endpoint.generation);
            let same = known.is_some() && *uid == target.uid;
            let generation = if same { generation } else { next_generation() };
            let connections = known
                .as_ref()
                .filter(|_| same)
                .map_or_else(ConnectionPool::default, |endpoint| endpoint.connections.clone());
            uid.clone_from(&target.uid);
            *known = Some(SchedulerEndpoint {
                address: target.address.to_string(),
                tls: target.tls.clone(),
                generation,
                lead: target.lead.clone(),
                install: None,
                connections,
            });
            !same
        });
    }
}

/// A number that no other scheduler of this process has.
fn next_generation() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// What a condition says that is not True.
fn issue(status: &DaskClusterStatus, kind: &str) -> Option<Issue> {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind && condition.status != "True")?;
    let stalled = status.conditions.iter().any(|condition| condition.type_ == "Stalled" && condition.status == "True");
    Some(Issue { reason: found.reason.parse().ok()?, message: found.message.clone(), stalled })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("n", name)
    }

    #[test]
    fn clusters_that_never_were_leave_nothing_in_the_registry() {
        let registry = SchedulerRegistry::new(Arc::default());
        let followed = registry.endpoints(&key("followed"));
        for n in 0..1000 {
            drop(registry.endpoints(&key(&format!("c{n}"))));
        }
        registry.endpoint(&key("known"), None);
        assert!(registry.lock().len() <= 3, "{}", registry.lock().len());
        assert!(registry.lock().contains_key(&key("followed")));
        drop(followed);
    }
}
