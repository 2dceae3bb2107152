//! Why a run could not be driven to an end of its own.

use api::reason::Reason;

/// Why a run could not be driven to an end of its own. The journal is intact: it can be resumed.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The cluster does not come up or stay up.
    #[error("{0}")]
    Cluster(String),
    /// The runtime refused the run.
    #[error("{reason}: {message}")]
    Refused {
        /// As the runtime names it.
        reason: String,
        /// What it says.
        message: String,
    },
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
            Self::Cluster(_) => Reason::ClusterFailed.as_str(),
            Self::Refused { reason, .. } => reason,
            Self::Fenced { .. } => Reason::Fenced.as_str(),
            Self::Dask(error) => error.category(),
        }
    }
}
