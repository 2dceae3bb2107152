"""The verdict on one run, from evidence that the product has no hand in.

Each rule is a function from the evidence to the sentences that say how it was broken.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.flow import Flow, Task
from support.journal import Commit, Segment, commits, records

# An uncommitted task may overlap itself this long: the time after which a worker that lost its scheduler is gone.
OVERLAP_BOUND = 30.0


@dataclass(frozen=True)
class Execution:
    """One start of a task that the ledger saw; times are monotonic unless named otherwise."""

    task: Task
    pid: int
    start: float
    start_wall: float
    end: float | None
    raised: bool


@dataclass
class Evidence:
    """What was seen of one run."""

    flow: Flow
    exit_code: int | None
    answer: dict[str, Any] | None
    executions: list[Execution]
    segments: list[Segment]
    died: dict[int, float] = field(default_factory=dict)
    now: float = 0.0
    objects: Callable[[str], bytes | None] = lambda path: None
    kept: Callable[[str], bytes | None] = lambda path: None
    left: list[str] = field(default_factory=list)
    charged: int = 0
    #: Objects of outputs, as commits name them, that were damaged or deleted on purpose.
    damaged: frozenset[str] = frozenset()


def check(evidence: Evidence) -> list[str]:
    """All broken rules, each named; empty if every promise was kept."""
    rules = [
        ended_well,
        chain_is_whole,
        one_final_record,
        one_commit_per_task,
        only_what_is_lost_counts_no_more,
        nothing_starts_after_its_commit,
        nothing_starts_before_its_inputs,
        nothing_commits_before_its_inputs,
        commits_were_executed,
        overlap_is_bounded,
        losses_are_not_charged,
        data_is_intact,
        outputs_are_kept,
        nothing_is_left_running,
    ]
    return [f"{rule.__name__}: {text}" for rule in rules for text in rule(evidence)]


def ended_well(evidence: Evidence) -> list[str]:
    """The command says Succeeded, exits 0 and has the right result."""
    if evidence.answer is None:
        return [f"no answer (exit code {evidence.exit_code})"]
    found = []
    if evidence.exit_code != 0:
        found.append(f"exit code {evidence.exit_code}")
    if evidence.answer.get("state") != "Succeeded":
        found.append(f"state {evidence.answer.get('state')!r}: {evidence.answer.get('message')!r}")
    value = (evidence.answer.get("results") or {}).get("value")
    if value != evidence.flow.expected:
        found.append(f"result {value!r}, expected {evidence.flow.expected!r}")
    return found


def chain_is_whole(evidence: Evidence) -> list[str]:
    """Segments follow each other without a gap, each names the one before, epochs only grow and are opened."""
    found = []
    before: Segment | None = None
    opened = 0
    nonces = Counter(segment.nonce for segment in evidence.segments)
    found += [f"nonce {nonce.hex()} used {count} times" for nonce, count in nonces.items() if count > 1]
    for segment in evidence.segments:
        if before is not None:
            if segment.number != before.number + 1:
                found.append(f"segment {segment.number} follows {before.number}")
            if segment.prev != before.digest:
                found.append(f"segment {segment.number} does not name the digest of the one before")
            if segment.epoch < before.epoch:
                found.append(f"segment {segment.number} has stale epoch {segment.epoch} after {before.epoch}")
            if segment.run != before.run:
                found.append(f"segment {segment.number} belongs to another run")
        elif segment.prev is not None:
            found.append("the first segment names one before it")
        for record in segment.records:
            if record[0] == "opened":
                opened = max(opened, record[1]["epoch"])
        if segment.epoch > opened:
            found.append(f"segment {segment.number} has epoch {segment.epoch}, which was never opened")
        before = segment
    return found


def one_final_record(evidence: Evidence) -> list[str]:
    """There is exactly one final record, it is the last, and it agrees with the command."""
    finals = records(evidence.segments, "final")
    if len(finals) != 1:
        return [f"{len(finals)} final records"]
    found = []
    if evidence.segments[-1].records[-1][0] != "final":
        found.append("records follow the final one")
    if finals[0][1]["state"] != "Succeeded":
        found.append(f"final state {finals[0][1]['state']!r}")
    return found


def one_commit_per_task(evidence: Evidence) -> list[str]:
    """Every task is committed exactly once, and once more for each time that it was invalidated; nothing else is."""
    counts = Counter((commit.step, commit.item) for commit in commits(evidence.segments))
    counts.subtract(Counter((record[1], record[2]) for record in records(evidence.segments, "invalidated")))
    tasks = set(evidence.flow.tasks())
    found = [f"{name(evidence, task)} was never committed" for task in sorted(tasks) if counts[task] == 0]
    found += [
        f"{name(evidence, task)} was committed {count} times" for task, count in sorted(counts.items()) if count > 1
    ]
    found += [f"unknown task {task} was committed" for task in sorted(set(counts) - tasks)]
    return found


def only_what_is_lost_counts_no_more(evidence: Evidence) -> list[str]:
    """A commit is taken back only if its output was damaged, once per task, or if an input has another output now."""
    found = []
    last: dict[Task, Commit] = {}
    changed: set[Task] = set()
    lost: Counter[Task] = Counter()
    before: dict[Task, bytes] = {}
    for kind, task, said in _history(evidence):
        if kind == "committed":
            if task in last:
                continue
            last[task] = said
            if task in before and before[task] != bytes(said.handle["d"]):
                changed.add(task)
            continue
        if task not in last:
            found.append(f"{name(evidence, task)} was invalidated and had not been committed")
            continue
        commit = last.pop(task)
        before[task] = bytes(commit.handle["d"])
        if said == "OutputLost":
            lost[task] += 1
            if commit.handle["u"] not in evidence.damaged:
                found.append(f"{name(evidence, task)} was taken for lost, and nobody has touched its output")
            if lost[task] > 1:
                found.append(f"{name(evidence, task)} was taken for lost {lost[task]} times")
        elif not changed.intersection(evidence.flow.needs(task)):
            found.append(f"{name(evidence, task)} was invalidated ({said}), and no input of it has changed")
    return found


def _history(evidence: Evidence) -> list[tuple[str, Task, Any]]:
    """Commits, and reasons for which they were taken back, in the order of the journal."""
    waiting = iter(commits(evidence.segments))
    found: list[tuple[str, Task, Any]] = []
    for segment in evidence.segments:
        for record in segment.records:
            if record[0] == "committed":
                commit = next(waiting)
                found.append(("committed", (commit.step, commit.item), commit))
            elif record[0] == "invalidated":
                found.append(("invalidated", (record[1], record[2]), record[4]))
    return found


def final_commits(evidence: Evidence) -> list[Commit]:
    """Those that were not taken back."""
    last: dict[Task, Commit] = {}
    for kind, task, said in _history(evidence):
        if kind == "committed":
            last.setdefault(task, said)
        else:
            last.pop(task, None)
    return list(last.values())


def nothing_starts_after_its_commit(evidence: Evidence) -> list[str]:
    """No execution starts once the segment that commits its task is durable, unless that was taken back before."""
    taken_back: dict[Task, list[float]] = defaultdict(list)
    for record in records(evidence.segments, "invalidated"):
        taken_back[record[1], record[2]].append(record[6])
    found = []
    for task, durable in _durable(evidence).items():
        ends = [*taken_back[task], float("inf")]
        for since, until_ in zip(durable, ends, strict=False):
            found += [
                f"{name(evidence, task)} started {run.start_wall - since:.3f} s after its commit (pid {run.pid})"
                for run in evidence.executions
                if run.task == task and since < run.start_wall < until_
            ]
    return found


def _durable(evidence: Evidence) -> dict[Task, list[float]]:
    """When the commits of each task that count, or have counted, became durable."""
    found: dict[Task, list[float]] = defaultdict(list)
    counts: set[Task] = set()
    for kind, task, said in _history(evidence):
        if kind == "invalidated":
            counts.discard(task)
        elif task not in counts:
            counts.add(task)
            found[task].append(said.durable)
    return found


def nothing_starts_before_its_inputs(evidence: Evidence) -> list[str]:
    """An execution starts only after some execution of each input has ended."""
    ended: dict[Task, float] = {}
    for run in evidence.executions:
        if run.end is not None and not run.raised:
            ended[run.task] = min(run.end, ended.get(run.task, run.end))
    return [
        f"{name(evidence, run.task)} started before its input {name(evidence, need)} had ended"
        for run in evidence.executions
        for need in evidence.flow.needs(run.task)
        if need not in ended or run.start < ended[need]
    ]


def nothing_commits_before_its_inputs(evidence: Evidence) -> list[str]:
    """In the journal, the commits of a task's inputs stand before its own."""
    order = {(commit.step, commit.item): commit.order for commit in reversed(commits(evidence.segments))}
    return [
        f"{name(evidence, task)} was committed before its input {name(evidence, need)}"
        for task, at in sorted(order.items())
        if task in set(evidence.flow.tasks())
        for need in evidence.flow.needs(task)
        if need not in order or order[need] > at
    ]


