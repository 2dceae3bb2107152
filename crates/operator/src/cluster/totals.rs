//! Sums over all clusters, for the metrics.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::memory::Totals;
use crate::cluster::work::ClusterReconciler;

/// How often the sums in the metrics are made.
const COUNT: Duration = Duration::from_secs(2);

/// Keeps the sums in the metrics. Never ends.
pub(crate) async fn count(reconciler: Arc<ClusterReconciler>) {
    loop {
        let Totals { ready, not_ready, desired, workers, connected, unreachable } =
            reconciler.controller.memories.totals();
        reconciler.controller.metrics.set_clusters(ready, not_ready);
        reconciler.controller.metrics.set_workers(desired, workers);
        reconciler.controller.metrics.set_schedulers(connected, unreachable);
        tokio::time::sleep(COUNT).await;
    }
}
