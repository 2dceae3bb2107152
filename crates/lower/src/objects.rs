//! Objects in storage that steps name by a path: those that they read (`inputs`), and where an output is kept besides the
//! run's record (`output.path`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::expr::{ExprError, Part as TextPart, Text, kind};
use super::params::shortened;
use api::keys::check_key;
use api::problem::Problem;
use api::reason::Reason;
use api::step::{IfExists, Serializer};
use engine::StepIx;

/// Endings of a path that tell the form of what is there.
const ENDINGS: [(&str, Serializer); 5] = [
    ("pkl", Serializer::Pickle),
    ("pickle", Serializer::Pickle),
    ("json", Serializer::Json),
    ("parquet", Serializer::Parquet),
    ("npy", Serializer::Numpy),
];
/// Where whole URLs may lead: what the storage may be, as for `code.url`.
const SCHEMES: [&str; 3] = ["s3", "gs", "file"];
/// Folders of the storage that are the runs' own.
const OWN: [&str; 3] = ["runs", "pipelines", "probe"];
/// Paths that a message names.
pub(super) const NAMED: usize = 10;

/// An object that a step reads as a keyword argument.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub name: String,
    /// Where its path stands in the pipeline.
    pub at: String,
    /// The path as it is written.
    pub written: String,
    pub path: Text,
    /// As given; else the ending of the path says it.
    pub serializer: Option<Serializer>,
}

/// Where a step keeps its output under a name of its own.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Where its path stands in the pipeline.
    pub at: String,
    pub path: Text,
    pub if_exists: IfExists,
    pub serializer: Serializer,
}

/// Why a path, filled in, is none.
#[derive(Debug)]
pub(super) struct Wrong {
    reason: Reason,
    message: String,
    help: String,
}

/// What a task does in storage besides its run's own records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Paths that it reads.
    pub reads: Vec<String>,
    /// Where it keeps its output, and what it does if something is there.
    pub keeps: Option<(String, IfExists)>,
}

/// An input of a step, before the run.
pub(super) struct Declared {
    pub step: StepIx,
    pub name: String,
    /// Its path as it is written.
    pub written: String,
    /// As it comes out, of all items, as far as that is known.
    pub paths: BTreeSet<String>,
}

impl Input {
    /// What is read at `path`, as far as it is filled in: path and form.
    pub fn object(&self, path: &Value) -> Result<(String, Serializer), Wrong> {
        let path = text_of(path)?;
        check_readable(path)?;
        let serializer = self.serializer.or_else(|| form(path)).ok_or_else(|| no_form(path))?;
        Ok((path.to_owned(), serializer))
    }

    /// What is wrong already with what is written.
    pub fn check(&self) -> Result<(), Wrong> {
        match (&self.path, self.serializer) {
            (Text::Literal(path), _) => self.object(&Value::String(path.clone())).map(drop),
            (path, None) if tail(path).is_some_and(|tail| ending(tail).is_some() && form(tail).is_none()) => {
                Err(no_form(&self.written))
            }
            _ => Ok(()),
        }
    }
}

impl Target {
    /// Where the output goes if `path` is this, filled in.
    pub fn place(&self, path: &Value) -> Result<String, Wrong> {
        let path = text_of(path)?;
        check_writable(path)?;
        self.check_form(path)?;
        Ok(path.to_owned())
    }

    /// What is wrong already with what is written.
    pub fn check(&self) -> Result<(), Wrong> {
        match &self.path {
            Text::Literal(path) => self.place(&Value::String(path.clone())).map(drop),
            path => tail(path).map_or(Ok(()), |tail| self.check_form(tail)),
        }
    }

    /// A name must not promise another form than the output has.
    fn check_form(&self, path: &str) -> Result<(), Wrong> {
        match form(path) {
            Some(form) if form != self.serializer => {
                let message = format!(
                    "the ending of {} says {}, and the output is written as {}",
                    shortened(path),
                    form.as_str(),
                    self.serializer.as_str()
                );
                let help = format!("add serializer: {}, or choose another ending", form.as_str());
                Err(Wrong { reason: Reason::Conflict, message, help })
            }
            _ => Ok(()),
        }
    }

