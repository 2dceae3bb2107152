//! Condition types and reasons: the one table. Scripts may rely on every name in it.

/// Type of a condition in a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConditionType {
    /// Pipeline: the spec is valid and references exist.
    Accepted,
    /// DaskCluster: scheduler and all wanted workers are there.
    Ready,
    /// DaskCluster: the scheduler answers.
    SchedulerReady,
    /// DaskCluster: every group has the workers it should have.
    WorkersReady,
    /// PipelineRun: True when it succeeded, False when it failed, Unknown before.
    Succeeded,
    /// PipelineRun: what `spec.retention` names and whose time has come is removed from the storage.
    Removed,
    /// PipelineRun: the scheduler of a shared cluster has let go of a run that the operator ended or suspended.
    Released,
    /// kstatus: the operator is still working on the latest spec.
    Reconciling,
    /// kstatus: it cannot get on without a change by a person.
    Stalled,
}

impl ConditionType {
    /// All types.
    pub const ALL: [Self; 9] = [
        Self::Accepted,
        Self::Ready,
        Self::SchedulerReady,
        Self::WorkersReady,
        Self::Succeeded,
        Self::Removed,
        Self::Released,
        Self::Reconciling,
        Self::Stalled,
    ];

    /// The name in a status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Ready => "Ready",
            Self::SchedulerReady => "SchedulerReady",
            Self::WorkersReady => "WorkersReady",
            Self::Succeeded => "Succeeded",
            Self::Removed => "Removed",
            Self::Released => "Released",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
        }
    }
}

/// A documented reason: name and what it means.
pub type Reason = (&'static str, &'static str);

