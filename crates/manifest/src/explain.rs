//! What is wrong with a text that has not the form of its field, in words instead of a regular expression.

use super::tree::quote;
use api::names::{DNS_LABEL_PATTERN, IDENTIFIER_PATTERN, check_label};
use api::reason::Reason;
use api::{
    duration::{DURATION_PATTERN, Duration, POSITIVE_DURATION_PATTERN},
    quantity::{QUANTITY_PATTERN, Quantity},
    schema::OBJECT_REF_PATTERN,
};

/// The reason to report for a field of this pattern.
pub(crate) fn reason(pattern: &str) -> Reason {
    match pattern {
        DNS_LABEL_PATTERN | IDENTIFIER_PATTERN | OBJECT_REF_PATTERN => Reason::InvalidName,
        _ => Reason::InvalidValue,
    }
}

/// What is wrong with `text`; `None` when it fits, or when only the expression itself can tell.
pub(crate) fn pattern_mismatch(pattern: &str, text: &str) -> Option<String> {
    let what = match pattern {
        DNS_LABEL_PATTERN => {
            return check_label(text, usize::MAX).err().map(|error| {
                format!(
                    "{} {error}; a name has lower-case letters, digits and dashes and begins with a letter",
                    quote(text)
                )
            });
        }
        DURATION_PATTERN => return duration_problem(text, false),
        POSITIVE_DURATION_PATTERN => return duration_problem(text, true),
        QUANTITY_PATTERN => return text.parse::<Quantity>().err().map(|error| format!("{} {error}", quote(text))),
        IDENTIFIER_PATTERN => {
            let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
            if first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return None;
            }
            "letters, digits and underscores, not beginning with a digit"
        }
        _ => return None,
    };
    Some(format!("{} is not a name here; it takes {what}", quote(text)))
}

fn duration_problem(text: &str, positive: bool) -> Option<String> {
    match text.parse::<Duration>() {
        Err(error) => Some(format!("{} {error}", quote(text))),
        Ok(duration) if positive && duration.as_millis() == 0 => Some(format!("{} must be above zero", quote(text))),
        Ok(_) => None,
    }
}

/// What is wrong with the name of a file in `code.files`: it must stay inside the folder it is unpacked into.
pub(crate) fn file_name_problem(name: &str) -> Option<String> {
    let inside = !name.is_empty()
        && name.len() <= 255
        && !name.contains(['\\', ':'])
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    (!inside).then(|| format!("{} is not a relative path of a file, such as flow.py or pkg/util.py", quote(name)))
}

/// What is wrong with a moment (RFC 3339).
pub(crate) fn moment_problem(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<u32> {
        let part = text.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten()
    };
    let at = |index: usize, c: &[u8]| bytes.get(index).is_some_and(|b| c.contains(b));
    let date = || {
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let last = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => return None,
        };
        (1..=last).contains(&day).then_some(())?;
        (number(11..13)? <= 23 && number(14..16)? <= 59 && number(17..19)? <= 60).then_some(())
    };
    let rest = text.get(19..).unwrap_or_default();
    let rest = match rest.strip_prefix('.') {
        Some(fraction) => {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 { "?" } else { &fraction[digits..] }
        }
        None => rest,
    };
    let zone = matches!(rest, "Z" | "z")
        || (rest.len() == 6
            && rest.starts_with(['+', '-'])
            && rest.as_bytes()[3] == b':'
            && rest.bytes().enumerate().all(|(i, b)| i == 0 || i == 3 || b.is_ascii_digit()));
    let separators = at(4, b"-") && at(7, b"-") && at(10, b"Tt") && at(13, b":") && at(16, b":");
    let fits = separators && date().is_some() && zone;
    (!fits).then(|| format!("{} is not a moment such as 2026-01-31T06:00:00Z", quote(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc_3339() {
        for good in ["2026-01-31T06:00:00Z", "2024-02-29T06:00:00.5+01:00", "2000-02-29T23:59:60z"] {
            assert_eq!(moment_problem(good), None, "{good}");
        }
        for bad in ["2026-02-29T06:00:00Z", "2026-01-31", "2026-01-31T06:00:00", "2026-01-31T24:00:00Z", "é", ""] {
            assert!(moment_problem(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn files_of_code_stay_in_their_folder() {
        for good in ["flow.py", "pkg/util.py", "a b.txt"] {
            assert_eq!(file_name_problem(good), None, "{good}");
        }
        for bad in ["", "/etc/x", "../x", "a/../b", "a//b", "./a", "c:\\x", "a\nb"] {
            assert!(file_name_problem(bad).is_some(), "{bad:?}");
        }
    }
}
