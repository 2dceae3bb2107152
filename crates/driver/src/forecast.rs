//! What a run would do, told before it begins: the engine and the search in earlier runs decide, as they do in a run, on what
//! is known by then. Nothing is written, and no step runs.
//!
//! Steps that would run are taken to succeed. What depends on what they return is not known.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::earlier::{self, has_ended};
use super::error::DriveError;
use super::objects::{self, Meeting, Objects, Wanted};
use super::past;
use super::reuse::{Because, Reusable};
use super::run_engine::Engine;
use super::terms::task_id;
use super::turn::{Turn, handed_over};
use api::reason::Reason;
use dask::ops::Seen;
use engine::{Action, Event, RunState, SkipReason, StepIx, TaskId, TaskStatus};
use lower::{Aspect, Part, Plan};
use run_model::{CodeSource, RunSpec};
use store::{StorageConfig, StoreError};

/// What a run would do.
#[derive(Debug)]
pub struct Forecast {
    /// Name and uid of the earlier runs that count, newest first; `None` if none is asked.
    pub earlier: Option<Vec<(String, String)>>,
    /// In the order in which they run.
    pub steps: Vec<StepForecast>,
}

/// What a run would do with one step.
#[derive(Debug)]
pub struct StepForecast {
    /// Its place in the DAG.
    pub step: StepIx,
    /// Its name.
    pub name: String,
    /// Number of items of a mapped step, if it is known beforehand.
    pub items: Option<u32>,
    /// Names of the steps that it comes after.
    pub waits_for: Vec<String>,
    /// What becomes of it.
    pub outcome: StepOutcome,
    /// Its tasks by what becomes of them; of a mapped step whose length is not known, one.
    pub tasks: Tally,
    /// Earlier runs whose outputs it takes: name, uid, number of outputs.
    pub from: Vec<(String, String, u32)>,
    /// Why tasks that an earlier run might stand for run.
    pub because: BTreeSet<Because>,
    /// Steps that have to run before it is known.
    pub until: BTreeSet<String>,
    /// Why tasks are skipped, or would fail.
    pub notes: BTreeSet<String>,
}

/// What becomes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepOutcome {
    /// At least one of its tasks runs.
    Run,
    /// All outputs are earlier ones.
    Cached,
    /// The selection does without it.
    LeftOut,
    /// Nothing of it runs: by its condition, or for want of an input.
    Skipped,
    /// A task of it would fail without being called.
    Fails,
    /// Not known before other steps have run.
    Unknown,
}

/// Tasks by what becomes of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// They run.
    pub run: u32,
    /// An earlier output stands for them.
    pub cached: u32,
    /// They are skipped.
    pub skipped: u32,
    /// They would fail without being called.
    pub fails: u32,
    /// Nobody knows yet.
    pub unknown: u32,
}

/// What `spec` would do. `whole`: its pipeline without a selection, for the order of all steps.
pub async fn forecast(spec: &RunSpec, whole: &Plan) -> Result<Forecast, DriveError> {
    let mut reusable = None;
    if let Some(problem) = spec.plan.check_pins(&spec.storage.url) {
        return Err(DriveError::Refused { reason: Reason::VersionNotFound.to_string(), message: problem.to_string() });
    }
    let storage = StorageConfig {
        url: spec.storage.url.clone(),
        endpoint: spec.storage.endpoint.clone(),
        region: spec.storage.region.clone(),
    };
    let mut storage_objects = None;
    if earlier::wants(spec) {
        let earlier = past::read(&storage, earlier::pipeline(spec), spec.reuse.run.as_deref()).await;
        let earlier = earlier.map_err(|error| unreadable(&spec.storage.url, &error))?;
        reusable = Some(earlier::weigh(spec, digest(&spec.code), earlier, true).map_err(refused)?);
        earlier::check(spec, reusable.as_ref()).map_err(refused)?;
    }
    if earlier::wants(spec) || !spec.plan.pins().is_empty() {
        storage_objects = Some(store::Objects::new(storage, objects::pins(spec)));
    }
    let mut engine = Engine::new(&spec.plan, 0);
    let rest = earlier::rest(spec, &mut reusable, &mut engine).map_err(refused)?;
    let origins = rest
        .taken
        .iter()
        .map(|taken| (id(taken.item.task.step, taken.item.task.item), taken.item.uid.clone()))
        .collect();
    rest.apply(&mut engine);
    let names = reusable.iter().flat_map(Reusable::runs).map(|(name, uid)| (uid.to_owned(), name.to_owned())).collect();
    let listed = reusable.as_ref().map(|known| known.runs().map(|(n, u)| (n.to_owned(), u.to_owned())).collect());
    let mut forecaster = Forecaster {
        spec,
        objects: Objects::new(&spec.plan),
        engine,
        reusable,
        storage_objects,
        names,
        origins,
        running: HashSet::new(),
        there: HashSet::new(),
        tried: HashSet::new(),
        refused: HashMap::new(),
        outcomes: BTreeMap::new(),
    };
    let mut paths: BTreeSet<String> = spec.plan.pins().keys().cloned().collect();
    if spec.reuse.missing {
        paths.extend(spec.plan.known_paths());
    }
    forecaster.look(Wanted { reads: paths.into_iter().collect(), keeps: Vec::new() }).await?;
    if let Some(message) = objects::unpinned(&spec.plan, &forecaster.engine.facts.versions) {
        return Err(DriveError::Refused { reason: Reason::VersionNotFound.to_string(), message });
    }
    forecaster.settle().await?;
    let mut steps = Vec::new();
    for step in order(whole) {
        steps.push(forecaster.tell(step, whole).await?);
    }
    Ok(Forecast { earlier: listed, steps })
}

