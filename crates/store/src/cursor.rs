//! A cursor over msgpack that hands out what it is asked for and skips the rest, without recursion over hostile depth and
//! without allocating for sizes that the input does not have.

use bytes::{Buf as _, Bytes};
use serde_json::{Map, Number, Value};

/// Deepest nesting inside one field of a record.
pub(super) const DEPTH_LIMIT: usize = limits::RECORD_DEPTH;

/// Why the bytes are not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Bad {
    #[error("it ends too early")]
    End,
    #[error("{found} where {expected} was expected")]
    Type { expected: &'static str, found: &'static str },
    #[error("a text is not UTF-8")]
    Text,
    #[error("an extension type")]
    Extension,
    #[error("nested more than {0} deep")]
    Depth(usize),
    #[error("more values than {0}")]
    Count(usize),
    #[error("a number is out of range")]
    Range,
    #[error("a map has a key that is not a text")]
    Key,
}

/// One token; text and binary as slices of the input, containers as their length.
#[derive(Debug, Clone, PartialEq)]
enum Token {
    Nil,
    Bool(bool),
    Int(i64),
    Big(u64),
    Float(f64),
    Text(Bytes),
    Binary(Bytes),
    Array(usize),
    Map(usize),
}

impl Token {
    fn name(&self) -> &'static str {
        match self {
            Token::Nil => "nil",
            Token::Bool(_) => "a boolean",
            Token::Int(_) | Token::Big(_) => "an integer",
            Token::Float(_) => "a float",
            Token::Text(_) => "a text",
            Token::Binary(_) => "bytes",
            Token::Array(_) => "an array",
            Token::Map(_) => "a map",
        }
    }
}

/// Reads msgpack values one after the other.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    rest: Bytes,
}

