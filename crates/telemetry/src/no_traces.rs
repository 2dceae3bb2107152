//! Takes the place of `traces` in a program that is built without OpenTelemetry.

use tracing::Subscriber;
use tracing_subscriber::layer::{Identity, Layer};

use super::error::Error;

/// There are none.
#[derive(Debug)]
pub(super) enum Traces {}

pub(super) fn start(endpoint: &str) -> Result<Traces, Error> {
    Err(Error::NoOtlp { endpoint: endpoint.to_owned() })
}

impl Traces {
    #[expect(clippy::unused_self, reason = "the same call as with OpenTelemetry")]
    pub(super) fn layer<S: Subscriber>(&self) -> impl Layer<S> + use<S> {
        Identity::new()
    }

    pub(super) fn finish(self) {
        match self {}
    }
}
