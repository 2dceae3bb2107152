use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::frame::FrameDecoder;

fn message(frames: &[&[u8]]) -> Result<Message, MessageError> {
    Message::new(frames.iter().map(|f| Bytes::copy_from_slice(f)).collect(), &Limits::default())
}

fn frame_of(wire: &[u8]) -> Bytes {
    let mut buffer = bytes::BytesMut::from(wire);
    let frames = FrameDecoder::new(Limits::default()).decode(&mut buffer);
    frames.ok().flatten().and_then(|mut f| f.pop()).unwrap_or_default()
}

#[derive(Serialize)]
struct Arguments<'a> {
    a: u32,
    #[serde(with = "serde_bytes")]
    b: &'a [u8],
}

#[test]
fn a_request_is_one_map_with_its_operation_first() {
    let wire = encode_request("go", true, &Arguments { a: 300, b: b"xy" });
    let expected = b"\x84\xa2op\xa2go\xa5reply\xc3\xa1a\xcd\x01\x2c\xa1b\xc4\x02xy";
    assert_eq!(wire.as_deref().map(frame_of).as_deref(), Ok(&expected[..]));
    assert_eq!(wire.map(|w| w.len()), Ok(24 + expected.len()));
}

#[test]
fn requests_of_any_number_of_arguments_are_well_formed() {
    for count in [0usize, 1, 13, 14, 15, 16, 17, 300, 70_000] {
        let arguments: BTreeMap<String, usize> = (0..count).map(|n| (format!("key{n}"), n)).collect();
        let wire = encode_request("op", false, &arguments).unwrap_or_default();
        let frame = frame_of(&wire);
        let read: BTreeMap<String, rmpv::Value> = decode(&frame).unwrap_or_default();
        assert_eq!(read.len(), count + 2, "{count}");
        assert_eq!(read.get("reply"), Some(&rmpv::Value::Boolean(false)));
        assert_eq!(frame.len() + 24, wire.len(), "{count}");
    }
}

#[test]
fn arguments_that_are_no_map_are_refused() {
    assert!(encode_request("op", true, &(1, 2)).is_err());
    assert!(encode_request("op", true, &()).is_err());
}

#[test]
fn a_message_without_frames_or_with_an_empty_one_is_refused() {
    assert_eq!(message(&[]).err(), Some(MessageError::NoFrames));
    assert_eq!(message(&[b""]).err(), Some(MessageError::Truncated));
}

#[derive(Debug, Deserialize)]
struct Reply {
    result: Placeholder,
}

/// Sub-frames one, `kind` and `serializer` as given.
fn header(serializer: &str, kind: &str, compression: Option<&str>) -> Vec<u8> {
    let fields: BTreeMap<&str, rmpv::Value> = [
        ("serializer", serializer.into()),
        ("type", kind.into()),
        ("compression", rmpv::Value::Array(vec![compression.map_or(rmpv::Value::Nil, Into::into)])),
        ("num-sub-frames", 1.into()),
    ]
    .into();
    rmp_serde::to_vec(&fields).unwrap_or_default()
}

fn payload(head: &[u8], marker: &str, frames: &[&[u8]]) -> Result<Bytes, MessageError> {
    let body = rmp_serde::to_vec(&BTreeMap::from([("result", BTreeMap::from([(marker, 1)]))])).unwrap_or_default();
    let all = [&[&body[..], head], frames].concat();
    let message = message(&all)?;
    let reply: Reply = message.decode()?;
    message.payload(&reply.result)?.into_bytes()
}

#[test]
fn bytes_of_python_are_read_and_nothing_else_is() {
    let of =
        |serializer, kind, compression| payload(&header(serializer, kind, compression), "__Serialized__", &[b"abc"]);
    assert_eq!(of("dask", "bytes", None).as_deref(), Ok(&b"abc"[..]));
    assert_eq!(of("pickle", "bytes", None), Err(MessageError::Opaque("pickled")));
    assert_eq!(of("dask", "bytes", Some("zstd")), Err(MessageError::Opaque("compressed")));
    assert_eq!(of("dask", "numpy", None), Err(MessageError::Opaque("not bytes")));
    let pickled = payload(&header("dask", "bytes", None), "__Pickled__", &[b"abc"]);
    assert_eq!(pickled, Err(MessageError::Opaque("pickled")));
}

#[test]
fn a_placeholder_must_point_at_frames_that_are_there() {
    let missing = payload(&header("dask", "bytes", None), "__Serialized__", &[]);
    assert_eq!(missing, Err(MessageError::NoPayload));
    let huge = b"\x81\xaenum-sub-frames\xce\xff\xff\xff\xff";
    assert_eq!(payload(huge, "__Serialized__", &[b"a"]), Err(MessageError::NoPayload));
    let nobody = message(&[b"\xc0"]).map(|m| m.payload(&Placeholder::Serialized(u32::MAX)).err());
    assert_eq!(nobody, Ok(Some(MessageError::NoPayload)));
    let itself = message(&[b"\x81\xaenum-sub-frames\x00"]).map(|m| m.payload(&Placeholder::Serialized(0)).err());
    assert_eq!(itself, Ok(Some(MessageError::NoPayload)));
    let deep = [vec![0x91; 100_000], vec![0xc0]].concat();
    assert!(matches!(payload(&deep, "__Serialized__", &[b"a"]), Err(MessageError::TooDeep { .. })));
}

#[test]
fn any_value_may_stand_where_a_payload_could() {
    for value in [
        &b"\xc0"[..],
        b"\xc3",
        b"\x05",
        b"\xff",
        b"\xcb\0\0\0\0\0\0\0\0",
        b"\xa1x",
        b"\xc4\x01x",
        b"\x91\x01",
        b"\x81\x01\x02",
    ] {
        let body = [&b"\x81\xa6result"[..], value].concat();
        let plain = message(&[&body]).and_then(|m| m.decode::<Reply>()).map(|r| r.result);
        assert_eq!(plain, Ok(Placeholder::Plain), "{value:02x?}");
    }
}

fn any_value() -> impl Strategy<Value = rmpv::Value> {
    use rmpv::Value;
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("not a number is not equal to itself", |f| !f.is_nan()).prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            proptest::collection::vec((inner.clone(), inner), 0..8).prop_map(Value::Map),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_survives(value in any_value()) {
        let wire = encode(&value).unwrap_or_default();
        let message = message(&[&frame_of(&wire)]);
        let message = message.map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(message.decode::<rmpv::Value>(), Ok(value));
    }

    #[test]
    fn what_is_cut_anywhere_is_refused(value in any_value(), cut in any::<prop::sample::Index>()) {
        let frame = frame_of(&encode(&value).unwrap_or_default());
        let at = cut.index(frame.len());
        prop_assert!(message(&[&frame[..at]]).is_err());
    }

    #[test]
    fn the_check_agrees_with_a_full_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut rest = &bytes[..];
        let decoded = rmpv::decode::read_value(&mut rest).is_ok() && rest.is_empty();
        // 0xc1 is read as nil by the decoder; everything else must agree.
        if !bytes.contains(&0xc1) {
            prop_assert_eq!(message(&[&bytes]).is_ok(), decoded);
        }
    }

    #[test]
    fn no_bytes_make_typed_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = message(&[&bytes]) {
            let _ = message.decode::<crate::ops::SchedulerIdentity>();
            let _ = message.decode::<crate::ops::Opened>();
            let _ = message.decode::<Reply>();
            let _ = crate::events::read_batch(&Bytes::from(bytes), "i", 0);
        }
    }
}
