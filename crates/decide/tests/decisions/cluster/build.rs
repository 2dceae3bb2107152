//! DaskCluster in, objects out. `DASKADE_UPDATE=1 cargo test --test decisions cluster::build` writes the objects again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use decide::cluster::build::{Peer, PodTemplates, Settings, build_children, build_runtime, build_templates};
use decide::cluster::facts::{Base, Cluster, Role, Slot};
use decide::cluster::pods::read_pod;
use decide::cluster::{effective_groups, names, validate_named};
use manifest::to_yaml;
use serde_json::{Value, json};

use super::support::cluster;

fn settings(inside: bool) -> Settings {
    let labels = [("app.kubernetes.io/component", "operator"), ("app.kubernetes.io/name", "daskade")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Settings {
        image: "example.org/worker:1".to_owned(),
        runtime: b"zip",
        runtime_digest: "0123456789abcdef",
        operator: inside.then(|| Peer { namespace: "daskade-system".to_owned(), labels }),
    }
}

/// All objects of a cluster, and one pod of each kind.
fn objects(cluster: &Cluster, settings: &Settings, queue: Option<&str>) -> Vec<Value> {
    let children = build_children(cluster, settings);
    let mut objects = vec![build_runtime(cluster, settings)];
    objects.extend(children.policies);
    objects.push(children.service);
    objects.extend(pods(cluster, settings, queue));
    objects
}

fn pods(cluster: &Cluster, settings: &Settings, queue: Option<&str>) -> Vec<Value> {
    let templates = build_templates(cluster, settings, queue);
    let workers =
        effective_groups(&cluster.spec).into_iter().map(|group| Role::Worker { group: group.name, number: 0 });
    let roles = [Role::Scheduler].into_iter().chain(workers);
    let slots = roles.enumerate().map(|(at, role)| Slot { role, incarnation: at as u64 + 1 });
    slots.map(|slot| templates.pod(&slot, Some("f00d")).unwrap()).collect()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/cluster")
}

fn read(path: &PathBuf) -> (Cluster, Option<String>) {
    let object: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut read = cluster(object["spec"].clone());
    read.name = object["metadata"]["name"].as_str().unwrap().to_owned();
    read.namespace = object["metadata"]["namespace"].as_str().unwrap().to_owned();
    read.uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
    let queue = object["metadata"]["labels"][names::QUEUE_LABEL].as_str().map(ToOwned::to_owned);
    (read, queue)
}

fn goldens() -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut inputs: Vec<PathBuf> = files.filter(|path| path.to_string_lossy().ends_with(".in.yaml")).collect();
    inputs.sort();
    assert!(inputs.len() >= 4, "{inputs:?}");
    inputs
}

#[test]
fn objects_are_built_as_they_were() {
    for input in goldens() {
        let (cluster, queue) = read(&input);
        assert_eq!(validate_named(&cluster.name, &cluster.spec, "spec"), [], "{}", input.display());
        let objects = objects(&cluster, &settings(true), queue.as_deref());
        let built: String = objects.iter().map(|object| format!("---\n{}", to_yaml(object))).collect();
        let output = PathBuf::from(input.to_string_lossy().replace(".in.yaml", ".out.yaml"));
        if std::env::var_os("DASKADE_UPDATE").is_some() {
            std::fs::write(&output, &built).unwrap();
        }
        let known = std::fs::read_to_string(&output).unwrap_or_default();
        assert!(
            known == built,
            "{} differs; see what changes: DASKADE_UPDATE=1 cargo test --test decisions cluster::build",
            output.display()
        );
    }
}

