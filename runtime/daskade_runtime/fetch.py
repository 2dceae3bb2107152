"""Where an input comes from: the handle itself, this worker's cache, the worker that made it, storage.

Everything that is not inline is checked against its digest before a step sees it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from daskade_runtime.cache import Cache, Entry
from daskade_runtime.errors import StepFailure
from daskade_runtime.execute import Descriptor
from daskade_runtime.lost import LostOutput, why_lost
from daskade_runtime.serialize import bounds
from daskade_runtime.storage import StorageError, Store

T = TypeVar("T")

# One piece of a transfer between workers; the serving worker reads it in one go.
CHUNK = 4 << 20
# A worker that does not answer in this time is passed over: storage has the same bytes.
PEER_DEADLINE = 10.0
# And for this long it is not asked again: with many inputs from one dead worker the deadlines would add up.
PEER_SHUNNED = 60.0
# Storage trouble inside an attempt is ridden out for this long, then it is the attempt's failure.
STORAGE_PATIENCE = 600.0
# Keys that are refused may be about to be replaced: the same patience as the journal's.
KEYS_PATIENCE = 300.0
_BACKOFF_FIRST, _BACKOFF_CAP = 0.5, 15.0
# An output that is in storage as it was committed and comes otherwise is fetched again, so often.
_TRIES = 3
# Elements of containers up to this size travel as bytes; larger ones are worth a file in the cache.
_INLINE_ELEMENT = 64 * 1024

Handle = dict[str, Any]
Call = Callable[..., Any]


def patiently(
    action: Callable[[], T],
    stopped: Callable[[], bool],
    patience: float | None = None,
    told: Callable[[StorageError | None], None] | None = None,
) -> T:
    """``action()``, again with backoff while waiting may help. ``StepFailure`` when it does
    not. ``told`` hears of the trouble when it begins or becomes another, and None when it is over.
    """
    began = time.monotonic()
    patience = STORAGE_PATIENCE if patience is None else patience
    wait = _BACKOFF_FIRST
    troubled = ""
    try:
        while True:
            try:
                return action()
            except StorageError as exc:
                may_pass = exc.transient or exc.reason == "AccessDenied"
                left = patience if exc.transient else min(patience, KEYS_PATIENCE)
                if not may_pass or time.monotonic() + wait > began + left:
                    raise StepFailure("infra", exc.reason, str(exc)) from exc
                if told is not None and troubled != exc.reason:
                    troubled = exc.reason
                    told(exc)
            _nap(wait * random.uniform(0.5, 1.0), stopped)
            wait = min(wait * 2, _BACKOFF_CAP)
    finally:
        if told is not None and troubled:
            told(None)


def _nap(seconds: float, stopped: Callable[[], bool]) -> None:
    """Sleeps in short pieces, so that a stop is heard soon."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stopped():
            raise StepFailure("stopped", "Stopped", "stopped while waiting for storage")
        time.sleep(min(left, 0.2))


def object_key(run: str, path: str) -> str:
    """The storage key of a handle's ``u``: below the run, or (with a leading slash) from the storage root."""
    return path[1:] if path.startswith("/") else f"runs/{run}/{path}"


