//! The scheduler of a cluster, by way of the API server, as a client that its owner let in.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::ListParams;

use super::connection::{Connection, failed};
use super::tunnel::Tunnel;
use crate::cli::Failure;
use dask::ops::Hello;
use dask::{Address, Connection as Dask, Deadlines, Scheme, Tls};

const PORT: u16 = 8786;

/// A connection to the scheduler; it ends with this.
#[derive(Debug)]
pub(super) struct Scheduler {
    pub dask: Dask,
    /// Of the process: what is told of another one does not fit.
    pub instance: String,
    /// Runs that are open there, with their epochs.
    pub runs: BTreeMap<String, u64>,
    _tunnel: Tunnel,
}

impl Scheduler {
    /// None while the cluster has no scheduler that runs.
    pub async fn open(connection: &Connection, cluster: &str) -> Result<Option<Self>, Failure> {
        let Some(pod) = running(connection, cluster).await? else { return Ok(None) };
        let name = format!("{cluster}-client-tls");
        let secrets: Api<Secret> = connection.typed();
        let secret =
            secrets.get_opt(&name).await.map_err(|error| failed(&format!("read the Secret {name}"), &error))?;
        let tls = secret.map(|secret| tls(&name, &secret)).transpose()?;
        let tunnel = Tunnel::open(connection.typed(), &pod, PORT, 0).await?;
        let scheme = if tls.is_some() { Scheme::Tls } else { Scheme::Tcp };
        let reached = |error: dask::Error| {
            Failure::environment(format!("talk to the scheduler of {cluster} in the pod {pod}: failed to {error}"))
        };
        let address = Address::new(scheme, &tunnel.address.ip().to_string(), tunnel.address.port()).map_err(reached)?;
        let dask = Dask::connect(&address, tls.as_ref(), Deadlines::default()).await.map_err(reached)?;
        let hello = dask.call(&Hello::default()).await.map_err(reached)?;
        Ok(Some(Self { dask, instance: hello.instance, runs: hello.runs, _tunnel: tunnel }))
    }
}

/// The pod of a cluster's scheduler, if it runs.
pub(super) async fn running(connection: &Connection, cluster: &str) -> Result<Option<String>, Failure> {
    let pods: Api<Pod> = connection.typed();
    let labels = format!("daskade.dev/cluster={cluster},dask.org/component=scheduler");
    let listed = pods.list(&ListParams::default().labels(&labels)).await;
    let listed = listed.map_err(|error| failed(&format!("list the pods of {cluster}"), &error))?;
    let mut running = listed.items.into_iter().filter(|pod| {
        let ready = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ready = ready.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True");
        ready && pod.metadata.deletion_timestamp.is_none()
    });
    Ok(running.next().and_then(|pod| pod.metadata.name))
}

fn tls(name: &str, secret: &Secret) -> Result<Tls, Failure> {
    let key = |key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.map(|data| data.0.as_slice())
            .ok_or_else(|| Failure::environment(format!("the Secret {name} has no {key}")))
    };
    Tls::from_pem(key("ca.crt")?, key("tls.crt")?, key("tls.key")?)
        .map_err(|error| Failure::environment(format!("use the certificates of the Secret {name}: failed to {error}")))
}
