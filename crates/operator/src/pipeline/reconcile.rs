//! One pass over one Pipeline: its runs, what [`pipeline::plan`] decides about them, and what to tell.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use crate::apiserver::apply;
use crate::apiserver::cache::Entry;
use crate::apiserver::error::{Class, ReconcileError};
use crate::apiserver::record::{Kind, Record};
use crate::apiserver::scope::Scope;
use crate::apiserver::whole::{self, Whole};
use crate::backoff::jittered;
use crate::controller::events::{Events, Note, notes};
use crate::controller::{Controller, Desk, Done};
use crate::leader::clock::Clock;
use crate::pipeline::writes::{Made, Writer};
use crate::pipelinerun::references::is_allowed;
use crate::queue::Key;
use api::problem::{Problem, listed};
use api::status::PipelineStatus;
use decide::cluster::names::QUEUE_LABEL;
use decide::pipeline::{self, Action, Cause, Facts, Issue, Plan, Subject, Timing};
use lower::allowed::RunLimits;
use telemetry::metrics::{self, Outcome};

/// Every Pipeline is looked at about this often even if nothing happens: moments are kept by a clock that may stand still
/// while the machine sleeps.
const PERIOD: Duration = Duration::from_secs(60);
/// Rounds of planning and acting in one pass; then others have their turn.
const ROUNDS: usize = 10;
/// How many runs are remembered that were created and are not in the status yet.
const DEEDS: usize = 100;

/// What passes share.
pub(crate) struct Pipelines {
    pub client: Client,
    pub desk: Desk<Memory>,
    pub events: Events,
    pub scope: Scope,
    /// What one run may ask for.
    pub limits: RunLimits,
    /// Addresses of schedulers outside that may be used.
    pub allowed: Vec<Regex>,
    pub clock: Clock,
}

/// What is remembered of a Pipeline from one pass to the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// What the checks said of a uid and generation.
    checked: Option<(String, i64, Result<(), String>)>,
    deeds: Deeds,
    /// What a pass saw that left nothing to do: the cache's revision, and the moment until which that holds.
    settled: Option<(u64, Option<Timestamp>)>,
}

/// What was done for one generation of a Pipeline. Runs may be changed by others, also so that they do not look like its own
/// any more; what was done stays done.
#[derive(Debug, Default)]
struct Deeds {
    uid: String,
    generation: i64,
    made: Vec<Cause>,
    taken: BTreeSet<String>,
}

impl Deeds {
    fn begin(&mut self, subject: &Subject) -> Facts {
        if self.uid != subject.uid || self.generation != subject.generation {
            *self = Self { uid: subject.uid.clone(), generation: subject.generation, ..Self::default() };
        }
        Facts { made: self.made.clone(), taken: self.taken.clone(), ..Facts::default() }
    }

    fn keep(&mut self, facts: &Facts) {
        self.taken.clone_from(&facts.taken);
        self.made = facts.made.iter().skip(facts.made.len().saturating_sub(DEEDS)).cloned().collect();
    }

    /// The status includes the schedule times now.
    fn told(&mut self) {
        self.made.retain(|cause| matches!(cause, Cause::Change { .. }));
    }
}

impl Controller for Pipelines {
    type Memory = Memory;

    const NAME: metrics::Controller = metrics::Controller::Pipeline;

