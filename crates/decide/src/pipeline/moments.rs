//! The moments of a schedule.
//!
//! Cron with a time zone, where clocks jump: what names fixed minutes and hours (`30 2 * * *`) runs once a day, also on the
//! day on which 2:30 does not exist (at the end of the gap) or exists twice (the first time); what has `*` or a step in
//! minutes or hours (`*/15 * * * *`) goes by the clock as it is, so it has no moments in a gap and all of them in both
//! passes of an hour that comes twice. Intervals know no clocks.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

use api::pipeline::Schedule;

/// Shortest interval: names of runs have seconds.
const SHORTEST: SignedDuration = SignedDuration::from_secs(1);
/// A cron that has no moment within so many years has none: February 29th falls on each day of the week within 40 years.
const YEARS: i64 = 41;
/// Fields of a cron expression: name, least and greatest number, and names that stand for numbers from there on.
const FIELDS: [(&str, u8, u8, u8, &[&str]); 5] = [
    ("minute", 0, 59, 0, &[]),
    ("hour", 0, 23, 0, &[]),
    ("day of month", 1, 31, 0, &[]),
    ("month", 1, 12, 1, &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]),
    ("day of week", 0, 7, 0, &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]),
];
const MACROS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// Why a schedule has no moments: the field below `schedule`, what is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleError {
    /// `cron`, `timeZone`, `interval` or `start`; empty for the whole.
    pub field: &'static str,
    pub message: String,
    pub help: Option<String>,
}

/// A schedule that has moments.
#[derive(Debug, Clone)]
pub struct Timing(Form);

#[derive(Debug, Clone)]
enum Form {
    Cron { cron: Box<Cron>, zone: TimeZone },
    Interval { start: Timestamp, every: SignedDuration },
}

impl Timing {
    /// Reads a schedule; `created` is when the Pipeline was made, from which intervals count unless they say otherwise.
    pub fn read(schedule: &Schedule, created: Timestamp) -> Result<Self, ScheduleError> {
        let form = match (&schedule.cron, schedule.interval) {
            (Some(cron), None) => {
                let zone = match &schedule.time_zone {
                    Some(name) => zone(name)?,
                    None => TimeZone::UTC,
                };
                Form::Cron { cron: Box::new(read_cron(cron)?), zone }
            }
            (None, Some(interval)) => {
                let every = SignedDuration::try_from(interval.to_std()).unwrap_or(SignedDuration::MAX);
                if every < SHORTEST {
                    let message = format!("{interval} is below one second");
                    return Err(error("interval", message, Some("the shortest interval is 1s")));
                }
                let start = match &schedule.start {
                    None => created,
                    Some(text) => text.parse().map_err(|_| {
                        let message = format!("{text:?} is not a moment such as 2026-01-31T06:00:00Z");
                        error("start", message, None)
                    })?,
                };
                Form::Interval { start, every }
            }
            _ => return Err(error("", "give exactly one of cron and interval", None)),
        };
        let timing = Self(form);
        if matches!(timing.0, Form::Cron { .. }) && timing.after(created).is_none() {
            let help = "no month that it names has such a day";
            return Err(error("cron", "it never comes: there is no such date", Some(help)));
        }
        Ok(timing)
    }

    /// The first moment of a Pipeline made at `created`: an interval that counts from then begins with it.
    pub fn first(&self, created: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Form::Interval { start, .. } if *start == created => Some(created),
            Form::Interval { .. } | Form::Cron { .. } => self.after(created),
        }
    }

    /// The first moment after `time`.
    pub fn after(&self, time: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Form::Cron { cron, zone } => {
                let next = cron.find_next_occurrence(&zoned(time, zone), false).ok()?.timestamp();
                (next.as_second() - time.as_second() < YEARS * 366 * 86_400).then_some(next)
            }
            Form::Interval { start, every } => {
                if time < *start {
                    return Some(*start);
                }
                let passed = time.as_nanosecond() - start.as_nanosecond();
                nth(*start, *every, passed / every.as_nanos() + 1)
            }
        }
    }

    /// The last moment at or before `time`.
    pub fn until(&self, time: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Form::Cron { cron, zone } => {
                Some(cron.find_previous_occurrence(&zoned(time, zone), true).ok()?.timestamp())
            }
            Form::Interval { start, every } => {
                let passed = time.as_nanosecond() - start.as_nanosecond();
                (passed >= 0).then(|| nth(*start, *every, passed / every.as_nanos())).flatten()
            }
        }
    }

    /// Whether a time is a moment of the schedule.
    pub fn has(&self, time: Timestamp) -> bool {
        self.until(time) == Some(time)
    }

    /// The moments from `first` to `last`, both included, the latest first, at most `most`.
    pub fn between(&self, first: Timestamp, last: Timestamp, most: usize) -> Vec<Timestamp> {
        let mut found = Vec::new();
        let mut at = last;
        while found.len() < most
            && let Some(moment) = self.until(at).filter(|moment| *moment >= first)
        {
            found.push(moment);
            match moment.checked_sub(SignedDuration::from_nanos(1)) {
                Ok(before) => at = before,
                Err(_) => break,
            }
        }
        found
    }
}

