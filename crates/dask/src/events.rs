//! The events of a run, as the runtime streams them.
//!
//! Protocol 1: every message is `{instance, events, seq}`; each event is a map with its kind `k` and, except for log
//! lines, its number `n`, which has no gaps.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::error::{Error, clean_text};
use super::message::{self, MessageError};
use super::msgpack::{self, Head, Reader};
use super::ops::{Item, Json, TaskAddr};

/// Something that happened in a run. Times are seconds since 1970 by the clock of the machine that tells them.
#[derive(Debug, Clone, PartialEq)]
pub enum RuntimeEvent {
    /// An attempt began.
    Started {
        /// Which.
        task: TaskAddr,
        /// Address or name of the worker.
        worker: String,
        /// When.
        at: f64,
    },
    /// An attempt has its output; dependents may start, but a lost scheduler still loses it.
    Finished {
        /// Which.
        task: TaskAddr,
        /// Address or name of the worker.
        worker: String,
        /// When it began.
        began: f64,
        /// When it ended.
        ended: f64,
        /// Bytes of the output.
        size: u64,
        /// Lengths of lists that were asked for.
        lens: Vec<u32>,
        /// The result, if one was wanted. It was not read yet: [`Json::kept`] does.
        json: Option<Json>,
    },
    /// Outputs are durable: these tasks never run again while they can be read.
    Committed {
        /// Which.
        tasks: Vec<TaskAddr>,
        /// Those of `tasks` that were made again and have another output than before.
        changed: Vec<Item>,
        /// Segment of the journal.
        segment: u64,
    },
    /// An attempt failed.
    Failed {
        /// Which.
        task: TaskAddr,
        /// Address or name of the worker.
        worker: String,
        /// When it began.
        began: f64,
        /// When it ended.
        ended: f64,
        /// `app`, `oom`, `timeout`, `data`, `infra`, `preempted` or `input`.
        class: String,
        /// With class `input`: whose committed outputs are lost, of those that are no other ones by now.
        lost: Vec<Item>,
        /// Type of the exception.
        kind: String,
        /// Its message.
        message: String,
        /// Where it was raised.
        traceback: String,
        /// Last log lines.
        tail: Vec<String>,
    },
    /// An attempt ended with its worker.
    Lost {
        /// Which.
        task: TaskAddr,
        /// Address or name of the worker.
        worker: String,
        /// For people.
        message: String,
    },
    /// An attempt was taken back or ended on request.
    Stopped {
        /// Which.
        task: TaskAddr,
    },
    /// Log lines; they have no number and are not replayed.
    Logs {
        /// Address or name of the worker.
        worker: String,
        /// In order.
        lines: Vec<LogLine>,
    },
    /// A worker came or went.
    Worker(WorkerChange),
    /// Tasks of a step cannot be placed now.
    Blocked {
        /// Index of the step.
        step: u32,
        /// How many tasks.
        count: u64,
        /// CamelCase.
        reason: String,
        /// For people.
        message: String,
    },
    /// Tasks of a step can be placed again.
    Unblocked {
        /// Index of the step.
        step: u32,
    },
    /// The storage went away or came back.
    Storage {
        /// Whether it is there.
        up: bool,
        /// For people.
        message: String,
        /// Records that wait to be written.
        pending: u64,
        /// A word for the cause, such as `StorageFull`; may be empty.
        reason: String,
    },
    /// Another writer with a higher epoch took the run.
    Fenced {
        /// Its epoch, if that is known.
        epoch: Option<u64>,
    },
    /// The scheduler, or the run there, is going down.
    Closing {
        /// CamelCase; empty if the scheduler just ends.
        reason: String,
        /// For people.
        message: String,
    },
}

/// One line that a step printed or logged.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// Which attempt.
    pub task: TaskAddr,
    /// When.
    pub at: f64,
    /// `stdout`, `stderr`, `log`, …
    pub stream: String,
    /// Without the line break.
    pub text: String,
}

/// A worker came or went.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerChange {
    /// Came, or went.
    pub added: bool,
    /// Dask address.
    pub address: String,
    /// Dask name.
    pub name: String,
    /// Group, if the name has one.
    pub group: Option<String>,
    /// Threads.
    pub threads: u32,
    /// Dask resources.
    pub resources: BTreeMap<String, f64>,
}

/// The events of one message that were not seen before.
#[derive(Debug, Clone, PartialEq)]
pub struct EventBatch {
    /// In order.
    pub events: Vec<RuntimeEvent>,
    /// Number of the last event so far: continue here after a new connection.
    pub cursor: u64,
    /// Events of a kind that this version does not know; they were skipped.
    pub unknown: u64,
    /// Events that had been delivered before and were skipped.
    pub repeated: u64,
}

