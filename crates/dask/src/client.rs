//! A connection: one task owns the socket, handles of it send commands.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};

use super::address::Address;
use super::deadlines::Deadlines;
use super::error::Error;
use super::events::EventBatch;
use super::frame::{FrameDecoder, Limits};
use super::message::{self, Message};
use super::ops::{FollowEvents, Operation, RunFunction, read_installation, read_reply};
use super::room::{Held, Room};
use super::session::{Awaited, CallId, Command, Event, Session};
use super::transport::{self, Tls};

/// Requests that may wait for the actor before callers are held up.
const QUEUE: usize = 64;
/// How long saying goodbye may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// Batches of events that may wait for their reader before the socket is no longer read.
const BATCHES: usize = 2;

/// A connection to a Dask server. Clones share it; it closes when the last one is dropped.
///
/// Calls go one at a time, in order: use several connections for concurrency. After a call failed by
/// timeout or by anything but the peer's answer ([`Error::Remote`], [`Error::Refused`], [`Error::UnknownOp`], a reply of
/// the wrong shape), the connection is dead and every further call returns the same error.
#[derive(Debug, Clone)]
pub struct Connection {
    commands: mpsc::Sender<Request>,
    failure: watch::Receiver<Option<Error>>,
    deadlines: Deadlines,
    limits: Limits,
    peer: Option<(Address, Option<Tls>)>,
    closing: Arc<Notify>,
}

impl Connection {
    /// Connects, and shakes hands.
    pub async fn connect(address: &Address, tls: Option<&Tls>, deadlines: Deadlines) -> Result<Connection, Error> {
        Connection::connect_limited(address, tls, deadlines, Limits::default()).await
    }

    /// The same with other limits for what the peer may send.
    pub async fn connect_limited(
        address: &Address,
        tls: Option<&Tls>,
        deadlines: Deadlines,
        limits: Limits,
    ) -> Result<Connection, Error> {
        let stream = transport::connect(address, tls, &deadlines).await?;
        let mut connection = Connection::begin(stream, deadlines, limits, Room::of(&address.to_string())).await?;
        connection.peer = Some((address.clone(), tls.cloned()));
        Ok(connection)
    }

    /// Shakes hands on a stream that is connected already. Needs a tokio runtime with time.
    pub async fn start<S>(stream: S, deadlines: Deadlines, limits: Limits) -> Result<Connection, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Connection::begin(stream, deadlines, limits, Room::own()).await
    }

    async fn begin<S>(stream: S, deadlines: Deadlines, limits: Limits, room: Room) -> Result<Connection, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (ready, is_ready) = oneshot::channel();
        let (failure, failed) = watch::channel(None);
        let closing = Arc::new(Notify::new());
        let actor = Actor {
            inbox,
            limits,
            room,
            held: None,
            session: Session::new(&deadlines, Instant::now()),
            calls: HashMap::new(),
            last_call: 0,
            ready: Some(ready),
            follower: None,
            failure,
            closing: Arc::clone(&closing),
        };
        tokio::spawn(actor.run(stream));
        is_ready.await.unwrap_or(Err(Error::Shutdown))?;
        Ok(Connection { commands, failure: failed, deadlines, limits, peer: None, closing })
    }

    /// Calls an operation, within its usual deadline.
    pub async fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply, Error> {
        self.call_within(operation, O::deadline(&self.deadlines)).await
    }

    /// Calls an operation within `within`, counted from now.
    pub async fn call_within<O: Operation>(&self, operation: &O, within: Duration) -> Result<O::Reply, Error> {
        let answer = self.exchange(operation, within).await?;
        let most = self.limits.and(&operation.limits()).unpacked;
        O::weigh(answer.body(), most).map_err(|error| Error::from(error).of_limits(O::OP))?;
        read_reply(O::OP, &answer)
    }

    /// Calls an operation and returns its answer undecoded, if it is no error. For answers with payloads.
    pub async fn exchange<O: Operation>(&self, operation: &O, within: Duration) -> Result<Message, Error> {
        let request =
            message::encode_request(O::OP, true, operation).map_err(|reason| Error::Encode { op: O::OP, reason })?;
        let (reply, answer) = oneshot::channel();
        let call = Call { op: O::OP, limits: self.limits.and(&operation.limits()), reply };
        self.send(Request::Call { request, within, call }).await?;
        answer.await.unwrap_or_else(|_| Err(self.failure()))
    }

    /// Follows a run's events on a connection of their own, to the same peer; this one stays free for calls.
    pub async fn follow(&self, follow: &FollowEvents) -> Result<Events, Error> {
        let Some((address, tls)) = &self.peer else {
            return Err(Error::protocol("a stream that was handed over cannot be connected a second time"));
        };
        let own = Connection::connect_limited(address, tls.as_ref(), self.deadlines, self.limits).await?;
        own.follow_here(follow).await
    }

    /// Turns this connection into the stream of a run's events. Other clones of it can make no more calls.
    pub async fn follow_here(self, follow: &FollowEvents) -> Result<Events, Error> {
        let (batches, inbox) = mpsc::channel(BATCHES);
        let (acknowledge, acknowledged) = watch::channel(follow.since.unwrap_or(0));
        let follower = Follower { batches, acknowledged, waiting: VecDeque::new() };
        self.send(Request::Follow { follow: follow.clone(), follower }).await?;
        Ok(Events { inbox, acknowledge, cursor: follow.since.unwrap_or(0), ended: None, connection: self })
    }

    /// Puts our runtime into a scheduler that was started without it, and waits until it answers.
    ///
    /// `archive` is a zip of the package, `digest` its SHA-256 in hexadecimal. Doing it twice changes nothing; if another
    /// version is there already, it stays, and this is refused.
    pub async fn install_runtime(&self, archive: &[u8], digest: &str) -> Result<(), Error> {
        let install = RunFunction::install(archive, digest);
        read_installation(&self.exchange(&install, self.deadlines.slow).await?)
    }

    /// Closes the connection, also for its clones: calls without an answer fail with [`Error::Shutdown`].
    pub fn close(&self) {
        // A full queue is no obstacle: the actor ends when it sees this, whatever else waits.
        self.closing.notify_one();
    }

    /// Whether the connection still works, as far as is known.
    pub fn is_alive(&self) -> bool {
        !self.commands.is_closed()
    }

    async fn send(&self, request: Request) -> Result<(), Error> {
        self.commands.send(request).await.map_err(|_| self.failure())
    }

    fn failure(&self) -> Error {
        self.failure.borrow().clone().unwrap_or(Error::Shutdown)
    }
}

