//! The last guard before the wire: a request that writes leaves only while the lease is held, whoever sent it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use tokio::time::{Sleep, sleep};
use tower::{BoxError, Layer, Service};

use crate::leader::lead::{Lead, NotLeading};
use telemetry::metrics::{Answer, Metrics, Verb};

/// Longest wait for the head of an answer, retries of the client included. The API server itself ends requests after
/// 60 s; a watch answers at once and then goes on for as long as it likes.
const ANSWER: Duration = Duration::from_secs(30);

/// Refuses writes while the lease is not held, stops those on their way when it is lost, and counts them all.
#[derive(Debug, Clone)]
pub struct FenceLayer {
    lead: Lead,
    metrics: Arc<Metrics>,
}

/// No answer came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the API server gave no answer within 30 s")]
pub struct NoAnswer;

impl FenceLayer {
    /// Lets writes pass while `lead` holds.
    pub fn new(lead: Lead, metrics: Arc<Metrics>) -> Self {
        Self { lead, metrics }
    }
}

impl<S> Layer<S> for FenceLayer {
    type Service = Fence<S>;

    fn layer(&self, inner: S) -> Fence<S> {
        Fence { inner, layer: self.clone() }
    }
}

/// See [`FenceLayer`].
#[derive(Debug, Clone)]
pub struct Fence<S> {
    inner: S,
    layer: FenceLayer,
}

impl<S, B> Service<Request<Body>> for Fence<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(verb) = verb(request.method()) else {
            return Box::pin(Fenced {
                answer: Box::pin(self.inner.call(request)),
                lead: None,
                end: Box::pin(sleep(ANSWER)),
            });
        };
        let metrics = self.layer.metrics.clone();
        let resource = resource(request.uri().path()).to_owned();
        if self.layer.lead.check().is_err() {
            metrics.count_write(verb, &resource, Answer::Fenced);
            return Box::pin(async { Err(NotLeading.into()) });
        }
        let fenced = Fenced {
            answer: Box::pin(self.inner.call(request)),
            lead: Some(self.layer.lead.clone()),
            end: Box::pin(sleep(ANSWER)),
        };
        Box::pin(async move {
            let result = fenced.await;
            metrics.count_write(verb, &resource, answer(&result));
            result
        })
    }
}

/// A request on its way. It asks for the lease each time before it may move: a process that was stopped for a while, or a
/// client that waited to try again, does not send late what was decided early.
struct Fenced<F> {
    answer: Pin<Box<F>>,
    /// Only of writes.
    lead: Option<Lead>,
    end: Pin<Box<Sleep>>,
}

impl<F, B, E> Future for Fenced<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<B>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.lead.as_ref().is_some_and(|lead| lead.check().is_err()) {
            return Poll::Ready(Err(NotLeading.into()));
        }
        if let Poll::Ready(answer) = self.answer.as_mut().poll(context) {
            return Poll::Ready(answer.map_err(Into::into));
        }
        self.end.as_mut().poll(context).map(|()| Err(NoAnswer.into()))
    }
}

/// What a request writes; none if it only reads.
fn verb(method: &Method) -> Option<Verb> {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => None,
        Method::POST => Some(Verb::Create),
        Method::PUT => Some(Verb::Update),
        Method::DELETE => Some(Verb::Delete),
        _ => Some(Verb::Patch),
    }
}

/// The kind in a path: `/api/v1/namespaces/N/pods/P`, `/apis/G/V/namespaces/N/daskclusters/C/status`.
fn resource(path: &str) -> &str {
    let mut parts = path.trim_start_matches('/').split('/');
    let group = parts.next();
    let rest = if group == Some("apis") { parts.nth(1) } else { parts.next() };
    let mut parts = rest.and(Some(parts)).into_iter().flatten();
    match parts.next() {
        Some("namespaces") => parts.nth(1).unwrap_or("namespaces"),
        Some(resource) => resource,
        None => "",
    }
}

fn answer<B>(result: &Result<Response<B>, BoxError>) -> Answer {
    match result {
        Err(error) if error.is::<NotLeading>() => Answer::Fenced,
        Err(_) => Answer::Broken,
        Ok(response) => match response.status() {
            status if status.is_success() => Answer::Done,
            StatusCode::CONFLICT => Answer::Conflict,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Answer::Forbidden,
            StatusCode::TOO_MANY_REQUESTS => Answer::Throttled,
            status if status.is_server_error() => Answer::ServerError,
            _ => Answer::Refused,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_read_from_the_path() {
        for (path, kind) in [
            ("/api/v1/namespaces/n/pods", "pods"),
            ("/api/v1/namespaces/n/pods/p", "pods"),
            ("/apis/daskade.dev/v1alpha1/namespaces/n/daskclusters/c/status", "daskclusters"),
            ("/apis/events.k8s.io/v1/namespaces/n/events", "events"),
            ("/api/v1/namespaces/n", "namespaces"),
            ("/api/v1/nodes/x", "nodes"),
            ("/", ""),
            ("", ""),
            ("/apis", ""),
            ("/apis/group", ""),
        ] {
            assert_eq!(resource(path), kind, "{path}");
        }
    }
}
