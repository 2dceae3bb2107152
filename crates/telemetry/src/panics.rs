//! Panics: told in the log, counted, and kept from ending more than what panicked.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use futures_util::FutureExt;

use super::metrics::Metrics;

/// Longest text of a panic that is passed on.
const TEXT_MAX: usize = 512;

/// A future panicked; this is what it said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("panicked: {0}")]
pub struct Panicked(pub String);

/// Sends the panics of all threads to the log instead of to standard error, which may be blocked, and counts them.
pub fn install(metrics: Arc<Metrics>) {
    panic::set_hook(Box::new(move |info| {
        metrics.count_panic();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, message = text(info.payload()), "a part of the operator panicked; this is a bug");
    }));
}

/// Runs a future to its end, its panic included. What it shared with others must bear that it stopped anywhere: our
/// shared state is only caches that the next pass reads anew, behind locks that do not poison.
pub async fn isolate<F: Future>(future: F) -> Result<F::Output, Panicked> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| Panicked(text(payload.as_ref())))
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "something without a text".to_owned());
    text.chars().filter(|letter| !letter.is_control()).take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_only_its_own_future() {
        let ended = isolate(async {
            let empty: Vec<u8> = Vec::new();
            tokio::task::yield_now().await;
            empty[std::hint::black_box(3)]
        })
        .await;
        assert!(ended.unwrap_err().to_string().contains("index out of bounds"));
        assert_eq!(isolate(async { 7 }).await, Ok(7));
    }
}
