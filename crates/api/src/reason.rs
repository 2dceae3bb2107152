//! All reasons, in one table. A reason names what happened in one word that stays the same between releases, so that scripts
//! and searches can rely on it.

use std::fmt;
use std::str::FromStr;

/// What happens after a reason was reported: who acts, and whether it is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReasonClass {
    /// An error in a manifest, a parameter or a request. Nothing was started.
    Input,
    /// A normal state; Events with it are no warnings.
    Usual,
    /// Retried without limit until the cause is gone.
    Waits,
    /// Retried without limit and reported as stalled: somebody has to change something.
    Stalled,
    /// Retried with growing delays. A run fails if it repeats without progress.
    Repeats,
    /// The driver opens the run again at once.
    Reopens,
    /// The run failed and is not retried.
    Final,
    /// Only in Events.
    Event,
}

/// Where a reason occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReasonKind {
    /// In a `Problem`: an error in a manifest, a parameter or a request.
    Problem,
    /// In a condition or an Event.
    Condition,
    /// In an error of a command, or quoted in the message of a condition.
    Error,
}

macro_rules! reasons {
    ($($name:ident: $kind:ident $class:ident, $doc:literal;)*) => {
        /// Why something is as it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $doc] $name,)*
        }

        impl Reason {
            /// All reasons, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name, as it is in a status, in an Event and in the messages of the command line.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// What it means, in one or two sentences.
            pub const fn doc(self) -> &'static str {
                match self {
                    $(Self::$name => $doc,)*
                }
            }

            /// Where it occurs.
            pub const fn kind(self) -> ReasonKind {
                match self {
                    $(Self::$name => ReasonKind::$kind,)*
                }
            }

            /// What happens after it was reported.
            pub const fn class(self) -> ReasonClass {
                match self {
                    $(Self::$name => ReasonClass::$class,)*
                }
            }
        }
    };
}

impl Reason {
    /// Whether somebody has to change something, unless an occurrence knows better.
    pub const fn stalled(self) -> bool {
        matches!(self.class(), ReasonClass::Stalled)
    }

    /// Compares it with a name that came over the wire.
    pub fn is(self, name: &str) -> bool {
        self.as_str() == name
    }

    /// The reason with this name, if a condition can have it.
    pub fn of_condition(name: &str) -> Option<Self> {
        name.parse().ok().filter(|reason: &Self| reason.kind() == ReasonKind::Condition)
    }

    /// Where it is documented.
    pub fn link(self) -> String {
        format!("docs/reasons.md#{}", self.as_str().to_lowercase())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that this release does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(name: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name).ok_or(UnknownReason)
    }
}

