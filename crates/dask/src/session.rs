//! One connection as a state machine: handshake, then either calls one after the other or one event stream.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::deadlines::Deadlines;
use super::error::Error;
use super::events::{self, EventBatch};
use super::message::{self, Message};
use super::ops::{self, FollowEvents};

/// Silent beats after which the peer of an event stream counts as gone.
const SILENT_BEATS: u32 = 3;

/// Names a call within its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// What the owner wants.
#[derive(Debug)]
pub enum Command {
    /// Sends a request; [`Event::Reply`] follows, unless the session fails before.
    Call {
        /// Chosen by the owner.
        id: CallId,
        /// From [`message::encode_request`].
        request: Bytes,
        /// When to give up.
        within: Duration,
    },
    /// Turns the connection into an event stream, once the calls before it are answered. No calls after it.
    Follow(FollowEvents),
    /// Events up to this one have been dealt with.
    Acknowledge(u64),
}

/// What a peer may send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// Its introduction.
    Introduction,
    /// Nothing.
    Nothing,
    /// The answer to a call.
    Reply(CallId),
    /// Events.
    Events,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The handshake is done.
    Ready,
    /// The answer to a call.
    Reply(CallId, Message),
    /// New events of the stream; never an empty batch.
    Batch(EventBatch),
    /// The session is over, and with it all calls without an answer. Nothing follows.
    Failed(Error),
}

/// A connection without its socket.
///
/// Order of calls: after creation and after every input (`handle_message`, `handle_command`, `handle_timeout`,
/// `handle_end`), take all of `poll_transmit` and write it, take all of `poll_event`, then wait for input or for the
/// instant `poll_timeout`, and call `handle_timeout` when it has passed. After [`Event::Failed`] every input is
/// ignored. Time is what the caller says it is; it must not go backwards.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// Not sent yet: only one call at a time is under way.
    queue: VecDeque<(CallId, Bytes, Expiry)>,
    follow: Option<FollowEvents>,
    transmit: VecDeque<Bytes>,
    events: VecDeque<Event>,
}

#[derive(Debug)]
enum State {
    Handshake { until: Expiry },
    Idle,
    Waiting { id: CallId, until: Expiry },
    Following(Following),
    Failed,
}

#[derive(Debug)]
struct Following {
    instance: String,
    /// None until the first message tells it to one who looks on.
    cursor: Option<u64>,
    acknowledged: u64,
    patience: Duration,
    heard: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Expiry {
    at: Instant,
    after: Duration,
}

impl Expiry {
    fn new(now: Instant, after: Duration) -> Expiry {
        // A century is as good as for ever, and cannot overflow an Instant.
        let after = after.min(Duration::from_secs(100 * 365 * 86_400));
        Expiry { at: now + after, after }
    }
}

impl Session {
    /// A session on a fresh connection. Our introduction is ready to be transmitted.
    pub fn new(deadlines: &Deadlines, now: Instant) -> Session {
        Session {
            state: State::Handshake { until: Expiry::new(now, deadlines.handshake) },
            queue: VecDeque::new(),
            follow: None,
            transmit: message::encode(&Introduction::ours()).into_iter().collect(),
            events: VecDeque::new(),
        }
    }

    /// The owner wants something. `Err`: not in this state; the session goes on.
    pub fn handle_command(&mut self, command: Command, now: Instant) -> Result<(), Error> {
        match command {
            Command::Call { .. } | Command::Follow(_) if self.follow.is_some() || self.is_following() => {
                return Err(Error::protocol("an event stream takes no calls"));
            }
            Command::Call { id, request, within } => {
                self.queue.push_back((id, request, Expiry::new(now, within)));
            }
            Command::Follow(follow) => self.follow = Some(follow),
            Command::Acknowledge(number) => self.acknowledge(number),
        }
        self.advance(now);
        Ok(())
    }

    /// A message arrived.
    pub fn handle_message(&mut self, message: &Message, now: Instant) {
        let handled = match &mut self.state {
            State::Handshake { .. } => introduced(message).map(|()| {
                self.state = State::Idle;
                self.events.push_back(Event::Ready);
            }),
            State::Idle => Err(Error::protocol("received an unexpected message")),
            State::Waiting { id, .. } => {
                self.events.push_back(Event::Reply(*id, message.clone()));
                self.state = State::Idle;
                Ok(())
            }
            State::Following(following) => following.read(message, now).map(|batch| {
                self.events.extend(batch.map(Event::Batch));
            }),
            State::Failed => Ok(()),
        };
        match handled {
            Ok(()) => self.advance(now),
            Err(error) => self.fail(error),
        }
    }

    /// Bytes of a message that is not whole yet are waiting. While nothing is asked for, none may come.
    pub fn handle_partial(&mut self) {
        if matches!(self.state, State::Idle) {
            self.fail(Error::protocol("received unexpected bytes"));
        }
    }

