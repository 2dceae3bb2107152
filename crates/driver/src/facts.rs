//! What is known about a run's tasks besides the engine's state: results, lengths, failures.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::results::Kept;
use dask::ops::{Json, NamedObjects};
use engine::{Dag, FailReason, Invalid, RunState, StepIx, TaskId, TaskStatus};
use limits::clip;
use lower::{Plan, Results};
use run_model::report::{Deadline, Failure, task_name};

/// Versions of objects by their paths; `None`: not there.
pub(super) type Versions = HashMap<String, Option<String>>;

#[derive(Debug, Default)]
pub(super) struct Facts {
    results: Kept,
    lens: HashMap<TaskId, Vec<u32>>,
    failures: HashMap<TaskId, Failure>,
    /// Bytes of their texts.
    failures_bytes: usize,
    /// Tasks that failed, the first first.
    failed: Vec<TaskId>,
    blocked: BTreeMap<u32, Blocked>,
    /// Versions of objects that tasks would read now, as far as somebody has looked.
    pub versions: Versions,
    /// Those that tasks have read or kept: path and version.
    named: HashMap<TaskId, Vec<(String, String)>>,
    /// Bytes of these texts.
    named_bytes: usize,
    /// Tasks that the journal had when the run was opened.
    pub resumed: HashSet<TaskId>,
    /// A step has started, in this session or before it.
    pub begun: bool,
    /// The deadline that has passed first.
    pub passed: Option<Deadline>,
}

/// Tasks of a step that nothing can run at present.
#[derive(Debug)]
struct Blocked {
    since: Instant,
    count: u64,
    message: String,
    told: bool,
}

/// What expressions may read of a run in progress.
pub(super) struct View<'a> {
    pub facts: &'a Facts,
    pub state: &'a RunState,
    pub dag: &'a Dag,
}

impl Facts {
    pub fn finished(&mut self, task: TaskId, lens: Vec<u32>, json: Option<Json>) {
        if !lens.is_empty() {
            self.lens.insert(task, lens);
        }
        if let Some(result) = json {
            self.results.insert(task, result);
        }
    }

    /// The result of a finished task is with the runtime alone, and has so many bytes.
    pub fn result_away(&mut self, task: TaskId, bytes: usize) {
        self.results.insert_away(task, bytes);
    }

    /// What is known of results, and how to get at those that are not here.
    pub fn results(&mut self) -> &mut Kept {
        &mut self.results
    }

    /// Bytes of all results that are here.
    pub fn results_bytes(&self) -> usize {
        self.results.bytes()
    }

    /// Bytes of everything that is here.
    pub fn bytes(&self) -> usize {
        self.results.bytes() + self.failures_bytes + self.named_bytes
    }

    /// Gives back what expressions have made of results.
    pub fn tidy(&mut self) {
        self.results.tidy();
    }

    /// The task has read and kept objects in these versions.
    pub fn named(&mut self, named: NamedObjects) {
        let task = TaskId { step: StepIx(named.task.step), item: named.task.item };
        self.named_bytes += bytes_of(&named.versions);
        if let Some(old) = self.named.insert(task, named.versions) {
            self.named_bytes -= bytes_of(&old);
        }
    }

    /// Bytes of names of objects, and of their versions.
    pub fn named_bytes(&self) -> usize {
        self.named_bytes
    }

    pub fn lens(&self, task: TaskId) -> Vec<u32> {
        self.lens.get(&task).cloned().unwrap_or_default()
    }

    pub fn has_result(&self, task: TaskId) -> bool {
        self.results.has(task)
    }

    /// The last failed attempt of a task. Of many failures the first are kept in full.
    pub fn failed(&mut self, task: TaskId, mut failure: Failure) {
        let before = self.failures.get(&task).map_or(0, Failure::bytes);
        self.failures_bytes -= before;
        if self.failures_bytes + failure.bytes() > limits::FAILURES {
            clip(&mut failure.message, limits::FAILURE_WORDS);
            (failure.traceback, failure.tail) = (String::new(), Vec::new());
        }
        self.failures_bytes += failure.bytes();
        if self.failures.insert(task, failure).is_none() {
            self.failed.push(task);
        }
    }

