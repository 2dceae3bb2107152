//! The time by which the operator decides: the API server's. Objects carry its stamps, and every leader has the same;
//! the clock of the machine may be set wrong, and nothing is removed or ended by it.
//!
//! It is the last `Date` header that the API server has sent, and what has passed since by a clock that nobody sets.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::DATE;
use http::{HeaderMap, Request, Response};
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::{SignedDuration, Timestamp};
use kube::client::Body;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tower::{Layer, Service};

use telemetry::metrics::Metrics;

/// An answer this old does not count as a word on the time any more. The lease alone asks every few seconds.
const FRESH: Duration = Duration::from_secs(60);
/// `Date` has whole seconds.
const GRAIN: SignedDuration = SignedDuration::from_secs(1);
/// A difference that is told: beyond it, certificates and schedules go wrong for others, too.
const SKEW: SignedDuration = SignedDuration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Clones tell the same time.
#[derive(Debug, Clone)]
pub struct Clock {
    heard: Arc<Mutex<Option<Heard>>>,
    /// The clock of this machine.
    local: fn() -> Timestamp,
}

/// What the API server has told.
#[derive(Debug, Clone, Copy)]
struct Heard {
    /// Its time at a moment of ours.
    at: Timestamp,
    since: Instant,
    /// When an answer last agreed with that.
    last: Instant,
}

/// The time, and how far it can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The time.
    pub at: Timestamp,
    /// Whose word it is.
    pub trust: Trust,
}

/// Whose word the time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The API server told it a moment ago.
    Fresh,
    /// The API server told it a while ago: it is no later than this says.
    Stale,
    /// The API server has told none: it is this machine's.
    Local,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Timestamp::now)
    }
}

impl Clock {
    /// One that has heard nothing yet. `local`: the clock of this machine.
    pub fn new(local: fn() -> Timestamp) -> Self {
        Self { heard: Arc::default(), local }
    }

    /// The time to decide by.
    pub fn now(&self) -> Timestamp {
        self.read().at
    }

    /// The time, and whose it is.
    pub fn read(&self) -> Reading {
        let heard = *self.lock();
        let Some(heard) = heard else { return Reading { at: (self.local)(), trust: Trust::Local } };
        let now = Instant::now();
        let fresh = now.saturating_duration_since(heard.last) <= FRESH;
        Reading { at: heard.at(now), trust: if fresh { Trust::Fresh } else { Trust::Stale } }
    }

    /// How far this machine's clock is ahead; none without a fresh word of the API server.
    pub fn skew(&self) -> Option<SignedDuration> {
        let Reading { at, trust } = self.read();
        (trust == Trust::Fresh).then(|| (self.local)().duration_since(at))
    }

    /// An answer to a request that was begun at `asked` says that it was written at `date`.
    fn hear(&self, date: Timestamp, asked: Instant) {
        let now = Instant::now();
        let took = SignedDuration::try_from(now.saturating_duration_since(asked)).unwrap_or(SignedDuration::MAX);
        let latest = date.saturating_add(GRAIN.saturating_add(took)).unwrap_or(Timestamp::MAX);
        let mut heard = self.lock();
        // What fits is kept: it may come from an answer that was faster.
        let kept = heard.filter(|heard| (date..=latest).contains(&heard.at(now)));
        let (at, since) = kept.map_or((date, now), |kept| (kept.at, kept.since));
        *heard = Some(Heard { at, since, last: now });
    }

    fn lock(&self) -> MutexGuard<'_, Option<Heard>> {
        // The value is replaced as a whole.
        self.heard.lock()
    }
}

impl Heard {
    fn at(&self, now: Instant) -> Timestamp {
        let passed = SignedDuration::try_from(now.saturating_duration_since(self.since)).unwrap_or(SignedDuration::MAX);
        self.at.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }
}

/// Between the operator and its client.
impl<S> Layer<S> for Clock {
    type Service = Listening<S>;

    fn layer(&self, inner: S) -> Listening<S> {
        Listening { inner, clock: self.clone() }
    }
}

