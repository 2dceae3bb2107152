"""The journal of a run: numbered, create-only, chained segments of records, and what they add up to.

It is the only commit record. A segment is written once, by whoever creates its number first; that one put is
the commit, the fence and the order. The byte format is documented in ``docs/storage.md`` and shared with the
reader of the command line through golden files.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgpack

from . import segments
from .fold import Folded
from .limits import RECORD_DEPTH
from .limits import SEGMENT as SEGMENT_LIMIT
from .limits import SEGMENT_HEADER as HEADER_LIMIT
from .limits import SEGMENT_RECORDS as RECORDS_LIMIT
from .records import DIGEST, INT_MAX, check_map, check_record, is_plain, too_many_values, version_of
from .storage import Exists, StorageError, Store

T = TypeVar("T")

MAGIC = b"DSKJ"
# Newest format that is read. A segment has the oldest one in which all of its records are known.
VERSION = 2
NONCE = 16
# The writer begins a new segment here.
SEGMENT_TARGET = 16 << 20
# Backoff of a write that storage does not take: from, to, in seconds.
BACKOFF_FIRST = 0.2
BACKOFF_CAP = 30.0
# How long a failure that needs a person (access denied, wrong region) is retried before it is given up.
PATIENCE = 300.0
# Reading and claiming at open.
OPEN_DEADLINE = 60.0
# Segments fetched at a time.
AHEAD = 8
# Where a look costs a request, a writer looks so often whether what it wrote before is still there.
LOOK_BACK = 5.0
_PREFIX = struct.Struct("<4sBI")


class JournalError(Exception):
    """The journal cannot be opened or continued; ``reason`` is a documented reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Fenced(JournalError):
    """Another writer took the next segment: this one must stop for ever."""

    def __init__(self, epoch: int) -> None:
        super().__init__("Fenced", f"a writer of epoch {epoch} has taken over")
        self.epoch = epoch


class Closed(JournalError):
    """The journal was closed while an append waited for storage; its outcome is unknown."""

    def __init__(self) -> None:
        super().__init__("Closed", "the journal is closed")


@dataclass
class Segment:
    """A decoded segment."""

    run: str
    seg: int
    epoch: int
    nonce: bytes
    prev: bytes | None
    t: float
    records: list[Any]
    digest: bytes
    """sha256 over all bytes of the segment: ``prev`` of the next one."""


