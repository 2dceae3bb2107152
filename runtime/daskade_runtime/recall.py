"""Results of steps that are not kept in memory, from the journal."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Set
from typing import Any

from daskade_runtime.journal import read_segment, unreadable
from daskade_runtime.results import size_of
from daskade_runtime.run import Task
from daskade_runtime.storage import Store

# Results of the segments read last are kept, up to so many bytes: who asks for one mostly asks for its neighbours.
KEPT = 8 << 20


class Recalled:
    """Reads results of one run. Blocks; thread-safe."""

    def __init__(self) -> None:
        self._segments: OrderedDict[int, dict[Task, Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, store: Store, run: str, away: Mapping[int, Set[Task]]) -> dict[Task, Any]:
        """JSON text of the results of tasks, which are given by the segment that commits them."""
        found: dict[Task, Any] = {}
        for seg, tasks in away.items():
            results = self._segment(store, run, seg)
            for task in tasks:
                if results.get(task) is None:
                    raise unreadable(run, seg, f"it has no result of step {task[0]}, item {task[1]}")
                found[task] = results[task]
        return found

    def _segment(self, store: Store, run: str, seg: int) -> dict[Task, Any]:
        with self._lock:
            if seg in self._segments:
                self._segments.move_to_end(seg)
                return self._segments[seg]
        results: dict[Task, Any] = {}
        for record in read_segment(store, run, seg).records:
            if record[0] == "committed" and record[9] is not None:
                results.setdefault((record[1], record[2]), record[9])
            elif record[0] == "invalidated":
                results.pop((record[1], record[2]), None)
        with self._lock:
            if seg not in self._segments:
                self._segments[seg] = results
                self._bytes += _bytes(results)
            while self._bytes > KEPT and len(self._segments) > 1:
                self._bytes -= _bytes(self._segments.popitem(last=False)[1])
        return results


def recall(store: Store, run: str, away: Mapping[int, Set[Task]]) -> dict[Task, Any]:
    """The same once."""
    return Recalled().read(store, run, away)


def _bytes(results: dict[Task, Any]) -> int:
    return sum(size_of(text) for text in results.values())
