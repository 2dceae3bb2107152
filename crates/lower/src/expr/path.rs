//! The small grammar of references: a name of ours followed by keys and indexes. Outputs of steps can be referred to
//! only in this way, since they are opaque; everything else that is not such a path is CEL.

use serde_json::Value;

use super::{
    error::ExprError,
    scan::{identifier, string_end},
};
use wire::PathPart;

/// How the outputs of a mapped step are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gather {
    /// `steps.x.output`: a list with one entry per item, `None` for an item without output.
    Whole,
    /// `compact(steps.x.output)`: the entries there are.
    Compact,
    /// `flatten(steps.x.output)`: the items' lists, one after the other.
    Flatten,
}

/// Where a path begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// `params`
    Params,
    /// `run`
    Run,
    /// `item`
    Item,
    /// `steps.x.output`
    Output {
        /// Which step.
        step: String,
        /// How the outputs of a mapped step are put together.
        gather: Gather,
    },
    /// `steps.x.result`
    Result {
        /// Which step.
        step: String,
    },
}

/// A reference: `params.a.b`, `item.x[0]`, `steps.load.output["key"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Where it begins.
    pub root: Root,
    /// What follows.
    pub keys: Vec<PathPart>,
}

impl Path {
    /// Reads `source` as a reference. `Ok(None)`: it is not one, so it is CEL. An error: it refers to an output in a
    /// form that does not exist.
    pub fn parse(source: &str) -> Result<Option<Self>, ExprError> {
        let mut reader = Reader { source, at: 0 };
        for (function, gather) in [("flatten", Gather::Flatten), ("compact", Gather::Compact)] {
            if reader.function(function) {
                return reader.gathered(function, gather).map(Some);
            }
        }
        let Some(root) = reader.root(Gather::Whole) else { return Ok(None) };
        let keys = reader.keys();
        if reader.is_at_end() {
            return Ok(keys.map(|keys| Self { root, keys }));
        }
        match root {
            Root::Output { step, .. } => Err(ExprError::syntax(
                reader.column(),
                format!(
                    "steps.{step}.output is an opaque value that only the step's code sees: it takes keys and indexes, \
                     no operators; steps.{step}.result can be computed with"
                ),
            )),
            _ => Ok(None),
        }
    }
}

/// Looks `keys` up in `value`; the error names the first key that is missing, after `name`.
pub fn lookup<'a>(value: &'a Value, keys: &[PathPart], name: &str) -> Result<&'a Value, ExprError> {
    let mut found = value;
    for (position, key) in keys.iter().enumerate() {
        let shown = || format!("{name}{}", keys[..position].iter().map(PathPart::to_string).collect::<String>());
        found = match (key, found) {
            (PathPart::Key(key), Value::Object(map)) => {
                map.get(key).ok_or_else(|| ExprError::evaluation(format!("{} has no key {key:?}", shown())))?
            }
            (PathPart::Index(index), Value::Array(list)) => list.get(*index as usize).ok_or_else(|| {
                ExprError::evaluation(format!("{} has {} entries, no index {index}", shown(), list.len()))
            })?,
            (PathPart::Key(key), other) => {
                return Err(ExprError::mismatch(format!("{} is {}, it has no key {key:?}", shown(), kind(other))));
            }
            (PathPart::Index(_), other) => {
                return Err(ExprError::mismatch(format!("{} is {}, not a list", shown(), kind(other))));
            }
        };
    }
    Ok(found)
}

/// The JSON type of `value`, with its article, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

struct Reader<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn column(&self) -> usize {
        self.source[..self.at].chars().count() + 1
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn is_at_end(&mut self) -> bool {
        self.space();
        self.at == self.source.len()
    }

