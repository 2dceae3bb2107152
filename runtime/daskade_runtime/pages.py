"""What a driver needs to go on with a run, handed out page by page."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from daskade_runtime.closing import closing
from daskade_runtime.commit import in_thread
from daskade_runtime.fold import Folded
from daskade_runtime.operation import Reply, operation
from daskade_runtime.recall import recall
from daskade_runtime.results import Away, size_of
from daskade_runtime.run import Refused, Task

# Bytes of a page, and its values outside of results, as far as its rows are small; a reader takes more.
PAGE = 1 << 20
PAGE_VALUES = 50_000
# Snapshots that somebody has begun to read.
OPEN = 64

# In this order a driver can go on from each page: what an entry refers to stands before it.
_DONE = ("committed", "finished")
_ORDER = (
    *("lengths", "invalidated", "changed", "adopted", "named", "committed", "skipped", "refused"),
    *("failed", "lost", "submitted", "finished", "results"),
)


class Told(NamedTuple):
    """An output as far as a driver wants to know of it."""

    attempt: int
    lens: Any
    json: str | bytes | Away | None


class Snapshot:
    """A run at one moment: lists of entries by field. Those of ``committed`` and ``finished`` are ``(task,
    output)``."""

    def __init__(self, final: dict[str, Any] | None = None, **fields: list[Any]) -> None:
        self.final = final
        self.fields = fields

    def pages(self) -> Iterator[dict[str, Any]]:
        """Pages, at least one. Results that are not in memory stand there as their number of bytes."""
        page: dict[str, Any] = {"final": self.final} if self.final is not None else {}
        room, values = PAGE, PAGE_VALUES
        filled = False
        for name in _ORDER:
            for entry in self.fields.get(name, ()):
                row, size, count = _row(name, entry)
                room -= size
                values -= count
                if filled and (room < 0 or values < 0):
                    yield page
                    page, room, values = {}, PAGE - size, PAGE_VALUES - count
                page.setdefault(name, []).append(row)
                filled = True
        yield page

    def away(self) -> dict[int, set[Task]]:
        """Tasks whose results are not in memory, by the segments that have them."""
        found: dict[int, set[Task]] = {}
        for name in _DONE:
            for task, output in self.fields.get(name, ()):
                if isinstance(output.json, Away):
                    found.setdefault(output.json.seg, set()).add(task)
        return found

    def whole(self, texts: dict[Task, Any]) -> dict[str, Any]:
        """All of it in one; ``texts`` are the results that are not in memory."""
        whole: dict[str, Any] = {name: [] for name in _ORDER if name != "results"}
        for name in whole:
            for entry in self.fields.get(name, ()):
                row = _row(name, entry)[0]
                if name in _DONE and type(row[4]) is int:
                    row[4] = value_of(texts.get(entry[0]))
                whole[name].append(row)
        return {**whole, "final": self.final}


def _row(name: str, entry: Any) -> tuple[list[Any], int, int]:
    """A row as it goes over the wire, about its bytes, and its values outside of a result."""
    if name in _DONE:
        (step, item), output = entry
        size, count = size_of(output.json), len(output.lens or ())
        if isinstance(output.json, Away):
            return [step, item, output.attempt, output.lens, size], 30 + 5 * count, 8 + count
        return [step, item, output.attempt, output.lens, value_of(output.json)], 30 + 5 * count + size, 8 + count
    row = list(entry)
    if name == "named":
        return row, 30 + sum(len(path) + len(version) + 20 for path, version in row[2]), 5 + 3 * len(row[2])
    return row, 30 + sum(_bytes(value) for value in row), 1 + len(row)


def _bytes(value: Any) -> int:
    if type(value) is not str:
        return 9
    return 5 + (len(value) if value.isascii() else 4 * len(value))


def value_of(text: str | bytes | None) -> list[Any] | None:
    """A step's small result as it goes over the wire: a list of it alone."""
    return None if text is None else [json.loads(text)]


