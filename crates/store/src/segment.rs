//! Bytes of one journal segment → records. Pure, and safe on any input.

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::cursor::{Bad, Cursor, DEPTH_LIMIT};

const MAGIC: &[u8; 4] = b"DSKJ";
/// Newest format that is read. A segment has the oldest one that all of its records are known in.
const VERSION: u8 = 2;
const DIGEST: usize = 32;
const NONCE: usize = 16;
const HEADER_LIMIT: usize = limits::SEGMENT_HEADER;
const PREFIX: usize = 9;

/// What a reader accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a segment.
    pub bytes: u64,
    /// Records of a segment.
    pub records: usize,
    /// Values in all results of a segment's final records.
    pub values: usize,
}

impl Default for Limits {
    /// The writer's limits.
    fn default() -> Self {
        Self { bytes: limits::SEGMENT as u64, records: limits::SEGMENT_RECORDS, values: limits::FINAL_VALUES }
    }
}

/// Why a segment is refused. It is never overwritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    #[error("{size} bytes, the limit is {limit}")]
    TooLarge { size: u64, limit: u64 },
    #[error("truncated")]
    Truncated,
    #[error("wrong magic")]
    Magic,
    #[error("format version {0}, known are 1 to {VERSION}")]
    Version(u8),
    #[error("the digest does not match")]
    Digest,
    #[error("the header is wrong: {0}")]
    Header(String),
    #[error("it belongs to another run or place")]
    Misplaced,
    #[error("{0} records, the limit is {1}")]
    TooMany(u64, usize),
    #[error("record {index} is wrong: {why}")]
    Record { index: usize, why: String },
    #[error("bytes after the last record")]
    Trailing,
    #[error("broken chain: it does not follow the segment before it")]
    Chain,
    #[error("epoch {found} after epoch {before}")]
    Epoch { found: u64, before: u64 },
    #[error("epoch {0} begins without an opened record")]
    Unopened(u64),
    #[error("it is missing; the next object is {0:?}")]
    Gap(String),
}

/// A verified segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    pub run: String,
    pub seg: u64,
    pub epoch: u64,
    pub nonce: [u8; NONCE],
    /// Digest of the segment before it.
    pub prev: Option<[u8; DIGEST]>,
    /// Writer's clock, seconds since 1970.
    pub t: f64,
    pub records: Vec<Record>,
    /// sha256 over all its bytes: `prev` of the next one.
    pub digest: [u8; DIGEST],
}

/// One record. `item` is -1 for an unmapped step; times are seconds since 1970.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Opened(Box<Opened>),
    Length {
        step: u32,
        len: u64,
    },
    Failed(Box<Failed>),
    Lost(Lost),
    Committed(Box<Committed>),
    Skipped {
        step: u32,
        item: i64,
        reason: String,
        message: Option<String>,
    },
    Refused {
        step: u32,
        item: i64,
        reason: String,
        message: Option<String>,
    },
    /// A part of a result that is too large for the `final` record, as JSON text.
    Result {
        name: String,
        index: u64,
        count: u64,
        text: String,
    },
    /// What was committed counts no more; of a mapped step as a whole, its length. From format 2 on.
    Invalidated {
        step: u32,
        item: i64,
        reason: String,
    },
    Final(Box<Final>),
    /// A kind that a newer writer added, and that may be left out.
    Unknown(String),
}

/// A writer took the journal over, the first one with the run's spec and code.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Opened {
    pub epoch: u64,
    pub t: f64,
    pub name: Option<String>,
    pub spec: Option<Bytes>,
    pub spec_digest: Option<String>,
    pub code: Code,
    pub runtime: Option<String>,
    pub dask: Option<String>,
    pub python: Option<String>,
}

/// The run's code archive: its digest, and its bytes unless they are an object of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Code {
    pub digest: Option<String>,
    pub zip: Option<Bytes>,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Failed {
    pub step: u32,
    pub item: i64,
    pub attempt: u32,
    pub class: String,
    pub kind: String,
    pub message: String,
    pub worker: Option<String>,
    pub t0: f64,
    pub t1: f64,
}

/// An attempt whose worker went away.
#[derive(Debug, Clone, PartialEq)]
pub struct Lost {
    pub step: u32,
    pub item: i64,
    pub attempt: u32,
    pub worker: Option<String>,
    pub t: f64,
}

