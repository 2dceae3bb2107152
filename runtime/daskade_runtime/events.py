"""Event log of one run, and the connection that follows it.

Numbers have no gaps. What a subscriber acknowledged is dropped; what nobody acknowledges is kept packed up to
a bound, and then the oldest go: a subscriber that comes back too late is told (``Gap``) and opens the run
again for a snapshot. ``comm.write`` of Dask never blocks, so the window of unacknowledged events is what
bounds memory here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from itertools import islice
from typing import Any

import msgpack

Event = dict[str, Any]

# Newest events stay unpacked: a subscriber that keeps up costs no packing at all.
FRESH = 2048
# Packed bytes kept per run for a subscriber that is away; about 400 000 events.
KEEP_BYTES = 64 << 20
BATCH = 1000
# Bytes of one message, as far as its events are large; a reader takes four times as much.
BATCH_BYTES = 1 << 20
# Log lines of one message, and their bytes.
LOG_LINES = 2000
# A batch gathers for so long: the engine decides on many events at once, and latency stays far below a
# step's.
GATHER = 0.005
LOG_QUEUE = 500


class EventLog:
    """Numbered events of a run, in order."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self.seq = 0
        self._keep = keep_bytes
        self._old: deque[bytes] = deque()
        self._old_bytes = 0
        self._fresh: deque[Event] = deque()
        self.subscribers: set[Subscriber] = set()

    @property
    def base(self) -> int:
        """Number of the oldest event that is still here; ``seq + 1`` if there is none."""
        return self.seq - len(self._fresh) - len(self._old) + 1

    def gap(self, since: int) -> str:
        """Why nobody can go on after event ``since``; empty if one can."""
        if since > self.seq:
            return f"the last event is {self.seq}, before {since}"
        return f"events {since + 1} to {self.base - 1} are no longer kept" if since + 1 < self.base else ""

    def add(self, kind: str, **fields: Any) -> None:
        """Appends an event and wakes who waits for it."""
        self.seq += 1
        fields["k"] = kind
        fields["n"] = self.seq
        self._fresh.append(fields)
        if len(self._fresh) > FRESH:
            packed = msgpack.packb(self._fresh.popleft(), use_bin_type=True)
            self._old.append(packed)
            self._old_bytes += len(packed)
            while self._old_bytes > self._keep:
                self._old_bytes -= len(self._old.popleft())
        for subscriber in self.subscribers:
            subscriber.wake.set()

    def since(self, n: int, limit: int) -> list[Event]:
        """Up to ``limit`` events after number ``n``, which must not lie before the oldest kept."""
        skip = n + 1 - self.base
        found: list[Event] = []
        room = BATCH_BYTES
        for packed in islice(self._old, max(skip, 0), skip + limit):
            room -= len(packed)
            if room < 0 and found:
                return found
            found.append(msgpack.unpackb(packed, raw=False))
        start = max(skip - len(self._old), 0)
        for event in islice(self._fresh, start, start + limit - len(found)):
            room -= size_of(event)
            if room < 0 and found:
                return found
            found.append(event)
        return found

    def acknowledge(self, n: int) -> None:
        """Drops the events up to ``n`` that nobody who follows now still needs."""
        n = min((s.acked for s in self.subscribers if s.drives), default=n)
        while self._old and self.base <= n:
            self._old_bytes -= len(self._old.popleft())
        while self._fresh and self.base <= n:
            self._fresh.popleft()

    def log_lines(self, event: Event) -> None:
        """Hands log lines to those who listen; they are not numbered and not kept."""
        for subscriber in self.subscribers:
            if subscriber.logs is not None:
                subscriber.add_logs(event)

    @property
    def listening(self) -> bool:
        """Whether anybody wants log lines now."""
        return any(s.logs is not None for s in self.subscribers)

    def end(self, last: Event | None = None) -> None:
        """Ends all streams, after ``last`` as their last (unnumbered) event."""
        for subscriber in self.subscribers:
            subscriber.last = last
            subscriber.ended = True
            subscriber.wake.set()


