"""Which segments a journal has.

A listing may leave out an object that is there, where a server lags behind or an answer was cut. So what a
listing leaves out is asked for by its name, and the listing is asked for again, before a segment counts as
missing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from .storage import Store

# How often the segments are listed before one is missed, and the seconds between two listings.
LISTINGS = 3
PAUSE = 0.3


class Missing(Exception):
    """The segment of this number is not there, though a later one is, or though it was."""

    def __init__(self, seg: int, why: str) -> None:
        super().__init__(why)
        self.seg = seg


def find(
    store: Store, folder: str, name: Callable[[int], str], last: int, known: int = -1
) -> list[tuple[str, int]]:
    """Key and size of each segment after number ``last``, in order; ``Missing`` if there is a gap.

    ``name`` gives the key of a number. ``known`` is the number of a segment that has been met: whatever the
    listing says, it is there.
    """
    for _ in range(LISTINGS - 1):
        try:
            return _find(store, folder, name, last, known)
        except Missing:
            time.sleep(PAUSE)
    return _find(store, folder, name, last, known)


def _find(
    store: Store, folder: str, name: Callable[[int], str], last: int, known: int
) -> list[tuple[str, int]]:
    listed = deque(sorted(store.list(folder, after=name(last) if last >= 0 else None)))
    found: list[tuple[str, int]] = []
    seg = last + 1
    while listed or seg <= known:
        key = name(seg)
        if listed and listed[0][0] == key:
            found.append(listed.popleft())
        else:
            size = store.head(key)
            if size is None:
                why = "it existed earlier and is missing"
                if listed:
                    why = f"it is missing; the next object is {listed[0][0]!r}"
                raise Missing(seg, why)
            found.append((key, size))
        seg += 1
    return found


def check(store: Store, folder: str, name: Callable[[int], str], last: int) -> None:
    """``Missing`` if one of the segments up to number ``last``, all of which were written, is not there."""
    listed = {key for key, _ in store.list(folder)}
    for seg in range(last + 1):
        if name(seg) not in listed and store.head(name(seg)) is None:
            raise Missing(seg, "it was written but is missing; something deleted it from the storage")
