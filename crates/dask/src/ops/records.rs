//! What is known about a run, and what the engine adds to it.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::values::{item_from_wire, item_to_wire};
use super::{Json, TaskAddr};
use crate::message::MessageError;
use crate::msgpack::{self, Head, Reader};

/// A run's closing record: state, reason, message, results and what the caller adds.
pub type Final = serde_json::Map<String, serde_json::Value>;

/// State of a run at a cursor.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Never run again while their outputs can be read. Nothing stands before what it was made from.
    pub committed: Vec<Done>,
    /// Tasks of which something was committed that counts no more; those of `committed` have been made again.
    pub invalidated: Vec<Invalidated>,
    /// Those of `committed` that have been made again and have another output than before.
    pub changed: Vec<Item>,
    /// Those of `committed` that an earlier run made: step, item.
    pub adopted: Vec<Item>,
    /// Objects that tasks of `adopted` named by their paths.
    pub named: Vec<NamedObjects>,
    /// Not committed yet; only on a live runtime.
    pub finished: Vec<Done>,
    /// Waiting or running; only on a live runtime.
    pub submitted: Vec<TaskAddr>,
    /// Lengths of mapped steps: step, length.
    pub lengths: Vec<(u32, u32)>,
    /// Skipped tasks.
    pub skipped: Vec<Decided>,
    /// Failed attempts.
    pub failed: Vec<FailedAttempt>,
    /// Attempts that ended with their worker.
    pub lost: Vec<TaskAddr>,
    /// Tasks that failed for good.
    pub refused: Vec<Decided>,
    /// The closing record, if the run was closed.
    #[serde(rename = "final")]
    pub closed: Option<Final>,
    /// Results that are too large to stand in it.
    pub results: Vec<ResultPart>,
}

/// `[name, index, count, text]`: a part of a result that the run ended with, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ResultPart {
    /// Of the result.
    pub name: String,
    /// Which part.
    pub index: u64,
    /// How many parts it has.
    pub count: u64,
    /// JSON text.
    pub text: String,
}

/// Checks how much is to be unpacked of a snapshot, or of what an earlier run has: results of steps are not.
pub(super) fn weigh(snapshot: &[u8], sum: &mut usize, most: usize) -> Result<(), MessageError> {
    let mut reader = Reader::new(snapshot);
    let Head::Map(fields) = reader.head()? else { return Ok(()) };
    for _ in 0..fields {
        let key = reader.value()?;
        match msgpack::text(key) {
            Some(b"committed" | b"finished") => weigh_done(&mut reader, sum)?,
            Some(b"final") => {
                let values = reader.count()?;
                if values > limits::CLOSING_VALUES {
                    return Err(MessageError::TooManyElements { limit: limits::CLOSING_VALUES });
                }
            }
            _ => *sum = sum.saturating_add(reader.count()?),
        }
        if *sum > most {
            return Err(MessageError::TooManyElements { limit: most });
        }
    }
    Ok(())
}

/// Rows of [`Done`]: the fifth field of each is the result.
fn weigh_done(reader: &mut Reader<'_>, sum: &mut usize) -> Result<(), MessageError> {
    let Head::Array(rows) = reader.head()? else { return Ok(()) };
    for _ in 0..rows {
        let Head::Array(fields) = reader.head()? else { continue };
        for field in 0..fields {
            if field == 4 {
                reader.skip()?;
                *sum = sum.saturating_add(1);
            } else {
                *sum = sum.saturating_add(reader.count()?);
            }
        }
    }
    Ok(())
}

/// A task that has an output: `[step, item, attempt, lens, [json]]`; the last is nil without a result, and its number of
/// bytes if it has to be asked for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "DoneRow")]
pub struct Done {
    /// Which attempt.
    pub task: TaskAddr,
    /// Lengths, in the order of [`wire::StepDef::lens`].
    pub lens: Option<Vec<u32>>,
    /// The result, if it was wanted.
    pub json: Option<Json>,
    /// Bytes of the result that stays with the runtime.
    pub away: Option<usize>,
}

/// As it comes.
type DoneRow = (u32, i64, u32, Option<Vec<u32>>, Option<Told>);

/// A result, or its number of bytes.
enum Told {
    Here(Json),
    Away(usize),
}

