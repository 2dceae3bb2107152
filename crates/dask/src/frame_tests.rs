use super::*;

fn decode(bytes: &[u8], limits: Limits) -> Result<Option<Vec<Bytes>>, FrameError> {
    FrameDecoder::new(limits).decode(&mut BytesMut::from(bytes))
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

const SMALL: Limits = Limits { message_bytes: 1000, frames: 4, depth: 8, elements: 100, unpacked: 100 };

#[test]
fn frames_are_read_as_written() {
    for frames in [vec![], vec![&b""[..]], vec![&b"abc"[..]], vec![&b"a"[..], b"", b"bcd", b""]] {
        let bytes = encode(&frames);
        assert_eq!(
            decode(&bytes, SMALL).ok().flatten().as_deref(),
            Some(&frames.iter().map(|f| Bytes::copy_from_slice(f)).collect::<Vec<_>>()[..])
        );
        assert_eq!(single_prelude(3), encode(&[b"abc"])[..24]);
    }
}

#[test]
fn frames_after_the_block_are_read_too() {
    // The block holds two of three frames; the third follows apart.
    let bytes = [words(&[8 + 24 + 3, 3, 1, 2, 4]), b"abbcccc".to_vec()].concat();
    let frames = decode(&bytes, SMALL).ok().flatten().unwrap_or_default();
    assert_eq!(frames, [&b"a"[..], b"bb", b"cccc"]);
    // None in the block.
    let bytes = [words(&[16, 1, 4]), b"cccc".to_vec()].concat();
    assert_eq!(decode(&bytes, SMALL).ok().flatten().unwrap_or_default(), [&b"cccc"[..]]);
}

#[test]
fn a_message_is_whole_only_with_its_last_byte() {
    let bytes = [encode(&[b"abc", b"de"]), encode(&[b"next"])].concat();
    let first = encode(&[b"abc", b"de"]).len();
    for cut in 0..first {
        assert_eq!(decode(&bytes[..cut], SMALL), Ok(None), "{cut}");
    }
    let mut buffer = BytesMut::from(&bytes[..]);
    let decoder = FrameDecoder::new(SMALL);
    assert_eq!(decoder.decode(&mut buffer).map(|m| m.map(|f| f.len())), Ok(Some(2)));
    assert_eq!(decoder.decode(&mut buffer).map(|m| m.map(|f| f.len())), Ok(Some(1)));
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
    assert!(buffer.is_empty());
}

#[test]
fn giant_numbers_are_refused_at_once() {
    let huge = u64::MAX;
    for (bytes, error) in [
        (words(&[huge]), FrameError::TooLong { announced: huge, limit: 1000 }),
        (words(&[1 << 63]), FrameError::TooLong { announced: 1 << 63, limit: 1000 }),
        (words(&[1001]), FrameError::TooLong { announced: 1001, limit: 1000 }),
        (words(&[100, huge]), FrameError::TooManyFrames { announced: huge, limit: 4 }),
        (words(&[100, 5]), FrameError::TooManyFrames { announced: 5, limit: 4 }),
        (words(&[24, 2, huge, 1]), FrameError::TooLong { announced: huge, limit: 1000 }),
        (words(&[24, 2, huge - 24, 30]), FrameError::TooLong { announced: huge, limit: 1000 }),
        // Within the block all is small, but not with what follows it.
        (words(&[24, 2, 500, 500]), FrameError::TooLong { announced: 1024, limit: 1000 }),
        (words(&[7]), FrameError::ShortBlock { block: 7, frames: 0 }),
        (words(&[23, 2]), FrameError::ShortBlock { block: 23, frames: 2 }),
        (words(&[26, 2, 1, 4]), FrameError::Straddling),
        (words(&[100, 1, 4]), FrameError::Straddling),
    ] {
        assert_eq!(decode(&bytes, SMALL), Err(error), "{bytes:?}");
    }
}

#[test]
fn memory_grows_with_what_arrives_not_with_what_is_announced() {
    let mut buffer = BytesMut::from(&words(&[16 + (200 << 20), 1, 200 << 20])[..]);
    let decoder = FrameDecoder::new(Limits::default());
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
    assert!(buffer.capacity() < 1 << 20, "{}", buffer.capacity());
}

proptest::proptest! {
    #[test]
    fn any_frames_survive(frames in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..50), 0..4)) {
        let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let read = decode(&encode(&slices), SMALL).ok().flatten().unwrap_or_default();
        proptest::prop_assert_eq!(read, frames);
    }

    #[test]
    fn any_bytes_are_frames_or_an_error_or_too_few(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        if let Ok(Some(frames)) = decode(&bytes, SMALL) {
            proptest::prop_assert!(frames.iter().map(Bytes::len).sum::<usize>() <= bytes.len());
        }
    }

    #[test]
    fn small_random_preludes_never_panic(words_ in proptest::collection::vec(0u64..40, 0..8), tail in 0usize..80) {
        let bytes = [words(&words_), vec![0; tail]].concat();
        let _ = decode(&bytes, SMALL);
    }
}
