//! Whether a scheduler lives.

use std::time::Duration;

use crate::dask::ops::Hello;
use crate::dask::{self, Address, Connection, Deadlines};

/// How often a scheduler is asked whether it lives, and how long it may take to answer: a loaded one may be busy for
/// seconds with one message.
const PULSE: Duration = Duration::from_secs(3);
const PULSE_PATIENCE: Duration = Duration::from_secs(12);

/// Completes when the scheduler does not answer any more. Opening a run and closing it may take minutes while storage is
/// slow, and a stopped process keeps its connections: only asking tells whether it lives.
pub(super) async fn pulse(address: &Address, tls: Option<&dask::Tls>) -> String {
    let cause = async {
        let connection = Connection::connect(address, tls, Deadlines::default()).await?;
        loop {
            match connection.call_within(&Hello {}, PULSE_PATIENCE).await {
                Ok(_) | Err(dask::Error::UnknownOp { .. }) => tokio::time::sleep(PULSE).await,
                Err(error) => return Err::<std::convert::Infallible, dask::Error>(error),
            }
        }
    };
    match cause.await {
        Err(error) => error.to_string(),
        Ok(never) => match never {},
    }
}
