//! Whether an object in the cluster is as it was built: the API server adds defaults, which are no difference.

use serde_json::Value;

/// Maps that mean their whole content: one entry more selects other pods.
const WHOLE: [&str; 4] = ["selector", "podSelector", "namespaceSelector", "matchLabels"];

/// Whether `live` has everything that `built` has. Lists must be as long. What is empty in `built` may be missing in
/// `live`, since the API server leaves it out.
pub fn contains(live: &Value, built: &Value) -> bool {
    match (live, built) {
        (Value::Object(live), Value::Object(built)) => built.iter().all(|(key, built)| match live.get(key) {
            Some(live) => contains(live, built) && (!WHOLE.contains(&key.as_str()) || has_no_more(live, built)),
            None => is_empty(built),
        }),
        (Value::Array(live), Value::Array(built)) => {
            live.len() == built.len() && live.iter().zip(built).all(|(live, built)| contains(live, built))
        }
        (live, built) => live == built || (is_empty(live) && is_empty(built)),
    }
}

/// Whether two objects are the same, apart from what is empty. For what means less the more it has, as the peers of a
/// NetworkPolicy: one field more in it may let others in.
pub fn is_same(live: &Value, built: &Value) -> bool {
    contains(live, built) && contains(built, live)
}

fn has_no_more(live: &Value, built: &Value) -> bool {
    match (live, built) {
        (Value::Object(live), Value::Object(built)) => {
            live.iter().all(|(key, value)| built.contains_key(key) || is_empty(value))
        }
        _ => true,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_are_no_difference_and_everything_else_is() {
        let built = json!({
            "metadata": {"labels": {"a": "1"}},
            "spec": {"selector": {"x": "1"}, "ports": [{"port": 1}, {"port": 2}], "ingress": [], "podSelector": {}}
        });
        let same = json!({
            "metadata": {"labels": {"a": "1", "by-others": "2"}, "uid": "u"},
            "spec": {
                "selector": {"x": "1"}, "clusterIP": "10.0.0.1", "podSelector": {},
                "ports": [{"port": 1, "protocol": "TCP"}, {"port": 2, "protocol": "TCP"}]
            }
        });
        assert!(contains(&same, &built));
        for (path, value) in [
            ("/metadata/labels/a", json!("2")),
            ("/metadata/labels", json!({})),
            ("/spec/selector/x", json!("2")),
            ("/spec/selector", json!({"x": "1", "y": "2"})),
            ("/spec/podSelector", json!({"matchLabels": {"a": "b"}})),
            ("/spec/ports/1/port", json!(3)),
            ("/spec/ports", json!([{"port": 1}])),
        ] {
            let mut other = same.clone();
            *other.pointer_mut(path).unwrap() = value;
            assert!(!contains(&other, &built), "{path}");
        }
    }
}
