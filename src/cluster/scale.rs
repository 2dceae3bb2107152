//! How many workers each group should have.

use std::time::Duration;

use super::{
    facts::{Ask, Cluster, Facts, SchedulerFact, SchedulerState},
    offers, threads,
};
use crate::api::cluster::WorkerGroup;

/// A worker without work is kept this long: the next step of a run, or a person's next line, often follows at once.
const KEEP_IDLE: Duration = Duration::from_secs(30);

/// The number of workers wanted per group, in the order of `groups`.
pub fn desired(cluster: &Cluster, groups: &[WorkerGroup], facts: &Facts) -> Vec<u32> {
    if cluster.spec.suspend {
        return vec![0; groups.len()];
    }
    let SchedulerFact::Answers(state) = &facts.scheduler else {
        return groups.iter().map(|group| without_word(group, cluster)).collect();
    };
    if let (Some(timeout), Some(since)) = (&cluster.spec.idle_timeout, state.idle_since) {
        let idle = facts.now.duration_since(since);
        if idle.unsigned_abs() >= timeout.to_std() && idle.is_positive() {
            return vec![0; groups.len()];
        }
    }
    let needed = needed(groups, &state.demand);
    groups.iter().zip(needed).map(|(group, needed)| sized(group, needed, cluster, state, facts)).collect()
}

/// Without a scheduler's word nobody knows what is needed: fixed groups are complete, others stay as they were.
fn without_word(group: &WorkerGroup, cluster: &Cluster) -> u32 {
    match &group.autoscale {
        None => group.replicas.unwrap_or(1),
        Some(scale) => {
            let before = cluster.status.groups.iter().find(|status| status.name == group.name);
            before.map_or(0, |status| status.desired).clamp(scale.min.unwrap_or(0).min(scale.max), scale.max)
        }
    }
}

fn sized(group: &WorkerGroup, needed: u32, cluster: &Cluster, state: &SchedulerState, facts: &Facts) -> u32 {
    let Some(scale) = &group.autoscale else { return group.replicas.unwrap_or(1) };
    let (min, max) = (scale.min.unwrap_or(0).min(scale.max), scale.max);
    let wanted = needed.clamp(min, max);
    let before =
        cluster.status.groups.iter().find(|status| status.name == group.name).map_or(0, |status| status.desired);
    let rested = state.idle_since.is_none_or(|since| facts.now.duration_since(since).unsigned_abs() >= KEEP_IDLE);
    if wanted < before && state.idle_since.is_some() && !rested {
        return before.clamp(min, max);
    }
    wanted
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
