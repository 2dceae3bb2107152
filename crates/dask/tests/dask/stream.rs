//! The event stream over a real socket: acknowledgements, replay, backpressure, silence and every way it ends.

use std::time::{Duration, Instant};

use dask::events::RuntimeEvent;
use dask::ops::{FollowEvents, Versions};
use dask::{Connection, Error};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::peer::{LONG, category, greeted, packed, receive, send};

fn stopped(n: u64) -> Value {
    json!({"k": "stopped", "n": n, "s": 0, "i": n, "a": 1})
}

fn batch(from: u64, to: u64) -> Value {
    json!({"instance": "me", "events": (from..=to).map(stopped).collect::<Vec<_>>(), "seq": to})
}

fn follow() -> FollowEvents {
    FollowEvents::new("run", 7, 0, "me")
}

async fn asked(stream: &mut TcpStream) -> Value {
    receive(stream).await.expect("a request")
}

#[tokio::test]
async fn events_are_acknowledged_when_the_next_are_asked_for() {
    let (connection, peer) = greeted(LONG, async |mut stream| {
        let request = asked(&mut stream).await;
        send(&mut stream, &batch(1, 0)).await;
        send(&mut stream, &batch(1, 3)).await;
        let first = asked(&mut stream).await;
        send(&mut stream, &batch(4, 4)).await;
        let second = asked(&mut stream).await;
        (request, first, second)
    })
    .await;
    let mut events = connection.follow_here(&follow()).await.expect("a stream");
    let first = events.next().await.expect("events");
    assert_eq!((first.events.len(), first.cursor), (3, 3));
    assert_eq!(events.next().await.expect("an event").cursor, 4);
    assert_eq!(category(events.next().await), "closed");
    assert_eq!(category(events.next().await), "closed");
    assert_eq!(events.cursor(), 4);
    let (request, first, second) = peer.await.expect("the script ends");
    assert_eq!(
        request,
        json!({"op": "daskade-events", "reply": false, "run": "run", "epoch": 7, "since": 0, "instance": "me",
               "window": 4000, "beat": 5.0, "logs": false})
    );
    assert_eq!((first, second), (json!({"ack": 3}), json!({"ack": 4})));
}

