//! The operator as a process: options, endpoints, log, lease, signals; and its guards against a double of the API server.

mod api;
mod chart;
mod deployment;
mod faults;
mod fence;
mod lease;
mod namespaces;
mod objects;
#[path = "../support/peer.rs"]
mod peer;
mod people;
mod pipelines;
mod process;
mod reconcile;
mod retention;
mod runs;
mod scheduler;
mod trap;
mod watches;
mod world;

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Path of the lease that the tests use.
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/daskade/leases/daskade-operator";

/// Waits until a condition holds; panics with `what` if it does not within the time.
async fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < end, "not within {within:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
