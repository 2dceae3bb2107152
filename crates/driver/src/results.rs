//! Results of a run's tasks. They stay packed; some that were looked at are kept unpacked beside that for a while. What is
//! more than there is room for stays with the runtime, and is fetched when an expression looks at it.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde_json::Value;

use dask::ops::Json;
use engine::{StepIx, TaskId};

use lower::limits::json_size;
use lower::{ExprError, values_of};

/// Room for the results that a run ends with.
#[derive(Debug)]
pub(super) struct Room {
    values: usize,
    bytes: usize,
}

impl Room {
    pub const fn new() -> Self {
        Self { values: limits::GATHERED_VALUES, bytes: limits::CLOSING_RESULTS }
    }

    /// `value`, if there is room for it among all of them.
    pub fn take(&mut self, value: Value) -> Result<Value, ExprError> {
        let (most, bytes) = (limits::GATHERED_VALUES, limits::CLOSING_RESULTS >> 20);
        let left = self.values.checked_sub(values_of(&value));
        let left =
            left.ok_or_else(|| ExprError::evaluation(format!("the results have more than {most} values together")))?;
        let size = json_size(&value, self.bytes);
        self.bytes = self
            .bytes
            .checked_sub(size)
            .ok_or_else(|| ExprError::evaluation(format!("the results have more than {bytes} MiB as JSON together")))?;
        self.values = left;
        Ok(value)
    }
}

#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The runtime keeps all of them too.
    elsewhere: bool,
    by: HashMap<TaskId, One>,
    /// Bytes of those that are here.
    bytes: usize,
    /// Bytes of all, here or not, by step.
    steps: HashMap<StepIx, usize>,
    /// Packed bytes of those that are kept unpacked too.
    unpacked: AtomicUsize,
    /// Some were left with the runtime.
    away: bool,
    /// Of these, those that were fetched, for a while.
    lent: HashMap<TaskId, Json>,
    lent_bytes: usize,
    /// And those that somebody looked for in vain.
    missed: Mutex<BTreeSet<TaskId>>,
}

#[derive(Debug)]
struct One {
    size: usize,
    /// `None`: with the runtime.
    packed: Option<Json>,
    value: OnceLock<Value>,
}

impl Kept {
    /// From here on no more is kept than there is room for: the runtime has all.
    pub fn elsewhere(&mut self) {
        self.elsewhere = true;
    }

    pub fn insert(&mut self, task: TaskId, packed: Json) {
        let size = packed.size();
        if self.elsewhere && self.bytes + size > limits::RESULTS_KEPT {
            return self.insert_away(task, size);
        }
        self.put(task, One { size, packed: Some(packed), value: OnceLock::new() });
    }

    /// One of so many bytes that only the runtime has.
    pub fn insert_away(&mut self, task: TaskId, size: usize) {
        self.away = true;
        self.put(task, One { size, packed: None, value: OnceLock::new() });
    }

    fn put(&mut self, task: TaskId, one: One) {
        let step = self.steps.entry(task.step).or_default();
        *step = step.saturating_add(one.size);
        self.bytes += one.here();
        if let Some(old) = self.by.insert(task, one) {
            self.bytes -= old.here();
            *step = step.saturating_sub(old.size);
        }
    }

    /// Forgets the result of a task that runs again.
    pub fn remove(&mut self, task: TaskId) {
        if let Some(old) = self.by.remove(&task) {
            self.bytes -= old.here();
            if let Some(step) = self.steps.get_mut(&task.step) {
                *step = step.saturating_sub(old.size);
            }
        }
        if let Some(lent) = self.lent.remove(&task) {
            self.lent_bytes -= lent.size();
        }
    }

    pub fn get(&self, task: TaskId) -> Option<Cow<'_, Value>> {
        let One { size, packed, value } = self.by.get(&task)?;
        let Some(packed) = packed else {
            if let Some(lent) = self.lent.get(&task) {
                return Some(Cow::Owned(lent.value()));
            }
            self.missed.lock().insert(task);
            return None;
        };
        if let Some(value) = value.get() {
            return Some(Cow::Borrowed(value));
        }
        if self.unpacked.load(Ordering::Relaxed) + size > limits::RESULTS_UNPACKED {
            return Some(Cow::Owned(packed.value()));
        }
        self.unpacked.fetch_add(*size, Ordering::Relaxed);
        Some(Cow::Borrowed(value.get_or_init(|| packed.value())))
    }

    pub fn has(&self, task: TaskId) -> bool {
        self.by.contains_key(&task)
    }

    /// Bytes of those that are here, packed.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of all of a step.
    pub fn bytes_of(&self, step: StepIx) -> usize {
        self.steps.get(&step).copied().unwrap_or(0)
    }

    /// Whether this one is with the runtime alone.
    pub fn is_away(&self, task: TaskId) -> bool {
        self.by.get(&task).is_some_and(|one| one.packed.is_none())
    }

    /// Whether some are with the runtime alone.
    pub fn any_away(&self) -> bool {
        self.away
    }

    /// Those that were looked for in vain since this was asked last, as far as there is room for them.
    pub fn missed(&mut self) -> Vec<TaskId> {
        let missed = std::mem::take(self.missed.get_mut());
        let mut room = limits::RESULTS_LENT.saturating_sub(self.lent_bytes);
        let fits = missed.into_iter().take_while(|task| {
            let size = self.by.get(task).map_or(0, |one| one.size);
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        });
        fits.collect()
    }

    /// One that was missed.
    pub fn lend(&mut self, task: TaskId, packed: Json) {
        self.lent_bytes += packed.size();
        if let Some(old) = self.lent.insert(task, packed) {
            self.lent_bytes -= old.size();
        }
    }

    /// Makes room for others to be lent, if that is needed.
    pub fn settle_up(&mut self) {
        if self.lent_bytes > limits::RESULTS_LENT - limits::GATHERED_BYTES {
            self.lent.clear();
            self.lent_bytes = 0;
        }
    }

    /// Makes room for others to be kept unpacked, if that is needed.
    pub fn tidy(&mut self) {
        if *self.unpacked.get_mut() > limits::RESULTS_UNPACKED / 2 {
            self.by.values_mut().for_each(|one| drop(one.value.take()));
            *self.unpacked.get_mut() = 0;
        }
    }
}

