//! Rules about the source that the compiler does not know: who may import whom, sizes, words that do not belong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of this crate each may use. A new edge is a design decision, not a fix.
const EDGES: &[(&str, &[&str])] = &[
    ("names", &[]),
    ("problem", &["names"]),
    ("keys", &[]),
    ("limits", &[]),
    ("repeats", &["limits"]),
    ("api", &["names", "problem"]),
    ("crd", &["api", "manifest"]),
    ("manifest", &["names", "problem", "api"]),
    ("graph", &["names"]),
    ("cluster", &["names", "problem", "api"]),
    ("pipeline", &["names", "problem", "api", "graph", "cluster", "limits", "keys"]),
    ("trigger", &["names", "problem", "api", "manifest", "cluster", "pipeline"]),
    ("dask", &["limits"]),
    ("tls", &[]),
    ("store", &["keys", "names", "limits"]),
    ("local", &["names", "run_model"]),
    ("run", &["names", "problem", "api", "graph", "limits", "repeats", "pipeline", "dask", "store", "run_model"]),
    ("run_model", &["problem", "api", "graph", "pipeline"]),
    ("runtime_bundle", &["run_model"]),
    ("runs", &["names", "problem", "api", "cluster", "manifest", "pipeline", "run_model"]),
    ("telemetry", &[]),
    (
        "controller",
        &[
            "names",
            "problem",
            "api",
            "cluster",
            "limits",
            "repeats",
            "pipeline",
            "trigger",
            "dask",
            "run",
            "run_model",
            "runs",
            "tls",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "names",
            "problem",
            "api",
            "crd",
            "manifest",
            "graph",
            "cluster",
            "limits",
            "pipeline",
            "dask",
            "trigger",
            "store",
            "local",
            "run",
            "run_model",
            "telemetry",
            "controller",
            "runtime_bundle",
        ],
    ),
    ("main", &["cli", "telemetry"]),
];

/// What a module must not name, because it decides without a clock or the outside world, or knows no Kubernetes.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("graph", &["tokio::", "serde::", "serde_json::", "std::fs", "std::net", "std::time", "Instant::now", "rand::"]),
    ("cluster", &["kube::Client", "tokio::", "object_store::", "std::fs", "std::net", "SystemTime::now"]),
    ("pipeline", &["kube::Client", "tokio::", "object_store::", "std::fs", "std::net", "SystemTime::now"]),
    ("trigger", &["kube::", "tokio::", "object_store::", "std::fs", "std::net", "SystemTime::now", "Timestamp::now"]),
    ("runs", &["kube::Client", "tokio::", "std::fs", "std::net", "SystemTime::now", "Timestamp::now"]),
    ("dask", &["kube::", "k8s_openapi::"]),
    ("names", &["tokio::", "std::fs"]),
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

    /// Top module of the crate that the file belongs to.
    fn module(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
    }
}

#[test]
fn modules_import_only_what_the_architecture_allows() {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut wrong = BTreeSet::new();
    for source in rust_sources() {
        let module = source.module();
        if module == "lib" {
            continue;
        }
        let Some(edges) = allowed.get(module) else {
            wrong.insert(format!("{}: module {module} has no row in this test", source.path));
            continue;
        };
        for used in used_modules(&source.code()) {
            let top = used.split("::").next().unwrap_or(&used);
            let fits = edges.iter().any(|edge| used == *edge || used.starts_with(&format!("{edge}::")));
            if top != module && allowed.contains_key(top) && !fits {
                wrong.insert(format!("{}: {module} must not use {used}", source.path));
            }
        }
    }
    assert_empty(&wrong);
}

#[test]
fn pure_modules_stay_off_clocks_networks_and_kubernetes() {
    let mut wrong = BTreeSet::new();
    for source in rust_sources() {
        let code = source.code();
        for (module, words) in OUTSIDE {
            if source.module() == *module {
                let found = words.iter().filter(|word| code.contains(**word));
                wrong.extend(found.map(|word| format!("{}: {module} must not use {word}", source.path)));
            }
        }
        if !["main", "cli"].contains(&source.module()) {
            let exits = ["anyhow::", "process::exit", "ExitCode"];
            let found = exits.iter().filter(|word| code.contains(**word));
            wrong.extend(found.map(|word| format!("{}: only main and cli use {word}", source.path)));
        }
    }
    assert_empty(&wrong);
}

