//! A mistake in a reconciliation, made to order: whoever waits for the answer to a write of a chosen object panics.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use kube::client::Body;
use tower::{Layer, Service};

/// Between the operator and its client.
#[derive(Debug, Clone, Default)]
pub struct Trap {
    part: Arc<Mutex<Option<String>>>,
    sprung: Arc<AtomicUsize>,
}

impl Trap {
    /// Writes to paths with this part panic from now on.
    pub fn set(&self, part: &str) {
        *self.part.lock().unwrap() = Some(part.to_owned());
    }

    /// How often one did.
    pub fn sprung(&self) -> usize {
        self.sprung.load(Ordering::SeqCst)
    }
}

impl<S> Layer<S> for Trap {
    type Service = Trapped<S>;

    fn layer(&self, inner: S) -> Trapped<S> {
        Trapped { inner, trap: self.clone() }
    }
}

#[derive(Debug, Clone)]
pub struct Trapped<S> {
    inner: S,
    trap: Trap,
}

impl<S, B> Service<Request<Body>> for Trapped<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let part = self.trap.part.lock().unwrap().clone();
        let springs = request.method() != Method::GET && part.is_some_and(|part| request.uri().path().contains(&part));
        let (inner, sprung) = (self.inner.call(request), self.trap.sprung.clone());
        Box::pin(async move {
            if springs {
                sprung.fetch_add(1, Ordering::SeqCst);
                crate::wait::ring();
                panic!("a mistake of the operator, made by a test");
            }
            inner.await
        })
    }
}
