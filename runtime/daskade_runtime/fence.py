"""Whether somebody else has taken a run over that writes nothing, and would learn of it at its next write only."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from daskade_runtime.commit import in_thread
from daskade_runtime.journal import JournalError
from daskade_runtime.storage import StorageError

log = logging.getLogger("distributed.daskade")

# How often it is looked, in seconds.
CHECK = 20.0
# A look that fails so often in a row is told. An outage is not: that shows where it matters, at a write.
TOLD_AFTER = 3
# Who waits for storage then, as ``LiveRun.storage_told`` knows it.
WHO = "the look at the journal"


async def watch(runtime: Any) -> None:
    """Looks at the journals of all runs for as long as the scheduler lives."""
    failures: dict[str, int] = {}
    while not runtime.closing:
        await asyncio.sleep(CHECK)
        failures = {uid: count for uid, count in failures.items() if uid in runtime.runs}
        for live in list(runtime.runs.values()):
            if live.committer.idle and not live.troubles.keys() - {WHO}:
                await _look(live, failures)


async def _look(live: Any, failures: dict[str, int]) -> None:
    journal = live.journal
    try:
        await in_thread(journal.check)
    except JournalError as error:
        if live.journal is journal:
            live.on_broken(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and the run goes on
        log.debug("daskade: look at the journal of %s: %s", live.uid, error)
        if isinstance(error, StorageError) and error.transient:
            return
        failures[live.uid] = count = failures.get(live.uid, 0) + 1
        if count == TOLD_AFTER:
            reason = error.reason if isinstance(error, StorageError) else "Internal"
            message = f"cannot check whether another process has taken over the run: {type(error).__name__}: {error}"
            log.warning("daskade: run %s: %s, %d times in a row", live.uid, message, count)
            live.storage_told(WHO, reason, message)
    else:
        if failures.pop(live.uid, 0) >= TOLD_AFTER:
            live.storage_told(WHO, "", "")
