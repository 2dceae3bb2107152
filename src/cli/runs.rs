//! `runs`: the runs that were started on this machine.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::options::{Output, RunsOptions};
use super::run::{home, read_notes};
use super::{Failure, progress::clean};
use local::home::RunNote;

pub(super) fn runs(options: &RunsOptions) -> Result<(), Failure> {
    let notes = home()?.read_notes().map_err(|error| read_notes(&error))?;
    let mut out = io::stdout().lock();
    if options.output == Output::Json {
        let list: Vec<Value> = notes.iter().map(note_json).collect();
        writeln!(out, "{:#}", Value::Array(list))?;
        return Ok(());
    }
    if notes.is_empty() {
        writeln!(out, "no runs yet")?;
        return Ok(());
    }
    let width = notes.iter().map(|note| note.name.chars().count()).max().unwrap_or(4).max(4);
    writeln!(out, "{:8}  {:width$}  {:11}  {:>9}  {:>5}  STORAGE", "RUN", "NAME", "STATE", "DONE", "AGE")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
    for note in &notes {
        let uid = note.uid.get(..8).unwrap_or(&note.uid);
        let (state, done, age) = (note.shown_state(), done(note), age(now - note.created));
        let name = clean(&note.name);
        writeln!(out, "{uid:8}  {name:width$}  {state:11}  {done:>9}  {age:>5}  {}", note.storage.url)?;
    }
    Ok(())
}

fn note_json(note: &RunNote) -> Value {
    json!({
        "uid": note.uid,
        "name": note.name,
        "state": note.shown_state(),
        "created": note.created,
        "steps": note.steps,
        "storage": format!("{}/runs/{}", note.storage.url, note.uid),
        "message": note.message,
    })
}

fn done(note: &RunNote) -> String {
    let number = |key: &str| note.steps.as_ref().and_then(|steps| steps.get(key)).and_then(Value::as_u64);
    match (number("done"), number("total")) {
        (Some(done), Some(total)) => format!("{done}/{total}"),
        _ => "-".to_owned(),
    }
}

/// Like kubectl's ages: `42s`, `7m`, `3h`, `12d`.
pub(super) fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_in_kubectl() {
        let shown: Vec<String> = [5.0, 300.0, 7300.0, 200_000.0].into_iter().map(age).collect();
        assert_eq!(shown, ["5s", "5m", "2h", "2d"]);
    }
}
