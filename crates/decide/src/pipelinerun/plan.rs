//! What to do about a run now: a function of its spec and of what is known, and of nothing else.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub use super::action::ClusterStep;
use super::advice::advised;
use super::facts::{ClusterFact, DriveFact, Facts, Frozen, Live, Place, Run, SpecFact, SweepFact};
use super::release::{self, Release, ReleaseState, shared_place};
use super::retention::{Removal, Retention, remove, retention};
use crate::cluster::facts::Issue;
use api::reason::Reason;
use run_model::{Report, RunOutcome};

/// A run that is deleted may take this long to stop its steps; then it is let go, in seconds.
const CLOSING: i64 = 60;
/// The driver ends a run at its deadline by itself. One that has not after this much longer cannot, in seconds.
const OVERDUE: i64 = 120;
/// A run that is cancelled and was open waits this long for a scheduler on which its `finally` steps can run.
const CANCELLING: Duration = Duration::from_secs(300);
/// How soon to look again whether the API server vouches for the time.
const UNTOLD: Duration = Duration::from_secs(10);
/// What is to end waits this long for a worker that can run its `finally` steps.
const STUCK: Duration = Duration::from_secs(300);

/// Everything to do in one reconciliation. All of it may be done twice.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Write the spec down.
    pub freeze: bool,
    pub finalizer: FinalizerStep,
    pub cluster: ClusterStep,
    pub drive: DriveStep,
    /// Delete the object itself.
    pub delete: bool,
    /// Remove what it has stored.
    pub removal: Option<Removal>,
    /// Have a scheduler that others use forget it.
    pub release: Option<Release>,
    pub condition: ConditionUpdate,
    /// Look again after this time even if nothing happens.
    pub wake: Option<Duration>,
}

/// About our finalizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalizerStep {
    Keep,
    /// Before the run is opened anywhere.
    Add,
    /// Nothing of it is open any more.
    Remove,
}

/// About the task that drives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriveStep {
    Keep,
    /// Start it unless it is there; ask it to end the run if `cancel`.
    Run {
        cancel: bool,
    },
    /// End it. If `leave`, the scheduler is told that the run goes on elsewhere or later: its steps are stopped.
    Stop {
        leave: bool,
    },
}

/// What to tell of the run as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionUpdate {
    pub state: State,
    pub reason: Reason,
    pub message: String,
    /// Only a person can help.
    pub stalled: bool,
}

impl ConditionUpdate {
    /// Whether the run waits for something that a person may want to know of.
    pub fn waits(&self) -> bool {
        let is_usual = matches!(
            self.reason,
            Reason::Running | Reason::Pending | Reason::Finalizing | Reason::Releasing | Reason::Suspended
        );
        matches!(self.state, State::Pending | State::Running) && !is_usual
    }
}

/// The condition in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Pending,
    Running,
    Suspended,
    Ended(RunOutcome),
    /// As it was written down before.
    AsWritten,
}

/// Decides.
pub fn plan(run: &Run, facts: &Facts) -> Plan {
    let mut planned = decide(run, facts);
    // Of an end that the driver has brought about the scheduler knows.
    if matches!(planned.condition.state, State::Ended(_)) && !matches!(facts.drive, DriveFact::Done(_)) {
        planned.release = release::begin(run, facts);
    }
    planned
}

