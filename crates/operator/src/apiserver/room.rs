//! Room for objects: how many bytes of them this process has in hand at one time, and how many it keeps. Objects belong to
//! tenants, and may be as large as the API server stores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room is counted in these, so that the count fits.
const UNIT: usize = 1024;
/// What a value takes when an object is unpacked, beside its text.
const VALUE: usize = 64;
/// How many times over an object is in memory while it has its turn: its text, its values, its fields, and what is made of
/// it. Measured: 8 MiB for 1 MiB of code, 45 MiB for ten thousand steps.
const COPIES: usize = 8;

/// How many times over the text of a run's run_revision is in memory while the run is in progress, and what each of its values takes
/// there beside that. Measured: 2 MiB for 1 MiB of code, 35 MiB for ten thousand steps.
const IN_PROGRESS: usize = 3;
const PLANNED: usize = 768;

static LISTED: LazyLock<Arc<Semaphore>> = LazyLock::new(|| semaphore(limits::LISTED_AT_ONCE));
static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| semaphore(limits::TURNS_AT_ONCE));

/// For objects that are kept as a whole.
pub(crate) static OBJECTS: Store = Store::new(limits::OBJECTS_KEPT);
/// For what runs are carried out from.
pub(crate) static REVISIONS: Store = Store::new(limits::REVISIONS_KEPT);

/// Room that is taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    _permit: Option<OwnedSemaphorePermit>,
}

/// Waits until there is room for bytes of a list or of a watch.
pub(crate) async fn listed(bytes: usize) -> Held {
    hold(&LISTED, bytes.min(limits::LISTED_AT_ONCE)).await
}

/// Waits until there is room for objects of this weight to have their turn. What is heavier than all that there is gets all
/// of it, and is alone. Whoever holds such room must not wait for more.
pub(crate) async fn turn(weight: usize) -> Held {
    hold(&TURNS, weight.min(limits::TURNS_AT_ONCE)).await
}

async fn hold(of: &Arc<Semaphore>, bytes: usize) -> Held {
    if bytes == 0 {
        return Held { _permit: None };
    }
    // Nobody closes them.
    Held { _permit: of.clone().acquire_many_owned(units(bytes)).await.ok() }
}

fn semaphore(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(bytes / UNIT))
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(u32::MAX)
}

/// What an object takes in memory once, by its JSON.
pub(crate) fn size(json: &str) -> usize {
    json.len() + VALUE * values(json.as_bytes())
}

/// What it takes while it has its turn.
pub(crate) fn weight(json: &str) -> usize {
    COPIES * size(json)
}

/// What a run takes while it is in progress, besides its tasks, by its run_revision as JSON.
pub(crate) fn in_progress(json: &str) -> usize {
    limits::RUN + IN_PROGRESS * json.len() + PLANNED * values(json.as_bytes())
}

/// About how many values a JSON text has.
pub(crate) fn values(json: &[u8]) -> usize {
    let (mut count, mut text, mut escaped) = (1, false, false);
    for byte in json {
        match (text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => text = !text,
            (false, b',' | b'[' | b'{') => count += 1,
            _ => {}
        }
    }
    count
}

/// Memory for what is kept as long as there is room.
#[derive(Debug)]
pub(crate) struct Store {
    most: usize,
    used: AtomicUsize,
}

/// A part of it that is in use, until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    store: &'static Store,
    bytes: usize,
}

impl Store {
    pub const fn new(most: usize) -> Self {
        Self { most, used: AtomicUsize::new(0) }
    }

    /// Takes room for so many bytes, if there is any.
    pub fn charge(&'static self, bytes: usize) -> Option<Charge> {
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.most);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Charge { store: self, bytes })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.store.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[test]
    fn the_values_of_a_text_are_counted_without_what_its_strings_say() {
        for (json, count) in [
            ("1", 1),
            ("[1,2,3]", 4),
            (r#"{"a": [1, {"b": "x,[{"}], "c": "\\", "d": "\",\""}"#, 7),
            (r#""a,b\"c,d\\""#, 1),
        ] {
            assert_eq!(values(json.as_bytes()), count, "{json}");
        }
        assert!(weight("[0,0,0,0]") > COPIES * 5 * VALUE, "small values weigh more than their text");
    }

    #[test]
    fn what_is_kept_has_a_bound_and_room_comes_back() {
        static STORE: Store = Store::new(100);
        let first = STORE.charge(60);
        assert!(first.is_some() && STORE.charge(41).is_none());
        let second = STORE.charge(40);
        assert!(second.is_some() && STORE.charge(1).is_none());
        drop(first);
        assert!(STORE.charge(60).is_some());
        assert!(STORE.charge(usize::MAX).is_none());
    }

    #[tokio::test]
    async fn the_heaviest_object_is_alone_and_light_ones_never_wait() {
        let heavy = turn(usize::MAX).await;
        assert!(timeout(Duration::from_millis(50), turn(UNIT)).await.is_err());
        timeout(Duration::from_secs(10), turn(0)).await.expect("it needs no room");
        drop(heavy);
        timeout(Duration::from_secs(10), turn(UNIT)).await.expect("there is room again");
    }
}
