"""One span of Dask for all tasks of ours.

Dask keeps what it measures by span, on each worker and in the scheduler, for as long as they live; and tasks that name
no span get a new one whenever all before them have ended. So each run would leave something behind for good.
"""

from __future__ import annotations

import contextlib
from typing import Any

import dask

ID = "daskade"
_NAMED = {"name": (ID,), "ids": (ID,)}


def named() -> Any:
    """What is handed to Dask within this is of the span. Releases without spans ignore it."""
    return dask.annotate(span=_NAMED)


def tidy(scheduler: Any) -> None:
    """Has the scheduler's span forget what it knows of tasks that are gone."""
    with contextlib.suppress(AttributeError, KeyError):  # a release that has no spans, or keeps them otherwise
        span = scheduler.extensions["spans"].spans[ID]
        span.groups.intersection_update(scheduler.task_groups.values())
        if span._metadata is not None:
            del span._metadata["collections"][1:]