fn nth(start: Timestamp, every: SignedDuration, n: i128) -> Option<Timestamp> {
    Timestamp::from_nanosecond(start.as_nanosecond().checked_add(every.as_nanos().checked_mul(n)?)?).ok()
}

/// Moments of cron have whole seconds, so a search begins at one.
fn zoned(time: Timestamp, zone: &TimeZone) -> Zoned {
    let floor = time.as_nanosecond().div_euclid(1_000_000_000);
    let whole = i64::try_from(floor).ok().and_then(|second| Timestamp::from_second(second).ok());
    whole.unwrap_or(time).to_zoned(zone.clone())
}

fn error(field: &'static str, message: impl Into<String>, help: Option<&str>) -> ScheduleError {
    ScheduleError { field, message: message.into(), help: help.map(ToOwned::to_owned) }
}

fn zone(name: &str) -> Result<TimeZone, ScheduleError> {
    TimeZone::get(name).map_err(|_| {
        let near = nearest_zone(name).map(|near| format!("did you mean {near}?"));
        let help = near.unwrap_or_else(|| "give an IANA name such as Europe/Berlin".to_owned());
        error("timeZone", format!("there is no time zone {name:?}"), Some(&help))
    })
}

fn nearest_zone(name: &str) -> Option<String> {
    let names: Vec<String> = jiff::tz::db().available().map(|zone| zone.to_string()).collect();
    api::problem::nearest(name, names.iter().map(String::as_str)).map(ToOwned::to_owned)
}

fn read_cron(text: &str) -> Result<Cron, ScheduleError> {
    let text = text.trim();
    let text = match MACROS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
        Some((_, fields)) => fields,
        None if text.starts_with('@') => {
            let names: Vec<&str> = MACROS.iter().map(|(name, _)| *name).collect();
            let help = format!("there are {}; for other times use five fields, or interval", names.join(", "));
            return Err(error("cron", format!("there is no macro {text:?}"), Some(&help)));
        }
        None => text,
    };
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let message = format!("{text:?} has {} fields, must have five", fields.len());
        let help = "minute, hour, day of month, month, day of week; the time zone is a field of its own: timeZone";
        return Err(error("cron", message, Some(help)));
    }
    for (field, form) in fields.iter().zip(FIELDS) {
        check_field(field, form)?;
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(text).map_err(|cause| error("cron", format!("{text:?} cannot be read: {cause}"), None))
}

