//! The operator as a process: options, endpoints, log, lease, signals; and its guards against a double of the API server.

mod api;
mod authorities;
mod chart;
mod clocks;
mod deployment;
mod faults;
mod fence;
mod large;
mod lease;
mod limits;
mod loops;
#[path = "../support/memory.rs"]
mod memory;
mod namespaces;
mod objects;
mod pages;
#[path = "../support/peer.rs"]
mod peer;
mod people;
mod pipelines;
mod process;
mod reconcile;
mod release;
mod retention;
mod room;
mod runs;
mod scheduler;
mod trap;
mod upgrade;
mod wait;
mod watches;
mod world;

/// Path of the lease that the tests use.
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/daskade/leases/daskade-operator";
