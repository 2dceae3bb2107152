//! Operations of every Dask scheduler.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::{self, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::Operation;
use crate::deadlines::Deadlines;
use crate::frame::Limits;
use crate::message::Placeholder;
use crate::pickle::{self, Constant};

/// `identity`: who the scheduler is and which workers it has.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Identity {
    /// How many workers to describe; not understood before Dask 2025.4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_workers: Option<u32>,
}

/// Answer of [`Identity`].
#[derive(Debug, Clone, Deserialize)]
pub struct SchedulerIdentity {
    /// `Scheduler`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Unique per process.
    pub id: String,
    /// Where it listens.
    pub address: String,
    /// By address.
    pub workers: BTreeMap<String, WorkerInfo>,
}

/// A worker as the scheduler knows it.
#[derive(Debug, Clone, Deserialize)]
pub struct WorkerInfo {
    /// The name that the worker was started with.
    #[serde(deserialize_with = "label")]
    pub name: String,
    /// Threads.
    pub nthreads: u32,
    /// Bytes; zero if unlimited.
    #[serde(default)]
    pub memory_limit: Option<u64>,
    /// Such as `running`, `paused`, `closing_gracefully`.
    #[serde(default)]
    pub status: Option<String>,
    /// Abstract resources.
    #[serde(default)]
    pub resources: BTreeMap<String, f64>,
}

/// `versions`: the scheduler's host and packages.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Versions {}

/// Answer of [`Versions`].
#[derive(Debug, Clone, Deserialize)]
pub struct VersionInfo {
    /// Python, operating system, byte order, as pairs or as a map, depending on the release.
    pub host: rmpv::Value,
    /// Versions by package; `None` for one that is not installed.
    pub packages: BTreeMap<String, Option<String>>,
}

/// `processing`: which tasks run on, or are sent to, each worker.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Processing {
    /// Only these workers; all if `None`.
    pub workers: Option<Vec<String>>,
}

/// How many elements an array has, whatever they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(pub usize);

/// `retire_workers`. Draining takes two of them: [`RetireWorkers::drain`], then, once [`Processing`] shows nothing for
/// the workers, [`RetireWorkers::close`]. Closing at once would run their tasks twice.
#[derive(Debug, Clone, Serialize)]
pub struct RetireWorkers {
    /// Addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    workers: Option<Vec<String>>,
    /// Or names.
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<Vec<String>>,
    close_workers: bool,
    remove: bool,
}

impl RetireWorkers {
    /// The named workers take no further tasks, and finish those that they have.
    pub fn drain(names: Vec<String>) -> RetireWorkers {
        RetireWorkers { workers: None, names: Some(names), close_workers: false, remove: false }
    }

    /// The named workers end.
    pub fn close(names: Vec<String>) -> RetireWorkers {
        RetireWorkers { workers: None, names: Some(names), close_workers: true, remove: true }
    }

    /// The same workers chosen by address.
    pub fn by_address(mut self) -> RetireWorkers {
        self.workers = self.names.take();
        self
    }
}

/// `broadcast`: sends a message to workers and collects their answers by address.
#[derive(Debug, Clone, Serialize)]
pub struct Broadcast<M> {
    /// With a field `op`.
    pub msg: M,
    /// Only these addresses; all if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<Vec<String>>,
}

/// `run_function`: loads a pickle in the scheduler's process, calls it and, if it is asynchronous, waits for it.
///
/// All three fields are pickles that we wrote; see [`pickle`](crate::pickle).
#[derive(Debug, Clone, Serialize)]
pub struct RunFunction {
    #[serde(with = "serde_bytes")]
    function: Vec<u8>,
    #[serde(with = "serde_bytes")]
    args: Vec<u8>,
    #[serde(with = "serde_bytes")]
    kwargs: Vec<u8>,
    wait: bool,
}

impl RunFunction {
    /// Runs `source` as a module body and calls the function `main` of it with constants.
    ///
    /// `main` gets the scheduler if it has a parameter `dask_scheduler`. This is how the runtime is installed into a
    /// cluster that was not started with it.
    pub fn from_source(source: &str, main: &str, filename: &str, args: &[Constant<'_>]) -> RunFunction {
        RunFunction {
            function: pickle::from_source(source, main, filename),
            args: pickle::arguments(args),
            kwargs: pickle::no_keywords(),
            wait: true,
        }
    }

    /// Calls an importable function with constants.
    pub fn named(module: &str, function: &str, args: &[Constant<'_>]) -> RunFunction {
        RunFunction {
            function: pickle::function(module, function),
            args: pickle::arguments(args),
            kwargs: pickle::no_keywords(),
            wait: true,
        }
    }
}

/// Answer of [`RunFunction`]. What the function returned stays closed, unless it is `bytes`.
#[derive(Debug, Clone, Deserialize)]
pub struct FunctionResult {
    /// See [`Message::payload`](crate::message::Message::payload).
    pub result: Placeholder,
}

impl Operation for Identity {
    const OP: &'static str = "identity";
    type Reply = SchedulerIdentity;

    fn limits(&self) -> Limits {
        Limits::of(limits::DASK)
    }
}

impl Operation for Versions {
    const OP: &'static str = "versions";
    type Reply = VersionInfo;
}

impl Operation for Processing {
    const OP: &'static str = "processing";
    type Reply = BTreeMap<String, Count>;

    fn limits(&self) -> Limits {
        Limits::of(limits::DASK)
    }
}

impl Operation for RetireWorkers {
    const OP: &'static str = "retire_workers";
    /// Those that are being retired, by address; unknown ones are missing.
    type Reply = BTreeMap<String, IgnoredAny>;

    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

impl<M: Serialize> Operation for Broadcast<M> {
    const OP: &'static str = "broadcast";
    type Reply = BTreeMap<String, rmpv::Value>;

    fn limits(&self) -> Limits {
        Limits::of(limits::DASK)
    }
}

impl Operation for RunFunction {
    const OP: &'static str = "run_function";
    type Reply = FunctionResult;

    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Count, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
        }
        deserializer.deserialize_seq(V)
    }
}

/// Worker names may be numbers.
fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct V;
    impl Visitor<'_> for V {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a number")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }
    deserializer.deserialize_any(V)
}
