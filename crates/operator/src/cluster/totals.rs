//! Sums over all clusters, for the metrics.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::memory::Totals;
use crate::cluster::reconcile::Context;

/// How often the sums in the metrics are made.
const COUNT: Duration = Duration::from_secs(2);

/// Keeps the sums in the metrics. Never ends.
pub(crate) async fn count(context: Arc<Context>) {
    loop {
        let Totals { ready, not_ready, desired, workers, connected, unreachable } = context.desk.memories.totals();
        context.desk.metrics.set_clusters(ready, not_ready);
        context.desk.metrics.set_workers(desired, workers);
        context.desk.metrics.set_schedulers(connected, unreachable);
        tokio::time::sleep(COUNT).await;
    }
}
