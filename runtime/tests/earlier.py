"""A run with two outputs, and what the scheduler reports about earlier runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.dask.local import Cluster
from support.dask.run import Run
from support.dask.steps import args, ref, step

STEPS = [
    step("base", "builtins:bytes", args(100_000), result=0),
    step("size", "builtins:len", args(ref(0, 0, -1, [])), result=1),
]


def a_run(dask: Cluster, store: Path, name: str = "test") -> Run:
    """Both steps, to the end."""
    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p", name=name).open()
    events = run.follow()
    run.submit((0, -1), (1, -1, None, [[0, -1]]))
    events.wait(lambda es: sum(len(e["tasks"]) for e in es if e["k"] == "committed") == 2)
    run.close()
    return run


def earlier(run: Run, pipeline: str = "p", wanted: str | None = None) -> list[dict[str, Any]]:
    storage = run.request["storage"]
    found = run.conn.rpc("daskade-earlier", run=run.uid, storage=storage, pipeline=pipeline, wanted=wanted)
    told: list[dict[str, Any]] = found["runs"]
    return told