impl<'de> Deserialize<'de> for Told {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Told, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Told;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[result] or a number of bytes")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Told, E> {
                usize::try_from(bytes).map(Told::Away).map_err(de::Error::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Told, A::Error> {
                let json = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                match seq.next_element::<de::IgnoredAny>()? {
                    None => Ok(Told::Here(json)),
                    Some(_) => Err(de::Error::invalid_length(2, &self)),
                }
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// A task: `[step, item]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "(u32, i64)")]
pub struct Item {
    /// Index of the step.
    pub step: u32,
    /// Index of the item; `None` for a step that is not mapped.
    pub item: Option<u32>,
}

/// `[step, item, [[path, version], …]]`: objects that a task read, and the one that it kept its output in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "(u32, i64, Vec<(String, String)>)")]
pub struct NamedObjects {
    /// Whose.
    pub task: Item,
    /// Path as the step named it, and the version that was there.
    pub versions: Vec<(String, String)>,
}

impl TryFrom<(u32, i64, Vec<(String, String)>)> for NamedObjects {
    type Error = String;

    fn try_from((step, item, versions): (u32, i64, Vec<(String, String)>)) -> Result<NamedObjects, String> {
        Ok(NamedObjects { task: Item::try_from((step, item))?, versions })
    }
}

impl TryFrom<(u32, i64)> for Item {
    type Error = String;

    fn try_from((step, item): (u32, i64)) -> Result<Item, String> {
        Ok(Item { step, item: item_from_wire(item)? })
    }
}

/// A task about which the engine decided: `[step, item, reason, message]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "(u32, i64, String, String)")]
pub struct Decided {
    /// Index of the step.
    pub step: u32,
    /// Index of the item.
    pub item: Option<u32>,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// `[step, item, attempt, class]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "(u32, i64, u32, String)")]
pub struct FailedAttempt {
    /// Which attempt.
    pub task: TaskAddr,
    /// Class of the failure.
    pub class: String,
}

/// What was committed of a task and counts no more: `[step, item, attempt, lost]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "(u32, i64, u32, bool)")]
pub struct Invalidated {
    /// Which attempt had been committed.
    pub task: TaskAddr,
    /// Whether that happened because it was lost.
    pub lost: bool,
}

impl TryFrom<(u32, i64, u32, bool)> for Invalidated {
    type Error = String;

    fn try_from((step, item, attempt, lost): (u32, i64, u32, bool)) -> Result<Invalidated, String> {
        Ok(Invalidated { task: TaskAddr { step, item: item_from_wire(item)?, attempt }, lost })
    }
}

/// A decision of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// How many items a mapped step has.
    Length {
        /// Index of the step.
        step: u32,
        /// How many.
        len: u32,
    },
    /// A task will not run.
    Skipped(Decided),
    /// A task failed for good.
    Refused(Decided),
    /// What was committed of a task counts no more.
    Invalidated(Decided),
}

impl TryFrom<DoneRow> for Done {
    type Error = String;

    fn try_from((step, item, attempt, lens, result): DoneRow) -> Result<Done, String> {
        let (json, away) = match result {
            None => (None, None),
            Some(Told::Here(json)) => (Some(json), None),
            Some(Told::Away(bytes)) => (None, Some(bytes)),
        };
        Ok(Done { task: TaskAddr { step, item: item_from_wire(item)?, attempt }, lens, json, away })
    }
}

impl TryFrom<(u32, i64, String, String)> for Decided {
    type Error = String;

    fn try_from((step, item, reason, message): (u32, i64, String, String)) -> Result<Decided, String> {
        Ok(Decided { step, item: item_from_wire(item)?, reason, message })
    }
}

impl TryFrom<(u32, i64, u32, String)> for FailedAttempt {
    type Error = String;

    fn try_from((step, item, attempt, class): (u32, i64, u32, String)) -> Result<FailedAttempt, String> {
        Ok(FailedAttempt { task: TaskAddr { step, item: item_from_wire(item)?, attempt }, class })
    }
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.step, item_to_wire(self.item)).serialize(serializer)
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, decided) = match self {
            Record::Length { step, len } => return ("length", step, len).serialize(serializer),
            Record::Skipped(decided) => ("skipped", decided),
            Record::Refused(decided) => ("refused", decided),
            Record::Invalidated(decided) => ("invalidated", decided),
        };
        let mut tuple = serializer.serialize_tuple(5)?;
        tuple.serialize_element(kind)?;
        tuple.serialize_element(&decided.step)?;
        tuple.serialize_element(&item_to_wire(decided.item))?;
        tuple.serialize_element(&decided.reason)?;
        tuple.serialize_element(&decided.message)?;
        tuple.end()
    }
}
