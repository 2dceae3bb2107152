//! Frames ↔ messages: msgpack in the first frame, opaque payloads in the others.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{self, DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

pub use super::error::MessageError;
use super::error::clean_text;
use super::frame::{Limits, SINGLE_PRELUDE, single_prelude};
use super::msgpack::{self, Head, Reader};
use super::room::Held;

/// Longest description of a wrong shape.
const SHAPE_CAP: usize = 500;

/// One received message whose first frame has been checked against [`Limits`].
#[derive(Debug, Clone)]
pub struct Message {
    frames: Vec<Bytes>,
    /// Of a large one; taken until its last copy is dropped.
    _room: Option<Arc<Held>>,
}

impl Message {
    /// Checks the first frame, and that it is msgpack. The other frames stay as they are.
    pub fn new(frames: Vec<Bytes>, limits: &Limits) -> Result<Message, MessageError> {
        let first = frames.first().ok_or(MessageError::NoFrames)?;
        msgpack::check(first, limits)?;
        Ok(Message { frames, _room: None })
    }

    /// The same, with the room that it takes.
    pub(super) fn in_room(self, room: Option<Held>) -> Message {
        Message { _room: room.map(Arc::new), ..self }
    }

    /// The msgpack bytes.
    pub fn body(&self) -> &[u8] {
        self.frames.first().map_or(&[], |f| f)
    }

    /// The same, to be shared.
    pub(super) fn shared_body(&self) -> Bytes {
        self.frames.first().cloned().unwrap_or_default()
    }

    /// Whether the message is nil, the answer to an unknown operation.
    pub fn is_nil(&self) -> bool {
        matches!(Reader::new(self.body()).head(), Ok(Head::Nil))
    }

    /// Decodes the message. Unknown fields are ignored, according to the type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, MessageError> {
        decode(self.body())
    }

    /// The text under a key of the top-level map.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        let value = msgpack::find(self.body(), key).ok()??;
        msgpack::text(value).map(|text| String::from_utf8_lossy(text).into_owned())
    }

    /// The payload that a placeholder of this message stands for.
    pub fn payload(&self, placeholder: &Placeholder) -> Result<Payload, MessageError> {
        let at = match placeholder {
            Placeholder::Serialized(at) | Placeholder::Pickled(at) => *at as usize,
            Placeholder::Plain => return Err(MessageError::NoPayload),
        };
        let header = self.frames.get(at).filter(|_| at > 0).ok_or(MessageError::NoPayload)?;
        // Headers are small and flat; limits of their own keep a hostile one from costing anything.
        msgpack::check(header, &Limits { depth: 16, elements: 64 * 1024, ..Limits::default() })?;
        let header: PayloadHeader = decode(header)?;
        let rest = self.frames.get(at + 1..).unwrap_or_default();
        let frames = rest.get(..header.sub_frames as usize).ok_or(MessageError::NoPayload)?.to_vec();
        Ok(Payload { pickled: matches!(placeholder, Placeholder::Pickled(_)), header, frames })
    }
}

/// Where a value of a message is kept in further frames, in a form that we pass on but never open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placeholder {
    /// `{"__Serialized__": k}`: header in frame k, then its frames.
    Serialized(u32),
    /// `{"__Pickled__": k}`: the peer wants us to unpickle it; we do not.
    Pickled(u32),
    /// Not a placeholder: a value within the message.
    Plain,
}

/// A payload in other frames.
#[derive(Debug, Clone)]
pub struct Payload {
    pickled: bool,
    header: PayloadHeader,
    frames: Vec<Bytes>,
}

impl Payload {
    /// The frames as they came, perhaps compressed.
    pub fn frames(&self) -> &[Bytes] {
        &self.frames
    }