    /// Whether what is there already counts, so that somebody has to look before the step runs.
    pub fn looks(&self) -> bool {
        self.if_exists != IfExists::Replace
    }
}

impl Wrong {
    pub fn problem(self, at: &str) -> Problem {
        Problem::new(self.reason, at, self.message).help(self.help)
    }

    /// The same while the run goes on; `field` is where the path stands in its step.
    pub fn error(self, field: &str) -> ExprError {
        ExprError::evaluation(format!("{field}: {} ({})", self.message, self.help))
    }
}

fn text_of(path: &Value) -> Result<&str, Wrong> {
    path.as_str().ok_or_else(|| Wrong {
        reason: Reason::TypeMismatch,
        message: format!("a path is a text, this is {}", kind(path)),
        help: "put the expression into a text, for example data/$(params.day).parquet".to_owned(),
    })
}

/// What is read may be anywhere that the storage's kind of identity reaches: a step's code could read it as well.
fn check_readable(path: &str) -> Result<(), Wrong> {
    let Some((scheme, rest)) = path.split_once("://") else { return check_below(path) };
    let wrong = |message: String| {
        let help = "a path below the pipeline's storage, or a URL such as s3://bucket/data/in.parquet".to_owned();
        Err(Wrong { reason: Reason::InvalidValue, message, help })
    };
    let shown = shortened(path);
    if !SCHEMES.contains(&scheme) {
        return wrong(format!("an object is read from s3://, gs:// or file:///, not from {shown}"));
    }
    if rest.contains(['?', '#']) {
        return wrong(format!("the URL of an object has no query and no fragment: {shown}"));
    }
    let key = match (scheme, rest.split_once('/')) {
        ("file", Some(("", key))) => key,
        ("file", _) => return wrong(format!("a file is file:///absolute/path, not {shown}")),
        (_, Some((bucket, key))) if !bucket.is_empty() && !bucket.contains(['@', ':']) => key,
        _ => return wrong(format!("{shown} names no object in a bucket")),
    };
    check_key(key).or_else(|error| wrong(format!("{shown} names no object: {error}")))
}

fn check_writable(path: &str) -> Result<(), Wrong> {
    let wrong =
        |message: String, help: &str| Err(Wrong { reason: Reason::InvalidValue, message, help: help.to_owned() });
    if path.contains("://") {
        let message = format!("an output is kept below the pipeline's storage, not at {}", shortened(path));
        return wrong(message, "give a path, for example models/current.pkl");
    }
    let first = path.split('/').next().unwrap_or_default();
    if OWN.contains(&first) {
        let message = format!("the folder {first} of the storage holds what runs need for themselves");
        return wrong(message, "choose another folder, for example models");
    }
    check_below(path)
}

fn check_below(path: &str) -> Result<(), Wrong> {
    let wrong =
        |message: String, help: &str| Err(Wrong { reason: Reason::InvalidValue, message, help: help.to_owned() });
    if path.starts_with('/') {
        let message = format!("{} begins with a slash, and paths are below the pipeline's storage", shortened(path));
        return wrong(message, "leave the slash out; a file of the machine is file:///absolute/path, for inputs only");
    }
    check_key(path).or_else(|error| {
        wrong(format!("{} is no path below the storage: {error}", shortened(path)), "for example models/current.pkl")
    })
}

/// The form that the ending of a path tells.
fn form(path: &str) -> Option<Serializer> {
    let ending = ending(path)?.to_ascii_lowercase();
    ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, form)| *form)
}

/// What follows the last dot of the last part.
fn ending(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map(|(_, ending)| ending)
}

/// The text behind the last expression.
fn tail(path: &Text) -> Option<&str> {
    match path {
        Text::Literal(text) => Some(text),
        Text::Whole { .. } => None,
        Text::Mixed(parts) => match parts.last()? {
            TextPart::Literal(text) => Some(text),
            TextPart::Expr { .. } => None,
        },
    }
}

