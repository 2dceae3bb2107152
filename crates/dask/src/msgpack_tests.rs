use serde_json::json;

use super::*;

fn limits(depth: usize, elements: usize) -> Limits {
    Limits { depth, elements, ..Limits::default() }
}

fn checked(bytes: &[u8]) -> Result<(), MessageError> {
    check(bytes, &limits(8, 100))
}

#[test]
fn every_marker_is_stepped_over() {
    let values: &[&[u8]] = &[
        b"\x00",
        b"\x7f",
        b"\xe0",
        b"\xc0",
        b"\xc2",
        b"\xc3",
        b"\xa2ab",
        b"\xd9\x02ab",
        b"\xda\x00\x02ab",
        b"\xdb\x00\x00\x00\x02ab",
        b"\xc4\x02ab",
        b"\xc5\x00\x02ab",
        b"\xc6\x00\x00\x00\x02ab",
        b"\xc7\x02\x05ab",
        b"\xc8\x00\x02\x05ab",
        b"\xc9\x00\x00\x00\x02\x05ab",
        b"\xd4\x05a",
        b"\xd5\x05ab",
        b"\xd6\x05abcd",
        b"\xd7\x05abcdefgh",
        b"\xd8\x05abcdefghabcdefgh",
        b"\xca\x00\x00\x00\x00",
        b"\xcb\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\xcc\xff",
        b"\xcd\xff\xff",
        b"\xce\xff\xff\xff\xff",
        b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xd0\xff",
        b"\xd1\xff\xff",
        b"\xd2\xff\xff\xff\xff",
        b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x90",
        b"\x80",
        b"\x92\x01\x02",
        b"\x81\x01\x02",
        b"\xdc\x00\x01\xc0",
        b"\xdd\x00\x00\x00\x01\xc0",
        b"\xde\x00\x01\xc0\xc0",
        b"\xdf\x00\x00\x00\x01\xc0\xc0",
        b"\x92\x91\x90\x80",
    ];
    for value in values {
        assert_eq!(checked(value), Ok(()), "{value:02x?}");
        for cut in 0..value.len() {
            assert_eq!(checked(&value[..cut]), Err(MessageError::Truncated), "{value:02x?} cut at {cut}");
        }
        let longer = [value, &[0xc0][..]].concat();
        assert_eq!(checked(&longer), Err(MessageError::Trailing { bytes: 1 }), "{value:02x?}");
    }
    assert_eq!(checked(b"\xc1"), Err(MessageError::Malformed));
}

#[test]
fn a_hundred_thousand_levels_are_refused_without_recursion() {
    let deep = [vec![0x91; 100_000], vec![0xc0]].concat();
    assert_eq!(check(&deep, &Limits::default()), Err(MessageError::TooDeep { limit: 128 }));
    let maps = [b"\x81\xc0".repeat(100_000), vec![0xc0]].concat();
    assert_eq!(check(&maps, &Limits::default()), Err(MessageError::TooDeep { limit: 128 }));
    let just = [vec![0x91; 128], vec![0xc0]].concat();
    assert_eq!(check(&just, &Limits::default()), Ok(()));
}

#[test]
fn announced_counts_must_be_backed_by_bytes() {
    assert_eq!(checked(b"\xdd\xff\xff\xff\xff"), Err(MessageError::Truncated));
    assert_eq!(checked(b"\xdf\xff\xff\xff\xff\xc0\xc0"), Err(MessageError::Truncated));
    assert_eq!(checked(b"\xc6\xff\xff\xff\xffabc"), Err(MessageError::Truncated));
    assert_eq!(checked(b"\xdb\xff\xff\xff\xffabc"), Err(MessageError::Truncated));
}

#[test]
fn more_values_than_allowed_are_refused_before_they_are_read() {
    let many = [vec![0xdc, 0, 100], vec![0xc0; 100]].concat();
    assert_eq!(checked(&many), Err(MessageError::TooManyElements { limit: 100 }));
    let nested = [vec![0x92], vec![0xdc, 0, 50], vec![0xc0; 50], vec![0xdc, 0, 50], vec![0xc0; 50]].concat();
    assert_eq!(checked(&nested), Err(MessageError::TooManyElements { limit: 100 }));
    assert_eq!(check(&nested, &limits(8, 103)), Ok(()));
}

#[test]
fn values_are_found_in_maps() {
    let map = b"\x83\x01\x91\xc0\xa1a\xa2xy\xa1b\x05";
    assert_eq!(find(map, "a").ok().flatten().and_then(text), Some(&b"xy"[..]));
    assert_eq!(find(map, "b").ok().flatten().and_then(unsigned), Some(5));
    assert_eq!(find(map, "c"), Ok(None));
    assert_eq!(find(b"\x92\xa1a\xc0", "a"), Ok(None));
    assert_eq!(unsigned(b"\xd1\x00\x05"), Some(5));
    assert_eq!(unsigned(b"\xd1\xff\x05"), None);
    assert_eq!(unsigned(b"\xff"), None);
}

#[test]
fn a_member_is_parted_from_the_rest_of_a_map() {
    for map in [json!({"a": 1, "x": [1, 2], "b": {"x": 3}}), json!({"x": null}), json!({"b": "x", "x": {"x": 1}})] {
        let bytes = rmp_serde::to_vec(&map).unwrap_or_default();
        let (rest, value) = part(&bytes, "x").ok().flatten().unwrap_or_else(|| panic!("{map}"));
        let mut without = map.clone();
        let parted = without.as_object_mut().and_then(|members| members.shift_remove("x"));
        assert_eq!(rmp_serde::from_slice::<serde_json::Value>(&rest).ok(), Some(without));
        assert_eq!(rmp_serde::from_slice::<serde_json::Value>(value).ok(), parted);
    }
    assert_eq!(part(b"\x81\xa1a\x01", "x"), Ok(None));
    assert_eq!(part(b"\x01", "x"), Ok(None));
}
