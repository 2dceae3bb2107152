//! Finds `$(…)` in a string: text stays text, `$$(` is a literal `$(`, and only expressions that begin with one of
//! our names are taken, so that `$(date)` in the arguments of a shell command stays what it is.

use std::borrow::Cow;

use super::error::{ExprError, LENGTH};

/// Names that make `$(…)` an expression.
const VALUES: [&str; 4] = ["params", "steps", "run", "item"];
/// Functions that make `$(…)` an expression; they need their parenthesis.
const FUNCTIONS: [&str; 3] = ["range", "flatten", "compact"];

/// How far a text that is no expression is searched for a reference that was meant as one. Keeps long texts linear.
const HIDDEN: usize = 256;

/// A part of a string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Literal text, escapes resolved.
    Text(Cow<'a, str>),
    /// The inside of `$(…)`, and how many characters of the string precede it.
    Expr {
        /// Between the parentheses.
        source: &'a str,
        /// Characters before it.
        before: usize,
    },
}

/// Splits `text` into its pieces. Adjacent texts are one piece; an empty string has no pieces.
pub fn scan(text: &str) -> Result<Vec<Piece<'_>>, ExprError> {
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    let mut rest = 0;
    let (mut counted, mut characters) = (0, 0);
    while let Some(found) = text[rest..].find("$(").map(|at| rest + at) {
        if text[rest..found].ends_with('$') {
            push_text(&mut pieces, &text[rest..found - 1]);
            push_text(&mut pieces, "$(");
            rest = found + 2;
            continue;
        }
        let inside = found + 2;
        if !begins_with_ours(&text[inside..]) {
            if let Some(name) = hidden_reference(&text[inside..]) {
                let message = format!(
                    "an expression must begin with params, steps, run, item or range(…), this one has `{name}` further \
                     on; write `$$(` if it is meant as text"
                );
                return Err(ExprError::syntax(column(text, inside), message));
            }
            push_text(&mut pieces, &text[rest..inside]);
            rest = inside;
            continue;
        }
        let Some(end) = closing(&text[inside..], LENGTH).map(|at| inside + at) else {
            let message = format!(
                "`$(` is not closed within {LENGTH} bytes, the longest an expression may be; write `$$(` if it is meant as text"
            );
            return Err(ExprError::syntax(column(text, found), message));
        };
        push_text(&mut pieces, &text[rest..found]);
        characters += text[counted..inside].chars().count();
        counted = inside;
        pieces.push(Piece::Expr { source: &text[inside..end], before: characters });
        rest = end + 1;
    }
    push_text(&mut pieces, &text[rest..]);
    Ok(pieces)
}

fn push_text<'a>(pieces: &mut Vec<Piece<'a>>, text: &'a str) {
    if text.is_empty() {
        return;
    }
    match pieces.last_mut() {
        Some(Piece::Text(last)) => last.to_mut().push_str(text),
        _ => pieces.push(Piece::Text(Cow::Borrowed(text))),
    }
}

/// Column, counted in characters from 1, of the byte offset `at`.
fn column(text: &str, at: usize) -> usize {
    text[..at].chars().count() + 1
}

fn begins_with_ours(inside: &str) -> bool {
    let inside = inside.trim_start();
    let name = identifier(inside);
    VALUES.contains(&name) || (FUNCTIONS.contains(&name) && inside[name.len()..].trim_start().starts_with('('))
}

/// A reference such as `params.x` inside `$(…)` that does not begin with it: almost certainly a mistake.
fn hidden_reference(inside: &str) -> Option<String> {
    let end = closing(inside, HIDDEN)?;
    let mut from = 0;
    let bytes = inside.as_bytes();
    while from < end {
        if is_identifier(bytes[from]) {
            let name = identifier(&inside[from..]);
            let name = if name.is_empty() { &inside[from..=from] } else { name };
            let after = &inside[from + name.len()..end];
            let standing_alone = from == 0 || !matches!(bytes[from - 1], b'.' | b'/' | b'-' | b'$');
            if standing_alone && VALUES.contains(&name) && after.starts_with('.') && !identifier(&after[1..]).is_empty()
            {
                return Some(format!("{name}.{}", identifier(&after[1..])));
            }
            from += name.len();
        } else {
            from += 1;
        }
    }
    None
}

