//! How long each step of a connection may take.

use std::time::Duration;

/// How long each step may take. Nothing waits without one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Name lookup and TCP connection.
    pub connect: Duration,
    /// TLS, and again the first message of the peer: a stopped process still accepts connections.
    pub handshake: Duration,
    /// A call, including the wait for calls before it.
    pub rpc: Duration,
    /// A call that reads or writes storage, or runs a function at the peer.
    pub slow: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            rpc: Duration::from_secs(30),
            slow: Duration::from_secs(300),
        }
    }
}
