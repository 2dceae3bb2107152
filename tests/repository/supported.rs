//! What the project says that it works with is what its tests run on.

use std::fs;
use std::path::{Path, PathBuf};

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Minor and patch, of Kubernetes 1.
type Version = (u32, u32);

/// Versions of Kubernetes of which tests/kube builds clusters: the default one, and those beside it. `./test full` runs on the
/// lowest and the highest of these.
fn default_and_others() -> (Version, Vec<Version>) {
    let of = |path: &str| {
        let text = read(path);
        let found = text.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v1."));
        let (minor, patch) = found.and_then(|rest| rest.split_once('.')).unwrap_or_else(|| panic!("{path} names none"));
        (minor.parse().unwrap(), patch.parse().unwrap())
    };
    let folder = in_repository("tests/kube/versions");
    let mut others = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(minor) = name.strip_suffix(".mod") {
            let version = of(&format!("tests/kube/versions/{name}"));
            assert_eq!(minor, format!("1.{}", version.0), "{name} is called by another version than it has");
            others.push(version);
        }
    }
    others.sort_unstable();
    (of("tests/kube/go.mod"), others)
}

#[test]
fn the_range_of_kubernetes_is_that_of_the_tests() {
    let (default, others) = default_and_others();
    let (oldest, newest) = (others[0], others[others.len() - 1]);
    assert!(oldest < default && default < newest, "the default version {default:?} is not between {others:?}");
    let range = format!("Kubernetes 1.{} to 1.{}", oldest.0, newest.0);
    for page in ["README.md", "docs/install.md"] {
        assert!(read(page).contains(&range), "{page} does not say {range}");
    }
    for chart in ["charts/daskade/Chart.yaml", "charts/daskade-crds/Chart.yaml"] {
        let expected = format!("kubeVersion: \">=1.{}.0-0\"", oldest.0);
        assert!(read(chart).lines().any(|line| line == expected), "{chart} does not say {expected}");
    }
    let row = row_of("Kubernetes");
    assert!(row.contains(&format!("| 1.{} to 1.{} |", oldest.0, newest.0)), "{row}");
    for (minor, patch) in [oldest, default, newest] {
        assert!(row.contains(&format!("1.{minor}.{patch}")), "1.{minor}.{patch} is tested and not named: {row}");
    }
}

#[test]
fn the_range_of_distributed_is_that_of_the_runtime() {
    let versions = read("runtime/daskade_runtime/versions.py");
    let bound = |name: &str| {
        let found = versions.lines().find_map(|line| line.strip_prefix(&format!("{name} = ("))).unwrap();
        found.trim_end_matches(')').split(", ").map(str::to_owned).collect::<Vec<_>>()
    };
    let (oldest, newest) = (bound("OLDEST"), bound("NEWEST"));
    let row = row_of("distributed");
    // Every release of the newest month is.
    let range = format!("| {} to {} |", oldest.join("."), newest[..2].join("."));
    assert!(row.contains(&range), "{row} does not say {range}");
    let short = format!("`distributed` {} to {} is supported", oldest[..2].join("."), newest[..2].join("."));
    assert!(read("README.md").contains(&short), "README.md does not say {short}");
}

/// The row of docs/releases.md that begins with a word.
fn row_of(what: &str) -> String {
    let page = read("docs/releases.md");
    let found = page.lines().find(|line| line.starts_with(&format!("| {what} |")));
    found.unwrap_or_else(|| panic!("docs/releases.md has no row for {what}")).to_owned()
}
