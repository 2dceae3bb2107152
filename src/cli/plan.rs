//! `plan`: what a run would do. Nothing is run, and nothing is written.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Map, Value, json};

use super::Failure;
use super::options::{Output, PlanOptions};
use super::progress::clean;
use super::request;
use super::run::{Job, drive_failure, job, run_spec};
use driver::{Because, Forecast, StepForecast, StepOutcome, forecast};
use lower::Aspect;
use run_model::{CodeSource, Frozen};
use wire::StepDef;

pub(super) async fn plan(options: PlanOptions) -> Result<(), Failure> {
    let PlanOptions { mut wanted, output } = options;
    let job = job(&mut wanted)?;
    if job.frozen.reuse().missing && matches!(job.code, CodeSource::Archive { .. }) {
        return Err(Failure::bad_input(
            "spec.code.url: what an archive holds is known only once a scheduler has fetched it, so a plan cannot say what \
             --reuse would take; leave --reuse out, or use code.path or code.files",
        ));
    }
    let whole = Frozen { select: None, reuse: None, ..job.frozen.clone() };
    let whole = request::plan(&whole, "the pipeline as a whole")?;
    let spec = run_spec(&job, &wanted.cluster, false)?;
    let told = forecast(&spec, &whole).await.map_err(drive_failure)?;
    let mut out = io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{:#}", document(&job, &told))?,
        Output::Text => write!(out, "{}", clean(&text(&job, &told)))?,
    }
    out.flush()?;
    Ok(())
}

/// Steps by what becomes of them, in the order in which that is told.
const OUTCOMES: [(StepOutcome, &str, &str); 6] = [
    (StepOutcome::Run, "run", "run"),
    (StepOutcome::Cached, "cached", "cached"),
    (StepOutcome::LeftOut, "leftOut", "left out"),
    (StepOutcome::Skipped, "skipped", "skipped"),
    (StepOutcome::Fails, "fails", "would fail"),
    (StepOutcome::Unknown, "unknown", "unknown"),
];

fn count(told: &Forecast, outcome: StepOutcome) -> usize {
    told.steps.iter().filter(|step| step.outcome == outcome).count()
}

fn document(job: &Job, told: &Forecast) -> Value {
    let steps: Vec<Value> = told.steps.iter().map(|step| step_json(job, step)).collect();
    let mut counts: Map<String, Value> =
        OUTCOMES.iter().map(|(outcome, name, _)| ((*name).to_owned(), json!(count(told, *outcome)))).collect();
    counts.insert("total".to_owned(), json!(told.steps.len()));
    let earlier = told
        .earlier
        .as_ref()
        .map(|runs| runs.iter().map(|(name, uid)| json!({"name": name, "uid": uid})).collect::<Vec<_>>());
    json!({
        "name": job.frozen.name,
        "pipeline": job.frozen.pipeline_name,
        "storage": job.storage.url,
        "earlierRuns": earlier,
        "steps": steps,
        "counts": counts,
    })
}

fn step_json(job: &Job, step: &StepForecast) -> Value {
    let def = job.plan.step_def(step.step);
    let action = OUTCOMES.iter().find(|(outcome, _, _)| *outcome == step.outcome).map(|(_, name, _)| *name);
    let from: Vec<Value> =
        step.from.iter().map(|(name, uid, count)| json!({"name": name, "uid": uid, "tasks": count})).collect();
    let tasks = step.tasks;
    json!({
        "name": step.name,
        "call": def.and_then(|def| def.call.clone()),
        "script": def.is_some_and(|def| def.script.is_some()),
        "mapped": job.plan.is_mapped(step.step),
        "items": step.items,
        "finally": is_finally(job, step),
        "waitsFor": step.waits_for,
        "workerGroup": def.and_then(|def| def.group.clone()),
        "resources": def.map(|def| def.resources.clone()).unwrap_or_default(),
        "action": action,
        "tasks": {
            "run": tasks.run,
            "cached": tasks.cached,
            "skipped": tasks.skipped,
            "fails": tasks.fails,
            "unknown": tasks.unknown,
        },
        "from": from,
        "because": step.because.iter().map(because_json).collect::<Vec<_>>(),
        "unknownUntil": step.until,
        "notes": step.notes,
    })
}

fn is_finally(job: &Job, step: &StepForecast) -> bool {
    job.plan.dag.step(step.step).is_some_and(|spec| spec.finally)
}

fn because_json(because: &Because) -> Value {
    let (reason, field) = match because {
        Because::NeverFinished => ("NeverFinished", None),
        Because::NoCache => ("CacheDisabled", None),
        Because::TooOld => ("TooOld", None),
        Because::Gone => ("OutputGone", None),
        Because::NoResult => ("ResultNotKept", None),
        Because::Changed(aspect) => match aspect {
            Aspect::Code => ("CodeChanged", None),
            Aspect::Image => ("ImageChanged", None),
            Aspect::Requirements => ("RequirementsChanged", None),
            Aspect::Call => ("CallChanged", None),
            Aspect::Env => ("EnvChanged", None),
            Aspect::CacheVersion => ("CacheVersionChanged", None),
            Aspect::Arguments => ("ArgumentsChanged", None),
            Aspect::Inputs => ("InputsChanged", None),
            Aspect::Object(path) => ("InputChanged", Some(("path", path))),
            Aspect::Output => ("OutputChanged", None),
            Aspect::Kept(path) => ("OutputReplaced", Some(("path", path))),
            Aspect::Upstream(step) => ("UpstreamChanged", Some(("step", step))),
        },
    };
    let mut told = json!({"reason": reason, "message": because_text(because)});
    if let Some((name, value)) = field {
        told[name] = Value::String(value.clone());
    }
    told
}