    fn eat(&mut self, token: char) -> bool {
        self.space();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len_utf8();
        }
        found
    }

    fn identifier(&mut self) -> Option<&'a str> {
        self.space();
        let name = identifier(self.rest());
        self.at += name.len();
        (!name.is_empty()).then_some(name)
    }

    fn function(&mut self, name: &str) -> bool {
        let start = self.at;
        if self.identifier() == Some(name) && self.eat('(') {
            return true;
        }
        self.at = start;
        false
    }

    fn gathered(&mut self, function: &str, gather: Gather) -> Result<Path, ExprError> {
        let root = match self.root(gather) {
            Some(root @ Root::Output { .. }) => root,
            _ => {
                let message =
                    format!("{function}(…) takes the output of a mapped step: {function}(steps.<name>.output)");
                return Err(ExprError::syntax(self.column(), message));
            }
        };
        if self.eat(')') && self.is_at_end() {
            return Ok(Path { root, keys: Vec::new() });
        }
        let message =
            format!("{function}(steps.<name>.output) stands alone: nothing may follow the output or the call");
        Err(ExprError::syntax(self.column(), message))
    }

    fn root(&mut self, gather: Gather) -> Option<Root> {
        let start = self.at;
        let root = match self.identifier() {
            Some("params") => Some(Root::Params),
            Some("run") => Some(Root::Run),
            Some("item") => Some(Root::Item),
            Some("steps") => self.step(gather),
            _ => None,
        };
        if root.is_none() {
            self.at = start;
        }
        root
    }

    fn step(&mut self, gather: Gather) -> Option<Root> {
        let step = match self.key(true)? {
            PathPart::Key(step) => step,
            PathPart::Index(_) => return None,
        };
        match self.key(false)? {
            PathPart::Key(name) if name == "output" => Some(Root::Output { step, gather }),
            PathPart::Key(name) if name == "result" => Some(Root::Result { step }),
            _ => None,
        }
    }

    /// All keys up to something else; `None` if what follows is no key, for example a call.
    fn keys(&mut self) -> Option<Vec<PathPart>> {
        let mut keys = Vec::new();
        while !self.is_at_end() {
            let start = self.at;
            match self.key(false) {
                Some(key) => keys.push(key),
                None => {
                    self.at = start;
                    return None;
                }
            }
        }
        Some(keys)
    }

    /// `.name`, `[0]` or `["name"]`; with `dashes`, the name after the dot may be that of a step.
    fn key(&mut self, dashes: bool) -> Option<PathPart> {
        if self.eat('.') {
            self.space();
            let name = if dashes { step_name(self.rest()) } else { identifier(self.rest()) };
            self.at += name.len();
            return (!name.is_empty()).then(|| PathPart::Key(name.to_owned()));
        }
        if !self.eat('[') {
            return None;
        }
        self.space();
        let rest = self.rest();
        let first = rest.bytes().next()?;
        let key = if matches!(first, b'"' | b'\'') {
            let end = string_end(rest.as_bytes(), 0)?;
            let text = rest.get(1..end - 1)?;
            if text.contains(['\\', '"', '\'']) {
                return None;
            }
            self.at += end;
            PathPart::Key(text.to_owned())
        } else {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let index = rest[..digits].parse().ok()?;
            self.at += digits;
            PathPart::Index(index)
        };
        self.eat(']').then_some(key)
    }
}

/// The name of a step at the start of `text`: identifiers with dashes inside.
pub(super) fn step_name(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(source: &str) -> String {
        match Path::parse(source) {
            Ok(None) => "cel".to_owned(),
            Err(error) => format!("error {error}"),
            Ok(Some(Path { root, keys })) => {
                let keys: String = keys.iter().map(PathPart::to_string).collect();
                match root {
                    Root::Output { step, gather } => format!("{gather:?} {step}{keys}"),
                    Root::Result { step } => format!("result {step}{keys}"),
                    other => format!("{other:?}{keys}"),
                }
            }
        }
    }

    #[test]
    fn references_are_told_from_cel() {
        for (source, expected) in [
            ("params.n", "Params.n"),
            (" params . a [ 0 ] . b ", "Params.a[0].b"),
            ("params['a-b']", "Params[\"a-b\"]"),
            ("item.x", "Item.x"),
            ("run.name", "Run.name"),
            ("steps.a.output", "Whole a"),
            ("steps.a-b-c.output.k[3][\"x y\"]", "Whole a-b-c.k[3][\"x y\"]"),
            ("steps[\"a-b\"].output", "Whole a-b"),
            ("flatten(steps.a-b.output)", "Flatten a-b"),
            ("compact( steps.a.output )", "Compact a"),
            ("steps.a.result", "result a"),
            ("steps.a.result.rows[0]", "result a.rows[0]"),
            ("steps.a.result-steps.b.result", "cel"),
            ("steps.a.result + 1", "cel"),
            ("params.x.size()", "cel"),
            ("params.x > 1", "cel"),
            ("range(3)", "cel"),
            ("params.x[-1]", "cel"),
            ("params.x[params.i]", "cel"),
        ] {
            assert_eq!(shown(source), expected, "{source}");
        }
    }

    #[test]
    fn an_output_takes_no_operators() {
        assert!(shown("steps.a.output + 1").contains("column 16"), "{}", shown("steps.a.output + 1"));
        assert!(shown("steps.a.output.size()").starts_with("error"));
        assert!(shown("flatten(params.x)").starts_with("error"));
        assert!(shown("flatten(steps.a.output.k)").starts_with("error"));
        assert!(shown("compact(steps.a.output)[0]").starts_with("error"));
    }

    #[test]
    fn a_missing_key_is_named_with_its_place() {
        let value = serde_json::json!({"a": [1, {"b": 2}]});
        let keys = |source: &str| Path::parse(source).unwrap().unwrap().keys;
        assert_eq!(lookup(&value, &keys("params.a[1].b"), "params"), Ok(&serde_json::json!(2)));
        let error = |source: &str| lookup(&value, &keys(source), "params").unwrap_err().to_string();
        assert_eq!(error("params.a[1].c"), "params.a[1] has no key \"c\"");
        assert_eq!(error("params.a[7]"), "params.a has 2 entries, no index 7");
        assert_eq!(error("params.a.b"), "params.a is a list, it has no key \"b\"");
    }
}
