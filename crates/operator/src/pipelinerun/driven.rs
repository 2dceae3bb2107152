//! How much memory runs in progress take together. A run that would be too much waits. When one grows, the youngest have to
//! wait: what drives them ends, their steps on the scheduler go on, and they are opened again when there is room.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};

use crate::queue::Key;
use telemetry::process;

/// Runs in progress, and those that wait for memory.
#[derive(Debug)]
pub(crate) struct Driven {
    /// Bytes of all together. A run that needs more has them all, and is alone.
    most: usize,
    runs: Mutex<Runs>,
}

/// The older ones come first.
type Place = (Timestamp, Key);

#[derive(Debug, Default)]
struct Runs {
    created: HashMap<Key, Timestamp>,
    by: BTreeMap<Place, Run>,
    /// Bytes of those that are in progress.
    taken: usize,
}

#[derive(Debug, Default)]
struct Run {
    bytes: usize,
    goes: bool,
}

/// Why a run waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crowded {
    /// Runs in progress, their bytes, and how many they may have.
    pub others: usize,
    pub taken: usize,
    pub most: usize,
    /// Older runs that wait, too.
    pub before: usize,
}

/// Bytes for runs in progress: `asked`, or what the container's limit leaves.
pub(crate) fn room(asked: Option<u64>) -> usize {
    let limit = process::memory_limit().and_then(|limit| usize::try_from(limit).ok());
    let left = |limit: usize| limit.saturating_sub(limits::BESIDES_RUNS).max(limits::RUNS_IN_PROGRESS);
    let asked = asked.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    asked.unwrap_or_else(|| limit.map_or(limits::RUNS_UNLIMITED, left))
}

impl Driven {
    pub fn new(most: usize) -> Self {
        Self { most, runs: Mutex::default() }
    }

    /// Whether there is memory for a run now. Until there is, it is told of.
    pub fn fits(&self, key: &Key, created: Timestamp, bytes: usize) -> Result<(), Crowded> {
        let mut runs = self.lock();
        let fits = self.ask(&mut runs, key, created, bytes);
        if fits.is_ok() {
            runs.remove(key);
        }
        fits
    }

    /// Whether a run may be in progress, now and until others grow; it needs `bytes`, or what it had when it was last.
    pub fn enter(&self, key: &Key, created: Timestamp, bytes: usize) -> Result<(), Crowded> {
        self.ask(&mut self.lock(), key, created, bytes)
    }

    fn ask(&self, runs: &mut Runs, key: &Key, created: Timestamp, bytes: usize) -> Result<(), Crowded> {
        let place = (created, key.clone());
        runs.created.insert(key.clone(), created);
        let known = runs.by.get(&place).map_or(0, |run| run.bytes);
        runs.note(&place, known.max(bytes));
        let goes = match runs.by.get(&place).is_some_and(|run| run.goes) {
            true => !runs.crowded_out(self.most).contains(key),
            false => runs.next(self.most).contains(key),
        };
        runs.admit(&place, goes);
        if goes {
            return Ok(());
        }
        let before = runs.by.range(..place).filter(|(_, run)| !run.goes).count();
        let others = runs.by.values().filter(|run| run.goes).count();
        Err(Crowded { others, taken: runs.taken, most: self.most, before })
    }

    /// How many bytes a run in progress has now. Gives the runs for which that changes something.
    pub fn grows(&self, key: &Key, bytes: usize) -> Vec<Key> {
        let mut runs = self.lock();
        let Some(created) = runs.created.get(key).copied() else { return Vec::new() };
        runs.note(&(created, key.clone()), bytes);
        runs.crowded_out(self.most)
    }

    /// The run needs no memory any more. Gives those that may go on now.
    pub fn leave(&self, key: &Key) -> Vec<Key> {
        let mut runs = self.lock();
        if runs.remove(key) { runs.next(self.most) } else { Vec::new() }
    }

    /// Forgets everything: another process leads.
    pub fn clear(&self) {
        *self.lock() = Runs::default();
    }

    fn lock(&self) -> MutexGuard<'_, Runs> {
        // Each change is whole before anything in it can panic.
        self.runs.lock()
    }
}

impl Runs {
    fn note(&mut self, place: &Place, bytes: usize) {
        let run = self.by.entry(place.clone()).or_default();
        let before = std::mem::replace(&mut run.bytes, bytes);
        if run.goes {
            self.taken = self.taken - before + bytes;
        }
    }

    fn admit(&mut self, place: &Place, goes: bool) {
        let Some(run) = self.by.get_mut(place) else { return };
        match (std::mem::replace(&mut run.goes, goes), goes) {
            (false, true) => self.taken += run.bytes,
            (true, false) => self.taken -= run.bytes,
            (true, true) | (false, false) => {}
        }
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(created) = self.created.remove(key) else { return false };
        let place = (created, key.clone());
        self.admit(&place, false);
        self.by.remove(&place).is_some()
    }

