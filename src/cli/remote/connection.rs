//! To the API server.

use kube::api::DynamicObject;
use kube::config::KubeConfigOptions;
use kube::core::{ApiResource, NamespaceResourceScope};
use kube::{Api, Client, Config, Resource};
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::cli::options::KubeOptions;
use api::{Pipeline, PipelineRun};
use operator::cause::cause;

/// A client, and the namespace that is meant.
pub(super) struct Connection {
    client: Client,
    pub namespace: String,
}

impl Connection {
    /// By `KUBECONFIG`, `~/.kube/config`, or the service account of the pod that this is.
    pub async fn open(options: &KubeOptions) -> Result<Self, Failure> {
        // An error says that one is installed already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = match &options.context {
            Some(context) => {
                let wanted = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
                Config::from_kubeconfig(&wanted).await.map_err(|error| no_config(&error))?
            }
            None => Config::infer().await.map_err(|error| no_config(&error))?,
        };
        let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| failed("connect to the API server", &error))?;
        Ok(Self { client, namespace })
    }

    pub async fn pipeline(&self, name: &str) -> Result<Option<Value>, Failure> {
        let api = self.api(&ApiResource::erase::<Pipeline>(&()));
        let found = api.get_opt(name).await.map_err(|error| failed(&format!("read Pipeline {name}"), &error))?;
        Ok(found.map(|object| as_json(&object)))
    }

    /// Objects are read without types: one that this version cannot read is shown as far as it can be.
    pub fn runs(&self) -> Api<DynamicObject> {
        self.api(&ApiResource::erase::<PipelineRun>(&()))
    }

    /// A run, which must be there.
    pub async fn run(&self, name: &str) -> Result<Value, Failure> {
        let found = self.runs().get_opt(name).await.map_err(|error| failed(&format!("read run {name}"), &error))?;
        match found {
            Some(object) => Ok(as_json(&object)),
            None => Err(self.no_run(name).await),
        }
    }

    /// Says that there is no such run, and which is likely meant.
    pub async fn no_run(&self, name: &str) -> Failure {
        let listed = self.runs().list(&kube::api::ListParams::default()).await;
        let names: Vec<String> = listed.into_iter().flatten().filter_map(|run| run.metadata.name).collect();
        let near = api::problem::nearest(name, names.iter().map(String::as_str));
        let hint = match near {
            Some(near) => format!("; did you mean {near}?"),
            None => format!("; list them by daskade runs -n {}", self.namespace),
        };
        Failure::bad_input(format!("there is no run {name} in the namespace {}{hint}", self.namespace))
    }

    /// Objects of Kubernetes' own.
    pub fn typed<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, resource)
    }
}

pub(super) fn as_json(object: &DynamicObject) -> Value {
    let mut value = object.data.clone();
    value["metadata"] = json!(object.metadata);
    value
}

/// What failed, with what to do where that is known.
pub(super) fn failed(what: &str, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 404 && status.message.contains("the server could not find") => {
            let help = "daskade is not installed in this cluster: daskade crd | kubectl apply -f -";
            Failure::environment(format!("{what}: {} ({help})", status.message))
        }
        kube::Error::Api(status) if [400, 409, 422].contains(&status.code) => {
            Failure::bad_input(format!("{what}: {}", status.message))
        }
        kube::Error::Api(status) => Failure::environment(format!("{what}: {}", status.message)),
        other => Failure::environment(format!("{what}: {}", cause(other))),
    }
}

fn no_config(error: &impl std::fmt::Display) -> Failure {
    let help = "set KUBECONFIG, or give --context";
    Failure::environment(format!("find out which cluster is meant: {error} ({help})"))
}
