use std::path::PathBuf;

use super::*;

/// The prototype's writer, and `pickletools`, agree with these bytes.
fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/dask").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

const SOURCE: &str = "async def main(text, other, dask_scheduler=None):\n    return text.encode()\n";

#[test]
fn the_installation_is_written_as_recorded() {
    assert_eq!(from_source(SOURCE, "main", "<daskade>"), golden("from_source.pickle"));
}

#[test]
fn a_source_longer_than_255_bytes_is_written_as_recorded() {
    let source = format!("{SOURCE}{}", "# é\n".repeat(200));
    assert_eq!(from_source(&source, "main", "<daskade>"), golden("from_source_long.pickle"));
}

fn texts(items: &[&str]) -> Vec<u8> {
    arguments(&items.iter().map(|t| Constant::Text(t)).collect::<Vec<_>>())
}

#[test]
fn bytes_are_written_after_their_length() {
    assert_eq!(arguments(&[Constant::Bytes(b"ab"), Constant::Bytes(b"ab")]), b"\x80\x04(C\x02abC\x02abt.");
    let long = arguments(&[Constant::Bytes(&[7; 300])]);
    assert_eq!(long[..9], *b"\x80\x04(B\x2c\x01\x00\x00\x07");
}

#[test]
fn arguments_are_written_as_recorded() {
    let long = "x".repeat(300);
    assert_eq!(texts(&["source", "digest", "é", &long]), golden("texts.pickle"));
    assert_eq!(texts(&[]), b"\x80\x04).");
    assert_eq!(no_keywords(), b"\x80\x04}.");
    assert_eq!(function("operator", "itemgetter"), b"\x80\x04\x8c\x08operator\x94\x8c\x0aitemgetter\x94\x93\x94.");
}

#[test]
fn equal_texts_are_written_once() {
    assert_eq!(texts(&["ab", "ab"]), b"\x80\x04(\x8c\x02ab\x94h\x00t.");
}

#[test]
fn more_than_256_remembered_texts_can_be_recalled() {
    let many: Vec<String> = (0..300).map(|n| format!("t{n}")).collect();
    let mut items: Vec<&str> = many.iter().map(String::as_str).collect();
    items.push("t299");
    let pickle = texts(&items);
    // LONG_BINGET 299
    assert!(pickle.ends_with(b"j\x2b\x01\x00\x00t."), "{:?}", &pickle[pickle.len() - 8..]);
}
