//! The status of a cluster: computed from what is known, and equal for equal knowledge.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    effective_groups,
    facts::{Cluster, Facts, Issue, PodFact, Role, SchedulerFact},
    held::with_holders,
    names,
    plan::{Plan, Templates},
};
use api::reason::Reason;
use api::{
    cluster::{TlsMode, WorkerGroup},
    condition::ConditionType,
    status::{DaskClusterStatus, GroupStatus, TlsStatus, Versions},
};

/// Bytes of one message: with 32 groups and all conditions a status stays below 64 KiB.
const MESSAGE: usize = 1000;
/// Two beginnings of idle time that are no further apart are one.
const SAME_IDLE: SignedDuration = SignedDuration::from_secs(3);
/// Bytes of a version.
const VERSION: usize = 100;

/// A condition before it has a time.
struct ConditionUpdate {
    kind: ConditionType,
    status: &'static str,
    reason: Reason,
    message: String,
}

/// Builds the status.
pub fn build_status(cluster: &Cluster, templates: &Templates, facts: &Facts, plan: &Plan) -> DaskClusterStatus {
    let before = &cluster.status;
    let facts = &*with_holders(cluster, facts, plan);
    let groups: Vec<GroupStatus> = effective_groups(&cluster.spec)
        .iter()
        .zip(&plan.groups)
        .map(|(group, planned)| group_status(group, planned.desired, templates, facts))
        .collect();
    let desired = groups.iter().map(|group| group.desired).sum();
    let ready = groups.iter().map(|group| group.ready).sum();
    let scheduler = scheduler_condition(cluster, facts, plan);
    let workers = workers_condition(cluster, &groups, facts, plan);
    let updates = updates(cluster, scheduler, workers, facts, plan, &groups);
    let answers = match &facts.scheduler {
        SchedulerFact::Answers(state) => Some(state),
        SchedulerFact::Unknown | SchedulerFact::Unreachable { .. } => None,
    };
    let tls = cluster.spec.tls.as_ref().and_then(|tls| tls.mode).unwrap_or_default() != TlsMode::Disabled;
    DaskClusterStatus {
        observed_generation: Some(cluster.generation),
        conditions: updates.into_iter().map(|update| condition(update, cluster, facts.now)).collect(),
        address: Some(names::address(&cluster.name, &cluster.namespace, tls)),
        workers_ready: Some(ready),
        workers_desired: Some(desired),
        gpus_ready: Some(groups.iter().filter_map(|group| group.gpus).sum()),
        groups,
        versions: answers
            .map(|state| Versions {
                dask: Some(version(&state.dask)),
                python: Some(version(&state.python)),
                runtime: Some(version(&state.runtime)),
            })
            .or_else(|| before.versions.clone()),
        tls: tls.then(|| TlsStatus {
            ca_fingerprint: facts.tls.ca_fingerprint.clone(),
            expires: facts.tls.expires.map(second),
        }),
        idle_since: answers.and_then(|state| state.idle_since).map(|since| same_idle(before, since)),
        incarnation: (plan.incarnation > 0).then_some(plan.incarnation),
    }
}

/// A status for a spec that is not valid: nothing is done about it.
pub fn invalid_status(cluster: &Cluster, reason: Reason, message: String, now: Timestamp) -> DaskClusterStatus {
    let update = |kind, status, reason| ConditionUpdate { kind, status, reason, message: message.clone() };
    let updates = [
        update(ConditionType::Ready, "False", reason),
        update(ConditionType::Reconciling, "False", reason),
        update(ConditionType::Stalled, "True", reason),
    ];
    DaskClusterStatus {
        observed_generation: Some(cluster.generation),
        conditions: updates.into_iter().map(|update| condition(update, cluster, now)).collect(),
        ..cluster.status.clone()
    }
}

