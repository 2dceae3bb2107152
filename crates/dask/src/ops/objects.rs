//! The operation that looks at objects which steps name by their paths (protocol 1).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize, Serializer};

use super::values::item_to_wire;
use super::{Item, Operation, Storage};
use crate::deadlines::Deadlines;

/// `daskade-look`: what is at these paths now. Also before the run is opened.
#[derive(Debug, Clone, Serialize)]
pub struct LookAt<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// Where the run is kept; paths are below it, or URLs.
    pub storage: Storage,
    /// What steps read: one that cannot be looked at counts as one that is not there, for the step itself will tell.
    pub reads: &'a [&'a str],
    /// Where steps keep their outputs.
    pub keeps: &'a [Kept<'a>],
    /// Versions that are looked for in place of what is there, by path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: &'a BTreeMap<String, String>,
}

/// `[path, step, item]`: where the output of a task is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept<'a> {
    /// Below the storage.
    pub path: &'a str,
    /// Whose output.
    pub task: Item,
}

/// Answer of [`LookAt`], each in the order in which it was asked.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SeenObjects {
    /// Versions; `None`: it is not there.
    pub reads: Vec<Option<String>>,
    /// What is there.
    pub keeps: Vec<Option<Seen>>,
    /// It has looked for the versions that were asked for.
    #[serde(default)]
    pub pinned: bool,
}

/// `[version, own]`: an object that is there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "(String, bool)")]
pub struct Seen {
    /// Changes with the object.
    pub version: String,
    /// An attempt of the same task of the same run has written it.
    pub own: bool,
}

impl Operation for LookAt<'_> {
    const OP: &'static str = "daskade-look";
    type Reply = SeenObjects;

    /// One request to the storage for each path.
    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

impl From<(String, bool)> for Seen {
    fn from((version, own): (String, bool)) -> Seen {
        Seen { version, own }
    }
}

impl Serialize for Kept<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(3)?;
        tuple.serialize_element(self.path)?;
        tuple.serialize_element(&self.task.step)?;
        tuple.serialize_element(&item_to_wire(self.task.item))?;
        tuple.end()
    }
}
