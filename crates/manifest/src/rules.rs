//! Evaluates the CEL rules of the CRDs on files and stored objects, as the API server does on apply.

use std::sync::{Arc, LazyLock, OnceLock};

use cel::{Context, Env, Program};
use serde_json::{Map, Value};

use super::tree::{Content, Node};
use api::reason::Reason;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));
/// Levels of fields that a rule can refer to, for example `self.pipelineSpec.schedule`.
const DEPTH: usize = 2;

/// A rule between fields.
#[derive(Debug)]
pub(crate) struct Rule {
    cel: String,
    /// Compiled when an object first needs it.
    program: OnceLock<Option<Program>>,
    pub(crate) reason: Reason,
    pub(crate) message: String,
    /// Field to point at, below the object that has the rule.
    pub(crate) at: Option<String>,
}

impl Rule {
    /// Reads an entry of `x-kubernetes-validations`. None of rules about changes, which concern the API server alone, and of
    /// those on one text or on the name, whose pattern is checked.
    pub(crate) fn read(rule: &Value) -> Option<Self> {
        let text = |key: &str| rule[key].as_str().map(ToOwned::to_owned);
        let others = ["oldSelf", "self.matches(", "self.metadata"];
        let cel = text("rule").filter(|cel| !others.iter().any(|other| cel.contains(other)))?;
        // Rules that compare values say `FieldValueInvalid`; the others only check which fields are set.
        let is_value = rule["reason"] == "FieldValueInvalid";
        Some(Self {
            cel,
            program: OnceLock::new(),
            reason: if is_value { Reason::InvalidValue } else { Reason::Conflict },
            message: text("message").unwrap_or_default(),
            at: text("fieldPath").map(|path| path.trim_start_matches('.').to_owned()),
        })
    }

    /// Whether the object satisfies the rule. If evaluation fails, another check reports the error in the object.
    pub(crate) fn holds(&self, node: &Node) -> bool {
        let program = self.program.get_or_init(|| ENV.compile(&self.cel).ok());
        let mut context = Context::with_env(Arc::clone(&ENV));
        let Some(program) = program else { return true };
        if context.add_variable("self", outline(node, DEPTH)).is_err() {
            return true;
        }
        !matches!(program.execute(&context), Ok(cel::Value::Bool(false)))
    }
}

/// The object down to `depth` levels. Null counts as not set.
fn outline(node: &Node, depth: usize) -> Value {
    match &node.value {
        Content::Map(_) if depth == 0 => Value::Object(Map::new()),
        Content::List(_) => Value::Array(Vec::new()),
        Content::Map(entries) => {
            let given = entries.iter().filter(|entry| !matches!(entry.node.value, Content::Null));
            Value::Object(given.map(|entry| (entry.key.clone(), outline(&entry.node, depth - 1))).collect())
        }
        _ => node.to_json(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use api::crd;

    fn rules(value: &Value, found: &mut Vec<Rule>) {
        match value {
            Value::Object(map) => {
                let validations = map.get("x-kubernetes-validations").and_then(Value::as_array);
                found.extend(validations.into_iter().flatten().filter_map(Rule::read));
                map.values().for_each(|value| rules(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| rules(value, found)),
            _ => {}
        }
    }

    fn rule(start: &str) -> Rule {
        let mut found = Vec::new();
        crd::documents().iter().for_each(|document| rules(document, &mut found));
        found.into_iter().find(|rule| rule.message.starts_with(start)).unwrap_or_else(|| panic!("no rule {start}"))
    }

    /// A rule that does not compile would never reject anything.
    #[test]
    fn every_rule_of_the_crds_can_be_compiled() {
        let mut found = Vec::new();
        crd::documents().iter().for_each(|document| rules(document, &mut found));
        assert!(found.len() > 20, "{}", found.len());
        for rule in found {
            ENV.compile(&rule.cel).unwrap_or_else(|error| panic!("{}: {error}", rule.cel));
            assert!(
                rule.cel.matches("self.").count() == 0 || !rule.cel.contains("].") || rule.cel.contains(".filter(")
            );
        }
    }

    #[test]
    fn rules_are_kept_and_broken_as_the_api_server_says() {
        for (start, good, bad) in [
            ("give exactly one of call and script", json!({"call": "m:f"}), json!({"call": "m:f", "script": "x"})),
            ("give exactly one of call and script", json!({"call": "m:f", "script": null}), json!({})),
            ("give exactly one of files", json!({"files": {"a.py": "x"}}), json!({"files": {}, "url": "s3://b/c.zip"})),
            ("memory must be above zero", json!({"memory": "1Gi"}), json!({"memory": 0})),
            ("memory must be above zero", json!({"cpu": 1}), json!({"memory": "0"})),
            ("memory must be above zero", json!({"memory": 1}), json!({"memory": "0Gi"})),
            ("min must not be above max", json!({"min": 1, "max": 2}), json!({"min": 3, "max": 2})),
            (
                "gpu sets the Dask resource",
                json!({"gpu": {}, "daskResources": {}}),
                json!({"gpu": {}, "daskResources": {"GPU": 1}}),
            ),
            (
                "secretRef is needed",
                json!({"mode": "Secret", "secretRef": "a"}),
                json!({"mode": "Generated", "secretRef": "a"}),
            ),
            (
                "triggers and schedule belong",
                json!({"pipelineSpec": {"steps": [{"name": "a"}]}}),
                json!({"pipelineSpec": {"schedule": {"cron": "* * * * *"}}}),
            ),
        ] {
            let rule = rule(start);
            assert!(rule.holds(&Node::from_json(&good)), "{start}: {good}");
            assert!(!rule.holds(&Node::from_json(&bad)), "{start}: {bad}");
        }
        assert!(
            rule("min must not").holds(&Node::from_json(&json!({"min": 3}))),
            "that max is missing is found for itself"
        );
    }
}
