//! The right to write: held by one process at a time, for a bounded time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::Instant;

use dask::ops::Leader;

/// This process does not hold the lease, or its time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write: this process does not hold the lease now")]
pub struct NotLeading;

/// Tells whether this process may write. All clones tell the same.
#[derive(Debug, Clone)]
pub struct Lead {
    held: Arc<Mutex<Option<Held>>>,
    epochs: watch::Receiver<Option<u64>>,
}

/// The other end of [`Lead`]: what the lease grants. When it is dropped the right is lost.
#[derive(Debug)]
pub struct Grant {
    held: Arc<Mutex<Option<Held>>>,
    epochs: watch::Sender<Option<u64>>,
}

/// The last renewal, on both clocks of the machine.
#[derive(Debug, Clone)]
struct Held {
    leader: Leader,
    since: Instant,
    since_wall: SystemTime,
    lasts: Duration,
}

/// A right that is not held yet, and its two ends.
pub fn lead() -> (Grant, Lead) {
    let held = Arc::new(Mutex::new(None));
    let (sender, receiver) = watch::channel(None);
    (Grant { held: held.clone(), epochs: sender }, Lead { held, epochs: receiver })
}

/// This moment, on both clocks of the machine.
pub(crate) fn moment() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

impl Lead {
    /// The epoch of the lease, if it is held right now. Ask again before every write.
    pub fn check(&self) -> Result<u64, NotLeading> {
        self.held(|leader| leader.epoch)
    }

    /// The same with the lease, as schedulers are told.
    pub fn leader(&self) -> Result<Leader, NotLeading> {
        self.held(Leader::clone)
    }

    fn held<T>(&self, what: impl FnOnce(&Leader) -> T) -> Result<T, NotLeading> {
        let held = lock(&self.held);
        let lives = |held: &&Held| held.lives(Instant::now(), SystemTime::now());
        held.as_ref().filter(lives).map(|held| what(&held.leader)).ok_or(NotLeading)
    }

    /// The epoch while the lease is held. It tells of the loss a moment after [`Lead::check`] does.
    pub fn epochs(&self) -> watch::Receiver<Option<u64>> {
        self.epochs.clone()
    }
}

impl Grant {
    /// The lease is held: the request that said so was begun at the given moments. The right ends `lasts` after them.
    pub fn renew(&self, leader: impl Into<Leader>, since: Instant, since_wall: SystemTime, lasts: Duration) {
        let leader = leader.into();
        let epoch = leader.epoch;
        *lock(&self.held) = Some(Held { leader, since, since_wall, lasts });
        self.publish(Some(epoch));
    }

    /// The lease is lost or given back: nothing may be written from now on.
    pub fn lose(&self) {
        *lock(&self.held) = None;
        self.publish(None);
    }

    /// How long the right lasts without a renewal; none if it is not held.
    pub fn left(&self) -> Option<Duration> {
        let held = lock(&self.held).clone()?;
        let now = Instant::now();
        held.lives(now, SystemTime::now()).then(|| held.lasts.saturating_sub(now.saturating_duration_since(held.since)))
    }

    fn publish(&self, epoch: Option<u64>) {
        self.epochs.send_if_modified(|told| std::mem::replace(told, epoch) != epoch);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.lose();
    }
}

impl Held {
    /// The monotonic clock decides, which no setting of the time moves. It may stand still while the whole machine
    /// sleeps, so the other clock can end the right as well; it never prolongs it.
    fn lives(&self, now: Instant, wall: SystemTime) -> bool {
        let slept = wall.duration_since(self.since_wall).unwrap_or_default();
        now.saturating_duration_since(self.since) < self.lasts && slept < self.lasts
    }
}

fn lock(held: &Mutex<Option<Held>>) -> MutexGuard<'_, Option<Held>> {
    // The value is replaced as a whole: a panic elsewhere leaves nothing half written.
    held.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn the_right_ends_by_itself_and_comes_back_with_a_renewal() {
        let (grant, lead) = lead();
        let mut epochs = lead.epochs();
        assert_eq!(lead.check(), Err(NotLeading));
        grant.renew(4, Instant::now(), SystemTime::now(), LASTS);
        assert_eq!((lead.check(), *epochs.borrow_and_update()), (Ok(4), Some(4)));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(lead.check(), Ok(4));
        grant.renew(4, Instant::now(), SystemTime::now(), LASTS);
        assert!(!epochs.has_changed().unwrap(), "a renewal is no news");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!((lead.check(), grant.left()), (Err(NotLeading), None));
        grant.renew(5, Instant::now(), SystemTime::now(), LASTS);
        drop(grant);
        assert_eq!((lead.check(), *lead.epochs().borrow()), (Err(NotLeading), None));
    }

    #[test]
    fn a_clock_that_jumps_never_prolongs_the_right() {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let held = Held { leader: 1.into(), since: now, since_wall: wall, lasts: LASTS };
        let hour = Duration::from_secs(3600);
        assert!(held.lives(now + Duration::from_secs(1), wall - hour), "set back: the monotonic clock decides");
        assert!(!held.lives(now + LASTS, wall - hour));
        assert!(!held.lives(now + Duration::from_secs(1), wall + hour), "the machine slept, or the clock was set");
    }
}
