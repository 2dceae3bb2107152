"""Outputs of earlier runs: where those runs are, what they committed, and which of it a run takes over.

Facts only: which earlier output stands for which task is said by the driver.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import Any

from daskade_runtime.commit import in_thread
from daskade_runtime.events import now
from daskade_runtime.fetch import object_key
from daskade_runtime.fold import Folded
from daskade_runtime.journal import JournalError, check_run, read_all
from daskade_runtime.limits import EARLIER_RESULTS
from daskade_runtime.live import LiveRun
from daskade_runtime.operation import Reply, operation
from daskade_runtime.pages import value_of
from daskade_runtime.results import Away, size_of
from daskade_runtime.retention import origin_of, refer, removed
from daskade_runtime.run import Refused
from daskade_runtime.storage import Store, open_store

# Earlier runs that are read at most, newest first, and bytes of their journals: all is held in memory.
RUNS = 16
JOURNAL_BYTES = 64 << 20
# Outputs of these runs together, beyond those of the newest: the reply has to fit into one message.
OUTPUTS = 100_000
# Marks of runs that are looked through for one of a given name.
MARKS = 10_000
# Runs for which earlier ones were read and that were not opened yet.
KEPT = 64
_LAST_MILLISECOND = 10**13 - 1


def mark_key(pipeline: str, name: str, uid: str, t: float) -> str:
    """Key of the empty object by which a pipeline's runs are found: the newest run is first in order."""
    left = max(_LAST_MILLISECOND - int(t * 1000), 0)
    return f"pipelines/{_short(pipeline)}/{left:013d}-{_short(name)}-{check_run(uid)}"


def marks_of(store: Store, pipeline: str, run: str) -> list[str]:
    """Keys of the marks by which the pipeline's runs find ``run``."""
    listed = store.list(f"pipelines/{_short(pipeline)}")
    return [key for key, _ in listed if key.rpartition("/")[2].split("-", 2)[2:] == [run]]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Past:
    """An earlier run as its journal tells, and which of its outputs cannot be taken over: they are not in storage
    any more, or their results are more than is told."""

    uid: str
    folded: Folded
    gone: set[tuple[int, int]] = field(default_factory=set)
    #: When its outputs were removed.
    removed: float | None = None

    def told(self) -> dict[str, Any]:
        """What the driver decides by; handles stay here."""
        opened, folded = self.folded.opened, self.folded
        committed = folded.in_order()
        spec = opened.get("spec") or b""
        return {
            "uid": self.uid,
            "name": opened.get("name") or "",
            "spec": spec.encode() if isinstance(spec, str) else spec,
            "code": (opened.get("code") or {}).get("digest") or "",
            "committed": [
                [*task, v[0], v[5], None if task in self.gone else value_of(v[6])] for task, v in committed
            ],
            "lengths": [[step, n] for step, n in folded.lengths.items()],
            "skipped": [[step, item, why[0], why[1] or ""] for (step, item), why in folded.skipped.items()],
            "gone": [list(task) for task in self.gone],
            "named": [[step, item, v[1]["r"]] for (step, item), v in committed if v[1].get("r")],
            "made": [_made(v) for _, v in committed],
            "removed": self.removed,
        }


def read_past(
    store: Store, run: str, pipeline: str, wanted: str | None, results: int = EARLIER_RESULTS
) -> list[Past]:
    """Earlier runs of ``pipeline``, newest first; with ``wanted`` the newest of that name or uid alone.
    ``results``: bytes of results that are told of all of them.

    Of runs whose outputs were removed the newest is told, without outputs.
    """
    folder = f"pipelines/{_short(pipeline)}"
    uids: list[str] = []
    if wanted is not None:
        with contextlib.suppress(JournalError):
            uids.append(check_run(wanted))
    for seen, (key, _) in enumerate(store.list(folder)):
        left, _, rest = key.rpartition("/")[2].partition("-")
        name, _, uid = rest.partition("-")
        if left and uid and uid not in (run, *uids) and (wanted is None or name == _short(wanted)):
            uids.append(uid)
        if seen >= MARKS or len(uids) > 4 * RUNS:
            break
    found: list[Past] = []
    cleared: list[Past] = []
    room, outputs = JOURNAL_BYTES, OUTPUTS
    for uid in uids:
        if len(found) == (RUNS if wanted is None else 1):
            break
        # One that cannot be read is no reason not to run.
        with contextlib.suppress(JournalError):
            marks = removed(store, uid)
            if marks:
                if not cleared:
                    cleared.append(_cleared(store, uid, min(marks.values())))
                continue
            size = sum(size for _, size in store.list(f"runs/{check_run(uid)}/journal"))
            if size > room and found:
                break
            room -= size
            past = Past(uid, read_all(store, uid))
            count = len(past.folded.committed) + len(past.folded.skipped)
            if count > outputs and found:
                break
            outputs = max(0, outputs - count)
            found.append(past)
    _look_for_objects(store, found)
    _leave_results_out(found, results)
    return found + cleared


