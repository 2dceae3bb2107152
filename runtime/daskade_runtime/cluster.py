"""The operations of who runs the cluster, rather than a run on it: its state, draining, demand.

Each names the epoch of the leader that sends it; an older one than was heard before is refused.
"""

from __future__ import annotations

import asyncio
import json
import platform
import time
from collections import Counter
from typing import Any

import distributed

from daskade_runtime.operation import operation
from daskade_runtime.run import Refused

# The state is looked at so often while somebody waits for a change of it; a scan of 10 000 tasks takes some
# milliseconds.
LOOK = 1.0
WAIT_MOST = 60.0
# Dask makes a client's id of its class, its name and a number.
OWN_CLIENT = "-daskade-"


class ClusterView:
    """One per scheduler process, beside the runs."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._s = runtime.s
        self._lead = 0
        self._version = 0
        self._told = ""
        self._state: dict[str, Any] = {}
        self._looked = 0.0
        self._used = time.monotonic()
        self._asks: dict[str, list[dict[str, Any]]] = {}

    def handlers(self) -> dict[str, Any]:
        return {
            "daskade-cluster": self.watch,
            "daskade-drain": self.drain,
            "daskade-retire": self.retire,
            "daskade-demand": self.demand,
        }

    def _lead_of(self, lead: Any) -> None:
        if type(lead) is not int or lead < 0:
            raise Refused("BadRequest", "lead is a whole number")
        if lead < self._lead:
            raise Refused("StaleLeader", f"a leader with epoch {self._lead} was heard; this one has {lead}")
        self._lead = lead

    # ------------------------------------------------------------------ operations

    @operation
    async def watch(
        self, *, lead: int, since: int, wait: float, instance: str | None = None, **_: Any
    ) -> Any:
        self._lead_of(lead)
        end = time.monotonic() + min(max(float(wait), 0.0), WAIT_MOST)
        while True:
            self._look()
            if self._version > since or instance != self._runtime.instance or time.monotonic() >= end:
                break
            await asyncio.sleep(min(LOOK, max(0.01, end - time.monotonic())))
            if self._lead > lead:
                raise Refused("StaleLeader", f"a leader with epoch {self._lead} has taken over")
        return {
            "status": "OK",
            "version": self._version,
            "instance": self._runtime.instance,
            "runtime": self._runtime.digest,
            "dask": distributed.__version__,
            "python": platform.python_version(),
            "idle": 0.0 if self._busy() else time.monotonic() - self._used,
            "certificate": getattr(self._s, "_daskade_certificate", None),
            **self._state,
        }

    @operation
    async def drain(self, *, lead: int, names: Any, **_: Any) -> Any:
        self._lead_of(lead)
        found = [a for a, worker in self._s.workers.items() if worker.name in set(names)]
        if found:
            # The one-step form runs a task that is running a second time elsewhere.
            await self._s.retire_workers(workers=found, close_workers=False, remove=False)
        return {"status": "OK"}

    @operation
    async def retire(self, *, lead: int, names: Any, **_: Any) -> Any:
        self._lead_of(lead)
        known = {worker.name: worker for worker in self._s.workers.values()}
        done = [n for n in names if n in known and leaving(known[n]) and not known[n].processing]
        busy = [n for n in names if n in known and n not in done]
        if done:
            addresses = [known[n].address for n in done]
            for address in addresses:
                self._runtime.workers.tell(address, {"op": "daskade-retired"})
            await self._s.retire_workers(workers=addresses, close_workers=True, remove=True)
        return {"status": "OK", "closed": [n for n in names if n not in known or n in done], "busy": busy}

    @operation
    async def demand(self, *, run: str, epoch: int, asks: Any, **_: Any) -> Any:
        self._runtime._live(run, epoch)
        self._asks[run] = [_checked(ask) for ask in asks]
        return {"status": "OK"}

    # ------------------------------------------------------------------ state

    def _busy(self) -> bool:
        state = self._state
        return bool(state["runs"] or state["clients"] or state["tasks"])

    def _look(self) -> None:
        """Takes the state anew, at most once per ``LOOK``."""
        now = time.monotonic()
        if self._state and now - self._looked < LOOK / 2:
            return
        self._looked = now
        tasks, demand = self._tasks()
        self._asks = {run: asks for run, asks in self._asks.items() if run in self._runtime.runs}
        self._state = {
            "workers": [self._worker(worker) for worker in self._s.workers.values()],
            "demand": demand,
            "runs": len(self._runtime.runs),
            "clients": sum(1 for name in self._s.clients if not _own(name)),
            "tasks": tasks,
        }
        if self._busy():
            self._used = now
        certificate = getattr(self._s, "_daskade_certificate", None)
        told = json.dumps([self._state, self._busy(), certificate], sort_keys=True)
        if told != self._told:
            self._told = told
            self._version += 1

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

    def _tasks(self) -> tuple[int, list[dict[str, Any]]]:
        """How many tasks have not ended, and what those that can run now ask for."""
        dispatcher = self._runtime.dispatcher
        wanted: Counter[tuple[str | None, tuple[tuple[str, float], ...]]] = Counter()
        unfinished = 0
        for task in self._s.tasks.values():
            if task.state in ("waiting", "queued", "no-worker", "processing"):
                unfinished += 1
                if task.state != "waiting" and task.key not in dispatcher.flying:
                    wanted[None, _amounts(task.resource_restrictions)] += 1
        for group, resources, count in dispatcher.demand():
            wanted[group, _amounts(resources)] += count
        for asks in self._asks.values():
            for ask in asks:
                key = (ask["group"], _amounts(ask["resources"]))
                wanted[key] = max(wanted[key], ask["count"])
        rows = sorted(wanted.items(), key=repr)
        return unfinished, [{"group": g, "resources": dict(r), "count": n} for (g, r), n in rows if n > 0]


def leaving(worker: Any) -> bool:
    """Whether Dask's worker takes no further tasks because it is to go."""
    return getattr(worker.status, "name", "") in ("closing_gracefully", "closing")


def _own(client: str) -> bool:
    """Whether a client is part of the scheduler itself: ours, or the one that keeps what nobody waits for."""
    return client == "fire-and-forget" or OWN_CLIENT in client


def _amounts(resources: Any) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((str(k), float(v)) for k, v in (resources or {}).items()))


def _checked(ask: Any) -> dict[str, Any]:
    try:
        group = ask.get("group")
        resources = {str(k): float(v) for k, v in (ask.get("resources") or {}).items()}
        return {
            "group": None if group is None else str(group),
            "resources": resources,
            "count": int(ask["count"]),
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused("BadRequest", f"an ask is malformed: {error}") from None
