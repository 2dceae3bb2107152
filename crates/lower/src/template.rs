//! The encoding of arguments: msgpack in which references to outputs stand as extension values.

use std::ops::Range;

use rmp::encode;
use serde_json::Value;

use super::expr::Gather;
use api::step::Serializer;
use engine::StepIx;
use wire::PathPart;

/// Extension type of references.
const REFERENCE: i8 = 1;

/// A reference within a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The output of one task (item -1: of an unmapped step), or a place in it.
    Output {
        /// Which step.
        step: StepIx,
        /// Which item.
        item: i64,
        /// The place in it.
        path: Vec<PathPart>,
    },
    /// The outputs of all items of a mapped step.
    All {
        /// Which step.
        step: StepIx,
        /// How they are put together.
        gather: Gather,
    },
    /// A value that differs from task to task.
    Slot(u32),
    /// An element of a list that is stored as a container.
    Element {
        /// Which step.
        step: StepIx,
        /// Which item.
        item: i64,
        /// Which element.
        index: u32,
    },
    /// One of the objects that the step reads, by its number.
    Object(u32),
}

/// A part of a template.
pub(super) enum Piece<'a> {
    Values(&'a [u8]),
    Reference(&'a Reference),
}

/// Writes a template, outermost value first: an array or map is followed by its entries.
#[derive(Debug, Clone, Default)]
pub struct Template {
    bytes: Vec<u8>,
    /// The references among the bytes, in order: where each begins and ends.
    references: Vec<(Range<usize>, Reference)>,
}

impl Template {
    /// The bytes written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The values and references in order, as a digest is taken of them.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut at = 0;
        let parts = self.references.iter().flat_map(move |(range, reference)| {
            let before = &self.bytes[at..range.start];
            at = range.end;
            [Piece::Values(before), Piece::Reference(reference)]
        });
        let end = self.references.last().map_or(0, |(range, _)| range.end);
        parts.chain(std::iter::once(Piece::Values(&self.bytes[end..])))
    }

    /// Begins an array of `len` entries.
    pub fn array(&mut self, len: usize) {
        written(encode::write_array_len(&mut self.bytes, bounded(len)));
    }

    /// Begins a map of `len` entries; each is a key and a value.
    pub fn map(&mut self, len: usize) {
        written(encode::write_map_len(&mut self.bytes, bounded(len)));
    }

    /// Writes a text.
    pub fn text(&mut self, text: &str) {
        written(encode::write_str(&mut self.bytes, text));
    }

    /// Writes plain data; integers stay exact.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Null => written(encode::write_nil(&mut self.bytes)),
            Value::Bool(value) => written(encode::write_bool(&mut self.bytes, *value)),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => written(encode::write_uint(&mut self.bytes, value)),
                (None, Some(value)) => written(encode::write_sint(&mut self.bytes, value)),
                (None, None) => {
                    written(encode::write_f64(&mut self.bytes, number.as_f64().unwrap_or(f64::NAN)));
                }
            },
            Value::String(text) => self.text(text),
            Value::Array(list) => {
                self.array(list.len());
                list.iter().for_each(|entry| self.value(entry));
            }
            Value::Object(map) => {
                self.map(map.len());
                for (key, entry) in map {
                    self.text(key);
                    self.value(entry);
                }
            }
        }
    }

    /// Writes where an object is, and its form.
    pub fn object(&mut self, path: &str, serializer: Serializer) {
        self.array(2);
        self.text(path);
        self.text(serializer.as_str());
    }

    /// Writes a reference.
    pub fn reference(&mut self, reference: &Reference) {
        let start = self.bytes.len();
        let mut inner = Self::default();
        match reference {
            Reference::Output { step, item, path } => {
                inner.array(4);
                inner.ints(&[0, i64::from(step.0), *item]);
                inner.array(path.len());
                for key in path {
                    match key {
                        PathPart::Key(name) => inner.text(name),
                        PathPart::Index(index) => inner.ints(&[i64::from(*index)]),
                    }
                }
            }
            Reference::All { step, gather } => {
                let mode = match gather {
                    Gather::Whole => 0,
                    Gather::Compact => 1,
                    Gather::Flatten => 2,
                };
                inner.array(3);
                inner.ints(&[1, i64::from(step.0), mode]);
            }
            Reference::Object(input) => {
                inner.array(2);
                inner.ints(&[4, i64::from(*input)]);
            }
            Reference::Slot(slot) => {
                inner.array(2);
                inner.ints(&[2, i64::from(*slot)]);
            }
            Reference::Element { step, item, index } => {
                inner.array(4);
                inner.ints(&[3, i64::from(step.0), *item, i64::from(*index)]);
            }
        }
        written(encode::write_ext_meta(&mut self.bytes, bounded(inner.bytes.len()), REFERENCE));
        self.bytes.append(&mut inner.bytes);
        self.references.push((start..self.bytes.len(), reference.clone()));
    }

    fn ints(&mut self, values: &[i64]) {
        for value in values {
            written(encode::write_sint(&mut self.bytes, *value));
        }
    }
}

/// Writing to memory does not fail.
fn written<T, E>(result: Result<T, E>) {
    debug_assert!(result.is_ok(), "writing to memory failed");
}

/// Lengths of what is held in memory and bounded far below 4 GiB.
fn bounded(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes(write: impl FnOnce(&mut Template)) -> Vec<u8> {
        let mut template = Template::default();
        write(&mut template);
        template.into_bytes()
    }

    #[test]
    fn references_are_extensions_of_type_one() {
        let whole = Reference::Output { step: StepIx(3), item: -1, path: vec![] };
        assert_eq!(bytes(|t| t.reference(&whole)), [0xc7, 5, 1, 0x94, 0, 3, 0xff, 0x90]);
        let place =
            Reference::Output { step: StepIx(3), item: 2, path: vec![PathPart::Key("k".into()), PathPart::Index(1)] };
        assert_eq!(bytes(|t| t.reference(&place)), [0xd7, 1, 0x94, 0, 3, 2, 0x92, 0xa1, b'k', 1]);
        let all = Reference::All { step: StepIx(7), gather: Gather::Flatten };
        assert_eq!(bytes(|t| t.reference(&all)), [0xd6, 1, 0x93, 1, 7, 2]);
        assert_eq!(bytes(|t| t.reference(&Reference::Slot(1))), [0xc7, 3, 1, 0x92, 2, 1]);
        assert_eq!(bytes(|t| t.reference(&Reference::Object(3))), [0xc7, 3, 1, 0x92, 4, 3]);
        let element = Reference::Element { step: StepIx(1), item: -1, index: 5 };
        assert_eq!(bytes(|t| t.reference(&element)), [0xc7, 5, 1, 0x94, 3, 1, 0xff, 5]);
    }

    #[test]
    fn numbers_stay_exact() {
        assert_eq!(bytes(|t| t.value(&json!(u64::MAX)))[0], 0xcf);
        assert_eq!(bytes(|t| t.value(&json!(i64::MIN)))[0], 0xd3);
        assert_eq!(bytes(|t| t.value(&json!(-1))), [0xff]);
        assert_eq!(bytes(|t| t.value(&json!(1.0)))[0], 0xcb);
        assert_eq!(
            bytes(|t| t.value(&json!([null, true, {"a": "b"}]))),
            [0x93, 0xc0, 0xc3, 0x81, 0xa1, b'a', 0xa1, b'b']
        );
    }
}
