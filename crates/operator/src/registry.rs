//! What the controller of clusters knows and runs need: which scheduler to speak to, and why there is none.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::link::Target;
use super::queue::{Key, Queue};
use super::record::Kind;
use api::condition::CONDITION_REASONS;
use api::status::DaskClusterStatus;
use decide::cluster::facts::Issue;
use driver::{ConnectionPool, SchedulerEndpoint};

/// Runs that want another turn when an object changes. Each is told once: a run that still waits says so again. What is kept
/// is what the runs that are there waited for in their last turn, however many names they have waited for before.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    waiting: Mutex<Waiting>,
    queue: Mutex<Option<Arc<Queue>>>,
}

/// Who waits for what, from both sides.
#[derive(Debug, Default)]
struct Waiting {
    by_object: HashMap<(Kind, Key), HashSet<Key>>,
    by_run: HashMap<Key, HashSet<(Kind, Key)>>,
}

impl Waiting {
    fn remove(&mut self, object: &(Kind, Key), run: &Key) {
        if let Some(runs) = self.by_object.get_mut(object) {
            runs.remove(run);
            if runs.is_empty() {
                self.by_object.remove(object);
            }
        }
    }
}

impl Waiters {
    /// Where those that are told are put.
    pub fn lead_to(&self, queue: Arc<Queue>) {
        *self.queue.lock() = Some(queue);
    }

    /// `run` has its turn, or is gone: it waits for nothing until it says so.
    pub fn leave(&self, run: &Key) {
        let mut waiting = self.lock();
        for object in waiting.by_run.remove(run).into_iter().flatten() {
            waiting.remove(&object, run);
        }
    }

    /// All have their turn again, or never.
    pub fn clear(&self) {
        *self.lock() = Waiting::default();
    }

    /// `run` wants to hear of the next change. Say so before the object is looked at.
    pub fn wait(&self, kind: Kind, of: &Key, run: &Key) {
        let mut waiting = self.lock();
        let object = (kind, of.clone());
        waiting.by_run.entry(run.clone()).or_default().insert(object.clone());
        waiting.by_object.entry(object).or_default().insert(run.clone());
    }

    /// The object has changed, was made or has gone.
    pub fn tell(&self, kind: Kind, of: &Key) {
        let object = (kind, of.clone());
        let mut waiting = self.lock();
        let told = waiting.by_object.remove(&object);
        for run in told.iter().flatten() {
            if let Some(objects) = waiting.by_run.get_mut(run) {
                objects.remove(&object);
                if objects.is_empty() {
                    waiting.by_run.remove(run);
                }
            }
        }
        drop(waiting);
        let queue = self.queue.lock();
        for run in told.into_iter().flatten() {
            if let Some(queue) = &*queue {
                queue.add(run);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Each change is whole before anything in it can panic.
        self.waiting.lock()
    }
}

/// What stands on the registry about one cluster.
#[derive(Debug)]
struct Post {
    endpoint: watch::Sender<Option<SchedulerEndpoint>>,
    /// Of the pod of the scheduler.
    uid: String,
    standing: Standing,
}

/// How a cluster is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Standing {
    /// There is a scheduler to speak to.
    pub seated: bool,
    /// Why there is none.
    pub scheduler: Option<Issue>,
    /// Why workers are missing.
    pub workers: Option<Issue>,
}

/// Of all clusters.
#[derive(Debug)]
pub(super) struct SchedulerRegistry {
    posts: Mutex<HashMap<Key, Post>>,
    waiters: Arc<Waiters>,
}

impl SchedulerRegistry {
    pub fn new(waiters: Arc<Waiters>) -> Self {
        Self { posts: Mutex::default(), waiters }
    }

    /// How a cluster is; nothing if it was not looked at yet.
    pub fn standing(&self, cluster: &Key) -> Option<Standing> {
        self.lock().get(cluster).map(|post| post.standing.clone())
    }

    /// The scheduler of a cluster, now and from now on.
    pub fn endpoints(&self, cluster: &Key) -> watch::Receiver<Option<SchedulerEndpoint>> {
        let mut posts = self.lock();
        if !posts.contains_key(cluster) {
            // Of those that nobody follows, and that were never or are no more, nothing is known.
            posts.retain(|_, post| !post.is_vacant());
        }
        posts.entry(cluster.clone()).or_insert_with(Post::new).endpoint.subscribe()
    }

