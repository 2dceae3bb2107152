//! Expressions in manifests: `$(…)` in texts, references to parameters, items and outputs, and CEL for everything else.
//! See `docs/expressions.md` for the language.

mod cel;
mod convert;
mod cost;
mod error;
mod path;
mod scan;
mod text;

pub(crate) use self::text::no_values;
pub use self::{
    cel::{Cel, Names, Scope, Uses},
    cost::Account,
    error::ExprError,
    path::{Gather, Path, Root, kind, lookup},
    scan::{Piece, scan},
    text::{Expr, Part, Text, stringify},
};