    /// Those in progress for which there is no memory any more: never the oldest.
    fn crowded_out(&self, most: usize) -> Vec<Key> {
        if self.taken <= most {
            return Vec::new();
        }
        let mut taken = 0;
        let over = self.by.iter().filter(|(_, run)| run.goes).enumerate().filter(|(n, (_, run))| {
            taken += run.bytes;
            *n > 0 && taken > most
        });
        over.map(|(_, ((_, key), _))| key.clone()).collect()
    }

    /// Those that wait and may go on: none before an older one.
    fn next(&self, most: usize) -> Vec<Key> {
        let mut taken = self.taken;
        let fits = self.by.iter().filter(|(_, run)| !run.goes).take_while(|(_, run)| {
            let alone = taken == 0;
            taken += run.bytes;
            alone || taken <= most
        });
        fits.map(|((_, key), _)| key.clone()).collect()
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
    fn runs_wait_for_memory_and_the_older_ones_go_first() {
        let driven = Driven::new(100);
        assert_eq!(driven.enter(&key("a"), at(1), 60), Ok(()));
        assert_eq!(driven.enter(&key("a"), at(1), 60), Ok(()), "it has its memory");
        let crowded = |before| Err(Crowded { others: 1, taken: 60, most: 100, before });
        assert_eq!(driven.enter(&key("c"), at(3), 50), crowded(0));
        assert_eq!(driven.enter(&key("d"), at(4), 40), crowded(1), "there is room for it, and an older one waits");
        assert_eq!(driven.enter(&key("b"), at(2), 10), Ok(()), "it is older, and there is room");
        assert_eq!(driven.enter(&key("e"), at(5), 20), crowded_by(2, 70, 2));
        assert_eq!(names(driven.leave(&key("a"))), ["c", "d"]);
        assert_eq!(driven.enter(&key("e"), at(5), 20), crowded_by(1, 10, 2), "not before the older ones");
        assert_eq!(driven.enter(&key("d"), at(4), 40), Ok(()));
        assert_eq!(driven.enter(&key("c"), at(3), 50), Ok(()));
        assert_eq!(driven.enter(&key("e"), at(5), 20), crowded_by(3, 100, 0));
        assert_eq!(names(driven.leave(&key("x"))), [""; 0], "it was never there");
    }

    fn crowded_by(others: usize, taken: usize, before: usize) -> Result<(), Crowded> {
        Err(Crowded { others, taken, most: 100, before })
    }

    #[test]
    fn one_that_is_not_in_progress_yet_takes_no_memory_and_is_told_when_there_is_some() {
        let driven = Driven::new(100);
        for name in ["a", "b"] {
            assert_eq!(driven.fits(&key(name), at(1), 60), Ok(()));
        }
        assert_eq!(driven.enter(&key("a"), at(1), 60), Ok(()));
        assert_eq!(driven.fits(&key("b"), at(1), 60), crowded_by(1, 60, 0));
        assert_eq!(names(driven.leave(&key("a"))), ["b"]);
    }

    #[test]
    fn one_that_needs_more_than_there_is_goes_alone() {
        let driven = Driven::new(100);
        assert_eq!(driven.enter(&key("a"), at(1), 1000), Ok(()));
        assert_eq!(driven.enter(&key("b"), at(2), 1), crowded_by(1, 1000, 0));
        assert_eq!(driven.enter(&key("c"), at(3), 1000), crowded_by(1, 1000, 1));
        assert_eq!(names(driven.leave(&key("a"))), ["b"]);
        assert_eq!(driven.enter(&key("b"), at(2), 1), Ok(()));
        assert_eq!(names(driven.leave(&key("b"))), ["c"]);
        assert_eq!(driven.enter(&key("c"), at(3), 1000), Ok(()));
        assert_eq!(names(driven.leave(&key("c"))), [""; 0]);
        assert!(driven.lock().by.is_empty() && driven.lock().created.is_empty() && driven.lock().taken == 0);
    }

    #[test]
    fn when_one_grows_the_youngest_wait_until_there_is_room_for_what_they_had() {
        let driven = Driven::new(100);
        for (name, second) in [("a", 1), ("b", 2), ("c", 3)] {
            assert_eq!(driven.enter(&key(name), at(second), 30), Ok(()));
        }
        assert_eq!(names(driven.grows(&key("c"), 40)), [""; 0]);
        assert_eq!(names(driven.grows(&key("a"), 50)), ["c"], "the youngest, whoever grows");
        assert_eq!(driven.enter(&key("b"), at(2), 30), Ok(()));
        assert_eq!(driven.enter(&key("c"), at(3), 30), crowded_by(2, 80, 0));
        assert_eq!(driven.enter(&key("c"), at(3), 1), crowded_by(2, 80, 0), "it had 40 before");
        assert_eq!(names(driven.grows(&key("a"), 500)), ["b"], "the oldest always goes on");
        assert_eq!(names(driven.leave(&key("b"))), [""; 0]);
        assert_eq!(names(driven.leave(&key("a"))), ["c"]);
        assert_eq!(driven.enter(&key("c"), at(3), 1), Ok(()));
        assert_eq!(names(driven.grows(&key("x"), 500)), [""; 0], "it is not in progress");
    }
}