impl Cursor {
    pub(super) fn new(data: Bytes) -> Self {
        Self { rest: data }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Passes over a nil, if the next value is one.
    pub(super) fn nil(&mut self) -> bool {
        let found = self.rest.first() == Some(&0xc0);
        if found {
            self.rest.advance(1);
        }
        found
    }

    /// Length of an array. Never more than the bytes that are left, so it may be allocated for.
    pub(super) fn array(&mut self) -> Result<usize, Bad> {
        match self.token()? {
            Token::Array(len) => Ok(len),
            other => Err(Bad::Type { expected: "an array", found: other.name() }),
        }
    }

    /// Number of entries of a map, bounded as `array`.
    pub(super) fn map(&mut self) -> Result<usize, Bad> {
        match self.token()? {
            Token::Map(len) => Ok(len),
            other => Err(Bad::Type { expected: "a map", found: other.name() }),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, Bad> {
        self.text_or_nil()?.ok_or(Bad::Type { expected: "a text", found: "nil" })
    }

    pub(super) fn text_or_nil(&mut self) -> Result<Option<String>, Bad> {
        match self.token()? {
            Token::Nil => Ok(None),
            Token::Text(data) => utf8(&data).map(Some),
            other => Err(Bad::Type { expected: "a text", found: other.name() }),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes, Bad> {
        self.bytes_or_nil()?.ok_or(Bad::Type { expected: "bytes", found: "nil" })
    }

    pub(super) fn bytes_or_nil(&mut self) -> Result<Option<Bytes>, Bad> {
        match self.token()? {
            Token::Nil => Ok(None),
            Token::Binary(data) => Ok(Some(data)),
            other => Err(Bad::Type { expected: "bytes", found: other.name() }),
        }
    }

    /// Bytes, or a text taken as bytes.
    pub(super) fn blob_or_nil(&mut self) -> Result<Option<Bytes>, Bad> {
        match self.token()? {
            Token::Nil => Ok(None),
            Token::Binary(data) | Token::Text(data) => Ok(Some(data)),
            other => Err(Bad::Type { expected: "bytes", found: other.name() }),
        }
    }

    pub(super) fn int(&mut self) -> Result<i64, Bad> {
        self.int_or_nil()?.ok_or(Bad::Type { expected: "an integer", found: "nil" })
    }

    pub(super) fn int_or_nil(&mut self) -> Result<Option<i64>, Bad> {
        match self.token()? {
            Token::Nil => Ok(None),
            Token::Int(value) => Ok(Some(value)),
            Token::Big(_) => Err(Bad::Range),
            other => Err(Bad::Type { expected: "an integer", found: other.name() }),
        }
    }

    /// An integer of a smaller type.
    pub(super) fn number<T: TryFrom<i64>>(&mut self) -> Result<T, Bad> {
        T::try_from(self.int()?).map_err(|_| Bad::Range)
    }

    pub(super) fn float(&mut self) -> Result<f64, Bad> {
        match self.token()? {
            Token::Float(value) => Ok(value),
            Token::Int(value) => Ok(value as f64),
            other => Err(Bad::Type { expected: "a number", found: other.name() }),
        }
    }

    /// Passes over one value with the checks of all others: text is UTF-8, no extension types, bounded depth.
    pub(super) fn skip(&mut self) -> Result<(), Bad> {
        // Values left on each level; a stack of fixed size instead of recursion.
        let mut left = [0u64; DEPTH_LIMIT + 1];
        left[0] = 1;
        let mut level = 0;
        loop {
            while left[level] == 0 {
                if level == 0 {
                    return Ok(());
                }
                level -= 1;
            }
            left[level] -= 1;
            let inner = match self.token()? {
                Token::Array(len) => len as u64,
                Token::Map(len) => 2 * len as u64,
                Token::Text(data) => {
                    utf8(&data)?;
                    continue;
                }
                _ => continue,
            };
            if level == DEPTH_LIMIT {
                return Err(Bad::Depth(DEPTH_LIMIT));
            }
            level += 1;
            left[level] = inner;
        }
    }

    /// One value as JSON. Binary becomes null (it has no place in JSON), numbers keep their kind, NaN and infinity become
    /// null. `budget` counts down over all values read with it.
    pub(super) fn json(&mut self, depth: usize, limit: usize, budget: &mut usize) -> Result<Value, Bad> {
        *budget = budget.checked_sub(1).ok_or(Bad::Count(limit))?;
        Ok(match self.token()? {
            Token::Nil | Token::Binary(_) => Value::Null,
            Token::Bool(value) => Value::Bool(value),
            Token::Int(value) => Value::Number(value.into()),
            Token::Big(value) => Value::Number(value.into()),
            Token::Float(value) => Number::from_f64(value).map_or(Value::Null, Value::Number),
            Token::Text(data) => Value::String(utf8(&data)?),
            Token::Array(len) => {
                let inner = depth.checked_sub(1).ok_or(Bad::Depth(DEPTH_LIMIT))?;
                let mut values = Vec::new();
                for _ in 0..len {
                    values.push(self.json(inner, limit, budget)?);
                }
                Value::Array(values)
            }
            Token::Map(len) => {
                let inner = depth.checked_sub(1).ok_or(Bad::Depth(DEPTH_LIMIT))?;
                let mut values = Map::new();
                for _ in 0..len {
                    let key = match self.token()? {
                        Token::Text(data) => utf8(&data)?,
                        _ => return Err(Bad::Key),
                    };
                    let value = self.json(inner, limit, budget)?;
                    values.insert(key, value);
                }
                Value::Object(values)
            }
        })
    }

    fn token(&mut self) -> Result<Token, Bad> {
        let first = self.unsigned(1)? as u8;
        Ok(match first {
            0x00..=0x7f => Token::Int(i64::from(first)),
            0x80..=0x8f => self.container(u64::from(first & 0x0f), true)?,
            0x90..=0x9f => self.container(u64::from(first & 0x0f), false)?,
            0xa0..=0xbf => Token::Text(self.take(u64::from(first & 0x1f))?),
            0xc0 => Token::Nil,
            0xc2 => Token::Bool(false),
            0xc3 => Token::Bool(true),
            0xc4..=0xc6 => {
                let len = self.unsigned(1 << (first - 0xc4))?;
                Token::Binary(self.take(len)?)
            }
            0xca => Token::Float(f64::from(f32::from_bits(self.unsigned(4)? as u32))),
            0xcb => Token::Float(f64::from_bits(self.unsigned(8)?)),
            0xcc..=0xcf => {
                let value = self.unsigned(1 << (first - 0xcc))?;
                i64::try_from(value).map_or(Token::Big(value), Token::Int)
            }
            0xd0 => Token::Int(i64::from(self.unsigned(1)? as u8 as i8)),
            0xd1 => Token::Int(i64::from(self.unsigned(2)? as u16 as i16)),
            0xd2 => Token::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            0xd3 => Token::Int(self.unsigned(8)? as i64),
            0xd9..=0xdb => {
                let len = self.unsigned(1 << (first - 0xd9))?;
                Token::Text(self.take(len)?)
            }
            0xdc | 0xdd => {
                let len = self.unsigned(2 << (first - 0xdc))?;
                self.container(len, false)?
            }
            0xde | 0xdf => {
                let len = self.unsigned(2 << (first - 0xde))?;
                self.container(len, true)?
            }
            0xe0..=0xff => Token::Int(i64::from(first as i8)),
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => return Err(Bad::Extension),
        })
    }

    /// A container's length, refused if the rest of the input is too short to hold so many values of one byte each.
    fn container(&self, len: u64, map: bool) -> Result<Token, Bad> {
        let least = if map { len * 2 } else { len };
        if least > self.rest.len() as u64 {
            return Err(Bad::End);
        }
        Ok(if map { Token::Map(len as usize) } else { Token::Array(len as usize) })
    }

    fn take(&mut self, len: u64) -> Result<Bytes, Bad> {
        if len > self.rest.len() as u64 {
            return Err(Bad::End);
        }
        Ok(self.rest.split_to(len as usize))
    }

    fn unsigned(&mut self, size: usize) -> Result<u64, Bad> {
        Ok(self.take(size as u64)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }
}

fn utf8(data: &Bytes) -> Result<String, Bad> {
    std::str::from_utf8(data).map(str::to_owned).map_err(|_| Bad::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(data: &[u8]) -> Cursor {
        Cursor::new(Bytes::copy_from_slice(data))
    }

    #[test]
    fn numbers_of_all_sizes_keep_their_value() {
        let cases: [(&[u8], i64); 9] = [
            (&[0x7f], 127),
            (&[0xff], -1),
            (&[0xcc, 200], 200),
            (&[0xcd, 1, 0], 256),
            (&[0xce, 0, 1, 0, 0], 65536),
            (&[0xd0, 0x80], -128),
            (&[0xd1, 0xff, 0x00], -256),
            (&[0xd2, 0xff, 0xff, 0xff, 0xfe], -2),
            (&[0xd3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfd], -3),
        ];
        for (data, value) in cases {
            assert_eq!(cursor(data).int(), Ok(value), "{data:x?}");
        }
        assert_eq!(cursor(&[0xcf, 0xff, 0, 0, 0, 0, 0, 0, 0]).int(), Err(Bad::Range));
        assert_eq!(cursor(&[0x81]).number::<u8>(), Err(Bad::End));
    }

    #[test]
    fn an_announced_size_that_is_not_there_is_refused_before_it_is_allocated() {
        for data in [&[0xc6, 0xff, 0xff, 0xff, 0xff, 1][..], &[0xdd, 0xff, 0xff, 0xff, 0xff, 1], &[0xdf, 0, 0, 0, 9, 1]]
        {
            assert_eq!(cursor(data).skip(), Err(Bad::End), "{data:x?}");
        }
    }

    #[test]
    fn depth_is_bounded_without_recursion() {
        let deep = [vec![0x91; 1_000_000], vec![0xc0]].concat();
        assert_eq!(cursor(&deep).skip(), Err(Bad::Depth(DEPTH_LIMIT)));
        assert_eq!(cursor(&[vec![0x91; DEPTH_LIMIT], vec![0xc0]].concat()).skip(), Ok(()));
        assert_eq!(cursor(&[vec![0x91; DEPTH_LIMIT + 1], vec![0xc0]].concat()).skip(), Err(Bad::Depth(DEPTH_LIMIT)));
        assert!(matches!(cursor(&deep).json(64, 1000, &mut 1_000_000), Err(Bad::Depth(_))));
    }

    #[test]
    fn json_is_bounded_in_number() {
        let wide = [vec![0xdc, 0x10, 0], vec![0xc0; 0x1000]].concat();
        assert_eq!(cursor(&wide).json(64, 100, &mut 100), Err(Bad::Count(100)));
        assert!(cursor(&wide).json(64, 5000, &mut 5000).is_ok());
    }

    #[test]
    fn extension_types_are_refused() {
        for data in [&[0xd4, 1, 2][..], &[0xc7, 1, 1, 1], &[0xc1]] {
            assert_eq!(cursor(data).skip(), Err(Bad::Extension));
        }
    }
}
