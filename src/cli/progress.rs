//! Progress of a run on standard error: a bar on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use console::strip_ansi_codes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use run_model::report::task_name;
use run_model::{Counts, Note, Observer};

/// Without a terminal, a line is written at most this often unless something else is said.
const PLAIN_PERIOD: Duration = Duration::from_secs(5);

/// Shows a run's progress. Texts of steps are stripped of control characters before they reach the terminal.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    counts: Counts,
    said: Counts,
    said_at: Option<Instant>,
    started: Instant,
    /// Names for people, of the steps that have one.
    titles: BTreeMap<String, String>,
}

impl Progress {
    pub(super) fn new(titles: BTreeMap<String, String>) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var("TERM").is_ok_and(|term| term == "dumb");
        let bar = (io::stderr().is_terminal() && !plain).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style("{spinner} {msg}"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, counts: Counts::default(), said: Counts::default(), said_at: None, started: Instant::now(), titles }
    }

    /// A line that stays.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            // Progress is a comfort: a closed standard error does not end the run.
            None => drop(writeln!(io::stderr(), "{line}")),
        }
    }

    /// What goes on before there is anything to count.
    pub(super) fn phase(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => self.say(text),
        }
    }

    /// Takes the bar away and, without a terminal, says the last numbers.
    pub(super) fn finish(&mut self) {
        match self.bar.take() {
            Some(bar) => bar.finish_and_clear(),
            None if self.said != self.counts => self.say_counts(),
            None => {}
        }
    }

    fn say_counts(&mut self) {
        self.said = self.counts;
        self.said_at = Some(Instant::now());
        let seconds = self.started.elapsed().as_secs_f64();
        self.say(&format!("{:>6.1}s  {}", seconds, describe(&self.counts)));
    }
}

impl Observer for Progress {
    fn note(&mut self, note: Note) {
        let line = match note {
            Note::Opened { resumed: 0, .. } => return,
            Note::Opened { epoch, resumed } => {
                format!("resumed: {resumed} tasks are committed and do not run again (epoch {epoch})")
            }
            Note::Worker { name, added } => {
                tracing::debug!(worker = name, added, "worker");
                return;
            }
            Note::AttemptFailed(failure) => {
                let end = if failure.terminal { "failed" } else { "failed, retrying" };
                let (attempt, class) = (failure.attempt, &failure.class);
                let task = titled(failure.task(), self.titles.get(&failure.step));
                let first = failure.message.lines().next().unwrap_or_default();
                format!("{task} attempt {attempt} {end} ({class}): {}: {first}", failure.kind)
            }
            Note::OutputLost { task, more: 0, message } => format!("{task} runs again: {message}"),
            Note::OutputLost { task, more, message } => format!("{task} and {more} more run again: {message}"),
            Note::WorkerLost { task, worker } => format!("{task} lost its worker {worker}; it runs again"),
            Note::Blocked { step, count, message } => format!("{step}: {count} tasks wait: {message}"),
            Note::Unblocked { step } => format!("{step}: continues"),
            Note::StorageDown { message, .. } => format!("storage is not reachable; the run waits: {message}"),
            Note::StorageUp => "storage is reachable again".to_owned(),
            Note::SchedulerLost { cause } => {
                format!("lost the Dask scheduler ({cause}); restarting from the journal")
            }
            Note::Log { step, item, stream, text } => {
                let mark = if stream == "stdout" { String::new() } else { format!(" {stream}") };
                format!("[{}{mark}] {text}", task_name(&step, item))
            }
            Note::Cancelling => {
                "cancelling: stopping running steps (press Ctrl-C again to exit immediately)".to_owned()
            }
        };
        self.say(&clean(&line));
    }

    fn counts(&mut self, counts: Counts) {
        if counts == self.counts {
            return;
        }
        self.counts = counts;
        match &self.bar {
            Some(bar) => {
                if bar.length().is_none() {
                    bar.set_style(style(
                        "{spinner} [{elapsed_precise}] {bar:30} {pos}/{len} done{msg}  {eta_precise} left",
                    ));
                }
                bar.set_length(counts.total);
                bar.set_position(counts.done);
                bar.set_message(details(&counts));
            }
            None => {
                let due = self.said_at.is_none_or(|at| at.elapsed() >= PLAIN_PERIOD);
                if due && counts.total > 0 {
                    self.say_counts();
                }
            }
        }
    }
}

/// `step[item]`, with its name for people if it has one: `step[item] (join one month)`.
pub(super) fn titled(task: String, title: Option<&String>) -> String {
    title.map_or_else(|| task.clone(), |title| format!("{task} ({title})"))
}

/// `12/301 done, 4 running`.
pub(super) fn describe(counts: &Counts) -> String {
    format!("{}/{} done{}", counts.done, counts.total, details(counts))
}

fn details(counts: &Counts) -> String {
    [("running", counts.running), ("failed", counts.failed), ("skipped", counts.skipped), ("cached", counts.cached)]
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!(", {count} {name}"))
        .collect()
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Text that cannot steer a terminal: no escape sequences, no control characters but line breaks and tabs, and nothing
/// that turns the direction of writing.
pub(super) fn clean(text: &str) -> String {
    strip_ansi_codes(text).chars().filter(|c| matches!(c, '\n' | '\t') || !(c.is_control() || turns(*c))).collect()
}

/// Marks, embeddings, overrides and isolates of bidirectional text.
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_step_cannot_steer_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\x07\rc\td\n"), "abc\td\n");
        assert_eq!(clean("a\u{202e}b\u{2066}c\u{5d0}é"), "abc\u{5d0}é");
    }

    #[test]
    fn counts_are_described_without_zeroes() {
        let counts = Counts { total: 301, done: 12, running: 4, cached: 3, ..Counts::default() };
        assert_eq!(describe(&counts), "12/301 done, 4 running, 3 cached");
    }
}
