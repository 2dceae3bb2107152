"""Preload of a scheduler: answers what a worker asks of the scheduler side, and no more."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable
from typing import Any

RUNS: dict[str, Any] = {}
HANDLES: dict[tuple[str, int, int], Any] = {}
EVENTS: list[dict[str, Any]] = []


def archive() -> tuple[bytes, str]:
    """The package under test as the scheduler side would ship it."""
    import daskade_runtime

    root = os.path.dirname(daskade_runtime.__file__)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in sorted(os.listdir(root)):
            if name.endswith(".py"):
                file.write(os.path.join(root, name), f"daskade_runtime/{name}")
    data = out.getvalue()
    return data, hashlib.sha256(data).hexdigest()


def dask_setup(scheduler: Any) -> None:
    async def define(comm: Any, run: str = "", definition: Any = None, **_: Any) -> Any:
        RUNS[run] = definition
        return {"status": "OK"}

    async def ask(comm: Any, run: str = "", **_: Any) -> Any:
        return RUNS.get(run) or {"status": "error", "reason": "RunNotFound", "message": "no such run"}

    async def set_handle(comm: Any, run: str = "", s: int = 0, i: int = 0, handle: Any = None, **_: Any) -> Any:
        HANDLES[run, s, i] = handle
        return {"status": "OK"}

    async def handle(comm: Any, run: str = "", s: int = 0, i: int = 0, **_: Any) -> Any:
        return {"status": "OK", "handle": HANDLES.get((run, s, i))}

    async def current(comm: Any, run: str = "", **_: Any) -> Any:
        return {"status": "OK", "current": run in RUNS}

    async def events(comm: Any, clear: bool = False, **_: Any) -> Any:
        found = list(EVENTS)
        if clear:
            EVENTS.clear()
        return found

    async def tell(comm: Any, worker: str = "", message: Any = None, **_: Any) -> Any:
        scheduler.stream_comms[worker].send(message)
        return {"status": "OK"}

    def on_event(events: Iterable[dict[str, Any]] = (), worker: str = "", **_: Any) -> None:
        EVENTS.extend(dict(e, worker=worker) for e in events)

    scheduler.handlers.update(
        {
            "test-define": define,
            "daskade-run": ask,
            "test-handle": set_handle,
            "daskade-handle": handle,
            "daskade-current": current,
            "test-events": events,
            "test-tell": tell,
        }
    )
    scheduler.stream_handlers["daskade-ev"] = on_event