/// An attempt whose output is the task's output for good.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    pub step: u32,
    pub item: i64,
    pub attempt: u32,
    pub handle: Handle,
    pub worker: Option<String>,
    pub t0: f64,
    pub t1: f64,
    pub lens: Option<Vec<u64>>,
    /// JSON text of the result, if the step declares one.
    pub json: Option<Bytes>,
}

/// Where an output is and how to prove it.
#[derive(Debug, Clone, PartialEq)]
pub struct Handle {
    /// Relative to the run, or with a leading slash to the storage url.
    pub path: Option<String>,
    pub size: u64,
    pub digest: [u8; DIGEST],
    pub serializer: String,
    /// The output itself, when small.
    pub bytes: Option<Bytes>,
    pub worker: Option<String>,
    pub container: Option<Container>,
    /// Objects that the task has read, and the one that it kept its output in: path and version.
    pub named: Vec<(String, String)>,
    /// When it was made, if not by this run.
    pub made: Option<f64>,
}

/// Index of an output that is a list of separately readable elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub len: u64,
    /// `len + 1` offsets, u64 little endian.
    pub offsets: Bytes,
    /// `len` digests, if the writer kept them.
    pub digests: Option<Bytes>,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Final {
    pub state: Option<String>,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub t: Option<f64>,
    /// Everything in the record, as JSON.
    pub fields: Value,
}

impl Container {
    /// Start and length of an element, None if there is no such element or the index is damaged.
    pub fn element(&self, index: u64) -> Option<(u64, u64)> {
        let at = |i: u64| -> Option<u64> {
            let start = usize::try_from(i.checked_mul(8)?).ok()?;
            Some(u64::from_le_bytes(self.offsets.get(start..start.checked_add(8)?)?.try_into().ok()?))
        };
        if index >= self.len {
            return None;
        }
        let (start, end) = (at(index)?, at(index + 1)?);
        Some((start, end.checked_sub(start)?))
    }
}

/// Decodes segment number `seg` of `run`: verifies size, magic, version, digest, header, and every record's shape. The
/// chain from segment to segment is `Folded::follow`.
pub fn decode_segment(data: &Bytes, run: &str, seg: u64, limits: &Limits) -> Result<Segment, SegmentError> {
    let size = data.len() as u64;
    if size > limits.bytes {
        return Err(SegmentError::TooLarge { size, limit: limits.bytes });
    }
    if data.len() < 5 {
        return Err(SegmentError::Truncated);
    }
    if &data[..4] != MAGIC {
        return Err(SegmentError::Magic);
    }
    if !(1..=VERSION).contains(&data[4]) {
        return Err(SegmentError::Version(data[4]));
    }
    if data.len() < PREFIX + DIGEST {
        return Err(SegmentError::Truncated);
    }
    let body = data.slice(..data.len() - DIGEST);
    if Sha256::digest(&body)[..] != data[body.len()..] {
        return Err(SegmentError::Digest);
    }
    let length = u32::from_le_bytes([data[5], data[6], data[7], data[8]]) as usize;
    if length > HEADER_LIMIT || length > body.len() - PREFIX {
        return Err(SegmentError::Header("its length".to_owned()));
    }
    let header = decode_header(body.slice(PREFIX..PREFIX + length)).map_err(SegmentError::Header)?;
    if header.run != run || header.seg != seg {
        return Err(SegmentError::Misplaced);
    }
    if header.count > limits.records as u64 {
        return Err(SegmentError::TooMany(header.count, limits.records));
    }
    let mut cursor = Cursor::new(body.slice(PREFIX + length..));
    let mut records = Vec::new();
    let mut values = limits.values;
    for index in 0..header.count as usize {
        let record = decode_record(&mut cursor, data[4], limits, &mut values);
        records.push(record.map_err(|why| SegmentError::Record { index, why })?);
    }
    if !cursor.is_empty() {
        return Err(SegmentError::Trailing);
    }
    Ok(Segment {
        run: header.run,
        seg,
        epoch: header.epoch,
        nonce: header.nonce,
        prev: header.prev,
        t: header.t,
        records,
        digest: Sha256::digest(data).into(),
    })
}

