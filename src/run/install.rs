//! Puts the runtime into a scheduler that others started.

use crate::dask::{self, Peer};
use crate::local::environment::{RUNTIME_DIGEST, runtime_zip};

/// Sends the runtime over the protocol and waits until the scheduler has it.
pub(super) async fn install(peer: &Peer) -> Result<(), dask::Error> {
    peer.connect().await?.install_runtime(runtime_zip(), RUNTIME_DIGEST).await
}
