//! The CEL rules of the CRDs, once more in Rust: the API server checks them on apply, this table checks them in files and
//! in stored objects. A test fails when a CRD has a rule that is not here.

use super::tree::{Content, Node};
use api::reason::Reason;

/// A rule between fields.
#[derive(Debug)]
pub(crate) struct Rule {
    /// The CEL text, as it stands in the CRD.
    pub(crate) cel: &'static str,
    pub(crate) reason: Reason,
    pub(crate) message: &'static str,
    /// Field to point at, below the object that has the rule.
    pub(crate) at: Option<&'static str>,
    /// Whether the object keeps it.
    pub(crate) holds: fn(&Node) -> bool,
}

/// The rule with that CEL text. Rules about changes (`oldSelf`) concern the API server alone.
pub(crate) fn find(cel: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.cel == cel)
}

fn has(node: &Node, field: &str) -> bool {
    node.field(field).is_some()
}

fn count(node: &Node, fields: &[&str]) -> usize {
    fields.iter().filter(|field| has(node, field)).count()
}

fn whole(node: &Node, field: &str) -> Option<i64> {
    match &node.field(field)?.value {
        Content::Number(number) => number.as_i64(),
        _ => None,
    }
}

fn memory_above_zero(amounts: &Node) -> bool {
    match amounts.field("memory").map(|node| &node.value) {
        Some(Content::Number(number)) => number.as_f64() != Some(0.0),
        Some(Content::Text(text)) => text.contains(|c: char| matches!(c, '1'..='9')),
        _ => true,
    }
}

const CONFLICT: Reason = Reason::Conflict;

