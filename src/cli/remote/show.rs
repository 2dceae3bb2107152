//! `status`, `runs` and `cancel` for runs in Kubernetes.

use std::io::{self, Write};
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::connection::{Connection, as_json, failed};
use crate::cli::options::{CancelOptions, KubeOptions, Output, StatusOptions};
use crate::cli::progress::clean;
use crate::cli::runs::age;
use crate::cli::{Failure, exit};

/// How often a run is looked at while it is followed: its status changes every five seconds at most.
const LOOK: Duration = Duration::from_secs(1);
/// Tries in a row that may fail while a run is followed: an API server that restarts is back by then.
const PATIENCE: u32 = 60;

/// One run, or all of the namespace.
pub(in crate::cli) async fn status(options: StatusOptions) -> Result<(), Failure> {
    let Some(name) = &options.run else { return runs(&options.kube, options.output).await };
    let connection = Connection::open(&options.kube).await?;
    if options.watch {
        return follow(&connection, name, options.output, false).await;
    }
    let run = connection.run(name).await?;
    let mut out = io::stdout().lock();
    match options.output {
        Output::Text => write!(out, "{}", text(&run))?,
        Output::Json => writeln!(out, "{:#}", summary(&run))?,
    }
    Ok(())
}

/// The runs of a namespace, the latest first.
pub(in crate::cli) async fn runs(kube: &KubeOptions, output: Output) -> Result<(), Failure> {
    let connection = Connection::open(kube).await?;
    let what = format!("list the runs of {}", connection.namespace);
    let listed = connection.runs().list(&ListParams::default()).await.map_err(|error| failed(&what, &error))?;
    let mut found: Vec<Value> = listed.items.iter().map(as_json).collect();
    found.sort_by_key(|run| std::cmp::Reverse(field(run, "/metadata/creationTimestamp").to_owned()));
    let mut out = io::stdout().lock();
    if output == Output::Json {
        writeln!(out, "{:#}", Value::Array(found.iter().map(summary).collect()))?;
        return Ok(());
    }
    if found.is_empty() {
        writeln!(out, "no runs in the namespace {}", connection.namespace)?;
        return Ok(());
    }
    let width = |path: &str| found.iter().map(|run| field(run, path).chars().count()).max().unwrap_or(0).max(8);
    let (names, pipelines) = (width("/metadata/name"), width("/metadata/labels/daskade.dev~1pipeline"));
    writeln!(out, "{:names$}  {:pipelines$}  {:9}  {:>9}  {:>5}", "NAME", "PIPELINE", "STATE", "DONE", "AGE")?;
    for run in &found {
        let (name, pipeline) = (field(run, "/metadata/name"), pipeline(run));
        let done = clean(field(run, "/status/progress"));
        writeln!(out, "{name:names$}  {pipeline:pipelines$}  {:9}  {done:>9}  {:>5}", state(run), old(run))?;
    }
    Ok(())
}

/// Has a run end.
pub(in crate::cli) async fn cancel(options: CancelOptions) -> Result<(), Failure> {
    let connection = Connection::open(&options.kube).await?;
    let name = &options.run;
    let patch = json!({"spec": {"cancel": true}});
    match connection.runs().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(run) => {
            let run = as_json(&run);
            let mut out = io::stdout().lock();
            match ended(&run) {
                Some(_) => writeln!(out, "{name} has ended already: {}", state(&run))?,
                None => writeln!(out, "{name} is being cancelled")?,
            }
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Err(connection.no_run(name).await),
        Err(error) => Err(failed(&format!("cancel run {name}"), &error)),
    }
}

/// Tells what changes until the run ends, on standard error; then the result. With `judge`, the exit code is the run's.
/// Ctrl-C ends the command, not the run, and says so.
pub(super) async fn follow(connection: &Connection, name: &str, output: Output, judge: bool) -> Result<(), Failure> {
    let run = tokio::select! {
        run = watch(connection, name) => run?,
        Ok(()) = tokio::signal::ctrl_c() => {
            let place = &connection.namespace;
            let again = format!("daskade status {name} --watch -n {place}");
            let end = format!("daskade cancel {name} -n {place}");
            drop(writeln!(io::stderr(), "this ends the command, not the run. Follow it: {again}; end it: {end}"));
            return Err(Failure::silent(exit::CANCELLED));
        }
    };
    let mut out = io::stdout().lock();
    match output {
        Output::Text => write!(out, "{}", text(&run))?,
        Output::Json => writeln!(out, "{:#}", summary(&run))?,
    }
    match ended(&run) {
        Some(false) if judge && state(&run) == "Cancelled" => Err(Failure::silent(exit::CANCELLED)),
        Some(false) if judge => Err(Failure::silent(exit::RUN_FAILED)),
        _ => Ok(()),
    }
}

