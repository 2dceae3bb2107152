//! No module of a crate imports, directly or through others, a module that imports it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use regex::Regex;

/// Modules by their path below the crate; the crate itself is the empty one.
type Modules = BTreeMap<String, String>;
/// Names that a module hands on, and the modules that they are from.
type Facades = BTreeMap<(String, String), String>;

/// A `use` statement: whether it is handed on, and its tree.
static STATEMENT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)^\s*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);").unwrap());

#[test]
fn no_module_imports_itself_through_others() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![top.join("src")];
    folders.extend(fs::read_dir(top.join("crates")).unwrap().map(|entry| entry.unwrap().path().join("src")));
    let mut found = Vec::new();
    for folder in folders {
        let modules = modules(&folder);
        let all = circles(&modules, str::to_owned).into_iter().chain(circles(&modules, room));
        found.extend(all.map(|circle| format!("{}: {}", folder.display(), circle.join(", "))));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn circles_are_found_through_groups_facades_and_paths() {
    let of = |modules: &[(&str, &str)]| {
        circles(&modules.iter().map(|(name, text)| ((*name).to_owned(), code(text))).collect(), str::to_owned)
    };
    assert_eq!(
        of(&[("a", "use super::{b::{self, B}, c};"), ("b", "fn f() { crate::a::g() }"), ("c", "")]),
        [["a", "b"]]
    );
    let through_root = [("", "mod a;\npub use a::A;"), ("a", "use crate::b::B;"), ("b", "use super::A;")];
    assert_eq!(of(&through_root), [["a", "b"]]);
    assert!(
        of(&[("a", "use super::b::B;"), ("b", "// use super::a::A;"), ("a::c", "use super::super::b::B;")]).is_empty()
    );
}

/// A folder right below the crate, or a file beside those.
fn room(module: &str) -> String {
    first(module).to_owned()
}

/// Circles among the modules, each counted as what `part` says.
fn circles(modules: &Modules, part: impl Fn(&str) -> String) -> Vec<Vec<String>> {
    let mut facades = Facades::new();
    for (module, text) in modules {
        for path in imports(text).into_iter().filter(|(public, _)| *public).map(|(_, path)| path) {
            let local = if ["crate", "self", "super"].contains(&first(&path)) { path } else { format!("self::{path}") };
            let name = local.rsplit("::").next().unwrap_or_default().to_owned();
            if let Some(from) = resolve(&local, module, modules).filter(|from| from != module) {
                facades.insert((module.clone(), name), from);
            }
        }
    }
    let paths = Regex::new(r"\b(?:crate|super|self)(?:::\w+)+").unwrap();
    let mut graph = DiGraph::<String, ()>::new();
    let mut nodes = BTreeMap::new();
    for part in modules.keys().map(|module| part(module)).collect::<BTreeSet<_>>() {
        nodes.insert(part.clone(), graph.add_node(part));
    }
    for (module, text) in modules {
        let rest = STATEMENT.replace_all(text, "");
        let inline = paths.find_iter(&rest).map(|found| (false, found.as_str().to_owned()));
        for (public, path) in imports(text).into_iter().chain(inline) {
            let Some(mut used) = resolve(&path, module, modules) else { continue };
            if let Some(from) = path.split("::").find_map(|name| facades.get(&(used.clone(), name.to_owned()))) {
                used.clone_from(from);
            }
            // To hand on what is below is no import.
            let hands_on = public && (module.is_empty() || used.starts_with(&format!("{module}::")));
            let (from, to) = (part(module), part(&used));
            if from != to && !hands_on {
                graph.add_edge(nodes[&from], nodes[&to], ());
            }
        }
    }
    let circles = tarjan_scc(&graph).into_iter().filter(|circle| circle.len() > 1);
    let sorted = circles.map(|circle| circle.into_iter().map(|node| graph[node].clone()).collect::<BTreeSet<String>>());
    sorted.map(|circle| circle.into_iter().collect()).collect()
}

/// The source of all modules below a folder, without unit tests and comments.
fn modules(folder: &Path) -> Modules {
    let mut found = Modules::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
                let below = path.strip_prefix(folder).unwrap().with_extension("");
                let mut parts: Vec<&str> = below.iter().map(|part| part.to_str().unwrap()).collect();
                if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(last)) {
                    parts.pop();
                }
                found.insert(parts.join("::"), code(&fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end].lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path that the `use` statements name, and whether it is handed on.
fn imports(text: &str) -> Vec<(bool, String)> {
    let text = code(text);
    let all = STATEMENT.captures_iter(&text).flat_map(|found| {
        let public = found.get(1).is_some();
        expand(found[2].trim()).into_iter().map(move |path| (public, path)).collect::<Vec<_>>()
    });
    all.collect()
}

/// The paths of a use tree.
fn expand(tree: &str) -> Vec<String> {
    let Some((prefix, group)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or(tree).trim().to_owned()];
    };
    let (mut depth, mut member, mut members) = (0_u32, String::new(), Vec::new());
    for letter in group.strip_suffix('}').unwrap_or(group).chars() {
        match letter {
            ',' if depth == 0 => members.push(std::mem::take(&mut member)),
            _ => {
                depth = depth + u32::from(letter == '{') - u32::from(letter == '}');
                member.push(letter);
            }
        }
    }
    members.push(member);
    let prefix = prefix.trim().trim_end_matches("::");
    let paths = members.iter().map(|member| member.trim()).filter(|member| !member.is_empty()).flat_map(expand);
    let whole = |path: String| match (prefix, path.as_str()) {
        ("", _) => path,
        (_, "self") => prefix.to_owned(),
        _ => format!("{prefix}::{path}"),
    };
    paths.map(whole).collect()
}

fn first(path: &str) -> &str {
    path.split("::").next().unwrap_or(path)
}

/// The module of this crate that a path leads to.
fn resolve(path: &str, module: &str, modules: &Modules) -> Option<String> {
    let mut at: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let mut parts = path.split("::").peekable();
    match parts.next()? {
        "crate" => at.clear(),
        "self" => {}
        "super" => drop(at.pop()),
        _ => return None,
    }
    while parts.next_if_eq(&"super").is_some() {
        at.pop();
    }
    let mut found = modules.contains_key(&at.join("::")).then(|| at.join("::"));
    for part in parts {
        at.push(part);
        if !modules.contains_key(&at.join("::")) {
            break;
        }
        found = Some(at.join("::"));
    }
    found
}
