//! Keeps the controllers running: gives each object its turn, while this process leads.

pub(crate) mod bounds;
pub(crate) mod events;
pub(crate) mod memory;
pub(crate) mod status;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use crate::apiserver::error::{Class, ReconcileError};
use crate::apiserver::sink::Sink;
use crate::controller::memory::Memories;
use crate::leader::lead::Lead;
use crate::queue::Key;

use telemetry::metrics::{self, Metrics, Outcome};
use telemetry::panics::isolate;

/// After a panic, whatever happens meanwhile: it is a bug, and will most likely come again.
const AFTER_PANIC: Duration = Duration::from_secs(60);
/// How long running reconciliations may take to finish at shutdown. The next leader does the rest.
const GRACE: Duration = Duration::from_secs(4);

/// Looks at the objects of one kind.
pub(crate) trait Reconciler: Send + Sync + 'static {
    /// What it remembers of an object.
    type Memory: Default + Send + 'static;

    /// Name for log and metrics.
    const NAME: metrics::Controller;

    /// Looks at one object and does what is to be done.
    fn reconcile(
        &self,
        key: &Key,
        memory: &mut Self::Memory,
    ) -> impl Future<Output = Result<Done, ReconcileError>> + Send;

    /// This process begins to lead, or does no more: nothing has had its turn yet.
    fn begin(&self) {}

    /// What it does besides while this process leads. Never ends.
    fn lead_on(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    fn controller(&self) -> &Controller<Self::Memory>;
}

/// The queue of one kind of objects, and what giving them their turns takes.
pub(crate) struct Controller<M> {
    pub sink: Sink,
    pub memories: Memories<M>,
    pub lead: Lead,
    pub metrics: Arc<Metrics>,
}

impl<M> Controller<M> {
    pub fn new(sink: Sink, lead: Lead, metrics: Arc<Metrics>) -> Self {
        Self { sink, memories: Memories::default(), lead, metrics }
    }
}

/// How a reconciliation ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub outcome: Outcome,
    /// When to look again even if nothing happens.
    pub again: Option<Duration>,
    /// When to go on with work that is left: a status that had to wait, or a retry.
    pub left: Option<Duration>,
    /// Nothing is left of the object.
    pub gone: bool,
}

impl Done {
    /// Nothing to come back for.
    pub fn rest(outcome: Outcome) -> Self {
        Self { outcome, again: None, left: None, gone: false }
    }
}

/// Gives turns until `stop` ends, `concurrency` at a time.
pub(crate) async fn dispatch<C: Reconciler>(reconciler: Arc<C>, concurrency: usize, stop: impl Future<Output = ()>) {
    let mut running = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = running.join_next(), if !running.is_empty() => {}
            key = reconciler.controller().sink.queue.next(), if running.len() < concurrency => {
                running.spawn(turn(reconciler.clone(), key));
            }
        }
    }
    let rest = timeout(GRACE, async { while running.join_next().await.is_some() {} }).await;
    if rest.is_err() {
        tracing::warn!(running = running.len(), "reconciliations did not end in time; they are cancelled");
    }
}

/// One turn of an object: everything around a reconciliation.
async fn turn<C: Reconciler>(reconciler: Arc<C>, key: Key) {
    let queue = &reconciler.controller().sink.queue;
    if reconciler.controller().lead.check().is_err() {
        // Once this process leads, all have their turn.
        queue.done(&key);
        tracing::trace!(object = %key, "skipped: this process does not lead");
        return;
    }
    let span = tracing::info_span!(
        "reconcile",
        controller = C::NAME.as_str(),
        namespace = key.namespace,
        // `name` is what the log calls the span itself.
        object = key.name,
        uid = tracing::field::Empty,
        generation = tracing::field::Empty,
        outcome = tracing::field::Empty
    );
    let begun = Instant::now();
    let mut kept = reconciler.controller().memories.take(&key);
    let work = async {
        let ended = reconciler.reconcile(&key, &mut kept.memory).await;
        kept.failures = if ended.is_ok() { 0 } else { kept.failures.saturating_add(1) };
        ended.unwrap_or_else(|error| failed(&key, kept.failures, &error))
    };
    let ended = isolate(work).instrument(span.clone()).await;
    let outcome = match ended {
        Ok(Done { outcome, again, left, gone }) => {
            if !gone && reconciler.controller().lead.check().is_ok() {
                reconciler.controller().memories.put(&key, kept);
            }
            if let Some(again) = again {
                queue.add_after(key.clone(), again);
            }
            if let Some(left) = left {
                queue.add_soon(key.clone(), left);
            }
            outcome
        }
        // It was told in the log and counted where it happened. What was remembered is not to be trusted.
        Err(_) => {
            queue.bar(&key, AFTER_PANIC);
            Outcome::Panicked
        }
    };
    span.record("outcome", tracing::field::debug(outcome));
    reconciler.controller().metrics.observe_reconcile(C::NAME, outcome, begun.elapsed());
    queue.done(&key);
}

/// What follows from a reconciliation that failed, for the n-th time in a row.
fn failed(key: &Key, failures: u32, error: &ReconcileError) -> Done {
    let class = error.class();
    match class {
        Class::Conflict if failures == limits::CONFLICT.times => {
            tracing::warn!(failures, "failed to {error}; still retrying");
        }
        Class::Conflict | Class::Fenced => tracing::debug!(class = ?class, "failed to {error}"),
        // Told once; the status goes on telling it.
        _ if failures == 1 => tracing::warn!(class = ?class, "failed to {error}"),
        _ => tracing::debug!(class = ?class, failures, "failed to {error}"),
    }
    let again = class.again(key, failures);
    // An error that only a person can resolve is not backlog.
    let (left, again) = if class.passes() { (again, None) } else { (None, again) };
    Done { outcome: class.outcome(), again, left, gone: false }
}

/// When this process begins to lead, all objects have their turn; when it leads no more, everything is forgotten. Ends
/// with the lease.
pub(crate) async fn follow_lead<C: Reconciler>(reconciler: Arc<C>) {
    let mut epochs = reconciler.controller().lead.epochs();
    loop {
        let epoch = *epochs.borrow_and_update();
        reconciler.controller().memories.clear();
        reconciler.begin();
        if epoch.is_none() {
            if epochs.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        }
        for key in reconciler.controller().sink.cache.keys() {
            reconciler.controller().sink.queue.add(key);
        }
        tokio::select! {
            changed = epochs.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = reconciler.lead_on() => {}
        }
    }
}
