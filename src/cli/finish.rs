//! What a run leaves on the screen: the result on standard output, everything else on standard error.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::options::{Output, ShowOptions};
use super::progress::{clean, describe, titled};
use super::{Failure, exit, table};
use api::reason::Reason;
use local::home::StorageNote;
use run_model::{Failure as StepFailure, Frozen, Report, ResultValue, RunOutcome};
use store::Final;

/// Failed steps that are shown in full.
const SHOWN_FAILURES: usize = 3;

/// Shows the end of a run; an error with the exit code if it did not succeed.
pub(super) fn report(
    frozen: &Frozen,
    storage: &StorageNote,
    report: &Report,
    show: &ShowOptions,
) -> Result<(), Failure> {
    match show.output {
        Output::Json => {
            let results: Map<String, Value> =
                report.results.iter().map(|(name, value)| (name.clone(), value.to_json())).collect();
            let mut document = base(frozen, storage, report.outcome.as_str());
            document.insert("durationSeconds".into(), json!(report.duration.as_secs_f64()));
            document.insert("steps".into(), json!(report.counts));
            document.insert("results".into(), Value::Object(results));
            let reason = report.reason.map(|reason| reason.to_string());
            for (key, text) in [("reason", &reason), ("message", &report.message)] {
                if let Some(text) = text {
                    document.insert(key.into(), Value::String(clean(text)));
                }
            }
            let failures: Vec<Value> = report.failures.iter().map(failure_json).collect();
            if !failures.is_empty() {
                document.insert("failures".into(), Value::Array(failures));
            }
            print_json(&Value::Object(document))?;
        }
        Output::Text => {
            let mut out = io::stdout().lock();
            for (name, value) in &report.results {
                writeln!(out, "{name}: {}", clean(&result_text(value)))?;
            }
            out.flush()?;
        }
    }
    tell(&summary(frozen, storage, report));
    match report.outcome {
        RunOutcome::Succeeded => Ok(()),
        RunOutcome::Failed => Err(Failure::silent(exit::RUN_FAILED)),
        RunOutcome::Cancelled => Err(Failure::silent(exit::CANCELLED)),
    }
}

/// `resume` of a run that has succeeded: its result once more.
pub(super) fn already(
    frozen: &Frozen,
    storage: &StorageNote,
    closed: &Final,
    show: &ShowOptions,
) -> Result<(), Failure> {
    let results = closed.fields.get("results").and_then(Value::as_object).cloned().unwrap_or_default();
    match show.output {
        Output::Json => {
            let mut document = base(frozen, storage, "Succeeded");
            document.insert("results".into(), Value::Object(results));
            print_json(&Value::Object(document))?;
        }
        Output::Text => {
            let mut out = io::stdout().lock();
            for (name, value) in &results {
                writeln!(out, "{name}: {}", clean(&table::plain(value)))?;
            }
        }
    }
    tell(&format!("run {} of {} has succeeded already; nothing ran", frozen.uid, frozen.name));
    Ok(())
}

/// A run that could not be brought to an end: with `-o json` a document all the same.
pub(super) fn broken(
    frozen: &Frozen,
    storage: &StorageNote,
    failure: &Failure,
    show: &ShowOptions,
) -> Result<(), Failure> {
    let cancelled = failure.code == exit::CANCELLED;
    if show.output == Output::Json {
        let mut document = base(frozen, storage, if cancelled { "Cancelled" } else { "Interrupted" });
        let message = failure.message.clone().unwrap_or_default();
        document.insert("message".into(), Value::String(clean(&message)));
        print_json(&Value::Object(document))?;
    }
    Ok(())
}

fn base(frozen: &Frozen, storage: &StorageNote, state: &str) -> Map<String, Value> {
    let place = format!("{}/runs/{}", storage.url, frozen.uid);
    let pairs =
        [("name", json!(frozen.name)), ("uid", json!(frozen.uid)), ("state", json!(state)), ("storage", json!(place))];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn summary(frozen: &Frozen, storage: &StorageNote, report: &Report) -> String {
    let mut text = String::new();
    let titles = frozen.titles();
    for failure in report.failures.iter().take(SHOWN_FAILURES) {
        text.push_str(&failure_text(failure, titles.get(&failure.step)));
    }
    let more = report.failures.len().saturating_sub(SHOWN_FAILURES);
    if more > 0 {
        text.push_str(&format!("… and {more} more failed steps\n"));
    }
    let seconds = report.duration.as_secs_f64();
    let (state, counts) = (report.outcome.as_str(), describe(&report.counts));
    text.push_str(&format!("{state} in {seconds:.1} s: {counts}\n"));
    if let Some(message) = report.message.as_ref().filter(|_| report.outcome != RunOutcome::Succeeded) {
        let reason = report.reason.unwrap_or(Reason::Failed);
        text.push_str(&format!("reason: {reason}: {message}\n"));
    }
    let uid = &frozen.uid;
    text.push_str(&format!("stored in {}/runs/{uid}; logs: daskade logs {}", storage.url, short(uid)));
    if report.outcome != RunOutcome::Succeeded {
        text.push_str(&format!("; go on: daskade resume {}", short(uid)));
    }
    clean(&text)
}

/// Everything a person needs of one failed step.
fn failure_text(failure: &StepFailure, title: Option<&String>) -> String {
    let task = titled(failure.task(), title);
    let mut text = format!("step {task} failed: {}: {}\n", failure.kind, failure.message);
    let item = failure.item.map(|item| format!(", item {item}")).unwrap_or_default();
    let worker = if failure.worker.is_empty() { "none" } else { &failure.worker };
    let (step, attempt, class) = (&failure.step, failure.attempt, &failure.class);
    text.push_str(&format!("  step {step}{item}, attempt {attempt}, class {class}, worker {worker}\n"));
    indent(&mut text, "traceback", &failure.traceback);
    indent(&mut text, "last log lines", &failure.tail.join("\n"));
    text
}

fn indent(text: &mut String, title: &str, block: &str) {
    if block.trim().is_empty() {
        return;
    }
    text.push_str(&format!("  {title}:\n"));
    for line in block.lines() {
        text.push_str(&format!("    {line}\n"));
    }
}

fn failure_json(failure: &StepFailure) -> Value {
    let tail: Vec<String> = failure.tail.iter().map(|line| clean(line)).collect();
    json!({
        "step": failure.step,
        "item": failure.item,
        "attempt": failure.attempt,
        "class": failure.class,
        "type": clean(&failure.kind),
        "message": clean(&failure.message),
        "traceback": clean(&failure.traceback),
        "worker": failure.worker,
        "logTail": tail,
    })
}

fn result_text(value: &ResultValue) -> String {
    match value {
        ResultValue::Json(value) => table::plain(value),
        ResultValue::Stored { uri, serializer, .. } if serializer == "list" => format!("{uri} (one output per item)"),
        ResultValue::Stored { uri, size, serializer } => format!("{uri} ({size} bytes, {serializer})"),
        ResultValue::Missing { why: None } => "(none)".to_owned(),
        ResultValue::Missing { why: Some(why) } => format!("(none: {why})"),
    }
}

/// The beginning of a uid that `logs` and `resume` take.
fn short(uid: &str) -> &str {
    uid.get(..8).unwrap_or(uid)
}

fn print_json(value: &Value) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value:#}")?;
    out.flush()?;
    Ok(())
}

/// To standard error; a closed one is no reason to end.
fn tell(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}
