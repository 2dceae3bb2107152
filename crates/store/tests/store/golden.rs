//! The reader against the golden journal that the runtime's writer made (`tests/golden/journal/make.py`).

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};
use store::{Committed, Folded, Handle, Limits, Opened, SegmentError, decode_segment};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/journal")
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden().join(name)).unwrap()).unwrap()
}

fn good() -> Vec<Bytes> {
    let mut paths: Vec<_> =
        std::fs::read_dir(golden().join("good")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| Bytes::from(std::fs::read(path).unwrap())).collect()
}

fn run() -> String {
    read_json("expected.json")["run"].as_str().unwrap().to_owned()
}

fn hex(data: &[u8]) -> Value {
    json!({ "hex": data.iter().map(|byte| format!("{byte:02x}")).collect::<String>() })
}

fn opt(data: &Option<Bytes>) -> Value {
    data.as_ref().map_or(Value::Null, |data| hex(data))
}

fn opened(value: &Opened) -> Value {
    json!({
        "epoch": value.epoch as f64, "t": value.t, "name": value.name, "spec": opt(&value.spec),
        "spec_digest": value.spec_digest, "code": {"digest": value.code.digest, "zip": opt(&value.code.zip)},
        "runtime": value.runtime, "dask": value.dask, "python": value.python,
    })
}

fn handle(value: &Handle) -> Value {
    let container = value.container.as_ref();
    json!({
        "u": value.path, "z": value.size as f64, "d": hex(&value.digest), "s": value.serializer, "b": opt(&value.bytes),
        "w": value.worker, "n": container.map(|c| c.len as f64),
        "x": container.map_or(Value::Null, |c| hex(&c.offsets)),
        "m": container.map_or(Value::Null, |c| opt(&c.digests)),
    })
}

fn committed(value: &Committed) -> Value {
    let lens = value.lens.as_ref().map(|lens| lens.iter().map(|n| *n as f64).collect::<Vec<_>>());
    json!([
        f64::from(value.step),
        value.item as f64,
        f64::from(value.attempt),
        handle(&value.handle),
        value.worker,
        value.t0,
        value.t1,
        lens,
        opt(&value.json),
    ])
}

