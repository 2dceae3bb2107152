"""An output under a name of its own, besides the run's record: written before the output is committed.

Where something must not be replaced, an attempt first leaves a note below the run with the digest of what it
is about to write and its whole answer. Should it end between its write and its commit, the next attempt knows
the object by that digest, and answers what the first one would have: what is committed is what is there.

Where it is replaced, an attempt that was given up and does not know it yet must not undo what a later one has
written and committed. So an attempt looks at what is there, then has its scheduler say that it is still the
task's attempt, and then replaces just what it has seen: of two attempts the earlier one is stopped by one or
the other.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from daskade_runtime.definitions import Run
from daskade_runtime.errors import StepFailure
from daskade_runtime.fetch import object_key, patiently
from daskade_runtime.storage import Check, Exists, Stat, StorageError, Store

_PIECE = 16 << 20
# An object that was there and is gone a moment later is written again, so often.
_TRIES = 3
# What others have written meanwhile is replaced too, so often.
_REPLACES = 10


@dataclass
class Bytes:
    """What is written: bytes in memory or a file, with size and sha256."""

    data: bytes | None
    file: str | None
    size: int
    digest: bytes


def keep(
    run: Run,
    task: tuple[str, int, int, int],
    path: str,
    replace: bool,
    what: Bytes,
    reply: dict[str, Any],
    stopped: Callable[[], bool],
    told: Callable[[StorageError | None], None],
    current: Callable[[], None],
) -> tuple[dict[str, Any], str]:
    """Writes ``what`` to ``path``; the attempt's reply, and the version of what is there now. ``current`` raises
    if the attempt is not the one that its task waits for.
    """
    store = run.store

    def check(last: bool) -> None:
        if stopped():
            raise StepFailure("stopped", "Stopped", "stopped while writing its output")
        if last:
            current()

    if replace:
        return reply, _replace(store, path, what, check, stopped, told)
    _, step, item, attempt = task
    note = msgpack.packb([what.size, what.digest, reply], use_bin_type=True)
    note_key = f"{_notes(run.uid, step, item)}/{attempt}-{os.urandom(4).hex()}"
    patiently(lambda: store.put(note_key, note), stopped, told=told)
    for _ in range(_TRIES):
        try:
            tag = patiently(lambda: _create(store, path, what, check), stopped, told=told)
            return reply, tag or _version(store, path, stopped, told)
        except Exists:
            there, own = patiently(lambda: look(store, run.uid, step, item, path), stopped, told=told)
        if own is not None:
            return _of_earlier(run, path, reply, own, stopped, told), there or ""
        if there is not None:
            break
    help = "set output.ifExists: Replace, or choose another output.path"
    message = f"another object was written to {path} while the step ran; {help}"
    raise StepFailure("data", "OutputExists", message)


def _of_earlier(
    run: Run,
    path: str,
    reply: dict[str, Any],
    own: dict[str, Any],
    stopped: Callable[[], bool],
    told: Callable[[StorageError | None], None],
) -> dict[str, Any]:
    """The answer of an attempt, if an earlier one of the same task, whose answer is ``own``, has written what is at
    ``path``. The record of that one may be lost by now: then this one's will do if it is the same, else what is at
    ``path`` is the record, if it is the same bytes.
    """
    handle, new = own.get("handle") or {}, reply.get("handle") or {}
    if new and handle.get("d") == new["d"]:
        return {**own, "handle": {**handle, **{name: new[name] for name in ("u", "b", "w")}}}
    if not handle.get("u") or handle.get("n") is not None or "://" in path:
        return own
    key = object_key(run.uid, handle["u"])

    def is_there() -> bool:
        found = run.store.look(key)
        return found is not None and found.size == handle["z"] and _digest(run.store, key, found.size) == handle["d"]

    if patiently(is_there, stopped, told=told):
        return own
    return {**own, "handle": {**handle, "u": f"/{path}", "w": None}}


def look(store: Store, run: str, step: int, item: int, path: str) -> tuple[str | None, dict[str, Any] | None]:
    """The version of what is at ``path``, and the reply of the attempt of this task that wrote it, if any."""
    found = store.look(path)
    if found is None:
        return None, None
    digest: bytes | None = None
    for key, _ in store.list(_notes(run, step, item)):
        size, noted, reply = msgpack.unpackb(store.get(key), raw=False, strict_map_key=False)
        if size != found.size:
            continue
        digest = digest or _digest(store, path, found.size)
        if noted == digest:
            return found.version, reply
    return found.version, None


def _notes(run: str, step: int, item: int) -> str:
    return f"runs/{run}/kept/{step}/{item}"


def _replace(
    store: Store,
    path: str,
    what: Bytes,
    check: Check,
    stopped: Callable[[], bool],
    told: Callable[[StorageError | None], None],
) -> str:
    """Writes ``what`` in the place of whatever is there; the version of it."""

    def write(seen: Stat | None) -> str | None:
        if what.file is not None:
            return store.replace(path, None, what.file, seen, check)
        return store.replace(path, what.data or b"", None, seen, check)

    seen = patiently(lambda: store.look(path), stopped, told=told)
    for _ in range(_REPLACES):
        try:
            tag = patiently(functools.partial(write, seen), stopped, told=told)
            return tag or _version(store, path, stopped, told)
        except Exists:
            seen = patiently(lambda: store.look(path), stopped, told=told)
        # An answer that was lost on the way, of a write that was done.
        if seen is not None and seen.size == what.size:
            digest = functools.partial(_digest, store, path, what.size)
            if patiently(digest, stopped, told=told) == what.digest:
                return seen.version
    message = f"other writers keep changing {path}; let only this step write there"
    raise StepFailure("infra", "OutputContended", message)


def _create(store: Store, path: str, what: Bytes, check: Check) -> str | None:
    if what.file is not None:
        return store.create_file(path, what.file, check)
    return store.create(path, what.data or b"")


def _version(
    store: Store, path: str, stopped: Callable[[], bool], told: Callable[[StorageError | None], None]
) -> str:
    """For a service that does not say what it has made of a put."""
    found = patiently(lambda: store.look(path), stopped, told=told)
    return "" if found is None else found.version


def _digest(store: Store, key: str, size: int) -> bytes:
    hasher = hashlib.sha256()
    for at in range(0, size, _PIECE):
        hasher.update(store.get(key, at, min(_PIECE, size - at)))
    return hasher.digest()