struct Header {
    run: String,
    seg: u64,
    epoch: u64,
    nonce: [u8; NONCE],
    prev: Option<[u8; DIGEST]>,
    count: u64,
    t: f64,
}

fn decode_header(data: Bytes) -> Result<Header, String> {
    let mut cursor = Cursor::new(data);
    let (mut run, mut seg, mut epoch, mut nonce, mut prev, mut count, mut t) =
        (None, None, None, None, None, None, None);
    for _ in 0..cursor.map().map_err(text)? {
        let name = cursor.text().map_err(text)?;
        let field = |bad: Bad| format!("{name}: {bad}");
        match name.as_str() {
            "run" => run = Some(cursor.text().map_err(field)?),
            "seg" => seg = Some(cursor.number().map_err(field)?),
            "epoch" => epoch = Some(cursor.number().map_err(field)?),
            "nonce" => nonce = Some(fixed(&cursor.bytes().map_err(field)?).ok_or("nonce: wrong length")?),
            "prev" => {
                let bytes = cursor.bytes_or_nil().map_err(field)?;
                prev = Some(bytes.map(|data| fixed(&data).ok_or("prev: wrong length")).transpose()?);
            }
            "count" => count = Some(cursor.number().map_err(field)?),
            "t" => t = Some(cursor.float().map_err(field)?),
            _ => cursor.skip().map_err(field)?,
        }
    }
    if !cursor.is_empty() {
        return Err("bytes after it".to_owned());
    }
    Ok(Header {
        run: run.ok_or("run is missing")?,
        seg: seg.ok_or("seg is missing")?,
        epoch: epoch.filter(|epoch| *epoch > 0).ok_or("epoch is missing or zero")?,
        nonce: nonce.ok_or("nonce is missing")?,
        prev: prev.ok_or("prev is missing")?,
        count: count.ok_or("count is missing")?,
        t: t.ok_or("t is missing")?,
    })
}

fn decode_record(cursor: &mut Cursor, version: u8, limits: &Limits, values: &mut usize) -> Result<Record, String> {
    let fields = cursor.array().map_err(text)?;
    if fields == 0 {
        return Err("it is empty".to_owned());
    }
    let kind = cursor.text().map_err(text)?;
    let known = match kind.as_str() {
        "opened" | "final" => 1,
        "length" => 2,
        "skipped" | "refused" | "result" => 4,
        "lost" => 5,
        "failed" | "committed" => 9,
        "invalidated" if version < 2 => return Err("a record of a kind that format 1 does not have".to_owned()),
        "invalidated" => 6,
        _ => 0,
    };
    if fields - 1 < known {
        return Err(format!("a {kind} record has {} fields", fields - 1));
    }
    let record = fields_of(cursor, &kind, limits, values).map_err(|why| format!("{kind}: {why}"))?;
    // Fields at the end are a later addition.
    for _ in 0..fields - 1 - known {
        cursor.skip().map_err(text)?;
    }
    Ok(record)
}

fn fields_of(cursor: &mut Cursor, kind: &str, limits: &Limits, values: &mut usize) -> Result<Record, String> {
    let record = match kind {
        "opened" => Record::Opened(Box::new(decode_opened(cursor)?)),
        "length" => Record::Length { step: cursor.number().map_err(text)?, len: cursor.number().map_err(text)? },
        "failed" => Record::Failed(Box::new(decode_failed(cursor).map_err(text)?)),
        "lost" => Record::Lost(Lost {
            step: cursor.number().map_err(text)?,
            item: item(cursor)?,
            attempt: attempt(cursor)?,
            worker: cursor.text_or_nil().map_err(text)?,
            t: cursor.float().map_err(text)?,
        }),
        "committed" => Record::Committed(Box::new(decode_committed(cursor)?)),
        "skipped" | "refused" => {
            let step = cursor.number().map_err(text)?;
            let item = item(cursor)?;
            let reason = cursor.text().map_err(text)?;
            let message = cursor.text_or_nil().map_err(text)?;
            match kind {
                "skipped" => Record::Skipped { step, item, reason, message },
                _ => Record::Refused { step, item, reason, message },
            }
        }
        "result" => {
            let name = cursor.text().map_err(text)?;
            let (index, count) = (cursor.number().map_err(text)?, cursor.number().map_err(text)?);
            if index >= count {
                return Err(Bad::Range.to_string());
            }
            Record::Result { name, index, count, text: cursor.text().map_err(text)? }
        }
        "invalidated" => {
            let (step, item) = (cursor.number().map_err(text)?, item(cursor)?);
            let _: u32 = cursor.number().map_err(text)?;
            let reason = cursor.text().map_err(text)?;
            cursor.text_or_nil().map_err(text)?;
            cursor.float().map_err(text)?;
            Record::Invalidated { step, item, reason }
        }
        "final" => Record::Final(Box::new(decode_final(cursor, limits, values)?)),
        _ => Record::Unknown(kind.to_owned()),
    };
    Ok(record)
}