/// Every field of the `restricted` Pod Security Standard, of every pod that any golden file makes.
#[test]
fn every_pod_passes_restricted() {
    for input in goldens() {
        let (cluster, queue) = read(&input);
        for pod in pods(&cluster, &settings(true), queue.as_deref()) {
            let name = &pod["metadata"]["name"];
            let spec = &pod["spec"];
            for host in ["hostNetwork", "hostPID", "hostIPC", "hostUsers"] {
                assert!(spec[host].is_null(), "{name}: {host}");
            }
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{name}");
            assert!(spec["securityContext"]["runAsUser"].as_u64().is_some_and(|user| user > 0), "{name}");
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            for context in ["sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"] {
                assert!(spec["securityContext"][context].is_null(), "{name}: {context}");
            }
            assert!(spec["initContainers"].is_null() && spec["ephemeralContainers"].is_null(), "{name}");
            let containers = spec["containers"].as_array().unwrap();
            assert_eq!(containers.len(), 1, "{name}");
            for container in containers {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{name}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}: not asked for, and ours");
                for field in ["privileged", "procMount", "seLinuxOptions", "runAsUser", "seccompProfile"] {
                    assert!(context[field].is_null(), "{name}: {field}");
                }
                assert!(container["lifecycle"].is_null(), "{name}");
                for port in container["ports"].as_array().unwrap() {
                    assert!(port["hostPort"].is_null(), "{name}");
                }
                for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                    assert!(container[probe].is_object(), "{name}: {probe}");
                    for way in ["httpGet", "tcpSocket"] {
                        assert!(container[probe][way]["host"].is_null(), "{name}: {probe}");
                    }
                }
            }
            for volume in spec["volumes"].as_array().unwrap() {
                let kinds: Vec<&String> = volume.as_object().unwrap().keys().filter(|key| *key != "name").collect();
                let allowed = ["configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"];
                assert!(kinds.len() == 1 && allowed.contains(&kinds[0].as_str()), "{name}: {kinds:?}");
            }
            let account = &spec["serviceAccountName"];
            assert_eq!(
                spec["automountServiceAccountToken"],
                !account.is_null(),
                "{name}: a token only where asked for"
            );
            assert_eq!(spec["enableServiceLinks"], false, "{name}");
        }
    }
}

#[test]
fn gpus_are_asked_for_by_the_name_that_their_vendor_gave_them() {
    for name in [None, Some("amd.com/gpu"), Some("gpu.intel.com/i915"), Some("nvidia.com/mig-1g.10gb")] {
        let mut group = json!({"name": "gpu", "threads": 2, "gpu": {"count": 3}, "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "team", "operator": "Exists"}]});
        if let Some(name) = name {
            group["gpu"]["resourceName"] = json!(name);
        }
        let cluster = cluster(json!({"workers": [group, {"name": "cpu", "daskResources": {"SSD": 0.5}}]}));
        let [scheduler, gpu, cpu] = pods(&cluster, &settings(true), None).try_into().unwrap();
        let name = name.unwrap_or("nvidia.com/gpu");
        let container = &gpu["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"][name], "3");
        assert!(container["resources"]["requests"][name].is_null(), "as the limit, by Kubernetes");
        assert_eq!(gpu["metadata"]["labels"][names::GPU_LABEL], "3");
        assert_eq!(
            gpu["spec"]["tolerations"],
            json!([
                {"key": "team", "operator": "Exists"}, {"key": name, "operator": "Exists", "effect": "NoSchedule"}
            ])
        );
        assert_eq!(gpu["spec"]["nodeSelector"], json!({"pool": "gpu"}));
        assert_eq!(option(&gpu, "--resources"), Some("GPU=3"));
        assert_eq!(option(&cpu, "--resources"), Some("SSD=0.5"));
        for other in [&scheduler, &cpu] {
            assert!(!other.to_string().contains(name), "{other}");
            assert!(other["metadata"]["labels"][names::GPU_LABEL].is_null());
            assert!(other["spec"]["tolerations"].is_null());
        }
    }
}

fn option<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    let args = pod["spec"]["containers"][0]["args"].as_array()?;
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1)?.as_str()
}

#[test]
fn threads_and_memory_are_those_of_the_limits() {
    for (group, threads, memory, grace) in [
        (json!({"name": "a"}), "1", "auto", "295"),
        (json!({"name": "a", "resources": {"limits": {"cpu": "2500m", "memory": "3Gi"}}}), "3", "3221225472", "295"),
        (json!({"name": "a", "threads": 7, "resources": {"limits": {"cpu": "2"}}}), "7", "auto", "295"),
        (json!({"name": "a", "terminationGracePeriod": "10m"}), "1", "auto", "595"),
        (json!({"name": "a", "terminationGracePeriod": "3s"}), "1", "auto", "1"),
    ] {
        let cluster = cluster(json!({ "workers": [group] }));
        let worker = &pods(&cluster, &settings(true), None)[1];
        let found = ["--threads", "--memory-limit", "--grace"].map(|name| option(worker, name));
        assert_eq!(found, [Some(threads), Some(memory), Some(grace)], "{:?}", cluster.spec.workers);
    }
}

fn env<'a>(pod: &'a Value, name: &str) -> Vec<&'a Value> {
    let all = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    all.iter().filter(|variable| variable["name"] == name).collect()
}

