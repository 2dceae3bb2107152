//! What a local run is made of: manifests, the driver of a run, and Dask processes on this machine.

mod bad_inputs;
mod driver;
mod fleet;
mod limits;
mod loops;
mod manifest;
mod manifest_properties;
#[path = "../support/memory.rs"]
mod memory;
mod pages;
#[path = "../support/peer.rs"]
mod peer;
mod release;
