"""How a worker in a pod ends: told to, retired, without its scheduler, or stuck."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from daskade_runtime.heard import heard

log = logging.getLogger("distributed.daskade")

# Exit codes. Kubernetes starts a container again that ends with another than 0.
DONE, STUCK, GONE = 0, 70, 75
# Dask pauses a worker at 80 % of its memory; one that stays so is of no use, and a new one is.
PAUSED_TOO_LONG = 600.0
# A loop that answers nobody for so long is taken as hung; the scheduler gives a silent worker up after 300 s.
HUNG_TOO_LONG = 240.0
LOOK = 1.0
ASK_EVERY = 0.5
# A scheduler that does not answer is asked ever less often, down to this.
ASK_LEAST = 5.0
CALL_WAIT = 30.0
CLOSE_WAIT = 3.0
# What Dask's own closing may take: it waits half a minute and more
# for tasks whose results nobody takes any more.
CLOSING_WAIT = 5.0
# What Python's own end may take, which waits for threads that steps have left behind.
EXIT_WAIT = 10.0

Explain = Callable[[str, str], None]


class Leaving:
    """A worker that is told to go by its node: it takes nothing new, finishes what it has, hands on what it
    holds, and ends.
    """

    def __init__(self, grace: float) -> None:
        self.told = asyncio.Event()
        self.code: int | None = None
        self._grace = grace
        self._worker: Any = None
        self._task: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """The signal came. Before there is a worker nothing has to be finished."""
        self.told.set()
        if self._worker is not None and self._task is None:
            self._task = heard(self._leave(self._worker))

    def attach(self, worker: Any) -> None:
        """This worker runs now."""
        self._worker = worker
        if self.told.is_set():
            self.begin()

    def give_up(self, code: int) -> None:
        """Ends the worker without finishing anything."""
        self.code = code
        _ = heard(self._worker.close(timeout=CLOSE_WAIT))

    async def _leave(self, worker: Any) -> None:
        self.code = DONE
        end = time.monotonic() + self._grace
        log.info("daskade: told to end; finishing tasks within %.0f s", self._grace)
        pause, told = ASK_EVERY, ""
        while time.monotonic() < end:
            try:
                if await self._left(worker, end - time.monotonic()):
                    break
                pause, told = ASK_EVERY, ""
            except Exception as error:  # noqa: BLE001 - without a scheduler its worker closes by itself
                pause = min(pause * 2, ASK_LEAST)
                # Told once, however often it is the same.
                if told != (told := f"{type(error).__name__}: {error}"):
                    log.info("daskade: the scheduler does not answer: %s", told)
            await asyncio.sleep(pause)
        await worker.close(timeout=CLOSE_WAIT)

    async def _left(self, worker: Any, time_left: float) -> bool:
        """Asks the scheduler, which knows what is open; whether there is nothing left to wait for."""
        # Its answer may come too late to be of interest.
        call = heard(getattr(worker.scheduler, "daskade-leave")(worker=worker.address))
        end = time.monotonic() + min(CALL_WAIT, max(time_left, 0.1))
        try:
            while not closing(worker) and not call.done() and time.monotonic() < end:
                await asyncio.wait([call], timeout=ASK_EVERY)
            if closing(worker):
                return True
            if not call.done():
                raise TimeoutError(f"nothing was heard for {min(CALL_WAIT, time_left):.0f} s")
            reply = call.result()
        finally:
            call.cancel()
        return bool(reply and reply.get("closed"))


def closing(worker: Any) -> bool:
    """Whether Dask closes the worker: its scheduler has gone, or said so."""
    return getattr(worker.status, "name", "") in ("closing", "closed", "failed")


async def ended(worker: Any) -> None:
    """Returns when Dask has closed the worker, or has taken too long to."""
    closed = heard(worker.finished())
    while not closed.done() and not closing(worker):
        await asyncio.wait([closed], timeout=ASK_EVERY)
    await asyncio.wait([closed], timeout=CLOSING_WAIT)
    closed.cancel()


async def watch_pause(worker: Any, leaving: Leaving, explain: Explain) -> None:
    """Ends a worker that stays paused."""
    since: float | None = None
    while True:
        await asyncio.sleep(LOOK)
        paused = getattr(worker.status, "name", "") == "paused"
        since = (since or time.monotonic()) if paused else None
        if since is not None and time.monotonic() - since > PAUSED_TOO_LONG:
            explain("MemoryPressure", f"its use of memory kept the worker paused for {PAUSED_TOO_LONG:.0f} s")
            leaving.give_up(STUCK)
            return


def watch_loop(explain: Explain) -> None:
    """Ends the process when its event loop hangs: while a task runs, the liveness probe does not see it. Counts
    only the time in which this thread ran: code that stops all threads is not taken for it.
    """
    loop = asyncio.get_running_loop()
    ticks = {"made": 0, "seen": 0}

    def seen(at: int) -> None:
        ticks["seen"] = at

    def watch() -> None:
        while not loop.is_closed():
            ticks["made"] += 1
            try:
                loop.call_soon_threadsafe(seen, ticks["made"])
            except RuntimeError:
                return  # it was closed just now
            time.sleep(LOOK)
            if (ticks["made"] - ticks["seen"]) * LOOK > HUNG_TOO_LONG:
                faulthandler.dump_traceback()
                explain("Hung", f"the event loop was blocked for {HUNG_TOO_LONG:.0f} s")
                os._exit(STUCK)

    threading.Thread(target=watch, name="daskade-loop-watch", daemon=True).start()


def end_soon(code: int) -> int:
    """From now on the process ends with ``code`` in a while whatever happens: Python's own end waits for
    threads that user code has started, and the event loop's for tasks and calls that do not come back.
    """

    def cut() -> None:
        time.sleep(EXIT_WAIT)
        os._exit(code)

    threading.Thread(target=cut, name="daskade-exit", daemon=True).start()
    return code