/// The identifier at the start of `text`, or an empty string.
pub(super) fn identifier(text: &str) -> &str {
    let bytes = text.as_bytes();
    if bytes.first().is_none_or(|first| !is_identifier(*first) || first.is_ascii_digit()) {
        return "";
    }
    let end = bytes.iter().position(|byte| !is_identifier(*byte)).unwrap_or(bytes.len());
    &text[..end]
}

pub(super) fn is_identifier(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Byte offset of the parenthesis that closes `$(`, strings skipped, looked for in the first `within` bytes.
fn closing(inside: &str, within: usize) -> Option<usize> {
    let bytes = inside.as_bytes();
    let bytes = &bytes[..bytes.len().min(within + 1)];
    let mut depth = 0usize;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' | b'\'' => {
                at = string_end(bytes, at)?;
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' if depth == 0 => return Some(at),
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Offset behind the string literal whose opening quote is at `open`; `None` if it never ends. Knows raw prefixes
/// (`r"…"`) and triple quotes.
pub(super) fn string_end(bytes: &[u8], open: usize) -> Option<usize> {
    let quote = bytes[open];
    let prefix = bytes[..open].iter().rev().take_while(|byte| is_identifier(**byte)).count();
    let raw = prefix <= 2 && bytes[open - prefix..open].iter().any(|byte| matches!(byte, b'r' | b'R'));
    let triple = bytes[open..].starts_with(&[quote; 3]);
    let mut at = if triple { open + 3 } else { open + 1 };
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if !raw => at += 1,
            byte if byte == quote && !triple => return Some(at + 1),
            byte if byte == quote && bytes[at..].starts_with(&[quote; 3]) => return Some(at + 3),
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let pieces: Vec<String> = scan(text)
            .unwrap_or_else(|error| panic!("{text}: {error}"))
            .into_iter()
            .map(|piece| match piece {
                Piece::Text(text) => format!("t:{text}"),
                Piece::Expr { source, .. } => format!("e:{source}"),
            })
            .collect();
        assert_eq!(pieces, expected, "{text}");
    }

    #[test]
    fn only_our_expressions_are_taken() {
        check("", &[]);
        check("plain", &["t:plain"]);
        check("$(params.n)", &["e:params.n"]);
        check("a $(params.n) b", &["t:a ", "e:params.n", "t: b"]);
        check("$(date) $(cat x.txt)", &["t:$(date) $(cat x.txt)"]);
        check("$(paramsx.y)", &["t:$(paramsx.y)"]);
        check("$(range)", &["t:$(range)"]);
        check("$( range (3))", &["e: range (3)"]);
        check("$$(params.n)", &["t:$(params.n)"]);
        check("a$$$(params.n)", &["t:a$$(params.n)"]);
        check("$(item.x)$(run.name)", &["e:item.x", "e:run.name"]);
        check("cost $5 ($x)", &["t:cost $5 ($x)"]);
    }

    #[test]
    fn brackets_and_strings_inside_do_not_end_it() {
        check("$(params.x[')'])!", &["e:params.x[')']", "t:!"]);
        check("$(params.f(1, (2)))", &["e:params.f(1, (2))"]);
        check(r#"$(params.x + "\")" + r'\')"#, &[r#"e:params.x + "\")" + r'\'"#]);
        check("$(params.x + '''a')b''')", &["e:params.x + '''a')b'''"]);
    }

    #[test]
    fn mistakes_have_a_column() {
        let error = |text: &str| match scan(text) {
            Err(ExprError::Syntax { column, message }) => (column, message),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(error("äb $(params.n").0, 4);
        let (column, message) = error("x $(size(params.xs))");
        assert_eq!(column, 5);
        assert!(message.contains("params.xs"), "{message}");
        assert_eq!(error("$(!item.x)").0, 3);
    }
}