def check_run(run: str) -> str:
    """``run`` itself, or ``JournalError(InvalidRun)``: 1 to 63 letters, digits, ``-``, ``_``, ``.``, not
    first a sign."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", run):
        raise JournalError("InvalidRun", f"{run[:64]!r} is not the uid of a run")
    return run


def segment_key(run: str, seg: int) -> str:
    """Key of a segment, relative to the storage url."""
    check_run(run)
    return f"runs/{run}/journal/{seg:010d}.seg"


def _folder(run: str) -> str:
    return f"runs/{run}/journal"


class Journal:
    """The one writer of a run's journal. One ``append`` at a time; ``close`` may come from any thread."""

    def __init__(self, store: Store, run: str, folded: Folded) -> None:
        self.store = store
        self.run = run
        self.epoch = folded.epoch
        self.on_trouble: Callable[[StorageError | None], None] | None = None
        self._seg = folded.seg
        self._prev = folded.digest
        self._dead: JournalError | None = None
        self._looked = 0.0
        self._closing = threading.Event()

    @classmethod
    def open(
        cls,
        store: Store,
        run: str,
        epoch: int | None,
        create: bool,
        opened: dict[str, Any],
    ) -> tuple[Journal, Folded]:
        """Claims the next segment with an ``opened`` record and gives what the journal held before and with
        it.

        ``create``: there must be no journal (``RunExists``), else there must be one (``RunNotFound``).
        ``epoch`` must be higher than the highest found (``StaleEpoch``); None is the next one. ``opened`` has
        the fields of the record except ``epoch`` and ``t``; a ``spec_digest`` other than the journal's is
        ``SpecMismatch``. The spec and the code are stored once, in the first record. Also raises
        ``StorageError`` and ``RecordUnreadable``.
        """
        deadline = time.monotonic() + OPEN_DEADLINE
        folded, met = Folded(), -1
        while True:
            _patient(deadline, partial(_read_on, store, run, folded, met))
            if create and folded.seg >= 0:
                raise JournalError("RunExists", f"run {run} already has a journal")
            if not create and folded.seg < 0:
                raise JournalError("RunNotFound", f"there is no journal of run {run}")
            mine = folded.epoch + 1 if epoch is None else epoch
            if mine <= folded.epoch:
                why = f"the epoch must be higher than the journal's, {folded.epoch}"
                raise JournalError("StaleEpoch", f"cannot open run {run} under epoch {mine}: {why}")
            known, given = folded.opened.get("spec_digest"), opened.get("spec_digest")
            if known is not None and given is not None and known != given:
                raise JournalError("SpecMismatch", f"run {run} was started with spec {known}, not {given}")
            record = {**opened, "epoch": mine, "t": time.time()}
            if folded.seg >= 0:
                code = record.get("code") or {}
                record = {**record, "spec": None, "code": {"digest": code.get("digest"), "zip": None}}
            nonce = secrets.token_bytes(NONCE)
            data = encode_segment(
                run, folded.seg + 1, mine, nonce, folded.digest, record["t"], [["opened", record]]
            )
            claimed = _patient(deadline, partial(_claim, store, run, folded.seg + 1, data))
            if claimed is None:
                folded.epoch, folded.seg = mine, folded.seg + 1
                folded.digest = hashlib.sha256(data).digest()
                folded.apply([["opened", record]])
                return cls(store, run, folded), folded
            # Somebody else was faster: read on from there.
            met = folded.seg + 1

    def append(self, records: list[Any]) -> int:
        """Commits the records, in order, and gives the number of the segment that holds the last of them.

        One segment, more only past ``SEGMENT_TARGET`` bytes. Transient failures are retried until ``close``,
        others for ``PATIENCE`` seconds, each reported to ``on_trouble`` (and None when it is over). Raises
        ``Fenced`` once another writer has the slot and ever after, ``ValueError`` for a record that cannot be
        stored, ``RecordUnreadable`` if a segment that was written is not there any more. The end of a run is
        only written to a journal that is whole.
        """
        if self._seg >= 0 and any(record[0] == "final" for record in records):
            self._insist(self._check_whole)
        for batch, version in _batches(records):
            self._append(batch, version)
        return self._seg

    def _append(self, packed: list[bytes], version: int) -> None:
        if self._dead is not None:
            raise self._dead
        seg, nonce = self._seg + 1, secrets.token_bytes(NONCE)
        data = _frame(self.run, seg, self.epoch, nonce, self._prev, time.time(), packed, version)
        other = self._insist(partial(_claim, self.store, self.run, seg, data))
        if other is not None:
            self._dead = Fenced(other.epoch)
            raise self._dead
        self._look_back()
        self._seg, self._prev = seg, hashlib.sha256(data).digest()

    def _insist(self, call: Callable[[], T]) -> T:
        """``call()``, again while storage does not answer. What the journal itself refuses is for ever."""
        if self._dead is not None:
            raise self._dead
        started, wait, troubled = time.monotonic(), BACKOFF_FIRST, False
        while True:
            if self._closing.is_set():
                raise Closed()
            try:
                found = call()
                break
            except JournalError as error:
                self._dead = error
                raise
            except StorageError as error:
                if not error.transient and time.monotonic() - started > PATIENCE:
                    raise
                troubled = True
                self._tell(error)
            if self._closing.wait(wait * random.uniform(0.5, 1.0)):
                raise Closed()
            wait = min(wait * 2, BACKOFF_CAP)
        if troubled:
            self._tell(None)
        return found

    def _look_back(self) -> None:
        """Raises if the segment before the one that was just written is gone: a folder that was deleted and
        made again takes writes like any other.
        """
        now = time.monotonic()
        if self._seg < 0 or (not self.store.quick and now - self._looked < LOOK_BACK):
            return
        self._looked = now
        with contextlib.suppress(StorageError):  # seen at the next look, at the latest at the end
            if self.store.head(segment_key(self.run, self._seg)) is None:
                self._check_whole()

    def _check_whole(self) -> None:
        """Raises if any of the segments so far is not there."""
        try:
            segments.check(self.store, _folder(self.run), partial(segment_key, self.run), self._seg)
        except segments.Missing as missing:
            self._dead = unreadable(self.run, missing.seg, str(missing))
            raise self._dead from None

    def check(self) -> None:
        """Raises ``Fenced`` if another writer has taken over while this one had nothing to write, and
        ``RecordUnreadable`` if what it wrote last is gone.
        """
        if self._dead is not None:
            raise self._dead
        if self.store.head(segment_key(self.run, self._seg + 1)) is not None:
            self._dead = Fenced(read_segment(self.store, self.run, self._seg + 1).epoch)
            raise self._dead
        if self._seg >= 0 and self.store.head(segment_key(self.run, self._seg)) is None:
            self._check_whole()

    def close(self) -> None:
        """Ends a waiting ``append`` (``Closed``) and refuses later ones. Writes nothing."""
        self._closing.set()

    def _tell(self, error: StorageError | None) -> None:
        if self.on_trouble is not None:
            self.on_trouble(error)


