//! What a run consists of: steps, their dependencies, retry policies and limits. Plain data, built by the caller.

use std::collections::BTreeMap;

/// A step, by its index in manifest order; `finally` steps come after the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepIx(pub u32);

/// One unit of work: an unmapped step, or one item of a mapped step.
///
/// For a mapped step `item: None` stands for the step as a whole. It appears only where the whole step is meant: in
/// `Decide`, `Decided` and `Refused` of a per-step condition, and in records of a step that was skipped or failed as
/// a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    pub step: StepIx,
    pub item: Option<u32>,
}

impl TaskId {
    /// The only task of an unmapped step, or a mapped step as a whole.
    pub const fn whole(step: StepIx) -> Self {
        Self { step, item: None }
    }

    /// One item of a mapped step.
    pub const fn item(step: StepIx, item: u32) -> Self {
        Self { step, item: Some(item) }
    }
}

/// Counts the submits of a task from 1, retries and losses alike.
pub type Attempt = u32;

/// One step of a run, as the engine needs it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepSpec {
    pub name: String,
    /// `None`: a single task. `Some`: one task per element of the sources, which are zipped and equally long.
    pub map: Option<Vec<MapSource>>,
    /// Dependencies besides the sources of `map`.
    pub deps: Vec<Dep>,
    pub when: When,
    /// Arguments need results of upstream steps: submit only once the dependencies are finished.
    pub late: bool,
    /// Runs when all other steps have ended, whatever their end was.
    pub finally: bool,
    /// A failure does not fail the run; whole-output dependents run and see a hole.
    pub continue_on_failure: bool,
    pub retry: RetryPolicy,
    /// Higher goes first.
    pub priority: i32,
    /// Items of this step in flight at a time; 0 counts as 1.
    pub parallelism: Option<u32>,
    /// Abstract resources that one task takes; counted against [`Limits::resources`].
    pub resources: Vec<(String, f64)>,
    /// The worker enforces this limit of one attempt; the engine stops an attempt that is still there
    /// [`Limits::timeout_grace_ms`] later.
    pub timeout_ms: Option<u64>,
    /// What becomes of a committed output of it that a reader finds to be lost.
    pub on_lost: OnLost,
}

/// What to do about a committed output that is not in storage any more as it was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLost {
    /// The task runs again, once.
    #[default]
    Rerun,
    /// Steps that read it fail.
    Fail,
    /// An earlier run made it, and the step does not run in this one: whoever reads it fails.
    Elsewhere,
}

/// Where the elements of a map come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapSource {
    /// As many elements as known before the run.
    Len(u32),
    /// As many as the journal says: the step does not run, an earlier run did.
    Recorded,
    /// Element-wise over a mapped step: item `i` needs only item `i`.
    Items(StepIx),
    /// A list inside the output of an unmapped step, whose length is entry `lens_slot` of the reported `lens`.
    Output { step: StepIx, lens_slot: u32 },
    /// The concatenation of the lists that the items of a mapped step return; lengths are entry 0 of their `lens`.
    Flatten(StepIx),
}

impl MapSource {
    /// The step that it reads, if any.
    pub fn step(self) -> Option<StepIx> {
        match self {
            Self::Len(_) | Self::Recorded => None,
            Self::Items(step) | Self::Output { step, .. } | Self::Flatten(step) => Some(step),
        }
    }
}

/// A dependency on a whole step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dep {
    /// Needs the output, of a mapped step the list of all items.
    Data(StepIx),
    /// Order only: runs also when the other was skipped by its condition.
    After(StepIx),
}

impl Dep {
    pub fn step(self) -> StepIx {
        match self {
            Self::Data(step) | Self::After(step) => step,
        }
    }
}

/// Whether a condition has to be evaluated by the caller before the step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    #[default]
    Always,
    /// Once for the step, when its whole-step dependencies are finished.
    PerStep,
    /// For each item, when its own dependencies are finished.
    PerItem,
}

/// How often, when and after which failures an attempt is repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Retries after the first attempt.
    pub limit: u32,
    pub initial_ms: u64,
    pub factor: f64,
    pub cap_ms: u64,
    /// Share of the delay (0 to 1) that is random.
    pub jitter: f64,
    /// `None`: all classes.
    pub classes: Option<Vec<FailureClass>>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { limit: 0, initial_ms: 1_000, factor: 2.0, cap_ms: 300_000, jitter: 0.1, classes: None }
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureClass {
    /// The step's own code raised or ended its process.
    App,
    /// Out of memory.
    Oom,
    Timeout,
    /// The worker was taken away; counted as a loss, not against the retry limit.
    Preempted,
    /// Storage, network or the platform.
    Infra,
    /// An input or output could not be read or written as declared.
    Data,
    /// A committed output that it reads is lost: not charged, since the attempt is not to blame.
    Input,
}

impl FailureClass {
    /// Stable name, as on the wire and in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Oom => "oom",
            Self::Timeout => "timeout",
            Self::Preempted => "preempted",
            Self::Infra => "infra",
            Self::Data => "data",
            Self::Input => "input",
        }
    }

    /// The class with this stable name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::App, Self::Oom, Self::Timeout, Self::Preempted, Self::Infra, Self::Data, Self::Input]
            .into_iter()
            .find(|class| class.name() == name)
    }
}

/// Bounds of a run. May change between two calls of [`plan`](super::plan).
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Tasks in flight in the whole run; 0 pauses it.
    pub parallelism: Option<u32>,
    /// Totals per abstract resource; what is not named is not limited.
    pub resources: BTreeMap<String, f64>,
    /// Items of one mapped step.
    pub max_items: u32,
    /// Tasks of the run: a map that would make more of them fails. Maps that the journal has are not judged again.
    pub max_tasks: u32,
    /// Tasks that are submitted and not finished; 0 counts as 1.
    pub window: u32,
    /// Losses of a task (worker gone) that are forgiven before it fails.
    pub losses: u32,
    /// The first failure keeps everything from starting that has not started yet.
    pub fail_fast: bool,
    /// Absolute time at which the run is cancelled with reason `DeadlineExceeded`.
    pub deadline_ms: Option<u64>,
    /// Time that the `finally` steps have from the moment at which all others have ended; then they are stopped, and the run
    /// has failed.
    pub finally_ms: Option<u64>,
    /// How long after its own timeout an attempt is stopped by the engine.
    pub timeout_grace_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parallelism: None,
            resources: BTreeMap::new(),
            max_items: 100_000,
            max_tasks: u32::MAX,
            window: 5_000,
            losses: 3,
            fail_fast: false,
            deadline_ms: None,
            finally_ms: None,
            timeout_grace_ms: 10_000,
        }
    }
}
