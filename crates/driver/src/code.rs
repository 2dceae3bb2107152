//! A run's code as the runtime in the scheduler gets it.

use super::terms::storage;
use api::reason::Reason;
use dask::Peer;
use dask::ops::{Code, FetchCode, Leader};
use run_model::{CodeSource, RunSpec};

/// The code with its digest. An archive is fetched by the runtime, once for the run: it has it then.
pub(super) async fn code(peer: &Peer, spec: &RunSpec, lead: Option<&Leader>) -> Result<Code, dask::Error> {
    let (url, sha256) = match &spec.code {
        CodeSource::Packed(code) => {
            return Ok(Code { digest: code.digest.clone(), zip: Some(code.zip.clone()) });
        }
        CodeSource::Archive { url, sha256 } => (url, sha256),
    };
    let fetch = FetchCode {
        run: &spec.uid,
        storage: storage(&spec.storage),
        url,
        sha256: sha256.as_deref(),
        lead: lead.map(|lead| lead.epoch),
        lease: lead.and_then(|lead| lead.lease.as_deref()),
    };
    match peer.call(&fetch).await {
        Ok(fetched) => Ok(Code { digest: fetched.digest, zip: None }),
        Err(dask::Error::UnknownOp { op }) => {
            let message = "the runtime in the scheduler is of a release that does not know code.url".to_owned();
            Err(dask::Error::Refused { op, reason: Reason::RuntimeVersion.to_string(), message })
        }
        Err(error) => Err(error),
    }
}
