"""One Dask task of ours: an attempt, or several short ones that a worker runs one after the other.

A task costs Dask's scheduler about a millisecond of its own, whatever is in it. Steps of a few milliseconds
therefore travel together; each keeps its own start, its own answer and its own end.
"""

from __future__ import annotations

from typing import Any

import msgpack

from daskade_runtime.run import Attempt

# What a task with several attempts should take on its worker: long against the price of a task, and short
# against what a person, or a step that waits for one of them, would notice.
BUNDLE_SECONDS = 0.02
BUNDLE_CAP = 16


class Flight:
    """Attempts that are at Dask as one task."""

    __slots__ = ("attempts", "future", "key")

    def __init__(self, key: str, attempts: list[Attempt]) -> None:
        self.key = key
        self.attempts = attempts
        self.future: Any = None
        for attempt in attempts:
            attempt.flight = self

    def message(self, blobs: list[bytes]) -> bytes:
        """The task's argument: per attempt its address and what ``run_step`` gets."""
        rows = [[a.run.uid, a.step, a.item, a.number, blob] for a, blob in zip(self.attempts, blobs, strict=True)]
        packed: bytes = msgpack.packb(rows, use_bin_type=True)
        return packed

    def leave(self, attempt: Attempt) -> bool:
        """Takes one attempt out; whether none is left."""
        self.attempts.remove(attempt)
        attempt.flight = None
        return not self.attempts

    def disband(self) -> list[Attempt]:
        """Takes all attempts out, and gives them."""
        attempts, self.attempts = self.attempts, []
        for attempt in attempts:
            attempt.flight = None
        return attempts


class Pace:
    """How long attempts of one step take, learnt from those that ran."""

    __slots__ = ("mean",)

    def __init__(self) -> None:
        self.mean: float | None = None

    def took(self, seconds: float) -> None:
        seconds = max(seconds, 0.0)
        self.mean = seconds if self.mean is None else self.mean + 0.2 * (seconds - self.mean)

    def bundle(self, ready: int, slots: int) -> int:
        """How many of ``ready`` attempts may share a task, with ``slots`` to run them: none waits behind
        another while a slot would be free for it.
        """
        if self.mean is None:
            return 1
        short = int(BUNDLE_SECONDS / max(self.mean, 1e-4))
        return max(1, min(BUNDLE_CAP, short, ready // max(1, slots)))
