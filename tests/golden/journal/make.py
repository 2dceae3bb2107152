"""Writes the golden journal next to this file, from the runtime's own writer, with fixed nonces and times.

    PYTHONPATH=runtime python tests/golden/journal/make.py [--check]

``good/`` is a journal with every kind of record, its last segment in format 2, the others in format 1.
``expected.json`` is what a reader must make of it (bytes as hex, under "hex"). ``bad.json`` lists segments that
must be refused: how each comes from a good one (the digest at its end is made right again unless ``damaged``),
and words of the refusal that both readers give. ``reader-1.zip`` holds the modules of the last release that knew
format 1 alone; nothing makes it anew. The tests of the runtime and of the command line's reader use all of it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

import msgpack

from daskade_runtime import fold, journal

HERE = Path(__file__).resolve().parent

RUN = "0f8b7a54-1111-4222-8333-944455566677"
T = 1_767_225_600.25


def inline(data: bytes, serializer: str = "json", **more: Any) -> dict[str, Any]:
    handle = dict.fromkeys("uzdsbwnxm")
    return {**handle, "z": len(data), "d": hashlib.sha256(data).digest(), "s": serializer, "b": data, **more}


def stored(path: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {**inline(data, "pickle"), "b": None, "u": path, "w": "tcp://10.0.0.7:40001", **more}


PARTS = [b"first", b"", b"third!"]
WHOLE = b"".join(PARTS)
OFFSETS = struct.pack("<4Q", 0, 5, 5, 11)
DIGESTS = b"".join(hashlib.sha256(part).digest() for part in PARTS)


def opened(epoch: int, full: bool) -> list[Any]:
    return [
        "opened",
        {
            "epoch": epoch,
            "t": T + epoch,
            "name": "diamond",
            "spec": b'{"steps":[]}' if full else None,
            "spec_digest": "5d41402abc4b2a76b9719d911017c592",
            "code": {"digest": "77" * 32, "zip": b"PK\x05\x06" + bytes(18) if full else None},
            "runtime": "ab" * 32,
            "dask": "2026.8.0",
            "python": f"3.11.{epoch}",
        },
    ]


SEGMENTS: list[tuple[int, list[Any]]] = [
    (1, [opened(1, True)]),
    (
        1,
        [
            ["length", 0, 3],
            ["committed", 0, 0, 1, inline(b"1"), "cpu-0-1", T + 1.5, T + 2.5, None, None],
            [
                "committed",
                0,
                1,
                1,
                inline("\u00e9\u4e2d\U0001f600".encode()),
                None,
                T + 1,
                T + 2,
                [],
                b'{"a":[1,2]}',
            ],
            [
                "committed",
                1,
                -1,
                2,
                stored("data/1/-1-2-00ff", WHOLE, n=3, x=OFFSETS, m=DIGESTS),
                "gpu-3-2",
                5,
                6.5,
                [3, 0],
                None,
            ],
        ],
    ),
    (
        1,
        [
            ["failed", 0, 2, 1, "app", "ValueError", "no good \u0000 text\n", "cpu-1-1", T, T + 0.125],
            ["lost", 0, 2, 2, "cpu-1-1", T + 3],
            ["skipped", 2, -1, "WhenFalse", None],
            ["skipped", 3, 7, "UpstreamFailed", "step 0 item 2"],
            ["refused", 4, -1, "TypeMismatch", "expected a list"],
            ["a-later-kind", {"any": [1, {2: b"x"}]}, None],
            ["length", 0, 99, "a later field"],
            ["committed", 0, 0, 2, inline(b"2"), "late", T, T, None, None],
        ],
    ),
    (2, [opened(2, False), ["failed", 0, 2, 3, "oom", "MemoryError", "", None, T + 4, T + 5]]),
    (
        2,
        [
            [
                "final",
                {
                    "state": "Failed",
                    "reason": "StepFailed",
                    "message": "0[2]",
                    "t": T + 6,
                    "results": {"n": 7},
                },
            ]
        ],
    ),
    (5, [opened(5, False), ["skipped", 5, -1, "UpstreamSkipped", ""]]),
    (
        5,
        [
            [
                "committed",
                0,
                2,
                4,
                stored("/models/m.bin", b"", s="numpy"),
                "cpu-2-1",
                T + 7,
                T + 8,
                None,
                "[]",
            ]
        ],
    ),
    (
        5,
        [
            ["invalidated", 0, 0, 1, "OutputLost", "the object is lost"],
            ["invalidated", 0, 1, 1, "InputChanged", None],
            ["invalidated", 0, -1, 0, "InputChanged", ""],
            ["length", 0, 4],
            ["committed", 0, 0, 3, inline(b"1"), "cpu-2-2", T + 9, T + 10, None, None],
            ["committed", 0, 1, 2, inline(b"anew"), "cpu-2-2", T + 9, T + 10, [], b"5"],
        ],
    ),
]
for _, records in SEGMENTS[7:]:
    for record in records[:3]:
        record.append(T + 9)


def build() -> list[bytes]:
    """The segments' bytes."""
    segments: list[bytes] = []
    for seg, (epoch, records) in enumerate(SEGMENTS):
        prev = hashlib.sha256(segments[-1]).digest() if segments else None
        nonce = hashlib.sha256(b"nonce %d" % seg).digest()[:16]
        segments.append(journal.encode_segment(RUN, seg, epoch, nonce, prev, T + seg, records))
    return segments


