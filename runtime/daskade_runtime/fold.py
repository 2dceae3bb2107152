"""What the records of a journal add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .closing import Parts
from .limits import RESULTS_KEPT
from .reruns import Reruns
from .results import Away, size_of

# Fields of ``opened`` that describe the writer, not the run.
_RENEWED = ("epoch", "t", "runtime", "dask", "python")


@dataclass
class Folded:
    """What the records of a journal add up to."""

    opened: dict[str, Any] = field(default_factory=dict)
    """The first ``opened`` record (spec, code); ``epoch``, ``runtime``, ``dask``, ``python``, ``t`` of the
    last."""
    committed: dict[tuple[int, int], tuple[Any, ...]] = field(default_factory=dict)
    """(step, item) → (attempt, handle, worker, t0, t1, lens, json) of the first commit that was not invalidated. Of
    results beyond ``RESULTS_KEPT`` bytes ``json`` is an ``Away``, which says in which segment it is."""
    adopted: dict[tuple[int, int], str] = field(default_factory=dict)
    """(step, item) → run that made the output, for those of ``committed`` that an earlier run made."""
    lengths: dict[int, int] = field(default_factory=dict)
    skipped: dict[tuple[int, int], tuple[str, str | None]] = field(default_factory=dict)
    """(step, item) → (reason, message)."""
    refused: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    failed: list[tuple[Any, ...]] = field(default_factory=list)
    """(step, item, attempt, class, type, message, worker, t0, t1) in order."""
    lost: list[tuple[Any, ...]] = field(default_factory=list)
    """(step, item, attempt, worker, t) in order."""
    reruns: Reruns = field(default_factory=Reruns)
    """What was invalidated, and the order of what is committed."""
    final: dict[str, Any] | None = None
    epoch: int = 0
    seg: int = -1
    """Number of the last segment, -1 for none."""
    digest: bytes | None = None
    """Digest of the last segment."""
    parts: Parts = field(default_factory=Parts, compare=False)
    """Results of an end that has not come yet."""
    room: int = RESULTS_KEPT
    """Bytes of results that may still be kept."""

    def apply(self, records: Iterable[Any]) -> None:
        """Adds records in journal order. They must have passed ``check_record``; unknown kinds are left out.

        The first commit of a task wins until it is invalidated. An ``opened`` after ``final`` reopens the run:
        commits and lengths stay, what the closed run had given up (failures, losses, skips, refusals) does not.
        """
        for record in records:
            kind = record[0]
            if kind == "committed":
                _, step, item, attempt, handle, worker, t0, t1, lens, json = record[:10]
                if (step, item) not in self.committed:
                    self.room -= size_of(json)
                    if json is not None and self.room < 0:
                        json = Away(self.seg, size_of(json))
                    self.committed[step, item] = (attempt, handle, worker, t0, t1, lens, json)
                    self.reruns.committed((step, item), handle["d"])
                    if len(record) > 10 and type(record[10]) is str:
                        self.adopted[step, item] = record[10]
            elif kind == "invalidated":
                self._invalidate((record[1], record[2]), record[3], record[4])
            elif kind == "length":
                self.lengths.setdefault(record[1], record[2])
            elif kind == "failed":
                self.failed.append(tuple(record[1:10]))
            elif kind == "lost":
                self.lost.append(tuple(record[1:6]))
            elif kind == "skipped":
                self.skipped.setdefault((record[1], record[2]), (record[3], record[4]))
            elif kind == "refused":
                self.refused.setdefault((record[1], record[2]), (record[3], record[4]))
            elif kind == "result":
                self.parts.add(*record[1:5])
            elif kind == "final":
                if self.final is None:
                    self.final = self.parts.into(record[1])
                self.parts = Parts()
            elif kind == "opened":
                self.parts = Parts()
                if self.final is not None:
                    self.final = None
                    self.failed, self.lost = [], []
                    self.skipped, self.refused = {}, {}
                    self.reruns.reopened()
                if self.opened:
                    self.opened = {**self.opened, **{k: record[1].get(k) for k in _RENEWED if k in record[1]}}
                else:
                    self.opened = dict(record[1])

    def _invalidate(self, task: tuple[int, int], attempt: int, reason: str) -> None:
        handle = self.committed[task][1] if task in self.committed else {}
        self.reruns.invalidate(task, attempt, handle.get("d"), reason, self.committed)
        for facts in (self.committed, self.adopted, self.skipped, self.refused):
            facts.pop(task, None)
        if task[1] < 0:
            self.lengths.pop(task[0], None)

    def in_order(self) -> list[tuple[tuple[int, int], tuple[Any, ...]]]:
        """What is committed, so that nothing stands before what it was made from."""
        return self.reruns.in_order(self.committed)


def fold(records: Iterable[Any]) -> Folded:
    """What ``records`` of one journal, in order, add up to."""
    folded = Folded()
    folded.apply(records)
    return folded
