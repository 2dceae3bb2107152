"""What the tasks of a scheduler ask for, counted from what Dask itself keeps per state: no task is looked at
that has ended, or waits for others.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

Amounts = tuple[tuple[str, float], ...]
Asked = tuple[str | None, Amounts]
Wanted = Counter[Asked]
UNFINISHED = ("waiting", "queued", "no-worker", "processing")


def amounts(resources: Any) -> Amounts:
    """Resources as a part of a key."""
    return tuple(sorted((str(k), float(v)) for k, v in resources.items())) if resources else ()


def unfinished(scheduler: Any) -> int:
    """Tasks that have not ended."""
    groups = scheduler.task_groups.values()
    return sum(group.states.get(state, 0) for group in groups for state in UNFINISHED)


def wanted(
    scheduler: Any, dispatcher: Any, told: dict[str, list[dict[str, Any]]]
) -> tuple[Wanted, Wanted]:
    """Worker group and resources, and how many tasks with these could run at once: those that could begin
    now, those that run, and of runs what was ``told`` of them if that is more. Also how many of them come
    later, as was told.
    """
    found: Wanted = Counter()
    # Dask queues only what may run anywhere.
    found[None, ()] += len(scheduler.queued)
    flying = dispatcher.flying
    for task in scheduler.unrunnable:
        # One that names workers waits for those, and no others will do.
        bound = (task.worker_restrictions or task.host_restrictions) and not task.loose_restrictions
        if not bound and task.key not in flying:
            found[None, amounts(task.resource_restrictions)] += 1
    for worker in scheduler.workers.values():
        for task in worker.processing:
            if task.key not in flying:
                found[None, amounts(task.resource_restrictions)] += 1
    runs: Counter[tuple[str, Asked]] = Counter()
    for run, group, resources, count in dispatcher.demand():
        runs[run, (group, amounts(resources))] += count
    soon = runs.copy()
    for run, asks in told.items():
        for ask in asks:
            # What was told counts what was handed over, too: a task is in one of them before the other.
            key = run, (ask["group"], amounts(ask["resources"]))
            runs[key] = max(runs[key], ask["count"])
            soon[key] = max(soon[key], ask["count"] - ask["later"])
    later: Wanted = Counter()
    for key, count in runs.items():
        found[key[1]] += count
        later[key[1]] += count - soon[key]
    return found, later


def rows(found: Wanted, later: Wanted) -> list[dict[str, Any]]:
    """As they travel, in an order that depends on nothing else."""
    ordered = sorted((item for item in found.items() if item[1] > 0), key=repr)
    return [
        {"group": group, "resources": dict(asked), "count": n, "later": later[group, asked]}
        for (group, asked), n in ordered
    ]