fn decode_opened(cursor: &mut Cursor) -> Result<Opened, String> {
    let mut opened = Opened::default();
    let (mut epoch, mut t) = (None, None);
    for _ in 0..cursor.map().map_err(text)? {
        let name = cursor.text().map_err(text)?;
        let field = |bad: Bad| format!("{name}: {bad}");
        match name.as_str() {
            "epoch" => epoch = Some(cursor.number().map_err(field)?),
            "t" => t = Some(cursor.float().map_err(field)?),
            "name" => opened.name = cursor.text_or_nil().map_err(field)?,
            "spec" => opened.spec = cursor.blob_or_nil().map_err(field)?,
            "spec_digest" => opened.spec_digest = cursor.text_or_nil().map_err(field)?,
            "code" => opened.code = decode_code(cursor)?,
            "runtime" => opened.runtime = cursor.text_or_nil().map_err(field)?,
            "dask" => opened.dask = cursor.text_or_nil().map_err(field)?,
            "python" => opened.python = cursor.text_or_nil().map_err(field)?,
            _ => cursor.skip().map_err(field)?,
        }
    }
    opened.epoch = epoch.ok_or("it lacks its epoch")?;
    opened.t = t.ok_or("it lacks its time")?;
    Ok(opened)
}

fn decode_code(cursor: &mut Cursor) -> Result<Code, String> {
    let mut code = Code::default();
    if cursor.nil() {
        return Ok(code);
    }
    for _ in 0..cursor.map().map_err(text)? {
        match cursor.text().map_err(text)?.as_str() {
            "digest" => code.digest = cursor.text_or_nil().map_err(text)?,
            "zip" => code.zip = cursor.bytes_or_nil().map_err(text)?,
            _ => cursor.skip().map_err(text)?,
        }
    }
    Ok(code)
}

fn decode_failed(cursor: &mut Cursor) -> Result<Failed, String> {
    Ok(Failed {
        step: cursor.number().map_err(text)?,
        item: item(cursor)?,
        attempt: attempt(cursor)?,
        class: cursor.text().map_err(text)?,
        kind: cursor.text().map_err(text)?,
        message: cursor.text().map_err(text)?,
        worker: cursor.text_or_nil().map_err(text)?,
        t0: cursor.float().map_err(text)?,
        t1: cursor.float().map_err(text)?,
    })
}

fn decode_committed(cursor: &mut Cursor) -> Result<Committed, String> {
    Ok(Committed {
        step: cursor.number().map_err(text)?,
        item: item(cursor)?,
        attempt: attempt(cursor)?,
        handle: decode_handle(cursor)?,
        worker: cursor.text_or_nil().map_err(text)?,
        t0: cursor.float().map_err(text)?,
        t1: cursor.float().map_err(text)?,
        lens: decode_lens(cursor)?,
        json: cursor.blob_or_nil().map_err(text)?,
    })
}

fn decode_lens(cursor: &mut Cursor) -> Result<Option<Vec<u64>>, String> {
    if cursor.nil() {
        return Ok(None);
    }
    let mut lens = Vec::new();
    for _ in 0..cursor.array().map_err(text)? {
        lens.push(cursor.number().map_err(text)?);
    }
    Ok(Some(lens))
}

