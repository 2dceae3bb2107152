//! Peers that break the protocol, on purpose or not: each must end as the right error, in bounded time and memory.

use std::time::{Duration, Instant};

use dask::ops::{Hello, Open, Operation, Submit, SubmitItem, TaskAddr, Versions, WatchCluster};
use dask::{Connection, Deadlines, Error, Limits, frame};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::{LONG, SHORT, category, greet, greeted, packed, peer, receive, send};

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// The category of the failure when these bytes are the answer to a call, with the peer staying connected.
async fn answer_with(bytes: Vec<u8>) -> &'static str {
    let (connection, peer) = greeted(LONG, async move |mut stream| {
        receive(&mut stream).await;
        let _ = stream.write_all(&bytes).await;
        // Until the client hangs up, which it must do by itself.
        let _ = stream.read_to_end(&mut vec![]).await;
    })
    .await;
    let found = category(connection.call(&Versions {}).await);
    peer.await.expect("the script ends");
    assert!(!connection.is_alive());
    assert_eq!(category(connection.call(&Versions {}).await), found, "a dead connection repeats why");
    found
}

/// The same when they are the peer's first message.
async fn greet_with(bytes: Vec<u8>) -> &'static str {
    let (address, peer) = peer(async move |mut stream| {
        let _ = stream.write_all(&bytes).await;
        let _ = stream.read_to_end(&mut vec![]).await;
    })
    .await;
    let found = category(Connection::connect(&address, None, LONG).await);
    peer.await.expect("the script ends");
    found
}

#[tokio::test]
async fn giant_lengths_and_counts_are_refused_as_soon_as_they_are_announced() {
    for giant in [u64::MAX, 1 << 63, 1 << 40] {
        assert_eq!(answer_with(words(&[giant])).await, "frame");
        assert_eq!(answer_with(words(&[1000, giant])).await, "frame");
        assert_eq!(answer_with(words(&[32, 2, giant, giant])).await, "frame");
        assert_eq!(greet_with(words(&[giant])).await, "frame");
    }
    // What a stranger may send before it introduced itself is far less than what a scheduler may.
    assert_eq!(greet_with(words(&[1 << 20])).await, "frame");
    // msgpack that announces four billion members.
    assert_eq!(answer_with(frame::encode(&[b"\xdd\xff\xff\xff\xff"])).await, "message");
    assert_eq!(answer_with(frame::encode(&[b"\xdf\xff\xff\xff\xff"])).await, "message");
    assert_eq!(answer_with(frame::encode(&[b"\xc6\xff\xff\xff\xff"])).await, "message");
}

#[tokio::test]
async fn a_hundred_thousand_levels_are_refused() {
    let deep = [vec![0x91; 100_000], vec![0xc0]].concat();
    assert_eq!(answer_with(frame::encode(&[&deep])).await, "message");
    let deep = [b"\x81\xa6status".repeat(100_000), vec![0xc0]].concat();
    assert_eq!(answer_with(frame::encode(&[&deep])).await, "message");
}

#[tokio::test]
async fn too_many_values_are_refused() {
    let many = 64_000u32;
    let body = [&[0xdd][..], &many.to_be_bytes(), &vec![0xc0; many as usize]].concat();
    assert_eq!(answer_with(frame::encode(&[&body])).await, "message");
}

/// What is said of the answer to a request for a cluster's state, if it has so many workers with so many resources each.
async fn state_of(workers: usize, resources: usize, name: usize) -> Result<usize, String> {
    let resources: serde_json::Map<_, _> = (0..resources).map(|n| (format!("R{n}"), json!(1.0))).collect();
    let worker = |n: usize| {
        json!({"name": format!("w{n:0>name$}"), "address": "tls://10.0.0.1:40000", "status": "running", "threads": 4,
               "resources": resources, "tasks": 2, "certificate": "0".repeat(64)})
    };
    let state = json!({"status": "OK", "version": 1, "instance": "me", "runtime": "r", "dask": "2026.8.0",
        "python": "3.12.1", "workers": (0..workers).map(worker).collect::<Vec<_>>(), "demand": [], "runs": 0, "clients": 0,
        "tasks": 0, "idle": 0.0, "certificate": null});
    let (connection, _peer) = greeted(LONG, async move |mut stream| {
        receive(&mut stream).await;
        send(&mut stream, &state).await;
        receive(&mut stream).await;
    })
    .await;
    let ask = WatchCluster { cluster: None, lead: 1, lease: None, since: 0, instance: None, wait: 0.0, fresh: false };
    let answer = connection.call(&ask).await;
    answer.map(|info| info.workers.len()).map_err(|error| {
        assert!(error.is_excess(), "{error}");
        error.to_string()
    })
}

