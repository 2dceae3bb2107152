//! Operations that our runtime adds to a scheduler (protocol 1).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize, Serializer};

use super::{Final, FunctionResult, Json, Operation, Record, RunFunction, Snapshot, TaskAddr, TaskDep, read_reply};
use crate::deadlines::Deadlines;
use crate::error::{Error, TEXT_CAP, clean_text};
use crate::frame::Limits;
use crate::message::{Message, MessageError};
use crate::pickle::Constant;
use crate::{msgpack, ops::records};
use limits::Budget;

/// `daskade-hello`: is the runtime there, and which. [`Error::UnknownOp`](crate::Error::UnknownOp) if not.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Hello {}

/// Answer of [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RuntimeInfo {
    /// Lowest and highest protocol that it speaks.
    pub protocol: (u32, u32),
    /// Digest of its sources.
    pub runtime: String,
    /// New for every scheduler process.
    pub instance: String,
    /// Version of Dask.
    pub dask: String,
    /// Version of Python.
    pub python: String,
    /// Live runs and their epochs.
    pub runs: BTreeMap<String, u64>,
    /// Those of them that an operator opened last. Runtimes of older releases do not tell.
    #[serde(default)]
    pub led: Option<BTreeSet<String>>,
    /// Runs that are being opened.
    #[serde(default)]
    pub opening: BTreeSet<String>,
}

/// `daskade-open`: begins, resumes or takes over a run.
#[derive(Debug, Clone, Serialize)]
pub struct Open {
    /// Unique id.
    pub run: String,
    /// For people and log lines.
    pub name: String,
    /// Must be higher than any before; `None`: the highest plus one.
    pub epoch: Option<u64>,
    /// Epoch of the operator's leader, if an operator drives the run. A stale leader is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lead: Option<u64>,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Whether the run is new: an existing journal is then refused.
    pub create: bool,
    /// Whether a run that was closed may go on; otherwise its closing record is all that is answered.
    pub reopen: bool,
    /// The frozen specification, JSON text.
    #[serde(with = "serde_bytes")]
    pub spec: Vec<u8>,
    /// Digest of `spec`.
    pub spec_digest: String,
    /// Whether the snapshot may come page by page; a runtime of an earlier release sends all of it at once.
    pub pages: bool,
    /// Where the journal and the data go.
    pub storage: Storage,
    /// The user's code.
    pub code: Code,
    /// In the order of their indices.
    pub steps: Vec<wire::StepDef>,
    /// Name of the pipeline: later runs of it find this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// Packages that the steps need, as requirement specifiers: workers look whether they have them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<String>,
    /// The scheduler's image is that of all workers: it looks too, and refuses to open the run if one is missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub same_image: bool,
    /// Bounds.
    pub settings: Settings,
}

/// Where a run's objects go. Credentials are the peer's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Storage {
    /// Such as `s3://bucket/prefix`.
    pub url: String,
    /// Of an S3 service other than AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Region of the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Further ones, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// The user's code as a zip archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Code {
    /// Digest of the archive.
    pub digest: String,
    /// The archive, unless the run has it already.
    #[serde(with = "serde_bytes")]
    pub zip: Option<Vec<u8>>,
}

/// Bounds of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Outputs of up to so many bytes are kept in the journal.
    pub inline_max: u64,
    /// Cache of one worker.
    pub cache_bytes: u64,
    /// Log bytes of one attempt.
    pub log_cap: u64,
    /// Tasks sent to Dask per free slot.
    pub tasks_per_slot: u32,
    /// Versions of objects that steps read in place of those that are there, by path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<String, String>,
}

/// Answer of [`Open`].
#[derive(Debug, Clone, Deserialize)]
pub struct Opened {
    /// What this opening got; give it with every further request.
    pub epoch: u64,
    /// The scheduler process.
    pub instance: String,
    /// Follow events from here.
    pub cursor: u64,
    /// All that is known up to the cursor, or the first page of it.
    pub snapshot: Snapshot,
    /// With this the next page is asked for ([`NextPage`](super::NextPage)).
    #[serde(default)]
    pub more: Option<String>,
    /// The runtime keeps the results of steps, and answers [`ReadResults`](super::ReadResults).
    #[serde(default)]
    pub keeps: bool,
}

/// `daskade-submit`: tasks to start when what they depend on is there. Doing it twice changes nothing.
#[derive(Debug, Clone, Serialize)]
pub struct Submit<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// From [`Opened`].
    pub epoch: u64,
    /// Any number; ten thousand in one message are fine.
    pub items: &'a [SubmitItem],
}