fn because_text(because: &Because) -> String {
    match because {
        Because::NeverFinished => "no earlier run has finished it".to_owned(),
        Because::NoCache => "cache.enabled is false".to_owned(),
        Because::TooOld => "older than cache.maxAge".to_owned(),
        Because::Gone => "its output is no longer in storage".to_owned(),
        Because::NoResult => "its result was not kept".to_owned(),
        Because::Changed(aspect) => match aspect {
            Aspect::Code => "code changed".to_owned(),
            Aspect::Image => "image changed".to_owned(),
            Aspect::Requirements => "requirements changed".to_owned(),
            Aspect::Call => "call or script changed".to_owned(),
            Aspect::Env => "env changed".to_owned(),
            Aspect::CacheVersion => "cache.version changed".to_owned(),
            Aspect::Arguments => "arguments changed".to_owned(),
            Aspect::Inputs => "inputs changed".to_owned(),
            Aspect::Object(path) => format!("input {path} changed"),
            Aspect::Output => "output changed".to_owned(),
            Aspect::Kept(path) => format!("what is at {path} changed"),
            Aspect::Upstream(step) => format!("upstream step {step} changed"),
        },
    }
}

fn text(job: &Job, told: &Forecast) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["STEP", "PLAN", "WHAT", "AFTER", "WHERE", "WHY"]);
    for step in &told.steps {
        let after = match (step.waits_for.is_empty(), is_finally(job, step)) {
            (_, true) => "all others".to_owned(),
            (true, false) => "-".to_owned(),
            (false, false) => step.waits_for.join(", "),
        };
        let def = job.plan.step_def(step.step);
        table.add_row([
            step.name.clone(),
            outcome(step),
            what(def, job.plan.is_mapped(step.step), step),
            after,
            def.map_or_else(String::new, place),
            why(step),
        ]);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim().to_owned()).collect();
    let counts = OUTCOMES.iter().filter_map(|(outcome, _, name)| match count(told, *outcome) {
        0 => None,
        count => Some(format!("{count} {name}")),
    });
    let counts = counts.collect::<Vec<_>>().join(", ");
    let compared = match told.earlier.as_deref() {
        None => "earlier runs were not asked".to_owned(),
        Some([]) => format!("no earlier run in {}", job.storage.url),
        Some([_]) => format!("compared with 1 earlier run in {}", job.storage.url),
        Some(runs) => format!("compared with {} earlier runs in {}", runs.len(), job.storage.url),
    };
    format!("{}\n{}: {counts} ({compared})\n", lines.join("\n"), steps(told.steps.len()))
}

fn steps(count: usize) -> String {
    if count == 1 { "1 step".to_owned() } else { format!("{count} steps") }
}

fn outcome(step: &StepForecast) -> String {
    let name = OUTCOMES.iter().find(|(outcome, _, _)| *outcome == step.outcome).map_or("", |(_, _, name)| *name);
    let tasks = step.tasks;
    let (part, all) = match step.outcome {
        StepOutcome::Run => (tasks.run, tasks.run + tasks.cached + tasks.skipped),
        StepOutcome::Fails => (tasks.fails, tasks.run + tasks.cached + tasks.skipped + tasks.fails + tasks.unknown),
        _ => (0, 0),
    };
    match step.outcome {
        StepOutcome::Unknown => format!("unknown until {} has run", listed(step)),
        _ if part < all => format!("{name} {part} of {all}"),
        _ => name.to_owned(),
    }
}

fn listed(step: &StepForecast) -> String {
    step.until.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn what(def: Option<&StepDef>, mapped: bool, step: &StepForecast) -> String {
    let call = def.and_then(|def| def.call.as_ref()).map_or_else(|| "script".to_owned(), |call| format!("call {call}"));
    match (mapped, step.items) {
        (false, _) => call,
        (true, Some(1)) => format!("{call}, 1 item"),
        (true, Some(items)) => format!("{call}, {items} items"),
        (true, None) if step.until.is_empty() => format!("{call}, mapped"),
        (true, None) => format!("{call}, as many items as {} gives", listed(step)),
    }
}

/// Where it may run: its worker group, if it is pinned to one, and what a worker must offer.
fn place(def: &StepDef) -> String {
    let group = def.group.iter().map(|group| format!("group {group}"));
    let resources = def.resources.iter().map(|(name, amount)| format!("{name}: {amount}"));
    let all: Vec<String> = group.chain(resources).collect();
    if all.is_empty() { "any".to_owned() } else { all.join(", ") }
}

fn why(step: &StepForecast) -> String {
    let from = step.from.iter().map(|(name, uid, _)| format!("from {name} ({})", uid.get(..8).unwrap_or(uid)));
    let all: Vec<String> =
        step.because.iter().map(because_text).chain(from).chain(step.notes.iter().cloned()).collect();
    all.join("; ")
}
