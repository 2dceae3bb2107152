//! deploy/operator.yaml: rights as documented and no more, a pod that passes `restricted`, options that exist.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use operator::apiserver::own;
use serde_json::{Value, json};

/// All that the operator may do: API group, resource, verbs.
const EVERYWHERE: &[(&str, &str, &[&str])] = &[
    ("", "configmaps", &["create", "delete", "get", "list", "watch"]),
    ("", "pods", &["create", "delete", "get", "list", "patch", "watch"]),
    ("", "secrets", &["create", "get", "patch"]),
    ("", "services", &["create", "delete", "get", "list", "patch", "watch"]),
    ("apps", "controllerrevisions", &["create", "get"]),
    ("daskade.dev", "daskclusters", &["create", "delete", "get", "list", "watch"]),
    ("daskade.dev", "daskclusters/finalizers", &["update"]),
    ("daskade.dev", "daskclusters/status", &["patch"]),
    ("daskade.dev", "pipelineruns", &["create", "delete", "get", "list", "patch", "watch"]),
    ("daskade.dev", "pipelineruns/finalizers", &["update"]),
    ("daskade.dev", "pipelineruns/status", &["patch"]),
    ("daskade.dev", "pipelines", &["get", "list", "watch"]),
    ("daskade.dev", "pipelines/status", &["patch"]),
    ("events.k8s.io", "events", &["create", "patch"]),
    ("networking.k8s.io", "networkpolicies", &["create", "delete", "get", "list", "patch", "watch"]),
];
const NAMESPACES: &[(&str, &str, &[&str])] = &[("", "namespaces", &["list", "watch"])];
const OWN: &[(&str, &str, &[&str])] =
    &[("", "configmaps", &["create", "get", "patch"]), ("", "secrets", &["create", "delete", "get", "patch"])];
const LEASE: &[(&str, &str, &[&str])] = &[("coordination.k8s.io", "leases", &["create", "get", "update"])];

fn documents() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/operator.yaml");
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).expect("the file")).expect("YAML")
}

fn find(kind: &str, name: &str) -> Value {
    let fits = |document: &Value| document["kind"] == kind && document["metadata"]["name"] == name;
    documents().into_iter().find(fits).unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().expect("a text").to_owned()).collect()
}

/// Every right of a role, one by one, sorted.
fn rights(role: &Value) -> Vec<(String, String, Vec<String>)> {
    let mut all = Vec::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let verbs: BTreeSet<String> = texts(&rule["verbs"]).into_iter().collect();
                all.push((group.clone(), resource, verbs.into_iter().collect()));
            }
        }
    }
    all.sort();
    all
}

fn expected(table: &[(&str, &str, &[&str])]) -> Vec<(String, String, Vec<String>)> {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    table.iter().map(|(group, resource, verbs)| ((*group).to_owned(), (*resource).to_owned(), owned(verbs))).collect()
}

#[test]
fn rights_are_exactly_those_that_are_documented() {
    assert_eq!(rights(&find("ClusterRole", "daskade-operator")), expected(EVERYWHERE));
    assert_eq!(rights(&find("ClusterRole", "daskade-operator-namespaces")), expected(NAMESPACES));
    assert_eq!(rights(&find("Role", "daskade-operator")), expected(OWN));
    assert_eq!(rights(&find("Role", "daskade-operator-lease")), expected(LEASE));
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).expect("docs");
    for (_, resource, verbs) in EVERYWHERE.iter().chain(NAMESPACES).chain(OWN).chain(LEASE) {
        let mut listed: Vec<&str> = verbs.to_vec();
        let order = ["get", "list", "watch", "create", "update", "patch", "delete"];
        listed.sort_by_key(|verb| order.iter().position(|known| known == verb));
        let row = docs.lines().find(|line| {
            line.starts_with('|')
                && line.contains(&format!("`{resource}`"))
                && line.contains(&format!("| {} |", listed.join(", ")))
        });
        assert!(row.is_some(), "docs/operations.md has no row for {resource}: {}", listed.join(", "));
    }
}

