//! One run from its first scheduler to its end, through as many schedulers as it takes.

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Fabric;
use super::comeback::{Comeback, Next, Past};
use super::ended::Loss;
use super::error::DriveError;
use super::session::Session;

use run_model::{Note, Observer, Report, RunSpec, Start};

/// Events that may be on their way without being acknowledged, and how many if that was too much.
const WINDOW: u32 = 4000;
const NARROW_WINDOW: u32 = 50;

/// Runs `spec` to its end. `cancel` turns true when the user asks for an end.
///
/// Returns `Err` only if the run could not be brought to an end; what is committed by then stays.
pub async fn drive(
    spec: &RunSpec,
    fabric: &mut Fabric,
    observer: &mut dyn Observer,
    cancel: watch::Receiver<bool>,
) -> Result<Report, DriveError> {
    let started = Instant::now();
    let mut opened_before = spec.start == Start::Again;
    let mut tried_to_open = spec.start == Start::Either;
    let mut closing = None;
    let mut comeback = Comeback::new(spec.patience);
    let mut window = WINDOW;
    let mut done = 0;
    loop {
        let endpoint = fabric.endpoint().await?;
        let session = Session {
            spec,
            observer,
            started,
            cancel: &cancel,
            opened_before: &mut opened_before,
            tried_to_open: &mut tried_to_open,
            closing: &mut closing,
            scaled: !matches!(fabric, Fabric::Local { .. }),
            window,
            done: &mut done,
        };
        let before = Instant::now();
        let ended = match session.run(fabric, &endpoint).await {
            Ok(report) => return Ok(report),
            Err(ended) => ended,
        };
        let past = Past {
            address: &endpoint.address,
            lasted: before.elapsed(),
            done,
            opened: opened_before,
            own: matches!(fabric, Fabric::Local { .. }),
        };
        let Next { cause, pause, loss } = comeback.after(ended, &past)?;
        if loss == Loss::Excess {
            window = NARROW_WINDOW;
        }
        if opened_before || loss == Loss::Excess {
            observer.note(Note::SchedulerLost { cause });
        }
        if !loss.answered() {
            fabric.replace(endpoint.generation);
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = fabric.gone(endpoint.generation) => {}
        }
    }
}
