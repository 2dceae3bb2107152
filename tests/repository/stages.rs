//! The stages of `./test`: its help, the justfile, README.md, ARCHITECTURE.md and the time budget name the same ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// The stages that `./test --help` lists: those of `./test quick`, those that `./test` adds, and those that `./test full` adds.
fn helped() -> [BTreeSet<String>; 3] {
    let done = Command::new(in_repository("test")).arg("--help").output().expect("run ./test --help");
    let text = String::from_utf8(done.stdout).expect("UTF-8");
    ["Stages of `./test quick`: ", "`./test` adds: ", "`./test full` adds: "].map(|start| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_else(|| panic!("{start} in {text}"));
        line.split(' ').map(ToOwned::to_owned).collect()
    })
}

fn all_stages() -> BTreeSet<String> {
    helped().into_iter().flatten().collect()
}

/// The text of a page from a heading to the next one of its level.
fn section(path: &str, heading: &str) -> String {
    let text = read(path);
    let (_, rest) =
        text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("{path} has no ## {heading}"));
    rest.split("\n## ").next().unwrap_or_default().to_owned()
}

/// What stands between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

#[test]
fn every_stage_is_a_recipe_and_every_recipe_a_stage() {
    let text = read("justfile");
    let names = text.lines().filter_map(|line| {
        let name: String = line.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect();
        let rest = &line[name.len()..];
        let is_recipe = rest.contains(':') && !rest.contains(":=") && (rest.starts_with(':') || rest.starts_with(' '));
        (!name.is_empty() && is_recipe && name != "default" && name != "set").then_some(name)
    });
    assert_eq!(names.collect::<BTreeSet<_>>(), all_stages());
}

#[test]
fn the_readme_lists_the_stages_of_each_command() {
    let section = section("README.md", "Tests");
    for (command, stages) in ["`./test quick`", "`./test`", "`./test full`"].into_iter().zip(helped()) {
        let start = format!("| {command} |");
        let row = section.lines().find_map(|line| line.strip_prefix(&start));
        let row = row.unwrap_or_else(|| panic!("no row {start} in {section}"));
        assert_eq!(quoted(row), stages, "README.md, {command}");
    }
}

#[test]
fn the_architecture_says_what_each_stage_is_for() {
    let section = section("ARCHITECTURE.md", "Tests");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")).map(|line| format!("`{line}"));
    let told: BTreeSet<String> = rows.flat_map(|row| quoted(row.split('|').next().unwrap_or_default())).collect();
    assert_eq!(told, all_stages());
}

#[test]
fn every_stage_of_the_standard_run_has_a_time_budget() {
    let text = read("tests/harness/budget.txt");
    let names: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.split('#').next()?.split_whitespace().next())
        .map(ToOwned::to_owned)
        .collect();
    let [quick, standard, full] = helped();
    for stage in quick.union(&standard) {
        assert!(names.contains(stage), "tests/harness/budget.txt has no line for {stage}");
    }
    let known: BTreeSet<String> = quick.into_iter().chain(standard).chain(full).collect();
    assert!(names.is_subset(&known), "budgets of stages that do not exist: {:?}", names.difference(&known));
}

#[test]
fn what_is_no_stage_or_would_be_left_out_is_refused() {
    for (words, expected) in [
        (&["e3e"][..], "no stage \"e3e\""),
        (&["fmt", "quick"], "no stage \"quick\""),
        (&["quick", "e2e"], "`./test quick` takes no further stages"),
    ] {
        let done = Command::new(in_repository("test")).args(words).output().expect("run ./test");
        let text = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{text}");
        assert!(text.contains(expected) && text.contains("./test --help"), "{text}");
    }
}
