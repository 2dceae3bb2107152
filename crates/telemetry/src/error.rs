//! Why telemetry could not start.

/// Why telemetry could not start; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is none.
    #[error("read the log filter {filter:?}: {source}")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Traces cannot be exported.
    #[error("set up the export of traces to {endpoint}: {source}")]
    Otlp {
        /// Where to.
        endpoint: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This binary has no OpenTelemetry.
    #[error("export traces to {endpoint}: this binary was built without OpenTelemetry; rebuild with `--features otlp`")]
    NoOtlp {
        /// Where traces were to go.
        endpoint: String,
    },
    /// There is a log already.
    #[error("install the log: {0}")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}