    /// The connection ended.
    pub fn handle_end(&mut self, error: Error) {
        self.fail(error);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &self.state {
            State::Handshake { until } if until.at <= now => {
                self.fail(Error::Timeout { during: "shake hands", after: until.after });
            }
            State::Waiting { until, .. } if until.at <= now => {
                // A late answer could be taken for that of the next call: the connection is of no more use.
                self.fail(Error::Timeout { during: "get an answer", after: until.after });
            }
            State::Following(following) if following.heard + following.patience <= now => {
                self.fail(Error::Silent { after: following.patience });
            }
            _ => {}
        }
    }

    /// The owner did not read for a while, so silence until now says nothing about the peer.
    pub fn handle_resumed(&mut self, now: Instant) {
        if let State::Following(following) = &mut self.state {
            following.heard = now;
        }
    }

    /// What the next message is, if one comes.
    pub fn awaits(&self) -> Awaited {
        match &self.state {
            State::Handshake { .. } => Awaited::Introduction,
            State::Idle | State::Failed => Awaited::Nothing,
            State::Waiting { id, .. } => Awaited::Reply(*id),
            State::Following(_) => Awaited::Events,
        }
    }

    /// The next bytes to write.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmit.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Session::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Handshake { until } | State::Waiting { until, .. } => Some(until.at),
            State::Following(following) => Some(following.heard + following.patience),
            State::Idle | State::Failed => None,
        }
    }

    /// Starts what is next if nothing is under way.
    fn advance(&mut self, now: Instant) {
        if !matches!(self.state, State::Idle) {
            return;
        }
        if let Some((id, request, until)) = self.queue.pop_front() {
            self.transmit.push_back(request);
            self.state = State::Waiting { id, until };
        } else if let Some(follow) = self.follow.take() {
            match message::encode_request(FollowEvents::OP, false, &follow) {
                Ok(request) => {
                    self.transmit.push_back(request);
                    self.state = State::Following(Following::new(follow, now));
                }
                Err(reason) => self.fail(Error::Encode { op: FollowEvents::OP, reason }),
            }
        }
    }

    fn acknowledge(&mut self, number: u64) {
        let State::Following(following) = &mut self.state else { return };
        let number = number.min(following.cursor.unwrap_or(0));
        if number > following.acknowledged {
            following.acknowledged = number;
            self.transmit.extend(message::encode(&Acknowledgement { ack: number }));
        }
    }

    fn is_following(&self) -> bool {
        matches!(self.state, State::Following(_))
    }

    fn fail(&mut self, error: Error) {
        if matches!(self.state, State::Failed) {
            return;
        }
        self.state = State::Failed;
        self.queue.clear();
        self.transmit.clear();
        self.events.push_back(Event::Failed(error));
    }
}

impl Following {
    fn new(follow: FollowEvents, now: Instant) -> Following {
        // A beat below 0.1 s would make ordinary pauses look like silence.
        let beat = Duration::try_from_secs_f64(follow.beat.max(0.1)).unwrap_or(Duration::from_secs(60));
        Following {
            instance: follow.instance,
            cursor: follow.since,
            acknowledged: follow.since.unwrap_or(0),
            patience: beat.saturating_mul(SILENT_BEATS).min(Duration::from_secs(3600)),
            heard: now,
        }
    }

    fn read(&mut self, message: &Message, now: Instant) -> Result<Option<EventBatch>, Error> {
        if message.is_nil() {
            return Err(Error::UnknownOp { op: FollowEvents::OP });
        }
        if let Some(error) = ops::refusal(FollowEvents::OP, message) {
            return Err(error);
        }
        let cursor = match self.cursor {
            Some(cursor) => cursor,
            None => events::read_last(message.body())?,
        };
        let batch = events::read_batch(&message.shared_body(), &self.instance, cursor)
            .map_err(|error| error.of_limits(FollowEvents::OP))?;
        self.heard = now;
        self.cursor = Some(batch.cursor);
        let is_new = !batch.events.is_empty() || batch.unknown > 0;
        Ok(is_new.then_some(batch))
    }
}

/// What each side says first.
#[derive(Debug, Serialize, Deserialize)]
struct Introduction {
    compression: Option<String>,
    python: (u32, u32, u32),
    #[serde(rename = "pickle-protocol")]
    pickle_protocol: u32,
}

impl Introduction {
    fn ours() -> Introduction {
        // `python` is asked for by the form but read by nobody.
        Introduction { compression: None, python: (3, 12, 0), pickle_protocol: 5 }
    }
}

#[derive(Debug, Serialize)]
struct Acknowledgement {
    ack: u64,
}

/// The peer may offer compression: it is used only if both do, and we do not.
fn introduced(message: &Message) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Theirs {
        #[serde(rename = "compression")]
        _compression: Option<String>,
        #[serde(rename = "pickle-protocol")]
        pickle_protocol: u32,
    }
    let theirs: Theirs = message.decode().map_err(|e| Error::Handshake { reason: e.to_string() })?;
    if theirs.pickle_protocol < 4 {
        return Err(Error::Handshake { reason: format!("pickle protocol {} is too old", theirs.pickle_protocol) });
    }
    Ok(())
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
