//! Export of spans to an OpenTelemetry collector.

use std::fmt;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::error::Error;

/// One export; a collector that is slower loses the batch, nobody waits for it.
const EXPORT: Duration = Duration::from_secs(5);
/// How long the end of the process waits for the last batch.
const FLUSH: Duration = Duration::from_secs(1);

pub(super) struct Traces {
    provider: SdkTracerProvider,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traces")
    }
}

/// Starts the export to a collector's base address. The thread that exports is the library's own.
pub(super) fn start(endpoint: &str) -> Result<Traces, Error> {
    // The exporter's HTTP client asks for one. If another was installed before, that is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let exporter =
        build(endpoint).map_err(|source| Error::Otlp { endpoint: endpoint.to_owned(), source: source.into() })?;
    let resource = Resource::builder()
        .with_service_name("daskade")
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    Ok(Traces { provider })
}

impl Traces {
    /// Hands spans to the exporter.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer("daskade"))
    }

    /// Sends what waits, for a bounded time; what cannot be sent is lost.
    pub(super) fn finish(self) {
        drop(self.provider.shutdown_with_timeout(FLUSH));
    }
}

fn build(endpoint: &str) -> Result<SpanExporter, ExporterBuildError> {
    // An address that is given in code is used as it is, so the path of the signal is ours to append.
    let traces = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let exporter = SpanExporter::builder().with_http();
    exporter.with_endpoint(traces).with_protocol(Protocol::HttpBinary).with_timeout(EXPORT).build()
}