    /// The bytes of a Python `bytes` object that was sent uncompressed; anything else is refused, since reading it
    /// would take unpickling or decompressing what a peer sends.
    pub fn into_bytes(self) -> Result<Bytes, MessageError> {
        if self.pickled || self.header.serializer.as_deref() == Some("pickle") {
            return Err(MessageError::Opaque("pickled"));
        }
        if self.header.compression.iter().any(Option::is_some) {
            return Err(MessageError::Opaque("compressed"));
        }
        if self.header.serializer.as_deref() != Some("dask") || self.header.kind.as_deref() != Some("bytes") {
            return Err(MessageError::Opaque("not bytes"));
        }
        match <[Bytes; 1]>::try_from(self.frames) {
            Ok([only]) => Ok(only),
            // Large ones are cut into shards.
            Err(shards) => Ok(shards.concat().into()),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
struct PayloadHeader {
    #[serde(rename = "num-sub-frames")]
    sub_frames: u32,
    #[serde(default)]
    serializer: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    compression: Vec<Option<String>>,
}

impl<'de> Deserialize<'de> for Placeholder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Placeholder, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Placeholder;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a payload or any value")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Placeholder, A::Error> {
                let mut found = Placeholder::Plain;
                while let Some(key) = map.next_key::<rmpv::Value>()? {
                    match key.as_str() {
                        Some("__Serialized__") => found = Placeholder::Serialized(map.next_value()?),
                        Some("__Pickled__") => found = Placeholder::Pickled(map.next_value()?),
                        _ => drop(map.next_value::<de::IgnoredAny>()?),
                    }
                }
                Ok(found)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Placeholder, A::Error> {
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(Placeholder::Plain)
            }
            fn visit_unit<E>(self) -> Result<Placeholder, E> {
                Ok(Placeholder::Plain)
            }
            fn visit_none<E>(self) -> Result<Placeholder, E> {
                Ok(Placeholder::Plain)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Placeholder, E> {
                Ok(Placeholder::Plain)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Placeholder, E> {
                Ok(Placeholder::Plain)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Placeholder, E> {
                Ok(Placeholder::Plain)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Placeholder, E> {
                Ok(Placeholder::Plain)
            }
            fn visit_str<E>(self, _: &str) -> Result<Placeholder, E> {
                Ok(Placeholder::Plain)
            }
            fn visit_bytes<E>(self, _: &[u8]) -> Result<Placeholder, E> {
                Ok(Placeholder::Plain)
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// Decodes checked msgpack.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, MessageError> {
    // The text quotes what the peer sent.
    rmp_serde::from_slice(body).map_err(|e| MessageError::Shape(clean_text(&e.to_string(), SHAPE_CAP)))
}

/// Writes a message of one frame: any value, structs as maps.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, String> {
    let mut out = vec![0; SINGLE_PRELUDE];
    write(&mut out, value)?;
    let prelude = single_prelude(out.len() - SINGLE_PRELUDE);
    out[..SINGLE_PRELUDE].copy_from_slice(&prelude);
    Ok(out.into())
}

/// Writes the request `{"op": op, "reply": reply, **arguments}`; `arguments` must serialise as a map.
///
/// The arguments are written once and never copied: the beginning of the map is put before them afterwards.
pub fn encode_request<T: Serialize + ?Sized>(op: &str, reply: bool, arguments: &T) -> Result<Bytes, String> {
    let mut head = Vec::with_capacity(64);
    let failed = |e: rmp_serde::encode::Error| e.to_string();
    rmp_serde::encode::write(&mut head, "op").map_err(failed)?;
    rmp_serde::encode::write(&mut head, op).map_err(failed)?;
    rmp_serde::encode::write(&mut head, "reply").map_err(failed)?;
    rmp_serde::encode::write(&mut head, &reply).map_err(failed)?;

    let gap = SINGLE_PRELUDE + 5 + head.len();
    let mut out = vec![0; gap];
    write(&mut out, arguments)?;
    let mut reader = Reader::new(&out[gap..]);
    let Ok(Head::Map(members)) = reader.head() else { return Err("arguments are not a map".to_owned()) };
    let fields = gap + reader.position();

    let members = members.checked_add(2).ok_or("too many arguments")?;
    let mut front = Vec::with_capacity(gap);
    front.extend_from_slice(&[0; SINGLE_PRELUDE]);
    match members {
        0..=15 => front.push(0x80 | members as u8),
        _ => {
            front.push(0xdf);
            front.extend_from_slice(&members.to_be_bytes());
        }
    }
    front.extend_from_slice(&head);
    let start = fields - front.len();
    let prelude = single_prelude(out.len() - start - SINGLE_PRELUDE);
    front[..SINGLE_PRELUDE].copy_from_slice(&prelude);
    out[start..fields].copy_from_slice(&front);
    Ok(Bytes::from(out).slice(start..))
}

fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> Result<(), String> {
    value.serialize(&mut rmp_serde::Serializer::new(out).with_struct_map()).map_err(|e| e.to_string())
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