fn group_status(group: &WorkerGroup, desired: u32, templates: &Templates, facts: &Facts) -> GroupStatus {
    let pods: Vec<&PodFact> = facts
        .pods
        .iter()
        .filter(|pod| {
            pod.deleting.is_none() && matches!(&pod.slot.role, Role::Worker { group: name, .. } if *name == group.name)
        })
        .collect();
    let known = |pod: &&PodFact| match &facts.scheduler {
        SchedulerFact::Answers(state) => state.workers.get(&pod.name).cloned(),
        SchedulerFact::Unknown | SchedulerFact::Unreachable { .. } => None,
    };
    let ready = pods.iter().filter(|pod| pod.ready && known(pod).is_some_and(|worker| !worker.draining)).count() as u32;
    let draining = pods.iter().filter(|pod| known(pod).is_some_and(|worker| worker.draining)).count() as u32;
    let hash = templates.groups.get(&group.name);
    let outdated = pods.iter().filter(|pod| hash.is_some_and(|hash| pod.template != *hash)).count() as u32;
    let refused = facts
        .refused
        .iter()
        .find(|refusal| matches!(&refusal.role, Some(Role::Worker { group: name, .. }) if *name == group.name));
    let issue = refused.map(|refusal| &refusal.issue).or_else(|| {
        pods.iter().filter_map(|pod| pod.issue.as_ref()).max_by_key(|issue| (issue.stalled, issue.reason.as_str()))
    });
    let issue = issue.filter(|_| ready < desired);
    GroupStatus {
        name: group.name.clone(),
        desired,
        ready,
        draining: (draining > 0).then_some(draining),
        outdated: (outdated > 0).then_some(outdated),
        gpus: group.gpu.as_ref().map(|gpu| gpu.count * ready),
        reason: issue.map(|issue| issue.reason.to_string()),
        message: issue.map(|issue| bounded(&issue.message)),
    }
}

fn scheduler_condition(cluster: &Cluster, facts: &Facts, plan: &Plan) -> ConditionUpdate {
    let update = |status, reason, message: String| ConditionUpdate {
        kind: ConditionType::SchedulerReady,
        status,
        reason,
        message,
    };
    if cluster.spec.suspend {
        return update("False", Reason::Suspended, "spec.suspend is true".to_owned());
    }
    if let Some(issue) = &facts.tls.issue {
        return update("False", issue.reason, issue.message.clone());
    }
    let pod = facts.pods.iter().find(|pod| pod.slot.role == Role::Scheduler && pod.deleting.is_none());
    let refused = facts.refused.iter().find(|refusal| !matches!(refusal.role, Some(Role::Worker { .. })));
    if let Some(issue) = refused.map(|refusal| &refusal.issue).or(pod.and_then(|pod| pod.issue.as_ref())) {
        return update("False", issue.reason, issue.message.clone());
    }
    match (&facts.scheduler, pod) {
        (SchedulerFact::Answers(_), Some(_)) if plan.scheduler_waits.is_some() => {
            let message = "it answers; its pod is of an older spec and is replaced once no run, client or task uses the \
                           cluster (scheduler.rollout: Immediately does not wait)";
            update("True", Reason::WaitingForIdle, message.to_owned())
        }
        (SchedulerFact::Answers(_), Some(pod)) => update("True", Reason::Ready, format!("pod {} answers", pod.name)),
        (SchedulerFact::Unreachable { cause, .. }, Some(pod)) if pod.ready => {
            let hint = if cause.starts_with("connect") { "; a NetworkPolicy may forbid it" } else { "" };
            let message = match cause.strip_prefix("read ") {
                Some(cause) => format!("pod {} sent an answer that the operator refuses: {cause}", pod.name),
                None => format!("pod {} does not answer: {cause}{hint}", pod.name),
            };
            update("False", Reason::SchedulerUnreachable, message)
        }
        (_, Some(pod)) => update("False", Reason::SchedulerNotReady, format!("pod {} is starting", pod.name)),
        (_, None) => update("False", Reason::SchedulerNotReady, "its pod is being created".to_owned()),
    }
}

fn workers_condition(cluster: &Cluster, groups: &[GroupStatus], facts: &Facts, plan: &Plan) -> ConditionUpdate {
    let update = |status, reason, message: String| ConditionUpdate {
        kind: ConditionType::WorkersReady,
        status,
        reason,
        message,
    };
    if cluster.spec.suspend {
        return update("False", Reason::Suspended, "spec.suspend is true".to_owned());
    }
    if plan.blind {
        let message = "workers are due for removal, but the scheduler cannot be reached to drain them; none is removed";
        return update("Unknown", Reason::SchedulerUnreachable, message.to_owned());
    }
    if !matches!(facts.scheduler, SchedulerFact::Answers(_)) {
        return update("Unknown", Reason::SchedulerNotReady, "the scheduler does not answer yet".to_owned());
    }
    if let Some(group) = groups.iter().find(|group| group.ready < group.desired) {
        let counts = format!("group {}: {} of {} ready", group.name, group.ready, group.desired);
        return match issue_of(group, facts) {
            Some(issue) => update("False", issue.reason, format!("{counts}; {}", issue.message)),
            None => update("False", Reason::Progressing, counts),
        };
    }
    let (ready, outdated): (u32, u32) =
        (groups.iter().map(|group| group.ready).sum(), groups.iter().filter_map(|group| group.outdated).sum());
    match (ready, outdated) {
        (_, 1..) => update("True", Reason::RollingOut, format!("{outdated} of {ready} workers are of an older spec")),
        (0, _) => update("True", Reason::Idle, "no worker is needed now".to_owned()),
        (1, _) => update("True", Reason::Ready, "1 worker is ready".to_owned()),
        _ => update("True", Reason::Ready, format!("{ready} workers are ready")),
    }
}

