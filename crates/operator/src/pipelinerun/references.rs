//! What a run may refer to. What its spec is made of is read from the API server: a watch may lag behind what somebody applied
//! just before the run, and the run would keep the old spec.

use k8s_openapi::api::core::v1::ConfigMap as Object;
use kube::{Api, Client};
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Kind;
use crate::apiserver::shown::Read;
use crate::apiserver::waiters::Waiters;
use crate::apiserver::whole;
use crate::pipelinerun::allowance::Limits;
use crate::queue::Key;
use api::cluster::DaskClusterSpec;
use api::reason::Reason;
use api::run::PipelineRunSpec;
use api::storage::Storage;
use decide::cluster::facts::Issue;
use decide::pipelinerun::admit;
use decide::pipelinerun::code::{self, ConfigMap};
use decide::pipelinerun::references::References;
use lower::allowed::RunLimits;

/// Where it is looked for, and what the operator allows.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub client: &'a Client,
    pub waiters: &'a Waiters,
    /// Where runs that name no storage keep their data; each namespace below it.
    pub storage: Option<&'a Storage>,
    /// Addresses of schedulers outside that may be used.
    pub allowed: &'a [Regex],
    pub limits: Limits,
}

/// What the run may refer to.
pub(crate) struct RunReferences<'a> {
    sources: Sources<'a>,
    key: &'a Key,
    pipeline: Option<Value>,
    cluster: Option<DaskClusterSpec>,
    code: Option<ConfigMap>,
}

impl<'a> RunReferences<'a> {
    /// Reads what the run names: its Pipeline, its DaskCluster, the ConfigMap with its code.
    pub async fn read(sources: Sources<'a>, key: &'a Key, run: &PipelineRunSpec) -> Result<Self, Issue> {
        let mut references = RunReferences { sources, key, pipeline: None, cluster: None, code: None };
        if let Some(name) = &run.pipeline_ref {
            references.pipeline = references.object(Kind::Pipeline, name).await?;
        }
        if let Some(name) = admit::cluster(run, &references) {
            let found = references.object(Kind::Cluster, &name).await?;
            references.cluster = found.and_then(|found| Deserialize::deserialize(found.get("spec")?).ok());
        }
        if let Some(name) = code::config_map(run, &references) {
            references.code = Some(references.config_map(&name).await);
        }
        Ok(references)
    }

    /// Whether the ConfigMap with its code is named, and was not there: nobody tells when it is made.
    pub fn lacks_code(&self) -> bool {
        self.code.as_ref().is_some_and(|code| !matches!(code, ConfigMap::Found { .. }))
    }

    /// An object of the run's namespace. The run hears of its next change.
    async fn object(&self, kind: Kind, name: &str) -> Result<Option<Value>, Issue> {
        let key = Key::new(self.key.namespace.clone(), name);
        self.sources.waiters.wait(kind, &key, self.key);
        let found = whole::fetch(self.sources.client, kind, &key).await.map_err(|error| unread(kind, name, error))?;
        match found {
            Some(Read { refused: Some(why), .. }) => Err(Issue::new(Reason::Invalid, format!("{kind} {name}: {why}"))),
            found => Ok(found.map(|found| found.value)),
        }
    }

    async fn config_map(&self, name: &str) -> ConfigMap {
        let api: Api<Object> = Api::namespaced(self.sources.client.clone(), &self.key.namespace);
        match api.get_opt(name).await {
            Ok(Some(found)) => {
                let binary = found.binary_data.unwrap_or_default().into_keys().collect();
                ConfigMap::Found { files: found.data.unwrap_or_default(), binary }
            }
            Ok(None) => ConfigMap::Missing,
            Err(error) => ConfigMap::Unread(unread(Kind::ConfigMap, name, error)),
        }
    }
}

/// Why something cannot be read now.
fn unread(kind: Kind, name: &str, error: kube::Error) -> Issue {
    let message = format!("cannot read the {kind} {name}; retrying");
    let issue = ReconcileError::api("read", kind, name, error).issue();
    issue.unwrap_or(Issue::new(Reason::ApiError, message))
}

impl References for RunReferences<'_> {
    fn pipeline(&self, _: &str) -> Option<Value> {
        self.pipeline.clone()
    }

    fn cluster(&self, _: &str) -> Option<DaskClusterSpec> {
        self.cluster.clone()
    }

    fn storage(&self) -> Option<Storage> {
        let mut storage = self.sources.storage.cloned()?;
        // Tenants that share a bucket are told apart.
        storage.url = format!("{}/{}", storage.url.trim_end_matches('/'), self.key.namespace);
        Some(storage)
    }

    fn config_map(&self, _: &str) -> ConfigMap {
        self.code.clone().unwrap_or(ConfigMap::Missing)
    }

    fn most_workers(&self) -> Option<u32> {
        self.sources.limits.workers_per_cluster
    }

    fn limits(&self) -> RunLimits {
        self.sources.limits.run
    }

    fn allows(&self, address: &str) -> bool {
        is_allowed(self.sources.allowed, address)
    }
}

/// Whether schedulers outside at this address may be used.
pub(crate) fn is_allowed(patterns: &[Regex], address: &str) -> bool {
    patterns.iter().any(|pattern| pattern.is_match(address))
}
