//! What to do: one change, the due moments of the schedule, the queue and the history.

use jiff::{SignedDuration, Timestamp};

use super::action::{Action, Cause};
use super::facts::{Facts, Origin, RunFact, Subject};
use super::hash::{self, VERSION};
use super::history;
use super::moments::Timing;
use super::names;
use crate::cluster::facts::Issue;
use api::pipeline::{ConcurrencyPolicy, Schedule};
use api::reason::Reason;

/// Most runs that wait in a queue.
pub const QUEUE_MAX: usize = 100;
/// Most runs that changes make of one spec within an hour, counted by their names and the times at which they were made,
/// which nobody can change: the net below everything else that keeps a change from making more than one.
pub const CHANGES_MAX: usize = 20;
const CHANGES_SPAN: SignedDuration = SignedDuration::from_hours(1);
/// A moment that is looked at within this time is on time, and not one to be made up for.
const ON_TIME: SignedDuration = SignedDuration::from_secs(60);
/// Moments made up for unless the schedule says otherwise.
const CATCH_UP: u32 = 1;

/// What to do, and what is so as long as nothing is done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// In this order. After them, what there is then is to be planned anew.
    pub actions: Vec<Action>,
    /// For the status.
    pub marks: Marks,
    /// What was decided without an action.
    pub notes: Vec<Note>,
    /// Why something is not done now that is due.
    pub issue: Option<Issue>,
    /// When to look again even if nothing happens.
    pub wake: Option<Timestamp>,
}

/// What was decided, for the status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    pub last_triggered: Option<String>,
    pub last_schedule: Option<Timestamp>,
    /// The first moment that is not decided.
    pub next: Option<Timestamp>,
}

/// Something worth an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub warning: bool,
    /// A documented reason.
    pub reason: Reason,
    pub text: String,
}

/// Decides. `timing` is that of the spec's schedule; a schedule without one has no moments.
pub fn plan(subject: &Subject, timing: Option<&Timing>, facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    change(subject, facts, &mut plan);
    let schedule = subject.spec.schedule.as_ref();
    plan.marks.last_schedule = last_schedule(subject, facts);
    if let (Some(schedule), Some(timing)) = (schedule, timing)
        && !schedule.suspend
    {
        moments(subject, schedule, timing, facts, &mut plan);
    }
    if schedule.is_none_or(|schedule| !schedule.suspend) {
        queue(schedule, facts, &mut plan);
    }
    if let Some(schedule) = schedule {
        history::plan(schedule, facts, &mut plan.actions);
    }
    plan
}

/// A spec that differs from that of the last run by change makes one.
fn change(subject: &Subject, facts: &Facts, plan: &mut Plan) {
    let wanted = hash::hash(&subject.spec);
    let triggers = subject.spec.triggers.as_ref();
    let on_change = triggers.and_then(|triggers| triggers.on_change).unwrap_or(subject.spec.schedule.is_none());
    if !on_change {
        // What is there while changes make no runs is no change later.
        plan.marks.last_triggered = Some(wanted);
        return;
    }
    let last = last_triggered(subject, facts, Some(&wanted));
    let has_its_run = match &last {
        // Written by a version with other rules, which cannot be compared: an update makes no runs.
        Some(last) => *last == wanted || !last.starts_with(VERSION),
        // The Pipeline was made anew, as from a backup: what ran is not run twice.
        None => facts.runs.iter().any(|run| matches!(&run.origin, Origin::Change { hash, .. } if *hash == wanted)),
    };
    if has_its_run || facts.has_made(&wanted) {
        plan.marks.last_triggered = Some(wanted);
        return;
    }
    plan.marks.last_triggered = last;
    if let Some((issue, again)) = too_many(subject, facts, &wanted) {
        (plan.issue, plan.wake) = (Some(issue), again);
        return;
    }
    let name = free_name(facts, |n| names::change_name(&subject.name, &wanted, n));
    plan.actions.push(Action::Create { name, cause: Cause::Change { hash: wanted }, queued: false });
}

