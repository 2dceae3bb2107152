//! Pods that wait for room which other workers of their own cluster hold: who gives way, and what is told.
//!
//! The operator sees neither nodes nor other people's pods. What is short is read from the words of Kubernetes' scheduler,
//! and how much a pod takes from the spec of its group.

use std::collections::BTreeMap;

use super::facts::{Facts, Phase, PodFact, Role, SchedulerFact, WorkerFact};
use super::group::{Amounts, requests, scheduler_requests};
pub use super::shortage::Shortage;
use api::cluster::{DaskClusterSpec, WorkerGroup};

/// Who gives way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Giving {
    /// Workers that go, each with the pod that waits.
    pub workers: BTreeMap<String, String>,
    /// Pods for which room is being made, each with the node: it is made once.
    pub to: BTreeMap<String, Option<String>>,
}

/// A pod that its group needs now, and that waits for room.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    pod: &'a PodFact,
    /// Its place among the groups.
    group: usize,
    shortage: &'a Shortage,
}

/// The pods that wait for room, of those that their groups need now. `needed`: workers per group.
pub fn waiting<'a>(groups: &[WorkerGroup], needed: &[u32], facts: &'a Facts) -> Vec<Waiting<'a>> {
    let mut all = Vec::new();
    for (at, (group, needed)) in groups.iter().zip(needed).enumerate() {
        let staying = staying(&group.name, facts);
        let placed = staying.iter().filter(|pod| is_placed(pod)).count();
        let short =
            staying.into_iter().filter_map(|pod| Some(Waiting { pod, group: at, shortage: pod.shortage.as_ref()? }));
        all.extend(short.take((*needed as usize).saturating_sub(placed)));
    }
    all
}

/// Lets idle workers give way: takes those that do from `workers`, which has the number to keep per group. `needed` is
/// the number that stays in any case.
pub fn give_way(
    groups: &[WorkerGroup],
    needed: &[u32],
    workers: &mut [u32],
    waiting: &[Waiting<'_>],
    facts: &Facts,
) -> Giving {
    let mut giving = Giving::default();
    let Some(first) = waiting.first() else { return giving };
    for (at, group) in groups.iter().enumerate() {
        let staying = staying(&group.name, facts);
        // None is brought back as long as somebody waits.
        workers[at] = workers[at].min(needed[at].max(staying.len() as u32));
        let spare = workers[at] - needed[at].min(workers[at]);
        // Those without a node hold nothing, and would take the room.
        let others = staying.iter().rev().filter(|pod| !is_placed(pod));
        let others = others.filter(|pod| waiting.iter().all(|waiting| waiting.pod.name != pod.name));
        for pod in others.take(spare as usize) {
            giving.workers.insert(pod.name.clone(), first.pod.name.clone());
            workers[at] -= 1;
        }
    }
    // One worker's room is not promised twice.
    let mut promised: BTreeMap<Option<String>, Amounts> = BTreeMap::new();
    for waiting in waiting {
        if let Some(node) = facts.gave.get(&waiting.pod.name) {
            add(promised.entry(node.clone()).or_default(), &requests(&groups[waiting.group]));
        }
    }
    for waiting in waiting.iter().filter(|waiting| !facts.gave.contains_key(&waiting.pod.name)) {
        let of = |at: usize| workers[at] - needed[at].min(workers[at]);
        let spare: Vec<u32> = (0..groups.len()).map(of).collect();
        let Some((node, taken)) = take(groups, &spare, waiting, (&giving, &promised), facts) else { continue };
        add(promised.entry(node.clone()).or_default(), &requests(&groups[waiting.group]));
        giving.to.insert(waiting.pod.name.clone(), node);
        for (at, pod) in taken {
            giving.workers.insert(pod.name.clone(), waiting.pod.name.clone());
            workers[at] -= 1;
        }
    }
    giving
}

/// A worker, with the place of its group among the groups.
type Member<'a> = (usize, &'a PodFact);

/// Workers of one node.
#[derive(Default)]
struct OnNode<'a> {
    /// What those hold that are on their way out.
    going: Amounts,
    idle: Vec<Member<'a>>,
}

/// A node and the workers on it that give way to a pod, each with its group: as few as hold what the pod needs of what is
/// short, or all that are idle if they hold less. An empty list: enough is on its way out already. None: nobody can give way.
fn take<'a>(
    groups: &[WorkerGroup],
    spare: &[u32],
    waiting: &Waiting<'_>,
    (giving, promised): (&Giving, &BTreeMap<Option<String>, Amounts>),
    facts: &'a Facts,
) -> Option<(Option<String>, Vec<Member<'a>>)> {
    let mut nodes: BTreeMap<Option<&str>, OnNode<'a>> = BTreeMap::new();
    for (at, group) in groups.iter().enumerate() {
        let held = requests(group);
        if !waiting.shortage.is_eased_by(&held) {
            continue;
        }
        let pods = facts.pods.iter().filter(|pod| is_of(pod, &group.name) && pod.phase != Phase::Ended);
        for pod in pods.filter(|pod| is_placed(pod)) {
            let node = nodes.entry(pod.node.as_deref()).or_default();
            if is_going(pod, facts) || giving.workers.contains_key(&pod.name) {
                add(&mut node.going, &held);
            } else if at != waiting.group && pod.deleting.is_none() && is_idle(pod, facts) {
                node.idle.push((at, pod));
            }
        }
    }
    let choices = nodes.into_iter().filter_map(|(node, OnNode { going: mut free, mut idle })| {
        let node = node.map(ToOwned::to_owned);
        let mut wanted = requests(&groups[waiting.group]);
        add(&mut wanted, promised.get(&node).unwrap_or(&Amounts::new()));
        // As everywhere: those go first that the scheduler does not know, then those of a high number.
        idle.sort_by_key(|(_, pod)| (worker(pod, facts).is_some(), std::cmp::Reverse(pod.slot.clone())));
        let (mut left, mut taken) = (spare.to_vec(), Vec::new());
        for (at, pod) in idle {
            if left[at] == 0 || waiting.shortage.is_over(&free, &wanted) {
                continue;
            }
            left[at] -= 1;
            add(&mut free, &requests(&groups[at]));
            taken.push((at, pod));
        }
        let enough = waiting.shortage.is_over(&free, &wanted);
        (enough || !taken.is_empty()).then_some((enough, node, taken))
    });
    // The fewest that are enough, or the most.
    let best = choices.min_by_key(|(enough, _, taken)| {
        let count = i64::try_from(taken.len()).unwrap_or(i64::MAX);
        (!enough, if *enough { count } else { -count })
    });
    best.map(|(_, node, taken)| (node, taken))
}

