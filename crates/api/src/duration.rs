//! Durations as people write them: `500ms`, `10s`, `5m`, `2h`, `1d`, `1h30m`.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Any duration, zero included.
pub const DURATION_PATTERN: &str = "^([0-9]{1,9}(ms|s|m|h|d))+$";
/// A duration above zero.
pub const POSITIVE_DURATION_PATTERN: &str =
    "^([0-9]{1,9}(ms|s|m|h|d))*0*[1-9][0-9]{0,8}(ms|s|m|h|d)([0-9]{1,9}(ms|s|m|h|d))*$";
/// Longest text of a duration.
pub const DURATION_TEXT_MAX: usize = 32;

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A span of time in whole milliseconds; text form is numbers with units, largest first by custom (`1h30m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration {
    millis: u64,
}

impl Duration {
    /// A duration of so many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self { millis }
    }

    /// A duration of so many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self { millis: secs.saturating_mul(1_000) }
    }

    /// The whole duration in milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.millis
    }

    /// The whole duration in seconds, with fraction.
    pub fn as_secs_f64(self) -> f64 {
        self.to_std().as_secs_f64()
    }

    /// As the standard library's duration.
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.millis)
    }
}

/// Why a text is not a duration; reads after the text itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// No text.
    #[error("is empty; a duration is a number with a unit, for example 10s")]
    Empty,
    /// A number without unit.
    #[error("has no unit after {0}; units are ms, s, m, h, d, for example 10s")]
    NoUnit(String),
    /// A unit that does not exist.
    #[error("has the unknown unit {0:?}; units are ms, s, m, h, d, for example 10s")]
    UnknownUnit(String),
    /// No number where one belongs.
    #[error("has no whole number where one belongs; write it as 10s, 1h30m or 500ms")]
    NoNumber,
    /// More than can be counted.
    #[error("is too long a time")]
    TooLarge,
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        if text.is_empty() {
            return Err(DurationError::Empty);
        }
        if text.len() > DURATION_TEXT_MAX {
            return Err(DurationError::TooLarge);
        }
        let mut rest = text;
        let mut millis: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            if number.is_empty() {
                return Err(DurationError::NoNumber);
            }
            let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, next) = after.split_at(letters);
            if unit.is_empty() {
                return Err(DurationError::NoUnit(number.to_owned()));
            }
            if unit.starts_with(['.', ',']) {
                return Err(DurationError::NoNumber);
            }
            let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(DurationError::UnknownUnit(unit.trim().chars().take(16).collect()));
            };
            let part = number.parse::<u64>().ok().filter(|_| number.len() <= 9).ok_or(DurationError::TooLarge)?;
            millis =
                part.checked_mul(*factor).and_then(|part| millis.checked_add(part)).ok_or(DurationError::TooLarge)?;
            rest = next;
        }
        Ok(Self { millis })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis == 0 {
            return write!(f, "0s");
        }
        let mut rest = self.millis;
        for (unit, factor) in UNITS.iter().rev() {
            if rest >= *factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 10s, 5m or 2h")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(|error| E::custom(format_args!("{text:?} {error}")))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": DURATION_PATTERN, "maxLength": DURATION_TEXT_MAX })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// Schema of a duration that must be above zero.
pub fn positive(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": POSITIVE_DURATION_PATTERN, "maxLength": DURATION_TEXT_MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_back() {
        for (text, millis, shown) in [
            ("500ms", 500, "500ms"),
            ("10s", 10_000, "10s"),
            ("5m", 300_000, "5m"),
            ("90m", 5_400_000, "1h30m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1d", 86_400_000, "1d"),
            ("0s", 0, "0s"),
        ] {
            let parsed: Duration = text.parse().unwrap();
            assert_eq!((parsed.as_millis(), parsed.to_string().as_str()), (millis, shown), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_names_the_units() {
        for (text, part) in [
            ("", "is empty"),
            ("10", "has no unit after 10"),
            ("10 parsecs", "unknown unit \"parsecs\""),
            ("-5s", "no whole number"),
            ("1.5h", "no whole number"),
            ("9999999999s", "too long"),
            ("s", "no whole number"),
        ] {
            let error = text.parse::<Duration>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