fn decide(run: &Run, facts: &Facts) -> Plan {
    if run.has_ended() {
        return tidy(run, facts);
    }
    if let DriveFact::Done(report) = &facts.drive {
        return end(ended_condition(facts.waited.as_deref(), report));
    }
    if let Some(since) = run.deleting {
        return close(run, facts, since);
    }
    match &facts.spec {
        SpecFact::Invalid(problems) => return end(failed(Reason::Invalid, problems.clone())),
        // Nothing was opened: there is nothing to end.
        _ if run.spec.cancel && !run.held => return end(cancelled()),
        _ => {}
    }
    if let DriveFact::Broken { issue, again: None } = &facts.drive {
        return end(failed(issue.reason, issue.message.clone()));
    }
    if run.spec.suspend && !run.spec.cancel {
        return suspend(run, facts);
    }
    match &facts.spec {
        SpecFact::Frozen(frozen) => go_on(run, facts, frozen),
        SpecFact::Waits(issue, None) => waiting(from_issue(written_state(run), issue), None),
        SpecFact::Waits(issue, Some(patience)) => {
            let passed = facts.now.duration_since(run.created);
            let left =
                SignedDuration::try_from(patience.to_std()).unwrap_or(SignedDuration::MAX).saturating_sub(passed);
            if !left.is_positive() {
                let message = format!("timed out after {patience}: {}", issue.message);
                return end(failed(Reason::DeadlineExceeded, message));
            }
            waiting(from_issue(State::Pending, issue), Some(left.unsigned_abs()))
        }
        // Before it is written down, since its deadlines count from then.
        SpecFact::Valid if facts.full.is_some() => {
            waiting(facts.full.as_ref().map_or_else(cancelled, |full| from_issue(State::Pending, full)), None)
        }
        SpecFact::Valid | SpecFact::Invalid(_) => {
            let condition = match &facts.issue {
                Some(issue) => from_issue(State::Pending, issue),
                None => condition(State::Pending, Reason::Pending, "the spec is being written down".to_owned()),
            };
            Plan { freeze: true, ..waiting(condition, None) }
        }
    }
}

/// A run that is suspended. On a shared cluster it says so once its steps have stopped.
fn suspend(run: &Run, facts: &Facts) -> Plan {
    let mut message = match &run.queue {
        Some(pipeline) => format!(
            "it waits in the queue of the schedule of Pipeline {pipeline} until no other of its runs is active; with \
             spec.suspend set to false it does not wait"
        ),
        None => "spec.suspend is true; set it to false to continue".to_owned(),
    };
    let mut plan = waiting(condition(State::Suspended, Reason::Suspended, message.clone()), None);
    (plan.drive, plan.cluster) = (DriveStep::Stop { leave: true }, without(facts));
    if !run.held {
        return plan;
    }
    if shared_place(run, &facts.spec).is_none() {
        // Whether it is open somewhere is not known.
        if let (SpecFact::Waits(issue, _), None) = (&facts.spec, &run.status.cluster) {
            plan.condition = from_issue(written_state(run), issue);
        }
        return plan;
    }
    let release = release::release(run, facts);
    plan.drive = DriveStep::Stop { leave: false };
    plan.wake = release.wake;
    match &release.state {
        ReleaseState::Working(_, issue) => {
            let issue = issue.as_ref().map(|issue| format!("; {}", issue.message)).unwrap_or_default();
            let message = format!("spec.suspend is true; the run's steps are being stopped{issue}");
            plan.condition = condition(written_state(run), Reason::Releasing, message);
        }
        ReleaseState::GivenUp(_) | ReleaseState::AsWritten if !release.is_confirmed(run) => {
            message.push_str("; its steps may still run: see the condition Released");
            plan.condition.message = message;
        }
        _ => {}
    }
    plan.release = Some(release);
    plan
}

/// A run whose spec is written down and that is to run.
fn go_on(run: &Run, facts: &Facts, frozen: &Frozen) -> Plan {
    let live = match &facts.drive {
        DriveFact::Live(live) => Some(live),
        _ => None,
    };
    let open = live.is_some_and(|live| live.open);
    let now = standing(run, facts, frozen, live);
    if run.spec.cancel && !open && cannot_close(run, facts) {
        return end(cancelled());
    }
    if facts.stuck >= STUCK {
        return end(given_up(run, &now.message));
    }
    let wake = match deadline(run, facts.now, frozen, open) {
        Due::Never => None,
        Due::In(left) => Some(left),
        Due::Past(which) => {
            let message = format!("{which} has passed; it waited: {}", now.message);
            let condition = if run.spec.cancel { cancelled() } else { failed(Reason::DeadlineExceeded, message) };
            return end(condition);
        }
    };
    let mut plan = waiting(now, wake);
    if facts.full.is_some() {
        // What the scheduler has of it goes on.
        plan.drive = DriveStep::Stop { leave: false };
        return plan;
    }
    if let (ClusterFact::Missing, Place::Own) = (&facts.cluster, &frozen.place) {
        plan.cluster = ClusterStep::Make;
    }
    let ready = matches!(facts.cluster, ClusterFact::Answers(_)) || live.is_some();
    let pausing = match &facts.drive {
        DriveFact::Broken { again, .. } => *again,
        _ => None,
    };
    match pausing {
        Some(pause) if !pause.is_zero() => plan.wake = Some(plan.wake.map_or(pause, |wake| wake.min(pause))),
        // That it was let go of is taken back before it is open again.
        _ if ready && release::condition(run).is_some() => plan.wake = Some(Duration::ZERO),
        _ if ready => {
            plan.finalizer = if run.held { FinalizerStep::Keep } else { FinalizerStep::Add };
            plan.drive = DriveStep::Run { cancel: run.spec.cancel };
        }
        _ => {}
    }
    plan
}

