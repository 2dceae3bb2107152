//! The reconciler of Pipelines, in its phases: gather, validate, plan and apply in rounds, report.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use crate::apiserver::apply::Writer;
use crate::apiserver::cache::Entry;
use crate::apiserver::error::{Class, ReconcileError};
use crate::apiserver::record::{Kind, Record};
use crate::apiserver::scope::Scope;
use crate::apiserver::whole::{self, Whole};
use crate::backoff::jittered;
use crate::controller::events::{Events, Note};
use crate::controller::status::StatusWriter;
use crate::controller::{Controller, Done, Reconciler};
use crate::leader::clock::Clock;
use crate::pipeline::writes::{Made, RunWriter};
use crate::pipelinerun::references::is_allowed;
use crate::queue::Key;
use api::problem::{Problem, listed};
use api::reason::Reason;
use api::status::PipelineStatus;
use decide::cluster::names::QUEUE_LABEL;
use decide::pipeline::{self, Action, Cause, Facts, Plan, Subject, Timing};
use lower::allowed::RunLimits;
use telemetry::metrics::{self, Outcome};

/// Every Pipeline is looked at about this often even if nothing happens: moments are kept by a clock that may stand still
/// while the machine sleeps.
const PERIOD: Duration = Duration::from_secs(60);
/// Rounds of planning and acting in one reconciliation; then others have their turn.
const ROUNDS: usize = 10;
/// How many runs are remembered that were created and are not in the status yet.
const DEEDS: usize = 100;

/// What its reconciliations share.
pub(crate) struct PipelineReconciler {
    pub client: Client,
    pub controller: Controller<Memory>,
    pub events: Events,
    pub scope: Scope,
    /// What one run may ask for.
    pub limits: RunLimits,
    /// Addresses of schedulers outside that may be used.
    pub allowed: Vec<Regex>,
    pub clock: Clock,
}

/// What is remembered of a Pipeline from one reconciliation to the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// What the checks said of a uid and generation.
    checked: Option<(String, i64, Result<(), String>)>,
    deeds: Deeds,
    /// What a reconciliation saw that left nothing to do: the cache's revision, and the moment until which that holds.
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
    fn reported(&mut self) {
        self.made.retain(|cause| matches!(cause, Cause::Change { .. }));
    }
}

impl Reconciler for PipelineReconciler {
    type Memory = Memory;

    const NAME: metrics::Controller = metrics::Controller::Pipeline;

    async fn reconcile(&self, key: &Key, memory: &mut Memory) -> Result<Done, ReconcileError> {
        let entry = self.controller.sink.cache.entry(key).unwrap_or_default();
        let Some(record) = &entry.root else {
            // Its runs go on by themselves.
            return Ok(Done { gone: true, ..Done::rest(Outcome::Settled) });
        };
        if !self.scope.has(&key.namespace) {
            return Ok(Done::rest(Outcome::Settled));
        }
        if let Some(again) = self.rests(key, record, &entry, memory) {
            return Ok(Done { again: Some(again), ..Done::rest(Outcome::Settled) });
        }
        memory.settled = None;
        let whole = whole::read(&self.client, Kind::Pipeline, key, record, 0).await?;
        let subject = read_subject(key, &whole.record, &whole.value);
        tracing::Span::current().record("uid", &subject.uid).record("generation", subject.generation);
        if whole.value.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null()) {
            return Ok(Done::rest(Outcome::Waiting));
        }
        let uid = subject.uid.clone();
        let own = Writer { client: &self.client, cache: &self.controller.sink.cache, key, uid: &uid };
        Work { reconciler: self, key, memory, entry, own }.run(subject, &whole).await
    }

    fn controller(&self) -> &Controller<Memory> {
        &self.controller
    }
}

impl PipelineReconciler {
    /// When to look again at a Pipeline for which nothing has changed and nothing is due, if it would have to be read for
    /// that.
    fn rests(&self, key: &Key, record: &Record, entry: &Entry, memory: &Memory) -> Option<Duration> {
        let (_, wake) = memory.settled.filter(|(revision, _)| *revision == entry.revision)?;
        let left = wake.map(|wake| Duration::try_from(wake.duration_since(self.clock.now())).unwrap_or_default());
        let period = jittered(PERIOD, key);
        let again = left.map_or(period, |left| left.min(period));
        (record.weight() > 0 && !again.is_zero()).then_some(again)
    }
}

/// One reconciliation of a Pipeline at work: what its phases share.
struct Work<'a> {
    reconciler: &'a PipelineReconciler,
    key: &'a Key,
    memory: &'a mut Memory,
    /// What the watches had shown when it began.
    entry: Entry,
    /// Writes the Pipeline itself.
    own: Writer<'a>,
}

/// What the rounds of planning and acting came to.
#[derive(Default)]
struct Acted {
    facts: Facts,
    planned: Plan,
    /// What was done to runs.
    notes: Vec<Note>,
    error: Option<ReconcileError>,
}

