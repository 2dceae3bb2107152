"""Decoder of a run's journal, written from the description of the format and sharing no code with the product."""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass, field
from typing import Any

import msgpack

MAGIC = b"DSKJ"
# Of segments without a record that older readers must not leave out, and of those with one.
VERSIONS = (1, 2)
DIGEST = 32


class Malformed(Exception):
    """A segment does not follow the format."""


@dataclass(frozen=True)
class Segment:
    """One numbered object of a journal, and when it became durable (seconds since the epoch)."""

    number: int
    run: str
    epoch: int
    nonce: bytes
    prev: bytes | None
    records: list[list[Any]] = field(repr=False)
    digest: bytes = field(repr=False)
    durable: float


@dataclass(frozen=True)
class Commit:
    """A committed task, with the place of its record in the journal."""

    step: int
    item: int
    attempt: int
    handle: dict[str, Any]
    segment: int
    order: int
    durable: float


def decode(raw: bytes, durable: float) -> Segment:
    """Decode one segment; raises `Malformed` for anything that is not exactly the format."""
    if len(raw) < len(MAGIC) + 5 + DIGEST or raw[:4] != MAGIC:
        raise Malformed("no segment header")
    if raw[4] not in VERSIONS:
        raise Malformed(f"version {raw[4]}")
    body, trailer = raw[:-DIGEST], raw[-DIGEST:]
    if hashlib.sha256(body).digest() != trailer:
        raise Malformed("checksum does not match")
    (length,) = struct.unpack_from("<I", raw, 5)
    start = 9 + length
    if start > len(body):
        raise Malformed("header longer than the segment")
    header = msgpack.unpackb(raw[9:start], raw=False, strict_map_key=False)
    records = [list(record) for record in _stream(body[start:])]
    if header["count"] != len(records):
        raise Malformed(f"header says {header['count']} records, there are {len(records)}")
    if len(header["nonce"]) != 16:
        raise Malformed("nonce is not 16 bytes")
    if raw[4] != _version(records):
        raise Malformed(f"version {raw[4]} with these records")
    return Segment(
        number=header["seg"],
        run=header["run"],
        epoch=header["epoch"],
        nonce=bytes(header["nonce"]),
        prev=None if header["prev"] is None else bytes(header["prev"]),
        records=records,
        digest=hashlib.sha256(raw).digest(),
        durable=durable,
    )


def commits(segments: list[Segment]) -> list[Commit]:
    """Every `committed` record in journal order."""
    found: list[Commit] = []
    for segment in segments:
        for record in segment.records:
            if record[0] == "committed":
                _, step, item, attempt, handle = record[:5]
                found.append(Commit(step, item, attempt, handle, segment.number, len(found), segment.durable))
    return found


def records(segments: list[Segment], kind: str) -> list[list[Any]]:
    """Every record of one kind in journal order."""
    return [record for segment in segments for record in segment.records if record[0] == kind]


def encode(segment: Segment) -> bytes:
    """The inverse of `decode`, for the tests of the oracle."""
    header: bytes = msgpack.packb(
        {
            "run": segment.run,
            "seg": segment.number,
            "epoch": segment.epoch,
            "nonce": segment.nonce,
            "prev": segment.prev,
            "count": len(segment.records),
            "t": segment.durable,
        }
    )
    body = MAGIC + bytes([_version(segment.records)]) + struct.pack("<I", len(header)) + header
    body += b"".join(msgpack.packb(record) for record in segment.records)
    return body + hashlib.sha256(body).digest()


def _version(records: list[list[Any]]) -> int:
    return 2 if any(record[0] == "invalidated" for record in records) else 1


def _stream(raw: bytes) -> Any:
    """Unpack records one after the other, refusing a torn last one."""
    unpacker = msgpack.Unpacker(io.BytesIO(raw), raw=False, strict_map_key=False, max_buffer_size=1 << 30)
    consumed = 0
    for record in unpacker:
        consumed = unpacker.tell()
        if not isinstance(record, (list, tuple)) or not record:
            raise Malformed("a record is not an array")
        yield record
    if consumed != len(raw):
        raise Malformed("torn record at the end")