/// Lists of `*`, numbers, names and ranges, each with a step or without.
fn check_field(text: &str, form: (&'static str, u8, u8, u8, &[&str])) -> Result<(), ScheduleError> {
    let (name, least, most, first, names) = form;
    let wrong = |what: String| error("cron", format!("{name} {text:?}: {what}"), None);
    let number = |part: &str| -> Result<u8, ScheduleError> {
        if let Some(at) = names.iter().position(|name| name.eq_ignore_ascii_case(part)) {
            return Ok(first + at as u8);
        }
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let value = is_number.then(|| part.parse::<u8>().ok()).flatten();
        value.filter(|value| (least..=most).contains(value)).ok_or_else(|| {
            let or = if names.is_empty() { "" } else { " or a name such as " };
            wrong(format!("{part:?} is not a number from {least} to {most}{or}{}", names.get(1).unwrap_or(&"")))
        })
    };
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        if let Some(step) = step {
            let fits = step.parse::<u8>().is_ok_and(|step| step > 0 && step <= most)
                && step.bytes().all(|b| b.is_ascii_digit());
            if !fits {
                return Err(wrong(format!("{step:?} is not a step from 1 to {most}")));
            }
            if range != "*" && !range.contains('-') {
                return Err(wrong(format!("a step belongs to * or a range, as in */{step} or {least}-{most}/{step}")));
            }
        }
        if range == "*" {
            continue;
        }
        match range.split_once('-') {
            None => drop(number(range)?),
            Some((from, to)) => {
                let (from, mut to) = (number(from)?, number(to)?);
                // Sunday is also the last day.
                if most == 7 && to == 0 {
                    to = 7;
                }
                if from > to {
                    return Err(wrong(format!("the range {range} goes backwards")));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(schedule: serde_json::Value) -> Result<Timing, ScheduleError> {
        Timing::read(&serde_json::from_value(schedule).unwrap(), at("2026-01-15T12:00:00Z"))
    }

    fn cron(text: &str, zone: &str) -> Timing {
        read(serde_json::json!({"cron": text, "timeZone": zone})).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The moments from one time to another, forwards, as text.
    fn list(timing: &Timing, from: &str, to: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut time = at(from) - SignedDuration::from_secs(1);
        while let Some(next) = timing.after(time).filter(|next| *next <= at(to)) {
            found.push(next.to_string());
            time = next;
        }
        found
    }

    #[test]
    fn five_fields_and_macros() {
        for (text, first) in [
            ("*/5 * * * *", "2026-01-15T12:05:00Z"),
            ("0 2 * * *", "2026-01-16T02:00:00Z"),
            ("@hourly", "2026-01-15T13:00:00Z"),
            ("@Daily", "2026-01-16T00:00:00Z"),
            ("@weekly", "2026-01-18T00:00:00Z"),
            ("@monthly", "2026-02-01T00:00:00Z"),
            ("@yearly", "2027-01-01T00:00:00Z"),
            ("0 0 * * 7", "2026-01-18T00:00:00Z"),
            ("0 0 * * fri-sun", "2026-01-16T00:00:00Z"),
            ("0 9 1-7,20 feb Mon", "2026-02-01T09:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            ("0 0 31 */2 *", "2026-01-31T00:00:00Z"),
            ("10-50/20 1,13 * * *", "2026-01-15T13:10:00Z"),
        ] {
            let timing = cron(text, "UTC");
            assert_eq!(timing.after(at("2026-01-15T12:00:00Z")), Some(at(first)), "{text}");
            assert!(timing.has(at(first)) && !timing.has(at(first) + SignedDuration::from_secs(1)), "{text}");
        }
    }

    #[test]
    fn mistakes_name_the_field_and_what_is_allowed() {
        for (text, message) in [
            ("* * * *", "\"* * * *\" has 4 fields, must have five"),
            ("* * * * * *", "\"* * * * * *\" has 6 fields, must have five"),
            ("60 * * * *", "minute \"60\": \"60\" is not a number from 0 to 59"),
            ("* 24 * * *", "hour \"24\": \"24\" is not a number from 0 to 23"),
            ("* * 0 * *", "day of month \"0\": \"0\" is not a number from 1 to 31"),
            ("* * * FOO *", "month \"FOO\": \"FOO\" is not a number from 1 to 12 or a name such as FEB"),
            ("* * * * 8", "day of week \"8\": \"8\" is not a number from 0 to 7 or a name such as MON"),
            ("*/0 * * * *", "minute \"*/0\": \"0\" is not a step from 1 to 59"),
            ("5/10 * * * *", "minute \"5/10\": a step belongs to * or a range, as in */10 or 0-59/10"),
            ("30-10 * * * *", "minute \"30-10\": the range 30-10 goes backwards"),
            ("* * L * *", "day of month \"L\": \"L\" is not a number from 1 to 31"),
            ("* * ? * *", "day of month \"?\": \"?\" is not a number from 1 to 31"),
            ("@reboot", "there is no macro \"@reboot\""),
            ("0 0 30 2 *", "it never comes: there is no such date"),
            ("0 0 31 4,6,9,11 *", "it never comes: there is no such date"),
            ("", "\"\" has 0 fields, must have five"),
            ("+1 * * * *", "minute \"+1\": \"+1\" is not a number from 0 to 59"),
        ] {
            let error = read(serde_json::json!({ "cron": text })).unwrap_err();
            assert_eq!((error.field, error.message.as_str()), ("cron", message), "{text}");
        }
        let zone = read(serde_json::json!({"cron": "@daily", "timeZone": "Europe/Berln"})).unwrap_err();
        assert_eq!((zone.field, zone.help.as_deref()), ("timeZone", Some("did you mean Europe/Berlin?")));
        let short = read(serde_json::json!({"interval": "500ms"})).unwrap_err();
        assert_eq!((short.field, short.message.as_str()), ("interval", "500ms is below one second"));
        assert_eq!(read(serde_json::json!({"interval": "0s"})).unwrap_err().field, "interval");
        assert_eq!(read(serde_json::json!({"interval": "1m", "start": "soon"})).unwrap_err().field, "start");
        assert_eq!(read(serde_json::json!({"interval": "1m", "cron": "@daily"})).unwrap_err().field, "");
    }

    /// On 2026-03-29 in Berlin 2:00 becomes 3:00 (1:00 UTC); on 2026-10-25 3:00 becomes 2:00 (1:00 UTC).
    #[test]
    fn where_clocks_jump_fixed_times_run_once_and_the_others_by_the_clock() {
        let fixed = cron("30 2 * * *", "Europe/Berlin");
        let spring = list(&fixed, "2026-03-28T00:00:00Z", "2026-03-30T23:00:00Z");
        assert_eq!(spring, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        let autumn = list(&fixed, "2026-10-24T00:00:00Z", "2026-10-26T23:00:00Z");
        assert_eq!(autumn, ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        let steps = cron("*/30 * * * *", "Europe/Berlin");
        let spring = list(&steps, "2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z");
        assert_eq!(spring, ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]);
        let autumn = list(&steps, "2026-10-25T00:00:00Z", "2026-10-25T01:30:00Z");
        assert_eq!(autumn.len(), 4, "2:00 and 2:30, twice");
        let hourly = cron("30 * * * *", "Europe/Berlin");
        assert_eq!(list(&hourly, "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z").len(), 2);
    }

    #[test]
    fn backwards_finds_what_forwards_finds_also_where_clocks_jump() {
        let zones = [
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
            "America/Sao_Paulo",
            "Africa/Casablanca",
        ];
        let crons = [
            "30 2 * * *",
            "*/20 * * * *",
            "15 * * * *",
            "0 0 * * *",
            "0,30 1-3 * * *",
            "45 1 * * sun",
            "5 */2 * 3,10,11 *",
        ];
        let windows = [
            ("2026-03-05T00:00:00Z", "2026-03-31T12:00:00Z"),
            ("2026-04-03T00:00:00Z", "2026-04-07T12:00:00Z"),
            ("2026-09-30T00:00:00Z", "2026-11-03T12:00:00Z"),
            ("2018-11-02T00:00:00Z", "2018-11-06T00:00:00Z"),
        ];
        for zone in zones {
            for text in crons {
                let timing = cron(text, zone);
                for (from, to) in windows {
                    let forwards = list(&timing, from, to);
                    let mut backwards: Vec<String> =
                        timing.between(at(from), at(to), 100_000).iter().map(ToString::to_string).collect();
                    backwards.reverse();
                    assert_eq!(forwards, backwards, "{text} in {zone} from {from}");
                }
            }
        }
    }

    #[test]
    fn intervals_count_from_their_start() {
        let timing = read(serde_json::json!({"interval": "90s", "start": "2026-01-15T00:00:00Z"})).unwrap();
        let moments = list(&timing, "2026-01-14T23:59:00Z", "2026-01-15T00:03:10Z");
        assert_eq!(moments, ["2026-01-15T00:00:00Z", "2026-01-15T00:01:30Z", "2026-01-15T00:03:00Z"]);
        assert_eq!(timing.until(at("2026-01-14T00:00:00Z")), None);
        let latest = timing.between(at("2020-01-01T00:00:00Z"), at("2026-01-16T00:00:00Z"), 2);
        assert_eq!(latest, [at("2026-01-16T00:00:00Z"), at("2026-01-15T23:58:30Z")]);
        let made = read(serde_json::json!({"interval": "1h"})).unwrap();
        assert!(made.has(at("2026-01-15T12:00:00Z")), "from when the Pipeline was made");
    }
}
