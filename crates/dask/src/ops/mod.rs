//! Typed operations: what is asked, what is answered.
//!
//! [`scheduler`] are those of every Dask scheduler, [`runtime`] those that our runtime adds to it.

pub mod cluster;
mod code;
mod earlier;
mod json;
mod leader;
mod objects;
mod pages;
mod records;
mod retention;
pub mod runtime;
pub mod scheduler;
mod values;

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::deadlines::Deadlines;
use super::error::{Error, TEXT_CAP, clean_text};
use super::frame::Limits;
use super::message::{Message, MessageError};

pub use cluster::{Ask, Certificate, ClusterInfo, ClusterWorker, Demand, Drain, Retire, Retired, WatchCluster};
pub use code::{FetchCode, FetchedCode};
pub use earlier::{Adopt, AdoptItem, Earlier, EarlierRun, EarlierRuns};
pub use json::Json;
pub use leader::Leader;
pub use objects::{Kept, LookAt, Seen, SeenObjects};
pub use pages::{NextPage, ReadResults, ResultsPage, SnapshotPage, TaskResult};
pub use records::{Decided, Done, FailedAttempt, Final, Invalidated, Item, NamedObjects, Record, ResultPart, Snapshot};
pub use retention::{
    Discard, Folder, ListObjects, ListReferences, LookStored, LookUser, MarkRemoved, Objects, Part, References, Seal,
    Stored, StoredJournal, User,
};
pub(crate) use runtime::read_installation;
pub use runtime::{
    Accepted, Close, Code, FollowEvents, Forget, Hello, LogObjects, Open, Opened, Output, ReadOutput, Records,
    RuntimeInfo, Settings, Stop, Storage, StoredLogs, Submit, SubmitItem,
};
pub use scheduler::{
    Broadcast, Count, FunctionResult, Identity, Processing, RetireWorkers, RunFunction, SchedulerIdentity, VersionInfo,
    Versions, WorkerInfo,
};
pub(crate) use values::item_from_wire;
pub use values::{TaskAddr, TaskDep};

/// One kind of request. It serialises as the map of its arguments, and exactly those: Dask refuses unknown ones.
pub trait Operation: Serialize {
    /// The operation's name on the wire.
    const OP: &'static str;
    /// What a successful answer holds.
    type Reply: DeserializeOwned;

    /// How long to wait for the answer.
    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.rpc
    }

    /// What the answer may have.
    fn limits(&self) -> Limits {
        Limits::of(limits::ANSWER)
    }

    /// Checks what of the answer would be unpacked, before it is: `most` values.
    fn weigh(_body: &[u8], _most: usize) -> Result<(), MessageError> {
        Ok(())
    }
}

/// Reads the answer to `op`: nil, the two forms of errors, or the typed reply.
pub fn read_reply<R: DeserializeOwned>(op: &'static str, message: &Message) -> Result<R, Error> {
    if message.is_nil() {
        return Err(Error::UnknownOp { op });
    }
    refusal(op, message).map_or_else(|| Ok(message.decode()?), Err)
}

/// The error that a message reports, if it does.
pub(super) fn refusal(op: &'static str, message: &Message) -> Option<Error> {
    let text = |key: &str| message.text(key).map(|text| clean_text(&text, TEXT_CAP));
    match message.text("status").as_deref() {
        Some("uncaught-error" | "error") => {}
        _ => return None,
    }
    Some(match text("reason") {
        Some(reason) => Error::Refused { op, reason, message: text("message").unwrap_or_default() },
        None => Error::Remote {
            op,
            text: text("exception_text").unwrap_or_else(|| "an error without a text".to_owned()),
            traceback: text("traceback_text").unwrap_or_default(),
        },
    })
}

#[cfg(test)]
mod tests;
