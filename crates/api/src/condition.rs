//! Types of conditions. Scripts may rely on every name.

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
