//! Dask's protocol: recorded bytes, hostile peers, the event stream, TLS, and real releases of Dask.

extern crate daskade_dask as dask;

mod golden;
mod hostile;
mod interop;
#[path = "../../../../tests/support/peer.rs"]
mod peer;
mod stream;
mod tls;
