//! A port of a pod on this machine, through the API server: who may not reach the pod may still be allowed to forward its
//! ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::client::UpgradeConnectionError;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::connection::failed;
use crate::cli::Failure;

/// Listens on this machine alone, and carries each connection to the pod. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Tunnel {
    /// `local`: the port here, 0 for any. A pod that cannot be forwarded to, or may not be, is told now.
    pub async fn open(pods: Api<Pod>, pod: &str, port: u16, local: u16) -> Result<Self, Failure> {
        drop(pods.portforward(pod, &[port]).await.map_err(|error| refused(pod, &error))?);
        let here = |error: io::Error| Failure::environment(format!("listen on 127.0.0.1:{local}: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local)).await.map_err(here)?;
        let address = listener.local_addr().map_err(here)?;
        let task = tokio::spawn(serve(listener, pods, pod.to_owned(), port));
        Ok(Self { address, task })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, pods: Api<Pod>, pod: String, port: u16) {
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => drop(carried.spawn(carry(socket, pods.clone(), pod.clone(), port))),
                Err(error) => tracing::warn!(%error, "a connection could not be accepted"),
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

/// Whoever connected sees the connection end when the pod, or the way to it, is gone.
async fn carry(mut socket: TcpStream, pods: Api<Pod>, pod: String, port: u16) {
    let mut forwarder = match pods.portforward(&pod, &[port]).await {
        Ok(forwarder) => forwarder,
        Err(error) => return tracing::warn!(%error, pod, port, "the port could not be forwarded"),
    };
    let Some(mut stream) = forwarder.take_stream(port) else { return };
    if let Err(error) = copy_bidirectional(&mut socket, &mut stream).await {
        tracing::debug!(%error, pod, port, "a forwarded connection broke");
    }
}

fn refused(pod: &str, error: &kube::Error) -> Failure {
    match error {
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) if status.as_u16() == 403 => {
            Failure::environment(format!(
                "forward a port of the pod {pod}: you may not; it takes the verbs get and create on pods/portforward"
            ))
        }
        error => failed(&format!("forward a port of the pod {pod}"), error),
    }
}
