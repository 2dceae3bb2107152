//! The CustomResourceDefinitions as text: what `daskade crd` prints and `crds/` holds.

mod reference;

use serde_json::{Value, json};

pub use self::reference::{reasons_page, reference};
use crate::to_yaml;
pub use api::crd::{CRD_BYTES_MAX, all, documents};

/// All CRDs, one YAML document each.
pub fn all_yaml() -> String {
    documents().iter().map(|document| format!("---\n{}", to_yaml(document))).collect()
}

/// All CRDs as one JSON list, which `kubectl apply -f` takes too.
pub fn all_json() -> String {
    format!("{:#}\n", json!({ "apiVersion": "v1", "kind": "List", "items": documents() }))
}

/// The files of `crds/`: name and content.
pub fn files() -> Vec<(String, String)> {
    let name = |document: &Value| document["spec"]["names"]["plural"].as_str().unwrap_or_default().to_owned();
    documents().iter().map(|document| (format!("{}.yaml", name(document)), file(document))).collect()
}

fn file(document: &Value) -> String {
    format!(
        "# Generated from crates/api; `DASKADE_UPDATE=1 cargo test --test repository generated` writes it again.\n{}",
        to_yaml(document)
    )
}
