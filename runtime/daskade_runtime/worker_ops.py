"""What workers ask the scheduler about a run that is open there."""

from __future__ import annotations

from typing import Any

import msgpack

from daskade_runtime.operation import Reply, operation
from daskade_runtime.run import Refused


class WorkerOps:
    """Answers ``daskade-run`` and ``daskade-handle``."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def handlers(self) -> dict[str, Any]:
        return {"daskade-run": self.run_definition, "daskade-handle": self.handle}

    @operation
    async def run_definition(self, *, run: str, **_: Any) -> Reply:
        """What a worker needs of a run."""
        live = self.runtime.runs.get(run)
        if live is None:
            raise Refused("RunNotFound", f"run {run} is not open on this scheduler")
        return {
            "status": "OK",
            "epoch": live.epoch,
            "opening": live.state.opening,
            "steps": [step.fields for step in live.state.steps],
            "storage": live.storage,
            "code": live.code,
            "settings": live.settings,
            "requirements": live.requirements,
            "listen": live.events.listening,
        }

    @operation
    async def handle(self, *, run: str, s: int, i: int, **_: Any) -> Reply:
        """The full handle of an output, for workers: with the index that messages leave out."""
        live = self.runtime.runs.get(run)
        output = live.state.outputs.get((s, i)) if live is not None else None
        if output is None:
            raise Refused("NotFound", f"run {run} has no output of step {s}, item {i} here")
        return {"status": "OK", "handle": msgpack.unpackb(output.full, raw=False, strict_map_key=False)}
