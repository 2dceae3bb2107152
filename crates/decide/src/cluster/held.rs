//! What is reported of pods that are pending because other workers of their cluster use what they need.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::facts::{Cluster, Facts, Issue, Phase, PodFact, Role, SchedulerFact};
use super::group::{Amounts, effective_groups, requests, scheduler_requests};
use super::plan::Plan;
use super::room::{add, is_going, is_idle, is_of, is_placed};
use super::shortage::{Shortage, amount};
use api::cluster::WorkerGroup;
use api::reason::Reason;

/// Facts in which the trouble of each such pod says who holds the room.
pub(super) fn with_holders<'a>(cluster: &Cluster, facts: &'a Facts, plan: &Plan) -> Cow<'a, Facts> {
    let mut told = Cow::Borrowed(facts);
    let groups = effective_groups(&cluster.spec);
    for (at, pod) in facts.pods.iter().enumerate().filter(|(_, pod)| pod.deleting.is_none()) {
        let Some(shortage) = &pod.shortage else { continue };
        let own = match &pod.slot.role {
            Role::Scheduler => None,
            Role::Worker { group, .. } => match groups.iter().find(|known| known.name == *group) {
                None => continue,
                own => own,
            },
        };
        let wanted = own.map_or_else(|| scheduler_requests(&cluster.spec), requests);
        let others = groups.iter().filter(|group| own.is_none_or(|own| own.name != group.name));
        let holders = others.map(|group| Holders::find(group, shortage, facts, plan));
        let holders: Vec<Holders<'_>> = holders.filter(|holders| holders.count() > 0).collect();
        if let Some(issue) = issue(pod, shortage, &wanted, &holders) {
            told.to_mut().pods[at].issue = Some(issue);
        }
    }
    told
}

/// The workers of a group that hold what is short.
struct Holders<'a> {
    group: &'a WorkerGroup,
    each: Amounts,
    by_node: BTreeMap<Option<String>, Amounts>,
    idle: u32,
    leaving: u32,
    /// They have something to do, or nobody can be asked.
    busy: u32,
    asked: bool,
}

impl<'a> Holders<'a> {
    fn find(group: &'a WorkerGroup, shortage: &Shortage, facts: &Facts, plan: &Plan) -> Self {
        let asked = matches!(facts.scheduler, SchedulerFact::Answers(_));
        let each = requests(group);
        let mut found = Self { group, each, by_node: BTreeMap::new(), idle: 0, leaving: 0, busy: 0, asked };
        if !shortage.is_eased_by(&found.each) {
            return found;
        }
        let pods = facts.pods.iter().filter(|pod| is_of(pod, &group.name) && pod.phase != Phase::Ended);
        for pod in pods.filter(|pod| is_placed(pod)) {
            add(found.by_node.entry(pod.node.clone()).or_default(), &found.each);
            if is_going(pod, facts) || plan.giving.workers.contains_key(&pod.name) {
                found.leaving += 1;
            } else if is_idle(pod, facts) {
                found.idle += 1;
            } else {
                found.busy += 1;
            }
        }
        found
    }

    fn count(&self) -> u32 {
        self.idle + self.leaving + self.busy
    }

    /// The field that keeps idle ones there.
    fn keeper(&self) -> Option<String> {
        let least = match &self.group.autoscale {
            None => return Some(format!("replicas: {}", self.group.replicas.unwrap_or(1))),
            Some(scale) => scale.min.unwrap_or(0).min(scale.max),
        };
        (self.idle + self.busy <= least).then(|| format!("autoscale.min: {least}"))
    }

    fn text(&self, shortage: &Shortage) -> String {
        let mut parts = Vec::new();
        let idle = match self.keeper() {
            Some(keeper) => format!("idle (kept by {keeper})"),
            None => "idle".to_owned(),
        };
        let busy = if self.asked { "busy" } else { "there" };
        for (count, what) in [(self.idle, idle.as_str()), (self.busy, busy), (self.leaving, "leaving")] {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        let held = shortage.of.iter().filter(|name| *name != "pods" && amount(&self.each, name) > 0.0);
        let held: Vec<String> = held.map(|name| shown(name, amount(&self.each, name))).collect();
        let each = if held.is_empty() { String::new() } else { format!(", each with {}", held.join(" and ")) };
        format!("group {}: {}{each}", self.group.name, parts.join(", "))
    }
}

fn issue(pod: &PodFact, shortage: &Shortage, wanted: &Amounts, holders: &[Holders<'_>]) -> Option<Issue> {
    let mut nodes: BTreeMap<Option<&str>, Amounts> = BTreeMap::new();
    for (node, held) in holders.iter().flat_map(|holders| &holders.by_node) {
        add(nodes.entry(node.as_deref()).or_default(), held);
    }
    let any = |count: fn(&Holders<'_>) -> u32| holders.iter().any(|holders| count(holders) > 0);
    // Busy workers of some other node are not the cause.
    let enough = nodes.values().any(|held| shortage.is_over(held, wanted));
    if !enough && !any(|holders| holders.idle + holders.leaving) {
        return None;
    }
    let help = if any(|holders| holders.leaving) {
        "the pod starts once the leaving workers are gone"
    } else if holders.iter().any(|holders| holders.idle > 0 && holders.keeper().is_some()) {
        "lower that number or add nodes"
    } else {
        "the pod starts once they are no longer needed"
    };
    let who: Vec<String> = holders.iter().map(|holders| holders.text(shortage)).collect();
    let said = pod.issue.as_ref().map(|issue| format!("; {}", issue.message)).unwrap_or_default();
    let of = shortage.of.join(" and ");
    let message = format!(
        "pod {} waits for {of} that other workers of this cluster hold: {}; {help}{said}",
        pod.name,
        who.join("; ")
    );
    Some(Issue::new(Reason::HeldByCluster, message))
}

/// An amount with its name: `2 cpu`, `512Mi memory`.
fn shown(name: &str, amount: f64) -> String {
    if name == "memory" || name == "ephemeral-storage" {
        return format!("{}Mi {name}", (amount / 1_048_576.0).ceil());
    }
    format!("{} {name}", (amount * 1000.0).round() / 1000.0)
}