/// Whether nobody can bring a cancelled run to its end: it was never open, and the scheduler cannot be had; or it was, and
/// the scheduler did not come back.
fn cannot_close(run: &Run, facts: &Facts) -> bool {
    let stuck = match (&facts.cluster, &facts.drive) {
        (_, DriveFact::Broken { .. }) => true,
        (_, DriveFact::Live(live)) => live.before.is_some(),
        (cluster, _) => !matches!(cluster, ClusterFact::Answers(_)),
    };
    stuck && run.status.started_at.is_none() || facts.cancelling > CANCELLING
}

/// The end of a run whose `finally` steps no worker can run.
fn given_up(run: &Run, message: &str) -> ConditionUpdate {
    if run.spec.cancel {
        let cancelled = cancelled();
        return ConditionUpdate { message: format!("{}; {message}", cancelled.message), ..cancelled };
    }
    failed(Reason::DeadlineExceeded, format!("the run was not finished within its deadlines; {message}"))
}

enum Due {
    Never,
    In(Duration),
    Past(&'static str),
}

/// The deadline that is the operator's to keep: the driver keeps those of a run that it has open.
fn deadline(run: &Run, now: Timestamp, frozen: &Frozen, open: bool) -> Due {
    let start = Some(frozen.start).filter(|_| !open && run.status.started_at.is_none());
    let start = start.map(|start| (start, "deadlines.start"));
    // Where it is open, its `finally` steps have their own time, which nothing may bound.
    let finally = if open { frozen.finally } else { Some(Duration::ZERO) };
    let active =
        frozen.active.zip(finally).map(|(active, finally)| (active.saturating_add(finally), "deadlines.active"));
    let slack = if open { OVERDUE } else { 0 };
    let passed = now.duration_since(frozen.since);
    let left = |span: Duration| SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX).saturating_sub(passed);
    let due = start.into_iter().chain(active).map(|(span, which)| (left(span), which)).min();
    match due {
        None => Due::Never,
        Some((left, which)) => {
            let left = left.saturating_add(SignedDuration::from_secs(slack));
            if left.is_positive() { Due::In(left.unsigned_abs()) } else { Due::Past(which) }
        }
    }
}

/// Of a run that is not open now.
fn written_state(run: &Run) -> State {
    if run.status.started_at.is_some() { State::Running } else { State::Pending }
}

/// Where the run stands, in one line.
fn standing(run: &Run, facts: &Facts, frozen: &Frozen, live: Option<&Live>) -> ConditionUpdate {
    let state = written_state(run);
    if let Some(full) = &facts.full {
        return from_issue(state, full);
    }
    if let Some(live) = live.filter(|live| live.open) {
        return running(live, &facts.cluster, frozen);
    }
    if let Some(issue) = &facts.issue {
        return from_issue(state, issue);
    }
    match &facts.cluster {
        ClusterFact::Waits(issue) => return from_issue(state, issue),
        ClusterFact::Missing => {
            return match &frozen.place {
                Place::Own => {
                    condition(state, Reason::Pending, format!("the DaskCluster {} is being created", run.name))
                }
                Place::Shared(name) => {
                    let message = format!(
                        "DaskCluster \"{name}\" does not exist in the namespace; create it, and the run continues"
                    );
                    condition(state, Reason::ClusterNotFound, message)
                }
                Place::Address { .. } => condition(state, Reason::Pending, "checking the address".to_owned()),
            };
        }
        ClusterFact::Answers(_) => {}
    }
    match (&facts.drive, live) {
        (DriveFact::Broken { issue, .. }, _) | (_, Some(Live { before: Some(issue), .. })) => {
            from_issue(state, &advised(issue, frozen))
        }
        (_, Some(Live { lost: Some(cause), .. })) => {
            let message = format!("lost the scheduler: {cause}; the run continues when it is back");
            condition(state, Reason::SchedulerUnreachable, message)
        }
        _ => condition(state, Reason::Pending, "the run is being opened on the scheduler".to_owned()),
    }
}