def commits_were_executed(evidence: Evidence) -> list[str]:
    """A committed task has an execution that ended before the commit was durable."""
    ended: dict[Task, float] = {}
    for run in evidence.executions:
        if run.end is not None and not run.raised:
            wall = run.start_wall + (run.end - run.start)
            ended[run.task] = min(wall, ended.get(run.task, wall))
    return [
        f"{name(evidence, task)} was committed without having been executed"
        for commit in commits(evidence.segments)
        if (task := (commit.step, commit.item)) not in ended or ended[task] > commit.durable + CLOCK_GRAIN
    ]


# File times come from the kernel's coarse clock, which lags the precise one by up to a tick.
CLOCK_GRAIN = 0.02


def overlap_is_bounded(evidence: Evidence) -> list[str]:
    """Two executions of one task are alive together for no longer than the bound."""
    by_task: dict[Task, list[Execution]] = defaultdict(list)
    for run in evidence.executions:
        by_task[run.task].append(run)
    found = []
    for task, runs in sorted(by_task.items()):
        runs = sorted(runs, key=lambda run: run.start)
        for at, one in enumerate(runs):
            for two in runs[at + 1 :]:
                shared = min(until(evidence, one), until(evidence, two)) - two.start
                if shared > OVERLAP_BOUND:
                    found.append(f"{name(evidence, task)} ran twice at once for {shared:.1f} s")
    return found


