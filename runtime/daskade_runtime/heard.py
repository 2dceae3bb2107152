"""Work that goes on by itself, and of whose failure nobody needs to hear: asyncio complains of it otherwise."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

log = logging.getLogger("distributed.daskade")


def heard(work: Any) -> asyncio.Future[Any]:
    """Starts ``work``."""
    task: asyncio.Future[Any] = asyncio.ensure_future(work)
    task.add_done_callback(_hear)
    return task


def _hear(task: asyncio.Future[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.debug("daskade: %s: %s", type(error).__name__, error)
