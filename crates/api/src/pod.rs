//! Pod settings that users may give: a typed allow-list, not a pasted PodSpec.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{quantity::Quantity, schema};

/// Resources of a pod's container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Most that it may take, for example `{cpu: "2", memory: 8Gi}`. `memory` is also the limit that Dask is told.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "x-kubernetes-validations" = [
        {"rule": "!('memory' in self) || (self['memory'] != 0 && !(self['memory'] in ['0', '0m', '0k', '0M', '0G', '0T', '0Ki', '0Mi', '0Gi', '0Ti']))", "message": "memory must be above zero", "fieldPath": ".memory", "reason": "FieldValueInvalid"}
    ]))]
    pub limits: BTreeMap<String, Quantity>,
    /// What is set aside for it, for example `{cpu: 500m, memory: 8Gi}`. Default: as `limits`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "x-kubernetes-validations" = [
        {"rule": "!('memory' in self) || (self['memory'] != 0 && !(self['memory'] in ['0', '0m', '0k', '0M', '0G', '0T', '0Ki', '0Mi', '0Gi', '0Ti']))", "message": "memory must be above zero", "fieldPath": ".memory", "reason": "FieldValueInvalid"}
    ]))]
    pub requests: BTreeMap<String, Quantity>,
}

/// An environment variable of a pod; exactly one of `value` and `valueFrom`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!(has(self.value) && has(self.valueFrom))", "message": "give at most one of value and valueFrom"}
]))]
pub struct EnvVar {
    /// Name, for example `OMP_NUM_THREADS`.
    #[schemars(length(min = 1, max = 256), regex(pattern = crate::names::IDENTIFIER_PATTERN))]
    pub name: String,
    /// Value, a text (quote numbers and `true`/`false`). Default: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32_768))]
    pub value: Option<String>,
    /// Value from a key of a Secret or ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvSource>,
}

/// Source of a variable; exactly one field.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.secretKeyRef) != has(self.configMapKeyRef)",
     "message": "give exactly one of secretKeyRef and configMapKeyRef"}
]))]
pub struct EnvSource {
    /// A key of a Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
    /// A key of a ConfigMap in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
}

/// A key of a Secret or ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the object.
    #[schemars(schema_with = "schema::object_ref")]
    pub name: String,
    /// Key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A volume mounted into the scheduler or into every worker of a group; exactly one source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.persistentVolumeClaim), has(self.configMap), has(self.secret), has(self.emptyDir), has(self.serviceAccountToken)].filter(x, x).size() == 1",
     "message": "give exactly one of persistentVolumeClaim, configMap, secret, emptyDir and serviceAccountToken"}
]))]
pub struct Volume {
    /// Name, unique in its list, for example `data`.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::DNS_LABEL_PATTERN))]
    pub name: String,
    /// Where it is mounted, an absolute path, for example `/data`.
    #[schemars(length(min = 2, max = 1024), regex(pattern = "^/[^:]*$"))]
    pub mount_path: String,
    /// Mounted without the right to write. Default: false; ConfigMaps and Secrets always are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Name of a PersistentVolumeClaim in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub persistent_volume_claim: Option<String>,
    /// Name of a ConfigMap in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub config_map: Option<String>,
    /// Name of a Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub secret: Option<String>,
    /// Scratch space that ends with the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,
    /// A token of the pod's service account, as the file `token`, which Kubernetes renews: with it pods prove to a cloud who
    /// they are (web identity). Needs a `serviceAccountName`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<ServiceAccountToken>,
}

/// A token of the pod's service account.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountToken {
    /// Who takes the token, for example `sts.amazonaws.com`.
    #[schemars(length(min = 1, max = 253))]
    pub audience: String,
    /// Life of a token in seconds, 600 to 86400; it is renewed before that. Default: 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 600, max = 86_400))]
    pub expiration_seconds: Option<u32>,
}

/// Scratch space.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDir {
    /// `Memory` for a RAM disk (counts against the memory limit). Default: the node's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub medium: Option<Medium>,
    /// Largest size, for example `10Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}

/// `Memory` for a RAM disk (counts against the memory limit). Default: the node's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Medium {
    /// A RAM disk.
    Memory,
}

/// Where and as whom a group's pods run; the same for scheduler and workers.
pub type NodeSelector = BTreeMap<String, String>;
/// Kubernetes' toleration.
pub type Toleration = core::Toleration;
/// Kubernetes' affinity.
pub type Affinity = core::Affinity;
