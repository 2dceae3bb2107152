//! `DaskCluster`: a scheduler and groups of workers.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    duration,
    duration::Duration,
    pod::{Affinity, EnvVar, NodeSelector, Resources, Toleration, Volume},
    schema,
    status::DaskClusterStatus,
    storage::Storage,
};

/// A Dask cluster: one scheduler and groups of workers, with mutual TLS, that scale by demand and are replaced by
/// draining. Pipelines use it by name; any Dask client can use it too.
#[derive(CustomResource, Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "daskade.dev",
    version = "v1alpha1",
    kind = "DaskCluster",
    plural = "daskclusters",
    shortname = "dsk",
    category = "daskade",
    namespaced,
    status = "DaskClusterStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Desired","type":"integer","jsonPath":".status.workersDesired","description":"Workers wanted now"}"#,
    printcolumn = r#"{"name":"Workers","type":"integer","jsonPath":".status.workersReady","description":"Workers ready"}"#,
    printcolumn = r#"{"name":"GPUs","type":"integer","jsonPath":".status.gpusReady","description":"GPUs of the workers that are ready"}"#,
    printcolumn = r#"{"name":"Idle","type":"date","jsonPath":".status.idleSince","description":"How long nothing has used it"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct DaskClusterSpec {
    /// Image of scheduler and workers. Default: daskade's worker image (Dask, S3 library, dashboard; not root). An image
    /// of yours needs Python and Dask; it is checked at start, and the status tells what it lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::image")]
    pub image: Option<String>,
    /// Names of Secrets in the same namespace with registry credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::object_refs")]
    pub image_pull_secrets: Vec<String>,
    /// Resources, environment and placement of the scheduler's pod, and when a change replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// Groups of workers, unique by name, at most 32. Default: one group `default` with one worker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub workers: Vec<WorkerGroup>,
    /// Encryption and identity of all connections. Default: mutual TLS with certificates that the operator issues and
    /// renews; clients use the one in the Secret `<cluster>-client-tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClusterTls>,
    /// Storage that runs on this cluster use unless their pipeline names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// After this time without a run, a client and a task all workers are taken away, until there is work again; for
    /// example `10m`. The object and its scheduler stay. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub idle_timeout: Option<Duration>,
    /// Take scheduler and workers away and keep the object, its address and its certificates; workers finish their tasks
    /// first. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

/// Settings of the scheduler's pod.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scheduler {
    /// Its resources. Default: `{requests: {cpu: 500m, memory: 1Gi}, limits: {memory: 2Gi}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Environment variables of the scheduler, unique by name. `DASK_SCHEDULER_ADDRESS` is set by daskade.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    /// Volumes to mount, unique by name, as in a group of workers. A storage that is a folder (`file://`) lies on a
    /// PersistentVolumeClaim that scheduler and workers mount at the same path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub volumes: Vec<Volume>,
    /// Labels that its node must have, for example `{pool: system}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub node_selector: NodeSelector,
    /// Taints that it tolerates, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::undocumented_list::<Toleration>")]
    pub tolerations: Vec<Toleration>,
    /// Rules of placement, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::undocumented::<Affinity>")]
    pub affinity: Option<Affinity>,
    /// Service account of the pod. Default: one without rights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub service_account_name: Option<String>,
    /// When a changed spec replaces the scheduler, which ends what runs on the cluster: `WhenIdle` (default: once no run,
    /// client or task is there) or `Immediately`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<SchedulerRollout>,
}

/// When a changed spec replaces the scheduler, which ends what runs on the cluster: `WhenIdle` (default: once no run,
/// client or task is there) or `Immediately`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum SchedulerRollout {
    /// Once nothing uses the cluster.
    #[default]
    WhenIdle,
    /// At once.
    Immediately,
}

