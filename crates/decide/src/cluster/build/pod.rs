//! Pods of schedulers and workers. Every one passes the `restricted` Pod Security Standard.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Settings, metadata};
use crate::cluster::{
    effective_groups,
    facts::{Base, Cluster, Role, Slot},
    group::gpu_resource,
    memory_bytes, names, offers, threads,
};
use api::{
    cluster::{ClusterTls, TlsMode, WorkerGroup},
    pod::{EnvVar, Resources, Volume},
    storage::Storage,
};

/// Time that a scheduler gets to write what its runs have finished.
const SCHEDULER_GRACE: i64 = 30;
/// Time that a worker gets to finish what runs on it, when its node is drained.
const WORKER_GRACE: i64 = 300;
/// What is left of the grace for closing down after the last task.
const CLOSING: i64 = 5;
/// The volume with the runtime.
pub const RUNTIME_VOLUME: &str = "daskade-runtime";
/// Option of the runtime: the port at which it answers the kubelet's probes.
pub const HEALTH_OPTION: &str = "--health-port";
/// Life of a token of a service account, unless the volume says otherwise.
const TOKEN_SECONDS: u32 = 3600;
const RUNTIME_FOLDER: &str = "/opt/daskade";
const TMP: &str = "/tmp";
/// Where Python looks for modules.
const PATH: &str = "PYTHONPATH";
const USERS_PATH: &str = "DASKADE_PYTHONPATH";
const TLS_FOLDER: &str = "/etc/daskade/tls";
/// Where the storage's Secret is, as files that follow its changes.
const CREDENTIALS_FOLDER: &str = "/etc/daskade/storage";

/// A pod but for what differs from slot to slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    pub(super) spec: Value,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) hash: String,
}

/// The templates of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct PodTemplates {
    pub(super) scheduler: Template,
    pub(super) groups: BTreeMap<String, Template>,
    cluster: Cluster,
}

/// Builds them. `queue` is Kueue's queue, from the DaskCluster's label.
pub fn build_templates(cluster: &Cluster, settings: &Settings, queue: Option<&str>) -> PodTemplates {
    let queue = queue.map(|queue| (names::QUEUE_LABEL.to_owned(), queue.to_owned()));
    let scheduler = Template::new(scheduler(cluster, settings), queue.clone().into_iter().collect());
    let groups = effective_groups(&cluster.spec).into_iter().map(|group| {
        let mut labels: BTreeMap<String, String> = queue.clone().into_iter().collect();
        if let Some(gpu) = &group.gpu {
            labels.insert(names::GPU_LABEL.to_owned(), gpu.count.to_string());
        }
        let template = Template::new(worker(cluster, settings, &group), labels);
        (group.name, template)
    });
    PodTemplates { scheduler, groups: groups.collect(), cluster: cluster.clone() }
}

impl Template {
    fn image(&mut self) -> Option<&mut Value> {
        self.spec.pointer_mut("/containers/0/image")
    }

    fn new(spec: Value, labels: BTreeMap<String, String>) -> Template {
        let text = json!([spec, labels]).to_string();
        let hash = hex::encode(&Sha256::digest(text.as_bytes())[..8]);
        Template { spec, labels, hash }
    }
}

impl PodTemplates {
    /// With workers as they have to be beside a scheduler of an earlier template that cannot be replaced yet: with its
    /// runtime, with the options and probes that this runtime knows, and with its image unless they have one of their own.
    pub fn beside(mut self, scheduler: &Base) -> PodTemplates {
        let common = self.scheduler.image().cloned();
        for template in self.groups.values_mut() {
            if let Some(image) = template.image().filter(|image| Some(&**image) == common.as_ref()) {
                *image = json!(scheduler.image);
            }
            for volume in template.spec["volumes"].as_array_mut().into_iter().flatten() {
                if volume["name"] == RUNTIME_VOLUME {
                    volume["configMap"]["name"] = json!(scheduler.runtime);
                }
            }
            if !scheduler.health {
                look_at_the_port(&mut template.spec["containers"][0]);
            }
            *template = Template::new(template.spec.take(), std::mem::take(&mut template.labels));
        }
        self
    }