/// The state of a cluster has a budget of its own: enough for 1000 workers with resources, in bytes and in values.
#[tokio::test]
async fn the_state_of_a_cluster_has_a_budget_of_its_own() {
    assert_eq!(state_of(1000, 8, 30).await, Ok(1000));
    let values = state_of(1000, 30, 30).await.expect_err("too many values");
    assert_eq!(values, "read daskade-cluster: there are more than 64000 values; see docs/limits.md");
    let bytes = state_of(1000, 8, 3000).await.expect_err("too many bytes");
    assert!(bytes.starts_with("read daskade-cluster: a message of 3"), "{bytes}");
    assert!(bytes.ends_with("exceeds the limit of 2097152; see docs/limits.md"), "{bytes}");
}

/// Of a snapshot all but results is unpacked, and that is counted.
#[tokio::test]
async fn what_is_unpacked_of_a_snapshot_is_counted_and_results_are_not() {
    let result: Vec<u32> = vec![1; 8000];
    for (snapshot, fits) in [
        (json!({"committed": vec![json!([0, 0, 1, null, [result]]); 20]}), true),
        (json!({"lost": vec![json!([0, 0, 1]); 300]}), false),
        (json!({"final": {"results": {"x": vec![1; 450_000]}}}), false),
    ] {
        let opened = json!({"status": "OK", "epoch": 1, "instance": "me", "cursor": 0, "snapshot": snapshot});
        let body = rmp_serde::to_vec(&opened).expect("it can be packed");
        assert_eq!(Open::weigh(&body, 1000).is_ok(), fits);
    }
}

#[tokio::test]
async fn malformed_messages_are_refused() {
    assert_eq!(answer_with(frame::encode(&[])).await, "message");
    assert_eq!(answer_with(frame::encode(&[b""])).await, "message");
    assert_eq!(answer_with(frame::encode(&[b"\xc1"])).await, "message");
    assert_eq!(answer_with(frame::encode(&[b"\xc0\xc0"])).await, "message");
    assert_eq!(answer_with(words(&[0])).await, "frame");
    assert_eq!(answer_with(words(&[8, 9])).await, "frame");
    assert_eq!(answer_with(words(&[20, 1, 7, 0])).await, "frame");
}

