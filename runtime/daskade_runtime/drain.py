"""Workers that are to go: they take nothing new, give back what they have not begun, finish what they have.

Dask's own retirement in one step runs again elsewhere what is running, and a worker that takes nothing new
keeps, for ever if no other can take it over, what it has queued. So: first the worker's state alone is
changed (``begin``), then the tasks that it has not begun go back to the scheduler, and only a worker with
nothing left to do is retired (``finish``): its data moves to others and it closes.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Container, Iterable
from typing import Any

from distributed.core import Status

log = logging.getLogger("distributed.daskade")

# How long a worker may take to say what it has not begun; how soon it is asked again, and at least how often.
ANSWER_WAIT = 60.0
ASK_AGAIN = 0.1
ASK_LEAST = 2.0


def leaving(worker: Any) -> bool:
    """Whether Dask's worker takes no further tasks because it is to go."""
    return getattr(worker.status, "name", "") in ("closing_gracefully", "closing", "closed")


class Drains:
    """The drains of one scheduler. ``ours`` holds the keys of tasks that the dispatcher itself takes back."""

    def __init__(self, scheduler: Any, ours: Container[Any]) -> None:
        self._scheduler = scheduler
        self._ours = ours
        self._asked: dict[str, asyncio.Future[None]] = {}

    def begin(self, addresses: Iterable[str]) -> None:
        """These take nothing new from now on. Those that drain already, or are unknown, are left alone."""
        for address in addresses:
            worker = self._scheduler.workers.get(address)
            if worker is None or leaving(worker):
                continue
            why = f"daskade-drain-{time.time()}"
            self._scheduler.handle_worker_status_change(Status.closing_gracefully, worker, why)
            message = {"op": "worker-status-change", "status": "closing_gracefully", "stimulus_id": why}
            try:
                self._scheduler.stream_comms[address].send(message)
            except (KeyError, OSError):
                continue  # it is gone, and Dask says so in a moment
            task = asyncio.ensure_future(self._hand_back(address, worker))
            self._asked[address] = task
            task.add_done_callback(functools.partial(self._answered, address))

    async def finish(self, addresses: Iterable[str]) -> None:
        """Closes those that drain and have nothing left to do; returns when their data has moved. One whose
        data no other worker can take stays.
        """
        done = [
            address
            for address in addresses
            if (worker := self._scheduler.workers.get(address)) is not None
            and leaving(worker)
            and not worker.processing
        ]
        if done:
            await self._scheduler.retire_workers(workers=done, close_workers=True, remove=True)

    def stop(self) -> None:
        """The scheduler closes."""
        for task in list(self._asked.values()):
            task.cancel()

    def _answered(self, address: str, _: asyncio.Future[None]) -> None:
        self._asked.pop(address, None)

    async def _hand_back(self, address: str, worker: Any) -> None:
        try:
            # What was sent before the change of its state was also received before it: the list is complete.
            keys = await self._not_begun(address, worker)
            tasks = [self._scheduler.tasks.get(key) for key in keys if key not in self._ours]
            back = {
                task.key: "released"
                for task in tasks
                if task is not None and task.state == "processing" and task.processing_on is worker
            }
            if back:
                log.info("daskade: %d tasks go back from %s, which drains", len(back), worker.name)
                self._scheduler.transitions(back, f"daskade-drain-{time.time()}")
        except Exception as error:  # noqa: BLE001 - without an answer the worker is busy until it has run them
            log.warning("daskade: worker %s does not say what it has not begun: %s", worker.name, error)

    async def _not_begun(self, address: str, worker: Any) -> list[Any]:
        end, pause = time.monotonic() + ANSWER_WAIT, ASK_AGAIN
        while time.monotonic() < end and self._scheduler.workers.get(address) is worker:
            answers = await self._scheduler.broadcast(msg={"op": "daskade-not-begun"}, workers=[address])
            answer = answers.get(address) or {}
            if answer.get("draining"):
                return list(answer["keys"])
            await asyncio.sleep(pause)
            pause = min(pause * 2, ASK_LEAST)
        if self._scheduler.workers.get(address) is worker:
            log.warning("daskade: worker %s did not answer the request to drain within %.0f s", worker.name, ANSWER_WAIT)
        return []


def not_begun(worker: Any) -> dict[str, Any]:
    """On a worker: whether it has heard that it is to go, and which tasks it will therefore never begin."""
    draining = worker.status == Status.closing_gracefully
    tasks = getattr(worker, "state", worker).tasks
    waiting = ("waiting", "ready", "constrained")
    keys = [key for key, task in tasks.items() if task.state in waiting] if draining else []
    return {"status": "OK", "draining": draining, "keys": keys}
