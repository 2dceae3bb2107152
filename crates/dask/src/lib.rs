//! A native client of the Dask communication protocol.
//!
//! Layers, each usable and tested alone: bytes ↔ [`frame`]s ↔ [`message`]s with opaque payloads ↔ typed operations
//! ([`ops`]) ↔ [`session`] (no I/O, no clock) ↔ [`client`] (one task owns the socket).
//!
//! The peer is not trusted: every length, count and depth is checked against [`frame::Limits`] before anything is
//! allocated for it, each kind of message has a budget of its own ([`limits`]), nothing is ever unpickled or
//! decompressed, and every wait has a deadline.
//!
//! ```no_run
//! # async fn doc() -> Result<(), daskade_dask::Error> {
//! use daskade_dask::{Address, Connection, Deadlines, ops::{FollowEvents, Hello}};
//! let address: Address = "tcp://127.0.0.1:8786".parse()?;
//! let connection = Connection::connect(&address, None, Deadlines::default()).await?;
//! let hello = connection.call(&Hello {}).await?;
//! let follow = FollowEvents::new("uid", 1, 0, &hello.instance);
//! let mut events = connection.follow(&follow).await?;
//! while let Ok(batch) = events.next().await {
//!     for event in batch.events { println!("{event:?}"); }
//! }
//! # Ok(()) }
//! ```

mod address;
pub mod client;
mod deadlines;
mod error;
pub mod events;
pub mod frame;
pub mod message;
mod msgpack;
pub mod ops;
pub mod pickle;
mod pool;
mod room;
pub mod session;
pub mod transport;

pub use address::{Address, Scheme};
pub use client::{Connection, Events};
pub use deadlines::Deadlines;
pub use error::{Class, Error};
pub use events::{EventBatch, RuntimeEvent};
pub use frame::Limits;
pub use pool::{Peer, Pool};
pub use transport::{Tls, TlsFiles};
