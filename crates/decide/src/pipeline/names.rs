//! Names, labels and annotations of runs that a Pipeline makes.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};

use api::names::OBJECT_NAME_MAX;

/// Name of the Pipeline whose run it is.
pub const PIPELINE_LABEL: &str = "daskade.dev/pipeline";
/// What made the run: `change`, `schedule` or `manual`.
pub const TRIGGER_LABEL: &str = "daskade.dev/trigger";
/// Uid of the Pipeline that made the run: one of the same name may have been there before.
pub const UID_ANNOTATION: &str = "daskade.dev/pipeline-uid";
/// Generation of the Pipeline's spec that the run has. Whoever may write runs may change it: it is a hint, never a proof.
pub const GENERATION_ANNOTATION: &str = "daskade.dev/pipeline-generation";
/// Versioned hash of the spec's run-relevant fields, for people: what decides is computed from the spec that the run has.
pub const HASH_ANNOTATION: &str = "daskade.dev/hash";
/// Moment of the schedule (RFC 3339).
pub const MOMENT_ANNOTATION: &str = "daskade.dev/moment";
/// On a run that waits, suspended, for the one before it.
pub const QUEUED_ANNOTATION: &str = "daskade.dev/queued";

/// Digits of the hash in a name.
const HASH_DIGITS: usize = 10;
/// Digits that stand for the rest of a Pipeline's name that is too long.
const REST_DIGITS: usize = 5;

/// Name of a run that a change makes: `<pipeline>-<hash>`, and `-<n>` from the second one of the same spec on.
pub fn change_name(pipeline: &str, hash: &str, n: u32) -> String {
    let digits = hash.split_once(':').map_or(hash, |(_, digits)| digits);
    name(pipeline, digits.get(..HASH_DIGITS).unwrap_or(digits), n)
}

/// Name of the run of a moment: `<pipeline>-<date>-<time>` in UTC. Only where something else has the name, `-<n>` follows.
pub fn moment_name(pipeline: &str, moment: Timestamp, n: u32) -> String {
    let utc = moment.to_zoned(TimeZone::UTC);
    let (date, time) = (utc.date(), utc.time());
    let (year, month, day) = (date.year(), date.month(), date.day());
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    name(pipeline, &format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}"), n)
}

/// Whether `name` is one that a change to the spec with this hash gives a run. Nobody can change the name of a run.
pub fn is_change_name(pipeline: &str, hash: &str, name: &str) -> bool {
    is_one_of(name, |n| change_name(pipeline, hash, n))
}

/// Whether `name` is one of the run of a moment.
pub fn is_moment_name(pipeline: &str, moment: Timestamp, name: &str) -> bool {
    is_one_of(name, |n| moment_name(pipeline, moment, n))
}

fn is_one_of(name: &str, of: impl Fn(u32) -> String) -> bool {
    let n = name.rsplit_once('-').and_then(|(_, n)| n.parse().ok()).filter(|n| *n > 1);
    name == of(1) || n.is_some_and(|n| name == of(n))
}

fn name(pipeline: &str, what: &str, n: u32) -> String {
    let tail = if n > 1 { format!("-{what}-{n}") } else { format!("-{what}") };
    let room = OBJECT_NAME_MAX.saturating_sub(tail.len());
    if pipeline.len() <= room {
        return format!("{pipeline}{tail}");
    }
    let rest = hex::encode(Sha256::digest(pipeline));
    let head = pipeline.get(..room.saturating_sub(REST_DIGITS + 1)).unwrap_or(pipeline);
    format!("{}-{}{tail}", head.trim_end_matches('-'), &rest[..REST_DIGITS])
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::names::check_label;

    #[test]
    fn names_say_what_made_the_run_and_fit() {
        let moment: Timestamp = "2026-01-31T02:00:05.7Z".parse().unwrap();
        assert_eq!(change_name("etl", "v1:0123456789abcdef", 1), "etl-0123456789");
        assert_eq!(change_name("etl", "v1:0123456789abcdef", 2), "etl-0123456789-2");
        assert_eq!(moment_name("etl", moment, 1), "etl-20260131-020005");
        let long = ["a".repeat(53), format!("{}b", "a".repeat(52)), format!("{}-{}", "a".repeat(30), "b".repeat(22))];
        let mut seen = std::collections::BTreeSet::new();
        for pipeline in &long {
            for n in [1, 2, 99] {
                for name in [change_name(pipeline, "v1:0123456789abcdef", n), moment_name(pipeline, moment, n)] {
                    assert_eq!(check_label(&name, OBJECT_NAME_MAX), Ok(()), "{name}");
                    assert!(seen.insert(name));
                }
                let (change, of) = (change_name(pipeline, "v1:0123456789abcdef", n), moment_name(pipeline, moment, n));
                assert!(is_change_name(pipeline, "v1:0123456789abcdef", &change), "{change}");
                assert!(is_moment_name(pipeline, moment, &of), "{of}");
                assert!(!is_change_name(pipeline, "v1:1123456789abcdef", &change), "{change}");
                assert!(!is_change_name("other", "v1:0123456789abcdef", &change), "{change}");
                assert!(!is_moment_name(pipeline, moment, &change) && !is_moment_name("other", moment, &of), "{of}");
            }
        }
    }
}
