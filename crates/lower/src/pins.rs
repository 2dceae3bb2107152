//! Versions of objects that a run fixes (`select.loadVersions`).

use std::collections::{BTreeMap, BTreeSet};

use super::objects::Declared;
use super::params::{listed, shortened};
use super::pin::Pin;
use super::plan::Plan;
use api::problem::{Problem, nearest};
use api::reason::Reason;

/// Longest version that a storage gives, in bytes.
const VERSION_BYTES: usize = 1024;
/// Paths that a message names.
const NAMED: usize = 10;

impl Plan {
    /// Versions that are fixed, by the paths of the objects.
    pub fn pins(&self) -> &BTreeMap<String, Pin> {
        &self.pins
    }

    /// What is wrong with fixing versions in this storage, whose URL it is.
    pub fn check_pins(&self, storage: &str) -> Option<Problem> {
        let (path, pin) = self.pins.iter().find(|(path, _)| {
            let url = if path.contains("://") { path.as_str() } else { storage };
            url.starts_with("file:")
        })?;
        let message = format!("{} is in a folder, which keeps no versions of what is in it", shortened(path));
        let help = "leave it out; versions are those of S3 and the like, with versioning enabled for the bucket";
        Some(Problem::new(Reason::NoVersions, &pin.at, message).help(help))
    }

    /// Fixes versions: each by the name of an input, or by the path of an object as [`select`](Self::select) takes it.
    pub(super) fn pin(&mut self, wanted: &BTreeMap<String, String>, at: &str) -> Vec<Problem> {
        let (mut problems, known) = (Vec::new(), self.declared());
        for (name, version) in wanted {
            let at = format!("{at}.{name}");
            if version.is_empty() || version.len() > VERSION_BYTES || version.chars().any(char::is_control) {
                let message = format!("a version has 1 to {VERSION_BYTES} bytes and no control characters");
                problems.push(Problem::new(Reason::InvalidValue, at, message));
                continue;
            }
            match path_of(name, &known, &at) {
                Ok(path) => drop(self.pins.insert(path, Pin { version: version.clone(), at })),
                Err(problem) => problems.push(problem),
            }
        }
        problems
    }
}

/// The one object that `name` means.
fn path_of(name: &str, known: &[Declared], at: &str) -> Result<String, Problem> {
    let mut paths: BTreeSet<&String> = BTreeSet::new();
    let mut any = false;
    for input in known {
        if input.name == name || input.written == name {
            any = true;
            paths.extend(&input.paths);
        }
        if let Some(path) = input.paths.get(name) {
            any = true;
            paths.insert(path);
        }
    }
    let mut found = paths.iter();
    match (found.next(), found.next()) {
        (Some(path), None) => Ok((*path).clone()),
        (Some(_), Some(_)) => {
            let shown: Vec<&str> = paths.iter().take(NAMED).map(|path| path.as_str()).collect();
            let message = format!("{} is {} objects, and each has versions of its own", shortened(name), paths.len());
            Err(Problem::new(Reason::Conflict, at, message).help(format!("give the path of one: {}", listed(&shown))))
        }
        (None, _) if any => {
            let message = format!("the path of input {} is known only while the run goes on", shortened(name));
            Err(Problem::new(Reason::InvalidValue, at, message)
                .help("a version can be fixed of a path that is known before"))
        }
        (None, _) => {
            let problem = Problem::new(Reason::UnknownInput, at, format!("no step has an input {}", shortened(name)));
            let names = known.iter().flat_map(|input| std::iter::once(&input.name).chain(&input.paths));
            let near = nearest(name, names.map(String::as_str));
            let all: BTreeSet<&str> = known.iter().map(|input| input.name.as_str()).collect();
            let all: Vec<&str> = all.into_iter().take(NAMED).collect();
            Err(problem.help(match near {
                Some(near) => format!("did you mean {near}?"),
                None if all.is_empty() => "no step has inputs".to_owned(),
                None => format!("there are {}", listed(&all)),
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use crate::{RunInfo, validate};

    fn check(pins: Value) -> Result<Vec<(String, String)>, Vec<String>> {
        let spec = json!({
            "params": [{"name": "day", "default": "mon"}],
            "steps": [
                {"name": "a", "call": "m:f", "inputs": {"model": {"path": "m/$(params.day).pkl"}, "x": {"path": "x.json"}}},
                {"name": "b", "call": "m:f", "inputs": {"weights": {"path": "s3://b/w.npy"}, "x": {"path": "y.json"}}},
                {"name": "c", "call": "m:f", "map": {"i": ["1", "2"]}, "inputs": {"part": {"path": "p/$(item.i).json"}}},
                {"name": "d", "call": "m:f", "inputs": {"late": {"path": "$(steps.a.result).json", "serializer": "json"}}}
            ]
        });
        let flow = validate(&serde_json::from_value(spec).unwrap(), "spec").unwrap();
        let plan = flow.bind(&Map::new(), &RunInfo { name: "r".into(), uid: "u".into() }).unwrap();
        let select = serde_json::from_value(json!({ "loadVersions": pins })).unwrap();
        match plan.select(&select, "spec.select") {
            Ok(plan) => Ok(plan.pins().iter().map(|(path, pin)| (path.clone(), pin.version.clone())).collect()),
            Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn a_version_belongs_to_one_object() {
        let pinned = |name: &str| check(json!({ name: "v1" })).unwrap().remove(0).0;
        assert_eq!(pinned("model"), "m/mon.pkl");
        assert_eq!(pinned("m/$(params.day).pkl"), "m/mon.pkl", "as it is written");
        assert_eq!(pinned("weights"), "s3://b/w.npy");
        assert_eq!(pinned("y.json"), "y.json");
        assert_eq!(pinned("p/2.json"), "p/2.json", "of one item");
        let said = |name: &str| check(json!({ name: "v1" })).unwrap_err().remove(0);
        for (name, reason, help) in [
            ("modl", "UnknownInput", "did you mean model?"),
            ("x", "Conflict", "x.json"),
            ("part", "Conflict", "p/1.json"),
            ("late", "InvalidValue", "known before"),
        ] {
            let said = said(name);
            assert!(
                said.contains(&format!("spec.select.loadVersions.{name}: {reason}")) && said.contains(help),
                "{said}"
            );
        }
        assert!(check(json!({"model": ""})).unwrap_err()[0].contains("InvalidValue"));
    }

    #[test]
    fn a_folder_has_no_versions() {
        let spec = json!({"steps": [{"name": "a", "call": "m:f", "inputs": {"x": {"path": "x.json"}, "y": {"path": "s3://b/y.json"}}}]});
        let flow = validate(&serde_json::from_value(spec).unwrap(), "spec").unwrap();
        let plan = flow.bind(&Map::new(), &RunInfo { name: "r".into(), uid: "u".into() }).unwrap();
        let pinned = |name: &str| {
            let select = serde_json::from_value(json!({"loadVersions": {name: "v"}})).unwrap();
            plan.clone().select(&select, "spec.select").unwrap()
        };
        assert!(pinned("x").check_pins("s3://b/p").is_none());
        assert!(pinned("y").check_pins("file:///tmp/x").is_none(), "it is elsewhere");
        let said = pinned("x").check_pins("file:///tmp/x").unwrap().to_string();
        assert!(said.contains("spec.select.loadVersions.x: NoVersions"), "{said}");
    }
}
