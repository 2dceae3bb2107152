//! Operations about what runs that have ended have left in the storage, and its removal (protocol 1).
//!
//! Those that change something name the leader that sends them, as those of a cluster do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Accepted, Final, Operation, Storage};
use crate::deadlines::Deadlines;
use crate::frame::Limits;
use limits::{ANSWER, NAMES};

/// `daskade-stored`: what is left of a run.
#[derive(Debug, Clone, Serialize)]
pub struct LookStored<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// Where it is.
    pub storage: &'a Storage,
    /// The marks are enough.
    pub brief: bool,
}

/// Answer of [`LookStored`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Stored {
    /// Open on this very scheduler.
    pub open: bool,
    /// What is marked as removed.
    pub removed: Vec<Part>,
    /// Nothing if there is none, or none any more, or nobody asked.
    pub journal: Option<StoredJournal>,
}

/// What a journal says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct StoredJournal {
    /// It has a closing record.
    pub closed: bool,
    /// Runs whose objects it has taken over.
    pub origins: Vec<String>,
}

/// What can be removed of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Outputs.
    Outputs,
    /// Journal, logs and code.
    Record,
}

/// A folder of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Folder {
    /// Outputs.
    Data,
    /// Who uses them.
    Refs,
    /// Notes of outputs that have a path of their own.
    Kept,
    /// What steps printed.
    Logs,
    /// Archives.
    Code,
    /// Segments.
    Journal,
}

/// `daskade-references`: who refers to objects of a run, `<uid>/<epoch>` each.
#[derive(Debug, Clone, Serialize)]
pub struct ListReferences<'a> {
    /// Whose objects.
    pub run: &'a str,
    /// Where it is.
    pub storage: &'a Storage,
}

/// Answer of [`ListReferences`].
#[derive(Debug, Clone, Default, Deserialize)]
pub struct References {
    /// Each is new for each opening of a run.
    pub names: Vec<String>,
}

/// `daskade-user`: what a run needs of the objects of another.
#[derive(Debug, Clone, Serialize)]
pub struct LookUser<'a> {
    /// Whose objects.
    pub of: &'a str,
    /// Who may need them.
    pub run: &'a str,
    /// Where both are.
    pub storage: &'a Storage,
}

/// Answer of [`LookUser`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct User {
    /// Its own outputs are removed, or its journal is gone.
    pub removed: bool,
    /// It has ended; one that has not may still take more.
    pub closed: bool,
    /// For people.
    pub name: String,
    /// Objects, relative to the folder of the run that made them.
    pub paths: Vec<String>,
}

/// `daskade-mark`: marks parts of a run as removed. What is not marked cannot be discarded.
#[derive(Debug, Clone, Serialize)]
pub struct MarkRemoved<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// Where it is.
    pub storage: &'a Storage,
    /// Marked already is fine.
    pub what: &'a [Part],
    /// Epoch of the leader that asks.
    pub lead: u64,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<&'a str>,
}

/// `daskade-seal`: closes a journal that was left open, so that nobody writes to it any more.
#[derive(Debug, Clone, Serialize)]
pub struct Seal<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// Where it is.
    pub storage: &'a Storage,
    /// The closing record.
    #[serde(rename = "final")]
    pub closing: &'a Final,
    /// Epoch of the leader that asks.
    pub lead: u64,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<&'a str>,
}

/// `daskade-objects`: what is in a folder of a run, in order.
#[derive(Debug, Clone, Serialize)]
pub struct ListObjects<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// Where it is.
    pub storage: &'a Storage,
    /// Which folder.
    pub folder: Folder,
    /// Only what comes after this path; empty: all.
    pub after: &'a str,
}

/// Answer of [`ListObjects`].
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Objects {
    /// Relative to the run's folder.
    pub paths: Vec<String>,
    /// There are more after the last one.
    pub more: bool,
}

/// `daskade-discard`: removes objects of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Discard<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// Where it is.
    pub storage: &'a Storage,
    /// Relative to the run's folder. Those that are gone do not matter.
    pub paths: &'a [String],
    /// Name of the pipeline whose runs shall not find this one any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<&'a str>,
    /// Epoch of the leader that asks.
    pub lead: u64,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<&'a str>,
}

/// Operations that read or write storage.
macro_rules! slow {
    ($($operation:ident, $name:literal, $reply:ty, $budget:ident;)*) => {$(
        impl Operation for $operation<'_> {
            const OP: &'static str = $name;
            type Reply = $reply;

            fn limits(&self) -> Limits {
                Limits::of($budget)
            }

            fn deadline(deadlines: &Deadlines) -> Duration {
                deadlines.slow
            }
        }
    )*};
}

slow! {
    LookStored, "daskade-stored", Stored, NAMES;
    ListReferences, "daskade-references", References, NAMES;
    LookUser, "daskade-user", User, NAMES;
    MarkRemoved, "daskade-mark", Accepted, ANSWER;
    Seal, "daskade-seal", Accepted, ANSWER;
    ListObjects, "daskade-objects", Objects, NAMES;
    Discard, "daskade-discard", Accepted, ANSWER;
}
