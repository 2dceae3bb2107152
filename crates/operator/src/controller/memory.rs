//! What a controller remembers of an object from one reconciliation to the next. Nothing in it is needed: without it,
//! everything is found out again.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};

use crate::queue::Key;

/// Of one object of any kind.
#[derive(Debug, Default)]
pub(crate) struct Kept<M> {
    /// Passes in a row that failed.
    pub failures: u32,
    pub memory: M,
}

/// Of all objects of a kind.
#[derive(Debug)]
pub(crate) struct Memories<M> {
    all: Mutex<HashMap<Key, Kept<M>>>,
}

impl<M> Default for Memories<M> {
    fn default() -> Self {
        Self { all: Mutex::default() }
    }
}

impl<M: Default> Memories<M> {
    /// For a reconciliation, which puts it back unless the object is gone. What a reconciliation that panics took is lost.
    pub fn take(&self, key: &Key) -> Kept<M> {
        self.lock().remove(key).unwrap_or_default()
    }

    pub fn put(&self, key: &Key, kept: Kept<M>) {
        self.lock().insert(key.clone(), kept);
    }

    /// Forgets everything; connections to schedulers end.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    pub fn each(&self, mut look: impl FnMut(&M)) {
        self.all.lock().values().for_each(|kept| look(&kept.memory));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Kept<M>>> {
        // Memories are moved in and out as a whole.
        self.all.lock()
    }
}