/// `[step, item, attempt, priority, values, data_deps, after_deps]`.
#[derive(Debug, Clone)]
pub struct SubmitItem {
    /// Which attempt.
    pub task: TaskAddr,
    /// Higher first.
    pub priority: i32,
    /// Values of this item for the step's template, msgpack list. Slices of one buffer are fine.
    pub values: Option<Bytes>,
    /// Whose outputs are read.
    pub data_deps: Vec<TaskDep>,
    /// Only waited for.
    pub after_deps: Vec<TaskDep>,
}

/// `daskade-stop`: takes tasks back, or ends them if they run. Each answers with an event `stopped`.
#[derive(Debug, Clone, Serialize)]
pub struct Stop<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// From [`Opened`].
    pub epoch: u64,
    /// Which attempts.
    pub items: &'a [TaskAddr],
}

/// `daskade-record`: appends decisions to the journal, in this order.
#[derive(Debug, Clone, Serialize)]
pub struct Records<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// From [`Opened`].
    pub epoch: u64,
    /// In order.
    pub records: &'a [Record],
}

/// `daskade-close`: writes the closing record; answered once that is durable.
#[derive(Debug, Clone, Serialize)]
pub struct Close<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// From [`Opened`].
    pub epoch: u64,
    /// The closing record.
    #[serde(rename = "final")]
    pub closed: &'a Final,
}

/// `daskade-forget`: drops a run from the scheduler's memory; its journal stays open.
#[derive(Debug, Clone, Serialize)]
pub struct Forget<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// From [`Opened`]: open under another one it stays. None if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Epoch of the operator's leader that asks, if an operator asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lead: Option<u64>,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<&'a str>,
}

/// `daskade-read`: an output.
#[derive(Debug, Clone, Serialize)]
pub struct ReadOutput<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// Index of the step.
    pub step: u32,
    /// Index of the item, -1 for none; see [`ReadOutput::new`].
    item: i64,
    /// Bytes that are wanted at most; a larger output is described without them.
    pub max: u64,
}

impl<'a> ReadOutput<'a> {
    /// Reads the output of one task.
    pub fn new(run: &'a str, step: u32, item: Option<u32>, max: u64) -> ReadOutput<'a> {
        ReadOutput { run, step, item: super::values::item_to_wire(item), max }
    }
}

/// Answer of [`ReadOutput`].
#[derive(Debug, Clone, Deserialize)]
pub struct Output {
    /// How it was serialised.
    pub serializer: String,
    /// Bytes in all.
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub digest: String,
    /// Where it is stored; `None` if it is in the journal.
    pub path: Option<String>,
    /// The serialised bytes, never opened here.
    #[serde(default)]
    pub bytes: Option<Bytes>,
    /// The result, if the step declared one.
    #[serde(default)]
    pub json: Option<Json>,
}

/// `daskade-events`: turns a connection into the stream of a run's events;
/// see [`Connection::follow`](crate::Connection::follow).
#[derive(Debug, Clone, Serialize)]
pub struct FollowEvents {
    /// Unique id of the run.
    pub run: String,
    /// From [`Opened`].
    pub epoch: u64,
    /// Events after this one; none: those from now on, for one who looks on and holds no events back.
    pub since: Option<u64>,
    /// The scheduler process that `since` belongs to.
    pub instance: String,
    /// How many events may be on the way without being acknowledged.
    pub window: u32,
    /// Seconds between signs of life.
    pub beat: f64,
    /// Whether log lines are wanted.
    pub logs: bool,
}

impl FollowEvents {
    /// Events after `since`, 4000 in flight, a beat every five seconds, without logs.
    pub fn new(run: &str, epoch: u64, since: u64, instance: &str) -> FollowEvents {
        FollowEvents {
            run: run.to_owned(),
            epoch,
            since: Some(since),
            instance: instance.to_owned(),
            window: 4000,
            beat: 5.0,
            logs: false,
        }
    }

    /// Events and log lines from now on, for one who looks on.
    pub fn looking_on(run: &str, epoch: u64, instance: &str) -> FollowEvents {
        FollowEvents { since: None, logs: true, ..FollowEvents::new(run, epoch, 0, instance) }
    }
}

/// `daskade-logs`: log objects of an open run as its storage has them, in order of their keys.
#[derive(Debug, Clone, Serialize)]
pub struct StoredLogs {
    /// Unique id of the run.
    pub run: String,
    /// Only those with a key beyond this one.
    pub after: Option<String>,
}

/// Answer of [`StoredLogs`]: about four megabytes, or one object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LogObjects {
    /// Keys and contents.
    pub objects: Vec<(String, serde_bytes::ByteBuf)>,
    /// Whether there are more after the last one.
    pub more: bool,
}

