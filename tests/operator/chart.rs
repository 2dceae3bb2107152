//! Alerts and dashboard of the chart: they ask for metrics that the operator has. What the chart makes of values is tested in
//! tests/chart.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use regex::Regex;
use telemetry::metrics::{Answer, Controller, Metrics, Outcome, Verb};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// Names of all series, with one of every kind that has labels.
fn names() -> BTreeSet<String> {
    let metrics = Metrics::default();
    metrics.observe_reconcile(Controller::Pipeline, Outcome::Settled, Duration::from_secs(1));
    metrics.backlog(Controller::Pipeline).set(1);
    metrics.set_clusters(1, 1);
    metrics.set_workers(1, 1);
    metrics.set_schedulers(1, 1);
    metrics.count_write(Verb::Create, "pods", Answer::Done);
    let text = metrics.encode().expect("text");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let mut names: BTreeSet<String> =
        samples.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned()).collect();
    // Told only inside a control group.
    names.insert("daskade_memory_limit_bytes".to_owned());
    names
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let (names, docs) = (names(), read("docs/operations.md"));
    let metric = Regex::new(r#"\b((?:daskade|process)_[a-z_]+)(?:\{(\w+)!?=\\?"(\w+)\\?"\})?"#).expect("a pattern");
    let mut seen = BTreeSet::new();
    for file in ["charts/daskade/files/alerts.yaml", "charts/daskade/files/dashboard.json"] {
        for found in metric.captures_iter(&read(file)) {
            let name = &found[1];
            assert!(names.contains(name), "{file}: {name} does not exist; there are {names:?}");
            let base = ["_bucket", "_count"].iter().fold(name, |name, end| name.strip_suffix(end).unwrap_or(name));
            let row = docs.lines().find(|line| line.starts_with("| `") && line.contains(&format!("`{base}`")));
            let row = row.unwrap_or_else(|| panic!("docs/operations.md does not tell of {base}"));
            if let (Some(label), Some(value)) = (found.get(2), found.get(3)) {
                assert!(row.contains(&format!("`{}`", label.as_str())), "{base} has no label {}", label.as_str());
                assert!(row.contains(value.as_str()), "{base} has no {}", value.as_str());
            }
            seen.insert(base.to_owned());
        }
    }
    // Every metric that docs/operations.md tells of is watched by somebody.
    let told = Regex::new(r"`((?:daskade|process)_[a-z_]+)`").expect("a pattern");
    let rows = docs.lines().filter(|line| line.starts_with("| `daskade_") || line.starts_with("| `process_"));
    let told: BTreeSet<String> =
        rows.flat_map(|row| told.captures_iter(row).map(|found| found[1].to_owned()).collect::<Vec<_>>()).collect();
    assert_eq!(seen, told);
}
