//! A tree against a shape: every mistake at once, each with its path and line.

use std::collections::HashMap;

use serde_json::{Number, Value};

use super::{
    explain,
    shape::{Shape, ShapeKind},
    tree::{Content, Entry, Node, Path, quote},
};
use api::form::form;
use api::names::IDENTIFIER_PATTERN;
use api::problem::{Problem, nearest};
use api::reason::Reason;

/// Most problems reported of one document; the rest is counted.
pub(crate) const PROBLEMS_MAX: usize = 200;

/// A problem with the line it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) line: u32,
    pub(crate) problem: Problem,
}

/// Problems found so far, bounded.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
    more: usize,
}

impl Findings {
    pub(crate) fn push(&mut self, line: u32, problem: Problem) {
        if self.list.len() < PROBLEMS_MAX {
            self.list.push(Finding { line, problem });
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The problems; a last one says how many were left out.
    pub(crate) fn into_list(mut self) -> Vec<Finding> {
        if self.more > 0 {
            let message = format!("{} more problems are not shown", self.more);
            self.list.push(Finding { line: 0, problem: Problem::new(Reason::TooLarge, "", message) });
        }
        self.list
    }
}

/// What JSON cannot hold, or holds in two ways: keys twice, numbers that do not fit, NUL in texts.
pub(crate) fn check_sound(node: &Node, path: &mut Path, findings: &mut Findings) {
    match &node.value {
        Content::Invalid { reason, message } => findings.push(node.line, Problem::new(*reason, path.as_str(), message)),
        Content::Text(text) => check_text(text, node.line, path, findings),
        Content::List(list) => {
            for (index, item) in list.iter().enumerate() {
                path.push_index(index);
                check_sound(item, path, findings);
                path.pop();
            }
        }
        Content::Map(entries) => {
            let mut seen = HashMap::with_capacity(entries.len());
            for entry in entries {
                path.push_key(&entry.key);
                check_text(&entry.key, entry.line, path, findings);
                if let Some(first) = seen.insert(entry.key.as_str(), entry.line) {
                    let message = format!("duplicate key, first defined on line {first}");
                    findings.push(entry.line, Problem::new(Reason::DuplicateKey, path.as_str(), message));
                }
                check_sound(&entry.node, path, findings);
                path.pop();
            }
        }
        Content::Null | Content::Bool(_) | Content::Number(_) => {}
    }
}

fn check_text(text: &str, line: u32, path: &Path, findings: &mut Findings) {
    if let Some(at) = text.find('\0') {
        let message = format!("the text has a NUL character at byte {at}");
        findings.push(line, Problem::new(Reason::InvalidText, path.as_str(), message));
    }
}

/// Checks a value and all below it.
pub(crate) fn check(node: &Node, shape: &Shape, path: &mut Path, findings: &mut Findings) {
    let report = |findings: &mut Findings, problem: Problem| findings.push(node.line, problem);
    match (&node.value, shape.kind) {
        (Content::Invalid { .. }, _) => {}
        (_, ShapeKind::Any) => check_any(node, shape, path, findings),
        (Content::Map(entries), ShapeKind::Object) => check_object(node, entries, shape, path, findings),
        (Content::List(list), ShapeKind::Array) => check_list(node, list, shape, path, findings),
        (Content::Text(text), ShapeKind::Text | ShapeKind::IntOrText) => {
            if let Some(problem) = text_problem(text, shape, path) {
                report(findings, problem);
            }
        }
        (Content::Number(number), ShapeKind::Integer) if !number.is_f64() => {
            check_number(node, number, shape, path, findings)
        }
        (Content::Number(number), ShapeKind::Number) => check_number(node, number, shape, path, findings),
        (Content::Number(number), ShapeKind::IntOrText) if number.is_i64() || number.is_u64() => {
            if number.as_i64().is_some_and(|n| n < 0) {
                report(findings, Problem::new(Reason::InvalidValue, path.as_str(), format!("{number} is negative")));
            }
        }
        (Content::Bool(_), ShapeKind::Boolean) => {}
        _ => report(findings, wrong_type(node, shape, path)),
    }
}

fn wrong_type(node: &Node, shape: &Shape, path: &Path) -> Problem {
    let expected = match shape.kind {
        ShapeKind::Any => "a value",
        ShapeKind::Object => "a mapping",
        ShapeKind::Array => "a list",
        ShapeKind::Text => "a text",
        ShapeKind::Integer => "a whole number",
        ShapeKind::Number => "a number",
        ShapeKind::Boolean => "true or false",
        ShapeKind::IntOrText => "a whole number or a text such as 500m or 8Gi",
    };
    let problem =
        Problem::new(Reason::InvalidType, path.as_str(), format!("must be {expected}, is {}", node.describe()));
    match (&node.value, shape.kind) {
        (Content::Null, _) => problem.help("leave the field out or give it a value"),
        (Content::Number(_) | Content::Bool(_), ShapeKind::Text) => problem.help("put it in quotes"),
        (Content::Text(text), ShapeKind::Integer | ShapeKind::Number) if text.parse::<f64>().is_ok() => {
            problem.help("write it without quotes")
        }
        (Content::Text(text), ShapeKind::Boolean) if matches!(text.as_str(), "no" | "off" | "No" | "n" | "NO") => {
            problem.help("write false")
        }
        (Content::Text(text), ShapeKind::Boolean) if matches!(text.as_str(), "yes" | "on" | "Yes" | "y" | "YES") => {
            problem.help("write true")
        }
        (Content::Text(_) | Content::Map(_), ShapeKind::Array) => {
            problem.help("a list has an entry per line after `- `, or stands in [ ]")
        }
        _ => problem,
    }
}

fn check_any(node: &Node, shape: &Shape, path: &mut Path, findings: &mut Findings) {
    if shape.format.as_deref() != Some("args") {
        return;
    }
    match &node.value {
        Content::List(_) => {}
        Content::Map(entries) => check_identifiers(entries, path, findings),
        _ => {
            let message = format!(
                "must be a list (positional arguments) or a mapping (arguments by name), is {}",
                node.describe()
            );
            findings.push(node.line, Problem::new(Reason::InvalidType, path.as_str(), message));
        }
    }
}

fn check_identifiers(entries: &[Entry], path: &mut Path, findings: &mut Findings) {
    for entry in entries {
        if let Some(message) = explain::pattern_mismatch(IDENTIFIER_PATTERN, &entry.key) {
            path.push_key(&entry.key);
            findings.push(entry.line, Problem::new(Reason::InvalidName, path.as_str(), message));
            path.pop();
        }
    }
}

fn check_object(node: &Node, entries: &[Entry], shape: &Shape, path: &mut Path, findings: &mut Findings) {
    for entry in entries {
        path.push_key(&entry.key);
        match (shape.fields.get(&entry.key), &shape.entries) {
            (Some(field), _) => check(&entry.node, field, path, findings),
            (None, Some(other)) => check(&entry.node, other, path, findings),
            (None, None) => findings.push(entry.line, unknown_field(&entry.key, shape, path)),
        }
        path.pop();
    }
    for name in &shape.required {
        if !entries.iter().any(|entry| entry.key == *name) {
            path.push_key(name);
            findings.push(node.line, Problem::new(Reason::MissingField, path.as_str(), "the field is missing"));
            path.pop();
        }
    }
    check_count(node, entries.len(), "entries", shape, path, findings);
    match shape.format.as_deref() {
        Some("map") => check_identifiers(entries, path, findings),
        Some("files") => check_file_names(entries, path, findings),
        _ => {}
    }
    for rule in &shape.rules {
        if !rule.holds(node) {
            if let Some(at) = &rule.at {
                path.push_key(at);
            }
            let line = rule.at.as_ref().and_then(|at| node.field(at)).unwrap_or(node).line;
            findings.push(line, Problem::new(rule.reason, path.as_str(), rule.message.as_str()));
            if rule.at.is_some() {
                path.pop();
            }
        }
    }
}

fn check_file_names(entries: &[Entry], path: &mut Path, findings: &mut Findings) {
    for entry in entries {
        if let Some(message) = explain::file_name_problem(&entry.key) {
            path.push_key(&entry.key);
            findings.push(entry.line, Problem::new(Reason::InvalidName, path.as_str(), message));
            path.pop();
        }
    }
}

fn unknown_field(key: &str, shape: &Shape, path: &Path) -> Problem {
    let problem = Problem::new(Reason::UnknownField, path.as_str(), "there is no such field");
    let names = || shape.fields.keys().map(String::as_str);
    match nearest(key, names()) {
        Some(name) => problem.help(format!("did you mean {name}?")),
        None => problem.help(format!("fields here are {}", names().collect::<Vec<_>>().join(", "))),
    }
}

fn check_count(node: &Node, count: usize, what: &str, shape: &Shape, path: &Path, findings: &mut Findings) {
    if count < shape.at_least {
        let message = format!("has {count} {what}, must have at least {}", shape.at_least);
        findings.push(node.line, Problem::new(Reason::InvalidValue, path.as_str(), message));
    }
    if let Some(most) = shape.at_most.filter(|most| count > *most) {
        let message = format!("has {count} {what}, may have at most {most}");
        findings.push(node.line, Problem::new(Reason::TooLarge, path.as_str(), message));
    }
}

fn check_list(node: &Node, list: &[Node], shape: &Shape, path: &mut Path, findings: &mut Findings) {
    check_count(node, list.len(), "entries", shape, path, findings);
    let Some(items) = &shape.items else { return };
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, item) in list.iter().enumerate() {
        path.push_index(index);
        check(item, items, path, findings);
        let identity = if shape.set {
            Some(item.to_json().to_string())
        } else {
            shape.keys.first().and_then(|key| item.field(key)).map(|key| key.to_json().to_string())
        };
        if let Some(identity) = identity {
            if let Some(first) = seen.get(&identity) {
                let key = shape.keys.first().map_or(String::new(), |key| format!("{key} "));
                let message = format!("{key}{identity} appears twice, first as entry {first}");
                findings.push(item.line, Problem::new(Reason::Duplicate, path.as_str(), message));
            } else {
                seen.insert(identity, index);
            }
        }
        path.pop();
    }
}

fn check_number(node: &Node, number: &Number, shape: &Shape, path: &Path, findings: &mut Findings) {
    let value = number.as_f64().unwrap_or(f64::NAN);
    let message = match (shape.minimum, shape.maximum) {
        (Some(low), Some(high)) if value < low || value > high => format!("{number} is not within {low} to {high}"),
        (Some(low), None) if value < low => format!("{number} is below {low}"),
        (None, Some(high)) if value > high => format!("{number} is above {high}"),
        _ => return,
    };
    findings.push(node.line, Problem::new(Reason::InvalidValue, path.as_str(), message));
}

fn text_problem(text: &str, shape: &Shape, path: &Path) -> Option<Problem> {
    if !shape.choices.is_empty() {
        let choices: Vec<&str> = shape.choices.iter().filter_map(Value::as_str).collect();
        if choices.contains(&text) {
            return None;
        }
        let message = format!("{} is not one of {}", quote(text), choices.join(", "));
        let problem = Problem::new(Reason::InvalidValue, path.as_str(), message);
        let likely = choices.iter().find(|choice| choice.eq_ignore_ascii_case(text)).copied();
        return Some(match likely.or_else(|| nearest(text, choices)) {
            Some(choice) => problem.help(format!("did you mean {choice}?")),
            None => problem,
        });
    }
    let pattern = shape.pattern.as_ref();
    let reason = pattern.map_or(Reason::InvalidValue, |pattern| explain::reason(&pattern.text));
    if text.len() < shape.at_least {
        return Some(Problem::new(reason, path.as_str(), "is empty or too short"));
    }
    // Characters are counted only where bytes leave it open.
    if let Some(most) = shape.at_most.filter(|most| text.len() > *most && text.chars().count() > *most) {
        return Some(Problem::new(reason, path.as_str(), format!("{} is longer than {most} characters", quote(text))));
    }
    if shape.format.as_deref() == Some("date-time") {
        return explain::moment_problem(text).map(|message| Problem::new(Reason::InvalidValue, path.as_str(), message));
    }
    let pattern = pattern?;
    let message = match explain::pattern_mismatch(&pattern.text, text) {
        Some(message) => message,
        None if !pattern.fits(text) => {
            let form = form(&pattern.text).map_or_else(|| pattern.text.clone(), str::to_owned);
            format!("{} has not the form: {form}", quote(text))
        }
        None => return None,
    };
    Some(Problem::new(reason, path.as_str(), message))
}
