"""Threads of a worker that see to steps, out of the sight of Dask's profiler.

It looks at each busy thread a hundred times a second, and keeps what it saw of each second for a quarter of an hour or
more. Of a thread that waits for the process of a step it learns nothing about the step.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

# Keys of Dask's tasks whose threads are not looked at, by thread.
_hidden: dict[int, Any] = {}


@contextlib.contextmanager
def unprofiled(worker: Any) -> Iterator[None]:
    """This thread is not looked at meanwhile."""
    ident = threading.get_ident()
    with worker.active_threads_lock:
        key = worker.active_threads.pop(ident, None)
    if key is None:
        yield
        return
    _hidden[ident] = key
    try:
        yield
    finally:
        del _hidden[ident]
        with worker.active_threads_lock:
            worker.active_threads[ident] = key


@contextlib.contextmanager
def profiled(worker: Any) -> Iterator[None]:
    """Within ``unprofiled``: it is looked at after all, since it runs a step itself."""
    ident = threading.get_ident()
    key = _hidden.get(ident)
    if key is None:
        yield
        return
    with worker.active_threads_lock:
        worker.active_threads[ident] = key
    try:
        yield
    finally:
        with worker.active_threads_lock:
            worker.active_threads.pop(ident, None)
