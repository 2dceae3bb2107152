"""What was committed and counts no more, and where what is committed stands.

Facts only: what runs again because of them is said by the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

V = TypeVar("V")
Task = tuple[int, int]

#: Why something was invalidated: the output itself was lost.
LOST = "OutputLost"


@dataclass
class Reruns:
    """Costs nothing before something was invalidated."""

    invalidated: dict[Task, tuple[int, bool]] = field(default_factory=dict)
    """(step, item) → the attempt that had been committed, 0 for none; whether its output was lost."""
    changed: dict[Task, None] = field(default_factory=dict)
    """Tasks that were made again and have another output than before."""
    _digests: dict[Task, bytes] = field(default_factory=dict)
    _places: dict[Task, int] | None = None
    _next: int = 0

    def invalidate(
        self, task: Task, attempt: int, digest: bytes | None, reason: str, committed: Iterable[Task]
    ) -> None:
        """What ``attempt`` had committed counts no more. ``committed``: all that is committed, in order."""
        if self._places is None:
            self._places = {other: place for place, other in enumerate(committed)}
            self._next = len(self._places)
        before, lost = self.invalidated.get(task, (0, False))
        self.invalidated[task] = (max(before, attempt), lost or reason == LOST)
        if digest is not None:
            self._digests[task] = digest

    def committed(self, task: Task, digest: bytes) -> bool:
        """Gives what is committed its place: with the same output as before the one that it had. Says whether it
        has another one.
        """
        if self._places is None:
            return False
        before = self._digests.get(task)
        if before == digest and task in self._places:
            return False
        self._places[task] = self._next
        self._next += 1
        if before is None:
            return False
        self.changed[task] = None
        return True

    def in_order(self, committed: Mapping[Task, V]) -> list[tuple[Task, V]]:
        """``committed``, so that nothing stands before what it was made from."""
        places = self._places
        if places is None:
            return list(committed.items())
        return sorted(committed.items(), key=lambda entry: places.get(entry[0], self._next))

    def reopened(self) -> None:
        """A run that had ended goes on: what is lost again is made again."""
        self.invalidated = {task: (attempt, False) for task, (attempt, _) in self.invalidated.items()}
