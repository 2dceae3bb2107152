//! Keeps the controllers running: gives each cluster its turn, while this process leads.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::memory::{Memories, Totals};
use super::queue::Key;
use super::reconcile::{Context, Done, reconcile};
use crate::telemetry::metrics::{Controller, Outcome};
use crate::telemetry::panics::isolate;

/// After a panic: it is a bug, and will most likely come again.
const AFTER_PANIC: Duration = Duration::from_secs(60);
/// How long passes that are in the middle may go on at the end. What they did not do is done by whoever leads next.
const GRACE: Duration = Duration::from_secs(4);
/// How often the sums in the metrics are made.
const COUNT: Duration = Duration::from_secs(10);
/// How often authorities of clusters that are gone are looked for: they are removed with their cluster, unless nobody led
/// at that moment.
const SWEEP: Duration = Duration::from_secs(3600);
/// After a sweep that failed.
const SWEEP_AGAIN: Duration = Duration::from_secs(60);

/// Gives turns until `stop` ends, `concurrency` at a time.
pub(super) async fn dispatch(
    context: Arc<Context>,
    memories: Arc<Memories>,
    concurrency: usize,
    stop: impl Future<Output = ()>,
) {
    let mut passes = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = passes.join_next(), if !passes.is_empty() => {}
            key = context.queue.next(), if passes.len() < concurrency => {
                passes.spawn(turn(context.clone(), memories.clone(), key));
            }
        }
    }
    let rest = timeout(GRACE, async { while passes.join_next().await.is_some() {} }).await;
    if rest.is_err() {
        tracing::warn!(passes = passes.len(), "passes did not end in time; they are cut off");
    }
}

/// One turn of a cluster: everything around a pass.
async fn turn(context: Arc<Context>, memories: Arc<Memories>, key: Key) {
    if context.lead.check().is_err() {
        // Once this process leads, all have their turn.
        context.queue.done(&key);
        return;
    }
    let span = tracing::info_span!(
        "reconcile",
        controller = "daskcluster",
        namespace = key.namespace,
        // `name` is what the log calls the span itself.
        object = key.name,
        uid = tracing::field::Empty,
        generation = tracing::field::Empty,
        outcome = tracing::field::Empty
    );
    let begun = Instant::now();
    let mut memory = memories.take(&key);
    let ended = isolate(reconcile(&context, &key, &mut memory)).instrument(span.clone()).await;
    let outcome = match ended {
        Ok(Done { outcome, again, gone }) => {
            if !gone && context.lead.check().is_ok() {
                memories.put(&key, memory);
            }
            if let Some(again) = again {
                context.queue.add_after(key.clone(), again);
            }
            outcome
        }
        // It was told in the log and counted where it happened. What was remembered is not to be trusted.
        Err(_) => {
            context.queue.add_after(key.clone(), AFTER_PANIC);
            Outcome::Panicked
        }
    };
    span.record("outcome", tracing::field::debug(outcome));
    context.metrics.observe_reconcile(Controller::DaskCluster, outcome, begun.elapsed());
    context.queue.done(&key);
}

/// When this process begins to lead, all clusters have their turn; when it leads no more, everything is forgotten. Ends
/// with the lease.
pub(super) async fn follow_lead(context: Arc<Context>, memories: Arc<Memories>) {
    let mut epochs = context.lead.epochs();
    loop {
        let epoch = *epochs.borrow_and_update();
        memories.clear();
        if epoch.is_none() {
            if epochs.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        }
        for key in context.cache.keys() {
            context.queue.add(key);
        }
        tokio::select! {
            changed = epochs.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = sweep(&context) => {}
        }
    }
}

/// Removes authorities of clusters that are gone, from time to time. Never ends.
async fn sweep(context: &Context) {
    loop {
        let pause = match context
            .certificates
            .sweep(|namespace| context.scope.watches(namespace), || context.cache.uids())
            .await
        {
            Ok(()) => SWEEP,
            Err(error) => {
                tracing::warn!("failed to {error}; trying again");
                SWEEP_AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Keeps the sums in the metrics. Never ends.
pub(super) async fn count(context: Arc<Context>, memories: Arc<Memories>) {
    loop {
        let Totals { ready, not_ready, desired, workers, connected, unreachable } = memories.totals();
        context.metrics.set_clusters(ready, not_ready);
        context.metrics.set_workers(desired, workers);
        context.metrics.set_schedulers(connected, unreachable);
        tokio::time::sleep(COUNT).await;
    }
}
