"""Preload of a scheduler: answers what a worker asks of the scheduler side, and no more."""

import hashlib
import io
import os
import zipfile

RUNS = {}
HANDLES = {}
EVENTS = []


def archive():
    """The package under test as the scheduler side would ship it."""
    import daskade_runtime

    root = os.path.dirname(daskade_runtime.__file__)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in sorted(os.listdir(root)):
            if name.endswith(".py"):
                file.write(os.path.join(root, name), f"daskade_runtime/{name}")
    data = out.getvalue()
    return data, hashlib.sha256(data).hexdigest()


def dask_setup(scheduler):
    async def define(comm, run=None, definition=None, **_):
        RUNS[run] = definition
        return {"status": "OK"}

    async def ask(comm, run=None, **_):
        return RUNS.get(run) or {"status": "error", "reason": "RunNotFound", "message": "no such run"}

    async def set_handle(comm, run=None, s=0, i=0, handle=None, **_):
        HANDLES[run, s, i] = handle
        return {"status": "OK"}

    async def handle(comm, run=None, s=0, i=0, **_):
        return {"status": "OK", "handle": HANDLES.get((run, s, i))}

    async def events(comm, clear=False, **_):
        found = list(EVENTS)
        if clear:
            EVENTS.clear()
        return found

    async def tell(comm, worker=None, message=None, **_):
        scheduler.stream_comms[worker].send(message)
        return {"status": "OK"}

    def on_event(events=(), worker=None, **_):
        EVENTS.extend(dict(e, worker=worker) for e in events)

    scheduler.handlers.update(
        {
            "test-define": define,
            "daskade-run": ask,
            "test-handle": set_handle,
            "daskade-handle": handle,
            "test-events": events,
            "test-tell": tell,
        }
    )
    scheduler.stream_handlers["daskade-ev"] = on_event
