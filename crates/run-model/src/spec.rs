//! What a run is, for who drives it.

use std::time::Duration;

use super::Moment;
use super::archive::Code;
use lower::Plan;

/// A run of which no step starts within this time has failed, unless the pipeline says otherwise.
pub const START_DEADLINE: Duration = Duration::from_secs(30 * 60);

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
    /// Unique among all runs.
    pub uid: String,
    /// For people.
    pub name: String,
    /// The lowered pipeline.
    pub plan: Plan,
    /// The frozen specification, kept in the journal and needed to resume.
    pub spec: Vec<u8>,
    /// SHA-256 of the frozen specification.
    pub spec_digest: String,
    /// The modules of its steps.
    pub code: CodeSource,
    /// Packages that its steps need.
    pub requirements: Requirements,
    /// Image of the workers, where they are made for the run.
    pub image: Option<String>,
    /// Where it is kept.
    pub storage: StorageSpec,
    /// Name of the pipeline: later runs of it find this one.
    pub pipeline: Option<String>,
    /// What it takes from earlier runs.
    pub reuse: Reuse,
    /// Whether there is a journal of it.
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
    /// How long it waits for a scheduler.
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
    Archive {
        /// Where it is.
        url: String,
        /// What it has to be, if that was said.
        sha256: Option<String>,
    },
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
    /// As `s3://bucket/prefix` or `file:///folder`.
    pub url: String,
    /// Of an S3 service that is not AWS.
    pub endpoint: Option<String>,
    /// Of the bucket.
    pub region: Option<String>,
}
