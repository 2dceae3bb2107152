//! Whether a scheduler lives.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use dask::ops::Hello;
use dask::{Address, Connection, Deadlines};

/// How often a scheduler is asked whether it lives, and how long it may take to answer: a loaded one may be busy for
/// seconds with one message.
const PULSE: Duration = Duration::from_secs(3);
const PULSE_PATIENCE: Duration = Duration::from_secs(12);

/// The heartbeat of one scheduler, felt once for all runs that are open on it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<Mutex<Weak<Beat>>>);

/// The task that feels it: it ends with the last run that wants to know.
#[derive(Debug)]
struct Beat {
    lost: watch::Receiver<Option<dask::Error>>,
    task: JoinHandle<()>,
}

impl Heartbeat {
    /// Completes when the scheduler does not answer any more, and says why. Opening a run and closing it may take minutes
    /// while storage is slow, and a stopped process keeps its connections: only asking tells whether it lives.
    pub(super) async fn lost(&self, address: &Address, tls: Option<&dask::Tls>) -> dask::Error {
        let beat = self.beat(address, tls);
        let mut lost = beat.lost.clone();
        let cause = lost.wait_for(Option::is_some).await.ok().and_then(|cause| cause.clone());
        // Without one it is not felt any more.
        cause.unwrap_or(dask::Error::Closed)
    }

    fn beat(&self, address: &Address, tls: Option<&dask::Tls>) -> Arc<Beat> {
        // Each change is whole before anything in it can panic.
        let mut known = self.0.lock();
        if let Some(beat) = known.upgrade().filter(|beat| beat.lost.borrow().is_none()) {
            return beat;
        }
        let (tell, lost) = watch::channel(None);
        let (address, tls) = (address.clone(), tls.cloned());
        let task = tokio::spawn(async move {
            let cause = feel(&address, tls.as_ref()).await;
            tell.send_replace(Some(cause));
        });
        let beat = Arc::new(Beat { lost, task });
        *known = Arc::downgrade(&beat);
        beat
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn feel(address: &Address, tls: Option<&dask::Tls>) -> dask::Error {
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
        Err(error) => error,
        Ok(never) => match never {},
    }
}
