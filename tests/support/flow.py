"""A pipeline with all that the oracle has to know about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Step and item; -1 stands for a step that is not mapped.
Task = tuple[int, int]


@dataclass(frozen=True)
class Flow:
    """A manifest and what a run of it without faults does."""

    name: str
    steps: list[str]
    items: dict[str, int | None]
    inputs: dict[str, list[tuple[str, bool]]]
    expected: Any
    spec: list[dict[str, Any]] = field(default_factory=list, repr=False)
    #: Where steps keep their outputs besides the run's record; `{item}` stands for the item.
    kept: dict[str, str] = field(default_factory=dict)

    def tasks(self) -> list[Task]:
        """All tasks."""
        found: list[Task] = []
        for at, name in enumerate(self.steps):
            count = self.items[name]
            found += [(at, -1)] if count is None else [(at, item) for item in range(count)]
        return found

    def needs(self, task: Task) -> list[Task]:
        """The tasks whose outputs the task reads."""
        needed: list[Task] = []
        for name, element in self.inputs[self.steps[task[0]]]:
            count, at = self.items[name], self.steps.index(name)
            if count is None:
                needed.append((at, -1))
            elif element:
                needed.append((at, task[1]))
            else:
                needed += [(at, item) for item in range(count)]
        return needed

    @property
    def last(self) -> str:
        """The step that ends the run."""
        return self.steps[-1]
