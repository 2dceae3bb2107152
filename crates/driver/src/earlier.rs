//! Carries out what [`reuse`](super::reuse) decides: asks the runtime for earlier runs, and takes their outputs over.

use jiff::Timestamp;

use super::reuse::{Reusable, Taken, Wish};
use super::run_engine::Engine;
use super::supply::{Supplier, look_at};
use super::terms::{decision, storage};
use api::reason::Reason;
use dask::Peer;
use dask::ops::{Adopt, AdoptItem, Earlier, EarlierRun, EarlierRuns, Item, Leader, Opened, Record, Records};
use engine::{Event, RunState, SkipReason, StepIx, TaskId};
use lower::{Keyring, Part};
use run_model::RunSpec;

/// Outputs per message to the runtime.
const CHUNK: usize = 5000;

/// What earlier runs have for `spec`, whose code has this digest; `None` if it wants nothing of them.
pub(super) async fn ask(
    peer: &Peer,
    spec: &RunSpec,
    code: &str,
    lead: Option<&Leader>,
) -> Result<Option<Reusable>, dask::Error> {
    if !wants(spec) {
        return Ok(None);
    }
    let ask = Earlier {
        run: &spec.uid,
        storage: storage(&spec.storage),
        pipeline: pipeline(spec),
        wanted: spec.reuse.run.as_deref(),
        lead: lead.map(|lead| lead.epoch),
        lease: lead.and_then(|lead| lead.lease.as_deref()),
        results: results(peer.limits()),
    };
    let earlier = match peer.call(&ask).await {
        Err(dask::Error::UnknownOp { .. }) => {
            let message = "the runtime in the scheduler is of a release that does not know select and reuse";
            return Err(refusal(Reason::RuntimeVersion, message.to_owned()));
        }
        answer => answer?,
    };
    weigh(spec, code, earlier, false).map(Some)
}

/// Bytes of results that fit into a message of this size.
fn results(limits: &dask::Limits) -> usize {
    let of_command = limits.message_bytes >= limits::SNAPSHOT.bytes;
    if of_command { limits::EARLIER_RESULTS_OF_COMMAND } else { limits::EARLIER_RESULTS }
}

/// Whether `spec` wants anything of earlier runs.
pub(super) fn wants(spec: &RunSpec) -> bool {
    loads(spec) || spec.reuse.missing
}

/// What these earlier runs have for `spec`. `explain`: it will be asked why something is not the same.
pub(super) fn weigh(
    spec: &RunSpec,
    code: &str,
    mut earlier: EarlierRuns,
    explain: bool,
) -> Result<Reusable, dask::Error> {
    let cleared = earlier.runs.iter().find_map(cleared);
    earlier.runs.retain(|run| run.removed.is_none());
    if let Some(wanted) = spec.reuse.run.as_deref().filter(|_| earlier.runs.is_empty()) {
        if let Some(why) = cleared {
            return Err(refusal(Reason::OutputsRemoved, format!("spec.reuse.run: {why}")));
        }
        let message = format!("spec.reuse.run: there is no earlier run {wanted} of {}", whose(spec));
        return Err(refusal(Reason::ReuseNotFound, message));
    }
    let keys = Keyring::new(&spec.plan, code, spec.image.as_deref());
    let now = spec.time.now().as_duration().as_secs_f64();
    Ok(Reusable::new(earlier, cleared, keys, Wish { missing: spec.reuse.missing, explain }, now))
}

/// Why nothing can be taken from a run whose time was over.
fn cleared(run: &EarlierRun) -> Option<String> {
    let at = Timestamp::from_second(run.removed? as i64).unwrap_or_default();
    let name = if run.name.is_empty() { "run" } else { &run.name };
    Some(format!("what {name} ({}) had stored was removed at {at} by spec.retention", run.uid))
}

/// Refuses a new run whose selection needs what nobody has: before anything of it exists.
pub(super) fn check(spec: &RunSpec, reusable: Option<&Reusable>) -> Result<(), dask::Error> {
    match reusable.map(|reusable| reusable.source(&spec.plan, &whose(spec))) {
        Some(Err(why)) if loads(spec) => Err(refusal(Reason::OutputMissing, why)),
        _ => Ok(()),
    }
}

/// What becomes of the steps that do not run.
#[derive(Default)]
pub(super) struct Rest {
    pub records: Vec<Record>,
    pub taken: Vec<Taken>,
    events: Vec<Event>,
}

