//! `logs`: the lines that a run's steps printed or logged, from storage; with `-f` until the run ends.

use std::io::{self, Write};
use std::time::Duration;

use super::Failure;
use super::lines::Printed;
use super::options::LogsOptions;
use super::progress::clean;
use super::request;
use super::run::{home, read_notes, reader, store_failure, thaw, unknown_run};
use api::problem::nearest;
use store::{LogFilter, Reader};

/// Workers put their lines into storage every two seconds or so.
const POLL: Duration = Duration::from_millis(700);
/// Lines shown at most; a run may have written gigabytes.
pub(super) const MAX_LINES: usize = 1_000_000;

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
    let mut printed = Printed::default();
    loop {
        // Asked before the lines are read: a run that had ended by then has no later lines.
        let live = options.follow
            && home.find_note(&uid).map_err(|error| read_notes(&error))?.is_some_and(|n| n.shown_state() == "Running");
        let logs = reader.logs(&uid, &filter, MAX_LINES).await.map_err(failed)?;
        printed.stored(&logs.lines)?;
        if printed.is_empty() && !live {
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