    /// The pod for a slot; none for a group that the spec does not have. `certificate` is the fingerprint of what it shows.
    pub fn pod(&self, slot: &Slot, certificate: Option<&str>) -> Option<Value> {
        let template = match &slot.role {
            Role::Scheduler => &self.scheduler,
            Role::Worker { group, .. } => self.groups.get(group)?,
        };
        let mut labels = names::pod_labels(&self.cluster.name, slot);
        labels.extend(template.labels.clone());
        let mut meta = metadata(&self.cluster, &names::pod(&self.cluster.name, slot), &labels);
        let mut annotations = BTreeMap::from([(names::TEMPLATE_ANNOTATION, template.hash.as_str())]);
        annotations.extend(certificate.map(|fingerprint| (names::CERTIFICATE_ANNOTATION, fingerprint)));
        meta["annotations"] = json!(annotations);
        Some(json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template.spec}))
    }
}

/// What the pods of one kind are made from.
struct Parts<'a> {
    component: &'static str,
    image: &'a str,
    args: Vec<String>,
    env: &'a [EnvVar],
    volumes: &'a [Volume],
    resources: Value,
    grace: i64,
    service_account: Option<&'a str>,
    ports: Value,
}

fn scheduler(cluster: &Cluster, settings: &Settings) -> Value {
    let spec = cluster.spec.scheduler.clone().unwrap_or_default();
    let image = cluster.spec.image.as_deref().unwrap_or(&settings.image);
    let mut args = vec!["scheduler".to_owned()];
    args.extend(["--port".to_owned(), names::SCHEDULER_PORT.to_string()]);
    args.extend(["--dashboard-port".to_owned(), names::DASHBOARD_PORT.to_string()]);
    let resources = match &spec.resources {
        Some(resources) => amounts(resources),
        None => json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}),
    };
    let mut pod = base(
        cluster,
        settings,
        Parts {
            component: "scheduler",
            image,
            args,
            env: &spec.env,
            volumes: &spec.volumes,
            resources,
            grace: SCHEDULER_GRACE,
            service_account: spec.service_account_name.as_deref(),
            ports: json!([
                {"name": "tcp-comm", "containerPort": names::SCHEDULER_PORT},
                {"name": "http-dashboard", "containerPort": names::DASHBOARD_PORT},
            ]),
        },
    );
    place(&mut pod, &spec.node_selector, json!(spec.tolerations), json!(spec.affinity));
    pod
}

fn worker(cluster: &Cluster, settings: &Settings, group: &WorkerGroup) -> Value {
    let image = group.image.as_deref().or(cluster.spec.image.as_deref()).unwrap_or(&settings.image);
    let grace = group.termination_grace_period.as_ref().map_or(WORKER_GRACE, |grace| grace.to_std().as_secs() as i64);
    let memory = memory_bytes(group).map_or_else(|| "auto".to_owned(), |bytes| bytes.to_string());
    let mut args = vec!["worker".to_owned()];
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("--group", group.name.clone());
    option("--threads", threads(group).to_string());
    option("--memory-limit", memory);
    option("--port", names::WORKER_PORT.to_string());
    option("--grace", (grace - CLOSING).max(1).to_string());
    let offers: Vec<String> = offers(group).iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    if !offers.is_empty() {
        option("--resources", offers.join(","));
    }
    let mut resources = match &group.resources {
        Some(resources) => amounts(resources),
        None => {
            let cpu = format!("{}m", 500 * threads(group));
            json!({"requests": {"cpu": cpu, "memory": "2Gi"}, "limits": {"memory": "2Gi"}})
        }
    };
    let mut tolerations = json!(group.tolerations);
    if let Some(gpu) = &group.gpu {
        let name = gpu_resource(gpu);
        resources["limits"][name] = json!(gpu.count.to_string());
        if let Some(list) = tolerations.as_array_mut() {
            list.push(json!({"key": name, "operator": "Exists", "effect": "NoSchedule"}));
        }
    }
    let mut pod = base(
        cluster,
        settings,
        Parts {
            component: "worker",
            image,
            args,
            env: &group.env,
            volumes: &group.volumes,
            resources,
            grace,
            service_account: group.service_account_name.as_deref(),
            ports: json!([{"name": "tcp-comm", "containerPort": names::WORKER_PORT}]),
        },
    );
    place(&mut pod, &group.node_selector, tolerations, json!(group.affinity));
    if let Some(class) = &group.priority_class_name {
        pod["priorityClassName"] = json!(class);
    }
    pod
}

/// Limits are also what is requested, unless requests say otherwise: Kubernetes' own default, written down.
fn amounts(resources: &Resources) -> Value {
    let mut requests = resources.limits.clone();
    requests.extend(resources.requests.clone());
    json!({"limits": resources.limits, "requests": requests})
}

