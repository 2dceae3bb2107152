//! Files that are made from the types are in step with them. `DASKADE_UPDATE=1 cargo test --test repository generated` writes them.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use decide::pipelinerun::release::{PATIENCE, PATIENCE_DELETED};
use manifest::crd;
use serde_json::Value;

fn in_repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn check_file(path: &str, expected: &str) {
    let full = in_repository(path);
    if env::var_os("DASKADE_UPDATE").is_some() {
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        fs::write(&full, expected).unwrap();
    }
    let found = fs::read_to_string(&full).unwrap_or_default();
    assert!(found == expected, "{path} is out of step; run DASKADE_UPDATE=1 cargo test --test repository generated");
}

#[test]
fn the_crds_in_the_repository_are_those_of_the_types() {
    let files = crd::files();
    assert_eq!(files.len(), 3);
    for (name, content) in &files {
        check_file(&format!("crds/{name}"), content);
    }
    let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    for entry in fs::read_dir(in_repository("crds")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(name.as_str()), "crds/{name} belongs to no type");
    }
}

/// Helm keeps them when the release is uninstalled, and with them all objects.
#[test]
fn the_chart_has_the_crds_as_templates_that_are_kept() {
    let files = crd::files();
    for (name, content) in &files {
        assert!(!content.contains("{{"), "{name} would be read as a template");
        let annotations = "\nmetadata:\n  annotations:\n    helm.sh/resource-policy: keep\n";
        let template = content.replacen("\nmetadata:\n", annotations, 1);
        assert_ne!(&template, content);
        check_file(&format!("charts/daskade-crds/templates/{name}"), &template);
    }
    assert_eq!(fs::read_dir(in_repository("charts/daskade-crds/templates")).unwrap().count(), files.len());
}

#[test]
fn the_reference_is_that_of_the_types() {
    check_file("docs/reference.md", &crd::reference());
    check_file("docs/reasons.md", &crd::reasons_page());
}

#[test]
fn schedulers_are_asked_to_release_a_run_for_as_long_as_the_page_says() {
    let page = fs::read_to_string(in_repository("docs/runs.md")).unwrap();
    let [ended, deleted] = [PATIENCE, PATIENCE_DELETED].map(|patience| patience.as_secs() / 60);
    let words = format!("within {ended} minutes ({deleted} minutes after the run was deleted)");
    assert!(page.contains(&words), "{words}");
}