/// Number of the last event that there is, from a message of the stream.
pub(super) fn read_last(body: &[u8]) -> Result<u64, Error> {
    let last = msgpack::find(body, "seq")?.and_then(msgpack::unsigned);
    last.ok_or_else(|| Error::protocol("a message of the event stream tells no last number"))
}

/// Reads one message of the stream. `cursor` is the number of the last event that was seen.
pub(super) fn read_batch(body: &Bytes, instance: &str, cursor: u64) -> Result<EventBatch, Error> {
    let field = |key| msgpack::find(body, key).map_err(Error::from);
    match field("instance")?.and_then(msgpack::text) {
        Some(found) if found == instance.as_bytes() => {}
        Some(found) => {
            return Err(Error::InstanceChanged {
                expected: instance.to_owned(),
                found: clean_text(&String::from_utf8_lossy(found), 100),
            });
        }
        None => return Err(Error::protocol("a message of the event stream names no instance")),
    }
    let events = field("events")?.ok_or_else(|| Error::protocol("a message of the event stream has no events"))?;
    let mut reader = Reader::new(events);
    let Head::Array(count) = reader.head()? else {
        return Err(Error::protocol("the events are not an array"));
    };
    // An event takes many bytes, so the count cannot make us reserve much more than the message itself took.
    let mut batch = EventBatch {
        events: Vec::with_capacity((count as usize).min(events.len() / 16).min(limits::EVENTS_UNPACKED / 8)),
        cursor,
        unknown: 0,
        repeated: 0,
    };
    let mut values = 0;
    for _ in 0..count {
        let raw = reader.value()?;
        if let Some(number) = msgpack::find(raw, "n")?.filter(|n| !is_nil(n)) {
            let number = msgpack::unsigned(number).ok_or_else(|| Error::protocol("an event's number is no number"))?;
            if number <= batch.cursor {
                batch.repeated += 1;
                continue;
            }
            if number != batch.cursor + 1 {
                let expected = batch.cursor + 1;
                return Err(Error::protocol(format!("event {number} came where {expected} was due")));
            }
            batch.cursor = number;
        }
        let kind = msgpack::find(raw, "k")?.and_then(msgpack::text);
        let kind = kind.ok_or_else(|| Error::protocol("an event has no kind"))?;
        // Results stay packed.
        let parted = if kind == b"finished" { msgpack::part(raw, "json")? } else { None };
        let (rest, result) = parted.as_ref().map_or((raw, None), |(rest, result)| (&rest[..], Some(*result)));
        values += Reader::new(rest).count()?;
        if values > limits::EVENTS_UNPACKED {
            return Err(MessageError::TooManyElements { limit: limits::EVENTS_UNPACKED }.into());
        }
        match read_event(kind, rest, result.map(|result| Json::unread(body.slice_ref(result))))? {
            Some(event) => batch.events.push(event),
            None => batch.unknown += 1,
        }
    }
    Ok(batch)
}

fn is_nil(value: &[u8]) -> bool {
    value == [0xc0]
}

/// `None`: a kind that we do not know.
fn read_event(kind: &[u8], raw: &[u8], result: Option<Json>) -> Result<Option<RuntimeEvent>, MessageError> {
    fn wire<W: DeserializeOwned + TryInto<RuntimeEvent, Error = String>>(
        raw: &[u8],
    ) -> Result<RuntimeEvent, MessageError> {
        message::decode::<W>(raw)?.try_into().map_err(MessageError::Shape)
    }
    Ok(Some(match kind {
        b"started" => wire::<wire::Started>(raw)?,
        b"finished" => message::decode::<wire::Finished>(raw)?.with(result).map_err(MessageError::Shape)?,
        b"committed" => wire::<wire::Committed>(raw)?,
        b"failed" => wire::<wire::Failed>(raw)?,
        b"lost" => wire::<wire::Lost>(raw)?,
        b"stopped" => wire::<wire::Stopped>(raw)?,
        b"logs" => wire::<wire::Logs>(raw)?,
        b"worker" => wire::<wire::Worker>(raw)?,
        b"blocked" => wire::<wire::Blocked>(raw)?,
        b"unblocked" => wire::<wire::Unblocked>(raw)?,
        b"storage" => wire::<wire::Storage>(raw)?,
        b"fenced" => wire::<wire::Fenced>(raw)?,
        b"closing" => wire::<wire::Closing>(raw)?,
        _ => return Ok(None),
    }))
}

mod wire;

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
