"""What a worker of a shared cluster keeps of runs that have ended: nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

from support.dask.local import cluster
from support.dask.run import Run
from support.dask.steps import args, code, step
from support.dask.workers import Cluster
from support.waiting import until

# Dask's own logs for developers are bounded by this; with a small one they are full soon.
LOG_LENGTH = "distributed.admin.low-level-log-length"
FIRST, LAST = 40, 140
# Of the last runs something may still be there when it is looked.
FEW = 4
LOOKS = 10


def test_a_worker_keeps_nothing_of_runs_that_have_ended(tmp_path: Path) -> None:
    """Issue 13, point 21."""

    def kept(dask_worker: Any) -> dict[str, Any]:
        """On the worker: how much there is of everything that could grow."""
        import gc

        state = dask_worker._daskade
        parts = {name: getattr(state, name) for name in ("cache", "definitions", "logs", "fetcher", "events", "bundles")}
        sizes = {"measured": len(dask_worker.digests_total)} if hasattr(dask_worker, "digests_total") else {}
        for name, part in {"state": state, "pool": state.pool, **parts}.items():
            sizes.update({f"{name}.{key}": len(value) for key, value in vars(part).items() if hasattr(value, "__len__")})
        children = [child for child in state.pool._all if child.defined]
        sizes["steps known to processes"] = sum(len(child.defined) for child in children)
        gc.collect()
        return {"sizes": sizes, "objects": len(gc.get_objects())}

    def spans(dask_scheduler: Any) -> tuple[int, int]:
        """In the scheduler: how many spans there are, and groups of tasks in them."""
        found = getattr(dask_scheduler.extensions.get("spans"), "spans", {})
        return len(found), sum(len(span.groups) for span in found.values())

    flow = code(flow="def inc(x):\n    print('inc', x)\n    return x + 1\n")
    # What the profiler keeps depends on the time that the runs take: it has a test of its own below.
    env = {
        "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "10",
        "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "10",
        "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    }
    with cluster(tmp_path, workers=1, env=env) as made, Client(made.address, set_as_default=False) as client:

        def run() -> None:
            steps = [step("inc", "flow:inc", args(x=1)), step("s", None, script="output = 'x' * 100_000")]
            run = Run(made.address, f"file://{tmp_path}/store", steps, code=flow).open()
            events = run.follow()
            run.submit((0, -1), (1, -1))
            events.wait_for("finished", 2)
            run.close()
            events.wait_for("closing")
            events.close()
            run.conn.close()

        def look() -> dict[str, Any]:
            (found,) = client.run(kept).values()
            return dict(found)

        def at_rest() -> dict[str, Any]:
            """What stays: of several looks the one with the fewest objects, since some are under way at any moment."""
            return min((look() for _ in range(LOOKS)), key=lambda found: int(found["objects"]))

        # What looking itself leaves behind is there before.
        at_rest()
        for _ in range(FIRST):
            run()
        before, spans_before = at_rest(), client.run_on_scheduler(spans)
        for _ in range(LAST - FIRST):
            run()
        # Connections of the last run may still be closing.
        left: dict[str, Any] = {}

        def keeps_nothing() -> bool:
            left.clear()
            left.update(grown(before, look()))
            return not left

        with contextlib.suppress(AssertionError):
            until("it keeps nothing", keeps_nothing, 60)
        assert not left
        assert [now - then for now, then in zip(client.run_on_scheduler(spans), spans_before, strict=True)] <= [0, FEW]


def grown(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What has become more, and how much more."""
    found = {name: (before["sizes"].get(name, 0), size) for name, size in after["sizes"].items()}
    found = {name: (was, size) for name, (was, size) in found.items() if size > was + FEW}
    more = after["objects"] - before["objects"]
    if dask.config.get(LOG_LENGTH, None) is not None and more >= (LAST - FIRST) / 2:
        found["objects"] = (before["objects"], after["objects"])
    return found


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_thread_that_waits_for_a_steps_process_is_not_profiled(cluster: Cluster, isolation: str) -> None:
    """What the profiler keeps of it would be most of what a busy worker keeps."""

    def looked_at(dask_worker: Any) -> int:
        """On the worker: threads that Dask's profiler sees now."""
        return len(dask_worker.active_threads)

    mine = {} if isolation == "process" else {"isolation": "thread"}
    run = cluster.open([step("nap", "time:sleep", args(1.0), **mine)])
    future = cluster.submit(run)
    until("the step starts", lambda: [e for e in cluster.events(run) if e["k"] == "started"], 20)
    seen = sum(cluster.client.run(looked_at).values())
    assert not future.done()
    assert seen == (1 if isolation == "thread" else 0)
    future.result(30)
    until("it is over", lambda: sum(cluster.client.run(looked_at).values()) == 0, 10)
