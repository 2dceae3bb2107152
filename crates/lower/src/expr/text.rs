//! A string of the manifest with its expressions parsed, and one expression.

use serde_json::{Map, Value};

use super::{
    cel::{Cel, Scope, Uses},
    error::ExprError,
    path::{Path, Root, lookup},
    scan::{Piece, scan},
};
use wire::PathPart;

/// One expression: a reference in the small grammar, or CEL.
#[derive(Debug, Clone)]
pub enum Expr {
    /// A reference.
    Path(Path),
    /// Anything else.
    Cel {
        /// The expression.
        cel: Cel,
        /// What it depends on.
        uses: Uses,
    },
}

/// A string of the manifest.
#[derive(Debug, Clone)]
pub enum Text {
    /// No expression in it; escapes are resolved.
    Literal(String),
    /// Nothing but one expression: keeps the expression's type.
    Whole {
        /// The expression.
        expr: Expr,
        /// Where it begins.
        column: usize,
    },
    /// Expressions within text: a string.
    Mixed(Vec<Part>),
}

/// A part of a string with several.
#[derive(Debug, Clone)]
pub enum Part {
    /// No expression.
    Literal(String),
    /// An expression.
    Expr {
        /// The expression.
        expr: Expr,
        /// Where it begins.
        column: usize,
    },
}

impl Text {
    /// Parses the expressions of `text`.
    pub fn parse(text: &str) -> Result<Self, ExprError> {
        if !text.contains("$(") {
            return Ok(Self::Literal(text.to_owned()));
        }
        let mut parts = Vec::new();
        for piece in scan(text)? {
            parts.push(match piece {
                Piece::Text(text) => Part::Literal(text.into_owned()),
                Piece::Expr { source, before } => {
                    Part::Expr { expr: Expr::parse(source).map_err(|error| error.shifted(before))?, column: before + 1 }
                }
            });
        }
        Ok(match parts.pop() {
            None => Self::Literal(String::new()),
            Some(Part::Literal(text)) if parts.is_empty() => Self::Literal(text),
            Some(Part::Expr { expr, column }) if parts.is_empty() => Self::Whole { expr, column },
            Some(last) => {
                parts.push(last);
                Self::Mixed(parts)
            }
        })
    }

    /// Its expressions with their columns.
    pub fn expressions(&self) -> impl Iterator<Item = (&Expr, usize)> {
        let parts: &[Part] = match self {
            Self::Mixed(parts) => parts,
            _ => &[],
        };
        let whole = match self {
            Self::Whole { expr, column } => Some((expr, *column)),
            _ => None,
        };
        whole.into_iter().chain(parts.iter().filter_map(|part| match part {
            Part::Expr { expr, column } => Some((expr, *column)),
            Part::Literal(_) => None,
        }))
    }

    /// The value, from `scope` alone. Outputs of steps have no value here: callers handle them before.
    pub fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, ExprError> {
        match self {
            Self::Literal(text) => Ok(Value::String(text.clone())),
            Self::Whole { expr, .. } => expr.evaluate(scope),
            Self::Mixed(parts) => {
                let mut text = String::new();
                for part in parts {
                    match part {
                        Part::Literal(literal) => text.push_str(literal),
                        Part::Expr { expr, .. } => stringify(&expr.evaluate(scope)?, &mut text),
                    }
                }
                Ok(Value::String(text))
            }
        }
    }
}

impl Expr {
    /// Parses the inside of `$(…)`, or a bare condition. Columns count from 1 in `source`.
    pub fn parse(source: &str) -> Result<Self, ExprError> {
        if source.len() <= super::error::LENGTH
            && let Some(path) = Path::parse(source)?
        {
            return Ok(Self::Path(path));
        }
        let (cel, uses) = Cel::parse(source)?;
        Ok(Self::Cel { cel, uses })
    }

    /// The value, from `scope` alone; not for references to outputs.
    pub fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, ExprError> {
        match self {
            Self::Path(path) => path_value(path, scope),
            Self::Cel { cel, uses } => cel.evaluate(uses, scope),
        }
    }
}

fn path_value(path: &Path, scope: &Scope<'_>) -> Result<Value, ExprError> {
    let (values, name, keys) = match &path.root {
        Root::Params => (scope.params, "params", &path.keys),
        Root::Run => (scope.run, "run", &path.keys),
        Root::Item => (scope.item, "item", &path.keys),
        Root::Result { step } => {
            let Some(result) = scope.results.get(step) else {
                return Err(ExprError::evaluation(format!("steps.{step} has no result")));
            };
            return lookup(result, &path.keys, &format!("steps.{step}.result")).cloned();
        }
        Root::Output { step, .. } => {
            return Err(ExprError::mismatch(format!(
                "steps.{step}.output is an opaque value that only the step's code sees; it cannot stand here"
            )));
        }
    };
    match keys.split_first() {
        None => Ok(Value::Object(values.clone())),
        Some((PathPart::Key(first), rest)) => match values.get(first) {
            Some(value) => lookup(value, rest, &format!("{name}.{first}")).cloned(),
            None => Err(ExprError::evaluation(format!("{name} has no key {first:?}"))),
        },
        Some((PathPart::Index(_), _)) => Err(ExprError::mismatch(format!("{name} is a mapping, not a list"))),
    }
}

/// Appends `value` as it stands within text: strings as they are, everything else as JSON.
pub fn stringify(value: &Value, text: &mut String) {
    match value {
        Value::String(value) => text.push_str(value),
        other => text.push_str(&other.to_string()),
    }
}

/// An empty mapping that lives as long as needed, for scopes without some variables.
pub(crate) fn no_values() -> &'static Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    &EMPTY
}
