"""The oracle must see each broken promise; a made-up run without fault must pass."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.flow import Flow, Task
from support.journal import Malformed, Segment, decode, encode
from support.oracle import Evidence, Execution, check, read_ledger
from survival.faults import LEFT_OUT, POINTS, VICTIMS, scenario
from survival.flows import chain, diamond, dynamic, write

OUTPUT = b"output"
RUN = "0c0ffee0"


def segment(number: int, epoch: int, records: list[list[object]], before: Segment | None, durable: float) -> Segment:
    raw = Segment(number, RUN, epoch, os.urandom(16), before.digest if before else None, records, b"", durable)
    return decode(encode(raw), durable)


def chained(parts: list[tuple[int, list[list[object]], float]]) -> list[Segment]:
    found: list[Segment] = []
    for number, (epoch, records, durable) in enumerate(parts):
        found.append(segment(number, epoch, records, found[-1] if found else None, durable))
    return found


def committed(task: Task, attempt: int = 1) -> list[object]:
    handle = {"u": None, "z": len(OUTPUT), "d": hashlib.sha256(OUTPUT).digest(), "s": "pickle", "b": OUTPUT}
    return ["committed", task[0], task[1], attempt, handle, "cpu-0-1", 0.0, 0.0, None, None]


def opened(epoch: int) -> list[object]:
    return ["opened", {"epoch": epoch, "t": 0.0}]


FINAL: list[object] = ["final", {"state": "Succeeded", "reason": None, "message": None, "t": 0.0, "results": {}}]


def parts_of(flow: Flow) -> list[tuple[int, list[list[object]], float]]:
    """A journal without fault: tasks run one after the other, a second each, and are committed half a second later."""
    parts: list[tuple[int, list[list[object]], float]] = [(1, [opened(1)], 0.5)]
    parts += [(1, [committed(task)], at + 2.5) for at, task in enumerate(flow.tasks())]
    return [*parts, (1, [FINAL], 500.0)]


def clean(flow: Flow | None = None) -> Evidence:
    flow = flow or diamond(3)
    return Evidence(
        flow=flow,
        exit_code=0,
        answer={"state": "Succeeded", "results": {"value": flow.expected}},
        executions=[Execution(task, 7, at + 1.0, at + 1.0, at + 2.0, False) for at, task in enumerate(flow.tasks())],
        segments=chained(parts_of(flow)),
        now=1000.0,
        kept=lambda path: OUTPUT,
    )


def rejournal(change: Callable[[list[tuple[int, list[list[object]], float]]], object]) -> Callable[[Evidence], object]:
    def apply(evidence: Evidence) -> None:
        parts = parts_of(evidence.flow)
        change(parts)
        evidence.segments = chained(parts)

    return apply


def change_segment(at: int, **changes: Any) -> Callable[[Evidence], object]:
    def apply(evidence: Evidence) -> None:
        evidence.segments[at] = dataclasses.replace(evidence.segments[at], **changes)

    return apply


def again(task: Task, start: float, end: float | None, pid: int = 8) -> Callable[[Evidence], object]:
    return lambda evidence: evidence.executions.append(Execution(task, pid, start, start, end, False))


def replace_execution(at: int, **changes: Any) -> Callable[[Evidence], object]:
    def apply(evidence: Evidence) -> None:
        evidence.executions[at] = dataclasses.replace(evidence.executions[at], **changes)

    return apply


def set_answer(**changes: Any) -> Callable[[Evidence], object]:
    return lambda evidence: evidence.answer.update(changes) if evidence.answer else None


def set_handle(**changes: Any) -> Callable[[Evidence], object]:
    def change(parts: list[tuple[int, list[list[object]], float]]) -> None:
        parts[1][1][0][4].update(changes)  # type: ignore[attr-defined]

    return rejournal(change)


def swap_commits(parts: list[tuple[int, list[list[object]], float]]) -> None:
    """In diamond(3), parts 1 to 9 commit inc, dec and add: put an add in front of its dec."""
    parts[4], parts[7] = parts[7], parts[4]


def stale_epoch(parts: list[tuple[int, list[list[object]], float]]) -> None:
    parts[2] = (2, [opened(2), *parts[2][1]], parts[2][2])


def long_overlap(evidence: Evidence) -> None:
    replace_execution(0, end=40.0)(evidence)
    again((0, 0), 2.0, 33.0)(evidence)


def made_again(
    evidence: Evidence,
    start: float = 21.0,
    damaged: tuple[str, ...] = ("data/0/0-1-x",),
    commit: bool = True,
    more: list[list[object]] | None = None,
) -> None:
    """The output of inc[0] is stored, damaged, found to be lost and made again."""
    parts = parts_of(evidence.flow)
    parts[1][1][0][4].update(u="data/0/0-1-x", b=None)  # type: ignore[attr-defined]
    anew: list[tuple[int, list[list[object]], float]] = [
        (1, [["failed", 3, -1, 1, "input", "OutputLost", "", None, 0.0, 0.0]], 19.5),
        (1, [["invalidated", 0, 0, 1, "OutputLost", "", 20.0]], 20.5),
        (1, [committed((0, 0), 2)] if commit else [], 23.0),
        (1, more or [], 31.0),
    ]
    parts[-1:-1] = anew
    evidence.segments = chained(parts)
    evidence.damaged = frozenset(damaged)
    again((0, 0), start, start + 1)(evidence)


BROKEN: list[tuple[str, Callable[[Evidence], object]]] = [
    ("ended_well: no answer", lambda evidence: setattr(evidence, "answer", None)),
    ("ended_well: exit code 1", lambda evidence: setattr(evidence, "exit_code", 1)),
    ("ended_well: state 'Failed'", set_answer(state="Failed")),
    ("ended_well: result 7", set_answer(results={"value": 7})),
    ("chain_is_whole: segment 3 follows 1", lambda evidence: evidence.segments.pop(2)),
    ("chain_is_whole: segment 3 does not name", change_segment(3, prev=b"\0" * 32)),
    ("chain_is_whole: segment 3 has stale epoch 1", rejournal(stale_epoch)),
    ("chain_is_whole: segment 4 has epoch 9, which was never opened", change_segment(4, epoch=9)),
    ("chain_is_whole: segment 4 belongs to another run", change_segment(4, run="x")),
    ("chain_is_whole: the first segment names one", change_segment(0, prev=b"\0" * 32)),
    ("chain_is_whole: nonce", lambda evidence: change_segment(4, nonce=evidence.segments[3].nonce)(evidence)),
    ("one_final_record: 0 final", rejournal(lambda parts: parts.pop())),
    ("one_final_record: 2 final", rejournal(lambda parts: parts.append((1, [FINAL], 501.0)))),
    ("one_final_record: records follow", rejournal(lambda parts: parts.append((1, [opened(1)], 501.0)))),
    (
        "one_final_record: final state 'Failed'",
        rejournal(lambda parts: parts.__setitem__(-1, (1, [["final", {"state": "Failed"}]], 500.0))),
    ),
    ("one_commit_per_task: inc[1] was never", rejournal(lambda parts: parts.pop(2))),
    (
        "one_commit_per_task: inc[0] was committed 2 times",
        rejournal(lambda parts: parts[3][1].append(committed((0, 0), 2))),
    ),
    ("one_commit_per_task: unknown task (0, 99)", rejournal(lambda parts: parts[3][1].append(committed((0, 99))))),
    ("nothing_starts_after_its_commit: inc[0] started 0.001 s", again((0, 0), 2.501, 2.6)),
    ("nothing_starts_before_its_inputs: add[0] started", replace_execution(6, start=4.9, start_wall=4.9)),
    ("nothing_starts_before_its_inputs: add[0] started", replace_execution(0, end=None)),
    ("nothing_commits_before_its_inputs: add[0] was committed before its input dec[0]", rejournal(swap_commits)),
    ("commits_were_executed: inc[0]", lambda evidence: evidence.executions.pop(0)),
    ("commits_were_executed: inc[0]", replace_execution(0, raised=True)),
    ("commits_were_executed: inc[0]", change_segment(1, durable=1.5)),
    ("overlap_is_bounded: inc[0] ran twice at once for 31.0 s", long_overlap),
    ("losses_are_not_charged", rejournal(lambda parts: parts[2][1].append(["failed", 0, 0, 1, "infra", "x"]))),
    ("losses_are_not_charged", rejournal(lambda parts: parts[2][1].append(["skipped", 0, 0, "x", "y"]))),
    ("losses_are_not_charged", rejournal(lambda parts: parts[2][1].append(["refused", 0, 0, "x", "y"]))),
    ("data_is_intact: the output of inc[0] is not", set_handle(b=b"outpuT")),
    ("data_is_intact: the output of inc[0] is not", set_handle(z=5)),
    ("data_is_intact: the output of inc[0] is missing", set_handle(u="data/0/0-1-x", b=None)),
    (
        "outputs_are_kept: the output of add[0] is not at kept/0.pkl",
        lambda evidence: setattr(evidence, "kept", lambda path: None if path == "kept/0.pkl" else OUTPUT),
    ),
    (
        "outputs_are_kept: what is at kept/2.pkl is not what was committed of add[2]",
        lambda evidence: setattr(evidence, "kept", lambda path: b"x" if path == "kept/2.pkl" else OUTPUT),
    ),
    (
        "only_what_is_lost_counts_no_more: inc[0] was taken for lost, and nobody",
        lambda evidence: made_again(evidence, damaged=()),
    ),
    (
        "only_what_is_lost_counts_no_more: inc[0] was taken for lost 2 times",
        lambda evidence: made_again(evidence, more=[["invalidated", 0, 0, 2, "OutputLost", "", 30.0]]),
    ),
    (
        "only_what_is_lost_counts_no_more: add[0] was invalidated (InputChanged), and no input",
        lambda evidence: made_again(evidence, more=[["invalidated", 2, 0, 1, "InputChanged", "", 30.0]]),
    ),
    (
        "only_what_is_lost_counts_no_more: inc[0] was invalidated and had not been",
        rejournal(lambda parts: parts[0][1].append(["invalidated", 0, 0, 1, "OutputLost", "", 0.5])),
    ),
    ("one_commit_per_task: inc[0] was never", lambda evidence: made_again(evidence, commit=False)),
    ("nothing_starts_after_its_commit: inc[0] started", lambda evidence: made_again(evidence, start=19.0)),
    ("nothing_is_left_running: still running: 5 x", lambda evidence: evidence.left.append("5 x")),
]


@pytest.mark.parametrize("flow", [diamond(3), diamond(12), chain(30), dynamic(24)], ids=lambda flow: flow.name)
def test_a_run_without_fault_passes(flow: Flow) -> None:
    assert check(clean(flow)) == []


@pytest.mark.parametrize(
    ("wanted", "break_it"), BROKEN, ids=[f"{at}-{wanted}" for at, (wanted, _) in enumerate(BROKEN)]
)
def test_each_broken_promise_is_seen(wanted: str, break_it: Callable[[Evidence], object]) -> None:
    evidence = clean()
    break_it(evidence)
    assert any(text.startswith(wanted) for text in check(evidence)), check(evidence)


def test_an_execution_that_never_ended_counts_until_its_process_died() -> None:
    evidence = clean()
    again((0, 0), -60.0, None)(evidence)
    again((0, 0), -50.0, -10.0, pid=9)(evidence)
    evidence.died[8] = -45.0
    assert check(evidence) == []
    evidence.died[8] = -19.0
    assert check(evidence) == ["overlap_is_bounded: inc[0] ran twice at once for 31.0 s"]
    again((2, 0), -44.0, -43.0)(evidence)  # the same process took another task: the first one was over
    assert not any(text.startswith("overlap") for text in check(evidence))


def test_a_task_whose_output_was_damaged_may_run_again() -> None:
    evidence = clean()
    made_again(evidence)
    assert check(evidence) == []


def test_the_death_of_a_steps_own_process_may_be_charged_once_for_each() -> None:
    evidence = clean()
    failure: list[object] = ["failed", 0, 0, 1, "app", "x"]
    rejournal(lambda parts: parts[2][1].append(failure))(evidence)
    evidence.charged = 1
    assert check(evidence) == []
    rejournal(lambda parts: parts[2][1].extend([failure, failure]))(evidence)
    assert len(check(evidence)) == 2


def test_a_segment_that_is_not_exactly_the_format_is_refused() -> None:
    good = encode(segment(0, 1, [opened(1)], None, 0.0))
    assert decode(good, 0.0).records == [opened(1)]
    for bad in [
        b"",
        good[:-1],
        good + b"\0",
        b"X" + good[1:],
        good[:4] + b"\2" + good[5:],
        good[:60] + b"\0" + good[61:],
    ]:
        with pytest.raises(Malformed):
            decode(bad, 0.0)
    torn = good[:-33]
    with pytest.raises(Malformed):
        decode(torn + hashlib.sha256(torn).digest(), 0.0)


def test_the_ledger_is_what_the_steps_write(tmp_path: Path) -> None:
    flow, ledger = diamond(2), tmp_path / "ledger"
    space: dict[str, Callable[..., object]] = {}
    write(flow, tmp_path / "flow.yaml", ledger, 1, 10, 2, None)
    from survival.flows import CODE

    exec(CODE, space)
    test = {"ledger": str(ledger), "ms": 1, "pad": 10, "stuck": {}}
    assert space["inc"](0, test) == {"v": 1, "pad": "x" * 10}
    with pytest.raises(TypeError):
        space["total"]([None], test)
    inc, total = read_ledger(ledger, flow)
    assert inc.task == (0, 0) and inc.end is not None and inc.end > inc.start and not inc.raised
    assert total.task == (3, -1) and total.raised


@pytest.mark.parametrize("flow", [diamond(5), chain(6), dynamic(24)], ids=lambda flow: flow.name)
def test_what_the_oracle_expects_is_what_the_code_does(flow: Flow, tmp_path: Path) -> None:
    """Runs the flow's own functions by its own spec, in order, without the product."""
    from survival.flows import CODE

    space: dict[str, Callable[..., object]] = {}
    exec(CODE, space)
    test = {"ledger": str(tmp_path / "ledger"), "ms": 0, "pad": 0, "stuck": {}}
    outputs: dict[str, object] = {}

    def value(text: object) -> object:
        if text == "$(params.test)":
            return test
        if isinstance(text, str) and text.startswith("$(range("):
            return list(range(int(text[8:-2])))
        if isinstance(text, str) and text.startswith("$(steps."):
            return outputs[text[8:-8]]
        return text

    for step in flow.spec:
        call = space[step["call"].split(":")[1]]
        args = {key: value(text) for key, text in step["args"].items()}
        lists = {key: value(text) for key, text in step.get("map", {}).items()}
        if lists:
            rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
            outputs[step["name"]] = [call(**args, **row) for row in rows]
            assert len(rows) == flow.items[step["name"]]
        else:
            outputs[step["name"]] = call(**args)
    assert outputs[flow.last] == flow.expected
    assert {run.task for run in read_ledger(tmp_path / "ledger", flow)} == set(flow.tasks())


def test_the_first_seeds_meet_every_victim_at_every_point() -> None:
    wanted = {(victim, point) for victim in VICTIMS for point in POINTS} - LEFT_OUT
    met = {(fault.victim, fault.point) for seed in range(50) for fault in scenario(seed).faults}
    assert wanted <= met
    stores = [scenario(seed).store for seed in range(50)]
    assert 15 <= stores.count("s3") <= 35
    assert all(25 <= len(scenario(seed).flow.tasks()) <= 400 for seed in range(50))
    assert {scenario(seed).ms for seed in range(50)} == {2, 20, 60, 120}, "steps that travel alone, and together"
    assert scenario(7) == scenario(7)
