//! Waiting for conditions, each with a deadline. Whatever may change one rings the bell: the doubles with everything that
//! happens to them, the operator with its log and the ends of its passes. Nothing here looks again after a fixed time.

use std::sync::{LazyLock, Once};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::span::Id;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// One for all tests of the process: what happens in another test only makes this one look once more.
static BELL: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));

/// A burst of changes is looked at once in this time.
const BURST: Duration = Duration::from_millis(5);

/// Something has changed that a test may wait for.
pub fn ring() {
    BELL.send_modify(|count| *count += 1);
}

/// Waits until a condition holds; panics with `what` if it does not within the time.
pub async fn eventually(what: &str, within: Duration, holds: impl FnMut() -> bool) {
    eventually_or(|| what.to_owned(), within, holds).await;
}

/// Like [`eventually`], with a text that is made when it is needed.
pub async fn eventually_or(what: impl Fn() -> String, within: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    let mut bell = BELL.subscribe();
    loop {
        bell.borrow_and_update();
        if holds() {
            return;
        }
        let rung = timeout_at(end, bell.changed()).await;
        assert!(rung.is_ok(), "not within {within:?}: {}", what());
        sleep(BURST).await;
    }
}

/// Waits until a value has stayed the same for some time; panics with `what` if it still changes after `within`.
pub async fn unchanged<T: PartialEq>(what: &str, time: Duration, within: Duration, mut value: impl FnMut() -> T) {
    let end = Instant::now() + within;
    let mut bell = BELL.subscribe();
    let (mut last, mut since) = (value(), Instant::now());
    while since.elapsed() < time {
        assert!(Instant::now() < end, "not within {within:?}: {what} come to an end");
        bell.borrow_and_update();
        if timeout_at(since + time, bell.changed()).await.is_ok() {
            sleep(BURST * 10).await;
        }
        let now = value();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// Time between two signs of life of a scheduler that has nothing to say; three that are missing count as its end.
pub async fn beat() {
    sleep(Duration::from_secs(1)).await;
}

/// Rings when the operator in this process logs something or ends a reconciliation.
pub fn hear_the_operator() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Bell);
        tracing::subscriber::set_global_default(subscriber).expect("no other subscriber");
    });
}

/// Rings as often as `changes` change.
pub fn follow<T: Send + Sync + 'static>(mut changes: watch::Receiver<T>) {
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            ring();
        }
        ring();
    });
}

struct Bell;

impl<S: Subscriber> Layer<S> for Bell {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("daskade")
    }

    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        ring();
    }

    fn on_close(&self, _: Id, _: Context<'_, S>) {
        ring();
    }
}
