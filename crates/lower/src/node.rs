//! A value of the manifest with the expressions in its texts parsed.

use serde_json::Value;

use super::expr::{Expr, Text};
use api::problem::Problem;

/// Any JSON value whose texts may hold expressions. Keys of mappings are never expanded.
#[derive(Debug, Clone)]
pub enum Node {
    /// No expression anywhere inside; escapes are resolved.
    Literal(Value),
    Text(Text),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Parses the texts inside `value`; mistakes go to `problems` with their path below `at`.
    pub fn parse(value: &Value, at: &str, problems: &mut Vec<Problem>) -> Self {
        match value {
            Value::String(text) => match Text::parse(text) {
                Ok(Text::Literal(text)) => Self::Literal(Value::String(text)),
                Ok(text) => Self::Text(text),
                Err(error) => {
                    problems.push(Problem::new(error.reason(), at, error.to_string()));
                    Self::Literal(Value::Null)
                }
            },
            Value::Array(list) if list.iter().any(holds_expression) => Self::List(
                list.iter().enumerate().map(|(i, entry)| Self::parse(entry, &format!("{at}[{i}]"), problems)).collect(),
            ),
            Value::Object(map) if map.values().any(holds_expression) => Self::Map(
                map.iter().map(|(key, entry)| (key.clone(), Self::parse(entry, &below(at, key), problems))).collect(),
            ),
            other => Self::Literal(other.clone()),
        }
    }

    /// Calls `visit` with each expression: itself, its column, its path below `at`, and whether it is the whole text.
    pub fn visit<'a>(&'a self, at: &str, visit: &mut impl FnMut(&'a Expr, usize, &str, bool)) {
        match self {
            Self::Literal(_) => {}
            Self::Text(text) => {
                let whole = matches!(text, Text::Whole { .. });
                text.expressions().for_each(|(expr, column)| visit(expr, column, at, whole));
            }
            Self::List(list) => {
                for (i, entry) in list.iter().enumerate() {
                    entry.visit(&format!("{at}[{i}]"), visit);
                }
            }
            Self::Map(map) => {
                for (key, entry) in map {
                    entry.visit(&below(at, key), visit);
                }
            }
        }
    }
}

fn holds_expression(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("$("),
        Value::Array(list) => list.iter().any(holds_expression),
        Value::Object(map) => map.values().any(holds_expression),
        _ => false,
    }
}

/// Path of a key below `at`: quoted if it is not a plain name.
pub(crate) fn below(at: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    match (plain, at.is_empty()) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{at}.{key}"),
        (false, _) => format!("{at}[{key:?}]"),
    }
}
