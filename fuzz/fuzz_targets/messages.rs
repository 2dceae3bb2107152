//! Any first frame is refused by the check or can be decoded as every type, without panic or overflow of the stack.
#![no_main]

use std::time::{Duration, Instant};

use bytes::Bytes;
use dask::Deadlines;
use dask::Limits;
use dask::message::Message;
use dask::ops::{
    Accepted, FollowEvents, FunctionResult, Opened, Output, ResultsPage, RuntimeInfo, SchedulerIdentity, SnapshotPage,
    VersionInfo, read_reply,
};
use dask::session::{Command, Session};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let body = Bytes::copy_from_slice(bytes);
    let Ok(message) = Message::new(vec![body.clone(), body.clone(), body], &limits) else { return };
    let _ = read_reply::<Accepted>("op", &message);
    let _ = read_reply::<RuntimeInfo>("op", &message);
    let _ = read_reply::<Opened>("op", &message);
    let _ = read_reply::<SnapshotPage>("op", &message);
    let _ = read_reply::<ResultsPage>("op", &message);
    let _ = read_reply::<Output>("op", &message);
    let _ = read_reply::<SchedulerIdentity>("op", &message);
    let _ = read_reply::<VersionInfo>("op", &message);
    let _ = message.decode::<serde_json::Value>();
    if let Ok(result) = message.decode::<FunctionResult>()
        && let Ok(payload) = message.payload(&result.result)
    {
        let _ = payload.into_bytes();
    }

    // As the introduction, and as two messages of an event stream.
    let now = Instant::now();
    let mut session = Session::new(&Deadlines::default(), now);
    session.handle_message(&message, now);
    let hello = b"\x82\xabcompression\xc0\xafpickle-protocol\x05";
    let hello = Message::new(vec![Bytes::from_static(hello)], &limits).expect("a message");
    let mut session = Session::new(&Deadlines::default(), now);
    session.handle_message(&hello, now);
    session.handle_command(Command::Follow(FollowEvents::new("r", 1, 0, "i")), now).expect("it is idle");
    for _ in 0..2 {
        session.handle_message(&message, now);
        session.handle_timeout(now + Duration::from_secs(1));
        while session.poll_event().is_some() || session.poll_transmit().is_some() {}
    }
});
