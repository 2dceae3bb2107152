//! Reasons: declared once, emitted, documented, and never compared as text.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

use api::condition::ConditionType;
use api::reason::{Reason, ReasonKind};

/// Names of reasons that are also names of something else: states of a run, a column, reasons of Kubernetes for pods and nodes,
/// and an error code of S3.
const OTHERS: &[&str] = &[
    "Cancelled",
    "Failed",
    "Pending",
    "Running",
    "Succeeded",
    "Suspended",
    "Idle",
    "Evicted",
    "NodeLost",
    "Unschedulable",
    "NoSuchBucket",
];
/// Crates below the resources: what they call a failure is a name of theirs.
const BELOW: &[&str] = &["crates/engine/", "crates/dask/"];

#[test]
fn every_declared_reason_is_emitted() {
    let used = Regex::new(r"\bReason::([A-Z]\w+)").unwrap();
    let mut emitted: BTreeSet<String> = BTreeSet::new();
    for (_, text) in sources() {
        emitted.extend(used.captures_iter(&text).map(|found| found[1].to_owned()));
    }
    let literal = Regex::new(r#""([A-Z]\w+)""#).unwrap();
    for (_, text) in runtime() {
        emitted.extend(literal.captures_iter(&text).map(|found| found[1].to_owned()));
    }
    let silent: Vec<&str> =
        Reason::ALL.iter().map(|reason| reason.as_str()).filter(|name| !emitted.contains(*name)).collect();
    assert!(silent.is_empty(), "nothing emits {silent:?}");
}

#[test]
fn every_reason_of_the_runtime_is_declared() {
    let all = of_the_runtime();
    assert!(all.len() > 40, "{}", all.len());
    let unknown: Vec<_> = all.into_iter().filter(|(_, name)| name.parse::<Reason>().is_err()).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn no_reason_is_a_text_where_it_could_be_a_value() {
    let mut allowed: BTreeSet<&str> = ConditionType::ALL.iter().map(|kind| kind.as_str()).collect();
    allowed.extend(OTHERS);
    let literal = Regex::new(r#""([A-Z][A-Za-z]+)""#).unwrap();
    let mut found = Vec::new();
    for (path, text) in sources() {
        for name in literal.captures_iter(&text).map(|found| found[1].to_owned()) {
            if name.parse::<Reason>().is_ok() && !allowed.contains(name.as_str()) {
                found.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "use Reason:\n{}", found.join("\n"));
}

#[test]
fn every_link_leads_to_the_reason() {
    let page = fs::read_to_string(top().join("docs/reasons.md")).unwrap();
    for reason in Reason::ALL {
        let link = reason.link();
        let anchor = link.strip_prefix("docs/reasons.md#").unwrap();
        let row = format!("<a id=\"{anchor}\"></a>`{reason}` |");
        assert_eq!(page.matches(&row).count(), 1, "{reason}");
    }
}

/// What to do about each reason that an object may have, and about no other.
#[test]
fn troubleshooting_has_every_reason_of_a_condition_once() {
    let page = fs::read_to_string(top().join("docs/troubleshooting.md")).unwrap();
    let word = regex::Regex::new(r"`([A-Z][A-Za-z]+)`").unwrap();
    let mut told: Vec<String> = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        assert!(
            cells.len() == 3 && cells.iter().all(|cell| !cell.trim().is_empty()),
            "reason, why, what to do: {line}"
        );
        told.extend(word.captures_iter(cells[0]).map(|found| found[1].to_owned()));
    }
    told.sort();
    let conditions = Reason::ALL.iter().filter(|reason| reason.kind() == ReasonKind::Condition);
    let mut known: Vec<String> = conditions.map(ToString::to_string).collect();
    known.sort();
    assert_eq!(told, known, "docs/troubleshooting.md and the reasons of conditions differ");
}

/// Everything in Rust that is no test, with its path; without comments, and without what is below the resources.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in ["src", "crates"] {
        for_each_source(&top().join(folder), &mut |path, text| {
            let path = path.strip_prefix(top()).unwrap();
            let name = path.to_string_lossy();
            let is_test = name.contains("/tests/") || name.ends_with("tests.rs");
            if is_test || name.ends_with("api/src/reason.rs") || BELOW.iter().any(|below| name.starts_with(below)) {
                return;
            }
            let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
            let code: Vec<&str> = text[..end].lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            found.push((path.to_owned(), code.join("\n")));
        });
    }
    found
}

/// The reasons that the runtime raises or answers with, and in which file.
fn of_the_runtime() -> Vec<(PathBuf, String)> {
    let raised =
        Regex::new(r#"(?:\b(?:Refused|\w*Error|refuse|refused)\(\s*|"?reason"?[:=] ?)"([A-Z][A-Za-z]+)""#).unwrap();
    let names = |(path, text): (PathBuf, String)| {
        raised.captures_iter(&text).map(|name| (path.clone(), name[1].to_owned())).collect::<Vec<_>>()
    };
    runtime().into_iter().flat_map(names).collect()
}

/// The runtime's files with their paths.
fn runtime() -> Vec<(PathBuf, String)> {
    let paths = fs::read_dir(top().join("runtime/daskade_runtime")).unwrap().map(|entry| entry.unwrap().path());
    let python = paths.filter(|path| path.extension().is_some_and(|ending| ending == "py"));
    python.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn for_each_source(folder: &Path, visit: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            for_each_source(&path, visit);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            visit(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}