#[test]
fn a_search_path_of_the_user_does_not_take_ours_away() {
    let plain = cluster(json!({"workers": [{"name": "a", "env": [{"name": "PYTHONPATH", "value": "/data/lib"}]}]}));
    let [scheduler, worker] = pods(&plain, &settings(true), None).try_into().unwrap();
    let ours = "/opt/daskade/daskade_runtime.zip";
    assert_eq!(env(&scheduler, "PYTHONPATH"), [&json!({"name": "PYTHONPATH", "value": ours})]);
    let both = format!("{ours}:$(DASKADE_PYTHONPATH)");
    assert_eq!(env(&worker, "PYTHONPATH"), [&json!({"name": "PYTHONPATH", "value": both})]);
    assert_eq!(env(&worker, "DASKADE_PYTHONPATH"), [&json!({"name": "DASKADE_PYTHONPATH", "value": "/data/lib"})]);
    let at = |name: &str| {
        let all = worker["spec"]["containers"][0]["env"].as_array().unwrap();
        all.iter().position(|variable| variable["name"] == name)
    };
    assert!(at("DASKADE_PYTHONPATH") < at("PYTHONPATH"), "Kubernetes expands what stands before");
}

#[test]
fn a_disk_of_the_user_may_take_the_place_of_the_scratch_space() {
    let volumes = json!([{"name": "tmp", "mountPath": "/tmp", "emptyDir": {"sizeLimit": "9Gi"}}]);
    let cluster = cluster(json!({"workers": [{"name": "a", "volumes": volumes}]}));
    let [scheduler, worker] = pods(&cluster, &settings(true), None).try_into().unwrap();
    let mounted = |pod: &Value| -> Vec<String> {
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap().iter();
        mounts.map(|mount| format!("{} {}", mount["name"], mount["mountPath"]).replace('"', "")).collect()
    };
    let (runtime, tls) = ("daskade-runtime /opt/daskade", "daskade-tls /etc/daskade/tls");
    assert_eq!(mounted(&scheduler), [runtime, "daskade-tmp /tmp", tls]);
    assert_eq!(mounted(&worker), [runtime, tls, "tmp /tmp"]);
}

#[test]
fn a_users_labels_and_annotations_are_on_no_child() {
    // They are not even known where objects are built; of the labels Kueue's queue is, which pods alone get.
    let cluster = cluster(json!({}));
    let [scheduler, worker] = pods(&cluster, &settings(true), Some("team")).try_into().unwrap();
    for pod in [&scheduler, &worker] {
        assert_eq!(pod["metadata"]["labels"][names::QUEUE_LABEL], "team");
    }
    for object in objects(&cluster, &settings(true), Some("team")) {
        let labels = object["metadata"]["labels"].as_object().unwrap();
        for (key, value) in labels {
            let ours = ["app.kubernetes.io/", "daskade.dev/", "dask.org/", "kueue.x-k8s.io/"];
            assert!(ours.iter().any(|prefix| key.starts_with(prefix)), "{key}");
            assert!(value.as_str().is_some_and(|value| value.len() <= 63), "{key}");
        }
        assert_eq!(labels["app.kubernetes.io/managed-by"], "daskade", "all watches are filtered by it");
        let owner = &object["metadata"]["ownerReferences"][0];
        let expected = json!({"apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "name": "c", "uid": "u",
            "controller": true, "blockOwnerDeletion": true});
        assert_eq!(owner, &expected);
        assert_eq!(object["metadata"]["namespace"], "n");
        assert!(object["metadata"]["finalizers"].is_null());
    }
}

#[test]
fn selectors_have_our_fixed_labels_only() {
    let cluster = cluster(json!({}));
    let [_, scheduler, workers, service, ..] = &objects(&cluster, &settings(true), Some("team"))[..] else { panic!() };
    let fixed = |component: &str| json!({"dask.org/cluster-name": "c", "dask.org/component": component});
    assert_eq!(service["spec"]["selector"], fixed("scheduler"));
    assert_eq!(scheduler["spec"]["podSelector"], json!({"matchLabels": fixed("scheduler")}));
    assert_eq!(workers["spec"]["podSelector"], json!({"matchLabels": fixed("worker")}));
}

