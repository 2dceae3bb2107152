//! How many workers each group should have.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{
    facts::{Ask, Cluster, Facts, Recent, SchedulerFact, SchedulerState},
    offers,
    room::{Giving, give_way, give_way_to_scheduler, waiting},
    threads,
};
use api::cluster::WorkerGroup;

/// A worker without work is kept this long: the next step of a run, or a person's next line, often follows at once.
const KEEP_IDLE: Duration = Duration::from_secs(30);
/// Demands that ended and are remembered at most: the largest of them.
const RECENT: usize = 64;

/// What is wanted now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Workers per group, in the order of the groups.
    pub workers: Vec<u32>,
    /// After this time it is another number even if nothing happens.
    pub until: Option<Duration>,
    /// Workers that are not among them any more, since others of the cluster need their room.
    pub giving: Giving,
}

/// The number of workers wanted per group, in the order of `groups`.
pub fn desired(cluster: &Cluster, groups: &[WorkerGroup], facts: &Facts) -> Desired {
    if cluster.spec.suspend {
        return Desired { workers: vec![0; groups.len()], ..Desired::default() };
    }
    let asked = matches!(&facts.scheduler, SchedulerFact::Answers(state) if !state.demand.is_empty());
    if cluster.of_run && !asked && groups.iter().all(|group| before(group, cluster) == 0) {
        // A run that finds nothing to do needs nobody: its first demand starts also the groups that do not scale.
        return Desired { workers: vec![0; groups.len()], ..Desired::default() };
    }
    let SchedulerFact::Answers(state) = &facts.scheduler else {
        let mut workers: Vec<u32> = groups.iter().map(|group| without_word(group, cluster)).collect();
        let giving = give_way_to_scheduler(&cluster.spec, groups, &mut workers, facts);
        return Desired { workers, until: None, giving };
    };
    let mut waits = Vec::new();
    if let (Some(timeout), Some(since)) = (&cluster.spec.idle_timeout, state.idle_since) {
        match left(timeout.to_std(), since, facts.now) {
            None => return Desired { workers: vec![0; groups.len()], ..Desired::default() },
            Some(left) => waits.push(left),
        }
    }
    let recent: Vec<&Recent> =
        state.recent.iter().filter(|recent| left(KEEP_IDLE, recent.until, facts.now).is_some()).collect();
    let soon: Vec<Ask> = state.demand.iter().map(Ask::without_later).collect();
    let least: Vec<u32> = groups.iter().zip(needed(groups, &soon)).map(|(group, now)| bounded(group, now)).collect();
    let waiting = waiting(groups, &least, facts);
    // What comes only after a step that waits for a worker comes after the pods that wait for room.
    let (now, most) = if waiting.is_empty() {
        (needed(groups, &state.demand), needed(groups, &most(&state.demand, &recent)))
    } else {
        let recent: Vec<Recent> =
            recent.iter().map(|recent| Recent { ask: recent.ask.without_later(), until: recent.until }).collect();
        (needed(groups, &soon), needed(groups, &most(&soon, &recent.iter().collect::<Vec<_>>())))
    };
    let workers = groups.iter().zip(now.into_iter().zip(most)).map(|(group, (now, most))| {
        let before = before(group, cluster);
        let wanted = bounded(group, now);
        if group.autoscale.is_none() {
            return wanted;
        }
        let kept = bounded(group, most).min(before);
        // An operator that has just begun knows of no demand before.
        let rests = state.idle_since.and_then(|since| left(KEEP_IDLE, since, facts.now));
        if before > wanted && rests.is_some() {
            waits.extend(rests);
            return bounded(group, before);
        }
        if kept > wanted {
            waits.extend(recent.iter().filter_map(|recent| left(KEEP_IDLE, recent.until, facts.now)));
        }
        wanted.max(kept)
    });
    let mut workers: Vec<u32> = workers.collect();
    let giving = give_way(groups, &least, &mut workers, &waiting, facts);
    Desired { workers, until: waits.into_iter().min(), giving }
}

/// Within what the spec allows.
fn bounded(group: &WorkerGroup, workers: u32) -> u32 {
    match &group.autoscale {
        None => group.replicas.unwrap_or(1),
        Some(scale) => workers.clamp(scale.min.unwrap_or(0).min(scale.max), scale.max),
    }
}

/// What of demands before is still remembered, when there is another one now.
pub fn remember(before: &SchedulerState, now: Timestamp) -> Vec<Recent> {
    let ended = before.demand.iter().map(|ask| Recent { ask: ask.clone(), until: now });
    let known = before.recent.iter().filter(|recent| left(KEEP_IDLE, recent.until, now).is_some()).cloned();
    let mut all: Vec<Recent> = ended.chain(known).collect();
    // The largest first, and of equals the latest: what is smaller and older says nothing more.
    all.sort_by_key(|recent| std::cmp::Reverse((recent.ask.count, recent.until)));
    let mut kept: Vec<Recent> = Vec::new();
    for recent in all {
        let covers = |other: &Recent| is_alike(&other.ask, &recent.ask) && other.until >= recent.until;
        if kept.len() < RECENT && !kept.iter().any(covers) {
            kept.push(recent);
        }
    }
    kept
}