/// The events of a run.
///
/// Dropping it closes the connection. Whatever ends it, go on with a new connection from [`Events::cursor`]; events that
/// come twice are skipped.
#[derive(Debug)]
pub struct Events {
    inbox: mpsc::Receiver<EventBatch>,
    acknowledge: watch::Sender<u64>,
    cursor: u64,
    ended: Option<Error>,
    connection: Connection,
}

impl Events {
    /// The next events, at least one (or one of an unknown kind).
    ///
    /// Asking for them acknowledges all that were returned before, so the runtime may forget those. Ends with the
    /// reason why the stream ended, and repeats it when asked again. May be dropped while waiting without losing
    /// anything.
    pub async fn next(&mut self) -> Result<EventBatch, Error> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let cursor = self.cursor;
        self.acknowledge.send_if_modified(|acknowledged| std::mem::replace(acknowledged, cursor) != cursor);
        match self.inbox.recv().await {
            Some(batch) => {
                self.cursor = batch.cursor;
                Ok(batch)
            }
            None => {
                let error = self.connection.failure();
                self.ended = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Number of the last event that was returned.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }
}

#[derive(Debug)]
enum Request {
    Call { request: Bytes, within: Duration, call: Call },
    Follow { follow: FollowEvents, follower: Follower },
}

/// A call without an answer yet.
#[derive(Debug)]
struct Call {
    op: &'static str,
    /// Of the answer.
    limits: Limits,
    reply: oneshot::Sender<Result<Message, Error>>,
}

/// A large message waits until there is room for it.
type Turn = Pin<Box<dyn Future<Output = Held> + Send>>;

#[derive(Debug)]
struct Follower {
    batches: mpsc::Sender<EventBatch>,
    acknowledged: watch::Receiver<u64>,
    waiting: VecDeque<EventBatch>,
}

/// Owns everything but the socket; the only task that touches the session.
struct Actor {
    inbox: mpsc::Receiver<Request>,
    /// Of all that the peer sends; each kind of message has narrower ones.
    limits: Limits,
    /// Of the peer, for large messages.
    room: Room,
    /// For the message that is being read.
    held: Option<Held>,
    session: Session,
    calls: HashMap<CallId, Call>,
    last_call: u64,
    ready: Option<oneshot::Sender<Result<(), Error>>>,
    follower: Option<Follower>,
    failure: watch::Sender<Option<Error>>,
    closing: Arc<Notify>,
}

impl Actor {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(mut self, stream: S) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let error = self.serve(&mut reader, &mut writer).await;
        tracing::trace!(category = error.category(), "dask connection ended");
        // Before any channel closes: that is where the handles look then.
        self.failure.send_replace(Some(error.clone()));
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(Err(error.clone()));
        }
        for (_, call) in self.calls.drain() {
            let _ = call.reply.send(Err(error.clone()));
        }
        if let Some(Follower { batches, waiting, .. }) = &mut self.follower {
            while let Some(batch) = waiting.pop_front() {
                // What finds no room comes again on the next connection.
                let _ = batches.try_send(batch);
            }
        }
        drop(self);
        let _ = timeout(FAREWELL, writer.shutdown()).await;
    }

    /// Runs the connection until it ends, and says why.
    async fn serve<R, W>(&mut self, reader: &mut R, writer: &mut W) -> Error
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut inbound = BytesMut::with_capacity(16 * 1024);
        let mut outbound = Outbound::default();
        let mut turn: Option<Turn> = None;
        loop {
            if let Some(error) = self.dispatch() {
                return error;
            }
            while let Some(bytes) = self.session.poll_transmit() {
                outbound.queue.push_back(bytes);
            }
            let (batches, acknowledged, blocked) = match &mut self.follower {
                Some(f) => (Some(&f.batches), Some(&mut f.acknowledged), !f.waiting.is_empty()),
                None => (None, None, false),
            };
            // While its reader is busy, a peer that cannot be heard is not silent.
            let wake = self.session.poll_timeout().filter(|_| !blocked);
            // In this order: after a pause of this process, what has arrived counts before what has expired. A peer
            // cannot keep the timer from its turn for long: unfinished messages end at their limit.
            tokio::select! {
                biased;
                () = self.closing.notified() => return Error::Shutdown,
                request = self.inbox.recv() => match request {
                    Some(request) => self.request(request),
                    None => return Error::Shutdown,
                },
                written = outbound.push(writer), if !outbound.is_empty() => {
                    if let Err(e) = written {
                        self.session.handle_end(transport::io_error(e));
                    }
                }
                listens = room(batches), if blocked => {
                    if !listens {
                        return Error::Shutdown;
                    }
                    self.deliver();
                }
                number = next_acknowledgement(acknowledged) => {
                    let _ = self.session.handle_command(Command::Acknowledge(number), Instant::now());
                }
                held = its_turn(turn.as_mut()), if turn.is_some() => {
                    self.held = Some(held);
                    turn = self.receive(&mut inbound);
                }
                read = reader.read_buf(&mut inbound), if !blocked && turn.is_none() => match read {
                    Ok(0) => self.session.handle_end(ended(&inbound)),
                    Ok(_) => turn = self.receive(&mut inbound),
                    // Python closes TLS connections without a farewell.
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => self.session.handle_end(ended(&inbound)),
                    Err(e) => self.session.handle_end(transport::io_error(e)),
                },
                () = until(wake) => self.session.handle_timeout(Instant::now()),
            }
        }
    }

    fn request(&mut self, request: Request) {
        let now = Instant::now();
        match request {
            Request::Call { request, within, call } => {
                self.last_call += 1;
                let id = CallId(self.last_call);
                match self.session.handle_command(Command::Call { id, request, within }, now) {
                    Ok(()) => drop(self.calls.insert(id, call)),
                    Err(error) => drop(call.reply.send(Err(error))),
                }
            }
            Request::Follow { follow, follower } => {
                // A second follower is refused and dropped: its reader sees the connection as closed on this side.
                if self.session.handle_command(Command::Follow(follow), now).is_ok() {
                    self.follower = Some(follower);
                }
            }
        }
    }

    /// Which message may come now, if it is one that has a name, and what it may have.
    fn awaited(&self) -> (Option<&'static str>, Limits) {
        let (what, limits) = match self.session.awaits() {
            Awaited::Reply(id) => match self.calls.get(&id) {
                Some(call) => (Some(call.op), call.limits),
                None => (None, Limits::of(limits::ANSWER)),
            },
            Awaited::Events => (Some(FollowEvents::OP), Limits::of(limits::EVENTS)),
            // Sent before anything is known about the peer.
            Awaited::Introduction | Awaited::Nothing => (None, Limits::of(limits::INTRODUCTION)),
        };
        (what, self.limits.and(&limits))
    }

    /// Takes all whole messages out of what has arrived, up to one for which there has to be room first.
    fn receive(&mut self, inbound: &mut BytesMut) -> Option<Turn> {
        let mut turn = None;
        while !inbound.is_empty() {
            let (what, limits) = self.awaited();
            let failed = |error: Error| match what {
                Some(what) => error.of_limits(what),
                None => error,
            };
            let decoder = FrameDecoder::new(limits);
            let message = match decoder.announced(inbound) {
                Ok(Some(bytes)) if bytes > limits::FREE_BYTES && self.held.is_none() => {
                    turn = Some(Box::pin(self.room.clone().hold(bytes)) as Turn);
                    break;
                }
                Ok(_) => decoder.decode(inbound),
                Err(error) => Err(error),
            };
            let message = match message {
                Ok(Some(frames)) => Message::new(frames, &limits).map_err(Error::from),
                Ok(None) => break,
                Err(error) => Err(error.into()),
            };
            match message {
                Ok(message) => {
                    let message = message.in_room(self.held.take());
                    self.session.handle_message(&message, Instant::now());
                }
                Err(error) => {
                    self.session.handle_end(failed(error));
                    return None;
                }
            }
        }
        if inbound.is_empty() {
            inbound.reserve(4096);
        } else {
            self.session.handle_partial();
        }
        turn
    }

    /// Passes on what happened; the error with which the session ended, if it did.
    fn dispatch(&mut self) -> Option<Error> {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Ready => {
                    if let Some(ready) = self.ready.take() {
                        let _ = ready.send(Ok(()));
                    }
                }
                Event::Reply(id, message) => {
                    if let Some(call) = self.calls.remove(&id) {
                        // The caller may have stopped waiting.
                        let _ = call.reply.send(Ok(message));
                    }
                }
                Event::Batch(batch) => {
                    if let Some(follower) = &mut self.follower {
                        follower.waiting.push_back(batch);
                    }
                    self.deliver();
                }
                Event::Failed(error) => return Some(error),
            }
        }
        None
    }

    /// Hands over as many batches as the reader has room for.
    fn deliver(&mut self) {
        let Some(Follower { batches, waiting, .. }) = &mut self.follower else { return };
        while let Some(batch) = waiting.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(batch) | mpsc::error::TrySendError::Closed(batch)) =
                batches.try_send(batch)
            {
                waiting.push_front(batch);
                return;
            }
        }
        self.session.handle_resumed(Instant::now());
    }
}

