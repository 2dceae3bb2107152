"""What is done to a run, chosen by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from support.flow import Flow
from survival.flows import chain, diamond, dynamic

# What is hit.
COMMAND = "kill the command"
WORKER = "kill a worker"
WORKERS = "kill all workers"
SCHEDULER = "kill the scheduler"
STOP = "stop the scheduler"
STORAGE = "storage down for 20 s"
CHILD = "kill the process of a step"
DAMAGE = "kill the command and damage an output"
VICTIMS = [COMMAND, WORKER, WORKERS, SCHEDULER, STOP, STORAGE, CHILD, DAMAGE]

# When.
ENVIRONMENT = "while processes start"
OPEN = "while the journal is opened"
LINES = "after k ledger lines"
SEGMENTS = "after k committed segments"
STUCK = "while a task is stuck"
LAST = "in the last step"
CLOSE = "while the run is closed"
POINTS = [ENVIRONMENT, OPEN, LINES, SEGMENTS, STUCK, LAST, CLOSE]

# A run can begin only with its storage there, no outage is needed for what only time can tell, a step's process can
# be killed only while there is one, and an output damaged once it is committed and before the last step has read it.
LEFT_OUT = {
    *((STORAGE, point) for point in (ENVIRONMENT, OPEN, STUCK)),
    *((CHILD, point) for point in (ENVIRONMENT, OPEN, CLOSE)),
    *((DAMAGE, point) for point in (ENVIRONMENT, OPEN, STUCK, LAST, CLOSE)),
}

# How long an outage lasts.
OUTAGE = 20.0


@dataclass(frozen=True)
class Fault:
    """One hit: what, when, and how far the run has come at that time."""

    victim: str
    point: str
    count: int
    delay: float

    def __str__(self) -> str:
        at = self.point.replace(" k ", f" {self.count} ")
        return f"{self.victim} {at}" + (f" + {self.delay * 1000:.0f} ms" if self.delay else "")


@dataclass(frozen=True)
class Scenario:
    """All that a seed decides."""

    seed: int
    store: str
    flow: Flow
    faults: list[Fault]
    ms: int
    pad: int
    workers: int
    stuck: tuple[str, int] | None
    resume_at_once: bool
    wakes: bool

    @property
    def charged(self) -> int:
        """Failures that count against a step's retries: the death of its own process, not a loss of its worker."""
        return sum(fault.victim == CHILD for fault in self.faults)

    def __str__(self) -> str:
        size = f"{len(self.flow.tasks())} tasks of {self.ms} ms, outputs of {self.pad} bytes, {self.workers} workers"
        return f"{self.flow.name} ({size}) on {self.store}: " + "; ".join(str(fault) for fault in self.faults)


def scenario(seed: int) -> Scenario:
    """The scenario of a seed. The first seeds go once through all pairs of victim and point, in a fixed mixed order;
    later ones hit twice."""
    pairs = [(victim, point) for victim in VICTIMS for point in POINTS if (victim, point) not in LEFT_OUT]
    random.Random("order").shuffle(pairs)
    chance = random.Random(f"seed {seed}")
    hits = [pairs[seed % len(pairs)]]
    if seed >= len(pairs):
        hits.append(chance.choice([pair for pair in pairs if pair[0] != STORAGE]))
    storage = any(victim == STORAGE for victim, _ in hits)
    # Steps of a few milliseconds travel to the workers several at a time: other points to be hit at.
    short = chance.random() < 0.4
    wide, dynamic_items = ((60, 120), 120) if short else ((9, 15), 24)
    flows: list[Callable[[], Flow]] = [
        lambda: diamond(chance.randint(*wide)),
        lambda: chain(30),
        lambda: dynamic(dynamic_items),
    ]
    flow = chance.choice(flows)()
    tasks = len(flow.tasks())
    faults = []
    for victim, point in sorted(hits, key=lambda hit: POINTS.index(hit[1])):
        count = chance.randint(1, 2 * tasks - 4) if point == LINES else chance.randint(2, 4)
        delay = {ENVIRONMENT: 0.6, OPEN: 0.05, STUCK: 0.3, CLOSE: 0.08}.get(point, 0.02) * chance.random()
        faults.append(Fault(victim, point, count, delay))
    stuck = None
    if any(fault.point == STUCK for fault in faults):
        step = chance.choice(flow.steps[:-1])
        items = flow.items[step]
        stuck = (step, -1 if items is None else chance.randrange(items))
    return Scenario(
        seed=seed,
        store="s3" if storage or chance.random() < 0.35 else "directory",
        flow=flow,
        faults=faults,
        ms=2 if short else chance.choice([20, 60, 120]),
        # What is small is in the journal, where nothing can be damaged without notice.
        pad=300_000 if any(victim == DAMAGE for victim, _ in hits) else chance.choice([0, 200, 300_000]),
        workers=chance.choice([2, 2, 3]),
        stuck=stuck,
        resume_at_once=chance.random() < 0.5,
        wakes=chance.random() < 0.3,
    )