class Subscriber:
    """One connection that follows a run."""

    def __init__(self, since: int, window: int, beat: float, logs: bool, drives: bool = True) -> None:
        self.at = since
        # A mere viewer's acknowledgements must not take events from a driver that is reconnecting.
        self.drives = drives
        self.acked = since
        self.window = max(1, window)
        self.beat = max(0.05, beat)
        self.logs: deque[Event] | None = deque() if logs else None
        self.dropped = 0
        self.last: Event | None = None
        self.ended = False
        self.wake = asyncio.Event()

    def add_logs(self, event: Event) -> None:
        assert self.logs is not None
        for piece in pieces(event):
            if len(self.logs) >= LOG_QUEUE:
                self.logs.popleft()
                self.dropped += 1
            self.logs.append(piece)
        self.wake.set()

    def _take_logs(self) -> list[Event]:
        found: list[Event] = []
        room, lines = BATCH_BYTES, LOG_LINES
        while self.logs:
            room -= size_of(self.logs[0])
            lines -= len(self.logs[0].get("lines") or ())
            if (room < 0 or lines < 0) and found:
                break  # the rest with the next message
            found.append(self.logs.popleft())
        return found

    async def follow(self, comm: Any, log: EventLog, instance: str) -> None:
        """Writes events to ``comm`` until it closes or the log ends. Reads acknowledgements beside it."""
        reader = asyncio.ensure_future(self._read_acks(comm, log))
        log.subscribers.add(self)
        try:
            await comm.write({"instance": instance, "events": [], "seq": log.seq})
            while True:
                room = min(self.acked + self.window - self.at, BATCH)
                batch = log.since(self.at, room) if room > 0 and self.at < log.seq else []
                if batch:
                    self.at = batch[-1]["n"]
                elif self.ended and (self.at >= log.seq or self.last is not None):
                    lines = self._take_logs()
                    if self.logs:
                        await comm.write({"instance": instance, "events": lines, "seq": log.seq})
                        continue
                    rest = [*lines, *([self.last] if self.last else [])]
                    await comm.write({"instance": instance, "events": rest, "seq": log.seq})
                    return
                lines = self._take_logs()
                if batch or lines:
                    await comm.write({"instance": instance, "events": [*batch, *lines], "seq": log.seq})
                    await asyncio.sleep(0 if len(batch) >= BATCH else GATHER)
                    continue
                await self._wait()
                if reader.done():
                    return
                if not self.wake.is_set():
                    await comm.write({"instance": instance, "events": [], "seq": log.seq})
                self.wake.clear()
        finally:
            log.subscribers.discard(self)
            reader.cancel()

    async def _wait(self) -> None:
        # Not asyncio.wait_for: before Python 3.12 it can swallow the cancellation by which a closing server
        # ends its handlers, and the scheduler would never exit.
        loop = asyncio.get_running_loop()
        due = loop.time() + self.beat
        beat = asyncio.Event()

        timer = loop.call_at(due, beat.set)
        waiting = [asyncio.ensure_future(self.wake.wait()), asyncio.ensure_future(beat.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            for task in waiting:
                task.cancel()

    async def _read_acks(self, comm: Any, log: EventLog) -> None:
        try:
            while True:
                message = await comm.read()
                ack = message.get("ack") if isinstance(message, dict) else None
                if isinstance(ack, int) and self.acked < ack <= self.at:
                    self.acked = ack
                    if self.drives and not self.ended:
                        log.acknowledge(ack)
                    self.wake.set()
        except (OSError, ValueError):  # CommClosedError is an OSError
            pass
        finally:
            self.wake.set()


def size_of(event: Event) -> int:
    """About how many bytes the event takes, without packing one that is small anyway."""
    size = 200
    if event.get("json") is not None:
        size += len(msgpack.packb(event["json"], use_bin_type=True))
    for name in ("message", "traceback"):
        size += _bytes(event.get(name) or "")
    size += sum(_bytes(line) + 5 for line in event.get("tail") or ())
    size += 16 * len(event.get("tasks") or ())
    size += 5 * len(event.get("lens") or ())
    # [step, item, attempt, time, stream, text]
    size += sum(_bytes(line[-1]) + 40 for line in event.get("lines") or ())
    return size


def _bytes(text: str) -> int:
    """Bytes of a text, or more."""
    return len(text) if text.isascii() else 4 * len(text)


def pieces(event: Event) -> list[Event]:
    """The event of log lines, cut so that each part fits into a message with others."""
    lines = event.get("lines") or ()
    if len(lines) <= LOG_LINES // 4 and size_of(event) <= BATCH_BYTES // 4:
        return [event]
    found: list[Event] = []
    part: list[Any] = []
    room = 0
    for line in lines:
        room -= _bytes(line[-1]) + 40
        if room < 0 or len(part) >= LOG_LINES // 4:
            part = []
            room = BATCH_BYTES // 4
            found.append({**event, "lines": part})
        part.append(line)
    return found


def now() -> float:
    """Seconds since 1970: for records and events, never for decisions."""
    return time.time()
