"""Tasks with several attempts while they run here: what waits behind a slow attempt is handed back.

That attempts of a step are short is learnt from earlier ones; the next may take hours. Those behind it must
not wait for it while other slots are free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

# Bundles are made to take a fraction of this.
PATIENCE = 0.25

Task = tuple[str, int, int, int]


class Bundle:
    """One such task."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.since = time.monotonic()
        self._waiting = dict.fromkeys(tasks)
        self._lock = threading.Lock()

    def take(self, task: Task) -> bool:
        """Whether the attempt is still to be run here; it is not handed back any more."""
        with self._lock:
            if task not in self._waiting:
                return False
            del self._waiting[task]
            return True

    def give_back(self) -> list[Task]:
        """The attempts that have not begun; they will not."""
        with self._lock:
            waiting, self._waiting = list(self._waiting), {}
            return waiting


class Bundles:
    """All of a worker's. ``post`` sends an event to the scheduler."""

    def __init__(self, post: Callable[[dict[str, Any]], None]) -> None:
        self._post = post
        self._running: set[Bundle] = set()

    def begin(self, tasks: Iterable[Task]) -> Bundle:
        bundle = Bundle(tasks)
        self._running.add(bundle)
        return bundle

    def end(self, bundle: Bundle) -> None:
        self._running.discard(bundle)

    def look(self) -> None:
        """Hands back what has waited too long; called by the worker's loop every now and then."""
        late = time.monotonic() - PATIENCE
        for bundle in [b for b in self._running.copy() if b.since < late]:
            for run, step, item, attempt in bundle.give_back():
                self._post({"k": "back", "run": run, "s": step, "i": item, "a": attempt})
