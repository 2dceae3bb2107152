"""The task that Dask runs: ``worker.run_step`` for each attempt in it, with the answers sent ahead.

An answer goes to the scheduler as a ``ran`` event on the worker's stream, ahead of Dask's own message that
the task is done, which carries no data. That saves a fetch per step, and the answer of a task that Dask has
already dropped (it was stopped, say) still arrives. Should the event not be possible, the answers are the
task's result, and are fetched.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
from distributed import get_worker

from daskade_runtime.worker import run_step


def run_attempts(message: bytes) -> bytes | None:
    """Runs the attempts in ``message``, msgpack ``[[run, step, item, attempt, blob], …]``, in order.

    None if the scheduler has been told of all of them, else msgpack ``[[run, step, item, attempt, answer],
    …]`` of those that it has not been told.
    """
    rows = msgpack.unpackb(message)
    worker: Any = None
    with contextlib.suppress(Exception):  # the worker is closing, or not set up: each attempt says so
        worker = get_worker()._daskade
    bundle = worker.bundles.begin([tuple(row[:4]) for row in rows]) if worker and len(rows) > 1 else None
    untold = []
    try:
        for run, step, item, attempt, blob in rows:
            if bundle is not None and not bundle.take((run, step, item, attempt)):
                continue  # handed back, and on its way to another slot
            answer = run_step(blob)
            try:
                worker.events.post({"k": "ran", "run": run, "s": step, "i": item, "a": attempt, "answer": answer})
            except Exception:  # noqa: BLE001 - the worker is closing: Dask carries the answer
                untold.append([run, step, item, attempt, answer])
    finally:
        if bundle is not None:
            worker.bundles.end(bundle)
    return msgpack.packb(untold, use_bin_type=True) if untold else None
