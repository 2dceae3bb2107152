//! Hash of what a user wrote that matters to a run.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use api::PipelineSpec;

/// Version of the rules below. A hash of other rules is never compared with one of these: an update of daskade makes no
/// runs.
pub const VERSION: &str = "v1:";
/// Digits of a hash.
const DIGITS: usize = 32;

/// `v1:<hex>` of the fields that matter to a run. Equal for specs that differ only in what makes runs (`triggers`,
/// `schedule`) or becomes of them (`retention`), in texts for people (`description`, `displayName`), in the order of parameters, steps and results, in how
/// the same value is written (`60s` and `1m`), or in an empty field that could as well be absent.
///
/// Fields that are not given are not part of it, so that neither their defaults nor fields of later versions change it.
pub fn hash(spec: &PipelineSpec) -> String {
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    if let Value::Object(spec) = &mut value {
        reduce(spec);
    }
    let mut text = String::new();
    write(&value, &mut text);
    let digest = hex::encode(Sha256::digest(text));
    format!("{VERSION}{}", &digest[..DIGITS])
}

fn reduce(spec: &mut Map<String, Value>) {
    for field in ["triggers", "schedule", "retention"] {
        spec.remove(field);
    }
    drop_empty(spec, &["limits", "deadlines"]);
    for list in ["params", "steps", "finally", "results"] {
        let Some(Value::Array(entries)) = spec.get_mut(list) else { continue };
        for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
            for field in ["description", "displayName"] {
                entry.remove(field);
            }
            drop_empty(entry, &["limits", "output"]);
            for output in entry.get_mut("outputs").and_then(Value::as_array_mut).into_iter().flatten() {
                output.as_object_mut().and_then(|output| output.remove("description"));
            }
        }
        entries.sort_by(|a, b| name_of(a).cmp(&name_of(b)));
    }
}

fn name_of(entry: &Value) -> Option<&str> {
    entry.get("name").and_then(Value::as_str)
}

fn drop_empty(object: &mut Map<String, Value>, fields: &[&str]) {
    for field in fields {
        if object.get(*field).and_then(Value::as_object).is_some_and(Map::is_empty) {
            object.remove(*field);
        }
    }
}

/// JSON without spaces, keys in order.
fn write(value: &Value, text: &mut String) {
    match value {
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write(item, text);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            let mut sorted: Vec<(&String, &Value)> = fields.iter().collect();
            sorted.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (i, (key, field)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                write(field, text);
            }
            text.push('}');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What it is, and how it is made.
    type Edit = (&'static str, fn(&mut Value));

    fn of(spec: Value) -> String {
        hash(&serde_json::from_value(spec).unwrap())
    }

    fn base() -> Value {
        json!({
            "params": [{"name": "n", "type": "integer", "default": 100}, {"name": "m", "default": []}],
            "code": {"files": {"flow.py": "def inc(x): return x + 1\n"}},
            "cluster": {"template": {"workers": [{"name": "cpu", "replicas": 2}], "idleTimeout": "60s"}},
            "storage": {"url": "s3://bucket/a"},
            "steps": [
                {"name": "inc", "call": "flow:inc", "map": {"x": "$(range(params.n))"}, "timeout": "1h"},
                {"name": "sum", "call": "builtins:sum", "args": ["$(steps.inc.output)"], "retry": {"limit": 2}}
            ],
            "results": [{"name": "total", "value": "$(steps.sum.output)"}]
        })
    }

    fn with(change: impl FnOnce(&mut Value)) -> String {
        let mut spec = base();
        change(&mut spec);
        of(spec)
    }

    #[test]
    fn the_hash_of_a_version_never_changes() {
        // A change here makes every pipeline everywhere run again after an update: make a new version instead.
        assert_eq!(of(base()), "v1:fd44cc9b41bcf7f9f298047cea7b981e");
    }

    #[test]
    fn what_does_not_matter_to_a_run_changes_nothing() {
        let known = of(base());
        let same: [Edit; 11] = [
            ("retention", |spec| spec["retention"] = json!({"outputs": "30d"})),
            ("schedule", |spec| spec["schedule"] = json!({"cron": "@daily", "suspend": true})),
            ("triggers", |spec| spec["triggers"] = json!({"onChange": false})),
            ("empty lists", |spec| {
                spec["requirements"] = json!([]);
                spec["finally"] = json!([]);
            }),
            ("empty mappings", |spec| {
                spec["limits"] = json!({});
                spec["deadlines"] = json!({});
                spec["steps"][0]["limits"] = json!({});
            }),
            ("false that is the default", |spec| spec["steps"][0]["continueOnFailure"] = json!(false)),
            ("null", |spec| spec["steps"][0]["when"] = Value::Null),
            ("order of steps", |spec| spec["steps"].as_array_mut().unwrap().reverse()),
            ("order of keys", |spec| {
                let step = spec["steps"][0].as_object_mut().unwrap();
                let name = step.shift_remove("name").unwrap();
                step.insert("name".to_owned(), name);
            }),
            ("texts for people", |spec| {
                spec["params"][0]["description"] = json!("how many");
                spec["steps"][0]["displayName"] = json!("Increment");
            }),
            ("another way to write a time", |spec| {
                spec["cluster"]["template"]["idleTimeout"] = json!("1m");
                spec["steps"][0]["timeout"] = json!("60m");
            }),
        ];
        for (what, change) in same {
            assert_eq!(with(change), known, "{what}");
        }
    }

    #[test]
    fn what_matters_to_a_run_changes_it() {
        let mut seen = std::collections::BTreeSet::from([of(base())]);
        let changes: [Edit; 9] = [
            ("code", |spec| spec["code"]["files"]["flow.py"] = json!("def inc(x): return x + 2\n")),
            ("a default", |spec| spec["params"][0]["default"] = json!(101)),
            ("an empty default is not none", |spec| drop(spec["params"][1].as_object_mut().unwrap().remove("default"))),
            ("args", |spec| spec["steps"][1]["args"] = json!(["$(steps.inc.output)", []])),
            ("one more step", |spec| spec["steps"].as_array_mut().unwrap().push(json!({"name": "z", "call": "a:b"}))),
            ("a result", |spec| spec["results"][0]["value"] = json!([])),
            ("storage", |spec| spec["storage"]["url"] = json!("s3://bucket/b")),
            ("workers", |spec| spec["cluster"]["template"]["workers"][0]["replicas"] = json!(3)),
            ("retry", |spec| spec["steps"][1]["retry"]["limit"] = json!(3)),
        ];
        for (what, change) in changes {
            assert!(seen.insert(with(change)), "{what}");
        }
    }
}
