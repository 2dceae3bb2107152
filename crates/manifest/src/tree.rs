//! Documents as trees that remember their lines. Everything that a tree of JSON cannot say (keys twice, numbers that do
//! not fit) is kept, so that it can be reported with its path together with all other mistakes.

use serde_json::{Map, Number, Value};

use api::reason::Reason;

/// A value with the line it begins on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) value: Content,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// Entries in order of appearance; a key may be there twice.
    Map(Vec<Entry>),
    /// Not a value: reason, text and why not.
    Invalid {
        reason: Reason,
        message: String,
    },
}

/// One entry of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: u32,
    pub(crate) node: Node,
}

impl Node {
    /// The entry of that name, if this is a mapping that has it.
    pub(crate) fn field(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Content::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As JSON; what is invalid becomes null (it has been reported by then).
    pub(crate) fn to_json(&self) -> Value {
        match &self.value {
            Content::Null | Content::Invalid { .. } => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(number) => Value::Number(number.clone()),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(list) => Value::Array(list.iter().map(Self::to_json).collect()),
            Content::Map(entries) => {
                let mut map = Map::new();
                for entry in entries {
                    map.insert(entry.key.clone(), entry.node.to_json());
                }
                Value::Object(map)
            }
        }
    }

    /// From JSON, for objects that come from elsewhere than a file; all on line 0.
    pub(crate) fn from_json(value: &Value) -> Self {
        let value = match value {
            Value::Null => Content::Null,
            Value::Bool(value) => Content::Bool(*value),
            Value::Number(number) => Content::Number(number.clone()),
            Value::String(text) => Content::Text(text.clone()),
            Value::Array(list) => Content::List(list.iter().map(Self::from_json).collect()),
            Value::Object(map) => Content::Map(
                map.iter()
                    .map(|(key, value)| Entry { key: key.clone(), line: 0, node: Self::from_json(value) })
                    .collect(),
            ),
        };
        Self { line: 0, value }
    }

    /// What this is, for messages: `a list`, `the number 5`, `the text "x"`.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Content::Null => "empty".to_owned(),
            Content::Bool(value) => format!("the truth value {value}"),
            Content::Number(number) => format!("the number {number}"),
            Content::Text(text) => format!("the text {}", quote(text)),
            Content::List(_) => "a list".to_owned(),
            Content::Map(_) => "a mapping".to_owned(),
            Content::Invalid { message, .. } => message.clone(),
        }
    }
}

/// A text for a message: quoted, escaped, at most 60 characters.
pub(crate) fn quote(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    let mut escaped = String::with_capacity(short.len());
    for c in short.chars() {
        match c {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            c if c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ' => escaped.push(c),
            c => escaped.extend(c.escape_default()),
        }
    }
    format!("\"{escaped}{dots}\"")
}

/// A field path, grown and shrunk while a tree is walked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Path {
    text: String,
    ends: Vec<usize>,
}

impl Path {
    pub(crate) fn push_key(&mut self, key: &str) {
        self.ends.push(self.text.len());
        let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        if !plain {
            self.text.push_str(&format!("[{}]", quote(key)));
            return;
        }
        if !self.text.is_empty() {
            self.text.push('.');
        }
        self.text.push_str(key);
    }

    pub(crate) fn push_index(&mut self, index: usize) {
        self.ends.push(self.text.len());
        self.text.push_str(&format!("[{index}]"));
    }

    pub(crate) fn pop(&mut self) {
        if let Some(end) = self.ends.pop() {
            self.text.truncate(end);
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_quote_keys_that_are_not_plain() {
        let mut path = Path::default();
        path.push_key("spec");
        path.push_key("steps");
        path.push_index(3);
        path.push_key("a.b");
        assert_eq!(path.as_str(), "spec.steps[3][\"a.b\"]");
        path.pop();
        path.pop();
        assert_eq!(path.as_str(), "spec.steps");
    }

    #[test]
    fn quoted_texts_show_what_is_invisible() {
        assert_eq!(quote("a\u{202e}b\n"), "\"a\\u{202e}b\\n\"");
        assert!(quote(&"x".repeat(100)).ends_with("…\""));
    }
}
