//! `docs/reference.md`: every field of every kind, from the same texts that `kubectl explain` shows.

use std::fmt::Write;

use serde_json::Value;

use super::documents;
use api::reason::{Reason, ReasonClass};

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

const REASONS_HEAD: &str = "# Reasons\n\n<!-- Generated from crates/api/src/reason.rs; `DASKADE_UPDATE=1 cargo test --test repository generated` writes it again. -->\n\n\
    Every problem and every condition has a reason: one word that stays the same between releases, for scripts and searches.\n";

/// `docs/reasons.md`: every stable reason and what it means.
pub fn reasons_page() -> String {
    let mut out = REASONS_HEAD.to_owned();
    for (class, title, what) in CLASSES {
        let _ = write!(out, "\n## {title}\n\n{what}\n\n| reason | meaning |\n|---|---|\n");
        for reason in Reason::ALL.iter().filter(|reason| reason.class() == *class) {
            let (name, anchor) = (reason.as_str(), reason.link());
            let anchor = anchor.rsplit('#').next().unwrap_or_default();
            let _ = writeln!(out, "| <a id=\"{anchor}\"></a>`{name}` | {} |", reason.doc());
        }
    }
    out
}

/// The sections of the page.
const CLASSES: &[(ReasonClass, &str, &str)] = &[
    (
        ReasonClass::Input,
        "Mistakes in manifests, parameters and requests",
        "Nothing was started. Correct the field that the message names.",
    ),
    (ReasonClass::Usual, "Normal states", "Nothing to do."),
    (
        ReasonClass::Waits,
        "Waiting",
        "The operator retries for as long as it takes. It goes on by itself once the cause is gone. The message says what it waits for.",
    ),
    (
        ReasonClass::Stalled,
        "Stalled",
        "The operator retries for as long as it takes, but somebody has to change something first: the condition `Stalled` is True.",
    ),
    (
        ReasonClass::Repeats,
        "Errors that are retried a limited number of times",
        "Retries come at growing intervals. A run fails if the same error repeats and no step ends in between; see \
         [limits](limits.md#the-same-error-again). A command ends with the error.",
    ),
    (ReasonClass::Reopens, "Lost connections", "The run is opened again at once, a limited number of times."),
    (
        ReasonClass::Final,
        "Ends of runs",
        "The run has failed and is not tried again. Correct the cause, then use `daskade retry` or start another run.",
    ),
    (ReasonClass::Event, "Events", "Only in Events of a Pipeline."),
];

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
