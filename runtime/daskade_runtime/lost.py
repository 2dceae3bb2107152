"""Whether an output that did not come as it was committed is lost, or is only not readable now.

A step runs again because of the answer. So it takes two whole reads with other bytes, each on connections of its
own, or a read and a listing that both do not find the object. Whatever else goes wrong is trouble with the storage.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from daskade_runtime.errors import StepFailure
from daskade_runtime.storage import StorageError, Store

READS = 2
# Most inputs that one attempt reports.
TOLD = 1000
# One piece of a read.
_PIECE = 16 << 20

_OTHER = f"{READS} full reads, each on its own connection, returned other bytes than were committed"
_ABSENT = "neither a read nor a listing of its folder found it"


class LostOutput(StepFailure):
    """Committed outputs that a step reads are lost; ``inputs`` are their tasks with digest and path of each."""

    def __init__(self, message: str, handle: dict[str, Any], inputs: list[list[Any]] | None = None) -> None:
        super().__init__("input", "OutputLost", message)
        self.handle = handle
        self.inputs = inputs or []

    def record(self) -> dict[str, Any]:
        return {**super().record(), "lost": self.inputs}


class Losses:
    """Gathers the lost inputs of a step, so that one attempt reports many."""

    def __init__(self) -> None:
        self._first: LostOutput | None = None
        self._inputs: list[list[Any]] = []

    @contextlib.contextmanager
    def of(self, task: tuple[int, int]) -> Iterator[None]:
        """Goes on if the output of ``task`` is lost, as long as not too many are."""
        try:
            yield
        except LostOutput as lost:
            self._first = self._first or lost
            self._inputs.append([*task, lost.handle["d"], lost.handle.get("u")])
            if len(self._inputs) >= TOLD:
                self.tell()

    def tell(self) -> None:
        """Raises if anything is lost."""
        if self._first is not None:
            more = len(self._inputs) - 1
            message = f"{self._first.message}; so are {more} more of its inputs" if more else self._first.message
            raise LostOutput(message, self._first.handle, self._inputs)


def why_lost(
    store: Store, key: str, size: int, digest: bytes, patiently: Callable[[Callable[[], str | None]], str | None]
) -> str | None:
    """Why the object counts as lost; None if it is there as it was committed. ``patiently`` calls again while the
    storage is in trouble, and raises if that does not pass.
    """
    why = None
    for _ in range(READS):
        fresh = store.fresh()
        why = patiently(lambda store=fresh: _look(store, key, size, digest))  # type: ignore[misc]
        if why != _OTHER:
            return why
    return why


def _look(store: Store, key: str, size: int, digest: bytes) -> str | None:
    try:
        return None if _read(store, key, size) == digest else _OTHER
    except StorageError as error:
        if error.reason != "NotFound":
            raise
    if any(found == key for found, _ in store.list(key.rpartition("/")[0], key[:-1])):
        why = f"{key} in {store.url} is listed and cannot be read"
        raise StorageError("StorageUnreachable", why, transient=True)
    return _ABSENT


def _read(store: Store, key: str, size: int) -> bytes:
    """The digest of the object, of which no more is read than tells it from one of ``size`` bytes."""
    hasher, at = hashlib.sha256(), 0
    while at <= size:
        wanted = min(_PIECE, size + 1 - at)
        data = store.get(key, at, wanted)
        hasher.update(data)
        at += len(data)
        if len(data) < wanted:
            break
    if at < size and store.head(key) != at:
        raise StorageError("StorageUnreachable", f"short read of {key} in {store.url}", transient=True)
    return hasher.digest()
