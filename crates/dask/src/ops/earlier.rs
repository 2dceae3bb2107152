//! Operations about earlier runs: what they committed, and taking outputs over from them (protocol 1).

use std::time::Duration;

use bytes::Bytes;
use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize, Serializer};

use super::values::item_to_wire;
use super::{Accepted, Decided, Done, Item, NamedObjects, Operation, Storage, records};
use crate::deadlines::Deadlines;
use crate::frame::Limits;
use crate::message::MessageError;
use crate::msgpack::{self, Head, Reader};

/// `daskade-earlier`: reads the newest earlier runs of a pipeline, each once. Before the run itself is opened.
#[derive(Debug, Clone, Serialize)]
pub struct Earlier<'a> {
    /// Unique id of the run that asks.
    pub run: &'a str,
    /// Where all of them are.
    pub storage: Storage,
    /// Name of the pipeline.
    pub pipeline: &'a str,
    /// Name or uid of the only run that is wanted.
    pub wanted: Option<&'a str>,
    /// Bytes of results, as JSON, that are taken of all of them: outputs whose results are more are not offered.
    pub results: usize,
    /// Epoch of the operator's leader that asks, if an operator asks: what is read takes the place of what was read for the run before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lead: Option<u64>,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<&'a str>,
}

/// Answer of [`Earlier`].
#[derive(Debug, Clone, Default, Deserialize)]
pub struct EarlierRuns {
    /// Newest first; bounded in number and in bytes of their journals.
    pub runs: Vec<EarlierRun>,
}

/// What a run has left.
#[derive(Debug, Clone, Deserialize)]
pub struct EarlierRun {
    /// Unique id.
    pub uid: String,
    /// For people.
    pub name: String,
    /// Its frozen specification, JSON text.
    pub spec: Bytes,
    /// Digest of its code.
    pub code: String,
    /// In the order of the journal: nothing stands before what it was made from.
    pub committed: Vec<Done>,
    /// Lengths of mapped steps that were not known before the run: step, length.
    pub lengths: Vec<(u32, u32)>,
    /// Skipped tasks.
    pub skipped: Vec<Decided>,
    /// Those of `committed` whose object is not there any more or has another size.
    pub gone: Vec<Item>,
    /// Objects that tasks named by their paths.
    #[serde(default)]
    pub named: Vec<NamedObjects>,
    /// When outputs were made, in the order of `committed`: seconds since 1970.
    #[serde(default)]
    pub made: Vec<f64>,
    /// When its outputs were removed, in seconds since 1970: nothing of it can be taken over.
    #[serde(default)]
    pub removed: Option<f64>,
}

/// `daskade-adopt`: makes outputs of earlier runs, which [`Earlier`] has told of, outputs of this one.
#[derive(Debug, Clone, Serialize)]
pub struct Adopt<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// From [`Opened`](super::Opened).
    pub epoch: u64,
    /// Inputs before what is made from them.
    pub items: &'a [AdoptItem],
}

/// `[step, item, uid, step there, item there]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptItem {
    /// Whose output it becomes.
    pub task: Item,
    /// The earlier run.
    pub uid: String,
    /// Whose output it is there.
    pub theirs: Item,
}

impl Operation for Earlier<'_> {
    const OP: &'static str = "daskade-earlier";
    type Reply = EarlierRuns;

    fn limits(&self) -> Limits {
        Limits::with_results(limits::SNAPSHOT)
    }

    fn weigh(body: &[u8], most: usize) -> Result<(), MessageError> {
        let Some(runs) = msgpack::find(body, "runs")? else { return Ok(()) };
        let mut reader = Reader::new(runs);
        let Head::Array(count) = reader.head()? else { return Ok(()) };
        let mut sum = 0;
        for _ in 0..count {
            records::weigh(reader.value()?, &mut sum, most)?;
        }
        Ok(())
    }

    /// It reads journals.
    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

impl Operation for Adopt<'_> {
    const OP: &'static str = "daskade-adopt";
    type Reply = Accepted;
}

impl Serialize for AdoptItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(5)?;
        tuple.serialize_element(&self.task.step)?;
        tuple.serialize_element(&item_to_wire(self.task.item))?;
        tuple.serialize_element(&self.uid)?;
        tuple.serialize_element(&self.theirs.step)?;
        tuple.serialize_element(&item_to_wire(self.theirs.item))?;
        tuple.end()
    }
}