fn decode_handle(cursor: &mut Cursor) -> Result<Handle, String> {
    let (mut path, mut size, mut digest, mut serializer, mut bytes, mut worker) = (None, None, None, None, None, None);
    let (mut len, mut offsets, mut digests) = (None, None, None);
    let (mut named, mut made) = (Vec::new(), None);
    for _ in 0..cursor.map().map_err(text)? {
        let name = cursor.text().map_err(text)?;
        let field = |bad: Bad| format!("handle field {name}: {bad}");
        match name.as_str() {
            "u" => path = cursor.text_or_nil().map_err(field)?,
            "z" => size = Some(cursor.number::<u64>().map_err(field)?),
            "d" => digest = Some(fixed(&cursor.bytes().map_err(field)?).ok_or("a handle's digest has a wrong length")?),
            "s" => serializer = Some(cursor.text().map_err(field)?),
            "b" => bytes = cursor.bytes_or_nil().map_err(field)?,
            "w" => worker = cursor.text_or_nil().map_err(field)?,
            "n" => len = cursor.int_or_nil().map_err(field)?,
            "x" => offsets = cursor.bytes_or_nil().map_err(field)?,
            "m" => digests = cursor.bytes_or_nil().map_err(field)?,
            "r" => named = decode_named(cursor).map_err(field)?,
            "t" => made = if cursor.nil() { None } else { Some(cursor.float().map_err(field)?) },
            _ => cursor.skip().map_err(field)?,
        }
    }
    let size = size.ok_or("a handle lacks its size")?;
    if path.is_none() && bytes.is_none() {
        return Err("a handle has neither a path nor bytes".to_owned());
    }
    if bytes.as_ref().is_some_and(|bytes| bytes.len() as u64 != size) {
        return Err("a handle's bytes have another size than it says".to_owned());
    }
    let container = match len {
        None => None,
        Some(len) => Some(decode_container(len, offsets, digests)?),
    };
    Ok(Handle {
        path,
        size,
        digest: digest.ok_or("a handle lacks its digest")?,
        serializer: serializer.ok_or("a handle lacks its serializer")?,
        bytes,
        worker,
        container,
        named,
        made,
    })
}

fn decode_named(cursor: &mut Cursor) -> Result<Vec<(String, String)>, Bad> {
    let mut named = Vec::new();
    if cursor.nil() {
        return Ok(named);
    }
    for _ in 0..cursor.array()? {
        if cursor.array()? != 2 {
            return Err(Bad::Type { expected: "a path and a version", found: "an array" });
        }
        named.push((cursor.text()?, cursor.text()?));
    }
    Ok(named)
}

fn decode_container(len: i64, offsets: Option<Bytes>, digests: Option<Bytes>) -> Result<Container, String> {
    let len = u64::try_from(len).map_err(|_| "a container's length is negative")?;
    let offsets = offsets.unwrap_or_default();
    let has = |data: &Bytes, count: Option<u64>, size: u64| {
        count.and_then(|n| n.checked_mul(size)) == Some(data.len() as u64)
    };
    if !has(&offsets, len.checked_add(1), 8)
        || digests.as_ref().is_some_and(|data| !has(data, Some(len), DIGEST as u64))
    {
        return Err("a container's index does not fit its length".to_owned());
    }
    Ok(Container { len, offsets, digests })
}

fn decode_final(cursor: &mut Cursor, limits: &Limits, values: &mut usize) -> Result<Final, String> {
    let fields = cursor.json(DEPTH_LIMIT, limits.values, values).map_err(text)?;
    let Value::Object(map) = &fields else {
        return Err("it is not a map".to_owned());
    };
    let string = |name: &str| map.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Final {
        state: string("state"),
        reason: string("reason"),
        message: string("message"),
        t: map.get("t").and_then(Value::as_f64),
        fields,
    })
}

fn item(cursor: &mut Cursor) -> Result<i64, String> {
    cursor.int().map_err(text).and_then(|item| if item < -1 { Err(Bad::Range.to_string()) } else { Ok(item) })
}

fn attempt(cursor: &mut Cursor) -> Result<u32, String> {
    cursor.number().map_err(text).and_then(
        |attempt| {
            if attempt == 0 { Err(Bad::Range.to_string()) } else { Ok(attempt) }
        },
    )
}

fn text(bad: impl ToString) -> String {
    bad.to_string()
}

fn fixed<const N: usize>(data: &[u8]) -> Option<[u8; N]> {
    data.try_into().ok()
}
