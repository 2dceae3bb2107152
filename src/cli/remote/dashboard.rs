//! `dashboard`: Dask's own page of a cluster, on this machine until Ctrl-C.

use std::io::{self, Write};

use super::connection::Connection;
use super::scheduler;
use super::show::field;
use super::tunnel::Tunnel;
use crate::cli::Failure;
use crate::cli::options::DashboardOptions;

const PORT: u16 = 8787;

/// Forwards the port, prints the address, and goes on until it is interrupted.
pub(in crate::cli) async fn dashboard(options: DashboardOptions) -> Result<(), Failure> {
    let connection = Connection::open(&options.kube).await?;
    let name = &options.what;
    // A run's name is mostly its cluster's too; where it is not, the run knows it.
    let cluster = match connection.runs().get_opt(name).await {
        Ok(Some(run)) => match field(&super::connection::as_json(&run), "/status/cluster") {
            "" => name.clone(),
            cluster => cluster.to_owned(),
        },
        // Whoever may not read runs can still name a cluster.
        Ok(None) | Err(_) => name.clone(),
    };
    let Some(pod) = scheduler::running(&connection, &cluster).await? else {
        let place = &connection.namespace;
        return Err(Failure::bad_input(format!(
            "there is no scheduler that runs for {name} in the namespace {place}: the run has ended, or its cluster is \
             not there yet"
        )));
    };
    let tunnel = Tunnel::open(connection.typed(), &pod, PORT, options.port).await?;
    let mut out = io::stdout();
    writeln!(out, "http://{}/status", tunnel.address)?;
    out.flush()?;
    drop(writeln!(io::stderr(), "the dashboard of {cluster}, until Ctrl-C"));
    tokio::signal::ctrl_c().await.map_err(|error| Failure::environment(format!("listen for signals: {error}")))
}
