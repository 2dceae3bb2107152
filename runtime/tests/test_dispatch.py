"""Parts of the scheduler's side that need no cluster: waiting relations, groups, event log, group commit."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from daskade_runtime import commit, dispatch, events
from daskade_runtime.commit import Committer
from daskade_runtime.dispatch import Group, group_of
from daskade_runtime.events import EventLog, Subscriber
from daskade_runtime.live import _checked
from daskade_runtime.run import ALL, INDEX_INLINE, Attempt, Output, Refused, RunState, StepDef

HANDLE = {
    "u": None,
    "z": 1,
    "d": b"0" * 32,
    "s": "pickle",
    "b": b"1",
    "w": None,
    "n": None,
    "x": None,
    "m": None,
}


class State:
    """A RunState that remembers what became ready."""

    def __init__(self, steps: int = 4) -> None:
        self.ready: list[tuple[int, int, int]] = []
        definitions = [{"name": f"s{n}", "call": "m:f"} for n in range(steps)]
        self.state = RunState("run", definitions, lambda a: self.ready.append(a.address))

    def submit(self, s: int, i: int, data: Any = (), after: Any = (), a: int = 1) -> Attempt | None:
        return self.state.submit((s, i, a, 0, None, data, after))

    def finish(self, s: int, i: int, a: int = 1) -> None:
        self.state.finish(s, i, Output(a, HANDLE, None, None, False))


def test_an_attempt_is_ready_once_all_it_waits_for_is_there() -> None:
    run = State()
    run.submit(1, -1, [(0, 0), (0, 1)], [(2, -1)])
    run.submit(3, -1, [(0, ALL, 2)])
    run.finish(0, 1)
    assert run.ready == []
    run.finish(0, 1)
    assert run.ready == [], "one item counted twice"
    run.finish(0, 0)
    assert run.ready == [(3, -1, 1)]
    run.state.hole(2, -1)
    assert run.ready == [(3, -1, 1), (1, -1, 1)]


def test_a_dependency_that_is_there_already_is_not_waited_for() -> None:
    run = State()
    run.finish(0, -1)
    run.submit(1, -1, [(0, -1)], [(0, -1)])
    run.submit(2, -1, [(3, ALL, 0)])
    assert run.ready == [(1, -1, 1), (2, -1, 1)]


def test_a_mapped_step_skipped_as_a_whole_releases_all_that_waits_for_it() -> None:
    run = State()
    run.submit(1, -1, [(0, ALL, 5)])
    run.submit(2, 3, [], [(0, 3)])
    run.state.hole(0, -1)
    assert sorted(run.ready) == [(1, -1, 1), (2, 3, 1)]


@pytest.mark.parametrize(
    "item",
    [
        (0, 0, 1, 0, None, []),
        (9, 0, 1, 0, None, [], []),
        (-1, 0, 1, 0, None, [], []),
        (0, -2, 1, 0, None, [], []),
        (0, 0, 0, 0, None, [], []),
        ("0", 0, 1, 0, None, [], []),
        (0, 0, 1, 0, None, [(0,)], []),
        (0, 0, 1, 0, None, [(9, 0)], []),
        (0, 0, 1, 0, None, [(0, ALL)], []),
        (0, 0, 1, 0, None, [(0, 1, 2)], []),
    ],
)
def test_a_malformed_submission_is_refused(item: Any) -> None:
    with pytest.raises(Refused):
        State().state.submit(item)


def test_only_a_higher_attempt_of_an_uncommitted_task_is_taken() -> None:
    run = State()
    assert run.submit(0, 0, a=2) is not None
    assert run.submit(0, 0, a=2) is None and run.submit(0, 0, a=1) is None
    assert run.submit(0, 0, a=3) is not None
    run.finish(0, 0, a=3)
    assert run.submit(0, 0, a=3) is None
    run.state.outputs[0, 0].committed = True
    assert run.submit(0, 0, a=4) is None


def test_a_blob_carries_handles_of_single_and_whole_inputs_with_holes() -> None:
    run = State()
    run.finish(0, -1)
    run.finish(1, 0)
    run.state.hole(1, 1)
    attempt = run.submit(2, 5, [(0, -1), (1, ALL, 2)])
    assert attempt is not None
    attempt.values = b"v"
    blob = msgpack.unpackb(run.state.blob(attempt, 3, "d"), strict_map_key=False)
    assert {k: blob[k] for k in ("run", "e", "s", "i", "a", "v", "d")} == {
        "run": "run", "e": 3, "s": 2, "i": 5, "a": 1,
        "v": b"v", "d": "d",
    }
    assert blob["h"] == [[0, -1, HANDLE]] and blob["all"] == {1: [HANDLE, None]}
    run.finish(1, 1)
    assert msgpack.unpackb(run.state.blob(attempt, 3, "d"), strict_map_key=False)["all"] == {
        1: [HANDLE, HANDLE]
    }


def test_the_index_of_a_long_list_stays_out_of_the_blob() -> None:
    for n, sent in ((INDEX_INLINE, True), (INDEX_INLINE + 1, False)):
        output = Output(1, {**HANDLE, "n": n, "x": b"x", "m": b"m"}, None, None, False)
        assert (msgpack.unpackb(output.handle)["x"] is not None) is sent
        assert msgpack.unpackb(output.full)["x"] == b"x"


def test_worker_names_say_their_group() -> None:
    assert group_of("cpu-3-1") == "cpu" and group_of("big-gpu-0-12") == "big-gpu"
    for name in ("cpu", "cpu-1", "tcp://127.0.0.1:40000", "cpu-a-1", "-1-1", 0):
        assert group_of(name) is None


class Worker:
    """What Dask keeps of a worker, as far as a group looks at it."""

    def __init__(
        self, name: str = "cpu-0-0", nthreads: int = 2, status: str = "running", **resources: float
    ) -> None:
        self.name, self.nthreads, self.resources = name, nthreads, resources
        self.address = ""
        self.status = SimpleNamespace(name=status)


@pytest.mark.parametrize(
    ("step", "worker", "slots"),
    [
        ({}, Worker(), 2),
        ({}, Worker(status="paused"), 0),
        ({}, Worker(status="closing_gracefully"), 0),
        ({}, Worker(GPU=1), 0),
        ({"gpu_ok": True}, Worker(GPU=1), 2),
        ({"group": "cpu"}, Worker(GPU=1), 2),
        ({"group": "gpu"}, Worker(), 0),
        ({"group": "cpu"}, Worker("elsewhere"), 0),
        ({"resources": {"GPU": 1}}, Worker(GPU=1), 1),
        ({"resources": {"GPU": 2}}, Worker(GPU=1), 0),
        ({"resources": {"MEM": 2.5}}, Worker(MEM=5.5, nthreads=8), 2),
    ],
)
def test_a_worker_offers_slots_only_to_steps_that_it_may_run(step: Any, worker: Any, slots: int) -> None:
    assert Group(StepDef({"name": "s", "call": "m:f", **step}), 2).slots(worker) == slots


def test_more_is_queued_ahead_only_while_steps_are_short() -> None:
    group = Group(StepDef({"name": "s", "call": "m:f"}), 2)
    assert group.depth == 1, "nothing is known of them"
    group.took(0.5)
    assert group.depth == 2
    for _ in range(50):
        group.took(0.001)
    assert 32 <= group.depth <= dispatch.AHEAD_CAP
    group.took(60.0)
    assert group.depth == 1


def test_a_key_names_the_function_not_the_run() -> None:
    names = [
        ({"call": "pkg.mod:Class.method"}, "method"),
        ({"script": "x"}, "script"),
        ({"call": "m:f-g"}, "f_g"),
    ]
    for fields, function in names:
        assert StepDef({"name": "s", **fields}).function == function


@pytest.mark.parametrize(
    "record", [[], ["opened", {}], ["length", 0], ["length", "0", 1], ["refused", 0, 1], ["final", {}]]
)
def test_only_decisions_may_be_recorded(record: Any) -> None:
    with pytest.raises(Refused):
        _checked(record, 1)


# ------------------------------------------------------------------------------------------------ events


def test_events_come_back_in_order_packed_or_not() -> None:
    log = EventLog()
    for n in range(events.FRESH + 500):
        log.add("x", value=n)
    got = list(itertools.chain(log.since(0, 300), log.since(300, 10_000)))
    assert [e["n"] for e in got] == list(range(1, log.seq + 1)) and got[-1]["value"] == log.seq - 1
    log.acknowledge(490)
    assert log.base == 491 and log.since(490, 1)[0]["n"] == 491
    log.acknowledge(log.seq)
    assert log.base == log.seq + 1 and log.since(log.seq, 10) == []


def test_a_message_of_events_is_bounded_in_bytes_and_none_is_lost() -> None:
    log = EventLog()
    for n in range(events.FRESH + 200):
        log.add("finished", s=0, i=n, a=1, json=["x" * 16_000])
    got: list[dict[str, Any]] = []
    while got == [] or got[-1]["n"] < log.seq:
        batch = log.since(len(got), 1000)
        packed = len(msgpack.packb(batch, use_bin_type=True))
        assert batch and packed < events.BATCH_BYTES + 20_000
        got.extend(batch)
    assert [event["n"] for event in got] == list(range(1, log.seq + 1))
    log.add("failed", traceback="x" * (2 * events.BATCH_BYTES))
    assert [event["n"] for event in log.since(log.seq - 1, 1000)] == [log.seq], "a large one goes alone"


def test_a_message_of_log_lines_is_bounded_and_none_is_lost() -> None:
    async def listen() -> None:
        subscriber = Subscriber(0, 10, 1, True)
        lines = [[0, -1, 1, 1.0, "stdout", f"{n} " + "x" * 1000] for n in range(5000)]
        subscriber.add_logs({"k": "logs", "w": "w", "lines": lines})
        got: list[Any] = []
        while taken := subscriber._take_logs():
            assert len(msgpack.packb(taken, use_bin_type=True)) < events.BATCH_BYTES
            assert sum(len(event["lines"]) for event in taken) <= events.LOG_LINES
            assert all(event["k"] == "logs" and event["w"] == "w" for event in taken)
            got.extend(line for event in taken for line in event["lines"])
        assert got == lines

    asyncio.run(listen())


def test_events_that_nobody_takes_are_bounded() -> None:
    log = EventLog(keep_bytes=10_000)
    for _ in range(events.FRESH + 5000):
        log.add("x", text="a" * 100)
    assert events.FRESH < log.seq - log.base + 1 < events.FRESH + 100
    assert log.since(log.base - 1, 1)[0]["n"] == log.base


def test_log_lines_for_a_slow_listener_are_dropped_not_piled_up() -> None:
    async def listen() -> int:
        subscriber = Subscriber(0, 10, 1, True)
        for _ in range(events.LOG_QUEUE + 10):
            subscriber.add_logs({})
        assert subscriber.logs is not None
        assert subscriber.dropped == 10
        return len(subscriber.logs)

    assert asyncio.run(listen()) == events.LOG_QUEUE


# ------------------------------------------------------------------------------------------------ commit


class Sink:
    """A journal in memory, as far as the committer knows one."""

    def __init__(self, **options: Any) -> None:
        self.segments: list[list[Any]] = []
        self.told: list[Any] = []
        self.relieved = 0
        self.broken: list[BaseException] = []
        self.error: BaseException | None = None
        self.committer = Committer(
            self.append,
            busy=lambda: True,
            committed=lambda tasks, seg: self.told.extend(tasks),
            broken=self.broken.append,
            relieved=self.relieve,
            **options,
        )

    def append(self, records: list[Any]) -> int:
        if self.error is not None:
            raise self.error
        self.segments.append(records)
        return len(self.segments)

    def relieve(self) -> None:
        self.relieved += 1


def test_records_are_committed_in_order_and_in_groups() -> None:
    async def go() -> None:
        sink = Sink(linger=0.2)
        sink.committer.add(["first"], (0, 0, 1))
        await asyncio.sleep(0.1)
        assert sink.segments == [[["first"]]] and sink.told == [(0, 0, 1)], "an idle journal writes at once"
        for n in range(100):
            sink.committer.add([n], (0, n, 1))
            await asyncio.sleep(0)
        await sink.committer.flush()
        assert [r for s in sink.segments[1:] for r in s] == [[n] for n in range(100)]
        assert len(sink.segments) <= 4

    asyncio.run(go())


def test_a_segment_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "SEGMENT_BYTES", 1000)

    async def go() -> None:
        sink = Sink()
        for n in range(10):
            sink.committer.add([n], size=400)
        sink.committer.add(["large"], size=5000)
        await sink.committer.flush()
        assert [len(s) for s in sink.segments] == [2, 2, 2, 2, 2, 1]

    asyncio.run(go())


def test_too_much_that_is_not_durable_pauses_dispatch_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "PENDING_RECORDS", 5)

    async def go() -> None:
        sink = Sink()
        for n in range(6):
            sink.committer.add([n])
        assert sink.committer.full and sink.relieved == 0
        await sink.committer.flush()
        assert not sink.committer.full and sink.relieved == 1

    asyncio.run(go())


def test_a_journal_that_refuses_is_told_once_and_takes_nothing_more() -> None:
    async def go() -> None:
        sink = Sink()
        sink.error = ValueError("no")
        sink.committer.add([1], (0, 0, 1))
        with pytest.raises(ValueError, match="no"):
            await sink.committer.flush()
        sink.error = None
        sink.committer.add([2])
        await asyncio.sleep(0.05)
        assert len(sink.broken) == 1 and sink.segments == [] and sink.told == []

    asyncio.run(go())


def test_a_held_journal_starts_no_append_until_released() -> None:
    async def go() -> None:
        sink = Sink()
        await sink.committer.hold(1.0)
        sink.committer.add([1])
        await asyncio.sleep(0.1)
        assert sink.segments == []
        sink.committer.release()
        await sink.committer.flush()
        assert sink.segments == [[[1]]]

    asyncio.run(go())


class Sent:
    """A dispatcher without Dask: what it sends, by the workers that it names."""

    def __init__(self, *workers: str, **step: Any) -> None:
        self.dispatcher = dispatch.Dispatcher(None, self, len, self)  # which function is sent does not matter here
        self.group = Group(StepDef({"name": "s", "call": "m:f", **step}), 2)
        self.group.eligible = dict.fromkeys(workers, 1)
        self.calls: list[tuple[list[str], list[int]]] = []
        self.later: list[Any] = []

    def on(self, **workers: Worker) -> None:
        """Lets it see a scheduler with these workers, whose loop turns in ``settle``."""
        for address, worker in workers.items():
            worker.address = address
        self.workers, self.loop = workers, self
        self.dispatcher._scheduler = self

    def add_callback(self, call: Any, *arguments: Any) -> None:
        self.later.append((call, arguments))

    def call_later(self, *_: Any) -> None:
        """Nobody waits so long here."""

    def settle(self) -> None:
        while self.later:
            call, arguments = self.later.pop(0)
            call(*arguments)

    def held(self, attempt: Attempt) -> bool:
        return False

    def blob(self, attempt: Attempt) -> bytes:
        return b""

    def get(self, graph: Any, keys: Any, *, workers: list[str], **_: Any) -> list[None]:
        flights = [self.dispatcher.flying[key] for key in keys]
        self.calls.append((workers, [a.item for flight in flights for a in flight.attempts]))
        return [None for _ in keys]

    def send(self, *attempts: Attempt | None) -> list[tuple[list[str], list[int]]]:
        batch = [attempt for attempt in attempts if attempt is not None]
        for attempt in batch:
            attempt.group = self.group
        self.calls.clear()
        self.dispatcher._send(self.group, batch)
        return self.calls

    def end(self) -> None:
        for flight in list(self.dispatcher.flying.values()):
            for attempt in list(flight.attempts):
                self.dispatcher._unload(attempt)


def held(worker: str | None, size: int) -> Output:
    return Output(1, {**HANDLE, "w": worker, "z": size}, None, None, False)


def test_a_step_goes_where_most_of_its_inputs_are_if_that_worker_is_free() -> None:
    run, much = State(), dispatch.HOLD_BYTES
    run.state.finish(0, 0, held("a", 2 * much))
    run.state.finish(0, 1, held("b", 3 * much))
    run.state.finish(0, 2, held(None, 9 * much))
    run.state.finish(0, 3, held("a", much // 4))
    run.state.finish(0, 4, held("gone", 9 * much))
    sent = Sent("a", "b")
    every = ["a", "b"]
    # More bytes count, not more inputs; of a list all of them.
    assert sent.send(run.submit(1, 0, [(0, 0), (0, 1), (0, 3)])) == [(["b"], [0])]
    sent.end()
    assert sent.send(run.submit(1, 1, [(0, ALL, 4)])) == [(["b"], [1])]
    # What is small, in the journal, in storage alone or on a worker that may not run it has no home.
    assert sent.send(run.submit(1, 9, [(0, 0), (0, 4)])) == [(["a"], [9])]
    for item, data in ((2, [(0, 3)]), (3, [(0, 2)]), (4, [(0, 4)]), (5, [])):
        assert sent.send(run.submit(1, item, data)) == [(every, [item])], data
    # One is as many as it runs at once: the others go where there is room.
    sent.end()
    batch = [run.submit(2, item, [(0, 0)]) for item in range(3)]
    assert sent.send(*batch) == [(["a"], [0]), (every, [1, 2])]
    assert sent.send(run.submit(2, 9, [(0, 0)])) == [(every, [9])]


def test_steps_that_ask_for_a_gpu_go_where_one_is_free() -> None:
    run = State()
    run.state.finish(0, 0, held("a", 2 * dispatch.HOLD_BYTES))
    sent = Sent("a", "b", resources={"GPU": 1})
    sent.group.eligible["b"] = 2
    batch = [run.submit(1, item) for item in range(3)]
    assert sorted(sent.send(*batch)) == [(["a"], [0]), (["b"], [1, 2])]
    # One behind each, where it has to be at all.
    more = [run.submit(1, item) for item in range(3, 6)]
    assert sorted(sent.send(*more)) == [(["a"], [3]), (["b"], [4, 5])]
    sent.end()
    assert sent.send(run.submit(2, 0, [(0, 0)]), run.submit(2, 1)) == [(["a"], [0]), (["b"], [1])]


def test_a_step_is_not_sent_again_to_a_worker_that_paused_unannounced() -> None:
    run, sent = State(), Sent()
    first, second = Worker("gpu-0-0", GPU=1), Worker("gpu-1-0", GPU=1)
    sent.on(a=first, b=second)
    attempt = run.submit(0, 0)
    assert attempt is not None
    attempt.run.steps[0].resources = {"GPU": 1}
    sent.dispatcher.ready(attempt, 2)
    sent.settle()
    assert sent.calls == [(["a"], [0])]
    first.status.name = "paused"
    sent.dispatcher.transition(attempt.flight.key, "waiting", "no-worker")
    sent.settle()
    assert sent.calls[1:] == [(["b"], [0])]


def test_of_what_a_run_told_and_what_was_handed_over_the_larger_counts() -> None:
    from daskade_runtime.demand import rows, wanted

    class Handed:
        flying: dict[str, Any] = {}

        def demand(self) -> Any:
            yield "one", None, {"GPU": 1.0}, 1
            yield "one", "cpu", {}, 4
            yield "two", None, {"GPU": 1.0}, 2

    class Idle:
        queued: tuple[Any, ...] = ()
        unrunnable: tuple[Any, ...] = ()
        workers: dict[str, Any] = {}

    gpu: dict[str, Any] = {"group": None, "resources": {"GPU": 1.0}}
    cpu: dict[str, Any] = {"group": "cpu", "resources": {}}
    told = {
        # One that was told of became ready: it is not counted twice.
        "one": [{**gpu, "count": 1, "later": 1}, {**cpu, "count": 6, "later": 1}],
        "two": [{**gpu, "count": 1, "later": 0}],
        "three": [{**gpu, "count": 5, "later": 3}],
    }
    # Of what was told to come later, nothing that was handed over already comes later.
    expected = [{**cpu, "count": 6, "later": 1}, {**gpu, "count": 1 + 2 + 5, "later": 3}]
    assert rows(*wanted(Idle(), Handed(), told)) == expected