/// A run that is open.
fn running(live: &Live, cluster: &ClusterFact, frozen: &Frozen) -> ConditionUpdate {
    if let Some(issue) = &live.storage {
        let mut condition = from_issue(State::Running, &advised(issue, frozen));
        if issue.reason == Reason::StorageUnreachable {
            condition.message.push_str("; steps wait until it can be reached");
        }
        return condition;
    }
    match (workerless(live, cluster), live.is_ending()) {
        (Some(issue), true) => {
            let message = format!("`finally` steps wait: {}", issue.message);
            condition(State::Running, Reason::Finalizing, message)
        }
        (None, true) => {
            condition(State::Running, Reason::Finalizing, "running steps are stopped, `finally` steps run".to_owned())
        }
        (Some(issue), false) => from_issue(State::Running, &issue),
        (None, false) if live.counts.finalizing => {
            condition(State::Running, Reason::Finalizing, "all other steps have ended, `finally` steps run".to_owned())
        }
        (None, false) => condition(State::Running, Reason::Running, "steps run".to_owned()),
    }
}

/// Why no worker can run what waits, if nothing runs.
fn workerless(live: &Live, cluster: &ClusterFact) -> Option<Issue> {
    let (step, (count, message)) = live.blocked.iter().next().filter(|_| live.is_blocked())?;
    // The cluster knows better why nobody is there.
    if let ClusterFact::Answers(Some(issue)) = cluster {
        return Some(issue.clone());
    }
    let tasks = if *count == 1 { "1 task waits".to_owned() } else { format!("{count} tasks wait") };
    Some(Issue::new(Reason::NoWorkers, format!("step {step}: {tasks}: {message}")))
}

/// A run that has ended: what it needed goes, and in the end itself.
fn tidy(run: &Run, facts: &Facts) -> Plan {
    // Not written: the conditions stay as they are.
    let condition = condition(State::AsWritten, Reason::Pending, String::new());
    let mut plan = waiting(condition, None);
    // One that did not end by itself may still be open.
    plan.drive = DriveStep::Stop { leave: true };
    plan.cluster = without(facts);
    if run.held {
        plan.finalizer = FinalizerStep::Remove;
    }
    if release::is_due(run) {
        let release = release::release(run, facts);
        (plan.drive, plan.wake) = (DriveStep::Stop { leave: false }, release.wake);
        let is_over = release.is_over();
        plan.release = Some(release);
        // Until then nothing else is taken away.
        if !is_over {
            plan.finalizer = FinalizerStep::Keep;
            return plan;
        }
    }
    let begun = matches!(facts.sweep, SweepFact::Live | SweepFact::Done { .. });
    match retention(run, facts.now) {
        // By a clock that may be ahead its time has come: what is removed does not come back.
        Retention::Now(_) if run.deleting.is_none() && !facts.fresh && !begun => {
            (plan.cluster, plan.wake) = (ClusterStep::Keep, Some(UNTOLD));
            return plan;
        }
        Retention::Now(due) if run.deleting.is_none() => {
            let (removal, cluster) = remove(due, facts);
            (plan.cluster, plan.wake) = (cluster, removal.wake);
            plan.removal = Some(removal);
            return plan;
        }
        // The object stays as long as something is to be done because of it.
        Retention::Later(left) => {
            plan.wake = Some(left);
            return plan;
        }
        Retention::Now(_) | Retention::Nothing => {}
    }
    let ended = run.status.finished_at.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
    if let (Some(ended), Some(ttl), None) = (ended, &run.spec.ttl_after_finished, run.deleting) {
        let ttl = SignedDuration::try_from(ttl.to_std()).unwrap_or(SignedDuration::MAX);
        let left = ttl.saturating_sub(facts.now.duration_since(ended));
        plan.delete = !left.is_positive() && facts.fresh;
        plan.wake = if left.is_positive() { Some(left.unsigned_abs()) } else { Some(UNTOLD).filter(|_| !facts.fresh) };
    }
    plan
}