/// A run that is thought through.
struct Forecaster<'a> {
    spec: &'a RunSpec,
    objects: Objects,
    engine: Engine<'a>,
    reusable: Option<Reusable>,
    /// Looks at objects; without them nothing is looked at.
    storage_objects: Option<store::Objects>,
    /// Of earlier runs, by their uids.
    names: HashMap<String, String>,
    /// Earlier runs whose outputs stand for tasks.
    origins: HashMap<TaskId, String>,
    /// Tasks that were handed over.
    running: HashSet<TaskId>,
    /// Those whose output is there already: their code is not called.
    there: HashSet<TaskId>,
    /// Tasks that wait for a limit only, and were handed over beyond it.
    tried: HashSet<TaskId>,
    refused: HashMap<TaskId, String>,
    /// Of the steps that were told.
    outcomes: BTreeMap<StepIx, (StepOutcome, BTreeSet<String>)>,
}

impl Forecaster<'_> {
    /// Lets the engine go on until nothing follows any more without a step that runs.
    async fn settle(&mut self) -> Result<(), DriveError> {
        let plan = &self.spec.plan;
        loop {
            let mut actions = self.engine.next(&plan.limits, 0).actions;
            if actions.is_empty() {
                actions = self.held_back();
            }
            if actions.is_empty() {
                return Ok(());
            }
            self.carry_out(actions).await?;
        }
    }

    /// Tasks that wait only for others to make room: nothing else decides about them.
    fn held_back(&mut self) -> Vec<Action> {
        let mut held = Vec::new();
        for (step, _) in self.spec.plan.dag.steps() {
            if self.engine.state.step_summary(step).is_some_and(|summary| summary.ready > 0) {
                let ready = |task: &TaskId| self.status(*task) == Some(TaskStatus::Ready);
                held.extend(self.tasks(step).into_iter().filter(ready));
            }
        }
        held.retain(|task| self.tried.insert(*task));
        held.into_iter().map(submit).collect()
    }

    /// As a session does, but for what it would tell the runtime.
    async fn carry_out(&mut self, actions: Vec<Action>) -> Result<(), DriveError> {
        let plan = &self.spec.plan;
        let view = self.engine.view();
        let wanted = self.objects.wanted(self.spec, &handed_over(&actions), &view);
        self.look(wanted).await?;
        let view = self.engine.view();
        let there = |task: &TaskId| self.objects.meet(plan, *task, &view) == Meeting::Take;
        self.there.extend(handed_over(&actions).into_iter().filter(there));
        let turn = Turn::new(&mut self.engine, actions, &mut self.reusable, &self.objects);
        self.origins.extend(turn.adopted.into_iter().map(|item| (id(item.task.step, item.task.item), item.uid)));
        self.running.extend(turn.submits.iter().map(|submit| task_id(submit.task)));
        for stop in turn.stops {
            let task = task_id(stop);
            self.running.remove(&task);
            self.engine.apply(&Event::Stopped { task, attempt: stop.attempt }, 0);
        }
        for event in turn.decided {
            if let Event::Refused { task, reason } = &event {
                self.refused.insert(*task, reason.clone());
            }
            self.engine.apply(&event, 0);
        }
        Ok(())
    }

    async fn look(&mut self, wanted: Wanted) -> Result<(), DriveError> {
        let Some(storage_objects) = &self.storage_objects else { return Ok(()) };
        // What cannot be looked at counts as not there, as in a run.
        let found = storage_objects.versions(&wanted.reads).await.into_iter().map(Result::unwrap_or_default);
        self.engine.facts.versions.extend(wanted.reads.into_iter().zip(found));
        let (paths, tasks): (Vec<String>, Vec<TaskId>) = wanted.keeps.into_iter().unzip();
        for (task, found) in tasks.into_iter().zip(storage_objects.versions(&paths).await) {
            let seen = match found {
                Ok(version) => version.map(|version| Seen { version, own: false }),
                // A folder.
                Err(StoreError::Key(_)) => Some(Seen { version: String::new(), own: false }),
                Err(error) => return Err(unreadable(&self.spec.storage.url, &error)),
            };
            self.objects.saw([(task, seen)]);
        }
        Ok(())
    }

    /// What becomes of a step; those that it comes after were told.
    async fn tell(&mut self, step: StepIx, whole: &Plan) -> Result<StepForecast, DriveError> {
        let plan = &self.spec.plan;
        let mut told = StepForecast {
            step,
            name: plan.step_name(step).to_owned(),
            items: None,
            waits_for: before(whole, step).into_iter().map(|step| plan.step_name(step).to_owned()).collect(),
            outcome: StepOutcome::LeftOut,
            tasks: Tally::default(),
            from: Vec::new(),
            because: BTreeSet::new(),
            until: BTreeSet::new(),
            notes: BTreeSet::new(),
        };
        if plan.part(step) != Part::LeftOut {
            let open = self.open(step);
            if plan.dag.step(step).is_some_and(|spec| spec.finally) && open.is_empty() {
                self.finally(step).await?;
            }
            told.items = self.engine.state.step_len(step).filter(|_| plan.is_mapped(step));
            self.count(step, &open, &mut told);
            if plan.part(step) == Part::Loaded {
                told.notes.insert("the selection needs its output".to_owned());
            }
        } else {
            told.items = whole_len(whole, step);
            told.tasks.skipped = told.items.unwrap_or(1);
        }
        self.outcomes.insert(step, (told.outcome, told.until.clone()));
        Ok(told)
    }

    /// Steps that it comes after and that have not ended by what is known beforehand.
    fn open(&self, step: StepIx) -> BTreeSet<StepIx> {
        before(&self.spec.plan, step).into_iter().filter(|up| !has_ended(&self.engine.state, *up)).collect()
    }

    /// The engine holds `finally` steps back until all others have ended. What one of them comes after has: nothing else
    /// decides about it.
    async fn finally(&mut self, step: StepIx) -> Result<(), DriveError> {
        let waiting = |task: &TaskId| matches!(self.status(*task), Some(TaskStatus::Waiting));
        let tasks: Vec<TaskId> = self.tasks(step).into_iter().filter(waiting).collect();
        let holds = |task: &TaskId| self.condition(*task) == Some(true);
        let tasks: Vec<TaskId> = tasks.into_iter().filter(holds).collect();
        self.carry_out(tasks.into_iter().map(submit).collect()).await
    }

    /// Whether the condition of a task holds, if everything that it asks for is known.
    fn condition(&self, task: TaskId) -> Option<bool> {
        let plan = &self.spec.plan;
        let asked = plan.asked_by_condition(task.step);
        if asked.iter().any(|step| !has_ended(&self.engine.state, *step)) {
            return None;
        }
        let per_step = plan.dag.step(task.step).is_some_and(|spec| spec.when == engine::When::PerStep);
        let task = if per_step { TaskId::whole(task.step) } else { task };
        plan.decide(task, &self.engine.view()).ok()
    }

    fn count(&mut self, step: StepIx, open: &BTreeSet<StepIx>, told: &mut StepForecast) {
        let unknown = self.unknown(step, open);
        let mut from: BTreeMap<String, u32> = BTreeMap::new();
        let whole_status = self.whole_status(step);
        for task in self.tasks(step) {
            match whole_status.or_else(|| self.status(task)) {
                Some(TaskStatus::Committed { .. }) => {
                    told.tasks.cached += 1;
                    *from.entry(self.origins.get(&task).cloned().unwrap_or_default()).or_default() += 1;
                }
                Some(TaskStatus::Skipped(reason)) => {
                    told.tasks.skipped += 1;
                    told.notes.insert(skipped(reason).to_owned());
                }
                Some(TaskStatus::Failed) => {
                    told.tasks.fails += 1;
                    let reason = self.refused.get(&task).or_else(|| self.refused.get(&TaskId::whole(step))).cloned();
                    told.notes.extend(reason.or_else(|| self.failure(task)));
                }
                _ if self.running.contains(&task) => self.runs(task, told),
                _ => match (&unknown, self.condition(task)) {
                    (Some(until), _) => told.unknown(until.clone()),
                    (None, Some(false)) => {
                        told.tasks.skipped += 1;
                        told.notes.insert(skipped(SkipReason::WhenFalse).to_owned());
                    }
                    (None, _) if self.is_new(task) => self.runs(task, told),
                    (None, _) => told.unknown(self.names(open)),
                },
            }
        }
        if told.items.is_none() && self.spec.plan.is_mapped(step) && told.tasks.unknown == 0 && told.tasks.run > 0 {
            let sources = self.spec.plan.dag.step(step).into_iter().flat_map(|spec| spec.map.iter().flatten());
            let sources: BTreeSet<StepIx> = sources.filter_map(|source| source.step()).collect();
            told.until = self.names(&open.intersection(&sources).copied().collect());
        }
        told.from = from
            .into_iter()
            .map(|(uid, count)| (self.names.get(&uid).cloned().unwrap_or_default(), uid, count))
            .collect();
        told.outcome = told.tasks.outcome();
    }

    /// Whether no earlier output can stand for a task that the engine has not come to: it is made from what a step returns that
    /// runs. The items of a map over a result are made from values, which may come out as before.
    fn is_new(&mut self, task: TaskId) -> bool {
        let plan = &self.spec.plan;
        let Some(reusable) = self.reusable.as_mut().filter(|_| self.spec.reuse.missing) else { return true };
        if plan.cache(task.step).enabled == Some(false) || reusable.runs().next().is_none() {
            return true;
        }
        let flattened = |source: &engine::MapSource| matches!(source, engine::MapSource::Flatten(_));
        let no_items = plan.is_mapped(task.step) && task.item.is_none();
        if no_items && plan.dag.step(task.step).is_some_and(|spec| spec.map.iter().flatten().any(flattened)) {
            return true;
        }
        let task = if no_items { TaskId::item(task.step, 0) } else { task };
        reusable.is_new(plan, task, &self.engine.view())
    }

    fn runs(&mut self, task: TaskId, told: &mut StepForecast) {
        told.tasks.run += 1;
        if self.there.contains(&task) {
            told.notes.insert("what is at its output.path is its output, its code is not called".to_owned());
        }
        if self.spec.plan.part(task.step) != Part::Runs || !self.spec.reuse.missing {
            return;
        }
        let open = self.open(task.step);
        let ups = self.names(&open).into_iter().map(|name| Because::Changed(Aspect::Upstream(name)));
        let Some(reusable) = &mut self.reusable else { return };
        let view = self.engine.view();
        let unsized_map = self.spec.plan.is_mapped(task.step) && task.item.is_none();
        match unsized_map {
            // There is no such task yet.
            true => told.because.extend(ups),
            false => told.because.extend(reusable.why(&self.spec.plan, task, &view)),
        }
    }

    /// Steps that have to run before it is known whether this one does.
    fn unknown(&self, step: StepIx, open: &BTreeSet<StepIx>) -> Option<BTreeSet<String>> {
        let plan = &self.spec.plan;
        let mut until = BTreeSet::new();
        for up in open {
            let after = plan.dag.step(step).is_some_and(|spec| spec.deps.contains(&engine::Dep::After(*up)));
            if let Some((StepOutcome::Unknown, of)) = self.outcomes.get(up)
                && (!after || self.spec.reuse.missing)
            {
                until.extend(of.iter().cloned());
            }
        }
        let asked = plan.asked_by_condition(step).into_iter().filter(|step| !has_ended(&self.engine.state, *step));
        for up in asked {
            match self.outcomes.get(&up) {
                Some((StepOutcome::Unknown, of)) => until.extend(of.iter().cloned()),
                _ => drop(until.insert(plan.step_name(up).to_owned())),
            }
        }
        (!until.is_empty()).then_some(until)
    }

    /// What became of a mapped step as a whole before it had items.
    fn whole_status(&self, step: StepIx) -> Option<TaskStatus> {
        if !self.spec.plan.is_mapped(step) || self.engine.state.step_len(step).is_some() {
            return None;
        }
        match self.engine.state.step_summary(step)?.state {
            engine::StepState::Failed => Some(TaskStatus::Failed),
            engine::StepState::Skipped(reason) => Some(TaskStatus::Skipped(reason)),
            _ => None,
        }
    }

    fn failure(&self, task: TaskId) -> Option<String> {
        let of = |task: TaskId| {
            self.engine.state.failures().find(|(failed, _)| *failed == task).map(|(_, why)| why.to_string())
        };
        of(task).or_else(|| of(TaskId::whole(task.step)))
    }

    /// The tasks of a step; of a mapped one whose length is not known, the step as a whole.
    fn tasks(&self, step: StepIx) -> Vec<TaskId> {
        match self.engine.state.step_len(step).filter(|_| self.spec.plan.is_mapped(step)) {
            Some(len) => (0..len).map(|item| TaskId::item(step, item)).collect(),
            None => vec![TaskId::whole(step)],
        }
    }

    fn status(&self, task: TaskId) -> Option<TaskStatus> {
        Some(self.engine.state.task_view(&self.spec.plan.dag, task)?.status)
    }

    fn names(&self, steps: &BTreeSet<StepIx>) -> BTreeSet<String> {
        steps.iter().map(|step| self.spec.plan.step_name(*step).to_owned()).collect()
    }
}

