//! Which runs wait for which objects.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::apiserver::record::Kind;
use crate::queue::{Key, Queue};

/// Runs that want another turn when an object changes. Each is told once: a run that still waits says so again. What is kept
/// is what the runs that are there waited for in their last turn, however many names they have waited for before.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
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
    fn a_waiting_run_is_queued_once_and_leaves_nothing_behind() {
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
}