reasons! {
    // Of a Problem.
    InvalidYaml: Problem Input, "The text is not YAML (or JSON).";
    InvalidText: Problem Input,
        "The text is not UTF-8, or has a NUL byte or a control character; the message has the byte offset.";
    DuplicateKey: Problem Input, "A mapping has the same key twice.";
    AliasLimit: Problem Input, "Anchors and aliases expand to too much.";
    TooDeep: Problem Input, "Lists and mappings are nested too deeply.";
    TooLarge: Problem Input, "A file, a document or a value is larger than allowed.";
    Unreadable: Problem Input, "A file or folder cannot be read.";
    Empty: Problem Input, "No document in a file, or no manifest at all.";
    UnknownKind: Problem Input, "The `kind` does not exist in `daskade.dev`.";
    UnknownVersion: Problem Input, "The `apiVersion` is not served.";
    UnknownField: Problem Input, "A field that the kind does not have; the help has the nearest one.";
    LimitExceeded: Problem Input, "More than the operator's options allow.";
    MissingField: Problem Input, "A required field is missing.";
    InvalidType: Problem Input, "A value of the wrong type.";
    InvalidValue: Problem Input, "A value outside what the field allows.";
    InvalidName: Problem Input, "A name outside the allowed form.";
    InvalidNumber: Problem Input, "A number that cannot be held exactly, or is not finite.";
    Duplicate: Problem Input, "An entry of a set, or a key of a list, that appears twice.";
    Conflict: Problem Input, "Fields that exclude each other, or need each other.";
    SelfDependency: Problem Input, "A step depends on itself.";
    DependencyCycle: Problem Input, "Steps depend on each other in a circle; the message prints it in order.";
    DuplicateStep: Problem Input, "Two steps have one name.";
    DuplicateDependency: Problem Input, "A step names a dependency twice.";
    DuplicateParameter: Problem Input, "Two parameters have one name.";
    UnknownStep: Problem Input, "A reference to a step that does not exist; the help has the nearest name.";
    UnknownInput: Problem Input, "A selection names an input that no step reads; the help has those that steps read.";
    NoVersions: Problem Input, "`select.loadVersions` fixes the version of an object in a folder, which keeps none.";
    UnknownTag: Problem Input, "A selection names a tag that no step has; the help has the nearest one.";
    EmptySelection: Problem Input, "No step fits all parts of a run's selection.";
    UnknownOutput: Problem Input, "A reference to an output that the step does not declare; the message lists those it does.";
    UnknownWorkerGroup: Problem Input, "`workerGroup` names a group that the cluster does not have.";
    NotUpstream: Problem Input, "A reference to a step that cannot have run before.";
    InvalidExpression: Problem Input, "An expression in `$(…)` or `when` cannot be read; the message has the column.";
    ExpressionTooExpensive: Problem Input, "An expression would take too long to evaluate.";
    UndefinedParameter: Problem Input, "An expression names a parameter that is not declared; the help has the nearest name.";
    MissingParameter: Problem Input, "A run sets no value for a parameter without default.";
    UnknownParameter: Problem Input, "A run sets a parameter that is not declared; the help has the nearest name.";
    InvalidParameter: Problem Input, "A value of a parameter is not of its type, or not among its choices.";
    ParameterTooLarge: Problem Input, "A value of a parameter is too large; put it into storage and pass its URL.";
    TypeMismatch: Problem Input, "A value is not of the type that its place needs, for example `map` over a number.";
    TooManyItems: Problem Input, "A map has more items than `limits.maxItems`.";
    UnequalLengths: Problem Input, "The lists of a map have different lengths.";
    UnsatisfiableResources: Problem Input,
        "A step asks for resources that no worker group offers, or beyond a limit of the run.";
    NotAllowed: Problem Input, "The operator's options do not allow it; the help names the option.";
    NotImplemented: Problem Input, "A field that local runs do not support; it is refused, not ignored.";

    // Of a condition or an Event.
    Accepted: Condition Usual, "The spec is valid.";
    TakenOver: Condition Waits, "Another command drives the run. The operator continues it soon.";
    OpenRefused: Condition Repeats,
        "The scheduler's runtime refuses the run; the message quotes it, and says how often and since when. The operator retries at growing intervals. The run fails if the error repeats without progress.";
    Invalid: Condition Stalled, "The spec has errors; the message lists them with their paths. A run ends with it.";
    Pending: Condition Usual, "Accepted; nothing has started yet.";
    Progressing: Condition Usual, "Work is in progress.";
    Running: Condition Usual, "Steps are running.";
    Finalizing: Condition Usual, "The `finally` steps run, or the final record is written.";
    Ready: Condition Usual, "Everything in the spec exists and is ready.";
    Idle: Condition Usual, "No worker is needed now.";
    Suspended: Condition Usual, "Suspended by the user.";
    Succeeded: Condition Usual, "All steps succeeded.";
    Failed: Condition Final, "A step failed and its failure counts.";
    Cancelled: Condition Usual, "Cancelled by the user.";
    DeadlineExceeded: Condition Final, "A deadline passed.";
    PipelineNotFound: Condition Waits, "The Pipeline does not exist yet; waiting for it.";
    ClusterNotFound: Condition Waits, "The DaskCluster does not exist yet; waiting for it.";
    ConfigMapNotFound: Condition Waits, "The ConfigMap that `code.configMap` names does not exist yet; waiting for it.";
    SecretNotFound: Condition Waits, "A Secret or a key in it does not exist yet; waiting for it.";
    ServiceAccountNotFound: Condition Waits, "The ServiceAccount that a spec names does not exist; waiting for it.";
    NoWorkers: Condition Waits, "No worker can run the waiting steps now; waiting.";
    Unschedulable: Condition Waits, "Kubernetes finds no node for a pod; the message quotes it.";
    HeldByCluster: Condition Waits,
        "Other workers of the same cluster use the CPU, memory or GPUs that a pod needs; the message names their groups.";
    ImagePull: Condition Stalled, "An image cannot be pulled; the message quotes the registry.";
    ImageLacks: Condition Stalled, "The image lacks something that daskade needs; the message names it.";
    ContainerCreating: Condition Waits,
        "A container has not been created for over a minute, usually because a volume or Secret is missing.";
    OutOfMemory: Condition Waits, "A pod was killed because it reached its memory limit.";
    WorkerStartFailed: Condition Waits, "A pod ends right after its start; the message has its last log lines.";
    Evicted: Condition Waits, "A node was short of resources and evicted a pod; it is replaced.";
    DiskFull: Condition Waits, "A pod was evicted because its local storage was full.";
    NodeLost: Condition Waits, "A pod's node is gone; the pod is replaced.";
    Gated: Condition Waits, "A pod waits for quota (Kueue).";
    PodRejected: Condition Stalled, "A policy of the namespace refuses a pod; the message quotes it.";
    AdmissionFailed: Condition Waits, "An admission webhook refuses an object or does not answer; the operator retries.";
    ApiError: Condition Waits, "The API server refused a write for another reason; the operator retries.";
    NamespaceTerminating: Condition Stalled, "The namespace is being deleted.";
    WaitingForIdle: Condition Waits, "The scheduler runs an older spec and is replaced once nothing uses the cluster.";
    RollingOut: Condition Waits, "Workers of an older spec are being replaced.";
    InvalidCertificates: Condition Stalled,
        "The certificates in the Secret that `tls.secretRef` names are not valid; the message says why.";
    RunLimit: Condition Waits,
        "The namespace has as many runs at once as the operator allows, or the runs in progress use all memory that it has for them; waiting for one to end.";
    TooManyRuns: Condition Waits,
        "Changes created the maximum number of runs of one Pipeline spec within an hour; the next one waits.";
    QuotaExceeded: Condition Waits, "A ResourceQuota forbids more pods; waiting.";
    Forbidden: Condition Waits, "The operator lacks a permission in this namespace; the message names verb and resource.";
    NameConflict: Condition Stalled, "Another object has the name of a child object; the operator does not touch it.";
    SchedulerNotReady: Condition Usual, "The scheduler's pod is not ready yet.";
    SchedulerUnreachable: Condition Waits, "The scheduler cannot be reached; the message has the cause.";
    SchedulerUnstable: Condition Waits, "The scheduler keeps crashing.";
    UnsupportedDask: Condition Final, "The cluster's version of Dask is not supported.";
    StorageUnreachable: Condition Waits, "The storage cannot be reached; the message names host and cause.";
    StorageFull: Condition Stalled, "The storage has no space left.";
    AccessDenied: Condition Stalled, "The storage refuses an action; the message names it and what to do; waiting.";
    CredentialsExpired: Condition Waits, "The credentials for the storage have expired; waiting for new ones.";
    NoSuchBucket: Condition Stalled, "The bucket does not exist.";
    NoConditionalPut: Condition Final, "The storage does not support conditional writes.";
    RecordUnreadable: Condition Final, "The run's journal cannot be read; it is not overwritten.";
    RequirementsMissing: Condition Final, "The image lacks packages that `requirements` names; the message has their names.";
    CodeNotFound: Condition Stalled, "There is no archive at `code.url` yet; waiting for it.";
    CodeMismatch: Condition Final, "The archive at `code.url` is not the one that `code.sha256` names.";
    BadCode: Condition Final, "The archive at `code.url` cannot be used; the message says why.";
    OutputMissing: Condition Final, "The run's selection needs an output that no earlier run has; the message names the step.";
    VersionNotFound: Condition Final,
        "`select.loadVersions` names a version that the storage does not have, or that cannot be read.";
    ReuseNotFound: Condition Final, "There is no earlier run of the name in `spec.reuse.run`.";
    OutputsRemoved: Condition Final, "The outputs that are named or needed were removed by `spec.retention`.";
    Removing: Condition Usual, "`spec.retention` is removing what the run has stored.";
    Removed: Condition Usual, "`spec.retention` removed what the run had stored; the message says what, and what stayed.";
    Releasing: Condition Usual,
        "The operator is asking the scheduler of a shared cluster to stop the run's steps and forget the run.";
    Released: Condition Usual, "The run is no longer open on the shared cluster, and none of its steps run there.";
    NotReleased: Condition Waits,
        "The scheduler did not confirm in time that it has forgotten the run: its steps may still run and hold workers.";
    OutputsInUse: Condition Usual,
        "Outputs stay until the run that the message names has ended, because it reuses some of them.";
    WorkerLost: Condition Final, "A step lost its worker more than three times.";
    RunCreated: Condition Event, "Event of a Pipeline: a run was created; the message says why.";
    RunCancelled: Condition Event,
        "Event of a Pipeline: a run was cancelled, because the next one was due (`Replace`) or it waited too long.";
    MomentSkipped: Condition Event,
        "Event of a Pipeline: no run for a schedule time, because one is active (`Forbid`) or too many wait (`Queue`).";
    MomentsMissed: Condition Event,
        "Event of a Pipeline: schedule times passed while the operator was down or longer than `startingDeadline` ago.";

    // Of an error.
    StepFailed: Error Final, "A step failed and its failure counts; the message has the step and its error.";
    SpecMismatch: Error Final, "The run was started with a different spec, so it cannot be resumed with this one.";
    JournalStopped: Error Final,
        "A record of the run's progress could not be written, so the run stopped; the message says why.";
    InvalidRun: Error Final, "The runtime rejects the run; the message says why.";
    Internal: Error Repeats, "An error in the runtime itself; please report it. The log of the scheduler has the traceback.";
    RuntimeVersion: Error Repeats, "The runtime in the scheduler is of a release that lacks what the run needs.";
    RuntimeMismatch: Error Repeats, "The scheduler has a runtime of another release.";
    SchedulerGone: Error Waits, "A worker ended because it lost its scheduler; another one is started.";
    InstallFailed: Error Repeats, "The runtime could not be installed in the scheduler; the message says why.";
    BadRequest: Error Repeats, "The runtime is of another release and does not understand a request.";
    RunExists: Error Repeats, "A run with this uid exists already.";
    RunOpen: Error Repeats, "The run is still open; the request has to wait.";
    Ended: Error Repeats, "The run has ended already.";
    StaleEpoch: Error Repeats, "Another command or operator has taken over the run.";
    StaleLeader: Error Repeats, "Another operator has taken over the cluster.";
    Fenced: Error Repeats, "Another command has taken over the run, and this one stopped.";
    ClusterFailed: Error Repeats, "The Dask cluster of a local run did not start, or ended.";
    InstanceChanged: Error Reopens, "The scheduler was replaced. The run is opened again on the new one.";
    Gap: Error Reopens, "Events of the run were lost. The run is opened again.";
    RunNotFound: Error Reopens, "The scheduler or the storage does not have the run.";
    InvalidStorage: Error Repeats, "A storage setting is invalid; the message names it.";
    InvalidKey: Error Repeats, "The path of an object is invalid; the message says why.";
    NotFound: Error Repeats, "An object is not in the storage; the message names it.";
    NotMarked: Error Repeats, "The folder is not marked as storage of daskade, so nothing in it is removed.";
    NotCached: Error Repeats, "No worker has the files that a step needs.";
    OutputTooLarge: Error Repeats, "An output is larger than the limit in the message.";
    CorruptOutput: Error Repeats, "An output in the storage is not the one that was committed.";
    NoStorageLibrary: Error Repeats, "The image lacks obstore, or its release is too old; S3 storage needs it.";
    WrongRegion: Error Repeats, "The bucket is in another region; the message names it.";
    ClockSkew: Error Repeats,
        "The clock of this machine and the clock of the storage differ too much; the message has both times.";
    StorageRejected: Error Repeats, "The storage rejected a request; the message quotes its answer.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_name_and_by_no_other() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
            assert!(reason.doc().ends_with('.'), "{reason}");
        }
        assert_eq!("Nothing".parse::<Reason>(), Err(UnknownReason));
    }

    /// The table of errors is larger: a condition keeps the reasons that it always had.
    #[test]
    fn a_condition_has_none_of_the_reasons_of_errors() {
        assert_eq!(Reason::of_condition("AccessDenied"), Some(Reason::AccessDenied));
        assert_eq!(Reason::of_condition("WrongRegion"), None);
        assert_eq!(Reason::of_condition("UnknownField"), None);
    }
}