/// Who may reach what, as `<from> -> <ports>`.
fn rules(policy: &Value) -> Vec<String> {
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]), "what no rule names is refused");
    let rules = policy["spec"]["ingress"].as_array().unwrap().iter().map(|rule| {
        let peers: Vec<String> = match rule["from"].as_array() {
            None => vec!["anybody".to_owned()],
            Some(peers) => peers
                .iter()
                .map(|peer| {
                    let labels = peer["podSelector"]["matchLabels"].as_object().unwrap();
                    assert!(!labels.is_empty(), "nobody is let in by an empty selector");
                    let component = labels.get("dask.org/component").or(labels.get("app.kubernetes.io/component"));
                    let who = component.map_or("client", |component| component.as_str().unwrap()).to_owned();
                    let namespace = &peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"];
                    namespace.as_str().map_or(who.clone(), |namespace| format!("{who} in {namespace}"))
                })
                .collect(),
        };
        let ports: Vec<String> =
            rule["ports"].as_array().unwrap().iter().map(|port| format!("{}", port["port"])).collect();
        format!("{} -> {}", peers.join(", "), ports.join(", "))
    });
    rules.collect()
}

#[test]
fn the_network_is_closed_but_for_those_who_need_it() {
    let cluster = cluster(json!({}));
    let policies = build_children(&cluster, &settings(true)).policies;
    assert_eq!(rules(&policies[0]), ["worker, client -> 8786", "client -> 8787", "operator in daskade-system -> 8786"]);
    assert_eq!(rules(&policies[1]), ["scheduler, worker -> 8788"]);
    // An operator outside the cluster has no name there.
    let policies = build_children(&cluster, &settings(false)).policies;
    assert_eq!(rules(&policies[0]), ["worker, client -> 8786", "client -> 8787", "anybody -> 8786"]);
}

#[test]
fn workers_beside_an_earlier_scheduler_have_its_runtime_and_its_image_unless_they_have_their_own() {
    let group = |name: &str| json!({"name": name, "replicas": 1});
    let mut own = group("own");
    own["image"] = json!("c/d:1");
    let spec = |image: &str| json!({"image": image, "workers": [group("x"), own]});
    let build = |image: &str, digest: &'static str| {
        build_templates(&cluster(spec(image)), &Settings { runtime_digest: digest, ..settings(true) }, None)
    };
    let old = build("a/b:1", "0123456789abcdef");
    let slot = Slot { role: Role::Scheduler, incarnation: 1 };
    let mut pod = old.pod(&slot, None).unwrap();
    pod["metadata"]["uid"] = json!("as the API server gives it");
    let base = read_pod(&serde_json::from_value(pod).unwrap(), jiff::Timestamp::UNIX_EPOCH).unwrap().base;
    let new = build("a/b:2", "fedcba9876543210");
    assert_eq!(new.clone().beside(&base).hashes().groups, old.hashes().groups);
    assert_ne!(new.hashes().groups, old.hashes().groups);
    assert_eq!(new.clone().beside(&base).hashes().scheduler, new.hashes().scheduler);
}

/// The pod of a scheduler as releases made it whose runtime had no `--health-port`.
fn before_health(templates: &PodTemplates) -> Base {
    let mut pod = templates.pod(&Slot { role: Role::Scheduler, incarnation: 1 }, None).unwrap();
    pod["metadata"]["uid"] = json!("as the API server gives it");
    let args = pod["spec"]["containers"][0]["args"].as_array_mut().unwrap();
    let at = args.iter().position(|arg| arg == "--health-port").unwrap();
    args.drain(at..at + 2);
    read_pod(&serde_json::from_value(pod).unwrap(), jiff::Timestamp::UNIX_EPOCH).unwrap().base
}

#[test]
fn workers_beside_a_scheduler_whose_runtime_answers_no_probes_get_neither_its_option_nor_its_probes() {
    for tls in ["Auto", "Disabled"] {
        let spec = json!({"tls": {"mode": tls}, "workers": [{"name": "x", "replicas": 1}]});
        let templates = build_templates(&cluster(spec), &settings(true), None);
        let base = before_health(&templates);
        let slot = Slot { role: Role::Worker { group: "x".to_owned(), number: 0 }, incarnation: 2 };
        let now = templates.pod(&slot, None).unwrap();
        let beside = templates.clone().beside(&base).pod(&slot, None).unwrap();
        let container = |pod: &Value| pod["spec"]["containers"][0].clone();
        let (mut expected, found) = (container(&now), container(&beside));
        let args = expected["args"].as_array_mut().unwrap();
        args.retain(|arg| arg != "--health-port" && arg != "8789");
        let socket = json!({"port": 8788});
        expected["startupProbe"] = json!({"tcpSocket": socket, "periodSeconds": 1, "failureThreshold": 300});
        expected["readinessProbe"] = json!({"tcpSocket": socket, "periodSeconds": 10, "timeoutSeconds": 3});
        expected["livenessProbe"] =
            json!({"tcpSocket": socket, "periodSeconds": 20, "timeoutSeconds": 10, "failureThreshold": 6});
        assert_eq!(found, expected, "{tls}");
        assert_eq!((option(&now, "--health-port"), option(&beside, "--health-port")), (Some("8789"), None));
        // A scheduler that answers them has workers that do.
        let mut base = base;
        base.health = true;
        assert_eq!(container(&templates.beside(&base).pod(&slot, None).unwrap()), container(&now));
    }
}

