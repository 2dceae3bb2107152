"""Step output: split into lines, attributed to its attempt, bounded, sent live to who listens, stored by one
thread.

Nothing here ever makes a step wait: what does not fit is dropped, counted, and the count is written down.
"""

from __future__ import annotations

import collections
import itertools
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from daskade_runtime.storage import StorageError, Store

log = logging.getLogger("distributed.daskade")

LINE_CAP = 16 * 1024
ATTEMPT_CAP = 8 << 20
TAIL_LINES = 20
TAIL_CHARS = 1000
# Lines of all runs that wait for storage; about what a minute of a very chatty worker makes.
PENDING_CAP = 32 << 20
WRITE_EVERY = 2.0
RETRY_CAP = 30.0
# The longest pause while somebody waits for the lines.
HURRY_WAIT = 0.5
# After this many failures in a row, a problem with the storage that needs a person is reported.
TOLD_AFTER = 3
# Lines of a run that is over are given up after so many seconds of failures.
OVER_PATIENCE = 600.0
_LINE_COST = 100
# Bytes of log objects in one answer, beyond which the next answer goes on.
ANSWER = 4 << 20

Line = tuple[float, str, str]  # time, stream, text


class AttemptLog:
    """The lines of one attempt. Used by the one thread that runs the attempt."""

    def __init__(
        self, hub: LogHub, run: str, name: str, task: tuple[int, int, int], limit: int = ATTEMPT_CAP
    ) -> None:
        self._hub = hub
        self._run = run
        self._name = name
        self._task = task
        self._half = max(limit // 2, 1)
        self._used = 0
        self._parts: dict[str, bytes] = {}
        self._last: collections.deque[str] | None = None
        self._held: collections.deque[Line] | None = None
        self._held_size = 0
        self._dropped = 0
        self._dropped_bytes = 0

    @property
    def tail(self) -> list[str]:
        """The last lines, for a failure report."""
        return list(self._last or ())

    def feed(self, stream: str, data: bytes) -> None:
        """Raw output of the step's process."""
        now = time.time()
        *full, rest = (self._parts.pop(stream, b"") + data).split(b"\n")
        if rest:
            # A progress bar rewrites its line with \\r: only what it shows last matters.
            rest = rest[rest.rfind(b"\r", 0, -1) + 1 :]
            self._parts[stream] = rest[: LINE_CAP + 1]
        if full:
            self._add([(now, stream, _text(line)) for line in full])

    def record(self, at: float, level: str, text: str) -> None:
        """A record of ``logging``: ``level`` is its level and logger."""
        stream, _, logger = level.partition(" ")
        self._add([(at, stream, _shorten(f"{logger}: {line}")) for line in text.split("\n")])

    def finish(self) -> None:
        """Lines without an end, and the held tail of an attempt that wrote too much."""
        now = time.time()
        parts, self._parts = self._parts, {}
        if parts:
            self._add([(now, stream, _text(line)) for stream, line in parts.items()])
        if self._held is not None:
            held, self._held = list(self._held), None
            if self._dropped:
                what = f"{self._dropped} lines ({self._dropped_bytes} bytes)"
                note = f"[daskade: {what} dropped: this attempt wrote too much]"
                held.insert(0, (held[0][0] if held else now, "daskade", note))
            self._hub.add(self._run, self._name, self._task, held)

    def explain(self, failure: dict[str, Any]) -> None:
        """Why the attempt failed, below what it printed and beyond its limit."""
        text = failure["traceback"].rstrip() or f"{failure['type']}: {failure['message']}"
        now = time.time()
        self._hub.add(
            self._run, self._name, self._task, [(now, "daskade", _shorten(line)) for line in text.split("\n")]
        )

    def _add(self, lines: list[Line]) -> None:
        if self._last is None:
            self._last = collections.deque(maxlen=TAIL_LINES)
        self._last.extend(text[:TAIL_CHARS] for _, _, text in lines[-TAIL_LINES:])
        if self._held is None:
            size = sum(len(text) + _LINE_COST for _, _, text in lines)
            if self._used + size <= self._half:
                self._used += size
                self._hub.add(self._run, self._name, self._task, lines)
                return
            self._held = collections.deque()
        held = self._held
        for line in lines:
            held.append(line)
            self._held_size += len(line[2]) + _LINE_COST
            while self._held_size > self._half and held:
                gone = held.popleft()
                self._held_size -= len(gone[2]) + _LINE_COST
                self._dropped += 1
                self._dropped_bytes += len(gone[2])


class _RunLines:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.lines: list[tuple[Any, ...]] = []
        self.dropped = 0
        self.total_dropped = 0
        #: Of the object that is being written; a write that failed may have been done, and is repeated as it was.
        self.number: int | None = None
        self.over = False
        #: Writes in a row that failed; since when; when the last one was, and how long after it the next one is.
        self.failures = 0
        self.since = self.last = self.wait = 0.0
        self.told = False


class LogHub:
    """All lines of a worker on their way to storage and to listeners."""

    def __init__(
        self,
        worker: str,
        live: Callable[[str, list[tuple[Any, ...]]], None],
        told: Callable[[str, StorageError | None], None] = lambda run, error: None,
    ) -> None:
        self._worker = re.sub(r"[^A-Za-z0-9._-]+", "-", worker)[:100].strip("-.") or "worker"
        self._nonce = secrets.token_hex(4)
        self._live = live
        self._told = told
        self._listening: set[str] = set()
        # Of all runs: one that is forgotten and comes back must not write over what it has written.
        self._numbers = itertools.count()
        self._runs: dict[str, _RunLines] = {}
        self._pending = 0
        self._changed = threading.Condition()
        self._hurry = False
        self._closed = False
        self._thread = threading.Thread(target=self._write_loop, name="daskade-logs", daemon=True)
        self._thread.start()

    def open_run(self, run: str, store: Store) -> None:
        """Must come before the first line of a run."""
        with self._changed:
            known = self._runs.setdefault(run, _RunLines(store))
            known.store, known.over = store, False

    def listen(self, run: str, on: bool) -> None:
        """Whether somebody wants this run's lines live."""
        (self._listening.add if on else self._listening.discard)(run)

    def add(self, run: str, name: str, task: tuple[int, int, int], lines: list[Line]) -> None:
        if not lines:
            return
        step, item, attempt = task
        if run in self._listening:
            self._live(run, [(step, item, attempt, *line) for line in lines])
        with self._changed:
            known = self._runs.get(run)
            if known is None:
                return
            size = sum(len(text) + _LINE_COST for _, _, text in lines)
            if self._pending + size > PENDING_CAP:
                known.dropped += len(lines)
                known.total_dropped += len(lines)
                return
            self._pending += size
            known.lines.extend((t, name, item, attempt, stream, text) for t, stream, text in lines)

    def hurry(self) -> None:
        """Writes soon what there is (a step failed: somebody will look)."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def flush(self, run: str, deadline: float) -> int:
        """Waits until all lines of ``run`` are stored; returns how many were dropped, or are not stored at
        the deadline.
        """
        end = time.monotonic() + deadline
        with self._changed:
            known = self._runs.get(run)
            while (
                known is not None
                and (known.lines or known.dropped)
                and time.monotonic() < end
                and self._thread.is_alive()
            ):
                self._hurry = True
                self._changed.notify_all()
                self._changed.wait(min(0.2, max(end - time.monotonic(), 0.01)))
            return 0 if known is None else known.total_dropped + len(known.lines)

    def forget(self, run: str) -> None:
        """The run is over; lines not stored yet are still written."""
        self._listening.discard(run)
        with self._changed:
            known = self._runs.get(run)
            if known is not None:
                known.over = True
                self._let_go(run, known)

    def _let_go(self, run: str, known: _RunLines) -> None:
        if known.over and not known.lines and not known.dropped and self._runs.get(run) is known:
            del self._runs[run]

    def close(self, deadline: float = 5.0) -> None:
        """Writes what there is, waiting at most ``deadline``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(deadline)

    def _write_loop(self) -> None:
        while True:
            with self._changed:
                if not self._closed and not self._hurry:
                    self._changed.wait(WRITE_EVERY)
                hurry, self._hurry = self._hurry, False
                closed = self._closed
                now = time.monotonic()
                todo = [
                    (run, known)
                    for run, known in self._runs.items()
                    # A storage that does not work holds up no other run.
                    if (known.lines or known.dropped)
                    and (closed or now - known.last >= (min(known.wait, HURRY_WAIT) if hurry else known.wait))
                ]
            for run, known in todo:
                self._write(run, known)
            with self._changed:
                self._changed.notify_all()
            if closed:
                return

    def _failed(self, run: str, known: _RunLines, error: Exception) -> None:
        """They wait, and the next try too. Once the run is over nobody waits for ever."""
        known.last = time.monotonic()
        known.since = known.since if known.failures else known.last
        known.failures += 1
        known.wait = min(max(known.wait * 2, 1.0), RETRY_CAP)
        if not isinstance(error, StorageError):
            error = StorageError("Internal", f"{type(error).__name__}: {error}")
        if known.failures == TOLD_AFTER and not error.transient:
            log.warning("daskade: log lines of run %s cannot be stored: %s", run, error)
            known.told = not known.over
            if known.told:
                self._told(run, StorageError(error.reason, f"log lines cannot be stored: {error}"))
        if known.over and known.last - known.since > OVER_PATIENCE:
            with self._changed:
                count = len(known.lines) + known.dropped
                log.warning("daskade: %d log lines of run %s are lost: %s", count, run, error)
                self._pending -= _cost(known.lines)
                known.lines, known.dropped = [], 0
                self._let_go(run, known)
            if known.told:
                self._told(run, None)

    def _write(self, run: str, known: _RunLines) -> None:
        """One object with all lines that wait. On failure they keep waiting."""
        with self._changed:
            lines, dropped = known.lines, known.dropped
            count = len(lines)
        body = "".join(
            json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines[:count]
        )
        if dropped:
            note = f"[daskade: {dropped} lines dropped: storage did not take them in time]"
            body += json.dumps([time.time(), "", -1, 0, "daskade", note]) + "\n"
        if known.number is None:
            known.number = next(self._numbers)
        key = f"runs/{run}/logs/{self._worker}-{self._nonce}-{known.number:06d}.jsonl"
        try:
            known.store.put(key, body.encode("utf-8", "replace"))
        except Exception as error:  # noqa: BLE001 - logs never fail a step; the lines wait, bounded by PENDING_CAP
            self._failed(run, known, error)
            return
        known.failures, known.wait = 0, 0.0
        if known.told:
            known.told = False
            self._told(run, None)
        with self._changed:
            known.number = None
            known.dropped -= dropped
            self._pending -= _cost(lines[:count])
            del lines[:count]
            self._let_go(run, known)


def stored(store: Store, run: str, after: str | None) -> tuple[list[tuple[str, bytes]], bool]:
    """Log objects of a run in order of their keys, greater than ``after``, and whether there are more."""
    found: list[tuple[str, bytes]] = []
    size = 0
    for key, _ in store.list(f"runs/{run}/logs/", after):
        if size >= ANSWER:
            return found, True
        data = store.get(key)
        size += len(data)
        found.append((key, data))
    return found, False


def _cost(lines: list[tuple[Any, ...]]) -> int:
    return sum(len(line[5]) + _LINE_COST for line in lines)


def _text(line: bytes) -> str:
    if line.endswith(b"\r"):
        line = line[:-1]
    if b"\r" in line:
        line = line[line.rfind(b"\r") + 1 :]
    if len(line) > LINE_CAP:
        return line[:LINE_CAP].decode("utf-8", "ignore") + " …[line shortened]"
    return line.decode("utf-8", "replace")


def _shorten(text: str) -> str:
    return text if len(text) <= LINE_CAP else text[:LINE_CAP] + " …[line shortened]"
