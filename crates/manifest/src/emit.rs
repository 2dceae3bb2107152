//! JSON → YAML text that reads back as the same value: texts are quoted wherever any reader could take them for
//! something else, long ones with several lines become blocks.

use std::fmt::Write;

use serde_json::Value;

use super::scalar::{self, Scalar};

/// One YAML document, ending with a line break, without `---`.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => entries(&mut out, map, 0),
        Value::Array(list) if !list.is_empty() => items(&mut out, list, 0),
        other => {
            inline(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

fn indent(out: &mut String, level: usize) {
    (0..level).for_each(|_| out.push_str("  "));
}

fn entries(out: &mut String, map: &serde_json::Map<String, Value>, level: usize) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 || level == 0 || out.ends_with('\n') {
            indent(out, level);
        }
        text(out, key);
        out.push(':');
        below(out, value, level);
    }
}

fn items(out: &mut String, list: &[Value], level: usize) {
    for (index, value) in list.iter().enumerate() {
        if index > 0 || out.ends_with('\n') {
            indent(out, level);
        }
        out.push('-');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push(' ');
                entries(out, map, level + 1);
            }
            Value::Array(inner) if !inner.is_empty() => {
                out.push(' ');
                items(out, inner, level + 1);
            }
            other => {
                out.push(' ');
                inline(out, other, level + 1);
                out.push('\n');
            }
        }
    }
}

fn below(out: &mut String, value: &Value, level: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            entries(out, map, level + 1);
        }
        Value::Array(list) if !list.is_empty() => {
            out.push('\n');
            items(out, list, level);
        }
        other => {
            out.push(' ');
            inline(out, other, level + 1);
            out.push('\n');
        }
    }
}

fn inline(out: &mut String, value: &Value, level: usize) {
    match value {
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(content) if is_block(content) => block(out, content, level),
        Value::String(content) => text(out, content),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

fn is_block(content: &str) -> bool {
    content.trim_end_matches('\n').contains('\n')
        && !content.starts_with([' ', '\n', '\t'])
        && !content.chars().any(|c| (c.is_control() && c != '\n' && c != '\t') || is_special_break(c))
        && content.lines().all(|line| line == line.trim_end())
}

fn block(out: &mut String, content: &str, level: usize) {
    let trailing = content.len() - content.trim_end_matches('\n').len();
    out.push_str(match trailing {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    for line in content.strip_suffix('\n').unwrap_or(content).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            indent(out, level.max(1));
            out.push_str(line);
        }
    }
}

fn is_special_break(c: char) -> bool {
    matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

fn text(out: &mut String, content: &str) {
    if is_plain(content) {
        out.push_str(content);
    } else {
        out.push_str(&Value::from(content).to_string());
    }
}

/// Plain only where YAML 1.1 and 1.2 agree that it is a text.
fn is_plain(content: &str) -> bool {
    const WORDS: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan"];
    let starts = content.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_' | '$'));
    starts
        && !content.ends_with([' ', ':'])
        && content.chars().all(|c| c.is_ascii_graphic() || c == ' ')
        && !content.contains(": ")
        && !content.contains(" #")
        && !WORDS.contains(&content.to_ascii_lowercase().as_str())
        && scalar::plain(content) == Scalar::Text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::yaml::documents;

    #[test]
    fn what_is_written_reads_back_the_same() {
        let value = json!({
            "plain": "a b", "traps": ["no", "0777", "1e3", "~", "", " x", "x ", "a: b", "a #b", "- a", "@a", "é", "\u{0}", "a\tb", "y", "12:30", "$(x)", "{a}", "a:", "2026-01-01", "\u{2028}", "'", "\"", "<<"],
            "block": "def f(x):\n  return x\n\nz", "block1": "a\nb\n", "block2": "a\nb\n\n", "odd": "a \nb", "lead": " a\nb", "nl": "\n",
            "empty": {"a": {}, "b": [], "c": null}, "numbers": [1, -2, 0.5, 1e30, u64::MAX], "no": true,
            "nested": [[1, [2]], [{"a": [{"b": "c\nd"}], "e": {"f": 1}}], {"x": []}]
        });
        let text = to_yaml(&value);
        let documents = documents(&text);
        assert_eq!(documents.len(), 1, "{text}");
        assert_eq!(documents[0].root.as_ref().unwrap().to_json(), value, "{text}");
        for scalar in [json!("x"), json!([]), json!(null), json!(["a\nb"]), json!("a\nb\n")] {
            assert_eq!(self::documents(&to_yaml(&scalar))[0].root.as_ref().unwrap().to_json(), scalar);
        }
    }
}
