//! Parameters: what a pipeline declares, what a run gives.

use std::collections::BTreeSet;

use serde_json::{Map, Number, Value};

use super::{
    expr::kind,
    limits::{PARAMETER_BYTES, json_size},
    node::below,
};
use api::pipeline::{Param, ParamType};
use api::problem::{Problem, nearest};
use api::reason::Reason;

/// Checks the declarations: names, and that defaults and allowed values are of the declared type.
pub(super) fn validate(params: &[Param], at: &str, problems: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for (i, param) in params.iter().enumerate() {
        let at = format!("{at}[{i}]");
        if !is_identifier(&param.name) {
            let message = format!("{:?} is not a name that expressions can use", shortened(&param.name));
            let help = "letters, digits and underscores, at most 63, not beginning with a digit";
            problems.push(Problem::new(Reason::InvalidName, format!("{at}.name"), message).help(help));
        } else if !seen.insert(param.name.as_str()) {
            let message = format!("the parameter {} is declared twice", param.name);
            problems.push(Problem::new(Reason::DuplicateParameter, format!("{at}.name"), message));
        }
        for (k, allowed) in param.enum_.iter().flatten().enumerate() {
            if let Err(message) = coerced(param.type_.unwrap_or_default(), allowed) {
                problems.push(Problem::new(Reason::InvalidParameter, format!("{at}.enum[{k}]"), message));
            }
        }
        if param.enum_.as_ref().is_some_and(Vec::is_empty) {
            problems.push(Problem::new(Reason::InvalidParameter, format!("{at}.enum"), "no value is allowed at all"));
        }
        if let Some(default) = &param.default
            && let Err(problem) = accept(param, default, &format!("{at}.default"))
        {
            problems.push(problem);
        }
    }
}

/// The values of a run: those given, checked, and defaults for the rest. All mistakes at once.
pub(super) fn bind(params: &[Param], given: &Map<String, Value>) -> Result<Map<String, Value>, Vec<Problem>> {
    let mut problems = Vec::new();
    for name in given.keys() {
        if !params.iter().any(|param| param.name == *name) {
            let names = params.iter().map(|param| param.name.as_str());
            problems.push(unknown(Reason::UnknownParameter, &below("params", name), name, names));
        }
    }
    let mut values = Map::new();
    let mut missing = Vec::new();
    for param in params {
        let value = match given.get(&param.name) {
            Some(value) => accept(param, value, &below("params", &param.name)),
            None => match &param.default {
                Some(default) => accept(param, default, &below("params", &param.name)),
                None => {
                    missing.push(param.name.as_str());
                    continue;
                }
            },
        };
        match value {
            Ok(value) => {
                values.insert(param.name.clone(), value);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if !missing.is_empty() {
        let (word, verb) = if missing.len() == 1 { ("parameter", "has") } else { ("parameters", "have") };
        let message = format!("the {word} {} {verb} no value and no default", missing.join(", "));
        problems.push(
            Problem::new(Reason::MissingParameter, "params", message)
                .help("set them for the run or give them a default"),
        );
    }
    if problems.is_empty() { Ok(values) } else { Err(problems) }
}

/// Reads `text`, as given on a command line, as a value of the parameter's type: a string parameter takes it as it is,
/// the others read it as JSON.
pub fn read(param: &Param, text: &str) -> Result<Value, Problem> {
    let at = below("params", &param.name);
    let value = match param.type_.unwrap_or_default() {
        ParamType::String => Value::String(text.to_owned()),
        type_ => serde_json::from_str(text.trim()).map_err(|_| {
            let message = format!("{:?} is not {}", shortened(text), described(type_));
            Problem::new(Reason::InvalidParameter, &at, message)
        })?,
    };
    accept(param, &value, &at)
}

/// What an unknown name is answered with; `reason` tells what kind of name it is.
pub(super) fn unknown<'a>(
    reason: Reason,
    at: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Problem {
    let problem = Problem::new(reason, at, format!("there is no parameter {:?}", shortened(name)));
    match nearest(name, known.clone()) {
        Some(meant) => problem.help(format!("did you mean {meant}?")),
        None => {
            let known: Vec<&str> = known.collect();
            match known.is_empty() {
                true => problem.help("the pipeline declares no parameters"),
                false => problem.help(format!("there are {}", listed(&known))),
            }
        }
    }
}

/// At most ten of `names`, for a message.
pub(super) fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 10 { format!("{shown} and {} more", names.len() - 10) } else { shown }
}

/// `text` cut for a message.
pub(super) fn shortened(text: &str) -> String {
    if text.chars().count() > 60 { text.chars().take(60).chain("…".chars()).collect() } else { text.to_owned() }
}

fn accept(param: &Param, value: &Value, at: &str) -> Result<Value, Problem> {
    let size = json_size(value, PARAMETER_BYTES);
    if size > PARAMETER_BYTES {
        let message = format!("the value is larger than {} KiB", PARAMETER_BYTES / 1024);
        let help = "put large data into storage and give the step its URL";
        return Err(Problem::new(Reason::ParameterTooLarge, at, message).help(help));
    }
    let type_ = param.type_.unwrap_or_default();
    let value = coerced(type_, value).map_err(|message| Problem::new(Reason::InvalidParameter, at, message))?;
    if let Some(allowed) = &param.enum_ {
        let allows = |one: &Value| coerced(type_, one).is_ok_and(|one| one == value);
        if !allowed.iter().any(allows) {
            let shown: Vec<String> = allowed.iter().map(|one| shortened(&one.to_string())).collect();
            let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
            let message = format!("{} is not allowed", shortened(&value.to_string()));
            return Err(
                Problem::new(Reason::InvalidParameter, at, message).help(format!("allowed are {}", listed(&shown)))
            );
        }
    }
    Ok(value)
}

/// `value` as the declared type has it. Never rounds: a number that is not exactly of the type is refused.
fn coerced(type_: ParamType, value: &Value) -> Result<Value, String> {
    let fits = match (type_, value) {
        (ParamType::String, Value::String(_))
        | (ParamType::Boolean, Value::Bool(_))
        | (ParamType::Array, Value::Array(_))
        | (ParamType::Object, Value::Object(_))
        | (ParamType::Number, Value::Number(_)) => true,
        (ParamType::Integer, Value::Number(number)) => {
            return integer(number).map(Value::from).ok_or_else(|| {
                format!("{} is not a whole number of 64 bits (from {} to {})", number, i64::MIN, i64::MAX)
            });
        }
        _ => false,
    };
    if fits {
        return Ok(value.clone());
    }
    let mut message = format!("the value is {}, it must be {}", kind(value), described(type_));
    if type_ == ParamType::String && matches!(value, Value::Number(_) | Value::Bool(_)) {
        message.push_str(&format!("; in YAML, put it in quotes: \"{value}\""));
    }
    Err(message)
}

/// The integer that `number` is exactly.
fn integer(number: &Number) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.is_f64() {
        let value = number.as_f64()?;
        return (value.fract() == 0.0 && value.abs() < EXACT).then_some(value as i64);
    }
    number.as_i64()
}

fn described(type_: ParamType) -> &'static str {
    match type_ {
        ParamType::String => "a string",
        ParamType::Integer => "an integer",
        ParamType::Number => "a number",
        ParamType::Boolean => "true or false",
        ParamType::Array => "a list",
        ParamType::Object => "a mapping",
    }
}

/// A name that expressions and Python keyword arguments can use.
pub(super) fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 63
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
