//! Mistakes that the engine finds in a DAG, as problems of a manifest.

use api::problem::Problem;
use api::reason::Reason;
use engine::DagError;

/// The mistake as a problem of the field at `at`.
pub(crate) fn problem(error: &DagError, at: &str) -> Problem {
    let reason = match error {
        DagError::TooManySteps { .. } => Reason::TooLarge,
        DagError::DuplicateName { .. } => Reason::DuplicateStep,
        DagError::UnknownStep { .. } => Reason::UnknownStep,
        DagError::SelfDependency { .. } => Reason::SelfDependency,
        DagError::Cycle { .. } => Reason::DependencyCycle,
        // The checks before this find those.
        DagError::EmptyMap { .. }
        | DagError::MapOverUnmapped { .. }
        | DagError::OutputOfMapped { .. }
        | DagError::DependsOnFinally { .. } => Reason::InvalidValue,
    };
    Problem::new(reason, at, error.to_string())
}