/// A group of workers that are alike.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!(has(self.replicas) && has(self.autoscale))", "message": "give at most one of replicas and autoscale"},
    {"rule": "!has(self.gpu) || !has(self.daskResources) || !('GPU' in self.daskResources)",
     "message": "gpu sets the Dask resource GPU; leave it out of daskResources", "fieldPath": ".daskResources"}
]))]
pub struct WorkerGroup {
    /// Name, unique in the cluster: a DNS label of at most 20 characters, for example `gpu`.
    #[schemars(schema_with = "schema::group_name")]
    pub name: String,
    /// Number of workers, fixed, 0 to 10000. Default: 1 in Kubernetes, unless `autoscale` is given; a local run starts
    /// one per core, 2 to 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: Option<u32>,
    /// Number of workers by demand: by what waits and runs, and by the resources that it asks for. Not together with
    /// `replicas`. Local runs start `min` workers, at least one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<Autoscale>,
    /// Steps that one worker runs at once, 1 to 256. Default: the CPU limit rounded up, or 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub threads: Option<u32>,
    /// Image of this group's workers, where it differs from the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::image")]
    pub image: Option<String>,
    /// Resources of one worker, for example `{limits: {cpu: "2", memory: 8Gi}}`. Default: half a CPU per thread requested,
    /// 2Gi of memory requested and as limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// GPUs of one worker. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Further abstract Dask resources of one worker, for example `{SSD: 1}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::dask_resources")]
    pub dask_resources: BTreeMap<String, f64>,
    /// Environment variables of the workers, unique by name. `DASK_SCHEDULER_ADDRESS` is set by daskade; the folders of
    /// `PYTHONPATH` are searched after daskade's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    /// Volumes to mount, unique by name, for example `[{name: data, mountPath: /data, persistentVolumeClaim: data}]`. One
    /// at `/tmp` takes the place of the scratch space that workers have there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub volumes: Vec<Volume>,
    /// Labels that the node must have, for example `{accelerator: a100}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub node_selector: NodeSelector,
    /// Taints that the pods tolerate, as in a pod; that of the GPU's resource name is tolerated without being named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::undocumented_list::<Toleration>")]
    pub tolerations: Vec<Toleration>,
    /// Rules of placement, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::undocumented::<Affinity>")]
    pub affinity: Option<Affinity>,
    /// Service account of the pods. Default: one without rights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub service_account_name: Option<String>,
    /// Time that a worker gets to finish its tasks when its node is drained or it is evicted, for example `10m`. Default:
    /// 5m. Scaling down and changes of the spec wait for tasks as long as they take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration::positive")]
    pub termination_grace_period: Option<Duration>,
    /// Name of the PriorityClass of the pods, which decides who gets a node first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub priority_class_name: Option<String>,
}

/// Bounds of scaling by demand.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(self.min) || self.min <= self.max", "message": "min must not be above max", "fieldPath": ".min", "reason": "FieldValueInvalid"}
]))]
pub struct Autoscale {
    /// Fewest workers, 0 to 10000. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub min: Option<u32>,
    /// Most workers, 1 to 10000, for example 4.
    #[schemars(range(min = 1, max = 10_000))]
    pub max: u32,
}

/// GPUs of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// GPUs (or MIG slices) of one worker, 1 to 64; also its Dask resource `GPU`. In a local run each worker has devices of
    /// its own while there are enough; then they share, and a machine without any just counts.
    #[schemars(range(min = 1, max = 64))]
    pub count: u32,
    /// Kubernetes' name of the resource, for example `nvidia.com/mig-1g.10gb`. Default: `nvidia.com/gpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 3, max = 317),
        regex(pattern = GPU_RESOURCE_PATTERN)
    )]
    pub resource_name: Option<String>,
    /// Let steps that ask for no GPU use this group's workers too. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_cpu_steps: bool,
}

/// Names of extended resources: domain and name.
pub const GPU_RESOURCE_PATTERN: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
/// The resource name of whole GPUs of NVIDIA.
pub const GPU_RESOURCE_DEFAULT: &str = "nvidia.com/gpu";

/// How connections of the cluster are secured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "(has(self.mode) && self.mode == 'Secret') == has(self.secretRef)",
     "message": "secretRef is needed with mode Secret, and only then"}
]))]
pub struct ClusterTls {
    /// `Auto` (default: mutual TLS with a certificate authority of the cluster's own), `Secret` (yours) or `Disabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// With mode `Secret`: name of a Secret with `ca.crt`, `tls.crt` and `tls.key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub secret_ref: Option<String>,
}

/// `Auto` (default: mutual TLS with a certificate authority of the cluster's own; clients use the certificate in the Secret
/// `<cluster>-client-tls`), `Secret` (yours) or `Disabled` (no encryption, and nobody is asked who they are).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TlsMode {
    /// Issued and rotated by the operator.
    #[default]
    Auto,
    /// From a Secret.
    Secret,
    /// No encryption.
    Disabled,
}
