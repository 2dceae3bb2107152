//! What the controller of clusters knows and runs need: which scheduler to speak to, and why there is none.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::cache::Kind;
use super::link::Target;
use super::queue::{Key, Queue};
use crate::api::condition::CONDITION_REASONS;
use crate::api::status::DaskClusterStatus;
use crate::cluster::facts::Trouble;
use crate::run::{Lines, Seat};

/// Runs that want another turn when an object changes. Each is told once: a run that still waits says so again.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    by: Mutex<HashMap<(Kind, Key), HashSet<Key>>>,
    queue: Mutex<Option<Arc<Queue>>>,
}

impl Waiters {
    /// Where those that are told are put.
    pub fn lead_to(&self, queue: Arc<Queue>) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(queue);
    }

    /// `run` wants to hear of the next change. Say so before the object is looked at.
    pub fn wait(&self, kind: Kind, of: &Key, run: &Key) {
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        by.entry((kind, of.clone())).or_default().insert(run.clone());
    }

    /// The object has changed, was made or has gone.
    pub fn tell(&self, kind: Kind, of: &Key) {
        let waiting = self.by.lock().unwrap_or_else(PoisonError::into_inner).remove(&(kind, of.clone()));
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        for run in waiting.into_iter().flatten() {
            if let Some(queue) = &*queue {
                queue.add(run);
            }
        }
    }
}

/// What stands on the board about one cluster.
#[derive(Debug)]
struct Post {
    seat: watch::Sender<Option<Seat>>,
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
    pub scheduler: Option<Trouble>,
    /// Why workers are missing.
    pub workers: Option<Trouble>,
}

/// Of all clusters.
#[derive(Debug)]
pub(super) struct Board {
    posts: Mutex<HashMap<Key, Post>>,
    waiters: Arc<Waiters>,
}

impl Board {
    pub fn new(waiters: Arc<Waiters>) -> Self {
        Self { posts: Mutex::default(), waiters }
    }

    /// How a cluster is; nothing if it was not looked at yet.
    pub fn standing(&self, cluster: &Key) -> Option<Standing> {
        self.lock().get(cluster).map(|post| post.standing.clone())
    }

    /// The scheduler of a cluster, now and from now on.
    pub fn seats(&self, cluster: &Key) -> watch::Receiver<Option<Seat>> {
        self.lock().entry(cluster.clone()).or_insert_with(Post::new).seat.subscribe()
    }

    /// Which scheduler a cluster has now.
    pub fn seat(&self, cluster: &Key, target: Option<&Target>) {
        self.change(cluster, |post| {
            post.aim(target);
            Standing { seated: target.is_some(), ..post.standing.clone() }
        });
    }

    /// What a pass over a cluster tells of it.
    pub fn tell(&self, cluster: &Key, status: &DaskClusterStatus) {
        let (scheduler, workers) = (trouble(status, "SchedulerReady"), trouble(status, "WorkersReady"));
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
        if post.seat.is_closed() {
            posts.remove(cluster);
        }
        drop(posts);
        self.waiters.tell(Kind::Cluster, cluster);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Post>> {
        // Each change is whole before anything in it can panic.
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Post {
    fn new() -> Self {
        Self { seat: watch::Sender::new(None), uid: String::new(), standing: Standing::default() }
    }

    /// Certificates and epoch are replaced in silence; another pod is news.
    fn aim(&mut self, target: Option<&Target>) {
        let Self { seat, uid, .. } = self;
        seat.send_if_modified(|known| {
            let Some(target) = target else { return known.take().is_some() };
            let generation = known.as_ref().map_or(0, |seat| seat.generation);
            let same = known.is_some() && *uid == target.uid;
            let generation = if same { generation } else { next_generation() };
            let lines = known.as_ref().filter(|_| same).map_or_else(Lines::default, |seat| seat.lines.clone());
            uid.clone_from(&target.uid);
            *known = Some(Seat {
                address: target.address.to_string(),
                tls: target.tls.clone(),
                generation,
                lead: target.lead,
                foreign: false,
                lines,
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
fn trouble(status: &DaskClusterStatus, kind: &str) -> Option<Trouble> {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind && condition.status != "True")?;
    let stalled = status.conditions.iter().any(|condition| condition.type_ == "Stalled" && condition.status == "True");
    Some(Trouble { reason: known_reason(&found.reason)?, message: found.message.clone(), stalled })
}

/// The reason of this name in the table.
pub(super) fn known_reason(name: &str) -> Option<&'static str> {
    CONDITION_REASONS.iter().map(|(known, _)| *known).find(|known| *known == name)
}
