//! How many runs of a namespace may be carried out at once: the others wait, the older ones before the younger.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};

use crate::queue::Key;

/// Counts the runs of each namespace.
#[derive(Debug, Default)]
pub(crate) struct RunQuota {
    /// Runs at once in one namespace; none: as many as there are.
    most: Option<usize>,
    gates: Mutex<HashMap<String, Gate>>,
}

/// Of one namespace.
#[derive(Debug, Default)]
struct Gate {
    inside: HashSet<String>,
    waiting: BTreeSet<(Timestamp, String)>,
}

/// Why a run waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full {
    pub most: usize,
    /// Runs that wait and are older.
    pub before: usize,
}

impl RunQuota {
    pub fn new(most: Option<usize>) -> Self {
        Self { most, gates: Mutex::default() }
    }

    /// Asks for a place, which a run then has until it leaves.
    pub fn enter(&self, key: &Key, created: Timestamp) -> Result<(), Full> {
        let Some(most) = self.most else { return Ok(()) };
        let mut gates = self.lock();
        let gate = gates.entry(key.namespace.clone()).or_default();
        if gate.inside.contains(&key.name) {
            return Ok(());
        }
        let place = (created, key.name.clone());
        let before = gate.waiting.range(..place.clone()).count();
        if gate.inside.len() + before < most {
            gate.waiting.remove(&place);
            gate.inside.insert(key.name.clone());
            Ok(())
        } else {
            gate.waiting.insert(place);
            Err(Full { most, before })
        }
    }

    /// A run that has begun has a place, whatever the limit is now.
    pub fn hold(&self, key: &Key) {
        if self.most.is_some() {
            let mut gates = self.lock();
            let gate = gates.entry(key.namespace.clone()).or_default();
            gate.waiting.retain(|(_, name)| *name != key.name);
            gate.inside.insert(key.name.clone());
        }
    }

    /// The run needs no place any more. Gives those that may have one now.
    pub fn leave(&self, key: &Key) -> Vec<Key> {
        let Some(most) = self.most else { return Vec::new() };
        let mut gates = self.lock();
        let Some(gate) = gates.get_mut(&key.namespace) else { return Vec::new() };
        let was_inside = gate.inside.remove(&key.name);
        let waiting = gate.waiting.len();
        gate.waiting.retain(|(_, name)| *name != key.name);
        if !was_inside && waiting == gate.waiting.len() {
            return Vec::new();
        }
        let free = most.saturating_sub(gate.inside.len());
        let next = gate.waiting.iter().take(free).map(|(_, name)| Key::new(key.namespace.clone(), name.clone()));
        let next = next.collect();
        if gate.inside.is_empty() && gate.waiting.is_empty() {
            gates.remove(&key.namespace);
        }
        next
    }

    /// Forgets everything: another process leads.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Gate>> {
        // Each change is whole before anything in it can panic.
        self.gates.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn key(name: &str) -> Key {
        Key::new("n", name)
    }

    fn names(keys: Vec<Key>) -> Vec<String> {
        keys.into_iter().map(|key| key.name).collect()
    }

    #[test]
    fn the_older_ones_go_first_and_each_namespace_for_itself() {
        let quota = RunQuota::new(Some(1));
        assert_eq!(quota.enter(&key("a"), at(1)), Ok(()));
        assert_eq!(quota.enter(&key("a"), at(1)), Ok(()), "it has its place");
        assert_eq!(quota.enter(&Key::new("other", "a"), at(9)), Ok(()));
        assert_eq!(quota.enter(&key("c"), at(3)), Err(Full { most: 1, before: 0 }));
        assert_eq!(quota.enter(&key("b"), at(2)), Err(Full { most: 1, before: 0 }));
        assert_eq!(quota.enter(&key("c"), at(3)), Err(Full { most: 1, before: 1 }));
        assert_eq!(names(quota.leave(&key("a"))), ["b"]);
        assert_eq!(quota.enter(&key("c"), at(3)), Err(Full { most: 1, before: 1 }), "an older one waits");
        assert_eq!(quota.enter(&key("b"), at(2)), Ok(()));
        assert_eq!(names(quota.leave(&key("a"))), [""; 0], "it has left before");
        assert_eq!(names(quota.leave(&key("b"))), ["c"]);
    }

    #[test]
    fn one_that_has_begun_has_a_place_in_any_case() {
        let quota = RunQuota::new(Some(1));
        quota.hold(&key("a"));
        quota.hold(&key("b"));
        assert_eq!(quota.enter(&key("c"), at(3)), Err(Full { most: 1, before: 0 }));
        assert_eq!(names(quota.leave(&key("a"))), [""; 0], "there is still one");
        assert_eq!(names(quota.leave(&key("b"))), ["c"]);
    }

    #[test]
    fn one_that_goes_while_it_waits_holds_nobody_up() {
        let quota = RunQuota::new(Some(1));
        quota.hold(&key("a"));
        assert!(quota.enter(&key("b"), at(2)).is_err());
        assert!(quota.enter(&key("c"), at(3)).is_err());
        assert_eq!(names(quota.leave(&key("b"))), [""; 0]);
        assert_eq!(names(quota.leave(&key("a"))), ["c"]);
        assert_eq!(quota.enter(&key("c"), at(3)), Ok(()));
        assert_eq!(names(quota.leave(&key("c"))), [""; 0]);
        assert!(quota.lock().is_empty(), "nothing is kept of namespaces without runs");
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let quota = RunQuota::new(None);
        assert!((0..1000).all(|n| quota.enter(&key(&n.to_string()), at(n)).is_ok()));
        assert!(quota.leave(&key("1")).is_empty());
    }
}