impl Operation for StoredLogs {
    const OP: &'static str = "daskade-logs";
    type Reply = LogObjects;

    fn limits(&self) -> Limits {
        Limits::of(limits::LOGS)
    }

    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

/// Source of a function that takes an archive of the runtime and its digest, and installs it.
const INSTALL: &str = include_str!("install.py");

impl RunFunction {
    /// Loads the runtime from a zip of its package into the scheduler's process and starts it there.
    pub(crate) fn install(archive: &[u8], digest: &str) -> RunFunction {
        let args = [Constant::Bytes(archive), Constant::Text(digest)];
        RunFunction::from_source(INSTALL, "main", "<daskade>", &args)
    }
}

/// What the installation answers, as JSON in bytes: the only result of a function that can be read without unpickling.
#[derive(Debug, Deserialize)]
struct Installation {
    status: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// Reads the answer to [`RunFunction::install`].
pub(crate) fn read_installation(answer: &Message) -> Result<(), Error> {
    let op = RunFunction::OP;
    let result: FunctionResult = read_reply(op, answer)?;
    let bytes = answer.payload(&result.result)?.into_bytes()?;
    let answer: Installation = serde_json::from_slice(&bytes)
        .map_err(|e| MessageError::Shape(clean_text(&format!("the answer of the installation: {e}"), TEXT_CAP)))?;
    match answer.status.as_str() {
        "OK" => Ok(()),
        _ => Err(Error::Refused {
            op,
            reason: clean_text(&answer.reason.unwrap_or_else(|| "InstallFailed".to_owned()), TEXT_CAP),
            message: clean_text(&answer.message.unwrap_or_default(), TEXT_CAP),
        }),
    }
}

/// The answer of operations that answer nothing but that it worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(from = "IgnoredAny")]
pub struct Accepted;

impl Operation for Hello {
    const OP: &'static str = "daskade-hello";
    type Reply = RuntimeInfo;
}

impl Operation for Open {
    const OP: &'static str = "daskade-open";
    type Reply = Opened;

    fn limits(&self) -> Limits {
        Limits::with_results(limits::SNAPSHOT)
    }

    fn weigh(body: &[u8], most: usize) -> Result<(), MessageError> {
        let snapshot = msgpack::find(body, "snapshot")?.unwrap_or_default();
        if snapshot.is_empty() { Ok(()) } else { records::weigh(snapshot, &mut 0, most) }
    }

    /// It probes the storage and reads a journal.
    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

impl Operation for Submit<'_> {
    const OP: &'static str = "daskade-submit";
    type Reply = Accepted;
}

impl Operation for Stop<'_> {
    const OP: &'static str = "daskade-stop";
    type Reply = Accepted;
}

impl Operation for Records<'_> {
    const OP: &'static str = "daskade-record";
    type Reply = Accepted;
}

impl Operation for Close<'_> {
    const OP: &'static str = "daskade-close";
    type Reply = Accepted;

    /// It waits until everything is durable.
    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

impl Operation for Forget<'_> {
    const OP: &'static str = "daskade-forget";
    type Reply = Accepted;
}

impl Operation for ReadOutput<'_> {
    const OP: &'static str = "daskade-read";
    type Reply = Output;

    /// Of the bytes those that were asked for, and a little around them.
    fn limits(&self) -> Limits {
        let asked = usize::try_from(self.max).unwrap_or(usize::MAX);
        let Budget { bytes, values } = limits::ANSWER;
        Limits::of(Budget { bytes: bytes.saturating_add(asked), values })
    }

    /// It may fetch from storage.
    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

impl FollowEvents {
    /// The operation's name on the wire.
    pub const OP: &'static str = "daskade-events";
}

impl From<IgnoredAny> for Accepted {
    fn from(_: IgnoredAny) -> Accepted {
        Accepted
    }
}

impl Serialize for SubmitItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TaskAddr { step, item, attempt } = self.task;
        let mut tuple = serializer.serialize_tuple(7)?;
        tuple.serialize_element(&step)?;
        tuple.serialize_element(&super::values::item_to_wire(item))?;
        tuple.serialize_element(&attempt)?;
        tuple.serialize_element(&self.priority)?;
        tuple.serialize_element(&self.values)?;
        tuple.serialize_element(&self.data_deps)?;
        tuple.serialize_element(&self.after_deps)?;
        tuple.end()
    }
}
