//! What to do about a cluster now: a function of its spec and of what is known, and of nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    effective_groups,
    facts::{Base, Cluster, Facts, Phase, PodFact, Role, SchedulerFact, SchedulerState, Slot},
    room::Giving,
    scale::{Desired, desired},
};
use api::cluster::SchedulerRollout;

/// A pod whose deletion takes this much longer than its grace is on a node that is gone.
const FORCE_AFTER: i64 = 60;
/// A pod that ended earlier than this after it was made did not start properly.
const SHORT_LIFE: i64 = 60;
/// First and longest wait before such a pod is replaced; in between it doubles with each restart of its container, so
/// that a wrong image does not make a pod per second.
const REPLACE_AFTER: i64 = 10;
const REPLACE_AFTER_MOST: i64 = 300;
/// Workers that drain are looked at again after this.
const DRAIN_LOOK: Duration = Duration::from_secs(2);
/// A cluster that is suspended waits so long for a scheduler that does not answer, in seconds; then its workers go without
/// being drained.
const UNASKED: i64 = 60;

/// Hashes of the templates that the spec asks for now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Templates {
    pub scheduler: String,
    /// By group.
    pub groups: BTreeMap<String, String>,
}

/// Everything to do in one planner. All of it may be done twice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    pub create: Vec<Slot>,
    pub delete: Vec<Deletion>,
    /// Names of workers (pods) that the scheduler is to drain.
    pub drain: Vec<String>,
    /// Names of drained workers that the scheduler is to close; the pods of those that it says are closed go.
    pub retire: Vec<String>,
    pub groups: Vec<GroupPlan>,
    /// Highest number of a pod, after this planner.
    pub incarnation: u64,
    /// Look again after this time even if nothing happens.
    pub wake: Option<Duration>,
    /// The scheduler's pod should be replaced, and waits until nothing uses the cluster: what it is made of.
    pub scheduler_waits: Option<Base>,
    /// Its pod is replaced because nothing uses the cluster: worth asking once more, since a client may just have come.
    pub scheduler_unused: bool,
    /// Workers should go, and the scheduler cannot be asked.
    pub blind: bool,
    /// Workers that go since others of the cluster need their room.
    pub giving: Giving,
}

impl Plan {
    /// Whether it takes something away.
    pub fn is_destructive(&self) -> bool {
        !self.delete.is_empty() || !self.drain.is_empty() || !self.retire.is_empty()
    }
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
pub fn plan(cluster: &Cluster, templates: &Templates, facts: &Facts) -> Plan {
    let highest = facts.pods.iter().map(|pod| pod.slot.incarnation).max().unwrap_or(0);
    let mut planner = Planner {
        cluster,
        templates,
        facts,
        plan: Plan { incarnation: cluster.status.incarnation.unwrap_or(0).max(highest), ..Plan::default() },
    };
    planner.force_what_hangs();
    // The scheduler first: without it workers only take the room that it needs. Slots are numbered in their order, so that
    // of many that are not made at once no number is left out.
    planner.scheduler();
    planner.groups();
    planner.plan
}

struct Planner<'a> {
    cluster: &'a Cluster,
    templates: &'a Templates,
    facts: &'a Facts,
    plan: Plan,
}

