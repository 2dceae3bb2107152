//! Rules about the source that the compiler does not know: who may import whom, sizes, words that do not belong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a crate must not name, because it decides without a clock or the outside world, or knows no Kubernetes.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("engine", &["tokio::", "serde::", "serde_json::", "std::fs", "std::net", "std::time", "Instant::now", "rand::"]),
    (
        "decide",
        &["kube::Client", "tokio::", "object_store::", "std::fs", "std::net", "SystemTime::now", "Timestamp::now"],
    ),
    ("lower", &["kube::", "tokio::", "object_store::", "std::fs", "std::net", "SystemTime::now", "Timestamp::now"]),
    ("run-model", &["kube::", "tokio::", "object_store::", "std::fs", "std::net", "SystemTime::now"]),
    ("dask", &["kube::", "k8s_openapi::"]),
    ("api", &["tokio::", "std::fs", "kube::Client"]),
];

/// Longest file without its tests, and the median that the tree keeps to.
const LONGEST: usize = 600;
const MEDIAN: usize = 260;

struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The file up to its unit tests, without comments; nothing of a file that is all tests.
    fn code(&self) -> String {
        if self.path.ends_with("tests.rs") {
            return String::new();
        }
        let end = self.text.find("#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        let lines = self.text[..end].lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The crate that the file belongs to; `daskade` for the program.
    fn crate_name(&self) -> &str {
        self.path.strip_prefix("crates/").and_then(|below| below.split('/').next()).unwrap_or("daskade")
    }
}

#[test]
fn crates_use_only_what_the_architecture_says() {
    let page = read("ARCHITECTURE.md");
    let said: BTreeMap<String, BTreeSet<String>> = page.lines().filter_map(row).collect();
    let (mut found, mut names) = (BTreeMap::new(), BTreeSet::new());
    for entry in fs::read_dir(top().join("crates")).expect("crates") {
        names.insert(entry.expect("a crate").file_name().into_string().expect("a name"));
    }
    for name in &names {
        let manifest = read(&format!("crates/{name}/Cargo.toml"));
        let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        let used = dependencies.lines().filter_map(|line| line.split(['.', ' ']).next().map(ToOwned::to_owned));
        found.insert(name.clone(), used.filter(|used| names.contains(used)).collect::<BTreeSet<String>>());
    }
    assert_eq!(said, found, "the table in ARCHITECTURE.md, and the manifests");
}

/// A crate and what it may use, from a row of the table.
fn row(line: &str) -> Option<(String, BTreeSet<String>)> {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [_, path, _, uses, _] = cells[..] else { return None };
    let name = path.strip_prefix("`crates/")?.strip_suffix("/`")?;
    Some((name.to_owned(), uses.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()))
}

#[test]
fn files_that_the_architecture_names_are_there() {
    let page = read("ARCHITECTURE.md");
    let ways = ["crates/", "src/", "runtime/", "charts/"];
    let paths = page.split('`').skip(1).step_by(2).filter(|path| ways.iter().any(|way| path.starts_with(way)));
    let (known, gone): (Vec<&str>, Vec<&str>) = paths.partition(|path| top().join(path).exists());
    assert!(known.len() > 40, "{known:?}");
    assert!(gone.is_empty(), "{gone:?}");
}

#[test]
fn pure_crates_stay_off_clocks_networks_and_kubernetes() {
    let mut wrong = BTreeSet::new();
    for source in rust_sources() {
        let code = source.code();
        for (name, words) in OUTSIDE {
            if source.crate_name() == *name {
                let found = words.iter().filter(|word| code.contains(**word));
                wrong.extend(found.map(|word| format!("{}: {name} must not use {word}", source.path)));
            }
        }
        if source.crate_name() != "daskade" {
            let exits = ["anyhow::", "process::exit", "ExitCode"];
            let found = exits.iter().filter(|word| code.contains(**word));
            wrong.extend(found.map(|word| format!("{}: only the program uses {word}", source.path)));
        }
    }
    assert_empty(&wrong);
}

/// Files that look at the clock of the machine, and why no decision about an object hangs on it.
const LOCAL_TIME: &[(&str, &str)] = &[
    ("crates/operator/src/leader/clock.rs", "it compares that clock with the API server's"),
    ("crates/operator/src/leader/lead.rs", "the right to write ends if it jumps, and never begins"),
    ("crates/operator/src/apiserver/own.rs", "a line in the log, about a time of the same machine"),
    ("crates/run-model/src/moment.rs", "runs of the command line, which have no other"),
];

#[test]
fn the_operator_has_the_time_from_one_clock() {
    let mut wrong = BTreeSet::new();
    for source in rust_sources() {
        let decides = ["operator", "driver", "decide", "run-model"].contains(&source.crate_name());
        if !decides || LOCAL_TIME.iter().any(|(path, _)| *path == source.path) {
            continue;
        }
        let code = source.code();
        let found = ["SystemTime::now", "Timestamp::now", "Zoned::now", "Utc::now"].into_iter();
        let found = found.filter(|word| code.contains(*word));
        wrong.extend(found.map(|word| format!("{}: {word}; ask operator::leader::clock", source.path)));
    }
    assert_empty(&wrong);
}

#[test]
fn petgraph_is_private_to_one_file() {
    let users: Vec<String> =
        rust_sources().into_iter().filter(|s| s.code().contains("petgraph::")).map(|s| s.path).collect();
    assert!(users.len() <= 1, "petgraph is used in {users:?}");
}

#[test]
fn the_runtime_decides_nothing() {
    // Words of decisions that are the engine's: what is tried again, left out, fanned out or given up.
    let words = ["continue_on_failure", "fail_fast", "retry_limit", "max_items", "\"when\"", "\"retry\"", "\"map\""];
    let mut wrong = BTreeSet::new();
    for source in sources("runtime/daskade_runtime", "py") {
        for (number, line) in source.text.lines().enumerate() {
            let found = words.iter().filter(|word| line.contains(**word));
            wrong.extend(found.map(|word| format!("{}:{}: {word}", source.path, number + 1)));
        }
    }
    assert_empty(&wrong);
}

#[test]
fn tests_of_the_operator_sleep_only_where_they_wait_for_conditions() {
    let all = sources("tests", "rs");
    let sources: Vec<&Source> = all.iter().filter(|source| source.path.contains("/operator/")).collect();
    let (helper, others): (Vec<_>, Vec<_>) = sources.into_iter().partition(|source| source.path.ends_with("/wait.rs"));
    assert!(helper.len() == 1 && others.len() > 10, "the folder has moved");
    let mut wrong = BTreeSet::new();
    for source in others {
        for (number, line) in source.text.lines().enumerate().filter(|(_, line)| line.contains("sleep(")) {
            wrong.insert(format!("{}:{}: wait with `eventually`: {}", source.path, number + 1, line.trim()));
        }
    }
    assert_empty(&wrong);
}

#[test]
fn commands_name_test_binaries_that_there_are() {
    let texts = ["src", "crates", "tests"].into_iter().flat_map(|folder| sources(folder, "rs"));
    let generated = ["crds", "charts"].into_iter().flat_map(|folder| sources(folder, "yaml"));
    let pages = sources("docs", "md")
        .into_iter()
        .chain(["CONTRIBUTING.md", "README.md"].map(|path| Source { text: read(path), path: path.to_owned() }));
    let binaries: BTreeSet<String> = sources("tests", "rs")
        .iter()
        .chain(&sources("crates", "rs"))
        .filter_map(|source| source.path.strip_suffix("/main.rs")?.rsplit_once("tests/"))
        .map(|(_, name)| name.to_owned())
        .collect();
    let mut wrong = BTreeSet::new();
    let mut seen = 0;
    for source in texts.chain(generated).chain(pages) {
        for rest in source.text.split("cargo test --test ").skip(1) {
            let name: String =
                rest.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect();
            seen += 1;
            if !name.is_empty() && !binaries.contains(&name) {
                wrong.insert(format!("{}: there is no test binary {name}", source.path));
            }
        }
    }
    assert!(seen > 10, "{seen}");
    assert_empty(&wrong);
}

#[test]
fn files_are_small() {
    let sizes: Vec<(usize, String)> = rust_sources()
        .into_iter()
        .map(|source| {
            let end = source.text.find("#[cfg(test)]\nmod ").unwrap_or(source.text.len());
            (source.text[..end].lines().count(), source.path)
        })
        .chain(sources("runtime/daskade_runtime", "py").into_iter().map(|s| (s.text.lines().count(), s.path)))
        .collect();
    let long: BTreeSet<String> = sizes
        .iter()
        .filter(|(lines, _)| *lines > LONGEST)
        .map(|(lines, path)| format!("{path} has {lines} lines"))
        .collect();
    assert_empty(&long);
    let mut lines: Vec<usize> = sizes.iter().map(|(lines, _)| *lines).collect();
    lines.sort_unstable();
    let median = lines.get(lines.len() / 2).copied().unwrap_or(0);
    assert!(median <= MEDIAN, "the median file has {median} lines");
}

#[test]
fn nothing_unfinished_or_careless_is_left() {
    // Split, so that this file does not find itself.
    let everywhere = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let in_rust = [
        "todo!(",
        "unimplemented!(",
        "dbg!(",
        ".unwrap()",
        "#[allow(",
        "#![allow(",
        "serde(untagged)",
        "serde(flatten)",
        "std::env::set_var",
    ];
    let mut wrong = BTreeSet::new();
    for source in rust_sources() {
        let code = source.code();
        let found = in_rust.iter().filter(|word| code.contains(**word));
        wrong.extend(found.map(|word| format!("{}: {word}", source.path)));
        let globs = code.lines().filter(|line| line.trim_start().starts_with("pub") && line.ends_with("::*;"));
        wrong.extend(globs.map(|line| format!("{}: name what is handed on: {}", source.path, line.trim())));
    }
    for (folder, ending) in [
        ("src", "rs"),
        ("crates", "rs"),
        ("tests", "rs"),
        ("runtime", "py"),
        ("tests", "py"),
        ("bench", "py"),
        ("docs", "md"),
        ("examples", "yaml"),
    ] {
        for source in sources(folder, ending) {
            let found = everywhere.iter().filter(|word| source.text.contains(**word));
            wrong.extend(found.map(|word| format!("{}: {word}", source.path)));
        }
    }
    for source in sources("tests", "rs").into_iter().chain(sources("crates", "rs")).chain(sources("src", "rs")) {
        if source.text.contains(concat!("should_", "panic")) {
            wrong.insert(format!("{}: state what is expected instead of a panic", source.path));
        }
    }
    assert_empty(&wrong);
}

#[test]
fn no_module_is_a_drawer_for_everything() {
    let drawers = ["utils", "util", "helpers", "common", "misc"];
    let wrong: BTreeSet<String> = rust_sources()
        .into_iter()
        .chain(sources("runtime/daskade_runtime", "py"))
        .filter(|source| source.path.split(['/', '.']).any(|part| drawers.contains(&part)))
        .map(|source| source.path)
        .collect();
    assert_empty(&wrong);
}

/// The Rust code of the program and its crates, without tests.
fn rust_sources() -> Vec<Source> {
    let mut all = sources("src", "rs");
    all.extend(sources("crates", "rs").into_iter().filter(|source| source.path.contains("/src/")));
    all
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).expect(path)
}

/// All files with an ending below a folder of the repository, sorted; none if there is no such folder.
fn sources(folder: &str, ending: &str) -> Vec<Source> {
    let top = top();
    let mut paths = Vec::new();
    walk(&top.join(folder), &mut paths);
    paths.sort();
    paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .map(|path| Source {
            text: fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display())),
            path: path.strip_prefix(top).unwrap_or(&path).display().to_string(),
        })
        .collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn assert_empty(wrong: &BTreeSet<String>) {
    assert!(wrong.is_empty(), "{}", wrong.iter().cloned().collect::<Vec<_>>().join("\n"));
}