    async fn pass(&self, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
        let entry = self.desk.sink.cache.entry(key).unwrap_or_default();
        let Some(record) = &entry.root else {
            // Its runs go on by themselves.
            return Ok(Done { outcome: Outcome::Settled, again: None, left: None, gone: true });
        };
        if !self.scope.has(&key.namespace) {
            return Ok(Done { outcome: Outcome::Settled, again: None, left: None, gone: false });
        }
        if let Some(again) = self.rests(key, record, &entry, memory) {
            return Ok(Done { outcome: Outcome::Settled, again: Some(again), left: None, gone: false });
        }
        memory.settled = None;
        let Whole { record, value, refused, .. } = &whole::read(&self.client, Kind::Pipeline, key, record, 0).await?;
        let mut subject = read_subject(key, record, value);
        tracing::Span::current().record("uid", &subject.uid).record("generation", subject.generation);
        if value.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null()) {
            return Ok(Done { outcome: Outcome::Waiting, again: None, left: None, gone: false });
        }
        let spec = value.get("spec").unwrap_or(&Value::Null);
        let checked = refused.clone().map_or_else(|| self.spec(memory, &subject, spec), Err);
        match checked {
            Ok(read) => subject.spec = read,
            Err(message) => {
                let facts = Facts { now: self.clock.now(), runs: runs(&entry), ..Facts::default() };
                let status = pipeline::invalid_status(&subject, &facts, &message);
                self.tell(key, &subject, &status, Vec::new()).await?;
                memory.settled = self.is_still(key, &entry).then_some((entry.revision, None));
                return Ok(Done {
                    outcome: Outcome::Invalid,
                    again: Some(jittered(PERIOD, key)),
                    left: None,
                    gone: false,
                });
            }
        }
        let writer = Writer { client: &self.client, cache: &self.desk.sink.cache, key, subject: &subject, spec };
        let timing = subject.spec.schedule.as_ref().and_then(|schedule| Timing::read(schedule, subject.created).ok());
        let mut facts = memory.deeds.begin(&subject);
        let mut made: Vec<Note> = Vec::new();
        let mut error = None;
        let mut confirmed = false;
        let mut planned = Plan::default();
        for round in 0..=ROUNDS {
            facts.now = self.clock.now();
            facts.runs = runs(&self.desk.sink.cache.entry(key).unwrap_or_default());
            planned = pipeline::plan(&subject, timing.as_ref(), &facts);
            if planned.actions.is_empty() || error.is_some() || round == ROUNDS {
                break;
            }
            if !std::mem::replace(&mut confirmed, true) {
                self.own(key, &subject.uid).confirm(Kind::Pipeline, subject.generation).await?;
            }
            for action in &planned.actions {
                let done = act(&writer, action, &mut facts).await;
                memory.deeds.keep(&facts);
                match done {
                    Ok(note) => made.extend(note),
                    Err(cause) => {
                        facts.issue = issue(&cause);
                        error = Some(cause);
                        break;
                    }
                }
            }
        }
        if let Some(error) = error.take_if(|error| error.class() == Class::Fenced) {
            return Err(error);
        }
        let left = !planned.actions.is_empty();
        let status = pipeline::build_status(&subject, &facts, &planned);
        made.extend(planned.notes.into_iter().map(|note| Note {
            warning: note.warning,
            reason: note.reason.to_owned(),
            action: "Schedule",
            text: note.text,
        }));
        self.tell(key, &subject, &status, made).await?;
        memory.deeds.told();
        if let Some(error) = error {
            return Err(error);
        }
        let wake = planned.wake.map(|wake| Duration::try_from(wake.duration_since(facts.now)).unwrap_or_default());
        let period = jittered(PERIOD, key);
        let again = wake.map_or(period, |wake| wake.min(period));
        memory.settled = (!left && self.is_still(key, &entry)).then_some((entry.revision, planned.wake));
        let left = left.then_some(Duration::ZERO);
        Ok(Done { outcome: Outcome::Settled, again: Some(again), left, gone: false })
    }

    fn desk(&self) -> &Desk<Memory> {
        &self.desk
    }
}

impl Pipelines {
    /// When to look again at a Pipeline for which nothing has changed and nothing is due, if it would have to be read for
    /// that.
    fn rests(&self, key: &Key, record: &Record, entry: &Entry, memory: &Memory) -> Option<Duration> {
        let (_, wake) = memory.settled.filter(|(revision, _)| *revision == entry.revision)?;
        let left = wake.map(|wake| Duration::try_from(wake.duration_since(self.clock.now())).unwrap_or_default());
        let period = jittered(PERIOD, key);
        let again = left.map_or(period, |left| left.min(period));
        (record.weight() > 0 && !again.is_zero()).then_some(again)
    }

    /// Nothing has come in during a pass.
    fn is_still(&self, key: &Key, entry: &Entry) -> bool {
        self.desk.sink.cache.revision(key) == entry.revision
    }

    /// Writes of the Pipeline itself.
    fn own<'a>(&'a self, key: &'a Key, uid: &'a str) -> apply::Writer<'a> {
        apply::Writer { client: &self.client, cache: &self.desk.sink.cache, key, uid }
    }

    /// Writes the status if it says something new, and publishes what happened.
    async fn tell(
        &self,
        key: &Key,
        subject: &Subject,
        status: &PipelineStatus,
        made: Vec<Note>,
    ) -> Result<(), ReconcileError> {
        // Runs were made and cancelled whether or not that can be written down.
        let (now, later): (Vec<Note>, Vec<Note>) = made.into_iter().partition(|note| note.action != "Schedule");
        let publish = |note| self.events.publish(Kind::Pipeline, key, &subject.uid, note);
        now.into_iter().for_each(publish);
        if *status == subject.status {
            return Ok(());
        }
        self.own(key, &subject.uid).write_status(Kind::Pipeline, status).await?;
        later.into_iter().for_each(publish);
        notes(&subject.status.conditions, &status.conditions).into_iter().for_each(publish);
        Ok(())
    }
}