fn issue_of<'a>(group: &GroupStatus, facts: &'a Facts) -> Option<&'a Issue> {
    let reason: Reason = group.reason.as_deref()?.parse().ok()?;
    let refused = facts.refused.iter().map(|refusal| &refusal.issue);
    let pods = facts.pods.iter().filter_map(|pod| pod.issue.as_ref());
    refused
        .chain(pods)
        .find(|issue| issue.reason == reason && group.message.as_deref() == Some(&bounded(&issue.message)))
}

fn updates(
    cluster: &Cluster,
    scheduler: ConditionUpdate,
    workers: ConditionUpdate,
    facts: &Facts,
    plan: &Plan,
    groups: &[GroupStatus],
) -> Vec<ConditionUpdate> {
    let stalled = facts
        .tls
        .issue
        .iter()
        .chain(facts.refused.iter().map(|refusal| &refusal.issue))
        .chain(facts.pods.iter().filter_map(|pod| pod.issue.as_ref()))
        .find(|issue| issue.stalled);
    let behind = scheduler.status != "True" || workers.status != "True";
    let stalled = stalled.filter(|_| behind);
    let (status, cause) = match (scheduler.status, workers.status) {
        ("True", "True") => ("True", &workers),
        ("True", _) => ("False", &workers),
        _ => ("False", &scheduler),
    };
    let ready =
        ConditionUpdate { kind: ConditionType::Ready, status, reason: cause.reason, message: cause.message.clone() };
    let outdated = groups.iter().any(|group| group.outdated.is_some());
    let working = !cluster.spec.suspend && (behind || outdated || plan.scheduler_waits.is_some()) && stalled.is_none();
    let reconciling = ConditionUpdate {
        kind: ConditionType::Reconciling,
        status: if working { "True" } else { "False" },
        reason: if working { Reason::Progressing } else { ready.reason },
        message: String::new(),
    };
    let stalled = match stalled {
        Some(issue) => ConditionUpdate {
            kind: ConditionType::Stalled,
            status: "True",
            reason: issue.reason,
            message: issue.message.clone(),
        },
        None => ConditionUpdate {
            kind: ConditionType::Stalled,
            status: "False",
            reason: Reason::Progressing,
            message: String::new(),
        },
    };
    vec![ready, scheduler, workers, reconciling, stalled]
}

/// `lastTransitionTime` moves only when the status does.
fn condition(update: ConditionUpdate, cluster: &Cluster, now: Timestamp) -> Condition {
    let kind = update.kind.as_str();
    let before = cluster.status.conditions.iter().find(|before| before.type_ == kind);
    let since =
        before.filter(|before| before.status == update.status).map(|before| before.last_transition_time.clone());
    Condition {
        type_: kind.to_owned(),
        status: update.status.to_owned(),
        reason: update.reason.to_string(),
        message: bounded(&update.message),
        observed_generation: Some(cluster.generation),
        last_transition_time: since.unwrap_or_else(|| Time(whole(now))),
    }
}

/// A message without control characters, which fits the schema, and which leaves room for those of all other groups.
fn bounded(message: &str) -> String {
    clipped(message, MESSAGE)
}

/// What a scheduler says of itself: a few digits, or it says something else.
fn version(text: &str) -> String {
    clipped(text, VERSION)
}

fn clipped(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The beginning of the same idle time is found anew by whoever asks the scheduler first, a moment off.
fn same_idle(before: &DaskClusterStatus, since: Timestamp) -> String {
    let told = before
        .idle_since
        .as_ref()
        .filter(|told| told.parse::<Timestamp>().is_ok_and(|told| since.duration_since(told).abs() <= SAME_IDLE));
    told.cloned().unwrap_or_else(|| second(since))
}

fn second(time: Timestamp) -> String {
    whole(time).to_string()
}

/// To the second, as Kubernetes keeps times.
fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
