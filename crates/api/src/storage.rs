//! Object storage of clusters and pipelines.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Storage URLs that are accepted: of a prefix no part is empty, `.` or `..`, which would mean another place to some.
pub const STORAGE_URL_PATTERN: &str = concat!(
    r"^(s3|gs)://[a-z0-9][a-z0-9._-]{1,221}[a-z0-9]",
    r"(/([^./\x00-\x20\x7f][^/\x00-\x20\x7f]*|\.[^./\x00-\x20\x7f][^/\x00-\x20\x7f]*|\.\.[^/\x00-\x20\x7f]+))*/?$",
    r"|^file:///[^\x00-\x1f\x7f]*$"
);

/// Addresses of S3 services that are accepted: no user and password in them.
pub const ENDPOINT_PATTERN: &str = r"^https?://[^\x00-\x20\x7f@]+$";

/// Where outputs and journals are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!(has(self.secretRef) && has(self.serviceAccountName))",
     "message": "give at most one of secretRef and serviceAccountName"}
]))]
pub struct Storage {
    /// Bucket and prefix, for example `s3://bucket/prefix` or `gs://bucket/prefix`, or a folder, for example `file:///data`:
    /// in Kubernetes one on a PersistentVolumeClaim that scheduler and workers mount (`volumes`).
    #[schemars(length(min = 7, max = 1024), regex(pattern = STORAGE_URL_PATTERN))]
    pub url: String,
    /// Address of the S3 service where it is not AWS, for example `https://minio.example.com:9000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 512), regex(pattern = ENDPOINT_PATTERN))]
    pub endpoint: Option<String>,
    /// Region of the bucket, for example `eu-central-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    pub region: Option<String>,
    /// Name of a Secret in the same namespace with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (for gs:
    /// `GOOGLE_APPLICATION_CREDENTIALS_JSON`). Its values may be changed at any time: pods take them up within two minutes.
    /// Local runs use the environment's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub secret_ref: Option<String>,
    /// Service account whose cloud identity reaches the storage, instead of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object_ref")]
    pub service_account_name: Option<String>,
}
