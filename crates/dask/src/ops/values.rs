//! Values that several operations and events share.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// On the wire: a task without items.
const NO_ITEM: i64 = -1;
/// On the wire: all items of a step.
const ALL_ITEMS: i64 = -2;

/// One attempt of one task: `[step, item, attempt]`, item -1 for a step that is not mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskAddr {
    /// Index of the step.
    pub step: u32,
    /// Index of the item; `None` for a step that is not mapped.
    pub item: Option<u32>,
    /// Which attempt, from 1.
    pub attempt: u32,
}

impl TaskAddr {
    /// An address from its parts.
    pub fn new(step: u32, item: Option<u32>, attempt: u32) -> TaskAddr {
        TaskAddr { step, item, attempt }
    }
}

/// What a task waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskDep {
    /// One task, whichever attempt of it finishes.
    Task {
        /// Index of the step.
        step: u32,
        /// Index of the item; `None` for a step that is not mapped.
        item: Option<u32>,
    },
    /// All items of a mapped step.
    All {
        /// Index of the step.
        step: u32,
        /// How many items it has.
        len: u32,
    },
}

pub(crate) fn item_to_wire(item: Option<u32>) -> i64 {
    item.map_or(NO_ITEM, i64::from)
}

pub(crate) fn item_from_wire(item: i64) -> Result<Option<u32>, String> {
    match item {
        NO_ITEM => Ok(None),
        _ => u32::try_from(item).map(Some).map_err(|_| format!("item {item} is out of range")),
    }
}

impl Serialize for TaskAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.step, item_to_wire(self.item), self.attempt).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TaskAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TaskAddr, D::Error> {
        let (step, item, attempt) = <(u32, i64, u32)>::deserialize(deserializer)?;
        let item = item_from_wire(item).map_err(de::Error::custom)?;
        Ok(TaskAddr { step, item, attempt })
    }
}

impl Serialize for TaskDep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            TaskDep::Task { step, item } => (step, item_to_wire(item)).serialize(serializer),
            TaskDep::All { step, len } => {
                let mut tuple = serializer.serialize_tuple(3)?;
                tuple.serialize_element(&step)?;
                tuple.serialize_element(&ALL_ITEMS)?;
                tuple.serialize_element(&len)?;
                tuple.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for TaskDep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TaskDep, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = TaskDep;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[step, item] or [step, -2, length]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TaskDep, A::Error> {
                let step = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let item: i64 = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                let len: Option<u32> = seq.next_element()?;
                match (item, len) {
                    (ALL_ITEMS, Some(len)) => Ok(TaskDep::All { step, len }),
                    (_, None) => Ok(TaskDep::Task { step, item: item_from_wire(item).map_err(de::Error::custom)? }),
                    _ => Err(de::Error::invalid_length(3, &self)),
                }
            }
        }
        deserializer.deserialize_seq(V)
    }
}
