//! What to do about a cluster now: a function of its spec and of what is known, and of nothing else.

use std::{collections::BTreeMap, time::Duration};

use super::facts::{Cluster, Facts, Slot};

/// Hashes of the templates that the spec asks for now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Templates {
    pub scheduler: String,
    /// By group.
    pub groups: BTreeMap<String, String>,
}

/// Everything to do in one pass. All of it may be done twice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    pub create: Vec<Slot>,
    pub delete: Vec<Deletion>,
    /// Names of workers (pods) that the scheduler is to drain.
    pub drain: Vec<String>,
    /// Names of drained workers that the scheduler is to close; the pods of those that it says are closed go.
    pub retire: Vec<String>,
    pub groups: Vec<GroupPlan>,
    /// Highest number of a pod, after this pass.
    pub incarnation: u64,
    /// Look again after this time even if nothing happens.
    pub wake: Option<Duration>,
    /// The scheduler's pod should be replaced, and waits until nothing uses the cluster.
    pub scheduler_waits: bool,
    /// Workers should go, and the scheduler cannot be asked.
    pub blind: bool,
}

/// A pod to be deleted, now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    pub pod: String,
    /// Only if it is still this one.
    pub uid: String,
    /// For people.
    pub why: &'static str,
    /// Without waiting for its end: its node is gone.
    pub force: bool,
}

/// What a group should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPlan {
    pub name: String,
    pub desired: u32,
}

/// Decides.
pub fn plan(_cluster: &Cluster, _templates: &Templates, _facts: &Facts) -> Plan {
    todo!()
}
