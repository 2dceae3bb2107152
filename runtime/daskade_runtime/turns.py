"""Whether an attempt is still the one that its task waits for, as its worker asks before it replaces an object.

A worker that was frozen, or cut off, does not know that its attempts were given up and that others have done
their work since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daskade_runtime.errors import StepFailure
from daskade_runtime.operation import Reply, operation


class Turns:
    """Answers ``daskade-current``."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def handlers(self) -> dict[str, Any]:
        return {"daskade-current": self.current}

    @operation
    async def current(self, *, run: str, s: int, i: int, a: int, o: int, w: str, **_: Any) -> Reply:
        """Whether the attempt, of this opening of the run, is the task's, and at the worker with this address."""
        live = self.runtime.runs.get(run)
        return {"status": "OK", "current": live is not None and live.is_current(s, i, a, o, w)}


def check(call: Callable[..., Any], task: tuple[str, int, int, int, int], address: str) -> None:
    """Asks the scheduler by ``call``; a failure if the attempt is not its task's any more, or nobody says so."""
    run, step, item, attempt, o = task
    try:
        reply = call("daskade-current", run=run, s=step, i=item, a=attempt, o=o, w=address)
        known = reply["current"]
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        message = f"could not confirm with the scheduler that this attempt is still current: {cause}"
        raise StepFailure("infra", "SchedulerUnreachable", message) from error
    if known is not True:
        raise StepFailure("stopped", "Stopped", "the attempt was abandoned; its output was not written")
