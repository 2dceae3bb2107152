"""What the scheduler knows of one run: attempts, outputs, and which attempt waits for which output.

Bookkeeping only. Which attempt exists, what it waits for and what a failure means is said by the driver; here
an attempt whose inputs exist is handed on, nothing else.
"""

from __future__ import annotations

import hashlib
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgpack

from daskade_runtime.results import Away

Task = tuple[int, int]
Address = tuple[int, int, int]

#: ``[step, ALL, n]`` as a dependency means the n items of a mapped step; a plain item is never below -1.
ALL = -2

#: List outputs up to this length carry their index in the handle.
INDEX_INLINE = 32

WAITING, READY, SENT, RUNNING, STOPPING, GONE = range(6)

# Fields of a handle that nobody needs who reads the output.
_NOT_SENT = ("r", "t")
_NIL = msgpack.packb(None)


class Refused(Exception):
    """A request that cannot be carried out; ``reason`` is a documented reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Attempt:
    """One submitted attempt of a task."""

    __slots__ = (
        *(
            "run",
            "step",
            "item",
            "number",
            "priority",
            "order",
            "values",
            "data",
            "left",
            "state",
            "sends",
            "group",
        ),
        *("worker", "flight", "stop_timer", "counted", "unlucky", "queued"),
    )

    def __init__(
        self, run: RunState, step: int, item: int, attempt: int, priority: int, values: bytes | None, data: Any
    ) -> None:
        self.run = run
        self.step, self.item, self.number = step, item, attempt
        self.priority = priority
        self.order = 0
        self.values = values
        self.data = data
        self.left = 0
        self.state = WAITING
        self.sends = 0
        self.group: Any = None
        self.worker: str | None = None
        self.flight: Any = None
        self.stop_timer: Any = None
        self.counted = 0
        self.unlucky = 0
        self.queued = False

    @property
    def address(self) -> Address:
        return (self.step, self.item, self.number)


class Output:
    """A finished output: the handle packed as it goes to workers, and what the driver wants to know of it.
    ``json`` is its result as JSON text, where that is in the journal, or None if it has none.

    The index of a long list output (40 bytes per element) would otherwise travel with each of its consumers:
    workers fetch it once instead.
    """

    __slots__ = ("attempt", "handle", "full", "lens", "json", "committed", "holder", "size", "named", "digest", "path")

    def __init__(self, attempt: int, handle: Any, lens: Any, json: str | Away | None, committed: bool) -> None:
        self.attempt = attempt
        # The worker that has it as a file.
        self.holder: str | None = handle.get("w")
        self.size: int = handle.get("z") or 0
        self.digest: bytes = handle["d"]
        self.path: str | None = handle.get("u")
        #: ``[path, version]`` of objects that the task named.
        self.named: list[list[str]] = handle.get("r") or []
        self.full: bytes = _pack(handle)
        n = handle.get("n")
        short = {name: value for name, value in handle.items() if name not in _NOT_SENT}
        if n is not None and n > INDEX_INLINE:
            short.update(x=None, m=None)
        self.handle = self.full if short == handle else _pack(short)
        self.lens = lens
        self.json = json
        self.committed = committed


class StepDef:
    """One step of the run, as the driver defined it; the rest of the map is for the workers."""

    __slots__ = ("fields", "name", "function", "resources", "group", "gpu_ok", "pace")

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.name = str(fields.get("name") or "step")
        call = fields.get("call") or "script"
        # Dask keeps a record per leading words of a key for ever and learns durations by it.
        self.function = re.sub(r"\W", "_", call.rpartition(":")[2].rpartition(".")[2])[:64] or "step"
        self.resources = {str(k): float(v) for k, v in (fields.get("resources") or {}).items() if v}
        self.group = fields.get("group") or None
        self.gpu_ok = bool(fields.get("gpu_ok"))
        self.pace: Any = None  # the dispatcher's


class RunState:
    """Attempts, outputs and what waits for what. ``on_ready`` is told each attempt whose inputs exist.

    ``opening`` tells its attempts from those of the same addresses before the run was left and opened anew.
    """

    def __init__(
        self, uid: str, steps: Iterable[dict[str, Any]], on_ready: Callable[[Attempt], None], opening: int = 0
    ) -> None:
        self.uid = uid
        self.opening = opening
        self.short = hashlib.sha256(f"{uid} {opening}".encode()).hexdigest()[:8]
        self.steps = [StepDef(fields) for fields in steps]
        self.on_ready = on_ready
        self.current: dict[Task, Attempt] = {}
        self.outputs: dict[Task, Output] = {}
        #: How often a task's output was forgotten.
        self.again: Counter[Task] = Counter()
        self._done: set[Task] = set()
        self._settled: dict[int, int] = {}
        self._whole: set[int] = set()
        self._version: dict[int, int] = {}
        self._waiting: dict[Task, list[Attempt]] = {}
        self._waiting_all: dict[int, dict[int, list[Attempt]]] = {}
        self._lists: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._held: dict[tuple[int, int], tuple[int, Counter[str]]] = {}

    def submit(self, fields: Any) -> Attempt | None:
        """Takes an attempt. None if it is known already or an older one than the current; ``Refused`` if
        malformed.
        """
        try:
            step, item, number, priority, values, data, after = fields
        except (TypeError, ValueError):
            why = "expected 7 fields"
            raise Refused("BadRequest", f"cannot submit {reprlib.repr(fields)}: {why}") from None
        if not all(type(x) is int for x in (step, item, number, priority)) or item < -1 or number < 1:
            why = "step, item, attempt and priority must be whole numbers, item at least -1, attempt at least 1"
            raise Refused("BadRequest", f"cannot submit {reprlib.repr(fields)}: {why}")
        if not 0 <= step < len(self.steps):
            raise Refused("BadRequest", f"there is no step {step}")
        known = self.current.get((step, item))
        if known is not None and known.number >= number:
            return None
        done = self.outputs.get((step, item))
        if done is not None and (done.committed or done.attempt >= number):
            return None
        for dep in (*data, *after):
            if (
                len(dep) not in (2, 3)
                or not 0 <= dep[0] < len(self.steps)
                or (dep[1] == ALL) != (len(dep) == 3)
            ):
                raise Refused("BadRequest", f"dependency {list(dep)!r} of step {step} is malformed")
        attempt = Attempt(self, step, item, number, priority, values, data)
        self.current[step, item] = attempt
        for dep in (*data, *after):
            attempt.left += self._wait(dep, attempt)
        if attempt.left == 0:
            attempt.state = READY
            self.on_ready(attempt)
        return attempt

    def _wait(self, dep: Any, attempt: Attempt) -> int:
        if len(dep) == 2:
            task = (dep[0], dep[1])
            if task in self._done or dep[0] in self._whole:
                return 0
            self._waiting.setdefault(task, []).append(attempt)
            return 1
        step, _, n = dep
        if self._settled.get(step, 0) >= n or step in self._whole:
            return 0
        self._waiting_all.setdefault(step, {}).setdefault(n, []).append(attempt)
        return 1

    def find(self, step: int, item: int, number: int) -> Attempt | None:
        """The attempt, if it is the task's current one and not gone."""
        attempt = self.current.get((step, item))
        return attempt if attempt is not None and attempt.number == number and attempt.state != GONE else None

    def finish(self, step: int, item: int, output: Output) -> None:
        """Keeps an output and hands on what waited for it."""
        self.outputs[step, item] = output
        self.current.pop((step, item), None)
        self._version[step] = self._version.get(step, 0) + 1
        self._settle((step, item))

    def hole(self, step: int, item: int) -> None:
        """The task will have no output (skipped, refused): order-only and list dependents count it as
        settled.
        """
        if (step, item) in self.outputs:
            return
        if item < 0:
            for task in [t for t in self._waiting if t[0] == step]:
                self._hand_on(self._waiting.pop(task))
        self._settle((step, item))

    def forget(self, step: int, item: int) -> None:
        """The task has no output any more, or is no hole: what waits for it from now on waits until it has one."""
        self.outputs.pop((step, item), None)
        self.again[step, item] += 1
        self._version[step] = self._version.get(step, 0) + 1
        if (step, item) in self._done:
            self._done.discard((step, item))
            if item < 0:
                self._whole.discard(step)
            else:
                self._settled[step] -= 1

    def _settle(self, task: Task) -> None:
        step, item = task
        new = task not in self._done
        self._done.add(task)
        self._hand_on(self._waiting.pop(task, ()))
        if item < 0:
            # An unmapped step, or a mapped one as a whole: nothing of it will come later.
            self._whole.add(step)
            for attempts in self._waiting_all.pop(step, {}).values():
                self._hand_on(attempts)
        elif new:
            count = self._settled[step] = self._settled.get(step, 0) + 1
            queues = self._waiting_all.get(step, {})
            for n in [n for n in queues if n <= count]:
                self._hand_on(queues.pop(n))

    def _hand_on(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            attempt.left -= 1
            if attempt.left == 0 and attempt.state == WAITING:
                attempt.state = READY
                self.on_ready(attempt)

    def blob(self, attempt: Attempt, epoch: int, digest: str) -> bytes:
        """What ``run_step`` gets: the attempt's address and values, and the handles of its inputs."""
        pack = _pack
        singles: list[bytes] = []
        lists: list[bytes] = []
        seen = set()
        for dep in attempt.data:
            if len(dep) == 2:
                output = self.outputs.get((dep[0], dep[1]))
                if output is not None:
                    singles.append(b"\x93" + pack(dep[0]) + pack(dep[1]) + output.handle)
            elif dep[0] not in seen:
                seen.add(dep[0])
                lists.append(pack(dep[0]) + self._list(dep[0], dep[2]))
        head = {
            "run": self.uid,
            "e": epoch,
            "s": attempt.step,
            "i": attempt.item,
            "a": attempt.number,
            "o": self.opening,
            "v": attempt.values,
            "d": digest,
        }
        packer = msgpack.Packer(use_bin_type=True)
        parts = [packer.pack_map_header(len(head) + 2)]
        for key, value in head.items():
            parts += (pack(key), pack(value))
        parts += (pack("h"), packer.pack_array_header(len(singles)), *singles)
        parts += (pack("all"), packer.pack_map_header(len(lists)), *lists)
        return b"".join(parts)

    def held(self, attempt: Attempt) -> Counter[str]:
        """Bytes of the attempt's inputs that workers hold, by the workers' addresses."""
        found: Counter[str] = Counter()
        for dep in attempt.data:
            if len(dep) == 3:
                found.update(self._held_of_list(dep[0], dep[2]))
                continue
            output = self.outputs.get((dep[0], dep[1]))
            if output is not None and output.holder is not None:
                found[output.holder] += output.size
        return found

    def _held_of_list(self, step: int, n: int) -> Counter[str]:
        version = self._version.get(step, 0)
        known = self._held.get((step, n))
        if known is not None and known[0] == version:
            return known[1]
        found: Counter[str] = Counter()
        for item in range(n):
            output = self.outputs.get((step, item))
            if output is not None and output.holder is not None:
                found[output.holder] += output.size
        if len(self._held) > 8:
            self._held.clear()
        self._held[step, n] = (version, found)
        return found

    def _list(self, step: int, n: int) -> bytes:
        # A fan-out over a fan-in asks for the same list again and again.
        version = self._version.get(step, 0)
        known = self._lists.get((step, n))
        if known is not None and known[0] == version:
            return known[1]
        handles = []
        for item in range(n):
            output = self.outputs.get((step, item))
            handles.append(_NIL if output is None else output.handle)
        data: bytes = msgpack.Packer().pack_array_header(n) + b"".join(handles)
        if len(self._lists) > 8:
            self._lists.clear()
        self._lists[step, n] = (version, data)
        return data


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