impl StepForecast {
    fn unknown(&mut self, until: BTreeSet<String>) {
        self.tasks.unknown += 1;
        self.until.extend(until);
    }
}

impl Tally {
    fn outcome(self) -> StepOutcome {
        match self {
            Self { fails: 1.., .. } => StepOutcome::Fails,
            Self { unknown: 1.., .. } => StepOutcome::Unknown,
            Self { run: 1.., .. } => StepOutcome::Run,
            Self { cached: 1.., .. } => StepOutcome::Cached,
            Self { skipped: 1.., .. } => StepOutcome::Skipped,
            // A map without items.
            _ => StepOutcome::Skipped,
        }
    }
}

/// All steps so that each stands behind those that it comes after, `finally` steps last.
fn order(plan: &Plan) -> Vec<StepIx> {
    let mut depths: BTreeMap<StepIx, usize> = BTreeMap::new();
    let steps: Vec<StepIx> = plan.dag.steps().map(|(step, _)| step).collect();
    while depths.len() < steps.len() {
        for step in &steps {
            let ups = before(plan, *step);
            if let Some(deepest) = ups
                .iter()
                .map(|up| depths.get(up).map(|depth| depth + 1))
                .try_fold(0, |most, depth| depth.map(|depth| most.max(depth)))
            {
                depths.insert(*step, deepest);
            }
        }
    }
    let mut order = steps;
    let finally = |step: &StepIx| plan.dag.step(*step).is_some_and(|spec| spec.finally);
    order.sort_by_key(|step| (finally(step), depths.get(step).copied(), *step));
    order
}

