//! Room for large messages: how many bytes of them this process holds at one time, of one peer and of all.
//!
//! The whole of a message is asked for before it is read, so that half-read messages cannot keep each other waiting. Small
//! ones need no room here: a peer that takes all that there is holds up only the large messages of others, and those only
//! until its deadline.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room is counted in these, so that the count fits.
const UNIT: usize = 1024;

static ALL: LazyLock<Arc<Semaphore>> = LazyLock::new(|| semaphore(limits::PROCESS_BYTES));
static PEERS: Mutex<BTreeMap<String, Weak<Semaphore>>> = Mutex::new(BTreeMap::new());

/// The room of one peer. All connections to it share it.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// Room that is taken, until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    _peer: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Of the peer at this address.
    pub fn of(address: &str) -> Room {
        // Each change is whole before anything in it can panic.
        let mut peers = PEERS.lock();
        if let Some(room) = peers.get(address).and_then(Weak::upgrade) {
            return Room(room);
        }
        peers.retain(|_, room| room.strong_count() > 0);
        let room = semaphore(limits::PEER_BYTES);
        peers.insert(address.to_owned(), Arc::downgrade(&room));
        Room(room)
    }

    /// Of a peer without an address.
    pub fn own() -> Room {
        Room(semaphore(limits::PEER_BYTES))
    }

    /// Waits until there is room for a message of so many bytes. One that is larger than the room of a peer gets all of that.
    pub async fn hold(self, bytes: usize) -> Held {
        // Nobody closes them.
        let peer = self.0.acquire_many_owned(units(bytes.min(limits::PEER_BYTES))).await.ok();
        let all = ALL.clone().acquire_many_owned(units(bytes.min(limits::PEER_BYTES))).await.ok();
        Held { _peer: peer, _all: all }
    }
}

fn semaphore(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(bytes / UNIT))
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const WHOLE: usize = usize::MAX;

    async fn waits(room: Room) -> bool {
        timeout(Duration::from_millis(50), room.hold(limits::PEER_BYTES)).await.is_err()
    }

    #[tokio::test]
    async fn one_peer_cannot_take_the_room_of_all() {
        let greedy = Room::of("tcp://greedy:1");
        let held = greedy.clone().hold(WHOLE).await;
        assert!(waits(Room::of("tcp://greedy:1")).await, "all of its connections share its room");
        let other = timeout(Duration::from_secs(10), Room::of("tcp://other:1").hold(limits::PEER_BYTES)).await;
        let other = other.expect("there is room for another");
        assert!(waits(Room::of("tcp://third:1")).await, "all of them have no more than this");
        drop(held);
        timeout(Duration::from_secs(10), Room::of("tcp://third:1").hold(WHOLE)).await.expect("there is room again");
        drop(other);
    }
}