/// Bytes on their way out.
#[derive(Debug, Default)]
struct Outbound {
    queue: VecDeque<Bytes>,
    unflushed: bool,
}

impl Outbound {
    fn is_empty(&self) -> bool {
        self.queue.is_empty() && !self.unflushed
    }

    /// Writes a part of what is queued, or flushes if nothing is. Loses nothing if dropped.
    async fn push<W: AsyncWrite + Unpin>(&mut self, writer: &mut W) -> std::io::Result<()> {
        let Some(bytes) = self.queue.front_mut() else {
            writer.flush().await?;
            self.unflushed = false;
            return Ok(());
        };
        if writer.write_buf(bytes).await? == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        if !bytes.has_remaining() {
            self.queue.pop_front();
        }
        Ok(())
    }
}

fn ended(inbound: &BytesMut) -> Error {
    if inbound.is_empty() { Error::Closed } else { Error::Torn { received: inbound.len() } }
}

/// Waits until the reader has room; false if there is no reader any more.
async fn room(batches: Option<&mpsc::Sender<EventBatch>>) -> bool {
    match batches {
        Some(batches) => batches.reserve().await.is_ok(),
        None => pending().await,
    }
}

async fn its_turn(turn: Option<&mut Turn>) -> Held {
    match turn {
        Some(turn) => turn.await,
        None => pending().await,
    }
}

async fn next_acknowledgement(acknowledged: Option<&mut watch::Receiver<u64>>) -> u64 {
    if let Some(acknowledged) = acknowledged
        && acknowledged.changed().await.is_ok()
    {
        return *acknowledged.borrow_and_update();
    }
    // Nobody acknowledges, or nobody will any more: the closing of the command channel tells.
    pending().await
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => sleep_until(at.into()).await,
        None => pending().await,
    }
}
