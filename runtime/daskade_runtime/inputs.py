"""Which inputs an attempt needs and in which form: whole outputs, lists of them, single elements of list
outputs.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Any

from daskade_runtime import template
from daskade_runtime.cache import Entry
from daskade_runtime.definitions import Run
from daskade_runtime.errors import StepFailure
from daskade_runtime.execute import Descriptor
from daskade_runtime.fetch import Fetcher, Handle
from daskade_runtime.lost import Losses

# Indexes of list outputs that a worker keeps; one has 40 bytes per element.
_INDEXES_KEPT = 64


class Gatherer:
    """Turns the handles of a request into descriptors that a step process can read. Thread-safe."""

    def __init__(self, fetcher: Fetcher, ask_handle: Callable[[str, int, int], Any]) -> None:
        self._fetcher = fetcher
        self._ask_handle = ask_handle
        self._indexes: collections.OrderedDict[tuple[str, int, int, bytes], Handle] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def gather(
        self, run: Run, request: dict[str, Any], args: bytes, pins: list[Entry], stopped: Callable[[], bool]
    ) -> dict[str, Any]:
        """The request's inputs, as ``execute.Inputs.from_message`` takes them. Files stay pinned through
        ``pins``.
        """
        handles = {(step, item): handle for step, item, handle in request.get("h") or ()}
        lost = Losses()
        elements: dict[tuple[int, int, int], Descriptor] = {}
        ranged: set[tuple[int, int]] = set()
        if any(handle.get("n") is not None for handle in handles.values()):
            refs = [*template.references(request.get("v")), *template.references(args)]
            for ref in refs:
                task = (ref[1], ref[2]) if ref[0] == template.ELEMENT else None
                if task is None or handles.get(task, {}).get("n") is None:
                    continue
                ranged.add(task)
                handle = self._indexed(run, task, handles[task])
                with lost.of(task):
                    elements[(task[0], task[1], ref[3])] = self._fetcher.element(
                        run.uid, run.store, handle, ref[3], pins, stopped
                    )
            ranged.difference_update((ref[1], ref[2]) for ref in refs if ref[0] == template.OUTPUT)
        whole = [
            [*task, self._whole(run, task, handle, pins, stopped, lost)]
            for task, handle in handles.items()
            if task not in ranged
        ]
        every = [
            [int(step), [h and self._whole(run, (int(step), item), h, pins, stopped, lost) for item, h in enumerate(items)]]
            for step, items in (request.get("all") or {}).items()
        ]
        lost.tell()
        return {"h": whole, "all": every, "e": [[*key, descriptor] for key, descriptor in elements.items()]}

    def _whole(
        self,
        run: Run,
        task: tuple[int, int],
        handle: Handle,
        pins: list[Entry],
        stopped: Callable[[], bool],
        lost: Losses,
    ) -> Descriptor | None:
        handle = self._indexed(run, task, handle)
        with lost.of(task):
            return self._fetcher.whole(run.uid, run.store, handle, pins, stopped)
        return None

    def _indexed(self, run: Run, task: tuple[int, int], handle: Handle) -> Handle:
        """A list output's handle with its index, which the scheduler leaves out of most messages."""
        if handle.get("n") is None or handle.get("x") is not None:
            return handle
        key = (run.uid, *task, handle["d"])
        with self._lock:
            known = self._indexes.get(key)
        if known is None:
            reply = self._ask_handle(run.uid, *task)
            full = reply.get("handle") if isinstance(reply, dict) else None
            if not isinstance(full, dict) or not full.get("x"):
                raise StepFailure(
                    "infra", "MissingInput", f"the scheduler has no index of the list output {task}"
                )
            known = {"x": full["x"], "m": full.get("m")}
            with self._lock:
                self._indexes[key] = known
                while len(self._indexes) > _INDEXES_KEPT:
                    self._indexes.popitem(last=False)
        return {**handle, **known}
