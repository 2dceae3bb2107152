//! Reading msgpack without building anything: checks of untrusted bytes, and finding a value inside a map.

use super::error::MessageError;
use super::frame::Limits;

/// What one msgpack marker says. Lengths of `Bin` and `Ext` have been stepped over already.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Head<'a> {
    Nil,
    Bool,
    Uint(u64),
    Negative,
    Float,
    Str(&'a [u8]),
    Bin,
    Ext,
    Array(u32),
    Map(u32),
}

/// Checks that `bytes` are exactly one msgpack value that keeps `limits`, in memory bounded by the depth.
///
/// What passes can be decoded recursively without overflowing the stack, and its counts are backed by bytes.
pub(super) fn check(bytes: &[u8], limits: &Limits) -> Result<(), MessageError> {
    let mut reader = Reader::new(bytes);
    let mut elements = 1usize;
    // Members still to come at each open level.
    let mut open: Vec<u64> = Vec::new();
    'value: loop {
        let members = reader.head()?.members();
        if members > reader.left() as u64 {
            return Err(MessageError::Truncated);
        }
        elements = elements.saturating_add(members as usize);
        if elements > limits.elements {
            return Err(MessageError::TooManyElements { limit: limits.elements });
        }
        if members > 0 {
            if open.len() >= limits.depth {
                return Err(MessageError::TooDeep { limit: limits.depth });
            }
            open.push(members);
            continue;
        }
        // A value ended, and with it perhaps containers.
        while let Some(left) = open.last_mut() {
            *left -= 1;
            if *left > 0 {
                continue 'value;
            }
            open.pop();
        }
        break;
    }
    match reader.left() {
        0 => Ok(()),
        bytes => Err(MessageError::Trailing { bytes }),
    }
}

/// A cursor over msgpack bytes.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Bytes that were not read yet.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Where the cursor stands.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Steps over one marker, and over the bytes of a string, binary or extension.
    pub(super) fn head(&mut self) -> Result<Head<'a>, MessageError> {
        let marker = self.take(1)?[0];
        Ok(match marker {
            0x00..=0x7f => Head::Uint(u64::from(marker)),
            0x80..=0x8f => Head::Map(u32::from(marker & 0x0f)),
            0x90..=0x9f => Head::Array(u32::from(marker & 0x0f)),
            0xa0..=0xbf => Head::Str(self.take(usize::from(marker & 0x1f))?),
            0xc0 => Head::Nil,
            0xc1 => return Err(MessageError::Malformed),
            0xc2 | 0xc3 => Head::Bool,
            0xc4..=0xc6 => {
                let length = self.number(1 << (marker - 0xc4))? as usize;
                self.take(length)?;
                Head::Bin
            }
            0xc7..=0xc9 => {
                let length = self.number(1 << (marker - 0xc7))? as usize;
                self.take(length.saturating_add(1))?;
                Head::Ext
            }
            0xca => self.take(4).map(|_| Head::Float)?,
            0xcb => self.take(8).map(|_| Head::Float)?,
            0xcc..=0xcf => Head::Uint(self.number(1 << (marker - 0xcc))?),
            0xd0..=0xd3 => {
                let width = 1usize << (marker - 0xd0);
                let value = self.number(width)?;
                let negative = value >> (8 * width - 1) == 1;
                if negative { Head::Negative } else { Head::Uint(value) }
            }
            0xd4..=0xd8 => self.take((1 << (marker - 0xd4)) + 1).map(|_| Head::Ext)?,
            0xd9..=0xdb => {
                let length = self.number(1 << (marker - 0xd9))? as usize;
                Head::Str(self.take(length)?)
            }
            0xdc | 0xdd => Head::Array(self.number(2 << (marker - 0xdc))? as u32),
            0xde | 0xdf => Head::Map(self.number(2 << (marker - 0xde))? as u32),
            0xe0..=0xff => Head::Negative,
        })
    }

    /// Steps over one whole value. Meant for checked bytes: there it ends and cannot overflow.
    pub(super) fn skip(&mut self) -> Result<(), MessageError> {
        let mut pending = 1u64;
        while pending > 0 {
            pending = (pending - 1).saturating_add(self.head()?.members());
        }
        Ok(())
    }

    /// Steps over one whole value and returns its bytes.
    pub(super) fn value(&mut self) -> Result<&'a [u8], MessageError> {
        let from = self.at;
        self.skip()?;
        Ok(&self.bytes[from..self.at])
    }

    /// Steps over one whole value and counts the values in it, itself included.
    pub(super) fn count(&mut self) -> Result<usize, MessageError> {
        let (mut pending, mut count) = (1u64, 0usize);
        while pending > 0 {
            pending = (pending - 1).saturating_add(self.head()?.members());
            count += 1;
        }
        Ok(count)
    }

    fn number(&mut self, width: usize) -> Result<u64, MessageError> {
        Ok(self.take(width)?.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], MessageError> {
        let end = self.at.checked_add(length).ok_or(MessageError::Truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(MessageError::Truncated)?;
        self.at = end;
        Ok(taken)
    }
}

impl Head<'_> {
    /// Values that follow as members of this one.
    fn members(self) -> u64 {
        match self {
            Head::Array(n) => u64::from(n),
            Head::Map(n) => 2 * u64::from(n),
            _ => 0,
        }
    }
}

/// The raw value of text key `key` in the map that `bytes` hold; `None` if they are no map or it has no such key.
pub(super) fn find<'a>(bytes: &'a [u8], key: &str) -> Result<Option<&'a [u8]>, MessageError> {
    let mut reader = Reader::new(bytes);
    let Head::Map(members) = reader.head()? else { return Ok(None) };
    for _ in 0..members {
        let raw = reader.value()?;
        let value = reader.value()?;
        if text(raw) == Some(key.as_bytes()) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The rest of a map, and the raw value that was taken out of it.
pub(super) type Parted<'a> = (Vec<u8>, &'a [u8]);

/// The map that `bytes` hold without text key `key`, and the raw value of that; `None` if it has no such key.
pub(super) fn part<'a>(bytes: &'a [u8], key: &str) -> Result<Option<Parted<'a>>, MessageError> {
    let mut reader = Reader::new(bytes);
    let Head::Map(members) = reader.head()? else { return Ok(None) };
    let first = reader.position();
    for _ in 0..members {
        let from = reader.position();
        let raw = reader.value()?;
        let value = reader.value()?;
        if text(raw) == Some(key.as_bytes()) {
            let mut rest = vec![0xdf];
            rest.extend_from_slice(&(members - 1).to_be_bytes());
            rest.extend_from_slice(&bytes[first..from]);
            rest.extend_from_slice(&bytes[reader.position()..]);
            return Ok(Some((rest, value)));
        }
    }
    Ok(None)
}

/// The bytes of a text value.
pub(super) fn text(value: &[u8]) -> Option<&[u8]> {
    match Reader::new(value).head() {
        Ok(Head::Str(text)) => Some(text),
        _ => None,
    }
}

/// A value that is an integer of at least zero.
pub(super) fn unsigned(value: &[u8]) -> Option<u64> {
    match Reader::new(value).head() {
        Ok(Head::Uint(number)) => Some(number),
        _ => None,
    }
}

#[cfg(test)]
#[path = "msgpack_tests.rs"]
mod tests;