/// Tells what changes until the run ends.
async fn watch(connection: &Connection, name: &str) -> Result<Value, Failure> {
    let mut told = String::new();
    let mut misses = 0;
    loop {
        match connection.run(name).await {
            Ok(run) => {
                misses = 0;
                let line = line(&run);
                if line != told {
                    // A closed standard error is no reason to end.
                    drop(writeln!(io::stderr(), "{line}"));
                    told = line;
                }
                if ended(&run).is_some() {
                    return Ok(run);
                }
            }
            Err(failure) if failure.code != exit::ENVIRONMENT || misses >= PATIENCE => return Err(failure),
            Err(_) => misses += 1,
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A run in one line.
fn line(run: &Value) -> String {
    let mut line = format!("{}: {}", field(run, "/metadata/name"), state(run));
    let progress = field(run, "/status/progress");
    if !progress.is_empty() {
        line.push_str(&format!(" {progress}"));
    }
    if ended(run).is_none() {
        let message = condition(run).map(|condition| field(condition, "/message")).unwrap_or_default();
        if !message.is_empty() {
            line.push_str(&format!(" - {message}"));
        }
    }
    clean(&line)
}

/// A run for people.
fn text(run: &Value) -> String {
    let mut lines = vec![line(run)];
    let mut row = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(format!("  {name:9} {}", clean(value)));
        }
    };
    row("pipeline", pipeline(run));
    row("cluster", field(run, "/status/cluster"));
    row("storage", field(run, "/status/storageUrl"));
    row("started", field(run, "/status/startedAt"));
    row("finished", field(run, "/status/finishedAt"));
    if let Some(condition) = condition(run).filter(|_| ended(run) == Some(false)) {
        row("reason", &format!("{}: {}", field(condition, "/reason"), field(condition, "/message")));
    }
    let removal = list(run, "/status/conditions").iter().find(|condition| condition["type"] == "Removed");
    let is_held = |condition: &&Value| condition["type"] == "Released" && condition["status"] == "False";
    let held = list(run, "/status/conditions").iter().find(is_held);
    row("released", held.map(|condition| field(condition, "/message")).unwrap_or_default());
    row("removed", removal.map(|condition| field(condition, "/message")).unwrap_or_default());
    for entry in list(run, "/status/waiting") {
        row("waits", &format!("{} ({}): {}", field(entry, "/step"), field(entry, "/reason"), field(entry, "/message")));
    }
    for entry in list(run, "/status/failures") {
        let item = entry["item"].as_u64().map(|item| format!("[{item}]")).unwrap_or_default();
        row(
            "failed",
            &format!("{}{item} ({}): {}", field(entry, "/step"), field(entry, "/class"), field(entry, "/message")),
        );
    }
    for (name, value) in run.pointer("/status/results").and_then(Value::as_object).into_iter().flatten() {
        row("result", &format!("{name}: {value}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// A run for programs.
fn summary(run: &Value) -> Value {
    let at = |path: &str| run.pointer(path).cloned().unwrap_or_default();
    let time = |path: &str| field(run, path).parse::<Timestamp>().ok();
    let end = time("/status/finishedAt").unwrap_or_else(Timestamp::now);
    let seconds = time("/status/startedAt").map(|start| end.duration_since(start).as_secs_f64());
    json!({
        "name": at("/metadata/name"),
        "namespace": at("/metadata/namespace"),
        "uid": at("/metadata/uid"),
        "pipeline": pipeline(run),
        "state": state(run),
        "reason": condition(run).map(|condition| condition["reason"].clone()),
        "message": condition(run).map(|condition| condition["message"].clone()),
        "durationSeconds": seconds,
        "steps": at("/status/steps"),
        "results": at("/status/results"),
        "failures": at("/status/failures"),
        "waiting": at("/status/waiting"),
    })
}

fn condition(run: &Value) -> Option<&Value> {
    list(run, "/status/conditions").iter().find(|condition| condition["type"] == "Succeeded")
}

/// Whether it has ended, and well.
pub(super) fn ended(run: &Value) -> Option<bool> {
    match condition(run)?["status"].as_str()? {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

pub(super) fn state(run: &Value) -> &str {
    match field(run, "/status/state") {
        "" if run.pointer("/spec/suspend").is_some_and(|suspend| *suspend == json!(true)) => "Suspended",
        "" => "Pending",
        state => state,
    }
}

pub(super) fn pipeline(run: &Value) -> &str {
    match field(run, "/metadata/labels/daskade.dev~1pipeline") {
        "" => field(run, "/spec/pipelineRef"),
        name => name,
    }
}

fn old(run: &Value) -> String {
    let made = field(run, "/metadata/creationTimestamp").parse::<Timestamp>();
    made.map(|made| age(Timestamp::now().duration_since(made).as_secs_f64())).unwrap_or_default()
}

pub(super) fn field<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
