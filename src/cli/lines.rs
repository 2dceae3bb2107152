//! Log lines on the terminal: each once, whichever way it comes.

use std::collections::HashMap;
use std::io::{self, Write};

use super::Failure;
use super::progress::clean;
use run_model::report::task_name;
use store::LogLine;

/// What was printed.
#[derive(Debug, Default)]
pub(super) struct Printed {
    times: HashMap<String, usize>,
    /// How often each line came live; storage tells the same lines later.
    live: HashMap<String, usize>,
}

impl Printed {
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Prints those of all the lines in storage that were not printed before. Workers put their lines there independently,
    /// so a later look may find lines between those that are known.
    pub fn stored(&mut self, lines: &[LogLine]) -> Result<(), Failure> {
        let mut there: HashMap<String, usize> = HashMap::new();
        let mut out = io::stdout().lock();
        for line in lines {
            let count = there.entry(identity(line)).or_default();
            *count += 1;
            let printed = self.times.entry(identity(line)).or_default();
            if *count > *printed {
                *printed = *count;
                writeln!(out, "{}", shown(line))?;
            }
        }
        out.flush()?;
        Ok(())
    }

    /// Prints lines that come as they are written, unless storage had them first.
    pub fn live(&mut self, lines: &[LogLine]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        for line in lines {
            let count = self.live.entry(identity(line)).or_default();
            *count += 1;
            let printed = self.times.entry(identity(line)).or_default();
            if *count > *printed {
                *printed = *count;
                writeln!(out, "{}", shown(line))?;
            }
        }
        out.flush()?;
        Ok(())
    }
}

fn identity(line: &LogLine) -> String {
    format!("{} {} {}", line.t, line.stream, shown(line))
}

fn shown(line: &LogLine) -> String {
    let attempt = if line.attempt > 1 { format!(" #{}", line.attempt) } else { String::new() };
    let stream = match line.stream.as_str() {
        "out" | "stdout" => String::new(),
        other => format!(" {other}"),
    };
    clean(&format!("[{}{attempt}{stream}] {}", task_name(&line.step, u32::try_from(line.item).ok()), line.text))
}
