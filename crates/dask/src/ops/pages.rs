//! Operations by which a snapshot is read on, and results that stay with the runtime (protocol 1).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::item_from_wire;
use super::{Item, Json, Operation, Snapshot, records};
use crate::deadlines::Deadlines;
use crate::frame::Limits;
use crate::message::MessageError;
use crate::msgpack::{self, Head, Reader};

/// `daskade-snapshot`: the next page of the snapshot of an opened run. Pages are read in order, each once.
#[derive(Debug, Clone, Serialize)]
pub struct NextPage<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// From [`Opened`](super::Opened).
    pub token: &'a str,
    /// Number of the page; the one in the answer to the opening is 0.
    pub page: u64,
}

/// Answer of [`NextPage`].
#[derive(Debug, Clone, Deserialize)]
pub struct SnapshotPage {
    /// Further entries.
    pub snapshot: Snapshot,
    /// There are more pages.
    #[serde(default)]
    pub more: Option<String>,
}

/// `daskade-results`: results of tasks, as many of the first ones as fit into a page.
#[derive(Debug, Clone, Serialize)]
pub struct ReadResults<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// From [`Opened`](super::Opened).
    pub epoch: u64,
    /// Whose.
    pub tasks: &'a [Item],
}

/// Answer of [`ReadResults`], in the order of the question.
#[derive(Debug, Clone, Deserialize)]
pub struct ResultsPage {
    /// At least one.
    pub results: Vec<TaskResult>,
}

/// `[step, item, [json]]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "(u32, i64, (Json,))")]
pub struct TaskResult {
    /// Whose.
    pub task: Item,
    /// The result.
    pub json: Json,
}

impl TryFrom<(u32, i64, (Json,))> for TaskResult {
    type Error = String;

    fn try_from((step, item, (json,)): (u32, i64, (Json,))) -> Result<TaskResult, String> {
        Ok(TaskResult { task: Item { step, item: item_from_wire(item)? }, json })
    }
}

impl Operation for NextPage<'_> {
    const OP: &'static str = "daskade-snapshot";
    type Reply = SnapshotPage;

    fn limits(&self) -> Limits {
        Limits::with_results(limits::PAGE)
    }

    fn weigh(body: &[u8], most: usize) -> Result<(), MessageError> {
        let snapshot = msgpack::find(body, "snapshot")?.unwrap_or_default();
        if snapshot.is_empty() { Ok(()) } else { records::weigh(snapshot, &mut 0, most) }
    }

    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

impl Operation for ReadResults<'_> {
    const OP: &'static str = "daskade-results";
    type Reply = ResultsPage;

    fn limits(&self) -> Limits {
        Limits::with_results(limits::PAGE)
    }

    fn weigh(body: &[u8], most: usize) -> Result<(), MessageError> {
        let Some(results) = msgpack::find(body, "results")? else { return Ok(()) };
        let Head::Array(count) = Reader::new(results).head()? else { return Ok(()) };
        // A row without its result has four values.
        if (count as usize).saturating_mul(4) > most {
            return Err(MessageError::TooManyElements { limit: most });
        }
        Ok(())
    }

    /// It may read the journal.
    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}
