//! Results of steps: JSON data that stays packed until it is looked at. Unpacked, a number of one byte takes seventy.

use std::fmt;

use bytes::Bytes;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::message::{self, MessageError};

/// The small result of a step: plain JSON data, sent as msgpack.
#[derive(Clone)]
pub struct Json(Bytes);

impl Json {
    /// A value of a checked message, as it stands there; nothing is read. It keeps the whole message in memory.
    pub(crate) fn unread(value: Bytes) -> Json {
        Json(value)
    }

    /// The same on its own, without the message that it came with. Refuses what is no JSON, and what no step can have.
    pub fn kept(&self) -> Result<Json, MessageError> {
        if self.0.len() > limits::RESULT {
            let (bytes, limit) = (self.0.len(), limits::RESULT);
            return Err(MessageError::Shape(format!("a result has {bytes} bytes; at most {limit} are allowed")));
        }
        message::decode(&self.0)
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// What it says.
    pub fn value(&self) -> serde_json::Value {
        // What was kept can be read.
        rmp_serde::from_slice(&self.0).unwrap_or_default()
    }
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Json {
        // JSON can always be packed.
        Json(rmp_serde::to_vec(&value).unwrap_or_else(|_| vec![0xc0]).into())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Json) -> bool {
        self.0 == other.0 || self.value() == other.value()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.value(), f)
    }
}

impl<'de> Deserialize<'de> for Json {
    /// From msgpack to msgpack, or from any other form of JSON, without a tree of values in between.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        let mut out = Vec::new();
        Packer(&mut out).deserialize(deserializer)?;
        out.shrink_to_fit();
        Ok(Json(out.into()))
    }
}

/// Writes what is read.
struct Packer<'a>(&'a mut Vec<u8>);

impl Packer<'_> {
    fn scalar<T: serde::Serialize + ?Sized, E: de::Error>(self, value: &T) -> Result<(), E> {
        rmp_serde::encode::write(self.0, value).map_err(de::Error::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Packer<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Packer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("plain JSON data")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.scalar(&())
    }

    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.scalar(&())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(&value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(&value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(&value)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.scalar(&value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.scalar(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        // The length stands first, and not every form tells it beforehand.
        let (mut members, mut count) = (Vec::new(), 0);
        while seq.next_element_seed(Packer(&mut members))?.is_some() {
            count += 1;
        }
        rmp::encode::write_array_len(self.0, count).map_err(de::Error::custom)?;
        self.0.append(&mut members);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut members, mut count) = (Vec::new(), 0);
        while let Some(key) = map.next_key::<String>()? {
            rmp_serde::encode::write(&mut members, &key).map_err(de::Error::custom)?;
            map.next_value_seed(Packer(&mut members))?;
            count += 1;
        }
        rmp::encode::write_map_len(self.0, count).map_err(de::Error::custom)?;
        self.0.append(&mut members);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_result_stays_what_it_was() {
        let long: Vec<u32> = (0..70_000).collect();
        for value in [
            json!(null),
            json!(true),
            json!(-1),
            json!(u64::MAX),
            json!(1.5),
            json!("x"),
            json!([]),
            json!([1, [2, [3]], {"a": {"b": null, "": [1.25]}}]),
            json!(long),
        ] {
            assert_eq!(Json::from(value.clone()).value(), value);
            let packed = rmp_serde::to_vec(&value).unwrap_or_default();
            assert_eq!(message::decode::<Json>(&packed).map(|json| json.value()), Ok(value.clone()));
            let text = serde_json::to_string(&value).unwrap_or_default();
            assert_eq!(serde_json::from_str::<Json>(&text).map(|json| json.value()).ok(), Some(value));
        }
    }

    #[test]
    fn what_is_no_json_or_larger_than_a_result_is_not_kept() {
        let unread = |bytes: &[u8]| Json::unread(Bytes::copy_from_slice(bytes)).kept();
        for other in [&b"\xc4\x01x"[..], b"\xd4\x01x", b"\x81\x01\x02", b"\x91\xc4\x01x"] {
            assert!(unread(other).is_err(), "{other:?}");
        }
        assert_eq!(unread(b"\x92\x01\xa1x").map(|json| json.value()), Ok(json!([1, "x"])));
        let large = Json::from(Value::from(vec![0; limits::RESULT]));
        assert!(matches!(large.kept(), Err(MessageError::Shape(why)) if why.contains("65536 are allowed")));
    }
}