/// The numbers of the page are those of the program.
#[test]
#[expect(clippy::too_many_lines, reason = "one table of examples")]
fn limits_are_as_the_page_says() {
    let page = fs::read_to_string(in_repository("docs/limits.md")).unwrap();
    let size = |bytes: usize| match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ => format!("{} KiB", bytes >> 10),
    };
    let number = |number: usize| {
        let digits = number.to_string();
        let mut grouped = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                grouped.push(' ');
            }
            grouped.push(digit);
        }
        grouped
    };
    for (what, budget) in [
        ("the first one on a connection", limits::INTRODUCTION),
        ("an answer without a row below", limits::ANSWER),
        ("the state of a cluster", limits::CLUSTER),
        ("names of objects", limits::NAMES),
        ("log objects, for", limits::LOGS),
        ("the snapshot of a run", limits::SNAPSHOT_OF_OPERATOR),
        ("the same, read by a command", limits::SNAPSHOT),
        ("a page of a snapshot", limits::PAGE),
        ("identity and workers", limits::DASK),
        ("events of a run", limits::Budget { values: limits::EVENTS_UNPACKED, ..limits::EVENTS }),
    ] {
        let row = page.lines().find(|line| line.starts_with(&format!("| {what}"))).unwrap_or_else(|| panic!("{what}"));
        let cells = format!("| {} | {}", size(budget.bytes), number(budget.values));
        assert!(row.contains(&cells), "{cells}: {row}");
    }
    for (what, limit) in [
        ("the closing record", number(limits::CLOSING_VALUES)),
        ("messages of more than", size(limits::FREE_BYTES)),
        ("messages of more than", size(limits::PEER_BYTES)),
        ("messages of more than", size(limits::PROCESS_BYTES)),
        ("results of one run", size(limits::RESULTS_KEPT)),
        ("results that were fetched", size(limits::RESULTS_LENT)),
        ("names and versions of objects", size(limits::NAMED)),
        ("pages of one snapshot", number(limits::PAGES)),
        ("one result", size(limits::RESULT)),
        ("results that are unpacked", size(limits::RESULTS_UNPACKED)),
        ("values of results that an", number(limits::GATHERED_VALUES)),
        ("bytes of results that an", size(limits::GATHERED_BYTES)),
        ("the result of a step", size(limits::RESULT_JSON)),
        ("nesting of the result", number(limits::RESULT_DEPTH)),
        ("elements of an output", number(limits::MAPPED_ELEMENTS)),
        ("results that a run ends with", size(limits::CLOSING_RESULTS)),
        ("results that a run ends with", number(limits::GATHERED_VALUES)),
        ("results of earlier runs", size(limits::EARLIER_RESULTS)),
        ("results of earlier runs", size(limits::EARLIER_RESULTS_OF_COMMAND)),
        ("a segment of the journal", size(limits::SEGMENT)),
        ("a segment of the journal", number(limits::SEGMENT_RECORDS)),
        ("the header of a segment", size(limits::SEGMENT_HEADER)),
        ("nesting of a field", number(limits::RECORD_DEPTH)),
        ("values of a `final` record", number(limits::FINAL_VALUES)),
        ("text of the failures", size(limits::FAILURES)),
        ("text of the failures", format!("{} bytes", limits::FAILURE_WORDS)),
        ("text of one failure", size(limits::FAILURE_MESSAGE)),
        ("text of one failure", size(limits::FAILURE_TRACEBACK)),
        ("text of one failure", size(limits::FAILURE_TAIL)),
        ("why tasks of one step wait", size(limits::BLOCKED_MESSAGE)),
        ("the specification of an earlier run", size(limits::EARLIER_SPEC)),
        ("the specification of an earlier run", number(limits::EARLIER_SPEC_VALUES)),
        ("names of objects of one run that", size(limits::USERS_BYTES)),
        ("workers of one cluster", number(limits::WORKERS)),
        ("kinds of demand", number(limits::ASKS)),
        ("log objects of one", size(limits::LOGS_IN_ALL)),
        ("one object that is kept", size(limits::OBJECT_KEPT)),
        ("all objects that are kept", size(limits::OBJECTS_KEPT)),
        ("a page of a list", size(limits::LIST_PAGE)),
        ("a page of a list", format!("{} objects", limits::LIST_FIRST)),
        ("a page of a list", format!("{} at most", limits::LIST_MOST)),
        ("pages, and long lines", size(limits::LISTED_AT_ONCE)),
        ("one object that is read", size(limits::OBJECT)),
        ("values in the spec of one object", number(limits::OBJECT_VALUES)),
        ("large objects that are being", size(limits::TURNS_AT_ONCE)),
        ("specs of runs that have begun", size(limits::REVISIONS_KEPT)),
    ] {
        let row = page.lines().find(|line| line.starts_with(&format!("| {what}"))).unwrap_or_else(|| panic!("{what}"));
        assert!(row.contains(&limit), "{limit}: {row}");
    }
}

/// How often the same error may come.
#[test]
fn repetitions_are_as_the_page_says() {
    let page = fs::read_to_string(in_repository("docs/limits.md")).unwrap();
    for (what, limit) in [
        ("a mistake of the runtime", limits::INTERNAL),
        ("another refusal of the run", limits::REFUSED),
        ("answers that do not follow", limits::REFUSED),
        ("a run that the runtime stops", limits::STOPPED),
        ("a run that the scheduler does not have", limits::REOPENED),
        ("a write to the API server", limits::CONFLICT),
    ] {
        let row = page.lines().find(|line| line.starts_with(&format!("| {what}"))).unwrap_or_else(|| panic!("{what}"));
        let cells = format!("| {} | {} min |", limit.times, limit.span.as_secs() / 60);
        assert!(row.contains(&cells), "{cells}: {row}");
    }
    let pause = format!("{} s at most", limits::REFUSED_PAUSE.as_secs());
    let quiet = limits::REOPENED.quiet.map(|quiet| format!("within {} min of the one before", quiet.as_secs() / 60));
    for text in [Some(pause), quiet] {
        assert!(text.as_deref().is_some_and(|text| page.contains(text)), "{text:?}");
    }
}