/// The largest demand of now and lately, by what is asked for.
fn most(demand: &[Ask], recent: &[&Recent]) -> Vec<Ask> {
    let mut most: Vec<Ask> = demand.to_vec();
    for Recent { ask, .. } in recent {
        match most.iter_mut().find(|known| is_alike(known, ask)) {
            Some(known) => known.count = known.count.max(ask.count),
            None => most.push(ask.clone()),
        }
    }
    most
}

fn is_alike(one: &Ask, other: &Ask) -> bool {
    let amounts = |ask: &Ask| -> BTreeMap<String, u64> {
        ask.resources.iter().map(|(name, amount)| (name.clone(), amount.to_bits())).collect()
    };
    one.group == other.group && amounts(one) == amounts(other)
}

/// What is left of a span that began at a moment; none if it is over.
fn left(span: Duration, since: Timestamp, now: Timestamp) -> Option<Duration> {
    let passed = now.duration_since(since).max(SignedDuration::ZERO).unsigned_abs();
    span.checked_sub(passed).filter(|left| !left.is_zero())
}

/// Without a scheduler's word nobody knows what is needed: fixed groups are complete, others stay as they were. So do those
/// that were taken away since nothing used the cluster.
fn without_word(group: &WorkerGroup, cluster: &Cluster) -> u32 {
    let known = cluster.status.groups.iter().find(|status| status.name == group.name);
    match &group.autoscale {
        None if cluster.spec.idle_timeout.is_some() && known.is_some_and(|known| known.desired == 0) => 0,
        _ => bounded(group, before(group, cluster)),
    }
}

/// What was wanted when the status was last written.
fn before(group: &WorkerGroup, cluster: &Cluster) -> u32 {
    cluster.status.groups.iter().find(|status| status.name == group.name).map_or(0, |status| status.desired)
}

/// Workers that would let everything run at once that asks for it, per group.
fn needed(groups: &[WorkerGroup], demand: &[Ask]) -> Vec<u32> {
    let mut slots = vec![0.0_f64; groups.len()];
    let mut asks: Vec<&Ask> = demand.iter().collect();
    // What can run in few places is placed before what can run anywhere.
    asks.sort_by_key(|ask| std::cmp::Reverse((ask.group.is_some(), ask.resources.len())));
    for ask in asks {
        let fits: Vec<(usize, f64)> = groups
            .iter()
            .enumerate()
            .filter(|(_, group)| ask.group.as_ref().is_none_or(|name| *name == group.name))
            .filter_map(|(at, group)| Some((at, per_worker(group, ask)?)))
            .collect();
        let plain = ask.group.is_none() && !ask.resources.contains_key("GPU");
        let open = |group: &WorkerGroup| group.gpu.as_ref().is_none_or(|gpu| gpu.allow_cpu_steps);
        let mut left = ask.count as f64;
        let mut places: Vec<(usize, f64)> =
            fits.iter().copied().filter(|(at, _)| !plain || open(&groups[*at])).collect();
        if places.is_empty() {
            places = fits;
        }
        for (index, (at, per_worker)) in places.iter().enumerate() {
            let group = &groups[*at];
            let most = group.autoscale.as_ref().map_or(group.replicas.unwrap_or(1), |scale| scale.max);
            let room = ((f64::from(most) - slots[*at]) * per_worker).max(0.0);
            // The last group that fits takes what no other had room for.
            let takes = if index + 1 == places.len() { left } else { left.min(room) };
            slots[*at] += takes / per_worker;
            left -= takes;
            if left <= 0.0 {
                break;
            }
        }
    }
    // A hair below a whole number is that number: amounts are fractions.
    slots.into_iter().map(|workers| (workers - 1e-6).ceil().clamp(0.0, f64::from(u32::MAX)) as u32).collect()
}

/// How many of the tasks one worker of the group runs at once; none if it cannot run any.
fn per_worker(group: &WorkerGroup, ask: &Ask) -> Option<f64> {
    let offers = offers(group);
    let mut at_once = f64::from(threads(group));
    for (name, amount) in &ask.resources {
        let offered = offers.get(name).copied().unwrap_or(0.0);
        if *amount > 0.0 {
            at_once = at_once.min((offered / amount + 1e-9).floor());
        }
    }
    (at_once >= 1.0).then_some(at_once)
}