impl Work<'_> {
    /// The phases. Planning and acting alternate, since what one action has made decides about the next.
    async fn run(mut self, mut subject: Subject, whole: &Whole) -> Result<Done, ReconcileError> {
        let spec = whole.value.get("spec").unwrap_or(&Value::Null);
        match self.validate(&subject, spec, whole.refused.as_deref()) {
            Ok(valid) => subject.spec = valid,
            Err(message) => return self.refuse(&subject, &message).await,
        }
        let acted = self.act(&subject, spec).await?;
        self.report(&subject, acted).await
    }

    /// The spec if it is valid, or all that is wrong. The checks are made once for each generation: they take milliseconds
    /// for thousands of steps.
    fn validate(
        &mut self,
        subject: &Subject,
        spec: &Value,
        refused: Option<&str>,
    ) -> Result<api::PipelineSpec, String> {
        if let Some(why) = refused {
            return Err(why.to_owned());
        }
        let is_known = |(uid, generation, _): &&(String, i64, Result<(), String>)| {
            *uid == subject.uid && *generation == subject.generation
        };
        match self.memory.checked.as_ref().filter(is_known) {
            Some((.., Err(message))) => return Err(message.clone()),
            Some((.., Ok(()))) => {
                if let Ok(read) = Deserialize::deserialize(spec) {
                    return Ok(read);
                }
            }
            None => {}
        }
        let allows = |address: &str| is_allowed(&self.reconciler.allowed, address);
        let checked = pipeline::accept(&subject.name, spec, &self.reconciler.limits, allows);
        let checked = checked.map_err(|problems: Vec<Problem>| listed(&problems));
        let verdict = checked.as_ref().map(|_| ()).map_err(Clone::clone);
        self.memory.checked = Some((subject.uid.clone(), subject.generation, verdict));
        checked
    }

    /// A spec that is not valid: the status says what is wrong, and no run is made.
    async fn refuse(self, subject: &Subject, message: &str) -> Result<Done, ReconcileError> {
        let facts = Facts { now: self.reconciler.clock.now(), runs: runs(&self.entry), ..Facts::default() };
        let status = pipeline::invalid_status(subject, &facts, message);
        self.write_status(subject, &status, Vec::new()).await?;
        self.memory.settled = self.is_still().then_some((self.entry.revision, None));
        Ok(Done { again: Some(jittered(PERIOD, self.key)), ..Done::rest(Outcome::Invalid) })
    }

    /// Plans and acts until nothing is left to do, something failed, or others should have their turn. An error is part of
    /// what is reported, unless this process does not lead any more.
    async fn act(&mut self, subject: &Subject, spec: &Value) -> Result<Acted, ReconcileError> {
        let Self { reconciler, key, memory, own, .. } = self;
        let cache = &reconciler.controller.sink.cache;
        let writer = RunWriter { client: &reconciler.client, cache, key, subject, spec };
        let timing = subject.spec.schedule.as_ref().and_then(|schedule| Timing::read(schedule, subject.created).ok());
        let mut acted = Acted { facts: memory.deeds.begin(subject), ..Acted::default() };
        for round in 0..=ROUNDS {
            acted.facts.now = reconciler.clock.now();
            acted.facts.runs = runs(&cache.entry(key).unwrap_or_default());
            acted.planned = pipeline::plan(subject, timing.as_ref(), &acted.facts);
            if acted.planned.actions.is_empty() || acted.error.is_some() || round == ROUNDS {
                break;
            }
            if round == 0 {
                own.confirm(Kind::Pipeline, subject.generation).await?;
            }
            for action in &acted.planned.actions {
                let done = act(&writer, action, &mut acted.facts).await;
                memory.deeds.keep(&acted.facts);
                match done {
                    Ok(note) => acted.notes.extend(note),
                    Err(error) if error.class() == Class::Fenced => return Err(error),
                    Err(error) => {
                        acted.facts.issue = error.issue();
                        acted.error = Some(error);
                        break;
                    }
                }
            }
        }
        Ok(acted)
    }

    /// The status, and what is remembered until the next reconciliation.
    async fn report(self, subject: &Subject, acted: Acted) -> Result<Done, ReconcileError> {
        let Acted { facts, planned, mut notes, error } = acted;
        let status = pipeline::build_status(subject, &facts, &planned);
        notes.extend(planned.notes.into_iter().map(|note| Note {
            warning: note.warning,
            reason: note.reason,
            action: "Schedule",
            text: note.text,
        }));
        self.write_status(subject, &status, notes).await?;
        self.memory.deeds.reported();
        if let Some(error) = error {
            return Err(error);
        }
        let wake = planned.wake.map(|wake| Duration::try_from(wake.duration_since(facts.now)).unwrap_or_default());
        let period = jittered(PERIOD, self.key);
        let again = wake.map_or(period, |wake| wake.min(period));
        let is_left = !planned.actions.is_empty();
        self.memory.settled = (!is_left && self.is_still()).then_some((self.entry.revision, planned.wake));
        Ok(Done { again: Some(again), left: is_left.then_some(Duration::ZERO), ..Done::rest(Outcome::Settled) })
    }

    /// Nothing has come in meanwhile.
    fn is_still(&self) -> bool {
        self.reconciler.controller.sink.cache.revision(self.key) == self.entry.revision
    }

    /// Writes the status if it says something new, and publishes what happened.
    async fn write_status(
        &self,
        subject: &Subject,
        status: &PipelineStatus,
        happened: Vec<Note>,
    ) -> Result<(), ReconcileError> {
        let writer = StatusWriter { writer: &self.own, events: &self.reconciler.events, kind: Kind::Pipeline };
        // Runs were made and cancelled whether or not that can be written down.
        let (now, later): (Vec<Note>, Vec<Note>) = happened.into_iter().partition(|note| note.action != "Schedule");
        writer.publish(now);
        if *status == subject.status {
            return Ok(());
        }
        writer.write(status, &subject.status.conditions, &status.conditions).await?;
        writer.publish(later);
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

/// Does one thing; gives what to publish of it.
async fn act(writer: &RunWriter<'_>, action: &Action, facts: &mut Facts) -> Result<Option<Note>, ReconcileError> {
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
                Ok(Some(Note { warning: false, reason: Reason::RunCreated, action: "CreateRun", text }))
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
            Ok(Some(Note { warning: false, reason: Reason::RunCancelled, action: "CancelRun", text }))
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