/// The runtime enforces what the readers of both sides take.
#[test]
fn limits_of_the_runtime_are_those_of_the_program() {
    let text = fs::read_to_string(in_repository("runtime/daskade_runtime/limits.py")).unwrap();
    let line = regex::Regex::new(r"(?m)^([A-Z_]+) = ([0-9_]+)(?: << ([0-9]+))?$").unwrap();
    let number = |text: &str| text.replace('_', "").parse::<usize>().unwrap();
    let theirs: Vec<(String, usize)> = line
        .captures_iter(&text)
        .map(|found| (found[1].to_owned(), number(&found[2]) << found.get(3).map_or(0, |by| number(by.as_str()))))
        .collect();
    let ours = [
        ("RESULT_JSON", limits::RESULT_JSON),
        ("RESULT_DEPTH", limits::RESULT_DEPTH),
        ("MAPPED_ELEMENTS", limits::MAPPED_ELEMENTS),
        ("RESULTS_KEPT", limits::RESULTS_KEPT),
        ("EARLIER_RESULTS", limits::EARLIER_RESULTS),
        ("SEGMENT", limits::SEGMENT),
        ("SEGMENT_HEADER", limits::SEGMENT_HEADER),
        ("SEGMENT_RECORDS", limits::SEGMENT_RECORDS),
        ("RECORD_DEPTH", limits::RECORD_DEPTH),
        ("FINAL_VALUES", limits::FINAL_VALUES),
        ("CLOSING_RESULTS", limits::CLOSING_RESULTS),
    ];
    assert_eq!(theirs, ours.map(|(name, value)| (name.to_owned(), value)));
    assert_eq!(theirs.len(), text.lines().filter(|line| line.contains(" = ")).count(), "every number is compared");
}

/// The threat model says of each threat by which test it is shown; the ranges of docs/releases.md are those of the tests.
#[test]
fn what_the_docs_say_is_tested_is_there() {
    let read = |path: &str| fs::read_to_string(in_repository(path)).unwrap();
    let test = regex::Regex::new(r"`((?:runtime/|crates/\w+/)?tests/[\w/]+\.(?:rs|py))`").unwrap();
    let page = read("docs/security.md");
    let (_, threats) = page.split_once("\n## Threats\n").unwrap();
    let rows: Vec<&str> =
        threats.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows.len() > 15);
    for row in &rows[1..] {
        let tests: Vec<String> = test.captures_iter(row).map(|found| found[1].to_owned()).collect();
        assert!(!tests.is_empty(), "no test shows it: {row}");
        for path in tests {
            assert!(in_repository(&path).is_file(), "docs/security.md names {path}");
        }
    }
    let releases = read("docs/releases.md");
    let versions = read("runtime/daskade_runtime/versions.py");
    let bound = regex::Regex::new(r"(?m)^(OLDEST|NEWEST) = \((\d+), (\d+), (\d+)\)").unwrap();
    for found in bound.captures_iter(&versions) {
        let text = if &found[1] == "OLDEST" {
            format!("{}.{}.{}", &found[2], &found[3], &found[4])
        } else {
            format!("to {}.{} |", &found[2], &found[3])
        };
        assert!(releases.contains(&text), "docs/releases.md does not say {text}");
    }
    let tool = |path: &str, module: &str| {
        let pattern = format!(r"{module} v(\d+\.\d+\.\d+)");
        regex::Regex::new(&pattern).unwrap().captures(&read(path)).unwrap()[1].to_owned()
    };
    for (path, module) in [("tests/kube/go.mod", "k8s.io/kubernetes"), ("tests/chart/go.mod", "helm.sh/helm/v3")] {
        let version = tool(path, module);
        assert!(releases.contains(&version), "docs/releases.md does not name {module} {version}");
    }
    let least =
        regex::Regex::new(r">=(\d+\.\d+)").unwrap().captures(&read("charts/daskade/Chart.yaml")).unwrap()[1].to_owned();
    assert!(releases.contains(&format!("| Kubernetes | {least} ")), "docs/releases.md does not begin with {least}");
}

#[test]
fn every_crd_fits_kubectl_apply() {
    for document in crd::documents() {
        let size = document.to_string().len();
        assert!(size <= crd::CRD_BYTES_MAX, "{} has {size} bytes", document["metadata"]["name"]);
    }
}

#[test]
fn the_printed_crds_are_those_of_the_repository() {
    let printed = crd::all_yaml();
    for (name, content) in crd::files() {
        let body = content.split_once('\n').unwrap().1;
        assert!(printed.contains(body), "{name}");
    }
    let list: Value = serde_json::from_str(&crd::all_json()).unwrap();
    assert_eq!(list["items"].as_array().unwrap(), &crd::documents());
    assert_eq!(crd::all().len(), 3);
}