/// The runtime's health.py answers them. `/started` waits 20 s for the server, so that an ordinary start fails no probe; `/live`
/// fails when the process has been frozen for 60 s.
fn probes() -> Value {
    let get = |path: &str| json!({"path": path, "port": names::HEALTH_PORT});
    json!({
        "startupProbe": {
            "httpGet": get("/started"), "initialDelaySeconds": 1, "periodSeconds": 2, "timeoutSeconds": 25, "failureThreshold": 30,
        },
        "readinessProbe": {"httpGet": get("/ready"), "periodSeconds": 10, "timeoutSeconds": 3},
        "livenessProbe": {
            "httpGet": get("/live"), "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 3,
            // What is frozen finishes nothing, however long the pod's own grace period is.
            "terminationGracePeriodSeconds": 5,
        },
    })
}

/// A worker with a runtime from before health.py: without its option, and with probes that look whether the port is open.
fn look_at_the_port(worker: &mut Value) {
    if let Some(args) = worker["args"].as_array_mut()
        && let Some(at) = args.iter().position(|arg| arg == HEALTH_OPTION)
    {
        args.drain(at..args.len().min(at + 2));
    }
    let socket = json!({"port": names::WORKER_PORT});
    worker["startupProbe"] = json!({"tcpSocket": socket, "periodSeconds": 1, "failureThreshold": 300});
    worker["readinessProbe"] = json!({"tcpSocket": socket, "periodSeconds": 10, "timeoutSeconds": 3});
    worker["livenessProbe"] =
        json!({"tcpSocket": socket, "periodSeconds": 20, "timeoutSeconds": 10, "failureThreshold": 6});
}