/// Reasons of conditions.
pub const CONDITION_REASONS: &[Reason] = &[
    ("Accepted", "The spec is valid."),
    ("TakenOver", "Another command drives the run. The operator continues it soon."),
    (
        "OpenRefused",
        "The scheduler's runtime refuses the run; the message quotes it, and says how often and since when. The operator \
         retries at growing intervals. The run fails if the error repeats without progress.",
    ),
    ("Invalid", "The spec has errors; the message lists them with their paths."),
    ("Pending", "Accepted; nothing has started yet."),
    ("Progressing", "Work is in progress."),
    ("Running", "Steps are running."),
    ("Finalizing", "The `finally` steps run, or the final record is written."),
    ("Ready", "Everything in the spec exists and is ready."),
    ("Idle", "No worker is needed now."),
    ("Suspended", "Suspended by the user."),
    ("Succeeded", "All steps succeeded."),
    ("Failed", "A step failed and its failure counts."),
    ("Cancelled", "Cancelled by the user."),
    ("DeadlineExceeded", "A deadline passed."),
    ("PipelineNotFound", "The Pipeline does not exist yet; waiting for it."),
    ("ClusterNotFound", "The DaskCluster does not exist yet; waiting for it."),
    ("ConfigMapNotFound", "The ConfigMap that `code.configMap` names does not exist yet; waiting for it."),
    ("SecretNotFound", "A Secret or a key in it does not exist yet; waiting for it."),
    ("ServiceAccountNotFound", "The ServiceAccount that a spec names does not exist; waiting for it."),
    ("NoWorkers", "No worker can run the waiting steps now; waiting."),
    ("Unschedulable", "Kubernetes finds no node for a pod; the message quotes it."),
    (
        "HeldByCluster",
        "Other workers of the same cluster use the CPU, memory or GPUs that a pod needs; the message names their groups.",
    ),
    ("ImagePull", "An image cannot be pulled; the message quotes the registry."),
    ("ImageLacks", "The image lacks something that daskade needs; the message names it."),
    (
        "ContainerCreating",
        "A container has not been created for over a minute, usually because a volume or Secret is missing.",
    ),
    ("OutOfMemory", "A pod was killed because it reached its memory limit."),
    ("WorkerStartFailed", "A pod ends right after its start; the message has its last log lines."),
    ("Evicted", "A node was short of resources and evicted a pod; it is replaced."),
    ("DiskFull", "A pod was evicted because its local storage was full."),
    ("NodeLost", "A pod's node is gone; the pod is replaced."),
    ("Gated", "A pod waits for quota (Kueue)."),
    ("PodRejected", "A policy of the namespace refuses a pod; the message quotes it."),
    ("AdmissionFailed", "An admission webhook refuses an object or does not answer; the operator retries."),
    ("ApiError", "The API server refused a write for another reason; the operator retries."),
    ("NamespaceTerminating", "The namespace is being deleted."),
    ("WaitingForIdle", "The scheduler runs an older spec and is replaced once nothing uses the cluster."),
    ("RollingOut", "Workers of an older spec are being replaced."),
    ("InvalidSpec", "The spec is not valid; the message names the fields. The operator changes nothing."),
    (
        "InvalidCertificates",
        "The certificates in the Secret that `tls.secretRef` names are not valid; the message says why.",
    ),
    (
        "RunLimit",
        "The namespace has as many runs at once as the operator allows, or the runs in progress use all memory that it has for them; waiting for one to end.",
    ),
    (
        "TooManyRuns",
        "Changes created the maximum number of runs of one Pipeline spec within an hour; the next one waits.",
    ),
    ("QuotaExceeded", "A ResourceQuota forbids more pods; waiting."),
    ("Forbidden", "The operator lacks a permission in this namespace; the message names verb and resource."),
    ("NameConflict", "Another object has the name of a child object; the operator does not touch it."),
    ("SchedulerNotReady", "The scheduler's pod is not ready yet."),
    ("SchedulerUnreachable", "The scheduler cannot be reached; the message has the cause."),
    ("SchedulerUnstable", "The scheduler keeps crashing."),
    ("UnsupportedDask", "The cluster's version of Dask is not supported."),
    ("VersionMismatch", "Versions of Python or Dask differ between workers and scheduler."),
    ("EnvironmentMismatch", "A package differs between workers; the message names package, worker and versions."),
    ("StorageUnreachable", "The storage cannot be reached; the message names host and cause."),
    ("StorageFull", "The storage has no space left."),
    ("AccessDenied", "The storage refuses an action; the message names it and what to do; waiting."),
    ("CredentialsExpired", "The credentials for the storage have expired; waiting for new ones."),
    ("NoSuchBucket", "The bucket does not exist."),
    ("NoConditionalPut", "The storage does not support conditional writes."),
    ("RecordUnreadable", "The run's journal cannot be read; it is not overwritten."),
    ("RequirementsMissing", "The image lacks packages that `requirements` names; the message has their names."),
    ("CodeNotFound", "There is no archive at `code.url` yet; waiting for it."),
    ("CodeMismatch", "The archive at `code.url` is not the one that `code.sha256` names."),
    ("BadCode", "The archive at `code.url` cannot be used; the message says why."),
    ("OutputMissing", "The run's selection needs an output that no earlier run has; the message names the step."),
    (
        "VersionNotFound",
        "`select.loadVersions` names a version that the storage does not have, or that cannot be read.",
    ),
    ("ReuseNotFound", "There is no earlier run of the name in `spec.reuse.run`."),
    ("OutputsRemoved", "The outputs that are named or needed were removed by `spec.retention`."),
    ("Removing", "`spec.retention` is removing what the run has stored."),
    ("Removed", "`spec.retention` removed what the run had stored; the message says what, and what stayed."),
    (
        "Releasing",
        "The operator is asking the scheduler of a shared cluster to stop the run's steps and forget the run.",
    ),
    ("Released", "The run is no longer open on the shared cluster, and none of its steps run there."),
    (
        "NotReleased",
        "The scheduler did not confirm in time that it has forgotten the run: its steps may still run and hold workers.",
    ),
    ("OutputsInUse", "Outputs stay until the run that the message names has ended, because it reuses some of them."),
    ("WorkerLost", "A step lost its worker more than three times."),
    ("RunCreated", "Event of a Pipeline: a run was created; the message says why."),
    (
        "RunCancelled",
        "Event of a Pipeline: a run was cancelled, because the next one was due (`Replace`) or it waited too long.",
    ),
    (
        "MomentSkipped",
        "Event of a Pipeline: no run for a schedule time, because one is active (`Forbid`) or too many wait (`Queue`).",
    ),
    (
        "MomentsMissed",
        "Event of a Pipeline: schedule times passed while the operator was down or longer than `startingDeadline` ago.",
    ),
];