/// Ends the steps that do not run: loaded from an earlier run where others need them, else left out. Nothing of what an
/// earlier session has settled.
pub(super) fn rest(
    spec: &RunSpec,
    reusable: &mut Option<Reusable>,
    engine: &mut Engine<'_>,
) -> Result<Rest, dask::Error> {
    let plan = &spec.plan;
    let mut rest = Rest::default();
    for (step, _) in plan.dag.steps() {
        let part = plan.part(step);
        if part == Part::Runs || has_ended(&engine.state, step) {
            continue;
        }
        let source = match (part, reusable.as_ref()) {
            (Part::Loaded, Some(reusable)) => {
                Some(reusable.source(plan, &whose(spec)).map_err(|why| refusal(Reason::OutputMissing, why))?)
            }
            _ => None,
        };
        let (Some(source), Some(reusable)) = (source, reusable.as_mut()) else {
            rest.skip(TaskId::whole(step));
            continue;
        };
        let (len, outputs, holes) = reusable.load(plan, step, source);
        holes.into_iter().for_each(|task| rest.skip(task));
        if let Some(len) = len {
            rest.records.insert(0, Record::Length { step: step.0, len });
            rest.events.insert(0, Event::MapLength { step, len });
        }
        outputs.iter().for_each(|output| reusable.note(output, &mut engine.facts));
        rest.taken.extend(outputs);
    }
    Ok(rest)
}

impl Rest {
    fn skip(&mut self, task: TaskId) {
        let reason = SkipReason::NotSelected;
        self.records.push(Record::Skipped(decision(task, reason.name(), String::new())));
        self.events.push(Event::Skipped { task, reason });
    }

    /// Tells the engine.
    pub fn apply(self, engine: &mut Engine<'_>) {
        for event in self.events.into_iter().chain(self.taken.into_iter().map(|taken| taken.event)) {
            engine.apply(&event, 0);
        }
    }
}

/// Writes down the [`rest`], and tells the engine of it.
pub(super) async fn settle(
    peer: &Peer,
    opened: &Opened,
    spec: &RunSpec,
    reusable: &mut Option<Reusable>,
    adopted: &[Item],
    engine: &mut Engine<'_>,
) -> Result<(), dask::Error> {
    let rest = rest(spec, reusable, engine)?;
    let (run, epoch) = (spec.uid.as_str(), opened.epoch);
    if !rest.records.is_empty() {
        peer.call(&Records { run, epoch, records: &rest.records }).await?;
    }
    let items: Vec<AdoptItem> = rest.taken.iter().map(|taken| taken.item.clone()).collect();
    adopt(peer, opened, spec, &items).await?;
    rest.apply(engine);
    let Some(reusable) = reusable else { return Ok(()) };
    if !engine.facts.results().any_away() {
        reusable.restore(&spec.plan, adopted, &engine.view());
        return Ok(());
    }
    let supplier = Supplier { peer, run, epoch };
    for item in adopted {
        let task = TaskId { step: StepIx(item.step), item: item.item };
        supplier.supply(engine, |view| look_at(&spec.plan, task, view)).await?;
        reusable.restore(&spec.plan, &[*item], &engine.view());
    }
    Ok(())
}

/// Makes earlier outputs this run's.
pub(super) async fn adopt(
    peer: &Peer,
    opened: &Opened,
    spec: &RunSpec,
    items: &[AdoptItem],
) -> Result<(), dask::Error> {
    for items in items.chunks(CHUNK) {
        peer.call(&Adopt { run: &spec.uid, epoch: opened.epoch, items }).await?;
    }
    Ok(())
}

pub(super) fn has_ended(state: &RunState, step: StepIx) -> bool {
    let Some(summary) = state.step_summary(step) else { return true };
    let counts = summary.counts;
    counts.total == counts.done + counts.failed + counts.skipped + counts.cancelled
}

fn loads(spec: &RunSpec) -> bool {
    spec.plan.dag.steps().any(|(step, _)| spec.plan.part(step) == Part::Loaded)
}

pub(super) fn pipeline(spec: &RunSpec) -> &str {
    spec.pipeline.as_deref().unwrap_or(&spec.name)
}

fn whose(spec: &RunSpec) -> String {
    format!("pipeline {} in {}", pipeline(spec), spec.storage.url)
}

fn refusal(reason: Reason, message: String) -> dask::Error {
    dask::Error::Refused { op: "daskade-earlier", reason: reason.to_string(), message }
}
