"""The operation by which the driver learns what is at paths that steps name. Facts only: what they mean for a
task is said by the driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from daskade_runtime import kept
from daskade_runtime.commit import in_thread
from daskade_runtime.journal import check_run
from daskade_runtime.operation import Reply, operation
from daskade_runtime.storage import StorageError, Store, locate, open_store

# Requests to the storage at a time.
AT_ONCE = 16


class Looks:
    """Answers ``daskade-look``."""

    def handlers(self) -> dict[str, Any]:
        return {"daskade-look": self.look}

    @operation
    async def look(
        self, *, run: str, storage: Any, reads: Any = (), keeps: Any = (), pins: Any = None, **_: Any
    ) -> Reply:
        """Versions of what is at the paths ``reads``, for those in ``pins`` of the version with that id; of
        ``keeps``, ``[path, step, item]`` each, also whether an attempt of that task of the run has written
        it.
        """
        check_run(run)
        store = open_store(storage)
        others: dict[str, Store] = {}
        fixed: dict[str, str] = dict(pins or {})

        def version(path: str) -> str | None:
            try:
                where, key = locate(storage, path)
                at = store
                if where is not storage:
                    at = others.get(where["url"]) or others.setdefault(where["url"], open_store(where))
                found = at.look(key, fixed.get(path))
            except StorageError as error:
                if path in fixed and error.transient:
                    raise  # that it is not there ends the run
                return None  # the step that reads it waits, or says what is wrong
            return None if found is None else found.version

        def there(asked: Any) -> list[Any] | None:
            path, step, item = asked
            try:
                found, reply = kept.look(store, run, step, item, path)
            except StorageError as error:
                if error.reason == "InvalidKey":
                    return ["", False]  # a folder: something that no attempt has written
                raise
            return None if found is None else [found, reply is not None]

        return {
            "status": "OK",
            "reads": await _each(version, reads),
            "keeps": await _each(there, keeps),
            "pinned": True,
        }


async def _each(function: Callable[[Any], Any], items: Any) -> list[Any]:
    """``function`` of each, several at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(item: Any) -> Any:
        async with gate:
            return await in_thread(function, item)

    return list(await asyncio.gather(*(one(item) for item in items)))