#[tokio::test]
async fn who_is_no_dask_server_is_refused_at_the_handshake() {
    assert_eq!(greet_with(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await, "frame");
    assert_eq!(greet_with(packed(&json!("hello"))).await, "handshake");
    assert_eq!(greet_with(packed(&json!({"compression": null}))).await, "handshake");
    assert_eq!(greet_with(packed(&json!(null))).await, "handshake");
}

#[tokio::test]
async fn compressed_answers_are_not_opened() {
    // As the first frame: it is no msgpack, and stays that. (LZ4's magic, then a bomb that nobody expands.)
    let bomb = [b"\x04\x22\x4d\x18".to_vec(), vec![0xff; 1000]].concat();
    assert_eq!(answer_with(frame::encode(&[&bomb])).await, "message");

    // As a payload, which a worker compressed and the scheduler passed on.
    let body = rmp_serde::to_vec(&json!({"status": "OK", "result": {"__Serialized__": 1}})).expect("msgpack");
    let header = json!({"serializer": "dask", "type": "bytes", "compression": ["zstd"], "num-sub-frames": 1});
    let header = rmp_serde::to_vec(&header).expect("msgpack");
    let bytes = frame::encode(&[&body, &header, &bomb]);
    let (connection, _peer) = greeted(LONG, async move |mut stream| {
        receive(&mut stream).await;
        stream.write_all(&bytes).await.expect("written");
        receive(&mut stream).await;
    })
    .await;
    let call = dask::ops::RunFunction::named("builtins", "bytes", &[]);
    let message = connection.exchange(&call, LONG.rpc).await.expect("an answer");
    let result: dask::ops::FunctionResult = message.decode().expect("a result");
    let payload = message.payload(&result.result).expect("a payload");
    assert_eq!(payload.frames().len(), 1);
    assert_eq!(payload.into_bytes().map_err(|e| e.to_string()), Err("a payload is compressed".to_owned()));
}

#[tokio::test]
async fn a_peer_that_offers_compression_gets_and_sends_none() {
    let (address, peer) = peer(async |mut stream| {
        send(&mut stream, &json!({"compression": "lz4", "python": [3, 8, 1], "pickle-protocol": 5})).await;
        let ours = receive(&mut stream).await.expect("our introduction");
        receive(&mut stream).await;
        send(&mut stream, &json!(null)).await;
        ours
    })
    .await;
    let connection = Connection::connect(&address, None, LONG).await.expect("a connection");
    assert_eq!(category(connection.call(&Hello {}).await), "unknown-op");
    assert_eq!(peer.await.expect("our introduction")["compression"], json!(null));
}

/// One byte at a time, each long before any deadline for a single byte would pass.
async fn drip(stream: &mut tokio::net::TcpStream, bytes: &[u8]) {
    for byte in bytes {
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

#[tokio::test]
async fn slow_bytes_do_not_extend_a_deadline() {
    let began = Instant::now();
    let (connection, _peer) = greeted(SHORT, async |mut stream| {
        receive(&mut stream).await;
        drip(&mut stream, &packed(&json!({"host": {}, "packages": {}, "more": "x".repeat(200)}))).await;
    })
    .await;
    assert_eq!(category(connection.call(&Versions {}).await), "timeout");

    let (address, _peer) = peer(async |mut stream| drip(&mut stream, &words(&[100, 1, 84])).await).await;
    assert_eq!(category(Connection::connect(&address, None, SHORT).await), "timeout");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stopped_process_that_still_accepts_is_given_up() {
    let (address, _peer) = peer(async |stream| (stream, std::future::pending::<()>().await)).await;
    assert_eq!(category(Connection::connect(&address, None, SHORT).await), "timeout");
}

#[tokio::test]
async fn a_peer_that_never_reads_is_given_up() {
    let (connection, _peer) = greeted(SHORT, async |stream| (stream, std::future::pending::<()>().await)).await;
    let values = bytes::Bytes::from(vec![0x90; 64 << 20]);
    let items = [SubmitItem {
        task: TaskAddr::new(0, None, 1),
        priority: 0,
        values: Some(values),
        data_deps: vec![],
        after_deps: vec![],
    }];
    assert_eq!(category(connection.call(&Submit { run: "r", epoch: 1, items: &items }).await), "timeout");
}

#[tokio::test]
async fn an_endless_answer_ends_at_the_limit() {
    let limits = Limits { message_bytes: 1 << 20, ..Limits::default() };
    let (address, peer) = peer(async |mut stream| {
        greet(&mut stream).await;
        receive(&mut stream).await;
        let mut sent = 0u64;
        // Frame after frame, each small.
        while stream.write_all(&packed(&json!("x".repeat(10_000)))).await.is_ok() {
            sent += 10_000;
        }
        sent
    })
    .await;
    let connection = Connection::connect_limited(&address, None, LONG, limits).await.expect("a connection");
    // The first is the answer (of the wrong shape); the second is one that nobody asked for.
    assert_eq!(category(connection.call(&Versions {}).await), "message");
    assert!(peer.await.expect("the script ends") < 64 << 20);
    assert_eq!(category(connection.call(&Versions {}).await), "protocol");
}

#[tokio::test]
async fn answers_that_nobody_asked_for_end_the_connection() {
    let (connection, peer) = greeted(LONG, async |mut stream| {
        stream.write_all(&[1]).await.expect("written");
        stream.read_to_end(&mut vec![]).await
    })
    .await;
    peer.await.expect("the script ends").expect("the client hangs up");
    assert_eq!(category(connection.call(&Versions {}).await), "protocol");
}

#[tokio::test]
async fn clean_ends_torn_messages_and_resets_are_told_apart() {
    let (connection, _peer) = greeted(LONG, async |mut stream| drop(receive(&mut stream).await)).await;
    assert_eq!(category(connection.call(&Versions {}).await), "closed");

    let (connection, _peer) = greeted(LONG, async |mut stream| {
        receive(&mut stream).await;
        let whole = packed(&json!({"status": "OK"}));
        stream.write_all(&whole[..whole.len() - 1]).await.expect("written");
    })
    .await;
    assert_eq!(category(connection.call(&Versions {}).await), "torn");

    let (connection, _peer) = greeted(LONG, async |stream| {
        // Data of ours is unread and no time to linger: the kernel sends a reset.
        stream.readable().await.expect("data");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
    })
    .await;
    assert_eq!(category(connection.call(&Versions {}).await), "lost");

    let (address, _peer) = peer(async |stream| drop(stream)).await;
    let found = category(Connection::connect(&address, None, LONG).await);
    assert!(matches!(found, "closed" | "lost"), "{found}");
    // And nobody at all.
    let nobody = Connection::connect(&"127.0.0.1:1".parse().expect("an address"), None, LONG).await;
    assert_eq!(category(nobody), "connect");
}

#[tokio::test]
async fn errors_of_the_peer_leave_the_connection_usable() {
    let (connection, _peer) = greeted(LONG, async |mut stream| {
        for answer in [
            json!({"status": "uncaught-error", "exception_text": "ValueError('\u{1b}[2Jx')", "traceback_text": "tb"}),
            json!({"status": "error", "reason": "StaleEpoch", "message": "m"}),
            json!(null),
            json!(["another", "shape"]),
            json!({"host": {}, "packages": {"distributed": "1"}}),
        ] {
            receive(&mut stream).await;
            send(&mut stream, &answer).await;
        }
        receive(&mut stream).await;
    })
    .await;
    let remote = connection.call(&Versions {}).await;
    assert!(matches!(remote, Err(Error::Remote { ref text, .. }) if text == "ValueError('[2Jx')"), "{remote:?}");
    assert_eq!(category(connection.call(&Versions {}).await), "refused");
    assert_eq!(category(connection.call(&Versions {}).await), "unknown-op");
    assert_eq!(category(connection.call(&Versions {}).await), "message");
    assert_eq!(category(connection.call(&Versions {}).await), "no error");
    assert!(connection.is_alive());
}

#[tokio::test]
async fn calls_of_clones_are_answered_in_order_and_a_close_ends_them() {
    let (connection, _peer) = greeted(LONG, async |mut stream| {
        for n in 0..10 {
            receive(&mut stream).await;
            send(&mut stream, &json!({"host": {}, "packages": {"n": n.to_string()}})).await;
        }
        receive(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut calls = Vec::new();
    for _ in 0..11 {
        let clone = connection.clone();
        calls.push(tokio::spawn(async move { clone.call(&Versions {}).await }));
    }
    let mut seen = Vec::new();
    let last = calls.pop().expect("eleven");
    for call in calls {
        if let Ok(versions) = call.await.expect("no panic") {
            seen.extend(versions.packages.into_values().flatten());
        }
    }
    seen.sort();
    assert_eq!(seen, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    connection.close();
    assert_eq!(category(last.await.expect("no panic")), "shutdown");
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_does_not_confuse_the_next() {
    let (gives_up, gave_up) = tokio::sync::oneshot::channel();
    let (connection, _peer) = greeted(LONG, async |mut stream| {
        let mut gave_up = Some(gave_up);
        for n in ["first", "second"] {
            receive(&mut stream).await;
            if let Some(gave_up) = gave_up.take() {
                gave_up.await.expect("it gives up");
            }
            send(&mut stream, &json!({"host": {}, "packages": {"n": n}})).await;
        }
    })
    .await;
    let answer = tokio::time::timeout(Duration::from_millis(20), connection.call(&Versions {})).await;
    assert!(answer.is_err());
    gives_up.send(()).expect("it waits");
    let second = connection.call(&Versions {}).await.expect("an answer");
    assert_eq!(second.packages.get("n").cloned().flatten().as_deref(), Some("second"));
}

#[test]
fn every_operation_has_a_deadline() {
    let deadlines = Deadlines::default();
    assert!(Versions::deadline(&deadlines) <= deadlines.rpc);
    assert!(deadlines.slow <= Duration::from_secs(600));
}