#[test]
fn templates_differ_exactly_where_a_change_must_reach_pods() {
    let base = json!({"image": "a/b:1", "workers": [{"name": "x", "replicas": 1}, {"name": "y", "replicas": 1}]});
    let hashes =
        |spec: &Value, queue: Option<&str>| build_templates(&cluster(spec.clone()), &settings(true), queue).hashes();
    let known = hashes(&base, None);
    assert_eq!(hashes(&base, None), known, "the same for the same");
    // Which of scheduler, x and y change.
    for (path, value, expected) in [
        ("/workers/0/replicas", json!(9), [false, false, false]),
        ("/idleTimeout", json!("1m"), [false, false, false]),
        ("/suspend", json!(true), [false, false, false]),
        ("/image", json!("a/b:2"), [true, true, true]),
        ("/workers/0/image", json!("c/d:1"), [false, true, false]),
        ("/workers/1/threads", json!(2), [false, false, true]),
        ("/workers/0/env", json!([{"name": "A", "value": "1"}]), [false, true, false]),
        ("/workers/0/gpu", json!({"count": 1}), [false, true, false]),
        ("/workers/0/resources", json!({"limits": {"cpu": "1"}}), [false, true, false]),
        ("/scheduler", json!({"resources": {"limits": {"cpu": "1"}}}), [true, false, false]),
        ("/tls", json!({"mode": "Disabled"}), [true, true, true]),
    ] {
        let mut spec = base.clone();
        let (parent, key) = path.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        let found = hashes(&spec, None);
        let changed = ["x", "y"].map(|group| found.groups[group] != known.groups[group]);
        assert_eq!([found.scheduler != known.scheduler, changed[0], changed[1]], expected, "{path}");
    }
    let queued = hashes(&base, Some("team"));
    assert_ne!(queued.scheduler, known.scheduler);
}

#[test]
fn order_in_what_was_given_makes_no_difference_where_it_has_no_meaning() {
    let one =
        json!({"workers": [{"name": "a", "nodeSelector": {"x": "1", "y": "2"}, "daskResources": {"B": 1, "A": 2}}]});
    let other =
        json!({"workers": [{"daskResources": {"A": 2, "B": 1}, "nodeSelector": {"y": "2", "x": "1"}, "name": "a"}]});
    let build = |spec: Value| objects(&cluster(spec), &settings(true), None);
    assert_eq!(json!(build(one)).to_string(), json!(build(other)).to_string());
}

#[test]
fn names_of_children_fit_where_the_longest_valid_names_are_given() {
    // The longest name that is valid with this group.
    let group = "g".repeat(20);
    let spec = json!({"workers": [{"name": group, "replicas": 100}]});
    let longest = (1..=53).rev().find(|length| {
        let name = "c".repeat(*length);
        validate_named(&name, &cluster(spec.clone()).spec, "spec").is_empty()
    });
    assert_eq!(longest, Some(63 - 20 - 3 - 6 - 3));
    let mut cluster = cluster(spec);
    cluster.name = "c".repeat(longest.unwrap());
    let slot = Slot { role: Role::Worker { group, number: 99 }, incarnation: 999_999 };
    assert_eq!(names::pod(&cluster.name, &slot).len(), 62);
    cluster.name = "c".repeat(53);
    let fixed = [
        names::scheduler(&cluster.name),
        names::workers(&cluster.name),
        names::runtime(&cluster.name, "0123456789abcdef"),
        names::tls_secret(&cluster.name),
        names::client_secret(&cluster.name),
    ];
    assert!(names::scheduler(&cluster.name).len() <= 63, "a Service's name is a host name");
    assert!(fixed.iter().all(|name| name.len() <= 253));
    let labels: BTreeMap<String, String> = names::labels(&cluster.name, "certificates");
    assert!(labels.values().all(|value| value.len() <= 63));
}