def neutral(value: Any) -> Any:
    """``value`` as JSON, the same from every reader."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {str(key): neutral(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [neutral(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def expected(segments: list[bytes]) -> dict[str, Any]:
    folded = fold.Folded()
    rows = []
    for seg, data in enumerate(segments):
        segment = journal.decode_segment(data, RUN, seg)
        folded.apply(segment.records)
        rows.append(
            {
                "seg": seg,
                "epoch": segment.epoch,
                "nonce": segment.nonce,
                "prev": segment.prev,
                "t": segment.t,
                "digest": segment.digest,
                "records": len(segment.records),
            }
        )

    def text(value: Any) -> Any:
        return value.encode() if isinstance(value, str) else value

    tasks = sorted(folded.committed.items())
    result: dict[str, Any] = neutral(
        {
            "run": RUN,
            "segments": rows,
            "opened": folded.opened,
            "committed": [[s, i, *value[:6], text(value[6])] for (s, i), value in tasks],
            "order": [list(task) for task, _ in folded.in_order()],
            "lengths": sorted(folded.lengths.items()),
            "skipped": [[s, i, *why] for (s, i), why in sorted(folded.skipped.items())],
            "refused": [[s, i, *why] for (s, i), why in sorted(folded.refused.items())],
            "failed": folded.failed,
            "lost": folded.lost,
            "final": folded.final,
        }
    )
    return result


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def framed(header: Any, *records: bytes, raw_header: bytes | None = None) -> bytes:
    head = msgpack.packb(header) if raw_header is None else raw_header
    return sealed(struct.pack("<4sBI", b"DSKJ", 1, len(head)) + head + b"".join(records))


def header(**more: Any) -> dict[str, Any]:
    return {"run": RUN, "seg": 0, "epoch": 1, "nonce": bytes(16), "prev": None, "count": 1, "t": T, **more}


def handle_row(**more: Any) -> list[Any]:
    return ["committed", 0, 0, 1, {**inline(b"1"), **more}, None, 1.0, 2.0, None, None]


def bad(segments: list[bytes]) -> list[dict[str, Any]]:
    first = segments[0]
    good = msgpack.packb(opened(1, True))
    rows: list[tuple[str, bytes, str]] = []

    def flip(name: str, at: int, words: str) -> None:
        data = bytearray(first)
        data[at] ^= 0x10
        rows.append((f"bit flip in {name}", bytes(data), words))

    flip("the magic", 1, "wrong magic")
    flip("the version", 4, "format version 17")
    flip("the header's length", 5, "digest does not match")
    flip("the header", 20, "digest does not match")
    flip("a record", len(first) // 2, "digest does not match")
    flip("the digest", len(first) - 1, "digest does not match")
    rows += [(f"truncated to {n} bytes", first[:n], "truncated") for n in (0, 4, 5, 9, 40)]
    rows += [
        (f"truncated to {n} bytes", first[:n], "digest does not match") for n in (41, 100, len(first) - 1)
    ]
    rows.append(("a byte more", first + b"\0", "digest does not match"))
    rows.append(("a newer version", sealed(b"DSKJ\x03" + first[5:-32]), "format version 3, known are 1 to 2"))
    rows.append(("version zero", sealed(b"DSKJ\x00" + first[5:-32]), "format version 0"))
    rows.append(("another file", b"\x89PNG" + first[4:], "wrong magic"))
    rows.append(
        ("header length beyond the end", sealed(b"DSKJ\x01\xff\xff\xff\xff" + bytes(64)), "header is wrong")
    )
    rows.append(("header is not a map", framed([1]), "header is wrong"))
    rows.append(("header is not msgpack", framed(None, raw_header=b"\xc1"), "is wrong"))
    rows.append(("two headers", framed(None, good, raw_header=msgpack.packb(header()) * 2), "after"))
    for name in header():
        short = {key: value for key, value in header().items() if key != name}
        rows.append((f"header without {name}", framed(short, good), "header is wrong"))
    for name, value in (
        ("epoch", 0),
        ("epoch", -1),
        ("count", -1),
        ("nonce", b"short"),
        ("prev", b"short"),
        ("seg", "0"),
    ):
        rows.append((f"header {name} {value!r}", framed(header(**{name: value}), good), "header is wrong"))
    rows.append(("another run", framed(header(run="x"), good), "another run or place"))
    rows.append(("another place", framed(header(seg=1), good), "another run or place"))
    rows.append(("a million and one records", framed(header(count=1_000_001), good), "records, the limit is"))
    rows.append(("fewer records than announced", framed(header(count=2), good), "is wrong"))
    rows.append(("more records than announced", framed(header(count=0), good), "bytes after the last record"))

    def record(name: str, value: Any, words: str = "record 0 is wrong") -> None:
        data = value if isinstance(value, bytes) else msgpack.packb(value)
        rows.append((f"record: {name}", framed(header(), data), words))

    record("not an array", {"a": 1})
    record("empty", [])
    record("kind is a number", [1, 2])
    record("too few fields", ["length", 0])
    record("step is a text", ["length", "0", 1])
    record("step is a boolean", ["length", True, 1])
    record("step is negative", ["length", -1, 1])
    record("step is too large", ["length", 2**32, 1])
    record("length beyond i64", ["length", 0, 2**63])
    record("item below -1", ["lost", 0, -2, 1, None, 1.0])
    record("attempt zero", ["lost", 0, 0, 0, None, 1.0])
    record("opened without epoch", ["opened", {"t": 1.0}])
    record("opened with a number as name", ["opened", {"epoch": 1, "t": 1.0, "name": 5}])
    record("opened with a number as key", ["opened", {"epoch": 1, "t": 1.0, 5: 5}])
    record("opened with a text as code", ["opened", {"epoch": 1, "t": 1.0, "code": "zip"}])
    record("final with a number as key", ["final", {"results": {1: 2}}])
    record("final too deep", ["final", {"results": _nested(100)}])
    record("final is an array", ["final", []])
    record("handle is nil", ["committed", 0, 0, 1, None, None, 1.0, 2.0, None, None])
    record("handle without digest", handle_row(d=None))
    record("handle with a short digest", handle_row(d=b"short"))
    record("handle with another size", handle_row(z=2))
    record("handle with a negative size", handle_row(z=-1, b=None, u="x"))
    record("handle of nothing", handle_row(b=None))
    record("container without index", handle_row(n=3))
    record("container with a short index", handle_row(n=3, x=bytes(24)))
    record("container with short digests", handle_row(n=1, x=bytes(16), m=bytes(31)))
    record("container of 2^60", handle_row(n=2**60, x=bytes(8)))
    record("bad length of an output", ["committed", 0, 0, 1, inline(b"1"), None, 1.0, 2.0, [-1], None])
    record("of format 2 in format 1", ["invalidated", 0, 0, 1, "OutputLost", None, 1.0], "format 1 does not have")
    record("extension type", b"\x92\xa1x\xd4\x01\x02", "is wrong")
    record("time stamp", b"\x92\xa1x\xd6\xff\x00\x00\x00\x00", "is wrong")
    record("text that is not UTF-8", b"\x92\xa1x\xa1\xff", "is wrong")
    record("an array of 2^32 in ten bytes", b"\x92\xa1x\xdd\xff\xff\xff\xff\x01\x01", "is wrong")
    record("nested 100 deep", b"\x92\xa1x" + b"\x91" * 100 + b"\xc0", "is wrong")
    record("nested 100 000 deep", b"\x92\xa1x" + b"\x91" * 100_000 + b"\xc0", "is wrong")
    return [{"name": name, "hex": _short(data), "words": words} for name, data, words in rows]


def _nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


def _short(data: bytes) -> Any:
    """Hex; a long run of one byte as [before, byte, count, after]."""
    deep = b"\x91" * 100_000
    before, found, after = data.partition(deep)
    return [before.hex(), "91", len(deep), after.hex()] if found else data.hex()


def main() -> None:
    segments = build()
    files = {f"good/{seg:010d}.seg": data for seg, data in enumerate(segments)}
    files["expected.json"] = (json.dumps(expected(segments), indent=1, ensure_ascii=False) + "\n").encode()
    files["bad.json"] = (json.dumps(bad(segments), indent=1) + "\n").encode()
    check = "--check" in sys.argv
    for name, data in files.items():
        path = HERE / name
        if check:
            if path.read_bytes() != data:
                raise SystemExit(f"{path} is not what this program writes")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)


if __name__ == "__main__":
    main()