/// Notes the time of each answer.
#[derive(Debug, Clone)]
pub struct Listening<S> {
    inner: S,
    clock: Clock,
}

impl<S, B> Service<Request<Body>> for Listening<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let asked = Instant::now();
        let (answer, clock) = (self.inner.call(request), self.clock.clone());
        Box::pin(async move {
            let answer = answer.await?;
            // An error of the server may be that of a proxy before it, which has a clock of its own.
            if !answer.status().is_server_error()
                && let Some(date) = date(answer.headers())
            {
                clock.hear(date, asked);
            }
            Ok(answer)
        })
    }
}

fn date(headers: &HeaderMap) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(headers.get(DATE)?.as_bytes()).ok()
}

/// Tells in log and metrics how far this machine's clock is off. Never ends.
pub(crate) async fn watch(clock: Clock, metrics: Arc<Metrics>) {
    let begun = Instant::now();
    let (mut is_off, mut is_deaf) = (false, false);
    loop {
        if let Some(skew) = clock.skew() {
            metrics.set_clock_skew(skew.as_secs_f64());
            let seconds = skew.as_secs();
            match (std::mem::replace(&mut is_off, skew.abs() > SKEW), is_off) {
                (false, true) => tracing::warn!(
                    seconds,
                    "the clock of this machine differs from the API server's by more than 30 s; decisions go by the API \
                     server's. Have the clocks of the nodes and of the control plane synchronised (NTP)"
                ),
                (true, false) => {
                    tracing::info!(seconds, "the clock of this machine agrees with the API server's again")
                }
                _ => {}
            }
        } else if clock.read().trust == Trust::Local
            && begun.elapsed() > FRESH
            && !std::mem::replace(&mut is_deaf, true)
        {
            tracing::warn!(
                "no answer of the API server has a Date header; runs are not removed when their time is over. A proxy in \
                 between may take it away"
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    /// A machine whose clock is an hour ahead and stands still.
    fn ahead() -> Clock {
        Clock::new(|| at(3600))
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_is_the_servers_last_word_and_what_has_passed_since() {
        let clock = ahead();
        assert_eq!(clock.read(), Reading { at: at(3600), trust: Trust::Local });
        assert_eq!(clock.skew(), None);
        clock.hear(at(0), Instant::now());
        assert_eq!(clock.read(), Reading { at: at(0), trust: Trust::Fresh });
        assert_eq!(clock.skew(), Some(SignedDuration::from_hours(1)));
        pass(60).await;
        assert_eq!(clock.read(), Reading { at: at(60), trust: Trust::Fresh });
        pass(1).await;
        assert_eq!(clock.read(), Reading { at: at(61), trust: Trust::Stale }, "it goes on, and nobody vouches for it");
        assert_eq!(clock.skew(), None);
        clock.hear(at(61), Instant::now());
        assert_eq!(clock.read(), Reading { at: at(61), trust: Trust::Fresh });
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_long_on_its_way_does_not_turn_the_time_back() {
        let clock = ahead();
        let asked = Instant::now();
        pass(20).await;
        clock.hear(at(20), Instant::now());
        clock.hear(at(0), asked);
        assert_eq!(clock.now(), at(20), "it was written at some time in these twenty seconds");
        // Whole seconds do not either.
        tokio::time::advance(Duration::from_millis(900)).await;
        let before = clock.now();
        clock.hear(at(20), Instant::now());
        assert_eq!(clock.now(), before);
        // A server whose clock was set, or another server, does.
        clock.hear(at(10), Instant::now());
        assert_eq!(clock.now(), at(10));
        clock.hear(at(500), Instant::now());
        assert_eq!(clock.now(), at(500));
    }

    #[test]
    fn dates_are_read_as_servers_write_them() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(DATE, http::HeaderValue::from_static(text));
            date(&headers)
        };
        assert_eq!(read("Thu, 01 Jan 2026 00:00:07 GMT"), Some(at(7)));
        for nonsense in ["", "yesterday", "2026-01-01T00:00:07Z", "Thu, 01 Jan 99999 00:00:07 GMT"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
        assert_eq!(date(&HeaderMap::new()), None);
    }
}
