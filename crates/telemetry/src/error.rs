//! Why telemetry could not start.

/// Why telemetry could not start; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the log filter {filter:?}: {source}")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("set up the export of traces to {endpoint}: {source}")]
    Otlp { endpoint: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("export traces to {endpoint}: this binary was built without OpenTelemetry; rebuild with `--features otlp`")]
    NoOtlp { endpoint: String },
    #[error("install the log: {0}")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}