/// What the API server asks of a structural schema, and what would make it refuse or warn.
#[test]
fn every_crd_is_structural() {
    for document in crd::documents() {
        let version = &document["spec"]["versions"][0];
        assert_eq!(document["spec"]["scope"], "Namespaced");
        assert!(version["subresources"]["status"].is_object());
        let kind = document["spec"]["names"]["kind"].as_str().unwrap();
        check_structural(&version["schema"]["openAPIV3Schema"], kind);
        for column in version["additionalPrinterColumns"].as_array().unwrap() {
            check_column(&version["schema"]["openAPIV3Schema"], column["jsonPath"].as_str().unwrap());
        }
    }
}

fn check_structural(schema: &Value, at: &str) {
    let object = schema.as_object().unwrap_or_else(|| panic!("{at} has no schema"));
    const KNOWN: [&str; 24] = [
        "additionalProperties",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-map-type",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ];
    for key in object.keys() {
        assert!(KNOWN.contains(&key.as_str()), "{at}: {key}");
    }
    let format = object.get("format").and_then(Value::as_str);
    assert!(
        format.is_none_or(|format| ["int32", "int64", "double", "date-time"].contains(&format)),
        "{at}: {format:?}"
    );
    let typed = object.contains_key("type");
    let free = object.contains_key("x-kubernetes-int-or-string")
        || object.contains_key("x-kubernetes-preserve-unknown-fields");
    if at == "PipelineRun.spec.params" {
        // The one mapping of which nothing may be known, so that a rule can compare it.
        assert!(typed && free && object["type"] == "object" && !object.contains_key("additionalProperties"));
    } else {
        assert!(typed != free, "{at}: a schema has a type, or is a free value");
    }
    assert!(
        !(object.contains_key("properties") && object.contains_key("additionalProperties")),
        "{at}: both kinds of mapping"
    );
    if let Some(pattern) = object.get("pattern").and_then(Value::as_str) {
        regex::Regex::new(pattern).unwrap_or_else(|error| panic!("{at}: {error}"));
    }
    for required in object.get("required").and_then(Value::as_array).into_iter().flatten() {
        assert!(
            schema["properties"][required.as_str().unwrap()].is_object(),
            "{at}: {required} is required and unknown"
        );
    }
    if object.get("type").is_some_and(|kind| kind == "array") {
        check_list(schema, at);
    }
    for (name, field) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
        check_structural(field, &format!("{at}.{name}"));
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(inner) = object.get(key) {
            check_structural(inner, &format!("{at}{suffix}"));
        }
    }
}

fn check_list(schema: &Value, at: &str) {
    assert!(schema["items"].is_object(), "{at}: a list without items");
    match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => {
            for key in schema["x-kubernetes-list-map-keys"].as_array().unwrap() {
                let required = schema["items"]["required"].as_array().unwrap();
                assert!(required.contains(key), "{at}: the key {key} of a list must be required");
            }
        }
        Some("set") => assert!(schema["items"]["type"] == "string", "{at}: a set of what is not a scalar"),
        _ => {}
    }
}

/// A printer column names a field that exists.
fn check_column(schema: &Value, path: &str) {
    let mut at = schema;
    for part in path.trim_start_matches('.').split('.') {
        let name = part.split('[').next().unwrap();
        if at["type"] == "object" && name == "metadata" || part.starts_with("type==") {
            return;
        }
        at = &at["properties"][name];
        assert!(at.is_object(), "{path}");
        if part.contains('[') {
            return;
        }
    }
}

/// Lists and texts inside the steps of a pipeline are bounded, or the cost of a CEL rule over them has no bound.
#[test]
fn what_rules_look_at_is_bounded() {
    fn walk(schema: &Value, at: &str, repeats: u64, total: &mut u64) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            // A rule of these (presence, comparison of scalars) costs a few dozen units.
            let text = rule["rule"].as_str().unwrap();
            assert!(!text.contains(".exists(") && !text.contains(".all("), "{at}: {text}");
            *total += repeats * 100;
            assert!(repeats * 100 <= 10_000_000, "{at}: {text}");
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            walk(field, &format!("{at}.{name}"), repeats, total);
        }
        for (key, bound) in [("items", "maxItems"), ("additionalProperties", "maxProperties")] {
            if schema[key].is_object() {
                let many = schema[bound].as_u64().unwrap_or(u64::from(u32::MAX) >> 12);
                walk(&schema[key], &format!("{at}[]"), repeats.saturating_mul(many), total);
            }
        }
    }
    for document in crd::documents() {
        let mut total = 0;
        walk(&document["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "", 1, &mut total);
        assert!(total <= 100_000_000, "{} costs {total}", document["metadata"]["name"]);
    }
}