pub(super) fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *sum.entry(name.clone()).or_default() += amount;
    }
}

/// Workers of a group that go on, in the order of their numbers.
fn staying<'a>(group: &str, facts: &'a Facts) -> Vec<&'a PodFact> {
    let is_staying = |pod: &&PodFact| {
        is_of(pod, group)
            && pod.deleting.is_none()
            && pod.phase != Phase::Ended
            && worker(pod, facts).is_none_or(|worker| !worker.draining)
    };
    let mut pods: Vec<&PodFact> = facts.pods.iter().filter(is_staying).collect();
    pods.sort_by(|one, other| one.slot.cmp(&other.slot));
    pods
}

pub(super) fn is_of(pod: &PodFact, name: &str) -> bool {
    matches!(&pod.slot.role, Role::Worker { group, .. } if group == name)
}

/// Whether a node has set something aside for it.
pub(super) fn is_placed(pod: &PodFact) -> bool {
    pod.node.is_some() || pod.phase == Phase::Running
}

fn worker<'a>(pod: &PodFact, facts: &'a Facts) -> Option<&'a WorkerFact> {
    match &facts.scheduler {
        SchedulerFact::Answers(state) => state.workers.get(&pod.name),
        SchedulerFact::Unknown | SchedulerFact::Unreachable { .. } => None,
    }
}

/// Whether it has nothing to do: a worker that has not registered has nothing either.
pub(super) fn is_idle(pod: &PodFact, facts: &Facts) -> bool {
    matches!(facts.scheduler, SchedulerFact::Answers(_)) && worker(pod, facts).is_none_or(|worker| worker.tasks == 0)
}

/// Whether it is on its way out, and no task keeps it.
pub(super) fn is_going(pod: &PodFact, facts: &Facts) -> bool {
    pod.deleting.is_some() || worker(pod, facts).is_some_and(|worker| worker.draining && worker.tasks == 0)
}

/// The pod of the scheduler, if it waits for room and follows none that is still going.
fn scheduler_waits(facts: &Facts) -> Option<(&PodFact, &Shortage)> {
    let mut schedulers = facts.pods.iter().filter(|pod| pod.slot.role == Role::Scheduler);
    let pod = schedulers.next()?;
    schedulers.next().is_none().then_some((pod, pod.shortage.as_ref()?))
}

/// Lets workers make room for the pod of their scheduler, without which they are of no use: those without a node, which
/// would take it, and of those that are not ready as many as hold what it needs. One that is ready may still be at work.
pub fn give_way_to_scheduler(
    spec: &DaskClusterSpec,
    groups: &[WorkerGroup],
    workers: &mut [u32],
    facts: &Facts,
) -> Giving {
    let mut giving = Giving::default();
    let Some((pod, shortage)) = scheduler_waits(facts) else { return giving };
    let wanted = scheduler_requests(spec);
    let mut nodes: BTreeMap<Option<&str>, Amounts> = BTreeMap::new();
    for group in groups {
        let gone = facts.pods.iter().filter(|pod| is_of(pod, &group.name) && pod.deleting.is_some() && is_placed(pod));
        for pod in gone {
            add(nodes.entry(pod.node.as_deref()).or_default(), &requests(group));
        }
    }
    for (at, group) in groups.iter().enumerate() {
        let staying = staying(&group.name, facts);
        workers[at] = workers[at].min(staying.len() as u32);
        let held = requests(group);
        for worker in staying.iter().rev().filter(|worker| !worker.ready) {
            let free = nodes.entry(worker.node.as_deref()).or_default();
            let asked = facts.gave.contains_key(&pod.name);
            let helps = !asked && shortage.is_eased_by(&held) && !shortage.is_over(free, &wanted);
            if workers[at] == 0 || is_placed(worker) && !helps {
                continue;
            }
            if is_placed(worker) {
                add(free, &held);
            }
            giving.workers.insert(worker.name.clone(), pod.name.clone());
            workers[at] -= 1;
        }
    }
    if let Some((node, _)) = nodes.iter().find(|(_, free)| shortage.is_over(free, &wanted)) {
        giving.to.insert(pod.name.clone(), node.map(ToOwned::to_owned));
    }
    giving
}