def read_all(store: Store, run: str) -> Folded:
    """The journal of ``run``, verified and folded, without claiming anything. ``RunNotFound`` if there is
    none."""
    folded = Folded()
    _read_on(store, run, folded)
    if folded.seg < 0:
        raise JournalError("RunNotFound", f"there is no journal of run {run}")
    return folded


def _claim(store: Store, run: str, seg: int, data: bytes) -> Segment | None:
    """Creates the segment: None if it is ours (now, or by an earlier put with a lost answer), else the
    other's."""
    try:
        store.create(segment_key(run, seg), data)
        return None
    except Exists:
        pass
    try:
        other = read_segment(store, run, seg)
    except StorageError as error:
        if error.reason == "NotFound":
            # Said to exist, yet not there: a write that was being decided. Ask again.
            raise StorageError("StorageUnreachable", str(error), transient=True) from error
        raise
    # The nonce names the very put, and no other segment of ours carries it.
    return None if other.digest == hashlib.sha256(data).digest() else other


def _patient(deadline: float, call: Callable[[], Any]) -> Any:
    wait = BACKOFF_FIRST
    while True:
        try:
            return call()
        except StorageError as error:
            if not error.transient or time.monotonic() + wait > deadline:
                raise
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(wait * 2, 5.0)


def _read_on(store: Store, run: str, folded: Folded, known: int = -1) -> None:
    """Adds the segments after ``folded``'s last, in order and verified. ``known`` is the number of a segment
    that is there. After an error ``folded`` has what was read before it."""
    check_run(run)
    try:
        listed = segments.find(store, _folder(run), partial(segment_key, run), folded.seg, known)
    except segments.Missing as missing:
        raise unreadable(run, missing.seg, str(missing)) from None
    for seg, (_, size) in enumerate(listed, folded.seg + 1):
        if size > SEGMENT_LIMIT:
            raise unreadable(run, seg, f"{size} bytes, the limit is {SEGMENT_LIMIT}")
    with ThreadPoolExecutor(AHEAD) as pool:
        for start in range(0, len(listed), AHEAD):
            for data in pool.map(store.get, [key for key, _ in listed[start : start + AHEAD]]):
                seg = folded.seg + 1
                segment = decode_segment(data, run, seg)
                if segment.prev != folded.digest:
                    raise unreadable(run, seg, "broken chain: it does not follow the segment before it")
                if segment.epoch < folded.epoch:
                    raise unreadable(run, seg, f"epoch {segment.epoch} after epoch {folded.epoch}")
                if segment.epoch > folded.epoch and not (segment.records and segment.records[0][0] == "opened"):
                    raise unreadable(run, seg, f"epoch {segment.epoch} begins without an opened record")
                folded.seg, folded.digest, folded.epoch = seg, segment.digest, segment.epoch
                folded.apply(segment.records)


def read_segment(store: Store, run: str, seg: int) -> Segment:
    """One segment, verified by itself."""
    return decode_segment(store.get(segment_key(run, seg)), run, seg)


# ------------------------------------------------------------------------------------------- byte format


def encode_segment(
    run: str, seg: int, epoch: int, nonce: bytes, prev: bytes | None, t: float, records: list[Any]
) -> bytes:
    """The bytes of one segment."""
    packed = [pack_record(record) for record in records]
    return _frame(run, seg, epoch, nonce, prev, t, packed, version_of(records))


def pack_record(record: Any) -> bytes:
    """The bytes of one record, ``ValueError`` if a reader would refuse it."""
    problem = check_record(record) or too_many_values(record)
    if problem:
        raise ValueError(f"bad journal record: {problem}")
    # Text of steps may hold lone surrogates; they must not keep a commit out of the journal.
    data: bytes = msgpack.packb(record, use_bin_type=True, unicode_errors="replace")
    if len(data) > SEGMENT_LIMIT - HEADER_LIMIT:
        most = SEGMENT_LIMIT - HEADER_LIMIT
        raise ValueError(f"a {record[0]} record of {len(data)} bytes does not fit into a segment, which has {most}")
    return data


def _batches(records: list[Any]) -> Iterable[tuple[list[bytes], int]]:
    """What goes into a segment each, and the format that it needs."""
    batch: list[bytes] = []
    size, first = 0, 0
    for at, data in enumerate([pack_record(record) for record in records]):
        if batch and (size + len(data) > SEGMENT_TARGET or len(batch) >= RECORDS_LIMIT):
            yield batch, version_of(records[first:at])
            batch, size, first = [], 0, at
        batch.append(data)
        size += len(data)
    if batch:
        yield batch, version_of(records[first:])