/// Helm deletes rights before the operator has ended, and Argo CD everything at once.
/// Issue 13, point 20.
#[test]
fn the_right_to_the_lease_outlives_the_rest_of_an_installation_and_no_other_right_does() {
    let kept = |document: &Value| document["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep";
    let names = |document: Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&document["kind"]), text(&document["metadata"]["name"]))
    };
    let mut kept: Vec<(String, String)> = documents().into_iter().filter(kept).map(names).collect();
    kept.sort();
    let expected = [
        ("Role", "daskade-operator-lease"),
        ("RoleBinding", "daskade-operator-lease"),
        ("ServiceAccount", "daskade-operator"),
    ];
    assert_eq!(kept, expected.map(|(kind, name)| (kind.to_owned(), name.to_owned())));
}

#[test]
fn there_is_no_wildcard_and_no_look_at_all_secrets() {
    for document in documents().iter().filter(|document| document["rules"].is_array()) {
        assert!(!document["rules"].to_string().contains('*'), "{document}");
        assert!(!document["rules"].to_string().contains("nonResourceURLs"), "{document}");
        for (group, resource, verbs) in rights(document) {
            if resource.starts_with("secrets") {
                assert!(
                    !verbs.iter().any(|verb| ["list", "watch", "deletecollection"].contains(&verb.as_str())),
                    "{group}"
                );
            }
            assert!(!["escalate", "bind", "impersonate"].iter().any(|verb| verbs.iter().any(|own| own == verb)));
        }
    }
}

#[test]
fn only_the_operators_account_is_bound_and_the_selectors_rights_are_not() {
    let bindings: Vec<Value> = documents()
        .into_iter()
        .filter(|document| document["kind"].as_str().is_some_and(|kind| kind.ends_with("RoleBinding")))
        .collect();
    assert_eq!(bindings.len(), 3);
    for binding in bindings {
        let account = json!([{ "kind": "ServiceAccount", "name": "daskade-operator", "namespace": "daskade-system" }]);
        assert_eq!(binding["subjects"], account);
        let role = &binding["roleRef"];
        find(role["kind"].as_str().expect("a kind"), role["name"].as_str().expect("a name"));
        assert_ne!(role["name"], "daskade-operator-namespaces");
    }
}

#[test]
fn the_pod_passes_restricted_and_is_what_the_operator_expects() {
    let deployment = find("Deployment", "daskade-operator");
    let template = &deployment["spec"]["template"];
    for (key, value) in own::LABELS {
        assert_eq!(template["metadata"]["labels"][key], value);
        assert_eq!(deployment["spec"]["selector"]["matchLabels"][key], value);
    }
    let pod = &template["spec"];
    assert_eq!(pod["serviceAccountName"], "daskade-operator");
    assert!(pod["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds > 10));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for forbidden in ["hostNetwork", "hostPID", "hostIPC", "volumes"] {
        assert!(pod[forbidden].is_null(), "{forbidden}");
    }
    let container = &pod["containers"][0];
    assert_eq!(container["name"], "operator", "its own past is looked up by this name");
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(container["livenessProbe"]["httpGet"], json!({ "path": "/health", "port": "http" }));
    assert_eq!(container["readinessProbe"]["httpGet"], json!({ "path": "/ready", "port": "http" }));
    assert!(container["resources"]["limits"]["memory"].is_string());
    assert!(container["resources"]["limits"]["cpu"].is_null(), "a throttled leader loses its lease");
}

#[test]
fn its_options_exist_and_all_options_are_documented() {
    let help = Command::new(env!("CARGO_BIN_EXE_daskade")).args(["operator", "--help"]).output().expect("run it");
    let help = String::from_utf8(help.stdout).expect("text");
    let container = &find("Deployment", "daskade-operator")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["args"], json!(["operator"]));
    for variable in container["env"].as_array().expect("variables") {
        let name = variable["name"].as_str().expect("a name");
        assert!(name == "POD_NAME" || help.contains(&format!("[env: {name}=")), "{name}");
    }
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).expect("docs");
    let mut options = 0;
    for line in help.lines().map(str::trim) {
        let option = line.split_once(" <").map_or("", |(option, _)| option).trim_start_matches("-h, ");
        if option.starts_with("--") {
            assert!(docs.contains(&format!("`{option}`")), "docs/operations.md does not tell of {option}");
            options += 1;
        }
        if let Some(name) = line.strip_prefix("[env: ").and_then(|rest| rest.split_once('=')).map(|(name, _)| name) {
            assert!(docs.contains(&format!("`{name}`")), "docs/operations.md does not tell of {name}");
        }
    }
    assert!(options >= 10, "{help}");
}
