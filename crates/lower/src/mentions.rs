//! What an expression refers to, in one form for references and CEL.

use super::expr::{Expr, Gather, Names, Path, Root};
use wire::PathPart;

/// One thing that an expression refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mention<'a> {
    /// `params.<name>`; `None`: the mapping as a whole.
    Param(Option<&'a str>),
    /// `run.<name>`.
    Run(Option<&'a str>),
    /// `item.<name>`.
    Item(Option<&'a str>),
    /// `steps.<name>.result`.
    Result(&'a str),
    /// `steps.<name>.output`.
    Output { step: &'a str, gather: Gather, keys: &'a [PathPart] },
}

/// Everything that `expr` refers to, with columns in the whole text; `column` is where the expression begins.
pub fn mentions(expr: &Expr, column: usize) -> Vec<(Mention<'_>, usize)> {
    match expr {
        Expr::Path(path) => vec![(of_path(path), column)],
        Expr::Cel { uses, .. } => {
            let mut found = Vec::new();
            of_names(&uses.params, column, Mention::Param, &mut found);
            of_names(&uses.run, column, Mention::Run, &mut found);
            of_names(&uses.item, column, Mention::Item, &mut found);
            let results = uses.results.named.iter();
            found.extend(results.map(|(name, at)| (Mention::Result(name), column - 1 + at)));
            found.sort_by_key(|(_, at)| *at);
            found
        }
    }
}

fn of_names<'a>(
    names: &'a Names,
    column: usize,
    mention: impl Fn(Option<&'a str>) -> Mention<'a>,
    found: &mut Vec<(Mention<'a>, usize)>,
) {
    found.extend(names.named.iter().map(|(name, at)| (mention(Some(name)), column - 1 + at)));
    if names.all {
        found.push((mention(None), column));
    }
}

fn of_path(path: &Path) -> Mention<'_> {
    let first = match path.keys.first() {
        Some(PathPart::Key(name)) => Some(name.as_str()),
        _ => None,
    };
    match &path.root {
        Root::Params => Mention::Param(first),
        Root::Run => Mention::Run(first),
        Root::Item => Mention::Item(first),
        Root::Result { step } => Mention::Result(step),
        Root::Output { step, gather } => Mention::Output { step, gather: *gather, keys: &path.keys },
    }
}