def _frame(
    run: str, seg: int, epoch: int, nonce: bytes, prev: bytes | None, t: float, packed: list[bytes], version: int
) -> bytes:
    header = msgpack.packb(
        {"run": run, "seg": seg, "epoch": epoch, "nonce": nonce, "prev": prev, "count": len(packed), "t": t},
        use_bin_type=True,
    )
    body = b"".join([_PREFIX.pack(MAGIC, version, len(header)), header, *packed])
    return body + hashlib.sha256(body).digest()


def unreadable(run: str, seg: int, why: str) -> JournalError:
    """The refusal of a segment: it is named, kept, and never overwritten."""
    return JournalError(
        "RecordUnreadable", f"segment {seg} of the journal of run {run} cannot be read: {why}"
    )


def decode_segment(data: bytes, run: str, seg: int) -> Segment:
    """The segment in ``data``, which must be number ``seg`` of ``run``; ``JournalError(RecordUnreadable)``
    otherwise.

    Verifies magic, version, limits, digest, header, record shapes and their count. The chain is the caller's.
    """
    try:
        return _decode(data, run, seg)
    except _Bad as bad:
        raise unreadable(run, seg, str(bad)) from None


class _Bad(Exception):
    pass


def _decode(data: bytes, run: str, seg: int) -> Segment:
    if len(data) > SEGMENT_LIMIT:
        raise _Bad(f"{len(data)} bytes, the limit is {SEGMENT_LIMIT}")
    if len(data) < 5:
        raise _Bad("truncated")
    if data[:4] != MAGIC:
        raise _Bad("wrong magic")
    if not 1 <= data[4] <= VERSION:
        raise _Bad(f"format version {data[4]}, known are 1 to {VERSION}")
    if len(data) < _PREFIX.size + DIGEST:
        raise _Bad("truncated")
    body = memoryview(data)[:-DIGEST]
    if hashlib.sha256(body).digest() != data[-DIGEST:]:
        raise _Bad("the digest does not match")
    length = _PREFIX.unpack_from(data)[2]
    start = _PREFIX.size + length
    if length > HEADER_LIMIT or start > len(body):
        raise _Bad("the header is wrong: its length")
    header = _unpack(body[_PREFIX.size : start], 1)[0]
    if type(header) is not dict or "prev" not in header or not is_plain(header, RECORD_DEPTH, texts=False):
        raise _Bad("the header is wrong: it is not a plain map")
    problem = check_map(header, _HEADER)
    if problem:
        raise _Bad(f"the header is wrong: {problem}")
    if len(header["nonce"]) != NONCE or (header["prev"] is not None and len(header["prev"]) != DIGEST):
        raise _Bad("the header is wrong: nonce or prev has another length")
    if header["run"] != run or header["seg"] != seg:
        raise _Bad("it belongs to another run or place")
    if not 0 < header["epoch"] <= INT_MAX or header["count"] < 0:
        raise _Bad("the header is wrong: epoch or count is out of range")
    if header["count"] > RECORDS_LIMIT:
        raise _Bad(f"{header['count']} records, the limit is {RECORDS_LIMIT}")
    records = _unpack(body[start:], header["count"])
    for index, record in enumerate(records):
        problem = check_record(record)
        if problem is None and version_of([record]) > data[4]:
            problem = f"a record of a kind that format {data[4]} does not have"
        if problem:
            raise _Bad(f"record {index} is wrong: {problem}")
    return Segment(
        run,
        seg,
        header["epoch"],
        header["nonce"],
        header["prev"],
        float(header["t"]),
        records,
        hashlib.sha256(data).digest(),
    )


_HEADER: dict[str, tuple[type, ...]] = {
    "run": (str,),
    "seg": (int,),
    "epoch": (int,),
    "nonce": (bytes,),
    "prev": (bytes, type(None)),
    "count": (int,),
    "t": (float, int),
}


def _unpack(data: memoryview, count: int) -> list[Any]:
    """Exactly ``count`` msgpack values that fill ``data``."""
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=False,
        use_list=True,
        max_buffer_size=max(len(data), 1),
        ext_hook=_no_extension,
    )
    unpacker.feed(data)
    values = []
    try:
        for _ in range(count):
            values.append(unpacker.unpack())
    except msgpack.OutOfData:
        raise _Bad("a record is wrong: fewer of them than announced") from None
    except _Bad:
        raise
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen types, none of them about us
        raise _Bad(f"a record is wrong: not valid msgpack ({type(error).__name__})") from None
    if unpacker.tell() != len(data):
        raise _Bad("bytes after the last record")
    return values


def _no_extension(code: int, data: bytes) -> Any:
    raise _Bad("a record is wrong: an extension type")