impl One {
    /// Bytes that it takes here.
    fn here(&self) -> usize {
        if self.packed.is_some() { self.size } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_unpacked_is_bounded_and_all_can_be_read() {
        let mut kept = Kept::default();
        let value = json!(vec![1; 10_000]);
        let task = |item| TaskId::item(StepIx(0), item);
        for item in 0..100 {
            kept.insert(task(item), value.clone().into());
            kept.insert(task(item), value.clone().into());
        }
        assert_eq!(kept.bytes(), 100 * Json::from(value.clone()).size(), "each counts once");
        assert!((0..100).all(|item| kept.get(task(item)).as_deref() == Some(&value)));
        let unpacked = |kept: &Kept| kept.by.values().filter(|one| one.value.get().is_some()).count();
        assert!((1..=limits::RESULTS_UNPACKED / 10_000).contains(&unpacked(&kept)), "{}", unpacked(&kept));
        kept.tidy();
        assert_eq!(unpacked(&kept), 0);
        assert!(kept.has(task(99)) && kept.get(task(100)).is_none());
    }

    #[test]
    fn the_result_of_a_task_that_runs_again_is_forgotten_wherever_it_was() {
        let (mut kept, task) = (Kept::default(), |item| TaskId::item(StepIx(0), item));
        kept.insert(task(0), json!("old").into());
        kept.insert_away(task(1), 9);
        kept.lend(task(1), json!("lent").into());
        assert_eq!(kept.get(task(1)).as_deref(), Some(&json!("lent")));
        kept.remove(task(0));
        kept.remove(task(1));
        assert_eq!((kept.bytes(), kept.bytes_of(StepIx(0)), kept.lent_bytes), (0, 0, 0));
        assert!(kept.get(task(0)).is_none() && !kept.has(task(1)));
        kept.insert_away(task(1), 9);
        assert!(kept.get(task(1)).is_none(), "the new one is not known yet");
        assert_eq!(kept.missed(), [task(1)]);
    }

    #[test]
    fn what_there_is_no_room_for_is_missed_lent_and_given_back() {
        let (mut kept, value) = (Kept::default(), json!("x".repeat(1 << 20)));
        kept.elsewhere();
        let task = |item| TaskId::item(StepIx(0), item);
        let size = Json::from(value.clone()).size();
        for item in 0..200 {
            kept.insert(task(item), value.clone().into());
        }
        assert!(kept.bytes() <= limits::RESULTS_KEPT && kept.any_away());
        assert_eq!(kept.bytes_of(StepIx(0)), 200 * size, "those that are not here count too");
        assert!((0..200).all(|item| kept.has(task(item))) && kept.is_away(task(199)) && !kept.is_away(task(200)));
        assert!((0..200).filter(|item| kept.get(task(*item)).is_none()).count() > 100);
        let missed = kept.missed();
        assert!((40..=limits::RESULTS_LENT / size).contains(&missed.len()), "as many as fit: {}", missed.len());
        assert!(kept.missed().is_empty(), "each is asked for once");
        for task in &missed {
            kept.lend(*task, value.clone().into());
            assert_eq!(kept.get(*task).as_deref(), Some(&value));
        }
        kept.settle_up();
        assert!(kept.get(missed[0]).is_none() && kept.missed() == [missed[0]]);
    }

    #[test]
    fn a_run_ends_with_no_more_than_it_can_write_down() {
        let mut room = Room::new();
        assert!(room.take(json!(vec![0; limits::GATHERED_VALUES])).is_err());
        let text = json!("x".repeat(limits::CLOSING_RESULTS / 2 - 2));
        assert_eq!(room.take(text.clone()), Ok(text.clone()), "what was refused takes no room");
        assert_eq!(room.take(text.clone()), Ok(text.clone()));
        assert!(room.take(text).is_err_and(|error| error.to_string().contains("32 MiB")));
    }
}
