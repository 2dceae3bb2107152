//! Any bytes, in pieces of any size, are messages, an error, or too few: and cost no more memory than they have bytes.
#![no_main]

use bytes::BytesMut;
use dask::Limits;
use dask::frame::{FrameDecoder, encode};
use dask::message::Message;
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { message_bytes: 1 << 16, frames: 64, depth: 16, elements: 1000, unpacked: 1000 };

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let decoder = FrameDecoder::new(LIMITS);
    let whole = read(&decoder, bytes, bytes.len().max(1));
    let pieces = read(&decoder, bytes, usize::from(piece).max(1));
    assert_eq!(whole, pieces, "how the bytes are cut does not matter");
});

/// All messages as they would be written again, and whether the bytes ended in an error.
fn read(decoder: &FrameDecoder, bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut buffer, mut messages) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frames)) => {
                    let slices: Vec<&[u8]> = frames.iter().map(|f| &f[..]).collect();
                    messages.push(encode(&slices));
                    let _ = Message::new(frames, &LIMITS);
                }
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
            assert!(buffer.capacity() < (1 << 20) + 2 * bytes.len());
        }
    }
    (messages, false)
}