    /// Notes why a task failed for good, and gives the message for the journal. A failed attempt has said it already.
    pub fn terminal(&mut self, plan: &Plan, task: TaskId, reason: &FailReason) -> String {
        if let Some(failure) = self.failures.get_mut(&task) {
            failure.terminal = true;
            return format!("{}: {}", failure.kind, failure.message);
        }
        let message = reason.to_string();
        let failure = Failure {
            step: plan.step_name(task.step).to_owned(),
            item: task.item,
            class: "data".to_owned(),
            kind: reason.name().to_owned(),
            message: message.clone(),
            terminal: true,
            ..Failure::default()
        };
        self.failed(task, failure);
        message
    }

    /// What was committed of the task counts no more. Gives the message for the journal: what its reader has found.
    pub fn invalidated(&mut self, plan: &Plan, task: TaskId, why: Invalid) -> String {
        self.resumed.remove(&task);
        self.results.remove(task);
        if let Some(old) = self.named.remove(&task) {
            self.named_bytes -= bytes_of(&old);
        }
        match why {
            Invalid::Lost { reader } => {
                self.failures.get(&reader).map_or_else(String::new, |found| found.message.clone())
            }
            Invalid::InputChanged { input } => {
                let input = task_name(plan.step_name(input.step), input.item);
                format!("the output of {input} has changed")
            }
        }
    }

    /// Notes that tasks of `step` cannot be placed.
    pub fn blocked(&mut self, step: u32, count: u64, message: String) {
        let (since, told) = self.blocked.get(&step).map_or((Instant::now(), false), |b| (b.since, b.told));
        self.blocked.insert(step, Blocked { since, count, message, told });
    }

    /// They can again; true if the user was told that they could not.
    pub fn unblocked(&mut self, step: u32) -> bool {
        self.blocked.remove(&step).is_some_and(|blocked| blocked.told)
    }

    /// Steps that have been blocked for `patience` and were not told of yet: index, tasks, why.
    pub fn blocked_for(&mut self, patience: Duration) -> Vec<(u32, u64, String)> {
        let due = self.blocked.iter_mut().filter(|(_, b)| !b.told && b.since.elapsed() >= patience);
        due.map(|(step, b)| {
            b.told = true;
            (*step, b.count, b.message.clone())
        })
        .collect()
    }

    /// When the next step will have been blocked for `patience`.
    pub fn next_blocked(&self, patience: Duration) -> Option<Instant> {
        self.blocked.values().filter(|blocked| !blocked.told).map(|blocked| blocked.since + patience).min()
    }

    /// The failures for good, the first first.
    pub fn terminal_failures(&self, most: usize) -> Vec<Failure> {
        let failures = self.failed.iter().filter_map(|task| self.failures.get(task));
        failures.filter(|failure| failure.terminal).take(most).cloned().collect()
    }
}

impl Results for View<'_> {
    fn result(&self, task: TaskId) -> Option<Cow<'_, Value>> {
        self.facts.results.get(task)
    }

    fn is_away(&self, task: TaskId) -> bool {
        self.facts.results.is_away(task)
    }

    fn result_bytes(&self, step: StepIx) -> usize {
        self.facts.results.bytes_of(step)
    }

    fn has_output(&self, task: TaskId) -> bool {
        let view = self.state.task_view(self.dag, task);
        view.is_some_and(|view| matches!(view.status, TaskStatus::Finished | TaskStatus::Committed { .. }))
    }

    fn items(&self, step: StepIx) -> Option<u32> {
        self.state.step_len(step)
    }

    fn version(&self, task: TaskId, path: &str) -> Option<&str> {
        if let Some(named) = self.facts.named.get(&task) {
            return named.iter().find(|(named, _)| named == path).map(|(_, version)| version.as_str());
        }
        self.facts.versions.get(path)?.as_deref()
    }

    fn flat(&self, step: StepIx, index: u32) -> Option<(u32, u32)> {
        let mut rest = index;
        for item in 0..self.state.step_len(step)? {
            let len = self.facts.lens.get(&TaskId::item(step, item)).and_then(|lens| lens.first().copied());
            // A hole has no elements.
            let len = len.unwrap_or(0);
            if rest < len {
                return Some((item, rest));
            }
            rest -= len;
        }
        None
    }
}

/// Of paths and versions.
fn bytes_of(versions: &[(String, String)]) -> usize {
    versions.iter().map(|(path, version)| path.len() + version.len()).sum()
}