/// All numbers as floats, as the golden file has them.
fn floats(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(values) => values.iter().map(floats).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), floats(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn the_golden_journal_reads_as_the_writer_meant_it() {
    let run = run();
    let mut folded = Folded::default();
    let mut segments = Vec::new();
    for (seg, data) in good().iter().enumerate() {
        let segment = decode_segment(data, &run, seg as u64, &Limits::default()).unwrap();
        segments.push(json!({
            "seg": seg as f64, "epoch": segment.epoch as f64, "nonce": hex(&segment.nonce),
            "prev": segment.prev.map_or(Value::Null, |prev| hex(&prev)), "t": segment.t,
            "digest": hex(&segment.digest), "records": segment.records.len() as f64,
        }));
        folded.follow(segment).unwrap();
    }
    let why = |map: &std::collections::BTreeMap<(u32, i64), (String, Option<String>)>| -> Value {
        map.iter().map(|((s, i), (reason, text))| json!([f64::from(*s), *i as f64, reason, text])).collect()
    };
    let found = json!({
        "run": run,
        "segments": segments,
        "opened": opened(&folded.opened),
        "committed": folded.committed.values().map(committed).collect::<Vec<_>>(),
        "order": folded.in_order().iter().map(|c| json!([f64::from(c.step), c.item as f64])).collect::<Vec<_>>(),
        "lengths": folded.lengths.iter().map(|(s, n)| json!([f64::from(*s), *n as f64])).collect::<Vec<_>>(),
        "skipped": why(&folded.skipped),
        "refused": why(&folded.refused),
        "failed": folded.failed.iter().map(|f| json!([
            f64::from(f.step), f.item as f64, f64::from(f.attempt), f.class, f.kind, f.message, f.worker, f.t0, f.t1
        ])).collect::<Vec<_>>(),
        "lost": folded.lost.iter().map(|l| json!([
            f64::from(l.step), l.item as f64, f64::from(l.attempt), l.worker, l.t
        ])).collect::<Vec<_>>(),
        "final": folded.finished.map_or(Value::Null, |f| f.fields),
    });
    assert_eq!(floats(&found), floats(&read_json("expected.json")));
}

#[test]
fn every_bad_segment_is_refused_by_its_reason() {
    let rows = read_json("bad.json");
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > 70);
    let mut wrong = Vec::new();
    for row in rows {
        let (name, words) = (row["name"].as_str().unwrap(), row["words"].as_str().unwrap());
        match decode_segment(&bytes_of(&row["hex"]), &run(), 0, &Limits::default()) {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(error) if !error.to_string().contains(words) => wrong.push(format!("{name}: {error}, not {words}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn bytes_of(value: &Value) -> Bytes {
    let unhex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    match value {
        Value::String(text) => unhex(text).into(),
        parts => {
            let part = |at: usize| unhex(parts[at].as_str().unwrap());
            [part(0), part(1).repeat(parts[2].as_u64().unwrap() as usize), part(3)].concat().into()
        }
    }
}

#[test]
fn a_size_over_the_limit_is_refused_before_anything_else() {
    let limits = Limits { bytes: 100, ..Limits::default() };
    let error = decode_segment(&good()[0], &run(), 0, &limits).unwrap_err();
    assert!(matches!(error, SegmentError::TooLarge { limit: 100, .. }), "{error}");
    let limits = Limits { records: 0, ..Limits::default() };
    assert!(matches!(decode_segment(&good()[0], &run(), 0, &limits), Err(SegmentError::TooMany(1, 0))));
}

#[test]
fn segments_out_of_order_break_the_chain() {
    let (run, data) = (run(), good());
    let decode = |seg: usize| decode_segment(&data[seg], &run, seg as u64, &Limits::default()).unwrap();
    let mut folded = Folded::default();
    assert_eq!(folded.follow(decode(1)), Err(SegmentError::Chain));
    folded.follow(decode(0)).unwrap();
    assert_eq!(folded.follow(decode(2)), Err(SegmentError::Chain));
    assert_eq!(folded.follow(decode(0)), Err(SegmentError::Chain));
    let mut other = decode(1);
    other.prev = Some([7; 32]);
    assert_eq!(folded.follow(other), Err(SegmentError::Chain));
    let mut stale = decode(1);
    stale.epoch = 0;
    assert_eq!(folded.follow(stale), Err(SegmentError::Epoch { found: 0, before: 1 }));
    let mut unopened = decode(1);
    unopened.epoch = 2;
    assert_eq!(folded.follow(unopened), Err(SegmentError::Unopened(2)));
    folded.follow(decode(1)).unwrap();
    assert_eq!(folded.next_segment(), 2);
}

#[test]
fn any_damage_to_any_byte_is_noticed() {
    let (run, data) = (run(), good());
    for at in 0..data[1].len() {
        let mut bytes = data[1].to_vec();
        bytes[at] ^= 1 << (at % 8);
        assert!(decode_segment(&bytes.into(), &run, 1, &Limits::default()).is_err(), "byte {at}");
    }
    for len in 0..data[1].len() {
        assert!(decode_segment(&data[1].slice(..len), &run, 1, &Limits::default()).is_err(), "length {len}");
    }
}

#[test]
fn damage_below_a_valid_digest_never_panics() {
    use sha2::{Digest as _, Sha256};
    let run = run();
    for (seg, data) in good().iter().enumerate() {
        for at in 9..data.len() - 32 {
            for value in [0x00, 0x81, 0x91, 0xc0, 0xc1, 0xc6, 0xcf, 0xd3, 0xdb, 0xdd, 0xdf, 0xff] {
                let mut bytes = data[..data.len() - 32].to_vec();
                bytes[at] = value;
                bytes.extend_from_slice(&Sha256::digest(&bytes));
                let _ = decode_segment(&bytes.into(), &run, seg as u64, &Limits::default());
            }
        }
    }
}