def closed(folded: Folded, where: str) -> Snapshot:
    """Of a run that has ended: how. ``where``: the URL of the journal."""
    *parts, last = closing(folded.final or {}, where)
    return Snapshot(last[1], results=[part[1:] for part in parts])


def closed_whole(folded: Folded) -> Snapshot:
    """The same for those who ask for no pages, with all that became of the run."""
    return Snapshot(
        folded.final,
        lengths=list(folded.lengths.items()),
        committed=[(task, Told(v[0], v[5], v[6])) for task, v in folded.in_order()],
        skipped=[(*task, *why) for task, why in folded.skipped.items()],
        refused=[(*task, *why) for task, why in folded.refused.items()],
        failed=[failed[:4] for failed in folded.failed],
        lost=[lost[:3] for lost in folded.lost],
    )


class Snapshots:
    """The operations by which drivers read on, and the snapshots that they are reading."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        # Token → (run, number of the page that comes next, that page, further ones).
        self._open: dict[str, tuple[str, int, dict[str, Any], Iterator[dict[str, Any]]]] = {}

    def handlers(self) -> dict[str, Any]:
        return {"daskade-snapshot": self.snapshot, "daskade-results": self.results}

    def forget(self, run: str) -> None:
        """Nobody reads on in a snapshot of this run."""
        for token in [token for token, entry in self._open.items() if entry[0] == run]:
            del self._open[token]

    async def first(self, run: str, snapshot: Snapshot, paged: bool, store: Any) -> Reply:
        """What an opening answers of a snapshot: its first page, or all of it for one who knows no pages."""
        if not paged:
            texts = await in_thread(recall, store, run, snapshot.away())
            return {"snapshot": snapshot.whole(texts)}
        self.forget(run)
        pages = snapshot.pages()
        page, following = next(pages), next(pages, None)
        token = None
        if following is not None:
            token = uuid.uuid4().hex
            self._open[token] = (run, 1, following, pages)
            while len(self._open) > OPEN:
                del self._open[next(iter(self._open))]
        return {"snapshot": page, "more": token, "keeps": True}

    @operation
    async def snapshot(self, *, run: str, token: str, page: int, **_: Any) -> Reply:
        """The next page of a snapshot."""
        uid, number, found, pages = self._open.pop(token, ("", 0, {}, iter(())))
        if (uid, number) != (run, page):
            message = f"page {page} of the snapshot of run {run} has expired; open the run again"
            raise Refused("Gap", message)
        following = next(pages, None)
        if following is not None:
            self._open[token] = (run, page + 1, following, pages)
        return {"status": "OK", "snapshot": found, "more": token if following is not None else None}

    @operation
    async def results(self, *, run: str, epoch: int, tasks: Any, **_: Any) -> Reply:
        """Results of tasks, in this order, as many as fit into a page: ``[step, item, [result]]`` each."""
        live = self.runtime.live(run, epoch)
        wanted: dict[Task, str | Away] = {}
        room = PAGE
        for step, item in tasks:
            output = live.state.outputs.get((step, item))
            if output is None or output.json is None:
                raise Refused("NotFound", f"run {run} has no result of step {step}, item {item} here")
            room -= size_of(output.json)
            if room < 0 and wanted:
                break
            wanted[step, item] = output.json
        texts = await self.texts(live, wanted)
        return {"status": "OK", "results": [[*task, value_of(text)] for task, text in texts.items()]}

    async def texts(self, live: Any, wanted: dict[Task, Any]) -> dict[Task, Any]:
        """JSON texts of results, wherever they are, in this order."""
        away: dict[int, set[Task]] = {}
        for task, json_ in wanted.items():
            if isinstance(json_, Away):
                away.setdefault(json_.seg, set()).add(task)
        read = await in_thread(live.recalled.read, live.store, live.uid, away) if away else {}
        return {task: read.get(task, json_) for task, json_ in wanted.items()}