/// A run that is being deleted: its steps are stopped, for as long as that may take.
fn close(run: &Run, facts: &Facts, since: Timestamp) -> Plan {
    let message = "it is being deleted: running steps are stopped".to_owned();
    let mut plan = waiting(condition(State::Running, Reason::Finalizing, message), None);
    let left = CLOSING - facts.now.duration_since(since).as_secs();
    let may_be_open = matches!(facts.drive, DriveFact::Live(_)) || matches!(facts.cluster, ClusterFact::Answers(_));
    if run.held && may_be_open && left > 0 && matches!(facts.spec, SpecFact::Frozen(_)) {
        if facts.full.is_some() {
            plan.drive = DriveStep::Stop { leave: false };
            plan.wake = Some(Duration::from_secs(left.unsigned_abs()));
            return plan;
        }
        if release::condition(run).is_some() {
            plan.wake = Some(Duration::ZERO);
            return plan;
        }
        plan.drive = DriveStep::Run { cancel: true };
        plan.wake = Some(Duration::from_secs(left.unsigned_abs()));
        return plan;
    }
    plan.drive = DriveStep::Stop { leave: true };
    plan.finalizer = if run.held { FinalizerStep::Remove } else { FinalizerStep::Keep };
    let is_gone = matches!((&facts.spec, &facts.cluster), (SpecFact::Frozen(_), ClusterFact::Missing));
    if run.held && !is_gone && shared_place(run, &facts.spec).is_some() {
        let release = release::release(run, facts);
        plan.drive = DriveStep::Stop { leave: false };
        if !release.is_over() {
            (plan.finalizer, plan.wake) = (FinalizerStep::Keep, release.wake);
        }
        plan.release = Some(release);
    }
    plan
}

fn without(facts: &Facts) -> ClusterStep {
    if facts.owned { ClusterStep::Delete } else { ClusterStep::Keep }
}

/// The end: it is written first, and everything else follows from that.
fn end(condition: ConditionUpdate) -> Plan {
    Plan { wake: Some(Duration::ZERO), drive: DriveStep::Keep, ..waiting(condition, None) }
}

fn waiting(condition: ConditionUpdate, wake: Option<Duration>) -> Plan {
    Plan {
        freeze: false,
        finalizer: FinalizerStep::Keep,
        cluster: ClusterStep::Keep,
        drive: DriveStep::Keep,
        delete: false,
        removal: None,
        release: None,
        condition,
        wake,
    }
}

fn ended_condition(waited: Option<&str>, report: &Report) -> ConditionUpdate {
    let (reason, message) = match report.outcome {
        RunOutcome::Succeeded => (Reason::Succeeded, "all steps succeeded".to_owned()),
        RunOutcome::Cancelled => return cancelled(),
        RunOutcome::Failed => {
            // `StepFailed` is the command's word for what the condition calls Failed.
            let reason = report.reason.filter(|reason| *reason != Reason::StepFailed);
            let mut message = report.message.clone().unwrap_or_else(|| "a step failed".to_owned());
            if let Some(waited) = waited.filter(|_| reason == Some(Reason::DeadlineExceeded)) {
                message = format!("{message}; it waited: {waited}");
            }
            (reason.unwrap_or(Reason::Failed), message)
        }
    };
    ConditionUpdate {
        state: State::Ended(report.outcome),
        reason,
        message,
        stalled: report.outcome == RunOutcome::Failed,
    }
}

fn failed(reason: Reason, message: String) -> ConditionUpdate {
    ConditionUpdate { state: State::Ended(RunOutcome::Failed), reason, message, stalled: true }
}

fn cancelled() -> ConditionUpdate {
    let message = "cancelled by the user (spec.cancel)".to_owned();
    condition(State::Ended(RunOutcome::Cancelled), Reason::Cancelled, message)
}

fn condition(state: State, reason: Reason, message: String) -> ConditionUpdate {
    ConditionUpdate { state, reason, message, stalled: false }
}

fn from_issue(state: State, issue: &Issue) -> ConditionUpdate {
    let Issue { reason, message, stalled } = issue;
    ConditionUpdate { state, reason: *reason, message: message.clone(), stalled: *stalled }
}
