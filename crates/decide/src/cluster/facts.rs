//! What is known of one cluster at one moment: everything that a decision may depend on.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::shortage::Shortage;
use api::reason::Reason;
use api::{cluster::DaskClusterSpec, status::DaskClusterStatus};

/// A DaskCluster whose spec is valid.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub generation: i64,
    /// It was made for one run, whose it is.
    pub of_run: bool,
    pub spec: DaskClusterSpec,
    /// The last status that was written: of it only the number of the last pod and the times of conditions count.
    pub status: DaskClusterStatus,
}

/// Everything that was read in one reconciliation.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub now: Timestamp,
    /// Pods that the cluster owns, those included that were just made and that no watch has shown yet.
    pub pods: Vec<PodFact>,
    pub scheduler: SchedulerFact,
    /// Writes that Kubernetes refused in the reconciliation before, per pod role.
    pub refused: Vec<Refusal>,
    pub tls: TlsFact,
    /// Pods that wait for room, and for which workers gave way already, each with their node.
    pub gave: BTreeMap<String, Option<String>>,
}

/// Which pod of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Scheduler,
    /// The `number`-th worker of a group, counted from 0.
    Worker {
        group: String,
        number: u32,
    },
}

impl Role {
    /// Whether both are schedulers, or workers of one group.
    pub fn is_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Scheduler, Self::Scheduler) => true,
            (Self::Worker { group: one, .. }, Self::Worker { group: other, .. }) => one == other,
            _ => false,
        }
    }
}

/// A pod to be made: `<cluster>-scheduler-<incarnation>` or `<cluster>-<group>-<number>-<incarnation>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub role: Role,
    pub incarnation: u64,
}

/// A pod as far as decisions need it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodFact {
    pub name: String,
    pub uid: String,
    pub slot: Slot,
    /// Hash of the template that it was made from.
    pub template: String,
    pub base: Base,
    /// Fingerprint of the certificate that it was told to show.
    pub certificate: Option<String>,
    pub phase: Phase,
    pub ready: bool,
    pub ip: Option<String>,
    pub created: Timestamp,
    /// When its deletion was asked for, and how long it may take, in seconds.
    pub deleting: Option<(Timestamp, i64)>,
    /// The node that it was given.
    pub node: Option<String>,
    /// Why it is not there yet, or ended.
    pub issue: Option<Issue>,
    /// What no node has enough of for it.
    pub shortage: Option<Shortage>,
    /// Restarts of its container.
    pub restarts: u32,
    /// It has the labels that it was made with: by them it is found by the Service, by policies and by watches.
    pub labelled: bool,
}

/// What workers have to have in common with their scheduler.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Base {
    pub image: String,
    /// Name of the ConfigMap with the runtime.
    pub runtime: String,
    /// The runtime has the option `--health-port`, and answers probes there.
    pub health: bool,
}

/// A pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    /// Ended, well or not: it never comes back.
    Ended,
}

/// What is wrong with a pod, in the words of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// From the table of reasons.
    pub reason: Reason,
    /// What, and what to do.
    pub message: String,
    /// Whether it can only be helped by a change that a person makes.
    pub stalled: bool,
}

impl Issue {
    /// As stalled as its reason is by itself.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), stalled: reason.stalled() }
    }

    /// The same where more is known of this occurrence than of its reason.
    pub fn stalled(self, stalled: bool) -> Self {
        Self { stalled, ..self }
    }
}

/// A write that Kubernetes refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whose pod; none for other children.
    pub role: Option<Role>,
    pub issue: Issue,
}

/// What the scheduler said last.
#[derive(Debug, Clone, PartialEq)]
pub enum SchedulerFact {
    /// No pod of it is ready, or none was asked yet.
    Unknown,
    /// A pod is there, and it does not answer.
    Unreachable { since: Timestamp, cause: String },
    /// It answers.
    Answers(SchedulerState),
}

/// The scheduler's own view.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerState {
    /// Name of the pod that answered.
    pub pod: String,
    /// By name.
    pub workers: BTreeMap<String, WorkerFact>,
    pub demand: Vec<Ask>,
    /// What was asked for a short while ago, and is not any more.
    pub recent: Vec<Recent>,
    pub runs: u32,
    pub clients: u32,
    pub tasks: u64,
    /// Since when there was no run, client or task; none while there is one.
    pub idle_since: Option<Timestamp>,
    pub dask: String,
    pub python: String,
    pub runtime: String,
    /// SHA-256 of the certificate that the scheduler shows, in hex.
    pub certificate: Option<String>,
}

/// A worker as the scheduler knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerFact {
    /// It takes no further tasks.
    pub draining: bool,
    pub tasks: u64,
    pub certificate: Option<String>,
}

/// Tasks that ask for the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    pub group: Option<String>,
    pub resources: BTreeMap<String, f64>,
    pub count: u64,
    /// Those of them that come only after a step that itself waits for a worker.
    pub later: u64,
}

impl Ask {
    /// Without what comes only after a step that itself waits for a worker.
    pub fn without_later(&self) -> Self {
        Self { count: self.count.saturating_sub(self.later), later: 0, ..self.clone() }
    }
}

/// A demand that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Recent {
    pub ask: Ask,
    pub until: Timestamp,
}

/// The certificates of the cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TlsFact {
    /// SHA-256 of the certificate that pods should show, in hex; none without TLS.
    pub fingerprint: Option<String>,
    pub ca_fingerprint: Option<String>,
    pub expires: Option<Timestamp>,
    /// Why there is none.
    pub issue: Option<Issue>,
}
