//! What a real scheduler sent, byte for byte (`golden/dask/record.py`), through every layer of the client.

use std::path::PathBuf;

use bytes::BytesMut;
use dask::frame::FrameDecoder;
use dask::message::Message;
use dask::ops::{
    FunctionResult, Hello, Identity, Operation, Processing, RunFunction, SchedulerIdentity, VersionInfo, Versions,
    read_reply,
};
use dask::{Connection, Deadlines, Error, Limits};
use tokio::io::AsyncWriteExt;

const RELEASES: [&str; 1] = ["2026.8.0"];

fn golden(release: &str, name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/dask");
    std::fs::read(folder.join(format!("{release}-{name}.bin"))).expect("a recorded message")
}

fn message(release: &str, name: &str) -> Message {
    let mut bytes = BytesMut::from(&golden(release, name)[..]);
    let frames = FrameDecoder::new(Limits::default()).decode(&mut bytes).expect("frames").expect("a whole message");
    assert!(bytes.is_empty());
    Message::new(frames, &Limits::default()).expect("a message")
}

fn reply<O: Operation>(release: &str, name: &str) -> Result<O::Reply, Error> {
    read_reply::<O::Reply>(O::OP, &message(release, name))
}

#[test]
fn identities_are_read() {
    for release in RELEASES {
        let identity: SchedulerIdentity = reply::<Identity>(release, "identity").expect("an identity");
        assert_eq!(identity.kind, "Scheduler");
        let (address, worker) = identity.workers.first_key_value().expect("a worker");
        assert!(address.starts_with("tcp://127.0.0.1:"));
        assert_eq!((worker.name.as_str(), worker.nthreads, worker.status.as_deref()), ("cpu-0-1", 1, Some("running")));
        assert_eq!(worker.memory_limit, Some(1 << 30));
        assert_eq!(worker.resources.get("GPU"), Some(&2.0));
    }
}

#[test]
fn versions_and_processing_are_read() {
    for release in RELEASES {
        let versions: VersionInfo = reply::<Versions>(release, "versions").expect("versions");
        assert_eq!(versions.packages.get("distributed").cloned().flatten().as_deref(), Some(release));
        let processing = reply::<Processing>(release, "processing").expect("tasks");
        assert_eq!(processing.into_values().map(|n| n.0).collect::<Vec<_>>(), [0]);
    }
}

#[test]
fn errors_are_told_apart() {
    for release in RELEASES {
        let unknown = reply::<Hello>(release, "unknown");
        assert!(matches!(unknown, Err(Error::UnknownOp { op: "daskade-hello" })), "{unknown:?}");
        let bad = reply::<Identity>(release, "bad-argument");
        assert!(
            matches!(bad, Err(Error::Remote { ref text, ref traceback, .. })
                if text.contains("TypeError") && text.contains("bogus") && traceback.contains("core.py")),
            "{bad:?}"
        );
        let raised = reply::<RunFunction>(release, "run-raises");
        assert!(
            matches!(raised, Err(Error::Remote { ref text, .. }) if text.contains("ZeroDivisionError")),
            "{raised:?}"
        );
    }
}

#[test]
fn results_that_are_bytes_are_read_and_pickles_are_not() {
    for release in RELEASES {
        let answer = message(release, "run-bytes");
        let result: FunctionResult = read_reply(RunFunction::OP, &answer).expect("a result");
        let bytes = answer.payload(&result.result).and_then(|p| p.into_bytes());
        assert_eq!(bytes.as_deref(), Ok(&b"abc"[..]));
        let answer = message(release, "run-pickled");
        let result: FunctionResult = read_reply(RunFunction::OP, &answer).expect("a result");
        let payload = answer.payload(&result.result).expect("a payload");
        assert_eq!(payload.into_bytes().map_err(|e| e.to_string()), Err("a payload is pickled".to_owned()));
    }
}

#[tokio::test]
async fn a_recorded_conversation_is_understood() {
    for release in RELEASES {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(&golden(release, "hello")).await.expect("written");
        let connection = Connection::start(ours, Deadlines::default(), Limits::default()).await.expect("a connection");
        let call = tokio::spawn(async move { connection.call(&Identity::default()).await });
        tokio::task::yield_now().await;
        theirs.write_all(&golden(release, "identity")).await.expect("written");
        assert_eq!(call.await.expect("no panic").expect("an identity").kind, "Scheduler");
    }
}

/// What we send is as constant as what we read: a change here needs a look at every supported release.
#[tokio::test]
async fn our_side_of_a_conversation_does_not_change() {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    theirs.write_all(&golden("2026.8.0", "hello")).await.expect("written");
    let connection = Connection::start(ours, Deadlines::default(), Limits::default()).await.expect("a connection");
    let call = tokio::spawn(async move { connection.call(&Identity::default()).await });
    let mut sent = vec![0; 66 + 24 + 20];
    tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut sent).await.expect("our messages");
    drop(theirs);
    let expected: [&[u8]; 4] = [
        b"\x3a\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\0",
        b"\x83\xabcompression\xc0\xa6python\x93\x03\x0c\x00\xafpickle-protocol\x05",
        b"\x24\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x14\0\0\0\0\0\0\0",
        b"\x82\xa2op\xa8identity\xa5reply\xc3",
    ];
    assert_eq!(sent, expected.concat());
    assert!(call.await.expect("no panic").is_err());
}
