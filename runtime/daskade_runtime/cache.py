"""Outputs kept as files on this worker, by run and digest, least recently used first to go."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import shutil
import threading
from dataclasses import dataclass

Key = tuple[str, bytes]  # run, sha256


@dataclass(slots=True)
class Entry:
    """A cached file. Stays on disk while it is pinned."""

    key: Key
    path: str
    size: int
    pins: int = 0
    gone: bool = False


class Cache:
    """Thread-safe. ``limit`` bounds the bytes of entries that nobody uses; pinned ones may exceed it."""

    def __init__(self, directory: str, limit: int) -> None:
        self._directory = directory
        self.limit = limit
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[Key, Entry] = collections.OrderedDict()
        self._size = 0
        self._names = itertools.count()
        os.makedirs(directory, mode=0o700, exist_ok=True)

    def new_path(self) -> str:
        """Where a file may be made that ``add`` takes over."""
        return f"{self._directory}/{next(self._names):x}"

    def add(self, key: Key, path: str, size: int) -> Entry:
        """Takes the file over, pinned. If the key is known already, its file stays and this one goes."""
        with self._lock:
            known = self._entries.get(key)
            if known is not None:
                known.pins += 1
                self._entries.move_to_end(key)
                if path != known.path:
                    _unlink(path)
                return known
            entry = self._entries[key] = Entry(key, path, size, pins=1)
            self._size += size
            self._shrink()
            return entry

    def pin(self, key: Key) -> Entry | None:
        """The entry, which then stays until ``unpin``."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.pins += 1
                self._entries.move_to_end(key)
            return entry

    def unpin(self, entry: Entry) -> None:
        with self._lock:
            entry.pins -= 1
            if entry.gone and entry.pins == 0:
                _unlink(entry.path)
            else:
                self._shrink()

    def drop(self, run: str) -> None:
        """Forgets all of a run; pinned files go when they are released."""
        with self._lock:
            for key in [k for k in self._entries if k[0] == run]:
                self._remove(key)

    def close(self) -> None:
        """Removes everything."""
        with self._lock:
            self._entries.clear()
            self._size = 0
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def size(self) -> int:
        return self._size

    def _shrink(self) -> None:
        if self._size <= self.limit:
            return
        for key in [k for k, entry in self._entries.items() if entry.pins == 0]:
            if self._size <= self.limit:
                return
            self._remove(key)

    def _remove(self, key: Key) -> None:
        entry = self._entries.pop(key)
        self._size -= entry.size
        if entry.pins:
            entry.gone = True
        else:
            _unlink(entry.path)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
