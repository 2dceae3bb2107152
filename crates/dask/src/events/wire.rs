//! The maps that events are on the wire. Short keys, since there are many of them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{LogLine, RuntimeEvent, WorkerChange};
use crate::ops::{Item, Json, TaskAddr, item_from_wire};

#[derive(Deserialize)]
pub(super) struct Started {
    s: u32,
    i: i64,
    a: u32,
    w: String,
    t: f64,
}

#[derive(Deserialize)]
pub(super) struct Finished {
    s: u32,
    i: i64,
    a: u32,
    w: String,
    t0: f64,
    t1: f64,
    z: u64,
    #[serde(default)]
    lens: Option<Vec<u32>>,
}

#[derive(Deserialize)]
pub(super) struct Committed {
    tasks: Vec<TaskAddr>,
    #[serde(default)]
    changed: Vec<Item>,
    seg: u64,
}

#[derive(Deserialize)]
pub(super) struct Failed {
    s: u32,
    i: i64,
    a: u32,
    #[serde(default)]
    w: Option<String>,
    #[serde(default)]
    t0: Option<f64>,
    #[serde(default)]
    t1: Option<f64>,
    class: String,
    #[serde(default)]
    lost: Vec<Item>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    traceback: Option<String>,
    #[serde(default)]
    tail: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub(super) struct Lost {
    s: u32,
    i: i64,
    a: u32,
    #[serde(default)]
    w: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Stopped {
    s: u32,
    i: i64,
    a: u32,
}

#[derive(Deserialize)]
pub(super) struct Logs {
    w: String,
    lines: Vec<(u32, i64, u32, f64, String, String)>,
}

#[derive(Deserialize)]
pub(super) struct Worker {
    state: String,
    address: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    threads: Option<u32>,
    #[serde(default)]
    resources: Option<BTreeMap<String, f64>>,
}

#[derive(Deserialize)]
pub(super) struct Blocked {
    s: u32,
    count: u64,
    reason: String,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Unblocked {
    s: u32,
}

#[derive(Deserialize)]
pub(super) struct Storage {
    state: String,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    pending: Option<u64>,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Fenced {
    #[serde(default)]
    epoch: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct Closing {
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl TryFrom<Started> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Started) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Started { task: task(e.s, e.i, e.a)?, worker: e.w, at: e.t })
    }
}

impl Finished {
    /// A result that is null is there all the same.
    pub(super) fn with(self, json: Option<Json>) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Finished {
            task: task(self.s, self.i, self.a)?,
            worker: self.w,
            began: self.t0,
            ended: self.t1,
            size: self.z,
            lens: self.lens.unwrap_or_default(),
            json,
        })
    }
}

impl TryFrom<Committed> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Committed) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Committed { tasks: e.tasks, changed: e.changed, segment: e.seg })
    }
}

impl TryFrom<Failed> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Failed) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Failed {
            task: task(e.s, e.i, e.a)?,
            worker: e.w.unwrap_or_default(),
            began: e.t0.unwrap_or_default(),
            ended: e.t1.unwrap_or_default(),
            class: e.class,
            lost: e.lost,
            kind: e.kind.unwrap_or_default(),
            message: e.message.unwrap_or_default(),
            traceback: e.traceback.unwrap_or_default(),
            tail: e.tail.unwrap_or_default(),
        })
    }
}

impl TryFrom<Lost> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Lost) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Lost {
            task: task(e.s, e.i, e.a)?,
            worker: e.w.unwrap_or_default(),
            message: e.message.unwrap_or_default(),
        })
    }
}

impl TryFrom<Stopped> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Stopped) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Stopped { task: task(e.s, e.i, e.a)? })
    }
}

impl TryFrom<Logs> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Logs) -> Result<RuntimeEvent, String> {
        let line = |(s, i, a, at, stream, text)| Ok(LogLine { task: task(s, i, a)?, at, stream, text });
        Ok(RuntimeEvent::Logs { worker: e.w, lines: e.lines.into_iter().map(line).collect::<Result<_, String>>()? })
    }
}

impl TryFrom<Worker> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Worker) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Worker(WorkerChange {
            added: either(&e.state, "added", "removed")?,
            address: e.address,
            name: e.name.unwrap_or_default(),
            group: e.group,
            threads: e.threads.unwrap_or_default(),
            resources: e.resources.unwrap_or_default(),
        }))
    }
}

impl TryFrom<Blocked> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Blocked) -> Result<RuntimeEvent, String> {
        let message = e.message.unwrap_or_default();
        Ok(RuntimeEvent::Blocked { step: e.s, count: e.count, reason: e.reason, message })
    }
}

impl TryFrom<Unblocked> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Unblocked) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Unblocked { step: e.s })
    }
}

impl TryFrom<Storage> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Storage) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Storage {
            up: either(&e.state, "up", "down")?,
            message: e.message.unwrap_or_default(),
            pending: e.pending.unwrap_or_default(),
            reason: e.reason.unwrap_or_default(),
        })
    }
}

impl TryFrom<Fenced> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Fenced) -> Result<RuntimeEvent, String> {
        // The first opening has 1.
        Ok(RuntimeEvent::Fenced { epoch: e.epoch.filter(|epoch| *epoch > 0) })
    }
}

impl TryFrom<Closing> for RuntimeEvent {
    type Error = String;

    fn try_from(e: Closing) -> Result<RuntimeEvent, String> {
        Ok(RuntimeEvent::Closing { reason: e.reason.unwrap_or_default(), message: e.message.unwrap_or_default() })
    }
}

fn task(step: u32, item: i64, attempt: u32) -> Result<TaskAddr, String> {
    Ok(TaskAddr { step, item: item_from_wire(item)?, attempt })
}

fn either(state: &str, yes: &str, no: &str) -> Result<bool, String> {
    match state {
        _ if state == yes => Ok(true),
        _ if state == no => Ok(false),
        _ => Err(format!("the state is neither {yes} nor {no}")),
    }
}
