"""The task that Dask runs: ``worker.run_step``, with its answer sent ahead.

The answer goes to the scheduler as a ``ran`` event on the worker's stream, ahead of Dask's own message that
the task is done, which carries no data. That saves a fetch per step, and the answer of a task that Dask has
already dropped (it was stopped, say) still arrives. Should the event not be possible, the answer is the
task's result, and is fetched.
"""

from __future__ import annotations

import msgpack
from distributed import get_worker

from daskade_runtime.worker import run_step


def run_attempt(address: bytes, blob: bytes) -> bytes | None:
    """Runs the attempt in ``blob``; ``address`` is msgpack ``[run, step, item, attempt]`` of the same
    attempt.
    """
    answer = run_step(blob)
    try:
        events = get_worker()._daskade.events
        run, s, i, a = msgpack.unpackb(address)
        events.post({"k": "ran", "run": run, "s": s, "i": i, "a": a, "answer": answer})
        return None
    except Exception:  # noqa: BLE001 - the worker is closing, or not set up: Dask carries the answer
        return answer
