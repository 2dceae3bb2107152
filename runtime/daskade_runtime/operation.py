"""What an operation of the runtime answers, whatever becomes of it."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from daskade_runtime import versions
from daskade_runtime.journal import JournalError
from daskade_runtime.run import Refused
from daskade_runtime.storage import StorageError

log = logging.getLogger("distributed.daskade")

Reply = dict[str, Any]


def operation(handler: Callable[..., Awaitable[Reply]]) -> Callable[..., Awaitable[Reply]]:
    """Turns what a handler raises into the reply that the protocol knows."""

    signature = inspect.signature(handler)

    @functools.wraps(handler)
    async def wrapped(self: Any, comm: Any = None, **message: Any) -> Reply:
        message.pop("reply", None)
        try:
            signature.bind(self, **message)
        except TypeError as error:
            return {"status": "error", "reason": "BadRequest", "message": f"cannot call {handler.__name__}: {error}"}
        try:
            return await handler(self, **message)
        except (Refused, JournalError, StorageError) as error:
            return {"status": "error", "reason": error.reason, "message": str(error)}
        except versions.UnsupportedDask as error:
            return {"status": "error", "reason": "UnsupportedDask", "message": str(error)}
        except Exception as error:  # a reply is better than Dask's pickled exception
            log.exception("daskade: %s failed", handler.__name__)
            return {
                "status": "error",
                "reason": "Internal",
                "message": f"{type(error).__name__}: {error}"[:2000],
            }

    return wrapped
