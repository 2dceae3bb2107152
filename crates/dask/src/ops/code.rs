//! The operation that brings an archive of code to a run (protocol 1).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Operation, Storage};
use crate::deadlines::Deadlines;

/// `daskade-code`: fetches an archive and keeps it as the run's code; asked again, it tells what was kept. Before the run is
/// opened.
#[derive(Debug, Clone, Serialize)]
pub struct FetchCode<'a> {
    /// Unique id of the run.
    pub run: &'a str,
    /// Where the run is kept; an archive on the same kind of storage is fetched from the same service.
    pub storage: Storage,
    /// Such as `s3://bucket/flow.tar.gz`.
    pub url: &'a str,
    /// What the archive must have as SHA-256, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<&'a str>,
    /// Epoch of the operator's leader that asks, if an operator asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lead: Option<u64>,
    /// Uid of its Lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<&'a str>,
}

/// Answer of [`FetchCode`].
#[derive(Debug, Clone, Deserialize)]
pub struct FetchedCode {
    /// Digest of the code, for [`Open`](super::Open).
    pub digest: String,
}

impl Operation for FetchCode<'_> {
    const OP: &'static str = "daskade-code";
    type Reply = FetchedCode;

    /// It reads and writes the storage.
    fn deadline(deadlines: &Deadlines) -> Duration {
        deadlines.slow
    }
}
