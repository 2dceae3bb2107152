"""The scheduler's own side of Dask that the runtime hangs on: a client inside, a plugin, the workers'
streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

import distributed
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin

from daskade_runtime.dispatch import group_of

log = logging.getLogger("distributed.daskade")

# How long closing a run waits for the workers' last log lines.
FLUSH_WAIT = 10.0
# Workers that went are remembered by name for reports about what they took along.
NAMES_KEPT = 1000
# Dask's client gathers messages for 10 ms by default; a chain of short steps would wait that long at each
# link.
SEND_INTERVAL = 0.001


async def connect(scheduler: Any) -> Any:
    """A client of this very scheduler, in its own loop."""
    address, options = scheduler.address, {}
    if address.startswith("tls"):
        own = options["security"] = scheduler.security
    if address.startswith("tls") and not own.tls_client_cert:
        # The scheduler's own security has a certificate for its role only; as a client it shows the same one.
        options["security"] = distributed.Security(
            require_encryption=True,
            tls_ca_file=own.tls_ca_file,
            tls_client_cert=own.tls_scheduler_cert,
            tls_client_key=own.tls_scheduler_key,
        )
    client = await distributed.Client(
        address, asynchronous=True, set_as_default=False, name="daskade", **options
    )
    batched: Any = getattr(client, "scheduler_comm", None)
    if hasattr(batched, "interval"):
        batched.interval = SEND_INTERVAL
    return client


def describe(worker: Any) -> dict[str, Any]:
    """A worker as an event tells it."""
    return {
        "address": worker.address,
        "name": str(worker.name),
        "group": group_of(worker.name),
        "threads": int(worker.nthreads),
        "resources": {str(k): float(v) for k, v in (worker.resources or {}).items()},
    }


def watch_status(scheduler: Any, changed: Callable[[], None]) -> None:
    """Calls ``changed`` when a worker becomes ready for tasks, or pauses: Dask's plugins do not hear of it."""
    handle = scheduler.stream_handlers["worker-status-change"]

    def handle_and_tell(*args: Any, **kwargs: Any) -> None:
        handle(*args, **kwargs)
        changed()

    scheduler.stream_handlers["worker-status-change"] = handle_and_tell


def no_reply() -> Any:
    """What a handler returns that has answered, or closed the connection, itself."""
    return getattr(Status, "dont_reply", "dont-reply")


class Workers:
    """The workers as this scheduler reaches them."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._known = {address: describe(worker) for address, worker in scheduler.workers.items()}

    def name(self, address: str | None) -> str:
        """The name of a worker, also of one that went lately; its address if it was never known."""
        known = self._known.get(address or "")
        return str(known["name"]) if known is not None else str(address or "")

    def tell(self, address: str | None, message: dict[str, Any]) -> None:
        """Sends a stream operation to a worker, if it is there."""
        stream = self._scheduler.stream_comms.get(address)
        if stream is not None:
            with contextlib.suppress(OSError):  # it is going, and Dask says so in a moment
                stream.send(message)

    def tell_all(self, message: dict[str, Any]) -> None:
        """Sends a stream operation to all workers."""
        for address in list(self._scheduler.stream_comms):
            self.tell(address, message)

    def listen(self, live: Any) -> None:
        """Tells the workers whether anybody wants the run's log lines, if that has changed."""
        on = live.events.listening and not live.ended
        if on != live.told_listen:
            live.told_listen = on
            self.tell_all({"op": "daskade-listen", "run": live.uid, "on": on})

    async def flush(self, run: str) -> None:
        """Waits until the workers have stored the run's log lines; not long, and whatever comes of it."""
        message = {"op": "daskade-flush", "run": run}
        asked = [
            asyncio.ensure_future(self._scheduler.broadcast(msg=message, workers=[address]))
            for address in list(self._scheduler.workers)
        ]
        if not asked:
            return
        done, late = await asyncio.wait(asked, timeout=FLUSH_WAIT)
        for call in late:
            call.cancel()
        failed = [call.exception() for call in done if call.exception() is not None]
        if late or failed:
            log.warning(
                "daskade: log lines of %d workers may be missing: %s", len(late) + len(failed), failed[:1]
            )

    def added(self, address: str, runs: Iterable[Any]) -> dict[str, Any] | None:
        """Remembers a new worker, and tells it what to listen for."""
        worker = self._scheduler.workers.get(address)
        if worker is None:
            return None
        told = self._known[address] = describe(worker)
        for live in runs:
            if live.told_listen:
                self.tell(address, {"op": "daskade-listen", "run": live.uid, "on": True})
        return told

    def removed(self, address: str) -> dict[str, Any]:
        """What was known of a worker that is gone."""
        while len(self._known) > len(self._scheduler.workers) + NAMES_KEPT:
            del self._known[next(a for a in self._known if a not in self._scheduler.workers)]
        return self._known.get(address) or {"address": address, "name": address}


class Plugin(SchedulerPlugin):
    """Dask's word of tasks and workers, handed on."""

    name = "daskade"

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._dispatcher = runtime.dispatcher

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if key in self._dispatcher.flying:
            try:
                self._dispatcher.transition(key, start, finish, **kwargs)
            except Exception:
                log.exception("daskade: transition of %s", key)

    def add_worker(self, scheduler: Any = None, worker: str = "", **_: Any) -> None:
        self._runtime.worker_added(worker)

    def remove_worker(self, scheduler: Any = None, worker: str = "", **_: Any) -> None:
        self._runtime.worker_removed(worker)

    async def before_close(self) -> None:
        await self._runtime.stop_all()

    async def close(self) -> None:
        await self._runtime.stop_all()
