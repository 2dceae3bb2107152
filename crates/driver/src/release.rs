//! Has a scheduler forget a run that its driver has left: it stops the steps of the run, and asks for no workers for them.

use super::ended::{classify, into_error};
use super::error::DriveError;
use super::fabric::SchedulerEndpoint;
use api::reason::Reason;
use dask::ops::{Forget, Hello};
use dask::{Address, Limits, Peer};
use run_model::Released;

/// Has the scheduler forget the run as it is open there, whoever opened it for the operator. May be done twice.
pub async fn release(run: &str, endpoint: &SchedulerEndpoint) -> Result<Released, DriveError> {
    let address: Address = endpoint.address.parse().map_err(|error| DriveError::Dask(Box::new(error)))?;
    let peer = Peer::new(address, endpoint.tls.clone(), endpoint.connections.pool.clone()).within(Limits::operator());
    let failed = |error: dask::Error| match error.refusal() {
        Some(reason) if Reason::StaleEpoch.is(reason) => again("the run was reopened in the meantime"),
        Some(_) => into_error(classify(error)),
        None => DriveError::Cluster(format!("failed to {error}")),
    };
    let info = match peer.call(&Hello {}).await {
        // Runs are open only where our runtime is.
        Err(dask::Error::UnknownOp { .. }) => return Ok(Released::Forgotten),
        answer => answer.map_err(failed)?,
    };
    if info.opening.contains(run) {
        return Err(again("the scheduler is opening the run"));
    }
    let Some(epoch) = info.runs.get(run).copied() else { return Ok(Released::Forgotten) };
    if info.led.is_some_and(|led| !led.contains(run)) {
        return Ok(Released::TakenOver);
    }
    // A later opening is not meant.
    let (lead, lease) = (Some(endpoint.lead.epoch), endpoint.lead.lease.as_deref());
    let forget = Forget { run, epoch: Some(epoch), lead, lease };
    peer.call(&forget).await.map_err(failed)?;
    Ok(Released::Forgotten)
}

fn again(message: &str) -> DriveError {
    DriveError::Cluster(message.to_owned())
}
