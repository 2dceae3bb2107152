//! Bytes ↔ frames.
//!
//! ```text
//! message := u64 L | block (L bytes) | frame*          frames that did not fit into the block
//! block   := u64 N | N × u64 length | frame*           whole frames only
//! ```
//! All integers are little-endian. We write everything into the block, which every release understands, and read both
//! forms. Nothing on the wire bounds any of these numbers, so [`Limits`] does.

use bytes::{Bytes, BytesMut};

use limits::Budget;

/// Bytes of a message that holds one frame, before that frame.
pub(super) const SINGLE_PRELUDE: usize = 24;

/// The most memory that is reserved ahead of what has arrived.
const READ_AHEAD: usize = 256 * 1024;

/// What a peer may make us hold. Each is checked before anything is allocated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message, prelude included.
    pub message_bytes: usize,
    /// Frames of one message.
    pub frames: usize,
    /// Nesting of arrays and maps.
    pub depth: usize,
    /// Values in one message, counting every member of every array and map.
    pub elements: usize,
    /// Of these, values that are read one by one: all but those within results of steps, which stay packed.
    pub unpacked: usize,
}

impl Default for Limits {
    /// What a command takes of the one scheduler that it speaks to. Each kind of message has a narrower budget of its own.
    fn default() -> Limits {
        Limits::with_results(limits::SNAPSHOT)
    }
}

impl Limits {
    /// What the operator takes of each of many schedulers.
    pub fn operator() -> Limits {
        Limits::with_results(limits::SNAPSHOT_OF_OPERATOR)
    }

    /// Of a message without results of steps.
    pub fn of(budget: Budget) -> Limits {
        let Budget { bytes, values } = budget;
        Limits {
            message_bytes: bytes,
            frames: limits::FRAMES,
            depth: limits::DEPTH,
            elements: values,
            unpacked: values,
        }
    }

    /// Of a message that may hold results of steps.
    pub fn with_results(budget: Budget) -> Limits {
        Limits { elements: limits::VALUES_WITH_RESULTS, ..Limits::of(budget) }
    }

    /// What both allow.
    #[must_use]
    pub fn and(&self, other: &Limits) -> Limits {
        Limits {
            message_bytes: self.message_bytes.min(other.message_bytes),
            frames: self.frames.min(other.frames),
            depth: self.depth.min(other.depth),
            elements: self.elements.min(other.elements),
            unpacked: self.unpacked.min(other.unpacked),
        }
    }
}

/// Bytes that are not frames, or too many.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A message would be larger than allowed.
    #[error("a message of {announced} bytes exceeds the limit of {limit}")]
    TooLong {
        /// What the peer announced (saturated).
        announced: u64,
        /// What is allowed.
        limit: usize,
    },
    /// A message would have more frames than allowed.
    #[error("a message of {announced} frames exceeds the limit of {limit}")]
    TooManyFrames {
        /// What the peer announced.
        announced: u64,
        /// What is allowed.
        limit: usize,
    },
    /// The first block is too short for its own table of lengths.
    #[error("a block of {block} bytes cannot hold the lengths of {frames} frames")]
    ShortBlock {
        /// Length of the block.
        block: u64,
        /// Frames announced.
        frames: u64,
    },
    /// The frames do not end where the first block ends.
    #[error("a frame straddles the end of the first block, or the block is longer than its frames")]
    Straddling,
}

/// Cuts a byte stream into messages. Holds no bytes itself: the caller's buffer does.
#[derive(Debug, Clone)]
pub struct FrameDecoder {
    limits: Limits,
}

impl FrameDecoder {
    /// A decoder that refuses what exceeds `limits`.
    pub fn new(limits: Limits) -> FrameDecoder {
        FrameDecoder { limits }
    }

    /// Takes the first whole message out of `buffer`; `None` if more bytes are needed, for which room is then reserved
    /// (never more than what has arrived, plus 256 KiB). After an error the stream cannot be read any further.
    pub fn decode(&self, buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, FrameError> {
        let Some(layout) = self.layout(buffer)? else {
            buffer.reserve(4096);
            return Ok(None);
        };
        if buffer.len() < layout.total {
            buffer.reserve((layout.total - buffer.len()).min(READ_AHEAD));
            return Ok(None);
        }
        let mut message = buffer.split_to(layout.total).freeze();
        let lengths = message.split_to(layout.prelude).slice(16..);
        let frames = (0..lengths.len() / 8)
            // Lengths were checked by `layout`: their sum is what is left of the message.
            .map(|at| message.split_to(u64_at(&lengths, at * 8).unwrap_or_default() as usize))
            .collect();
        Ok(Some(frames))
    }

    /// Size of the first buffered message, once its length has arrived. The reader may have to make room for it.
    pub fn announced(&self, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        Ok(self.layout(bytes)?.map(|layout| layout.total))
    }

    /// Checks as much of the prelude as is there. `None`: not all of it is.
    fn layout(&self, bytes: &[u8]) -> Result<Option<Layout>, FrameError> {
        let limit = self.limits.message_bytes;
        let Some(block) = u64_at(bytes, 0) else { return Ok(None) };
        if block > limit as u64 {
            return Err(FrameError::TooLong { announced: block, limit });
        }
        if block < 8 {
            return Err(FrameError::ShortBlock { block, frames: 0 });
        }
        let Some(frames) = u64_at(bytes, 8) else { return Ok(None) };
        if frames > self.limits.frames as u64 {
            return Err(FrameError::TooManyFrames { announced: frames, limit: self.limits.frames });
        }
        // Both are small now: no overflow.
        let table = 8 + 8 * frames;
        if table > block {
            return Err(FrameError::ShortBlock { block, frames });
        }
        let prelude = 8 + table as usize;
        if bytes.len() < prelude {
            return Ok(None);
        }
        let (mut end, mut fits) = (table, table == block);
        for at in 0..frames as usize {
            let length = u64_at(bytes, 16 + at * 8).unwrap_or(u64::MAX);
            end = end.saturating_add(length);
            if end > limit as u64 {
                return Err(FrameError::TooLong { announced: end, limit });
            }
            fits |= end == block;
        }
        if !fits {
            return Err(FrameError::Straddling);
        }
        Ok(Some(Layout { prelude, total: 8 + end as usize }))
    }
}

/// Writes one message with all its frames in the first block.
pub fn encode(frames: &[&[u8]]) -> Vec<u8> {
    let block = 8 + 8 * frames.len() + frames.iter().map(|f| f.len()).sum::<usize>();
    let mut out = Vec::with_capacity(8 + block);
    out.extend_from_slice(&(block as u64).to_le_bytes());
    out.extend_from_slice(&(frames.len() as u64).to_le_bytes());
    for frame in frames {
        out.extend_from_slice(&(frame.len() as u64).to_le_bytes());
    }
    for frame in frames {
        out.extend_from_slice(frame);
    }
    out
}

/// What stands before the only frame of a message.
pub(super) fn single_prelude(frame: usize) -> [u8; SINGLE_PRELUDE] {
    let mut out = [0; SINGLE_PRELUDE];
    out[..8].copy_from_slice(&(16 + frame as u64).to_le_bytes());
    out[8..16].copy_from_slice(&1u64.to_le_bytes());
    out[16..].copy_from_slice(&(frame as u64).to_le_bytes());
    out
}

struct Layout {
    prelude: usize,
    total: usize,
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    word.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
