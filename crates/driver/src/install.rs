//! Finds the runtime in a scheduler, and puts it into one that others started.

use std::time::Duration;

use tokio::time::Instant;

use super::ended::{Ended, Loss, classify, refused};
use api::reason::Reason;
use dask::Peer;
use dask::ops::{Hello, RuntimeInfo};
use run_model::Runtime;

/// A preloaded runtime installs itself in the background, after the scheduler listens.
const INSTALL_WAIT: Duration = Duration::from_secs(30);
/// It is asked for after the first of these, then ever less often up to the longest.
const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);

/// The runtime on the scheduler; installed over the protocol where others started the scheduler.
pub(super) async fn runtime(peer: &Peer, install: Option<Runtime>) -> Result<RuntimeInfo, Ended> {
    let deadline = Instant::now() + INSTALL_WAIT;
    let (mut installed, mut pause) = (false, FIRST);
    loop {
        match peer.call(&Hello {}).await {
            Ok(info) => return Ok(info),
            Err(dask::Error::UnknownOp { .. })
                if let Some(runtime) = install
                    && !installed =>
            {
                installed = true;
                put(peer, runtime).await.map_err(|error| match error {
                    dask::Error::Remote { text, .. } => refused(Reason::InstallFailed, text),
                    other => classify(other),
                })?;
            }
            Err(dask::Error::UnknownOp { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST);
            }
            Err(dask::Error::UnknownOp { .. }) => {
                let cause = format!("the runtime did not start in the scheduler within {} s", INSTALL_WAIT.as_secs());
                return Err(Ended::Lost { cause, loss: Loss::Bare });
            }
            Err(error) => return Err(classify(error)),
        }
    }
}

/// Sends the runtime over the protocol and waits until the scheduler has it.
async fn put(peer: &Peer, runtime: Runtime) -> Result<(), dask::Error> {
    peer.connect().await?.install_runtime(runtime.zip, runtime.digest).await
}