/// Files that look at the clock of the machine, and why no decision about an object hangs on it.
const LOCAL_TIME: &[(&str, &str)] = &[
    ("src/controller/clock.rs", "it compares that clock with the API server's"),
    ("src/controller/lead.rs", "the right to write ends if it jumps, and never begins"),
    ("src/controller/own.rs", "a line in the log, about a time of the same machine"),
    ("src/run_model/moment.rs", "runs of the command line, which have no other"),
];

#[test]
fn the_operator_has_the_time_from_one_clock() {
    let mut wrong = BTreeSet::new();
    for source in rust_sources() {
        let decides = ["controller", "run", "runs", "cluster", "trigger"].contains(&source.module());
        if !decides || LOCAL_TIME.iter().any(|(path, _)| *path == source.path) {
            continue;
        }
        let code = source.code();
        let found = ["SystemTime::now", "Timestamp::now", "Zoned::now", "Utc::now"].into_iter();
        let found = found.filter(|word| code.contains(*word));
        wrong.extend(found.map(|word| format!("{}: {word}; ask controller::clock", source.path)));
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
    let texts = ["src", "tests", "runtime"].into_iter().flat_map(|folder| sources(folder, "rs"));
    let generated = ["crds", "charts"].into_iter().flat_map(|folder| sources(folder, "yaml"));
    let pages = sources("docs", "md").into_iter().chain(["CONTRIBUTING.md", "README.md"].map(|path| Source {
        text: fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path),
        path: path.to_owned(),
    }));
    let mut wrong = BTreeSet::new();
    let mut seen = 0;
    for source in texts.chain(generated).chain(pages) {
        for rest in source.text.split("cargo test --test ").skip(1) {
            let name: String =
                rest.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect();
            seen += 1;
            if !name.is_empty()
                && !Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(&name).join("main.rs").exists()
            {
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
    }
    for (folder, ending) in [
        ("src", "rs"),
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
    for source in sources("tests", "rs").into_iter().chain(rust_sources()) {
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

/// Paths below the crate that a text names: `graph`, `store::layout`, and the members of `crate::{a, b::c}`.
fn used_modules(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for marker in ["crate::", "daskade::"] {
        for (at, _) in code.match_indices(marker) {
            if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':') {
                continue;
            }
            let rest = &code[at + marker.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                found.extend(members(group).into_iter().map(|member| path_of(&member)));
            } else {
                found.insert(path_of(rest));
            }
        }
    }
    found.remove("");
    found
}

/// The top-level members of a brace group, up to its end.
fn members(group: &str) -> Vec<String> {
    let (mut depth, mut member, mut found) = (0_u32, String::new(), Vec::new());
    for letter in group.chars() {
        match letter {
            '}' if depth == 0 => break,
            ',' if depth == 0 => found.push(std::mem::take(&mut member)),
            _ => {
                depth = match letter {
                    '{' => depth + 1,
                    '}' => depth - 1,
                    _ => depth,
                };
                member.push(letter);
            }
        }
    }
    found.push(member);
    found
}

/// The first two parts of a path, as far as they are module names.
fn path_of(text: &str) -> String {
    let path: String = text.trim_start().chars().take_while(|l| l.is_alphanumeric() || "_:".contains(*l)).collect();
    let parts = path.split("::").take(2).filter(|part| part.starts_with(|l: char| l.is_ascii_lowercase()));
    parts.collect::<Vec<_>>().join("::")
}

fn rust_sources() -> Vec<Source> {
    sources("src", "rs")
}

/// All files with an ending below a folder of the repository, sorted; none if there is no such folder.
fn sources(folder: &str, ending: &str) -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
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

#[test]
fn the_reader_of_imports_sees_groups_and_paths() {
    let code = "use crate::{api::step::Step, graph, store::{layout, journal}};\nlet x = crate::names::Name::new();";
    let found: Vec<String> = used_modules(code).into_iter().collect();
    assert_eq!(found, ["api::step", "graph", "names", "store"]);
    assert!(used_modules("use other_crate::api; // nothing of ours").is_empty());
}
