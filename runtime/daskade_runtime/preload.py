"""``dask scheduler --preload daskade_runtime.preload``: the runtime is there before the first worker."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from daskade_runtime.install import install

log = logging.getLogger("distributed.daskade")


def dask_setup(server: Any) -> None:
    """Called by Dask while the scheduler starts. A client needs a scheduler that answers: so finish behind
    it.
    """
    if type(server).__name__ == "Scheduler":
        server.loop.add_callback(_install, server)


async def _install(scheduler: Any) -> None:
    while True:
        status = getattr(scheduler.status, "name", scheduler.status)
        if status == "running":
            break
        if status in ("closing", "closed", "failed", "stopped"):
            return
        await asyncio.sleep(0.02)
    try:
        await install(scheduler)
    except Exception:
        log.exception("daskade: the runtime could not be installed")