fn runs(entry: &Entry) -> Vec<pipeline::RunFact> {
    entry.children.values().filter_map(|record| Some(pipeline::read_run(&record.json())?.1)).collect()
}

/// The Pipeline with an empty spec.
fn read_subject(key: &Key, record: &Record, value: &Value) -> Subject {
    let status = value.get("status").unwrap_or(&Value::Null);
    let created = value.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
    let labels = value.pointer("/metadata/labels");
    Subject {
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        uid: record.uid.clone(),
        generation: value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
        created: created.and_then(|time| time.parse().ok()).unwrap_or_default(),
        // A status that cannot be read is written anew.
        status: Option::<PipelineStatus>::deserialize(status).ok().flatten().unwrap_or_default(),
        queue: labels.and_then(|labels| labels.get(QUEUE_LABEL)?.as_str()).map(ToOwned::to_owned),
        ..Subject::default()
    }
}

impl Pipelines {
    /// The spec if it is valid, or all that is wrong. The checks are made once for each generation: they take milliseconds
    /// for thousands of steps.
    fn spec(&self, memory: &mut Memory, subject: &Subject, spec: &Value) -> Result<api::PipelineSpec, String> {
        let is_known = |(uid, generation, _): &&(String, i64, Result<(), String>)| {
            *uid == subject.uid && *generation == subject.generation
        };
        match memory.checked.as_ref().filter(is_known) {
            Some((.., Err(message))) => return Err(message.clone()),
            Some((.., Ok(()))) => {
                if let Ok(read) = Deserialize::deserialize(spec) {
                    return Ok(read);
                }
            }
            None => {}
        }
        let allows = |address: &str| is_allowed(&self.allowed, address);
        let checked = pipeline::accept(&subject.name, spec, &self.limits, allows);
        let checked = checked.map_err(|problems: Vec<Problem>| listed(&problems));
        let verdict = checked.as_ref().map(|_| ()).map_err(Clone::clone);
        memory.checked = Some((subject.uid.clone(), subject.generation, verdict));
        checked
    }
}

/// Does one thing; gives what is to be told of it.
async fn act(writer: &Writer<'_>, action: &Action, facts: &mut Facts) -> Result<Option<Note>, ReconcileError> {
    match action {
        Action::Create { name, cause, queued } => match writer.create(name, cause, *queued).await? {
            Made::Ours => {
                facts.made.push(cause.clone());
                let why = match cause {
                    Cause::Change { .. } => "the spec has changed".to_owned(),
                    Cause::Schedule { moment } if *queued => {
                        format!("scheduled for {moment}; waiting in the queue")
                    }
                    Cause::Schedule { moment } => format!("scheduled for {moment}"),
                };
                tracing::info!(run = name, "created: {why}");
                let text = format!("created run {name}: {why}");
                Ok(Some(Note { warning: false, reason: "RunCreated".to_owned(), action: "CreateRun", text }))
            }
            // It is in the cache now, and the next round knows what it is.
            Made::Known => Ok(None),
            Made::Foreign => {
                facts.taken.insert(name.clone());
                Ok(None)
            }
        },
        Action::Cancel { name, uid, why } => {
            writer.patch(name, uid, true).await?;
            tracing::info!(run = name, "cancelled: {why}");
            let text = format!("cancelled run {name}: {why}");
            Ok(Some(Note { warning: false, reason: "RunCancelled".to_owned(), action: "CancelRun", text }))
        }
        Action::Release { name, uid } => {
            writer.patch(name, uid, false).await?;
            tracing::info!(run = name, "begins: the run before it has ended");
            Ok(None)
        }
        Action::Delete { name, uid, why } => {
            writer.delete(name, uid).await?;
            tracing::info!(run = name, "deleted: {why}");
            Ok(None)
        }
    }
}

fn issue(error: &ReconcileError) -> Option<Issue> {
    error.issue().map(|issue| Issue { reason: issue.reason.to_owned(), message: issue.message, stalled: issue.stalled })
}
