"""Group commit of one run: records queue up in order of arrival, one append to the journal is in flight at a
time.

Idle, a record is written at once; while a write is under way, what arrives becomes the next segment. Under
load a short linger between two segments keeps their number (and the bill) small: ten thousand tiny steps make
about a hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from daskade_runtime.storage import StorageError

log = logging.getLogger("distributed.daskade")

SEGMENT_BYTES = 4 << 20
SEGMENT_RECORDS = 4096
# Least time from one segment's start to the next while more steps are running; it grows while that goes on,
# since under steady load nobody waits for a commit (dependents start on finished inputs).
LINGER = 0.05
LINGER_GROWTH = 1.1
LINGER_CAP = 0.25
# Beyond this nothing new is dispatched until the storage caught up.
PENDING_BYTES = 64 << 20
PENDING_RECORDS = 20_000

Address = tuple[int, int, int]


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a daemon thread: a hanging storage must hold up neither Dask's thread pools nor
    the exit of the process, both of which an executor would.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not done.done():
            if error is None:
                done.set_result(value)
            else:
                done.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = function(*args)
        except BaseException as exc:  # noqa: BLE001 - handed to whoever awaits
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it everybody who wants to know
            loop.call_soon_threadsafe(settle, value, error)

    try:
        thread = _idle.pop()
    except IndexError:
        thread = _Thread()
    thread.work.put(work)
    return await done


class _Thread:
    """A daemon thread that waits for work; starting one for each write would cost the loop milliseconds."""

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="daskade-storage", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self.work.get()()
            if len(_idle) >= _IDLE_KEPT:
                return
            _idle.append(self)


_IDLE_KEPT = 8
_idle: deque[_Thread] = deque()


class Committer:
    """The queue in front of a run's journal.

    ``busy`` says whether more records are to be expected soon; ``committed(tasks, segment)`` is called once
    they are durable; ``broken(error)`` once, when the journal refused for good (fenced, or a storage error
    that will not pass).
    """

    def __init__(
        self,
        append: Callable[[list[Any]], Any],
        *,
        busy: Callable[[], bool],
        committed: Callable[[list[Address], Any], None],
        broken: Callable[[BaseException], None],
        relieved: Callable[[], None],
        linger: float = LINGER,
    ) -> None:
        self.append = append
        self._busy = busy
        self._committed = committed
        self._broken = broken
        self._relieved = relieved
        self._linger = self._linger_first = linger
        self._queue: deque[tuple[list[Any], Address | None, int]] = deque()
        self._running: asyncio.Task[None] | None = None
        self._began = 0.0
        self._hurry = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._gate = asyncio.Event()
        self._gate.set()
        self._writing = False
        self.records = 0
        self.bytes = 0
        self.failed: BaseException | None = None

    def add(self, record: list[Any], task: Address | None = None, size: int = 200) -> None:
        """Queues a record of so many bytes; ``task`` is told as committed once it is durable."""
        if self.failed is not None:
            return
        self._queue.append((record, task, size))
        self.records += 1
        self.bytes += size
        self._idle.clear()
        if self._running is None:
            self._running = asyncio.ensure_future(self._run())

    @property
    def full(self) -> bool:
        """Too much is not durable yet: dispatch pauses."""
        return self.bytes > PENDING_BYTES or self.records > PENDING_RECORDS

    @property
    def idle(self) -> bool:
        """Nothing waits to be written and nothing is being written."""
        return self._running is None and not self._queue

    async def flush(self) -> None:
        """Returns when everything queued so far (and what joins it) is durable; raises what broke the
        journal.
        """
        self._hurry.set()
        await self._idle.wait()
        if self.failed is not None:
            raise self.failed

    async def settle(self, patience: float) -> None:
        """As ``flush``, but no longer than ``patience`` seconds, and whatever comes of it."""
        flushing = asyncio.ensure_future(self.flush())
        await asyncio.wait([flushing], timeout=patience)
        if not flushing.cancel():
            flushing.exception()  # heard: the journal's end has been told already

    async def hold(self, patience: float) -> None:
        """Starts no further append, and returns once none is under way; ``StorageError`` if that takes too
        long.
        """
        self._gate.clear()
        deadline = asyncio.get_running_loop().time() + patience
        while self._writing:
            if asyncio.get_running_loop().time() > deadline:
                self.release()
                raise StorageError(
                    "StorageUnreachable",
                    "a write to the journal is still waiting for storage",
                    transient=True,
                )
            await asyncio.sleep(0.02)

    def release(self) -> None:
        """Goes on after ``hold``."""
        self._gate.set()

    def stop(self, error: BaseException) -> None:
        """Takes nothing more; what is queued is dropped."""
        if self.failed is None:
            self.failed = error
        self._queue.clear()
        self.records = self.bytes = 0
        self._idle.set()
        self._hurry.set()
        self._gate.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                wait = self._began + self._linger - loop.time()
                if wait > 0 and self._busy() and not self._hurry.is_set() and self.bytes < SEGMENT_BYTES:
                    timer = loop.call_later(wait, self._hurry.set)
                    await self._hurry.wait()
                    timer.cancel()
                    self._linger = min(self._linger * LINGER_GROWTH, max(LINGER_CAP, self._linger_first))
                else:
                    self._linger = self._linger_first
                    await asyncio.sleep(0)  # what is handled in this turn of the loop goes along
                self._hurry.clear()
                await self._gate.wait()
                batch, tasks, size = self._take()
                if not batch:
                    return
                self._began = loop.time()
                self._writing = True
                try:
                    segment = await in_thread(self.append, batch)
                finally:
                    self._writing = False
                if self.failed is not None:
                    return
                was_full = self.full
                self.records -= len(batch)
                self.bytes -= size
                self._committed(tasks, segment)
                if was_full and not self.full:
                    self._relieved()
        except Exception as error:  # noqa: BLE001 - any failure here ends the run's writing, and is told
            if self.failed is None:
                if not isinstance(error, StorageError):
                    log.warning("journal stopped: %s: %s", type(error).__name__, error)
                self.stop(error)
                self._broken(error)
        finally:
            self._running = None
            if not self._queue:
                self._idle.set()
                self._hurry.clear()

    def _take(self) -> tuple[list[Any], list[Address], int]:
        batch: list[Any] = []
        tasks: list[Address] = []
        size = 0
        while self._queue and len(batch) < SEGMENT_RECORDS:
            record, task, bytes_ = self._queue[0]
            if batch and size + bytes_ > SEGMENT_BYTES:
                break
            self._queue.popleft()
            batch.append(record)
            if task is not None:
                tasks.append(task)
            size += bytes_
        return batch, tasks, size
