"""The operations of who runs the cluster, rather than a run on it: its state, draining, demand.

Each but ``demand`` and ``leave`` names its DaskCluster and the leader that sends it; a stale leader is refused.
"""

from __future__ import annotations

import asyncio
import platform
import time
from typing import Any

import distributed

from daskade_runtime import demand
from daskade_runtime.drain import Drains, leaving
from daskade_runtime.operation import Reply, operation
from daskade_runtime.run import Refused

# The state is looked at so often while somebody waits for a change of it, and answered at most so often.
LOOK = 1.0
# Of the scheduler's time, looking takes no more than one part in so many.
SHARE = 50
WAIT_MOST = 60.0
# Whether the cluster is in use is looked at so often even if nobody asks.
USE_LOOK = 5.0
# Clients that live as long as their worker, or with a step: their tasks say whether they are of use.
_INNER_CLIENTS = ("Client-worker-", "Client-daskade-")


class ClusterView:
    """One per scheduler process, beside the runs."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._scheduler = runtime.scheduler
        self.drains = Drains(runtime.scheduler, runtime.dispatcher.flying)
        self._version = 0
        self._state: dict[str, Any] = {}
        self._next_look = 0.0
        self._used = time.monotonic()
        self._asks: dict[str, list[dict[str, Any]]] = {}

    def handlers(self) -> dict[str, Any]:
        return {
            "daskade-cluster": self.watch,
            "daskade-drain": self.drain,
            "daskade-retire": self.retire,
            "daskade-demand": self.demand,
            "daskade-leave": self.leave,
        }

    async def note_use(self) -> None:
        """Keeps the time of the last use right while nobody asks."""
        while True:
            self._in_use()
            await asyncio.sleep(USE_LOOK)

    # ------------------------------------------------------------------ operations

    @operation
    async def watch(
        self,
        *,
        lead: int,
        since: int,
        wait: float,
        instance: str | None = None,
        fresh: bool = False,
        lease: str | None = None,
        cluster: str | None = None,
        **_: Any,
    ) -> Reply:
        leaders = self._runtime.leaders
        leaders.of_cluster(cluster, lead, lease)
        if fresh:
            self._next_look = 0.0
        end = time.monotonic() + min(max(float(wait), 0.0), WAIT_MOST)
        while True:
            self._look()
            now = time.monotonic()
            if self._version > since or instance != self._runtime.instance or now >= end:
                break
            await asyncio.sleep(max(0.01, min(end, self._next_look) - now))
            leaders.over(cluster, lead, lease)
        return {
            "status": "OK",
            "version": self._version,
            "instance": self._runtime.instance,
            "runtime": self._runtime.digest,
            "dask": distributed.__version__,
            "python": platform.python_version(),
            "idle": 0.0 if self._in_use() else time.monotonic() - self._used,
            **self._state,
        }

    @operation
    async def drain(
        self, *, lead: int, names: Any, lease: str | None = None, cluster: str | None = None, **_: Any
    ) -> Reply:
        self._runtime.leaders.of_cluster(cluster, lead, lease)
        known = self._by_name()
        self.drains.begin([known[name] for name in names if name in known])
        return {"status": "OK"}

    @operation
    async def retire(
        self, *, lead: int, names: Any, lease: str | None = None, cluster: str | None = None, **_: Any
    ) -> Reply:
        self._runtime.leaders.of_cluster(cluster, lead, lease)
        known = self._by_name()
        addresses = {name: known[name] for name in names if name in known}
        for address in addresses.values():
            worker = self._scheduler.workers[address]
            if leaving(worker) and not worker.processing:
                self._runtime.workers.tell(address, {"op": "daskade-retired"})
        await self.drains.finish(addresses.values())
        busy = [name for name, address in addresses.items() if address in self._scheduler.workers]
        return {"status": "OK", "closed": [name for name in names if name not in busy], "busy": busy}

    @operation
    async def leave(self, *, worker: str, **_: Any) -> Reply:
        """A worker that was told to end drains itself, and asks again until it is closed."""
        self.drains.begin([worker])
        await self.drains.finish([worker])
        known = self._scheduler.workers.get(worker)
        return {
            "status": "OK",
            "closed": known is None,
            "tasks": len(known.processing) if known is not None else 0,
        }

    @operation
    async def demand(self, *, run: str, epoch: int, asks: Any, **_: Any) -> Reply:
        self._runtime.live(run, epoch)
        self._asks[run] = [_checked(ask) for ask in asks]
        return {"status": "OK"}

    # ------------------------------------------------------------------ state

    def _by_name(self) -> dict[str, str]:
        return {str(worker.name): address for address, worker in self._scheduler.workers.items()}

    def _clients(self) -> int:
        own = (self._runtime.client.id, "fire-and-forget")
        return sum(
            1
            for client in self._scheduler.clients
            if client not in own and not str(client).startswith(_INNER_CLIENTS)
        )

    def _in_use(self) -> bool:
        used = bool(self._runtime.runs or self._clients() or demand.unfinished(self._scheduler))
        if used:
            self._used = time.monotonic()
        return used

    def _look(self) -> None:
        """Takes the state anew, unless the last look was a moment ago."""
        began = time.monotonic()
        if began < self._next_look:
            return
        self._asks = {run: asks for run, asks in self._asks.items() if run in self._runtime.runs}
        found, later = demand.wanted(self._scheduler, self._runtime.dispatcher, self._asks)
        state = {
            "workers": [self._worker(worker) for worker in self._scheduler.workers.values()],
            "demand": demand.rows(found, later),
            "runs": len(self._runtime.runs),
            "clients": self._clients(),
            "tasks": demand.unfinished(self._scheduler),
            "certificate": getattr(self._scheduler, "_daskade_certificate", None),
        }
        if state != self._state:
            self._state = state
            self._version += 1
        now = time.monotonic()
        self._next_look = now + max(LOOK, SHARE * (now - began))

    def _worker(self, worker: Any) -> dict[str, Any]:
        return {
            "name": str(worker.name),
            "address": worker.address,
            "status": getattr(worker.status, "name", str(worker.status)),
            "threads": int(worker.nthreads),
            "resources": {str(k): float(v) for k, v in (worker.resources or {}).items()},
            "tasks": len(worker.processing),
            "certificate": worker.metrics.get("daskade_certificate"),
        }


def _checked(ask: Any) -> dict[str, Any]:
    try:
        group = ask.get("group")
        resources = {str(k): float(v) for k, v in (ask.get("resources") or {}).items()}
        count, later = int(ask["count"]), int(ask.get("later", 0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused("BadRequest", f"an ask is malformed: {error}") from None
    if not 0 <= later <= count:
        raise Refused("BadRequest", f"an ask is for {count} tasks, {later} of them later")
    told = {"group": None if group is None else str(group), "resources": resources}
    return {**told, "count": count, "later": later}
