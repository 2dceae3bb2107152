//! The shell of the operator: everything that talks to Kubernetes.

pub mod cause;
pub mod certificates;
pub mod crds;
pub mod fence;
pub mod lead;
pub mod lease;
pub mod own;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;

use self::lead::Lead;
use crate::telemetry::metrics::Metrics;

/// Which namespaces are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    All,
    /// These, at least one.
    Names(Vec<String>),
    /// Those whose labels match a selector.
    Selector(String),
}

/// Settings of all controllers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Image of clusters that name none.
    pub image: String,
    pub namespaces: Namespaces,
    /// Where the operator keeps what tenants must not see, and where it runs.
    pub own_namespace: String,
    /// Labels of the operator's own pods.
    pub own_labels: BTreeMap<String, String>,
    /// Life of the certificates that it issues.
    pub certificate_lifetime: Duration,
    /// Objects that are worked on at once.
    pub concurrency: u16,
}

/// Why the controllers ended; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// Runs the controllers until `shutdown` ends.
pub async fn run(
    _client: Client,
    _settings: Settings,
    _lead: Lead,
    shutdown: impl Future<Output = ()> + Send,
    _metrics: Arc<Metrics>,
) -> Result<(), Error> {
    shutdown.await;
    Ok(())
}