impl Planner<'_> {
    fn state(&self) -> Option<&SchedulerState> {
        match &self.facts.scheduler {
            SchedulerFact::Answers(state) => Some(state),
            SchedulerFact::Unknown | SchedulerFact::Unreachable { .. } => None,
        }
    }

    /// Whether nobody will drain the workers of a suspended cluster any more. If it may still answer, a look is planned.
    fn is_lost(&mut self) -> bool {
        let facts = self.facts;
        let is_live = |pod: &&PodFact| pod.slot.role == Role::Scheduler && pod.deleting.is_none();
        let live = facts.pods.iter().filter(is_live).any(|pod| pod.phase == Phase::Running && pod.ready);
        match &facts.scheduler {
            SchedulerFact::Answers(_) => false,
            // It will be asked in a moment, unless it cannot be.
            SchedulerFact::Unknown => !live || facts.tls.issue.is_some(),
            SchedulerFact::Unreachable { since, .. } => {
                let left = UNASKED - facts.now.duration_since(*since).as_secs();
                if live && left > 0 {
                    self.wake(Duration::from_secs(left.unsigned_abs()));
                }
                !live || left <= 0
            }
        }
    }

    fn create(&mut self, role: Role) {
        self.plan.incarnation += 1;
        self.plan.create.push(Slot { role, incarnation: self.plan.incarnation });
    }

    fn delete(&mut self, pod: &PodFact, why: &'static str) {
        self.plan.delete.push(Deletion { pod: pod.name.clone(), uid: pod.uid.clone(), why, force: false });
    }

    fn wake(&mut self, after: Duration) {
        self.plan.wake = Some(self.plan.wake.map_or(after, |wake| wake.min(after)));
    }

    /// The node of a pod that stays far beyond its grace does not answer; Kubernetes waits for it for ever.
    fn force_what_hangs(&mut self) {
        for pod in &self.facts.pods {
            let Some((since, grace)) = pod.deleting else { continue };
            let left = grace + FORCE_AFTER - self.facts.now.duration_since(since).as_secs();
            if left > 0 {
                self.wake(Duration::from_secs(left.unsigned_abs()));
            } else {
                let deletion = Deletion {
                    pod: pod.name.clone(),
                    uid: pod.uid.clone(),
                    why: "its node does not answer",
                    force: true,
                };
                self.plan.delete.push(deletion);
            }
        }
    }

    /// Whether a pod that ended may be replaced now; if not, a look at it is planned.
    fn may_replace(&mut self, pod: &PodFact) -> bool {
        let age = self.facts.now.duration_since(pod.created).as_secs();
        let wait = REPLACE_AFTER.saturating_mul(1 << pod.restarts.min(10)).min(REPLACE_AFTER_MOST);
        if age >= wait || age >= SHORT_LIFE && pod.restarts == 0 {
            return true;
        }
        self.wake(Duration::from_secs((wait - age).unsigned_abs()));
        false
    }

    fn scheduler(&mut self) {
        let facts = self.facts;
        let mut live: Vec<&PodFact> =
            facts.pods.iter().filter(|pod| pod.slot.role == Role::Scheduler && pod.deleting.is_none()).collect();
        if self.cluster.spec.suspend {
            // Its workers first: they drain through it.
            let workers = facts.pods.iter().any(|pod| pod.slot.role != Role::Scheduler && pod.deleting.is_none());
            if !workers || self.is_lost() {
                for pod in live {
                    self.delete(pod, "the cluster is suspended");
                }
            }
            return;
        }
        // Two can only be there after a fault: the newer one is what a reconciliation after it wanted.
        live.sort_by_key(|pod| pod.slot.incarnation);
        let Some(pod) = live.pop() else { return self.create(Role::Scheduler) };
        for other in live {
            self.delete(other, "a newer scheduler exists");
        }
        if pod.phase == Phase::Ended {
            if self.may_replace(pod) {
                self.delete(pod, "it has ended");
                self.create(Role::Scheduler);
            }
            return;
        }
        if pod.template == self.templates.scheduler {
            return;
        }
        // A pod that never got ready has nothing to lose.
        let answers = self.state().is_some();
        let unused = match self.state() {
            Some(state) => state.runs == 0 && state.clients == 0 && state.tasks == 0,
            None => !pod.ready && pod.restarts == 0 && pod.ip.is_none() || pod.issue.is_some() && !pod.ready,
        };
        let rollout = self.cluster.spec.scheduler.as_ref().and_then(|scheduler| scheduler.rollout).unwrap_or_default();
        if unused || rollout == SchedulerRollout::Immediately {
            self.plan.scheduler_unused = answers && rollout != SchedulerRollout::Immediately;
            self.delete(pod, "the spec of the scheduler has changed");
            self.create(Role::Scheduler);
        } else {
            self.plan.scheduler_waits = Some(pod.base.clone());
        }
    }

    fn groups(&mut self) {
        let groups = effective_groups(&self.cluster.spec);
        let Desired { workers, until, giving } = desired(self.cluster, &groups, self.facts);
        self.plan.giving = giving;
        if let Some(until) = until {
            self.wake(until);
        }
        // Groups that the spec does not have any more are cleared.
        let there: BTreeSet<&String> = self.facts.pods.iter().filter_map(group_of).collect();
        for name in there.into_iter().filter(|name| groups.iter().all(|group| group.name != **name)) {
            self.group(name, 0);
        }
        for (group, desired) in groups.iter().zip(workers) {
            self.group(&group.name, desired);
            self.plan.groups.push(GroupPlan { name: group.name.clone(), desired });
        }
    }

    fn group(&mut self, name: &str, desired: u32) {
        let facts = self.facts;
        let pods: Vec<&PodFact> = facts
            .pods
            .iter()
            .filter(|pod| {
                pod.deleting.is_none() && matches!(&pod.slot.role, Role::Worker { group, .. } if group == name)
            })
            .collect();
        let (ended, live): (Vec<&PodFact>, Vec<&PodFact>) = pods.iter().partition(|pod| pod.phase == Phase::Ended);
        let (leaving, mut staying): (Vec<&PodFact>, Vec<&PodFact>) =
            live.into_iter().partition(|pod| self.worker(pod).is_some_and(|worker| worker.draining));
        let mut held = 0;
        for pod in ended {
            // It keeps its place until it may be replaced, if the place is wanted at all.
            if staying.len() as u32 + held >= desired || self.may_replace(pod) {
                self.delete(pod, "it has ended");
            } else {
                held += 1;
            }
        }
        let done: Vec<String> = leaving
            .iter()
            .filter(|pod| self.worker(pod).is_some_and(|worker| worker.tasks == 0))
            .map(|pod| pod.name.clone())
            .collect();
        if !leaving.is_empty() {
            self.wake(DRAIN_LOOK);
        }
        self.plan.retire.extend(done);
        let hash = self.templates.groups.get(name);
        self.sort_victims_last(&mut staying, hash);
        let surplus = (staying.len() as u32).saturating_sub(desired) as usize;
        let victims = staying.split_off(staying.len() - surplus);
        self.remove(&victims);
        let roll = self.outdated_to_roll(&staying, hash, desired, leaving.len());
        let rolled = self.remove(&roll);
        let missing = desired.saturating_sub((staying.len() as u32 + held).saturating_sub(rolled));
        let taken: BTreeSet<u32> = pods.iter().filter_map(|pod| number(pod)).collect();
        let free = (0..).filter(|number| !taken.contains(number));
        for number in free.take(missing as usize) {
            self.create(Role::Worker { group: name.to_owned(), number });
        }
    }

    fn worker(&self, pod: &PodFact) -> Option<&super::facts::WorkerFact> {
        self.state()?.workers.get(&pod.name)
    }

    /// Those that may go most easily at the end: those that give way, outdated, not known to the scheduler, idle, of a high
    /// number.
    fn sort_victims_last(&self, pods: &mut [&PodFact], hash: Option<&String>) {
        pods.sort_by_key(|pod| {
            let worker = self.worker(pod);
            let current = hash.is_some_and(|hash| pod.template == *hash);
            let tasks = worker.map_or(0, |worker| worker.tasks);
            let stays = !self.plan.giving.workers.contains_key(&pod.name);
            (std::cmp::Reverse((stays, current, worker.is_some(), pod.ready, tasks)), number(pod), pod.slot.incarnation)
        });
    }

    /// Has workers go: by draining, or at once where there is nothing to drain. If the scheduler cannot be asked, none goes,
    /// unless everything is to go. Tells how many do go.
    fn remove(&mut self, victims: &[&PodFact]) -> u32 {
        if victims.is_empty() {
            return 0;
        }
        let before = self.plan.delete.len() + self.plan.drain.len();
        if let Some(state) = self.state() {
            let (known, unknown): (Vec<&PodFact>, Vec<&PodFact>) =
                victims.iter().partition(|pod| state.workers.contains_key(&pod.name));
            for pod in unknown {
                self.delete(pod, "it is not wanted any more");
            }
            if !known.is_empty() {
                self.wake(DRAIN_LOOK);
            }
            self.plan.drain.extend(known.iter().map(|pod| pod.name.clone()));
        } else {
            let suspended = self.cluster.spec.suspend && self.is_lost();
            for pod in victims {
                if suspended {
                    self.delete(pod, "the cluster is suspended");
                } else if !pod.ready && self.plan.giving.workers.contains_key(&pod.name) {
                    self.delete(pod, "its scheduler waits for room");
                } else if pod.ip.is_none() && !pod.ready {
                    self.delete(pod, "it has not started and is not wanted any more");
                } else {
                    self.plan.blind = true;
                }
            }
        }
        (self.plan.delete.len() + self.plan.drain.len() - before) as u32
    }

    /// Outdated workers that are replaced now: so many that at most a quarter (and at least one) is missing at a time.
    fn outdated_to_roll<'p>(
        &self,
        staying: &[&'p PodFact],
        hash: Option<&String>,
        desired: u32,
        leaving: usize,
    ) -> Vec<&'p PodFact> {
        let Some(hash) = hash else { return Vec::new() };
        let scheduler = self.facts.pods.iter().find(|pod| pod.slot.role == Role::Scheduler && pod.deleting.is_none());
        // Workers of a new image must not meet a scheduler of the old one.
        if scheduler.is_none_or(|pod| pod.template != self.templates.scheduler) {
            return Vec::new();
        }
        let (old, new): (Vec<&PodFact>, Vec<&PodFact>) = staying.iter().partition(|pod| pod.template != *hash);
        let arriving = new.iter().filter(|pod| !pod.ready || self.worker(pod).is_none()).count();
        let missing = desired as usize - (staying.len()).min(desired as usize);
        let may_miss = (desired as usize / 4).max(1);
        let room = may_miss.saturating_sub(arriving + missing + leaving);
        // What never got ready is no loss. A worker that may have something to do is not taken unasked.
        let asked = self.state().is_some();
        let (broken, sound): (Vec<&PodFact>, Vec<&PodFact>) =
            old.into_iter().partition(|pod| !pod.ready && self.worker(pod).is_none() && (asked || pod.ip.is_none()));
        let room = if asked { room } else { 0 };
        broken.into_iter().chain(sound.into_iter().rev().take(room)).collect()
    }
}

fn group_of(pod: &PodFact) -> Option<&String> {
    match &pod.slot.role {
        Role::Worker { group, .. } => Some(group),
        Role::Scheduler => None,
    }
}

fn number(pod: &PodFact) -> Option<u32> {
    match &pod.slot.role {
        Role::Worker { number, .. } => Some(*number),
        Role::Scheduler => None,
    }
}
