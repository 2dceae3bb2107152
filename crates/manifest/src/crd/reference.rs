//! `docs/reference.md`: every field of every kind, from the same texts that `kubectl explain` shows.

use std::fmt::Write;

use serde_json::Value;

use super::documents;
use api::condition::{CONDITION_REASONS, PROBLEM_REASONS, Reason};

const HEAD: &str = "# Reference\n\n<!-- Generated from crates/api; `DASKADE_UPDATE=1 cargo test --test repository generated` writes it again. -->\n\n\
    Every field of every kind of `daskade.dev/v1alpha1`. `*` marks fields that must be given; a field that a local run\n\
    cannot carry out is refused there by name, never ignored.\n";

/// The whole page.
pub fn reference() -> String {
    let mut out = HEAD.to_owned();
    for document in documents() {
        let names = &document["spec"]["names"];
        let schema = &document["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let short = names["shortNames"][0].as_str().unwrap_or_default();
        let _ =
            write!(out, "\n## {} (`{short}`)\n\n{}\n", text(&names["kind"]), one_line(&schema["properties"]["spec"]));
        for part in ["spec", "status"] {
            let mut rows = Vec::new();
            fields(&schema["properties"][part], part, &mut rows);
            let _ = write!(out, "\n### {part}\n\n| field | type | meaning |\n|---|---|---|\n");
            rows.iter().for_each(|row| out.push_str(row));
        }
    }
    out
}

const REASONS_HEAD: &str = "# Reasons\n\n<!-- Generated from crates/api/src/condition.rs; `DASKADE_UPDATE=1 cargo test --test repository generated` writes it again. -->\n\n\
    Every problem and every condition has a reason: one word that stays the same between releases, for scripts and searches.\n";

/// `docs/reasons.md`: every stable reason and what it means.
pub fn reasons_page() -> String {
    let mut out = REASONS_HEAD.to_owned();
    reasons(&mut out, "Problems in manifests, parameters and requests", PROBLEM_REASONS);
    reasons(&mut out, "Conditions", CONDITION_REASONS);
    out
}

fn reasons(out: &mut String, title: &str, list: &[Reason]) {
    let _ = write!(out, "\n## {title}\n\n| reason | meaning |\n|---|---|\n");
    for (name, meaning) in list {
        let _ = writeln!(out, "| `{name}` | {meaning} |");
    }
}

fn fields(schema: &Value, at: &str, rows: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let required =
            schema["required"].as_array().is_some_and(|list| list.iter().any(|entry| entry == name.as_str()));
        let star = if required { "*" } else { "" };
        let path = format!("{at}.{name}");
        rows.push(format!("| `{path}`{star} | {} | {} |\n", type_name(field), one_line(field)));
        // A cluster inside a pipeline, a pipeline inside a run, Kubernetes' own types: described once, elsewhere.
        if matches!(name.as_str(), "template" | "pipelineSpec" | "affinity" | "tolerations" | "conditions")
            || path == "spec.finally"
        {
            continue;
        }
        let (inner, suffix) = if field["items"].is_object() { (&field["items"], "[]") } else { (field, "") };
        fields(inner, &format!("{path}{suffix}"), rows);
    }
}

fn type_name(field: &Value) -> String {
    if let Some(choices) = field["enum"].as_array() {
        return choices
            .iter()
            .filter_map(Value::as_str)
            .map(|choice| format!("`{choice}`"))
            .collect::<Vec<_>>()
            .join(" ");
    }
    match field["type"].as_str() {
        Some("array") => format!("list of {}", type_name(&field["items"])),
        Some("object") if field["additionalProperties"].is_object() => {
            format!("mapping to {}", type_name(&field["additionalProperties"]))
        }
        Some("object") => "mapping".to_owned(),
        Some("string") => "text".to_owned(),
        Some(other) => other.to_owned(),
        None if field["x-kubernetes-int-or-string"] == true => "quantity".to_owned(),
        None => "any".to_owned(),
    }
}

fn one_line(field: &Value) -> String {
    let text = field["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
