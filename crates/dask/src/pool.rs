//! Connections to one server that many callers share: a call takes one that is free, and gives it back.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

use super::address::Address;
use super::client::{Connection, Events};
use super::deadlines::Deadlines;
use super::error::Error;
use super::frame::Limits;
use super::ops::{FollowEvents, Operation};
use super::transport::Tls;

/// Connections that wait for the next call at most: more callers than that at one moment are rare.
const IDLE: usize = 4;
/// What nobody has used for so long is closed.
const KEEP: Duration = Duration::from_secs(20);

/// Connections of one server that are free. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    free: Arc<Mutex<Free>>,
}

#[derive(Debug, Default)]
struct Free {
    /// The one used last at the end.
    connections: Vec<(Connection, Instant)>,
    /// A task looks after those that nobody uses.
    swept: bool,
}

/// A server, as one caller speaks to it. Several calls at once have a connection each.
#[derive(Debug, Clone)]
pub struct Peer {
    address: Address,
    tls: Option<Tls>,
    pool: Pool,
    limits: Limits,
}

impl Peer {
    /// `tls` is for connections to come: those of the pool are used as they are.
    pub fn new(address: Address, tls: Option<Tls>, pool: Pool) -> Peer {
        Peer { address, tls, pool, limits: Limits::default() }
    }

    /// Takes no more of it than this. All who share the pool should take the same.
    #[must_use]
    pub fn within(self, limits: Limits) -> Peer {
        Peer { limits, ..self }
    }

    /// What is taken of it.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A connection of one's own.
    pub async fn connect(&self) -> Result<Connection, Error> {
        Connection::connect_limited(&self.address, self.tls.as_ref(), Deadlines::default(), self.limits).await
    }

    /// Calls an operation, within its usual deadline. A call that is given up takes its connection with it.
    pub async fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply, Error> {
        let connection = match self.pool.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let answer = connection.call(operation).await;
        if answer.as_ref().err().is_none_or(is_answer) {
            self.pool.give(connection);
        }
        answer
    }

    /// Follows a run's events, on a connection of one's own.
    pub async fn follow(&self, follow: &FollowEvents) -> Result<Events, Error> {
        self.connect().await?.follow_here(follow).await
    }
}

/// Whether the peer has answered: the connection is as good as before.
fn is_answer(error: &Error) -> bool {
    matches!(error, Error::UnknownOp { .. } | Error::Remote { .. } | Error::Refused { .. })
}

impl Pool {
    fn take(&self) -> Option<Connection> {
        let mut free = self.lock();
        free.sweep();
        free.connections.pop().map(|(connection, _)| connection)
    }

    fn give(&self, connection: Connection) {
        let mut free = self.lock();
        free.sweep();
        if free.connections.len() >= IDLE {
            return;
        }
        free.connections.push((connection, Instant::now()));
        if !std::mem::replace(&mut free.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.free)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        lock(&self.free)
    }
}

impl Free {
    /// Closes what ended or was not used for long.
    fn sweep(&mut self) {
        self.connections.retain(|(connection, used)| connection.is_alive() && used.elapsed() < KEEP);
    }
}

fn lock(free: &Mutex<Free>) -> MutexGuard<'_, Free> {
    // Each change is whole before anything in it can panic.
    free.lock()
}

/// Looks after free connections until there is none.
async fn sweep(free: Weak<Mutex<Free>>) {
    loop {
        sleep(KEEP / 2).await;
        let Some(free) = free.upgrade() else { return };
        let mut free = lock(&free);
        free.sweep();
        if free.connections.is_empty() {
            free.swept = false;
            return;
        }
    }
}