fn base(cluster: &Cluster, settings: &Settings, parts: Parts<'_>) -> Value {
    let Parts { component, image, mut args, env, volumes, resources, grace, service_account, ports } = parts;
    let storage = cluster.spec.storage.as_ref();
    let secret = tls_secret(cluster);
    let mut mounts = vec![json!({"name": RUNTIME_VOLUME, "mountPath": RUNTIME_FOLDER, "readOnly": true})];
    let runtime = names::runtime(&cluster.name, settings.runtime_digest);
    let mut sources = vec![json!({"name": RUNTIME_VOLUME, "configMap": {"name": runtime}})];
    // The root is read-only. Somebody may want another disk for it, or a bound.
    if !volumes.iter().any(|volume| volume.mount_path.trim_end_matches('/') == TMP) {
        mounts.push(json!({"name": "daskade-tmp", "mountPath": TMP}));
        sources.push(json!({"name": "daskade-tmp", "emptyDir": {}}));
    }
    args.extend([HEALTH_OPTION.to_owned(), names::HEALTH_PORT.to_string()]);
    if let Some(secret) = &secret {
        args.extend(["--tls".to_owned(), TLS_FOLDER.to_owned()]);
        mounts.push(json!({"name": "daskade-tls", "mountPath": TLS_FOLDER, "readOnly": true}));
        // Readable by the group of the pod alone.
        sources.push(json!({"name": "daskade-tls", "secret": {"secretName": secret, "defaultMode": 0o440}}));
    }
    if let Some(secret) = storage.and_then(|storage| storage.secret_ref.as_deref()) {
        mounts.push(json!({"name": "daskade-storage", "mountPath": CREDENTIALS_FOLDER, "readOnly": true}));
        // One that is missing is told of by the variables, in better words than those of a volume.
        let secret = json!({"secretName": secret, "defaultMode": 0o440, "optional": true});
        sources.push(json!({"name": "daskade-storage", "secret": secret}));
    }
    for volume in volumes {
        let (source, read_only) = source(volume);
        mounts.push(json!({"name": volume.name, "mountPath": volume.mount_path, "readOnly": read_only}));
        sources.push(source);
    }
    let mut container = json!({
        "name": component,
        "image": image,
        "command": ["python3", "-m", "daskade_runtime.pod"],
        "args": args,
        "env": variables(cluster, storage, env, secret.is_some()),
        "ports": ports,
        "resources": resources,
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    });
    if let (Some(container), Value::Object(probes)) = (container.as_object_mut(), probes()) {
        container.extend(probes);
    }
    let account = service_account.or(storage.and_then(|storage| storage.service_account_name.as_deref()));
    let mut pod = json!({
        "containers": [container],
        "volumes": sources,
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": grace,
        "enableServiceLinks": false,
        // A service account that is named is meant to be used; the default one has no business in a worker.
        "automountServiceAccountToken": account.is_some(),
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    if let Some(account) = account {
        pod["serviceAccountName"] = json!(account);
    }
    if !cluster.spec.image_pull_secrets.is_empty() {
        pod["imagePullSecrets"] = cluster.spec.image_pull_secrets.iter().map(|name| json!({"name": name})).collect();
    }
    pod
}

/// The Secret that pods mount; none without TLS.
pub(super) fn tls_secret(cluster: &Cluster) -> Option<String> {
    let tls = cluster.spec.tls.clone().unwrap_or_default();
    let ClusterTls { mode, secret_ref } = tls;
    match mode.unwrap_or_default() {
        TlsMode::Auto => Some(names::tls_secret(&cluster.name)),
        TlsMode::Secret => secret_ref,
        TlsMode::Disabled => None,
    }
}

/// Ours first: Kubernetes expands a later variable with earlier ones, and a user's own settings of Dask win.
fn variables(cluster: &Cluster, storage: Option<&Storage>, env: &[EnvVar], tls: bool) -> Value {
    let address = names::address(&cluster.name, &cluster.namespace, tls);
    let mut list = vec![
        json!({"name": "PYTHONUNBUFFERED", "value": "1"}),
        json!({"name": "HOME", "value": TMP}),
        json!({"name": "DASK_SCHEDULER_ADDRESS", "value": address}),
        json!({"name": "DASKADE_CLUSTER", "value": cluster.name}),
        json!({"name": "DASKADE_WORKER_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        json!({"name": "DASKADE_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
    ];
    if let Some(storage) = storage {
        let plain = [("AWS_ENDPOINT_URL", &storage.endpoint), ("AWS_REGION", &storage.region)];
        let plain = plain.into_iter().filter_map(|(name, value)| Some(json!({"name": name, "value": value.as_ref()?})));
        list.extend(plain);
        if let Some(secret) = &storage.secret_ref {
            list.push(json!({"name": "DASKADE_CREDENTIALS", "value": CREDENTIALS_FOLDER}));
            // For the steps' own clients of the storage.
            let keys: &[(&str, bool)] = if storage.url.starts_with("gs://") {
                &[("GOOGLE_APPLICATION_CREDENTIALS_JSON", false)]
            } else {
                &[("AWS_ACCESS_KEY_ID", false), ("AWS_SECRET_ACCESS_KEY", false), ("AWS_SESSION_TOKEN", true)]
            };
            list.extend(keys.iter().map(|(key, optional)| {
                json!({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": optional}}})
            }));
        }
    }
    let mut path = format!("{RUNTIME_FOLDER}/daskade_runtime.zip");
    for variable in env {
        let mut variable = json!(variable);
        if variable["name"] == PATH {
            // Theirs after ours: without the runtime nothing starts.
            variable["name"] = json!(USERS_PATH);
            path = format!("{path}:$({USERS_PATH})");
        }
        list.push(variable);
    }
    list.push(json!({"name": PATH, "value": path}));
    Value::Array(list)
}

/// A volume's source, and whether it is mounted without the right to write.
fn source(volume: &Volume) -> (Value, bool) {
    let name = &volume.name;
    if let Some(claim) = &volume.persistent_volume_claim {
        return (json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}), volume.read_only);
    }
    if let Some(config_map) = &volume.config_map {
        return (json!({"name": name, "configMap": {"name": config_map}}), true);
    }
    if let Some(secret) = &volume.secret {
        return (json!({"name": name, "secret": {"secretName": secret}}), true);
    }
    if let Some(token) = &volume.service_account_token {
        let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        let token = json!({"audience": token.audience, "expirationSeconds": seconds, "path": "token"});
        let sources = json!([{"serviceAccountToken": token}]);
        return (json!({"name": name, "projected": {"defaultMode": 0o440, "sources": sources}}), true);
    }
    (json!({"name": name, "emptyDir": volume.empty_dir}), volume.read_only)
}

fn place(pod: &mut Value, node_selector: &BTreeMap<String, String>, tolerations: Value, affinity: Value) {
    if !node_selector.is_empty() {
        pod["nodeSelector"] = json!(node_selector);
    }
    if tolerations.as_array().is_some_and(|list| !list.is_empty()) {
        pod["tolerations"] = tolerations;
    }
    if !affinity.is_null() {
        pod["affinity"] = affinity;
    }
}
