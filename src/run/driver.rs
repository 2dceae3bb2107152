//! One run from its first scheduler to its end, through as many schedulers as it takes.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::comeback::{Comeback, Next, Past};
use super::ended::Loss;
use super::session::Session;
use super::{Fabric, Moment, Note, Observer, Report};
use crate::dask;
use crate::local::packing::Code;
use crate::pipeline::Plan;

/// A run of which no step starts within this time has failed, unless the pipeline says otherwise.
pub const START_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Events that may be on their way without being acknowledged, and how many if that was too much.
const WINDOW: u32 = 4000;
const NARROW_WINDOW: u32 = 50;

/// How long a run waits for a scheduler that is gone.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For one that the run was open on, or that this command keeps running itself.
    pub open: Duration,
    /// For a cluster of others that was never reached: its address may be wrong.
    pub first: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { open: Duration::from_secs(1800), first: Duration::from_secs(8) }
    }
}

/// Everything that defines one run.
#[derive(Debug)]
pub struct RunSpec {
    pub uid: String,
    pub name: String,
    pub plan: Plan,
    /// The frozen specification, kept in the journal and needed to resume.
    pub spec: Vec<u8>,
    pub spec_digest: String,
    pub code: CodeSource,
    pub requirements: Requirements,
    /// Image of the workers, where they are made for the run.
    pub image: Option<String>,
    pub storage: StorageSpec,
    /// Name of the pipeline: later runs of it find this one.
    pub pipeline: Option<String>,
    pub reuse: Reuse,
    pub start: Start,
    /// Whether a run that was closed goes on when it is opened again, to try anew what failed; otherwise how it was closed is
    /// all that is told.
    pub reopen: bool,
    /// Also ask for the steps' log lines.
    pub logs: bool,
    /// Drop the steps' resource requests.
    pub ignore_resources: bool,
    /// From now on; then the run is cancelled and has failed.
    pub deadline: Option<Duration>,
    /// The same as long as no step has started.
    pub start_deadline: Option<Duration>,
    /// Time of the `finally` steps, from the end of all others; then they are stopped, and the run has failed.
    pub finally_deadline: Option<Duration>,
    pub patience: Patience,
    /// The time, by which outputs of earlier runs are too old.
    pub time: Moment,
}

/// Where the run's modules come from.
#[derive(Debug, Clone)]
pub enum CodeSource {
    /// Packed here.
    Packed(Code),
    /// An archive on S3 or in a folder, which the scheduler's runtime fetches.
    Archive { url: String, sha256: Option<String> },
}

/// Packages that the steps need, and that are looked for where they run.
#[derive(Debug, Clone, Default)]
pub struct Requirements {
    /// Requirement specifiers.
    pub wanted: Vec<String>,
    /// The scheduler has the workers' image: what is missing is seen before any step.
    pub same_image: bool,
}

/// Whether there is a journal of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// There is none: the run is new.
    New,
    /// There is one.
    Again,
    /// Nobody knows: who opened it may have been gone before that was written down.
    Either,
}

/// What a run takes from earlier ones besides what its selection needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Outputs with the same content key.
    pub missing: bool,
    /// Name or uid of the only run that counts. Default: all of the pipeline.
    pub run: Option<String>,
}

/// Where a run is kept; credentials are the workers' own.
#[derive(Debug, Clone, Default)]
pub struct StorageSpec {
    pub url: String,
    pub endpoint: Option<String>,
    pub region: Option<String>,
}

/// Why a run could not be driven to an end of its own. The journal is intact: it can be resumed.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The cluster does not come up or stay up.
    #[error("{0}")]
    Cluster(String),
    /// The runtime refused the run.
    #[error("{reason}: {message}")]
    Refused { reason: String, message: String },
    /// Another command or operator has taken the run over.
    #[error("Fenced: another command took this run over{}; this one has stopped", in_brackets(.how.as_deref()))]
    Fenced {
        /// What is known of it.
        how: Option<String>,
    },
    /// The scheduler does not answer as it must.
    #[error("speak to the scheduler: {0}")]
    Dask(#[source] Box<dask::Error>),
}

fn in_brackets(text: Option<&str>) -> String {
    text.map(|text| format!(" ({text})")).unwrap_or_default()
}

impl DriveError {
    /// Stable name for messages and tests.
    pub fn reason(&self) -> &str {
        match self {
            Self::Cluster(_) => "ClusterFailed",
            Self::Refused { reason, .. } => reason,
            Self::Fenced { .. } => "Fenced",
            Self::Dask(error) => error.category(),
        }
    }
}

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
