//! Whose turn it is: objects to look at, namespace by namespace in turn, in each first come first served, each object by one
//! worker at a time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use telemetry::metrics::Backlog;

/// Namespace and name of a DaskCluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

/// Keys that wait for their turn, or for a moment. A key that is asked for twice has one turn; one that is asked for while
/// a worker has it gets another turn afterwards. Of the keys that wait, the queue of `kube` takes whichever
/// hashes first, so that one could wait for ever while others are busy.
#[derive(Debug, Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    ready: Ready,
    /// Moments to come. Those that are not their key's `due` any more are left over and mean nothing.
    timers: BinaryHeap<Reverse<(Instant, Key)>>,
    turns: HashMap<Key, Turn>,
    /// How many of `turns` are open.
    open: usize,
    backlog: Backlog,
}

/// Keys that wait for a worker. However many there are of one namespace, those of others have every second turn.
#[derive(Debug, Default)]
struct Ready {
    lanes: HashMap<String, VecDeque<Key>>,
    /// Namespaces with keys, the next one first.
    order: VecDeque<String>,
}

impl Ready {
    fn push_back(&mut self, key: Key) {
        let lane = self.lanes.entry(key.namespace.clone()).or_default();
        if lane.is_empty() {
            self.order.push_back(key.namespace.clone());
        }
        lane.push_back(key);
    }

