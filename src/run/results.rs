//! Results of a run's tasks. They stay packed; some that were looked at are kept unpacked beside that for a while.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::dask::ops::Json;
use crate::graph::TaskId;
use crate::limits;
use crate::pipeline::{ExprError, values_of};

/// A result that the run ends with, if there is room for it among all of them.
pub(super) fn within(room: &mut usize, value: Value) -> Result<Value, ExprError> {
    let most = limits::GATHERED_VALUES;
    let left = room.checked_sub(values_of(&value));
    *room = left.ok_or_else(|| ExprError::evaluation(format!("the results have more than {most} values together")))?;
    Ok(value)
}

#[derive(Debug, Default)]
pub(super) struct Kept {
    by: HashMap<TaskId, One>,
    bytes: usize,
    /// Packed bytes of those that are kept unpacked too.
    unpacked: AtomicUsize,
}

#[derive(Debug)]
struct One {
    packed: Json,
    value: OnceLock<Value>,
}

impl Kept {
    pub fn insert(&mut self, task: TaskId, packed: Json) {
        self.bytes += packed.size();
        if let Some(old) = self.by.insert(task, One { packed, value: OnceLock::new() }) {
            self.bytes -= old.packed.size();
        }
    }

    pub fn get(&self, task: TaskId) -> Option<Cow<'_, Value>> {
        let One { packed, value } = self.by.get(&task)?;
        if let Some(value) = value.get() {
            return Some(Cow::Borrowed(value));
        }
        let size = packed.size();
        if self.unpacked.load(Ordering::Relaxed) + size > limits::RESULTS_UNPACKED {
            return Some(Cow::Owned(packed.value()));
        }
        self.unpacked.fetch_add(size, Ordering::Relaxed);
        Some(Cow::Borrowed(value.get_or_init(|| packed.value())))
    }

    pub fn has(&self, task: TaskId) -> bool {
        self.by.contains_key(&task)
    }

    /// Bytes of all, packed.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes room for others to be kept unpacked, if that is needed.
    pub fn tidy(&mut self) {
        if *self.unpacked.get_mut() > limits::RESULTS_UNPACKED / 2 {
            self.by.values_mut().for_each(|one| drop(one.value.take()));
            *self.unpacked.get_mut() = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::graph::StepIx;

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
}