    /// Which scheduler a cluster has now.
    pub fn endpoint(&self, cluster: &Key, target: Option<&Target>) {
        self.change(cluster, |post| {
            post.aim(target);
            Standing { seated: target.is_some(), ..post.standing.clone() }
        });
    }

    /// What a pass over a cluster tells of it.
    pub fn tell(&self, cluster: &Key, status: &DaskClusterStatus) {
        let (scheduler, workers) = (issue(status, "SchedulerReady"), issue(status, "WorkersReady"));
        self.change(cluster, |post| Standing { seated: post.standing.seated, scheduler, workers });
    }

    fn change(&self, cluster: &Key, how: impl FnOnce(&mut Post) -> Standing) {
        let mut posts = self.lock();
        let post = posts.entry(cluster.clone()).or_insert_with(Post::new);
        let standing = how(post);
        let news = post.standing != standing;
        post.standing = standing;
        drop(posts);
        if news {
            self.waiters.tell(Kind::Cluster, cluster);
        }
    }

    /// The cluster is gone.
    pub fn forget(&self, cluster: &Key) {
        let mut posts = self.lock();
        let Some(post) = posts.get_mut(cluster) else { return };
        post.aim(None);
        post.standing = Standing::default();
        // Whoever follows it would miss the next one of the name.
        if post.endpoint.is_closed() {
            posts.remove(cluster);
        }
        drop(posts);
        self.waiters.tell(Kind::Cluster, cluster);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Post>> {
        // Each change is whole before anything in it can panic.
        self.posts.lock()
    }
}

impl Post {
    fn new() -> Self {
        Self { endpoint: watch::Sender::new(None), uid: String::new(), standing: Standing::default() }
    }

    /// Nothing is known of the cluster, and nobody follows it.
    fn is_vacant(&self) -> bool {
        self.endpoint.is_closed() && self.endpoint.borrow().is_none() && self.standing == Standing::default()
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
    Some(Issue { reason: known_reason(&found.reason)?, message: found.message.clone(), stalled })
}

/// The reason of this name in the table.
pub(super) fn known_reason(name: &str) -> Option<&'static str> {
    CONDITION_REASONS.iter().map(|(known, _)| *known).find(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("n", name)
    }

    impl Waiters {
        /// Objects that are waited for, and runs that wait.
        fn len(&self) -> (usize, usize) {
            let waiting = self.lock();
            (waiting.by_object.len(), waiting.by_run.len())
        }
    }

    /// Issue 13, point 4.
    #[test]
    fn names_that_never_appear_are_kept_only_as_long_as_a_run_waits_for_them() {
        let waiters = Waiters::default();
        for turn in 0..1000 {
            // Each turn it names something else, as runs do that are made one after the other under one name.
            waiters.leave(&key("run"));
            waiters.wait(Kind::Pipeline, &key(&format!("p{turn}")), &key("run"));
            waiters.wait(Kind::Cluster, &key(&format!("c{turn}")), &key("run"));
            waiters.wait(Kind::Cluster, &key("shared"), &key("run"));
        }
        waiters.wait(Kind::Cluster, &key("shared"), &key("other"));
        assert_eq!(waiters.len(), (3, 2));
        waiters.leave(&key("run"));
        assert_eq!(waiters.len(), (1, 1), "the other one still waits");
        waiters.leave(&key("other"));
        waiters.leave(&key("other"));
        assert_eq!(waiters.len(), (0, 0));
    }

    #[test]
    fn whoever_waits_is_told_once_and_leaves_nothing_behind() {
        let waiters = Waiters::default();
        waiters.wait(Kind::Cluster, &key("c"), &key("a"));
        waiters.wait(Kind::Cluster, &key("c"), &key("b"));
        waiters.wait(Kind::Pipeline, &key("c"), &key("b"));
        waiters.tell(Kind::Cluster, &key("c"));
        assert_eq!(waiters.len(), (1, 1));
        waiters.tell(Kind::Cluster, &key("c"));
        waiters.tell(Kind::Pipeline, &key("c"));
        assert_eq!(waiters.len(), (0, 0));
    }

    #[test]
    fn clusters_that_never_were_leave_nothing_on_the_board() {
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