#[tokio::test]
async fn waiting_may_be_given_up_without_losing_events() {
    let (connection, _peer) = greeted(LONG, async |mut stream| {
        asked(&mut stream).await;
        for n in 1..=20 {
            send(&mut stream, &batch(n, n)).await;
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        asked(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut events = connection.follow_here(&follow()).await.expect("a stream");
    let mut seen = Vec::new();
    while seen.len() < 20 {
        if let Ok(batch) = timeout(Duration::from_millis(3), events.next()).await {
            for event in batch.expect("events").events {
                if let RuntimeEvent::Stopped { task } = event {
                    seen.extend(task.item);
                }
            }
        }
    }
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_new_connection_goes_on_where_the_last_one_ended() {
    let (connection, _peer) = greeted(LONG, async |mut stream| {
        asked(&mut stream).await;
        send(&mut stream, &batch(1, 5)).await;
        let whole = packed(&batch(6, 9));
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &whole[..whole.len() / 2]).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
        while receive(&mut stream).await.is_some() {}
    })
    .await;
    let mut events = connection.follow_here(&follow()).await.expect("a stream");
    events.next().await.expect("events");
    assert_eq!(category(events.next().await), "torn");

    let (connection, peer) = greeted(LONG, async |mut stream| {
        let since = asked(&mut stream).await["since"].clone();
        // It sends more than was asked for: what was seen is skipped.
        send(&mut stream, &batch(4, 9)).await;
        asked(&mut stream).await;
        since
    })
    .await;
    let again = FollowEvents { since: Some(events.cursor()), ..follow() };
    let mut events = connection.follow_here(&again).await.expect("a stream");
    let read = events.next().await.expect("events");
    assert_eq!((read.events.len(), read.repeated, read.cursor), (4, 2, 9));
    assert_eq!(category(events.next().await), "closed");
    assert_eq!(peer.await.expect("the script ends"), json!(5));
}

#[tokio::test]
async fn one_who_looks_on_begins_with_what_comes_next() {
    let (connection, peer) = greeted(LONG, async |mut stream| {
        let since = asked(&mut stream).await["since"].clone();
        let mut hello = batch(1, 0);
        hello["seq"] = json!(41);
        send(&mut stream, &hello).await;
        send(&mut stream, &batch(42, 43)).await;
        asked(&mut stream).await;
        since
    })
    .await;
    let look = FollowEvents { since: None, ..follow() };
    let mut events = connection.follow_here(&look).await.expect("a stream");
    let read = events.next().await.expect("events");
    assert_eq!((read.events.len(), read.repeated, read.cursor), (2, 0, 43));
    assert_eq!(category(events.next().await), "closed");
    assert_eq!(peer.await.expect("the script ends"), json!(null));
}

#[tokio::test]
async fn three_silent_beats_end_the_stream() {
    let began = Instant::now();
    let (connection, _peer) = greeted(LONG, async |mut stream| {
        asked(&mut stream).await;
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            send(&mut stream, &batch(1, 0)).await;
        }
        // A message that never becomes whole is no sign of life.
        let whole = packed(&batch(1, 1));
        for byte in &whole[..whole.len() - 1] {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &[*byte]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let mut events = connection.follow_here(&FollowEvents { beat: 0.1, ..follow() }).await.expect("a stream");
    assert_eq!(category(events.next().await), "silent");
    // Beats kept it alive beyond the first 300 ms.
    assert!(began.elapsed() > Duration::from_millis(700) && began.elapsed() < Duration::from_secs(10));
}

/// Events that fill no buffer between us and the peer: about 12 MB.
const MUCH: u64 = 500_000;

#[tokio::test]
async fn a_reader_that_is_busy_holds_up_the_peer_and_not_our_memory() {
    let (connection, peer) = greeted(LONG, async |mut stream| {
        asked(&mut stream).await;
        socket2::SockRef::from(&stream).set_send_buffer_size(256 * 1024).expect("a small buffer");
        let mut sent = 0u64;
        // As fast as it can, whatever is acknowledged, until the socket takes no more for a while.
        while sent < MUCH {
            let message = packed(&batch(sent + 1, sent + 2000));
            let write = tokio::io::AsyncWriteExt::write_all(&mut stream, &message);
            match timeout(Duration::from_secs(1), write).await {
                Ok(Ok(())) => sent += 2000,
                _ => break,
            }
        }
        (sent, stream)
    })
    .await;
    let mut events = connection.follow_here(&FollowEvents { beat: 0.1, ..follow() }).await.expect("a stream");
    let (sent, _stream) = peer.await.expect("the script ends");
    // Socket buffers and a few batches.
    assert!(sent < MUCH, "the peer was never held up");
    // More than three beats passed meanwhile, but the silence was ours.
    let mut read = 0;
    while let Ok(batch) = timeout(Duration::from_millis(250), events.next()).await {
        read += batch.expect("events").events.len() as u64;
    }
    assert!(read > 0 && read <= sent, "{read} of {sent}");
    assert!(read + 4000 > sent, "{read} of {sent}");
}

#[tokio::test]
async fn what_ends_a_stream_is_told() {
    for (answer, expected) in [
        (json!({"status": "error", "reason": "Gap", "message": "m"}), "refused"),
        (json!({"status": "uncaught-error", "exception_text": "TypeError()"}), "remote"),
        (json!(null), "unknown-op"),
        (json!({"instance": "another", "events": []}), "instance-changed"),
        (batch(2, 2), "protocol"),
        (json!({"instance": "me", "events": [{"k": "started", "n": 1}]}), "message"),
    ] {
        let (connection, _peer) = greeted(LONG, async move |mut stream| {
            asked(&mut stream).await;
            send(&mut stream, &answer).await;
            receive(&mut stream).await;
        })
        .await;
        let mut events = connection.follow_here(&follow()).await.expect("a stream");
        assert_eq!(category(events.next().await), expected);
    }
}

#[tokio::test]
async fn events_before_the_end_are_delivered() {
    let (connection, _peer) = greeted(LONG, async |mut stream| {
        asked(&mut stream).await;
        let last = json!({"instance": "me", "events": [stopped(1), {"k": "closing"}], "seq": 1});
        let bytes = [packed(&last), packed(&json!({"instance": "other", "events": []}))].concat();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await;
        receive(&mut stream).await;
    })
    .await;
    let mut events = connection.follow_here(&follow()).await.expect("a stream");
    let last = events.next().await.expect("events").events;
    assert!(matches!(last[..], [RuntimeEvent::Stopped { .. }, RuntimeEvent::Closing { .. }]), "{last:?}");
    assert_eq!(category(events.next().await), "instance-changed");
}

#[tokio::test]
async fn dropping_the_events_closes_the_connection() {
    let (connection, peer) = greeted(LONG, async |mut stream| {
        asked(&mut stream).await;
        receive(&mut stream).await
    })
    .await;
    let other = connection.clone();
    let events = connection.follow_here(&follow()).await.expect("a stream");
    assert!(matches!(other.call(&Versions {}).await, Err(Error::Protocol { .. })), "a stream takes no calls");
    drop(other);
    drop(events);
    assert_eq!(timeout(LONG.rpc, peer).await.expect("in time").expect("the script ends"), None);
}

#[tokio::test]
async fn a_stream_has_a_connection_of_its_own() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("{}", listener.local_addr().expect("an address")).parse().expect("an address");
    let server = tokio::spawn(async move {
        for stream_op in [false, true] {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                crate::peer::greet(&mut stream).await;
                while let Some(request) = receive(&mut stream).await {
                    assert_eq!(request["op"] == "daskade-events", stream_op);
                    let answer = if stream_op { batch(1, 2) } else { json!({"host": {}, "packages": {}}) };
                    send(&mut stream, &answer).await;
                    if stream_op {
                        assert_eq!(receive(&mut stream).await, Some(json!({"ack": 2})));
                    }
                }
            });
        }
    });
    let connection = Connection::connect(&address, None, LONG).await.expect("a connection");
    let mut events = connection.follow(&follow()).await.expect("a stream");
    connection.call(&Versions {}).await.expect("an answer");
    assert_eq!(events.next().await.expect("events").cursor, 2);
    connection.call(&Versions {}).await.expect("an answer");
    drop(connection);
    // The stream does not need the connection that it was made from.
    assert!(timeout(Duration::from_millis(100), events.next()).await.is_err());
    server.await.expect("two connections");
}

#[tokio::test]
async fn a_pause_of_this_process_is_no_silence_of_the_peer() {
    let (connection, _peer) = greeted(LONG, async |mut stream| {
        asked(&mut stream).await;
        for n in 1..=6 {
            send(&mut stream, &batch(n, n)).await;
            // Blocks the whole runtime for more than three beats, with the batch on its way.
            std::thread::sleep(Duration::from_millis(350));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let mut events = connection.follow_here(&FollowEvents { beat: 0.1, ..follow() }).await.expect("a stream");
    while events.cursor() < 6 {
        events.next().await.expect("events");
    }
}

#[tokio::test]
async fn silence_counts_anew_when_a_busy_reader_comes_back() {
    let (comes_back, is_back) = tokio::sync::oneshot::channel();
    let (connection, _peer) = greeted(LONG, async |mut stream| {
        asked(&mut stream).await;
        // More batches than are held for the reader: the socket is not read any more.
        for n in 1..=5 {
            send(&mut stream, &batch(n, n)).await;
        }
        is_back.await.expect("it comes back");
        tokio::time::sleep(Duration::from_millis(300)).await;
        send(&mut stream, &batch(6, 6)).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut events = connection.follow_here(&FollowEvents { beat: 0.3, ..follow() }).await.expect("a stream");
    // Longer than three beats.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    comes_back.send(()).expect("it waits");
    while events.cursor() < 6 {
        events.next().await.expect("events");
    }
    assert_eq!(category(events.next().await), "silent");
}