/// Hash of the spec for which a change last made a run. Status and runs are written one after the other: a run of the
/// generation that the status is about, or of a later one, is news to the status.
///
/// Of which generation a run is, only an annotation says, so it decides as little as possible: a run that is older than the
/// last one of the status is no news, one that claims to be of the present generation counts only if it has the spec of that
/// one (`wanted`), and once the status is about that one, nothing else counts. So a spec is found to have its run as soon as
/// the status knows of it, whatever is written on any run.
pub(super) fn last_triggered(subject: &Subject, facts: &Facts, wanted: Option<&str>) -> Option<String> {
    let status = &subject.status;
    let present = subject.generation;
    // A status of an object that was there before this one says nothing about generations.
    let observed = status.observed_generation.filter(|observed| *observed <= present).unwrap_or(0);
    let last = status.last_run.as_ref().and_then(|name| facts.runs.iter().find(|run| run.name == *name));
    let is_news = |run: &&RunFact| last.is_none_or(|last| run.created >= last.created && run.name != last.name);
    let changes = facts.runs.iter().filter(is_news).filter_map(|run| match &run.origin {
        Origin::Change { hash, pipeline, generation }
            if *pipeline == subject.uid && names::is_change_name(&subject.name, hash, &run.name) =>
        {
            Some((hash, (*generation).min(present)))
        }
        Origin::Change { .. } | Origin::Schedule { .. } | Origin::Manual => None,
    });
    let can_be = |(hash, generation): &(&String, i64)| {
        *generation >= observed && (*generation < present || wanted == Some(hash.as_str()))
    };
    let newest = changes.filter(can_be).max_by_key(|(_, generation)| *generation);
    newest.map(|(hash, _)| hash.clone()).or_else(|| status.last_triggered.clone())
}

/// Why no further run of the spec with this hash is made now, and when one may be.
fn too_many(subject: &Subject, facts: &Facts, wanted: &str) -> Option<(Issue, Option<Timestamp>)> {
    let is_one = |name: &String| names::is_change_name(&subject.name, wanted, name);
    let young = |run: &&RunFact| facts.now.duration_since(run.created) < CHANGES_SPAN;
    let mut made: Vec<Timestamp> =
        facts.runs.iter().filter(|run| is_one(&run.name)).filter(young).map(|run| run.created).collect();
    // When those were made that do not belong to the Pipeline any more is not known.
    let others = facts.taken.iter().filter(|name| is_one(name)).count();
    let beyond = (made.len() + others).checked_sub(CHANGES_MAX)?;
    made.sort();
    let again = made.get(beyond).and_then(|first| first.checked_add(CHANGES_SPAN).ok());
    let name = names::change_name(&subject.name, wanted, 1);
    let message = format!(
        "{} runs of this spec were created in the last hour ({name}, {name}-2, …), so no more are created; find out \
         what changes the Pipeline or its runs so often",
        made.len() + others
    );
    Some((Issue::new(Reason::TooManyRuns, message), again))
}

fn free_name(facts: &Facts, name: impl Fn(u32) -> String) -> String {
    let is_free = |name: &String| !facts.taken.contains(name) && facts.runs.iter().all(|run| run.name != *name);
    (1..u32::MAX).map(&name).find(is_free).unwrap_or_else(|| name(1))
}

fn last_schedule(subject: &Subject, facts: &Facts) -> Option<Timestamp> {
    let told = subject.status.last_schedule_time.as_ref().and_then(|time| time.parse().ok());
    facts.runs.iter().filter_map(RunFact::moment).max().max(told)
}

/// Runs that may not run at the same time as the next one: those that the Pipeline made itself.
fn active(facts: &Facts) -> impl Iterator<Item = &RunFact> {
    facts.runs.iter().filter(|run| run.is_active() && run.origin != Origin::Manual)
}

