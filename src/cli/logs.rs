//! `logs`: the lines that a run's steps printed or logged, from storage; with `-f` until the run ends.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use super::Failure;
use super::options::LogsOptions;
use super::progress::clean;
use super::request;
use super::run::{home, read_notes, reader, store_failure, thaw, unknown_run};
use crate::problem::nearest;
use crate::run::report::task_name;
use crate::store::{LogFilter, LogLine, Reader};

/// Workers put their lines into storage every two seconds or so.
const POLL: Duration = Duration::from_millis(700);
/// Lines shown at most; a run may have written gigabytes.
const MAX_LINES: usize = 1_000_000;

pub(super) async fn logs(options: LogsOptions) -> Result<(), Failure> {
    let home = home()?;
    let note = home.find_note(&options.run).map_err(|error| read_notes(&error))?;
    if note.is_none() && options.storage.storage.is_none() {
        return Err(unknown_run(&home, &options.run)?);
    }
    let uid = note.as_ref().map_or_else(|| options.run.clone(), |note| note.uid.clone());
    let storage = request::storage(&options.storage, None, note.as_ref().map(|note| &note.storage), &home)?;
    let reader = reader(&storage).await?;
    let failed = |error| store_failure(&storage, &error);
    let filter = LogFilter { step: options.step.clone(), item: options.item.map(i64::from), attempt: None };
    let mut shown_before: HashMap<String, usize> = HashMap::new();
    loop {
        // Asked before the lines are read: a run that had ended by then has no later lines.
        let live = options.follow
            && home.find_note(&uid).map_err(|error| read_notes(&error))?.is_some_and(|n| n.shown_state() == "Running");
        let logs = reader.logs(&uid, &filter, MAX_LINES).await.map_err(failed)?;
        print(&logs.lines, &mut shown_before)?;
        if shown_before.is_empty() && !live {
            known_step(&options, &reader, &uid).await?;
            drop(writeln!(io::stderr(), "no log lines"));
        }
        if logs.omitted > 0 && !live {
            let hint = "name a step to see fewer";
            drop(writeln!(io::stderr(), "{} more lines are in storage; {hint}", logs.omitted));
        }
        if !live {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Refuses a step that the run does not have.
async fn known_step(options: &LogsOptions, reader: &Reader, uid: &str) -> Result<(), Failure> {
    let Some(step) = &options.step else { return Ok(()) };
    // Without a journal there is nothing to say about steps.
    let Ok(journal) = reader.read_journal(uid).await else { return Ok(()) };
    let frozen = thaw(uid, journal.opened.spec.as_deref().unwrap_or_default())?;
    let names: Vec<&str> = frozen.steps().map(|step| step.name.as_str()).collect();
    if names.contains(&step.as_str()) {
        return Ok(());
    }
    let near = nearest(step, names.iter().copied());
    let hint = near.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
    Err(Failure::bad_input(format!("UnknownStep: run {uid} has no step {}{hint}", clean(step))))
}

/// Prints the lines that were not printed before. Workers put their lines into storage independently, so a later look
/// may find lines between those that are known.
fn print(lines: &[LogLine], before: &mut HashMap<String, usize>) -> Result<(), Failure> {
    let mut now: HashMap<String, usize> = HashMap::new();
    let mut out = io::stdout().lock();
    for line in lines {
        let identity = format!("{} {} {}", line.t, line.stream, shown(line));
        let count = now.entry(identity.clone()).or_default();
        *count += 1;
        if *count > before.get(&identity).copied().unwrap_or(0) {
            writeln!(out, "{}", shown(line))?;
        }
    }
    out.flush()?;
    *before = now;
    Ok(())
}

fn shown(line: &LogLine) -> String {
    let attempt = if line.attempt > 1 { format!(" #{}", line.attempt) } else { String::new() };
    let stream = match line.stream.as_str() {
        "out" | "stdout" => String::new(),
        other => format!(" {other}"),
    };
    clean(&format!("[{}{attempt}{stream}] {}", task_name(&line.step, u32::try_from(line.item).ok()), line.text))
}