fn no_form(path: &str) -> Wrong {
    let endings: Vec<String> = ENDINGS.iter().map(|(ending, _)| format!(".{ending}")).collect();
    Wrong {
        reason: Reason::InvalidValue,
        message: format!("the ending of {} does not say what is there: {} do", shortened(path), endings.join(", ")),
        help: "add serializer: pickle, json, parquet or numpy; csv, text and all else is read by the step's own code"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(serializer: Option<Serializer>) -> Input {
        let (name, at, written) = ("x".to_owned(), String::new(), String::new());
        Input { name, at, written, path: Text::Literal(String::new()), serializer }
    }

    #[test]
    fn the_ending_tells_the_form() {
        for (path, expected) in [
            ("a/b.pkl", Some("pickle")),
            ("b.PICKLE", Some("pickle")),
            ("b.tar.json", Some("json")),
            ("s3://bucket/in.parquet", Some("parquet")),
            ("file:///data/x.npy", Some("numpy")),
            ("a.json/b", None),
            ("b", None),
            ("b.csv", None),
            ("b.", None),
        ] {
            let found = input(None).object(&Value::String(path.to_owned()));
            assert_eq!(found.as_ref().ok().map(|(_, form)| form.as_str()), expected, "{path}");
            if let Err(wrong) = found {
                assert!(wrong.message.contains(".pkl") && wrong.help.contains("serializer"), "{wrong:?}");
            }
            assert!(input(Some(Serializer::Json)).object(&Value::String(path.to_owned())).is_ok(), "{path}");
        }
    }

    #[test]
    fn nothing_outside_the_storage_is_named_by_a_path() {
        let read = |path: &str| input(Some(Serializer::Json)).object(&Value::String(path.to_owned())).map(drop);
        for path in
            ["a", "a/b c/é.x", "a/..b", "s3://b/k", "s3://other.bucket/a/b", "gs://b/k", "file:///data/x", "runs/x"]
        {
            assert!(read(path).is_ok(), "{path}: {:?}", read(path));
        }
        for path in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../../b",
            "a/./b",
            "a\\b",
            "a\nb",
            ".tmp-1",
            "s3://b",
            "s3://b/",
            "s3:///k",
            "s3://u:p@b/k",
            "s3://b/../k",
            "s3://b/k?versionId=1",
            "file://host/x",
            "file://x",
            "file:///../etc/x",
            "https://example.com/x",
            "ftp://x/y",
        ] {
            let wrong = read(path).expect_err(path);
            assert_eq!(wrong.reason, Reason::InvalidValue, "{path}");
            assert!(wrong.message.contains(path), "{path}: {}", wrong.message);
        }
        let wrong = input(None).object(&Value::from(3)).expect_err("a number");
        assert_eq!(wrong.reason, Reason::TypeMismatch);
        assert!(wrong.message.contains("this is an integer"), "{}", wrong.message);
    }

    #[test]
    fn outputs_stay_away_from_the_runs_own_folders() {
        let target = |serializer| Target {
            at: String::new(),
            path: Text::Literal(String::new()),
            if_exists: IfExists::Fail,
            serializer,
        };
        let place =
            |path: &str, form| target(form).place(&Value::String(path.to_owned())).map_err(|wrong| wrong.reason);
        for path in ["a", "models/current.pkl", "runs-of-mine/x", "x/runs/y"] {
            assert_eq!(place(path, Serializer::Pickle), Ok(path.to_owned()));
        }
        for path in ["runs", "runs/u/journal/0000000000.seg", "pipelines/x", "probe/x", "s3://b/x", "/x", "../x", ""] {
            assert_eq!(place(path, Serializer::Pickle), Err(Reason::InvalidValue), "{path}");
        }
        assert_eq!(place("m.json", Serializer::Pickle), Err(Reason::Conflict));
        assert_eq!(place("m.json", Serializer::Json), Ok("m.json".to_owned()));
    }
}
