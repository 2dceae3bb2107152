"""Events of a worker on their way to its scheduler, over the stream that Dask keeps between the two."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from daskade_runtime import compat

EVENT_INTERVAL = 0.03
# Live log lines that wait for the loop; more are not shown live, and are in storage all the same.
LIVE_CAP = 20_000


class Events:
    """Events on their way to the scheduler: batched, over the worker's own stream, before the result they
    belong to.
    """

    def __init__(self, worker: Any) -> None:
        self._loop = worker.loop
        self._send = compat.sender(worker)
        self._queue: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._armed = False
        self._posted = False
        self._live = self._skipped = 0

    def add(self, event: dict[str, Any]) -> dict[str, Any]:
        """Sends the event with the next batch."""
        with self._lock:
            self._queue.append(event)
            armed, self._armed = self._armed, True
        if not armed:
            self._loop.add_callback(self._arm)
        return event

    def post(self, event: dict[str, Any]) -> None:
        """Sends the event, and what waits before it, in the loop's next turn."""
        with self._lock:
            self._queue.append(event)
            posted, self._posted = self._posted, True
        if not posted:
            self._loop.add_callback(self._flush)

    def lines(self, run: str, worker: str, lines: list[tuple[Any, ...]]) -> None:
        """Sends log lines live, as far as the scheduler keeps up."""
        with self._lock:
            if self._live + len(lines) > LIVE_CAP:
                self._skipped += len(lines)
                return
            self._live += len(lines)
            skipped, self._skipped = self._skipped, 0
        event: dict[str, Any] = {"k": "logs", "run": run, "w": worker, "lines": lines}
        if skipped:
            event["dropped"] = skipped
        self.add(event)

    def withdraw(self, event: dict[str, Any]) -> None:
        """Takes an event back that has not gone out yet."""
        with self._lock:
            for index in range(len(self._queue) - 1, -1, -1):
                if self._queue[index] is event:
                    del self._queue[index]
                    return

    def settle(self) -> None:
        """Sends what waits in the loop's next turn: before the result that Dask posts when the step's thread
        is done.
        """
        with self._lock:
            if not self._queue or self._posted:
                return
            self._posted = True
        self._loop.add_callback(self._flush)

    def _arm(self) -> None:
        self._loop.call_later(EVENT_INTERVAL, self._flush)

    def _flush(self) -> None:
        with self._lock:
            events, self._queue = self._queue, []
            self._armed = self._posted = False
            self._live = 0
        if events:
            with contextlib.suppress(Exception):  # the stream is gone: so is the worker
                self._send({"op": "daskade-ev", "events": events})