class OneAtATime:
    """A lock for each key, there only while somebody holds it or waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: dict[tuple[str, bytes], threading.Lock] = {}

    @contextlib.contextmanager
    def alone(self, key: tuple[str, bytes]) -> Iterator[None]:
        with self._lock:
            lock = self._busy.setdefault(key, threading.Lock())
        try:
            with lock:
                yield
        finally:
            with self._lock:
                if not lock.locked():
                    self._busy.pop(key, None)


@contextlib.contextmanager
def kept_on_disk(path: str) -> Iterator[None]:
    """Writes the file ``path``, of which nothing is left should it fail."""
    try:
        yield
    except BaseException as exc:
        with contextlib.suppress(OSError):
            os.unlink(path)
        if isinstance(exc, OSError):
            message = f"an input cannot be kept on this worker: {exc}"
            raise StepFailure("infra", "DiskFull", message) from exc
        raise


class Fetcher:
    """Inputs of one worker's attempts. Thread-safe; one transfer per object at a time."""

    def __init__(
        self,
        cache: Cache,
        call_peer: Call,
        own_address: Callable[[], str],
        told: Callable[[str, StorageError | None], None] = lambda run, error: None,
    ) -> None:
        self._cache = cache
        self._told = told
        self._call_peer = call_peer
        self._own_address = own_address
        self._turns = OneAtATime()
        self._shunned: dict[str, float] = {}

    def whole(
        self, run: str, store: Store, handle: Handle, pins: list[Entry], stopped: Callable[[], bool]
    ) -> Descriptor:
        """The descriptor of a whole output. What it pins goes to ``pins``, for the caller to release."""
        size, n, offsets = handle["z"], handle.get("n"), handle.get("x")
        data = handle.get("b")
        if data is not None:
            return (handle["s"], data, None, 0, size, n, offsets)
        entry = self._file(run, store, handle, 0, size, handle["d"], stopped)
        pins.append(entry)
        return (handle["s"], None, entry.path, 0, size, n, offsets)

    def element(
        self,
        run: str,
        store: Store,
        handle: Handle,
        index: int,
        pins: list[Entry],
        stopped: Callable[[], bool],
    ) -> Descriptor:
        """The descriptor of one element of a container output, read by its range."""
        n = handle["n"]
        if not 0 <= index < n:
            raise StepFailure(
                "data", "NoSuchKey", f"the upstream list has {n} elements, there is no element {index}"
            )
        start, length = bounds(handle["x"], index)
        if handle.get("b") is not None:
            return (handle["s"], handle["b"][start : start + length], None, 0, length, None, None)
        entry = self._cache.pin((run, handle["d"]))
        if entry is not None:
            pins.append(entry)
            return (handle["s"], None, entry.path, start, length, None, None)
        digest = handle["m"][32 * index : 32 * index + 32]
        if length <= _INLINE_ELEMENT:
            data = self._small(run, store, handle, start, length, digest, stopped)
            return (handle["s"], data, None, 0, length, None, None)
        entry = self._file(run, store, handle, start, length, digest, stopped)
        pins.append(entry)
        return (handle["s"], None, entry.path, 0, length, None, None)

    def _small(
        self,
        run: str,
        store: Store,
        handle: Handle,
        start: int,
        length: int,
        digest: bytes,
        stopped: Callable[[], bool],
    ) -> bytes:
        with contextlib.suppress(_PeerFailed):
            data = b"".join(self._from_peer(run, handle, start, length))
            if hashlib.sha256(data).digest() == digest:
                return data
        patient = partial(patiently, stopped=stopped, told=partial(self._told, run))
        for _ in range(_TRIES):
            read = patient(lambda: _if_there(lambda: self._get(run, store, handle, start, length)))
            if read is not None and hashlib.sha256(read).digest() == digest:
                return read
            _insist(run, store, handle, patient)
        raise _misread(run, handle)

    def _file(
        self,
        run: str,
        store: Store,
        handle: Handle,
        start: int,
        length: int,
        digest: bytes,
        stopped: Callable[[], bool],
    ) -> Entry:
        key = (run, digest)
        with self._turns.alone(key):
            entry = self._cache.pin(key)
            if entry is not None:
                return entry
            path = self._cache.new_path()
            with kept_on_disk(path):
                if not self._peer_to_file(run, handle, start, length, digest, path):
                    self._storage_to_file(run, store, handle, start, length, digest, path, stopped)
                return self._cache.add(key, path, length)

    def _peer_to_file(
        self, run: str, handle: Handle, start: int, length: int, digest: bytes, path: str
    ) -> bool:
        hasher = hashlib.sha256()
        try:
            with open(path, "wb") as file:
                for piece in self._from_peer(run, handle, start, length):
                    hasher.update(piece)
                    file.write(piece)
        except _PeerFailed:
            return False
        return hasher.digest() == digest

    def _from_peer(self, run: str, handle: Handle, start: int, length: int) -> Iterator[bytes]:
        address = handle.get("w")
        if (
            not address
            or address == self._own_address()
            or self._shunned.get(address, 0.0) > time.monotonic()
        ):
            raise _PeerFailed
        at = 0
        while at < length:
            size = min(CHUNK, length - at)
            try:
                reply = self._call_peer(
                    address,
                    "daskade-get",
                    PEER_DEADLINE,
                    run=run,
                    d=handle["d"],
                    offset=start + at,
                    length=size,
                )
            except Exception as exc:  # gone or slow: storage has it
                if len(self._shunned) > 1000:
                    self._shunned.clear()
                self._shunned[address] = time.monotonic() + PEER_SHUNNED
                raise _PeerFailed from exc
            piece = reply.get("data") if isinstance(reply, dict) else None
            if not isinstance(piece, (bytes, bytearray, memoryview)) or len(piece) != size:
                raise _PeerFailed
            yield bytes(piece)
            at += size

    def _storage_to_file(
        self,
        run: str,
        store: Store,
        handle: Handle,
        start: int,
        length: int,
        digest: bytes,
        path: str,
        stopped: Callable[[], bool],
    ) -> None:
        def read() -> bool:
            if start == 0 and length == handle["z"] and length > CHUNK:
                store.get_to_file(object_key(run, _path(handle)), path)
                return True
            with open(path, "wb") as file:
                at = 0
                while at < length:
                    size = min(4 * CHUNK, length - at)
                    file.write(self._get(run, store, handle, start + at, size))
                    at += size
            return True

        patient = partial(patiently, stopped=stopped, told=partial(self._told, run))
        for _ in range(_TRIES):
            if patient(lambda: _if_there(read)) and _digest_of(path) == digest:
                return
            _insist(run, store, handle, patient)
        raise _misread(run, handle)

    def _get(self, run: str, store: Store, handle: Handle, start: int, length: int) -> bytes:
        return store.get(object_key(run, _path(handle)), start, length)


class _PeerFailed(Exception):
    """The worker that made the output did not serve it."""


def _path(handle: Handle) -> str:
    path = handle.get("u")
    if not path:
        raise StepFailure("infra", "MissingInput", "an input is neither inline nor stored")
    return str(path)


def _digest_of(path: str) -> bytes:
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            hasher.update(piece)
    return hasher.digest()


def _if_there(action: Callable[[], T]) -> T | None:
    """``action()``, None if what it reads is not there."""
    try:
        return action()
    except StorageError as exc:
        if exc.reason == "NotFound":
            return None
        raise


def _insist(run: str, store: Store, handle: Handle, patient: Call) -> None:
    """Raises if the output that did not come as it was committed is lost."""
    key = object_key(run, _path(handle))
    why = why_lost(store, key, handle["z"], handle["d"], patient)
    if why is not None:
        raise LostOutput(f"the object {key} in {store.url} is lost: {why}", handle)


def _misread(run: str, handle: Handle) -> StepFailure:
    message = f"{_TRIES} reads of {object_key(run, _path(handle))} returned wrong bytes, but the storage has the right ones"
    return StepFailure("infra", "OutputMisread", message)
