//! Log lines of a run: one JSON array per line, in objects per worker. Hostile: every line is step output.

use serde_json::Value;

use super::error::clean;

/// Longest log object that is read; workers start a new one long before.
pub(super) const OBJECT_LIMIT: u64 = 64 << 20;

/// Which lines are wanted; None is all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogFilter {
    pub step: Option<String>,
    pub item: Option<i64>,
    pub attempt: Option<u32>,
}

/// One line a step wrote. The text has no control characters except tabs.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// Worker's clock, seconds since 1970.
    pub t: f64,
    pub step: String,
    pub item: i64,
    pub attempt: u32,
    /// `stdout`, `stderr`, a logging level, or `daskade` for notes of the runtime.
    pub stream: String,
    pub text: String,
}

/// The lines asked for, in order of time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Logs {
    pub lines: Vec<LogLine>,
    /// Lines past the limit that were left out.
    pub omitted: u64,
    /// Lines and objects that are not log lines.
    pub unreadable: u64,
}

impl LogFilter {
    /// Whether a line is asked for.
    pub fn wants(&self, line: &LogLine) -> bool {
        self.step.as_ref().is_none_or(|step| *step == line.step)
            && self.item.is_none_or(|item| item == line.item)
            && self.attempt.is_none_or(|attempt| attempt == line.attempt)
    }
}

impl Logs {
    /// The lines of log objects that were read elsewhere.
    pub fn of<'a>(objects: impl IntoIterator<Item = &'a [u8]>, filter: &LogFilter, limit: usize) -> Self {
        let mut logs = Self::default();
        for object in objects {
            logs.add(object, filter, limit);
        }
        logs.sort();
        logs
    }

    /// Adds the lines of one object.
    pub(super) fn add(&mut self, data: &[u8], filter: &LogFilter, limit: usize) {
        for line in data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match parse(line) {
                Some(line) if filter.wants(&line) => {
                    if self.lines.len() < limit {
                        self.lines.push(line);
                    } else {
                        self.omitted += 1;
                    }
                }
                Some(_) => {}
                None => self.unreadable += 1,
            }
        }
    }

    /// Puts the lines in order of time; those of one attempt stay as they were written.
    pub(super) fn sort(&mut self) {
        self.lines.sort_by(|a, b| a.t.total_cmp(&b.t));
    }
}

fn parse(line: &[u8]) -> Option<LogLine> {
    let Ok(Value::Array(fields)) = serde_json::from_slice(line) else {
        return None;
    };
    let [t, step, item, attempt, stream, text] = &fields[..] else {
        return None;
    };
    Some(LogLine {
        t: t.as_f64()?,
        step: step.as_str()?.to_owned(),
        item: item.as_i64()?,
        attempt: attempt.as_u64()?.try_into().ok()?,
        stream: clean(stream.as_str()?),
        text: text.as_str()?.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_filtered_cleaned_and_counted() {
        let data = br#"[2.0,"a",-1,1,"stdout","two\u001b[31m"]
[1.0,"a",-1,1,"stdout","one"]
[1.5,"b",3,2,"stderr","other"]
not json
[1.0,"a"]
"#;
        let mut logs = Logs::default();
        logs.add(data, &LogFilter { step: Some("a".into()), ..LogFilter::default() }, 10);
        logs.sort();
        assert_eq!(logs.lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["one", "two\u{fffd}[31m"]);
        assert_eq!((logs.unreadable, logs.omitted), (2, 0));
        let mut logs = Logs::default();
        logs.add(data, &LogFilter::default(), 1);
        assert_eq!((logs.lines.len(), logs.omitted), (1, 2));
        let mut logs = Logs::default();
        logs.add(data, &LogFilter { item: Some(3), attempt: Some(2), ..LogFilter::default() }, 9);
        assert_eq!(logs.lines.len(), 1);
    }

    #[test]
    fn deep_json_is_refused_not_followed() {
        let mut logs = Logs::default();
        logs.add(&[b'['; 1_000_000], &LogFilter::default(), 1);
        assert_eq!(logs.unreadable, 1);
    }
}
