//! YAML 1.2 core schema: what a plain scalar is. `no` is a text, `0777` the number 777, `0o17` is 15, `1e3` is 1000.0.

use serde_json::Number;

/// A plain scalar by the core schema.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scalar {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number that 64 bits hold.
    Number(Number),
    /// A number that they do not hold, or that JSON has no word for; why.
    Unheld(&'static str),
    /// Anything else.
    Text,
}

/// What `kubectl`, which reads YAML 1.1, takes a plain scalar for, where that differs from YAML 1.2.
pub(crate) fn differs_in_yaml_1_1(text: &str) -> Option<&'static str> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some("true"),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some("false"),
        "<<" => Some("a merge"),
        _ => {
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let number = digits.starts_with(|c: char| c.is_ascii_digit());
            let octal = digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
            let grouped = number && digits.contains('_') && digits.bytes().all(|b| b.is_ascii_digit() || b == b'_');
            (octal || grouped).then_some("another number")
        }
    }
}

const TOO_LARGE: &str = "does not fit 64 bits; quote it to send it as text";
const NOT_FINITE: &str = "is not a finite number; quote it to send it as text";
const NOT_EXACT: &str = "is beyond the range of floating point; quote it to send it as text";

/// Types a plain (unquoted) scalar.
pub(crate) fn plain(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "true" | "True" | "TRUE" => return Scalar::Bool(true),
        "false" | "False" | "FALSE" => return Scalar::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Scalar::Unheld(NOT_FINITE),
        _ => {}
    }
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'-') => ("-", &text[1..]),
        Some(b'+') => ("", &text[1..]),
        _ => ("", text),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF") {
        return Scalar::Unheld(NOT_FINITE);
    }
    if digits.len() == text.len() {
        for (prefix, radix) in [("0o", 8), ("0x", 16)] {
            if let Some(rest) = text.strip_prefix(prefix)
                && !rest.is_empty()
                && rest.chars().all(|c| c.is_digit(radix))
            {
                return u64::from_str_radix(rest, radix)
                    .map_or(Scalar::Unheld(TOO_LARGE), |n| Scalar::Number(n.into()));
            }
        }
    }
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return integer(sign, digits);
    }
    if is_float(digits) {
        return float(sign, digits);
    }
    Scalar::Text
}

fn integer(sign: &str, digits: &str) -> Scalar {
    let trimmed = digits.trim_start_matches('0');
    let digits = if trimmed.is_empty() { "0" } else { trimmed };
    let number = if sign.is_empty() {
        digits.parse::<u64>().ok().map(Number::from)
    } else {
        format!("-{digits}").parse::<i64>().ok().map(Number::from)
    };
    number.map_or(Scalar::Unheld(TOO_LARGE), Scalar::Number)
}

fn float(sign: &str, digits: &str) -> Scalar {
    let Ok(value) = format!("{sign}{digits}").parse::<f64>() else { return Scalar::Text };
    let mantissa = digits.split(['e', 'E']).next().unwrap_or(digits);
    let vanished = value == 0.0 && mantissa.bytes().any(|b| matches!(b, b'1'..=b'9'));
    match Number::from_f64(value) {
        Some(number) if !vanished => Scalar::Number(number),
        _ => Scalar::Unheld(NOT_EXACT),
    }
}

/// `[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?` or `\.[0-9]+(…)?`, the sign taken off.
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_fits = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['-', '+']).unwrap_or(e);
        !e.is_empty() && digits(e)
    });
    digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()) && exponent_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_typed_by_yaml_1_2() {
        let number = |text: &str| Scalar::Number(serde_json::from_str(text).unwrap());
        let table = [
            ("no", Scalar::Text),
            ("yes", Scalar::Text),
            ("on", Scalar::Text),
            ("y", Scalar::Text),
            ("0777", number("777")),
            ("0o17", number("15")),
            ("0x1F", number("31")),
            ("1_000", Scalar::Text),
            ("1e3", number("1000.0")),
            ("1.", number("1.0")),
            (".5", number("0.5")),
            (".", Scalar::Text),
            ("-", Scalar::Text),
            ("+12", number("12")),
            ("-7", number("-7")),
            ("12:30", Scalar::Text),
            ("2026-01-01", Scalar::Text),
            ("9223372036854775809", number("9223372036854775809")),
            ("18446744073709551616", Scalar::Unheld(TOO_LARGE)),
            ("-9223372036854775809", Scalar::Unheld(TOO_LARGE)),
            ("1e400", Scalar::Unheld(NOT_EXACT)),
            ("1e-400", Scalar::Unheld(NOT_EXACT)),
            ("0e5", number("0.0")),
            (".nan", Scalar::Unheld(NOT_FINITE)),
            ("-.inf", Scalar::Unheld(NOT_FINITE)),
            ("NaN", Scalar::Text),
            ("infinity", Scalar::Text),
            ("~", Scalar::Null),
            ("True", Scalar::Bool(true)),
            ("tRue", Scalar::Text),
        ];
        for (text, expected) in table {
            assert_eq!(plain(text), expected, "{text}");
        }
    }
}