/// Reasons of problems in manifests, parameters and requests (`Problem::reason`).
pub const PROBLEM_REASONS: &[Reason] = &[
    ("InvalidYaml", "The text is not YAML (or JSON)."),
    (
        "InvalidText",
        "The text is not UTF-8, or has a NUL byte or a control character; the message has the byte offset.",
    ),
    ("DuplicateKey", "A mapping has the same key twice."),
    ("AliasLimit", "Anchors and aliases expand to too much."),
    ("TooDeep", "Lists and mappings are nested too deeply."),
    ("TooLarge", "A file, a document or a value is larger than allowed."),
    ("Unreadable", "A file or folder cannot be read."),
    ("Empty", "No document in a file, or no manifest at all."),
    ("UnknownKind", "The `kind` does not exist in `daskade.dev`."),
    ("UnknownVersion", "The `apiVersion` is not served."),
    ("UnknownField", "A field that the kind does not have; the help has the nearest one."),
    ("LimitExceeded", "More than the operator's options allow."),
    ("MissingField", "A required field is missing."),
    ("InvalidType", "A value of the wrong type."),
    ("InvalidValue", "A value outside what the field allows."),
    ("InvalidName", "A name outside the allowed form."),
    ("InvalidNumber", "A number that cannot be held exactly, or is not finite."),
    ("Duplicate", "An entry of a set, or a key of a list, that appears twice."),
    ("Conflict", "Fields that exclude each other, or need each other."),
    ("SelfDependency", "A step depends on itself."),
    ("DependencyCycle", "Steps depend on each other in a circle; the message prints it in order."),
    ("DuplicateStep", "Two steps have one name."),
    ("DuplicateDependency", "A step names a dependency twice."),
    ("DuplicateParameter", "Two parameters have one name."),
    ("UnknownStep", "A reference to a step that does not exist; the help has the nearest name."),
    ("UnknownInput", "A selection names an input that no step reads; the help has those that steps read."),
    ("NoVersions", "`select.loadVersions` fixes the version of an object in a folder, which keeps none."),
    ("UnknownTag", "A selection names a tag that no step has; the help has the nearest one."),
    ("EmptySelection", "No step fits all parts of a run's selection."),
    ("UnknownOutput", "A reference to an output that the step does not declare; the message lists those it does."),
    ("UnknownWorkerGroup", "`workerGroup` names a group that the cluster does not have."),
    ("NotUpstream", "A reference to a step that cannot have run before."),
    ("InvalidExpression", "An expression in `$(…)` or `when` cannot be read; the message has the column."),
    ("ExpressionTooExpensive", "An expression would take too long to evaluate."),
    ("UndefinedParameter", "An expression names a parameter that is not declared; the help has the nearest name."),
    ("MissingParameter", "A run sets no value for a parameter without default."),
    ("UnknownParameter", "A run sets a parameter that is not declared; the help has the nearest name."),
    ("InvalidParameter", "A value of a parameter is not of its type, or not among its choices."),
    ("ParameterTooLarge", "A value of a parameter is too large; put it into storage and pass its URL."),
    ("TypeMismatch", "A value is not of the type that its place needs, for example `map` over a number."),
    ("TooManyItems", "A map has more items than `limits.maxItems`."),
    ("UnequalLengths", "The lists of a map have different lengths."),
    ("UnsatisfiableResources", "A step asks for resources that no worker group offers, or beyond a limit of the run."),
    ("NotAllowed", "The operator's options do not allow it; the help names the option."),
    ("NotImplemented", "A field that local runs do not support; it is refused, not ignored."),
];

/// The reason of this name in the table.
pub fn known_reason(name: &str) -> Option<&'static str> {
    CONDITION_REASONS.iter().map(|(known, _)| *known).find(|known| *known == name)
}