/// All rules.
pub(crate) const RULES: &[Rule] = &[
    Rule {
        cel: "has(self.call) != has(self.script)",
        reason: CONFLICT,
        message: "give exactly one of call and script",
        at: None,
        holds: |step| count(step, &["call", "script"]) == 1,
    },
    Rule {
        cel: "[has(self.files), has(self.path), has(self.configMap), has(self.url)].filter(x, x).size() == 1",
        reason: CONFLICT,
        message: "give exactly one of files, path, configMap and url",
        at: None,
        holds: |code| count(code, &["files", "path", "configMap", "url"]) == 1,
    },
    Rule {
        cel: "!has(self.sha256) || has(self.url)",
        reason: CONFLICT,
        message: "sha256 belongs to url",
        at: Some("sha256"),
        holds: |code| !has(code, "sha256") || has(code, "url"),
    },
    Rule {
        cel: "[has(self.template), has(self.ref), has(self.address)].filter(x, x).size() == 1",
        reason: CONFLICT,
        message: "give exactly one of template, ref and address",
        at: None,
        holds: |cluster| count(cluster, &["template", "ref", "address"]) == 1,
    },
    Rule {
        cel: "!has(self.tls) || has(self.address)",
        reason: CONFLICT,
        message: "tls belongs to address",
        at: Some("tls"),
        holds: |cluster| !has(cluster, "tls") || has(cluster, "address"),
    },
    Rule {
        cel: "has(self.cron) != has(self.interval)",
        reason: CONFLICT,
        message: "give exactly one of cron and interval",
        at: None,
        holds: |schedule| count(schedule, &["cron", "interval"]) == 1,
    },
    Rule {
        cel: "!has(self.start) || has(self.interval)",
        reason: CONFLICT,
        message: "start belongs to interval",
        at: Some("start"),
        holds: |schedule| !has(schedule, "start") || has(schedule, "interval"),
    },
    Rule {
        cel: "!has(self.timeZone) || has(self.cron)",
        reason: CONFLICT,
        message: "timeZone belongs to cron",
        at: Some("timeZone"),
        holds: |schedule| !has(schedule, "timeZone") || has(schedule, "cron"),
    },
    Rule {
        cel: "!(has(self.secretRef) && has(self.serviceAccountName))",
        reason: CONFLICT,
        message: "give at most one of secretRef and serviceAccountName",
        at: None,
        holds: |storage| count(storage, &["secretRef", "serviceAccountName"]) <= 1,
    },
    Rule {
        cel: "!('memory' in self) || (self['memory'] != 0 && self['memory'] != '0')",
        reason: Reason::InvalidValue,
        message: "memory must be above zero",
        at: Some("memory"),
        holds: memory_above_zero,
    },
    Rule {
        cel: "!(has(self.value) && has(self.valueFrom))",
        reason: CONFLICT,
        message: "give at most one of value and valueFrom",
        at: None,
        holds: |variable| count(variable, &["value", "valueFrom"]) <= 1,
    },
    Rule {
        cel: "has(self.secretKeyRef) != has(self.configMapKeyRef)",
        reason: CONFLICT,
        message: "give exactly one of secretKeyRef and configMapKeyRef",
        at: None,
        holds: |source| count(source, &["secretKeyRef", "configMapKeyRef"]) == 1,
    },
    Rule {
        cel: "[has(self.persistentVolumeClaim), has(self.configMap), has(self.secret), has(self.emptyDir), has(self.serviceAccountToken)].filter(x, x).size() == 1",
        reason: CONFLICT,
        message: "give exactly one of persistentVolumeClaim, configMap, secret, emptyDir and serviceAccountToken",
        at: None,
        holds: |volume| {
            let sources = ["persistentVolumeClaim", "configMap", "secret", "emptyDir", "serviceAccountToken"];
            count(volume, &sources) == 1
        },
    },
    Rule {
        cel: "!(has(self.replicas) && has(self.autoscale))",
        reason: CONFLICT,
        message: "give at most one of replicas and autoscale",
        at: None,
        holds: |group| count(group, &["replicas", "autoscale"]) <= 1,
    },
    Rule {
        cel: "!has(self.gpu) || !has(self.daskResources) || !('GPU' in self.daskResources)",
        reason: CONFLICT,
        message: "gpu sets the Dask resource GPU; leave it out of daskResources",
        at: Some("daskResources"),
        holds: |group| !has(group, "gpu") || group.field("daskResources").is_none_or(|amounts| !has(amounts, "GPU")),
    },
    Rule {
        cel: "!has(self.min) || self.min <= self.max",
        reason: Reason::InvalidValue,
        message: "min must not be above max",
        at: Some("min"),
        holds: |bounds| match (whole(bounds, "min"), whole(bounds, "max")) {
            (Some(min), Some(max)) => min <= max,
            _ => true,
        },
    },
    Rule {
        cel: "(has(self.mode) && self.mode == 'Secret') == has(self.secretRef)",
        reason: CONFLICT,
        message: "secretRef is needed with mode Secret, and only then",
        at: None,
        holds: |tls| (tls.field("mode").and_then(Node::text) == Some("Secret")) == has(tls, "secretRef"),
    },
    Rule {
        cel: "has(self.pipelineRef) != has(self.pipelineSpec)",
        reason: CONFLICT,
        message: "give exactly one of pipelineRef and pipelineSpec",
        at: None,
        holds: |run| count(run, &["pipelineRef", "pipelineSpec"]) == 1,
    },
    Rule {
        cel: "!has(self.pipelineSpec) || !(has(self.pipelineSpec.triggers) || has(self.pipelineSpec.schedule) || has(self.pipelineSpec.retention))",
        reason: CONFLICT,
        message: "triggers and schedule belong to a Pipeline, not to one run; retention stands beside pipelineSpec",
        at: Some("pipelineSpec"),
        holds: |run| {
            run.field("pipelineSpec").is_none_or(|spec| count(spec, &["triggers", "schedule", "retention"]) == 0)
        },
    },
];

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use api::crd;

    fn collect(value: &Value, found: &mut Vec<(String, String)>) {
        match value {
            Value::Object(map) => {
                for rule in map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                    let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
                    found.push((text("rule"), text("message")));
                }
                map.values().for_each(|value| collect(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_rule_of_the_crds_is_checked_in_rust_too_and_with_the_same_message() {
        let mut found = Vec::new();
        crd::documents().iter().for_each(|document| collect(document, &mut found));
        // Of one text alone: its pattern is checked.
        found.retain(|(cel, _)| !cel.starts_with("self.matches(r'"));
        found.retain(|(cel, _)| !cel.contains("oldSelf") && !cel.contains("self.metadata"));
        assert!(!found.is_empty());
        for (cel, message) in &found {
            let rule = find(cel).unwrap_or_else(|| panic!("no predicate for {cel}"));
            assert_eq!(rule.message, message);
        }
        for rule in RULES {
            assert!(found.iter().any(|(cel, _)| cel == rule.cel), "no CRD has {}", rule.cel);
        }
    }
}
