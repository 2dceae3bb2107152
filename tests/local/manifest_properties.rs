//! Whatever is put in: an answer, never a panic; and what is written as YAML reads back the same.

use std::path::Path;

use manifest::Object;
use proptest::prelude::*;
use serde_json::Value;

const GOOD: &str = include_str!("../data/manifest/everything.yaml");

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e300..1e300).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "[-a-z0-9:#{}\\[\\]\"' \n\t|>&*!%@,.~?]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec(("[-a-z0-9:# .~]{0,6}", inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let reading = manifest::read_text(Path::new("x"), &bytes);
        prop_assert!(!reading.problems.is_empty());
    }

    #[test]
    fn a_torn_manifest_gets_an_answer(from in 0..GOOD.len(), length in 0_usize..40, put in "[-a-z0-9:#{}\\[\\]\"' \n\t|>&*!]{0,6}") {
        let mut bytes = GOOD.as_bytes().to_vec();
        let end = (from + length).min(bytes.len());
        bytes.splice(from..end, put.bytes());
        let reading = manifest::read_text(Path::new("x"), &bytes);
        prop_assert!(!reading.problems.is_empty() || !reading.objects.is_empty());
        for problem in &reading.problems {
            prop_assert!(!problem.to_string().chars().any(|c| c.is_control() && c != '\n'), "{}", problem);
        }
    }

    #[test]
    fn yaml_that_is_written_reads_back_the_same(value in value()) {
        let text = manifest::to_yaml(&value);
        prop_assert_eq!(manifest::read_value(&text), Ok(value), "{}", text);
    }
}

#[test]
fn every_field_of_every_kind_is_read_and_written_back() {
    let reading = manifest::read_text(Path::new("everything.yaml"), GOOD.as_bytes());
    assert_eq!(reading.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(reading.objects.len(), 4);
    for loaded in &reading.objects {
        let value = match &loaded.object {
            Object::DaskCluster(object) => serde_json::to_value(object),
            Object::Pipeline(object) => serde_json::to_value(object),
            Object::PipelineRun(object) => serde_json::to_value(object),
        }
        .unwrap();
        assert_eq!(manifest::check_value(&value), Ok(loaded.object.clone()));
        let again = manifest::read_text(Path::new("x"), manifest::to_yaml(&value).as_bytes());
        assert_eq!(again.objects[0].object, loaded.object);
        unused_fields(loaded.object.kind(), &value);
    }
}

/// The file really has every field: one that is added to a type and not here is named.
fn unused_fields(kind: &str, value: &Value) {
    let document = manifest::crd::documents().into_iter().find(|crd| crd["spec"]["names"]["kind"] == kind).unwrap();
    let schema = &document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    if value["metadata"]["labels"]["partial"].is_null() {
        let mut missing = Vec::new();
        walk(schema, &[&value["spec"]], kind, &mut missing);
        assert!(missing.is_empty(), "everything.yaml lacks {missing:#?}");
    }
}

fn walk(schema: &Value, values: &[&Value], at: &str, missing: &mut Vec<String>) {
    const EXCLUSIVE: [&str; 24] = [
        "files",
        "sha256",
        "path",
        "configMap",
        "url",
        "template",
        "ref",
        "address",
        "tls",
        "cron",
        "interval",
        "start",
        "timeZone",
        "pipelineRef",
        "script",
        "call",
        "serviceAccountName",
        "secretRef",
        "replicas",
        "configMapKeyRef",
        "secretKeyRef",
        "value",
        "secret",
        "persistentVolumeClaim",
    ];
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let below: Vec<&Value> = values.iter().map(|value| &value[name]).filter(|value| !value.is_null()).collect();
        if below.is_empty() {
            if !EXCLUSIVE.contains(&name.as_str()) {
                missing.push(format!("{at}.{name}"));
            }
            continue;
        }
        if matches!(name.as_str(), "affinity" | "tolerations" | "template" | "pipelineSpec" | "finally") {
            continue;
        }
        let items: Vec<&Value> = match &field["items"] {
            Value::Object(_) => below.iter().flat_map(|list| list.as_array().into_iter().flatten()).collect(),
            _ => below,
        };
        let inner = if field["items"].is_object() { &field["items"] } else { field };
        walk(inner, &items, &format!("{at}.{name}"), missing);
    }
}