def losses_are_not_charged(evidence: Evidence) -> list[str]:
    """Faults of the surroundings make no step fail, be refused or be skipped; only a killed step counts as failed, not one
    whose input is lost."""
    failed = [record for record in records(evidence.segments, "failed") if record[4] != "input"]
    charged = failed if len(failed) > evidence.charged else []
    return [
        f"the journal has {record[0]!r} for step {record[1]}: {record[4:]!r}"
        for record in [*charged, *records(evidence.segments, "refused"), *records(evidence.segments, "skipped")]
    ]


def data_is_intact(evidence: Evidence) -> list[str]:
    """What a commit that counts points to is there, with the size and digest it was committed with, unless it was damaged."""
    found = []
    for commit in final_commits(evidence):
        if commit.handle["u"] in evidence.damaged:
            continue
        handle, task = commit.handle, (commit.step, commit.item)
        data = handle["b"] if handle["u"] is None else evidence.objects(handle["u"])
        if data is None:
            found.append(f"the output of {name(evidence, task)} is missing ({handle['u']})")
        elif len(data) != handle["z"] or hashlib.sha256(data).digest() != bytes(handle["d"]):
            found.append(f"the output of {name(evidence, task)} is not what was committed")
    return found


def outputs_are_kept(evidence: Evidence) -> list[str]:
    """What a step keeps under a name of its own is there, and is what was committed."""
    found = []
    for commit in final_commits(evidence):
        task = (commit.step, commit.item)
        form = evidence.flow.kept.get(evidence.flow.steps[commit.step]) if task in set(evidence.flow.tasks()) else None
        if form is None:
            continue
        path = form.format(item=commit.item)
        data = evidence.kept(path)
        if data is None:
            found.append(f"the output of {name(evidence, task)} is not at {path}")
        elif hashlib.sha256(data).digest() != bytes(commit.handle["d"]):
            found.append(f"what is at {path} is not what was committed of {name(evidence, task)}")
    return found


def nothing_is_left_running(evidence: Evidence) -> list[str]:
    """No process of the run outlives it."""
    return [f"still running: {text}" for text in evidence.left]


def until(evidence: Evidence, run: Execution) -> float:
    """When an execution was over: its own word, the next one in its process, or the death of the process."""
    if run.end is not None:
        return run.end
    later = [other.start for other in evidence.executions if other.pid == run.pid and other.start > run.start]
    return min([*later, evidence.died.get(run.pid, evidence.now)])


def name(evidence: Evidence, task: Task) -> str:
    """How a person would name a task."""
    step = evidence.flow.steps[task[0]] if 0 <= task[0] < len(evidence.flow.steps) else f"step {task[0]}"
    return step if task[1] < 0 else f"{step}[{task[1]}]"


def read_ledger(path: Path, flow: Flow) -> list[Execution]:
    """Pair the lines of a ledger into executions, in order of their starts."""
    starts: dict[str, dict[str, Any]] = {}
    ends: dict[str, dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text().splitlines():
            line = json.loads(text)
            (starts if line["k"] == "start" else ends)[line["x"]] = line
    found = []
    for execution, line in starts.items():
        end = ends.get(execution)
        found.append(
            Execution(
                task=(flow.steps.index(line["s"]), line["i"]),
                pid=line["p"],
                start=line["m"],
                start_wall=line["w"],
                end=None if end is None else end["m"],
                raised=end is not None and end["k"] == "raise",
            )
        )
    return sorted(found, key=lambda run: run.start)