def _cleared(store: Store, uid: str, t: float) -> Past:
    """A run whose outputs are removed: its name at most."""
    folded = Folded()
    # Its journal may be gone too.
    with contextlib.suppress(JournalError):
        folded.opened = {"name": read_all(store, uid).opened.get("name")}
    return Past(uid, folded, removed=t)


def _look_for_objects(store: Store, found: list[Past]) -> None:
    """Notes outputs whose object is gone or has another size: one listing per folder of data."""
    sizes: dict[str, dict[str, int]] = {}
    for past in found:
        for task, (_, handle, *_rest) in past.folded.committed.items():
            if handle.get("b") is not None:
                continue
            key = object_key(past.uid, str(handle.get("u")))
            folder = "/".join(key.split("/")[:3])
            if folder not in sizes:
                sizes[folder] = dict(store.list(folder))
            if sizes[folder].get(key) != handle["z"]:
                past.gone.add(task)


def _leave_results_out(found: list[Past], room: int) -> None:
    """Notes outputs whose results, with those of newer runs, are more than there is room for; and those that are
    too many to be kept of one run.
    """
    for past in found:
        for task, committed in past.folded.committed.items():
            json = committed[6]
            room -= size_of(json)
            if json is not None and (room < 0 or isinstance(json, Away)):
                past.gone.add(task)


class Earlier:
    """The two operations, and what was read for runs that are about to begin or live."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self._known: dict[str, dict[str, Past]] = {}
        # (run, epoch) → pairs for which it has left references.
        self._referred: dict[tuple[str, int], set[tuple[str, str]]] = {}

    def handlers(self) -> dict[str, Any]:
        return {"daskade-earlier": self.earlier, "daskade-adopt": self.adopt}

    def forget(self, run: str) -> None:
        """The run is not open here any more."""
        self._known.pop(run, None)
        for key in [key for key in self._referred if key[0] == run]:
            del self._referred[key]

    @operation
    async def earlier(
        self,
        *,
        run: str,
        storage: Any,
        pipeline: str,
        wanted: str | None = None,
        results: int = EARLIER_RESULTS,
        lead: int | None = None,
        lease: str | None = None,
        **_: Any,
    ) -> Reply:
        """What earlier runs have committed."""
        self.runtime.leaders.of_run(run, lead, lease)
        found = await in_thread(read_past, open_store(storage), run, pipeline, wanted, results)
        self._known.pop(run, None)
        for waiting in [uid for uid in self._known if uid not in self.runtime.runs][:-KEPT]:
            del self._known[waiting]
        self._known[run] = {past.uid: past for past in found}
        return {"status": "OK", "runs": [past.told() for past in found]}

    @operation
    async def adopt(self, *, run: str, epoch: int, items: Any, **_: Any) -> Reply:
        """Takes outputs over: ``[step, item, their run, their step, their item]`` each. All or nothing."""
        live: LiveRun = self.runtime.live(run, epoch)
        known = self._known.get(run, {})
        taken = []
        for step, item, uid, past_s, past_i in items:
            past = known.get(uid)
            committed = past.folded.committed.get((past_s, past_i)) if past is not None else None
            told = committed is not None and not isinstance(committed[6], Away)
            if past is None or committed is None or not told or not 0 <= step < len(live.state.steps):
                raise Refused(
                    "NotFound", f"no output of step {past_s}, item {past_i} of run {uid} is known here"
                )
            taken.append(
                (step, item, past.folded.adopted.get((past_s, past_i), uid), _from(uid, committed), committed)
            )
        # The run whose object it is, and the one that it is taken from.
        pairs = {(origin_of(entry[3]), given[2]) for given, entry in zip(items, taken, strict=True)}
        await self._refer(live, {(origin, source) for origin, source in pairs if origin is not None})
        live = self.runtime.live(run, epoch)
        for step, item, origin, handle, (_, _, _, _, _, lens, json) in taken:
            if (step, item) not in live.state.outputs:
                live.adopt(step, item, handle, lens, json, origin)
        return {"status": "OK"}

    async def _refer(self, live: LiveRun, pairs: set[tuple[str, str]]) -> None:
        """Refers to the objects before they are committed, so that nobody removes them."""
        referred = self._referred.setdefault((live.uid, live.epoch), set())
        missing = pairs - referred
        if missing:
            await in_thread(refer, live.store, live.uid, live.epoch, missing)
            referred |= missing


def _made(committed: Any) -> float:
    """When the output was made: by the run that made it, not by those that took it over."""
    return float(committed[1].get("t") or committed[4])


def _from(uid: str, committed: Any) -> dict[str, Any]:
    """The handle as another run than ``uid`` reads it: its path is below the storage url."""
    handle = committed[1]
    path = handle.get("u")
    if path is not None and not path.startswith("/"):
        path = f"/runs/{uid}/{path}"
    return {**handle, "u": path, "w": None, "t": _made(committed)}


async def mark(store: Store, pipeline: str | None, name: str, uid: str) -> None:
    """Makes the run one that later runs of the pipeline find."""
    if pipeline:
        await in_thread(store.put, mark_key(pipeline, name, uid, now()), b"")