    fn pop_front(&mut self) -> Option<Key> {
        let namespace = self.order.pop_front()?;
        let lane = self.lanes.get_mut(&namespace)?;
        let key = lane.pop_front();
        if lane.is_empty() {
            self.lanes.remove(&namespace);
        } else {
            self.order.push_back(namespace);
        }
        key
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// What is known of a key that waits or has its turn.
#[derive(Debug, Default)]
struct Turn {
    /// In `ready`, or to be put there when its worker is done.
    wanted: bool,
    running: bool,
    due: Option<Instant>,
    /// `due` was set for work that is left to do, not for a periodic check.
    news: bool,
    /// No turn before then, whoever wishes for one.
    barred: Option<Instant>,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Turn {
    /// Whether something is left to do now.
    fn is_open(&self) -> bool {
        self.wanted || self.running || self.news
    }
}

impl Queue {
    /// A queue that reports how many of its keys have work left to do.
    pub fn new(backlog: Backlog) -> Self {
        Self { inner: Mutex::new(Inner { backlog, ..Inner::default() }), changed: Notify::default() }
    }

    /// The key gets a turn as soon as a worker is free.
    pub fn add(&self, key: Key) {
        self.lock().want(key);
        self.changed.notify_one();
    }

    /// The key gets a turn after `delay`, unless an earlier call of this kind gave it one sooner. Meanwhile it is not
    /// part of the backlog.
    pub fn add_after(&self, key: Key, delay: Duration) {
        self.schedule(key, delay, false);
    }

    /// Like [`Queue::add_after`], for work that is left to do: the key is part of the backlog until its turn has ended.
    pub fn add_soon(&self, key: Key, delay: Duration) {
        self.schedule(key, delay, true);
    }

    fn schedule(&self, key: Key, delay: Duration, news: bool) {
        let due = Instant::now() + delay;
        let mut inner = self.lock();
        let due = inner.change(&key, |turn| {
            turn.news |= news && turn.barred.is_none_or(|barred| barred <= due);
            let due = turn.barred.map_or(due, |barred| due.max(barred));
            turn.due.is_none_or(|earlier| due < earlier).then(|| *turn.due.insert(due))
        });
        if let Some(due) = due {
            inner.timers.push(Reverse((due, key)));
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// The key, which has its turn now, gets none before `pause` is over, and one then.
    pub fn bar(&self, key: &Key, pause: Duration) {
        let until = Instant::now() + pause;
        let mut inner = self.lock();
        inner.change(key, |turn| {
            (turn.wanted, turn.news, turn.due, turn.barred) = (false, false, Some(until), Some(until));
        });
        inner.timers.push(Reverse((until, key.clone())));
    }

    /// The next key whose turn it is; [`Queue::done`] must follow. Losing the future loses nothing.
    pub async fn next(&self) -> Key {
        loop {
            let wait = {
                let mut inner = self.lock();
                inner.expire(Instant::now());
                if let Some(key) = inner.take() {
                    let more = !inner.ready.is_empty();
                    drop(inner);
                    // One notice may have stood for several keys.
                    if more {
                        self.changed.notify_one();
                    }
                    return key;
                }
                inner.timers.peek().map(|Reverse((due, _))| *due)
            };
            match wait {
                Some(due) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(due) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// The turn of a key has ended.
    pub fn done(&self, key: &Key) {
        let mut inner = self.lock();
        let (wanted, due) = inner.change(key, |turn| {
            turn.running = false;
            (turn.wanted, turn.due)
        });
        if wanted {
            inner.ready.push_back(key.clone());
            drop(inner);
            self.changed.notify_one();
        } else if due.is_none() {
            inner.turns.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is whole before anything in it can panic.
        self.inner.lock()
    }
}

impl Inner {
    /// Changes the state of a key and keeps the count of open ones.
    fn change<R>(&mut self, key: &Key, how: impl FnOnce(&mut Turn) -> R) -> R {
        let turn = self.turns.entry(key.clone()).or_default();
        let before = turn.is_open();
        let result = how(turn);
        match (before, turn.is_open()) {
            (false, true) => self.open += 1,
            (true, false) => self.open -= 1,
            _ => return result,
        }
        self.backlog.set(self.open);
        result
    }

    fn want(&mut self, key: Key) {
        let is_new = self.change(&key, |turn| {
            let barred = turn.barred.is_some_and(|until| Instant::now() < until);
            !barred && !std::mem::replace(&mut turn.wanted, true) && !turn.running
        });
        if is_new {
            self.ready.push_back(key);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(Reverse((due, _))) = self.timers.peek()
            && *due <= now
            && let Some(Reverse((due, key))) = self.timers.pop()
        {
            let Some(turn) = self.turns.get_mut(&key) else { continue };
            if turn.due == Some(due) {
                turn.due = None;
                self.want(key);
            }
        }
    }

    /// A turn takes all that was wished for until now, also a later moment: the worker says when it wants to come back.
    fn take(&mut self) -> Option<Key> {
        let key = self.ready.pop_front()?;
        self.change(&key, |turn| *turn = Turn { running: true, ..Turn::default() });
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("n", name)
    }

    async fn next(queue: &Queue) -> Option<String> {
        let key = tokio::time::timeout(Duration::from_millis(1), queue.next()).await.ok()?;
        Some(key.name)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_come_is_the_first_served_and_each_once() {
        let queue = Queue::default();
        for name in ["b", "a", "b", "c"] {
            queue.add(key(name));
        }
        for name in ["b", "a", "c"] {
            assert_eq!(next(&queue).await.as_deref(), Some(name));
        }
        assert_eq!(next(&queue).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_with_many_keys_does_not_hold_up_the_others() {
        let queue = Queue::default();
        for n in 0..500 {
            queue.add(Key::new("many", n.to_string()));
        }
        queue.add(Key::new("few", "a"));
        queue.add(Key::new("few", "b"));
        let mut turns = Vec::new();
        for _ in 0..502 {
            turns.push(queue.next().await);
        }
        let place = |key: &Key| turns.iter().position(|turn| turn == key).unwrap();
        assert_eq!([place(&Key::new("few", "a")), place(&Key::new("few", "b"))], [1, 3]);
        let many: Vec<String> =
            turns.iter().filter(|key| key.namespace == "many").map(|key| key.name.clone()).collect();
        assert_eq!(many, (0..500).map(|n| n.to_string()).collect::<Vec<_>>(), "in their order");
        assert!(queue.lock().ready.lanes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_never_worked_on_twice_at_once_and_no_wish_is_lost() {
        let queue = Queue::default();
        queue.add(key("a"));
        assert_eq!(next(&queue).await.as_deref(), Some("a"));
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(next(&queue).await.as_deref(), Some("b"), "a has a worker");
        queue.done(&key("a"));
        assert_eq!(next(&queue).await.as_deref(), Some("a"));
        queue.done(&key("a"));
        queue.done(&key("b"));
        assert!(queue.lock().turns.is_empty(), "nothing is kept of keys that nobody waits for");
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_moment_counts_and_a_turn_takes_the_later_ones() {
        let queue = Queue::default();
        queue.add_after(key("a"), Duration::from_secs(9));
        queue.add_after(key("a"), Duration::from_secs(5));
        queue.add_after(key("a"), Duration::from_secs(7));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(next(&queue).await, None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(next(&queue).await.as_deref(), Some("a"));
        queue.done(&key("a"));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(next(&queue).await, None, "what was left of the other wishes means nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_barred_has_no_turn_before_its_time_and_others_have_theirs() {
        let queue = Queue::default();
        queue.add(key("a"));
        assert_eq!(next(&queue).await.as_deref(), Some("a"));
        queue.add(key("a"));
        queue.bar(&key("a"), Duration::from_secs(60));
        queue.done(&key("a"));
        queue.add(key("a"));
        queue.add_after(key("a"), Duration::from_secs(1));
        queue.add(key("b"));
        assert_eq!(next(&queue).await.as_deref(), Some("b"));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(next(&queue).await, None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(next(&queue).await.as_deref(), Some("a"));
        queue.done(&key("a"));
        queue.add(key("a"));
        assert_eq!(next(&queue).await.as_deref(), Some("a"), "it is barred no more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_backlog_until_the_turn_that_follows_its_news_has_ended() {
        let queue = Queue::default();
        let open = |queue: &Queue| {
            let inner = queue.lock();
            assert_eq!(inner.open, inner.turns.values().filter(|turn| turn.is_open()).count());
            inner.open
        };
        queue.add_after(key("a"), Duration::from_secs(60));
        assert_eq!(open(&queue), 0, "a look from time to time is no work");
        queue.add_soon(key("a"), Duration::from_secs(1));
        queue.add(key("b"));
        queue.add(key("b"));
        assert_eq!(open(&queue), 2);
        assert_eq!(queue.next().await.name, "b");
        queue.add_soon(key("b"), Duration::from_secs(5));
        queue.done(&key("b"));
        assert_eq!(open(&queue), 2, "b has news since its turn began");
        assert_eq!([queue.next().await.name, queue.next().await.name], ["a", "b"]);
        assert_eq!(open(&queue), 2, "both are at work");
        queue.done(&key("a"));
        queue.bar(&key("b"), Duration::from_secs(60));
        queue.done(&key("b"));
        queue.add_soon(key("b"), Duration::from_secs(1));
        queue.add(key("b"));
        assert_eq!(open(&queue), 0, "one that is barred has nothing to do now");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_workers_are_woken_by_moments_and_by_keys() {
        let queue = std::sync::Arc::new(Queue::default());
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await.name })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.add_after(key("late"), Duration::from_secs(3));
        queue.add(key("a"));
        queue.add(key("b"));
        let mut names = Vec::new();
        for worker in workers {
            names.push(worker.await.unwrap());
        }
        names.sort();
        assert_eq!(names, ["a", "b", "late"]);
    }
}