/// The steps that one comes after directly.
fn before(plan: &Plan, step: StepIx) -> BTreeSet<StepIx> {
    let Some(spec) = plan.dag.step(step) else { return BTreeSet::new() };
    let sources = spec.map.iter().flatten().filter_map(|source| source.step());
    spec.deps.iter().map(|dep| dep.step()).chain(sources).collect()
}

fn whole_len(plan: &Plan, step: StepIx) -> Option<u32> {
    RunState::new(&plan.dag, 0).step_len(step).filter(|_| plan.is_mapped(step))
}

fn submit(task: TaskId) -> Action {
    Action::Submit { task, attempt: 1, deps: Vec::new(), priority: 0 }
}

fn id(step: u32, item: Option<u32>) -> TaskId {
    TaskId { step: StepIx(step), item }
}

fn digest(code: &CodeSource) -> &str {
    match code {
        CodeSource::Packed(code) => &code.digest,
        CodeSource::Archive { .. } => "",
    }
}

fn skipped(reason: SkipReason) -> &'static str {
    match reason {
        SkipReason::WhenFalse => "its condition is false",
        SkipReason::UpstreamSkipped => "a step that it needs is skipped",
        SkipReason::NotSelected => "the earlier run has no output of it",
        SkipReason::UpstreamHole | SkipReason::UpstreamFailed => "a step that it needs would fail",
        SkipReason::FailFast | SkipReason::Cancelled | SkipReason::DeadlineExceeded => "the run would end before",
    }
}

fn unreadable(url: &str, error: &StoreError) -> DriveError {
    DriveError::Refused { reason: error.reason().to_string(), message: format!("{url}: {error}") }
}

fn refused(error: dask::Error) -> DriveError {
    match error {
        dask::Error::Refused { reason, message, .. } => DriveError::Refused { reason, message },
        other => DriveError::Dask(Box::new(other)),
    }
}