/// Decides the moments that are due.
fn moments(subject: &Subject, schedule: &Schedule, timing: &Timing, facts: &Facts, plan: &mut Plan) {
    let now = facts.now;
    plan.marks.next = timing.after(now);
    plan.wake = plan.wake.into_iter().chain(plan.marks.next).min();
    let Some(first) = first_undecided(subject, timing, facts) else { return };
    let policy = schedule.concurrency_policy.unwrap_or_default();
    let catch_up = schedule.catch_up.unwrap_or(CATCH_UP) as usize;
    let due = timing.between(first, now, catch_up.max(1) + 1);
    let Some(latest) = due.first() else { return };
    let on_time = now.duration_since(*latest) <= ON_TIME;
    let mut most = catch_up.max(usize::from(on_time));
    if matches!(policy, ConcurrencyPolicy::Forbid | ConcurrencyPolicy::Replace) {
        most = most.min(1);
    }
    if due.len() > most {
        let text =
            format!("skipped missed schedule times up to {} (catchUp is {catch_up})", due.get(most).unwrap_or(latest));
        plan.notes.push(Note { warning: true, reason: Reason::MomentsMissed, text });
    }
    // A run that a change is about to make counts as one that is there.
    let wait = !plan.actions.is_empty();
    let mut undecided = None;
    let mut queued = facts.runs.iter().filter(|run| run.queued && run.is_active()).count();
    for moment in due.into_iter().take(most).filter(|moment| !facts.has_run(*moment)) {
        if let Some(why) = too_late(schedule, moment, now) {
            let text = format!("skipped {moment}: {why}");
            plan.notes.push(Note { warning: true, reason: Reason::MomentsMissed, text });
            continue;
        }
        if !wait {
            let busy = active(facts).next();
            let mut queue = false;
            match (policy, busy) {
                (ConcurrencyPolicy::Forbid, Some(run)) => {
                    let text = format!("skipped {moment}: run {} is active and concurrencyPolicy is Forbid", run.name);
                    plan.notes.push(Note { warning: false, reason: Reason::MomentSkipped, text });
                    continue;
                }
                (ConcurrencyPolicy::Replace, Some(_)) => {
                    let why = format!("the run for {moment} is due and concurrencyPolicy is Replace");
                    let old = active(facts).filter(|run| !run.cancelled);
                    plan.actions.extend(old.map(|run| cancel(run, why.clone())));
                }
                (ConcurrencyPolicy::Queue, busy) => {
                    queue = busy.is_some() || most > 1;
                    if queue && queued >= QUEUE_MAX {
                        let text = format!("skipped {moment}: {QUEUE_MAX} runs are already waiting");
                        plan.notes.push(Note { warning: true, reason: Reason::MomentSkipped, text });
                        continue;
                    }
                    queued += usize::from(queue);
                }
                (ConcurrencyPolicy::Allow, _) | (_, None) => {}
            }
            let name = free_name(facts, |n| names::moment_name(&subject.name, moment, n));
            plan.actions.push(Action::Create { name, cause: Cause::Schedule { moment }, queued: queue });
        }
        undecided = Some(moment);
    }
    // Until its run is there, a moment is not decided.
    plan.marks.next = undecided.or(plan.marks.next);
}

/// From which moment on nothing is decided; none if that is in the future.
fn first_undecided(subject: &Subject, timing: &Timing, facts: &Facts) -> Option<Timestamp> {
    let status = &subject.status;
    match status.next_schedule_time.as_ref().and_then(|time| time.parse().ok()) {
        // Otherwise it is of a schedule that was changed since: the new one begins now.
        Some(next) => timing.has(next).then_some(next),
        // Just made, or without its status.
        None if status.observed_generation.is_none() => {
            let ran = facts.runs.iter().filter_map(RunFact::moment).max();
            ran.map_or_else(|| timing.first(subject.created), |ran| timing.after(ran.max(subject.created)))
        }
        // The schedule is new, or was suspended.
        None => None,
    }
}

fn too_late(schedule: &Schedule, moment: Timestamp, now: Timestamp) -> Option<String> {
    let limit = schedule.starting_deadline?;
    let late = std::time::Duration::try_from(now.duration_since(moment)).unwrap_or_default();
    (late > limit.to_std()).then(|| format!("startingDeadline ({limit}) has passed"))
}

fn cancel(run: &RunFact, why: String) -> Action {
    Action::Cancel { name: run.name.clone(), uid: run.uid.clone(), why }
}

/// Lets the first run of the queue begin when nothing else is active, and ends those that have waited too long.
fn queue(schedule: Option<&Schedule>, facts: &Facts, plan: &mut Plan) {
    let mut waiting: Vec<(Timestamp, &RunFact)> = facts
        .runs
        .iter()
        .filter(|run| run.queued && run.is_active() && !run.cancelled)
        .filter_map(|run| Some((run.moment()?, run)))
        .collect();
    waiting.sort_by_key(|(moment, _)| *moment);
    waiting.retain(|(moment, run)| {
        let Some(schedule) = schedule else { return true };
        if let Some(why) = too_late(schedule, *moment, facts.now) {
            plan.actions.push(cancel(run, why));
            return false;
        }
        if let Some(limit) = schedule.starting_deadline
            && let Ok(limit) = SignedDuration::try_from(limit.to_std())
            && let Ok(end) = moment.checked_add(limit)
        {
            let end = end.saturating_add(SignedDuration::from_millis(1)).unwrap_or(end);
            plan.wake = Some(plan.wake.map_or(end, |wake| wake.min(end)));
        }
        true
    });
    let busy = active(facts).any(|run| !run.queued) || plan.actions.iter().any(is_start);
    if let Some((_, run)) = waiting.first().filter(|_| !busy) {
        plan.actions.push(Action::Release { name: run.name.clone(), uid: run.uid.clone() });
    }
}

fn is_start(action: &Action) -> bool {
    matches!(action, Action::Create { queued: false, .. } | Action::Release { .. })
}
