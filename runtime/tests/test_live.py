"""An open run: what of its attempts' answers comes into the journal, and what stays in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from daskade_runtime import live as live_
from daskade_runtime.journal import Journal, read_all
from daskade_runtime.limits import RESULT_JSON, SEGMENT
from daskade_runtime.live import LiveRun
from daskade_runtime.pages import value_of
from daskade_runtime.recall import recall
from daskade_runtime.run import RUNNING
from daskade_runtime.storage import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store({"url": f"file://{tmp_path}/store"})


def scheduler(dispatcher: Any, *workers: str) -> SimpleNamespace:
    return SimpleNamespace(dispatcher=dispatcher, scheduler=SimpleNamespace(workers=dict.fromkeys(workers)))


def on_run(store: Store, test: Callable[[LiveRun], Awaitable[None]]) -> None:
    """Has a run with four attempts that are running."""

    async def go() -> None:
        dispatcher = SimpleNamespace(ready=lambda *_: None, answered=lambda *_: None)
        journal, folded = Journal.open(store, "r", None, True, {"spec": b"{}", "spec_digest": "aa"})
        request = {"run": "r", "steps": [{"name": "a"}], "storage": {"url": store.url}, "spec_digest": "aa"}
        live = LiveRun(scheduler(dispatcher), request, store, journal, folded)
        live.submit([[0, i, 1, 0, None, [], []] for i in range(4)])
        for attempt in live.state.current.values():
            attempt.state = RUNNING
        await test(live)

    asyncio.run(go())


def answer(json: Any = None, **handle: Any) -> dict[str, Any]:
    known = {"z": 1, "d": bytes(32), "s": "json", "b": b"1", **handle}
    return {"ok": True, "handle": known, "json": None if json is None else [json], "t0": 1.0, "t1": 2.0}


def test_an_output_that_the_journal_cannot_take_fails_its_attempt_and_stops_nothing(store: Store) -> None:
    elements = SEGMENT // 40

    async def test(live: LiveRun) -> None:
        live.answered(0, 0, 1, answer(json=1), "w")
        live.answered(
            *(0, 1, 1, answer(n=elements, x=bytes(8 * (elements + 1)), m=bytes(32 * elements), b=None, u="u"), "w")
        )
        live.answered(0, 2, 1, answer(json="x" * RESULT_JSON), "w")
        live.answered(0, 3, 1, answer(json=4), "w")
        await live.committer.flush()
        assert live.committer.failed is None
        assert [output.json for output in live.state.outputs.values()] == ["1", "4"]

    on_run(store, test)
    folded = read_all(store, "r")
    assert list(folded.committed) == [(0, 0), (0, 3)]
    failed = [(entry[:5], entry[5]) for entry in folded.failed]
    assert [entry for entry, _ in failed] == [(0, i, 1, "data", "OutputNotRecorded") for i in (1, 2)]
    assert "does not fit into a segment" in failed[0][1] and f"at most {RESULT_JSON} are allowed" in failed[1][1]


def test_results_are_kept_while_there_is_room_and_read_from_the_journal_beyond(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_, "RESULTS_KEPT", 5000)

    async def test(live: LiveRun) -> None:
        for i in range(4):
            live.answered(0, i, 1, answer(json=str(i) * 2000), "w")
        assert live.results > 5000 and not live.snapshot().away(), "the journal does not have them yet"
        await live.committer.flush()
        assert live.results <= 5000
        snapshot = live.snapshot()
        away = {task for tasks in snapshot.away().values() for task in tasks}
        assert 0 < len(away) < 4
        texts = recall(store, "r", snapshot.away())
        assert {task: value_of(text) for task, text in texts.items()} == {(0, i): [str(i) * 2000] for _, i in away}
        rows = [row for page in snapshot.pages() for row in page["committed"]]
        told = [2002 if (0, i) in away else [str(i) * 2000] for i in range(4)]
        assert [row[4] for row in rows] == told
        assert [row[4] for row in snapshot.whole(texts)["committed"]] == [[str(i) * 2000] for i in range(4)]

    on_run(store, test)


def test_a_run_that_is_opened_again_asks_no_worker_that_is_gone_for_an_output(store: Store) -> None:
    """A reader waited ten seconds for it before it read from storage."""

    async def first(live: LiveRun) -> None:
        live.answered(0, 0, 1, answer(b=None, u="data/0/0-1-x", w="tcp://gone:1"), "w")
        live.answered(0, 1, 1, answer(b=None, u="data/0/1-1-x", w="tcp://here:1"), "w")
        await live.committer.flush()

    async def again() -> None:
        journal, folded = Journal.open(store, "r", None, False, {"spec_digest": "aa"})
        request = {"run": "r", "steps": [{"name": "a"}], "storage": {"url": store.url}, "spec_digest": "aa"}
        live = LiveRun(scheduler(None, "tcp://here:1"), request, store, journal, folded)
        outputs = live.state.outputs
        assert [outputs[0, i].holder for i in range(2)] == [None, "tcp://here:1"]
        sent = [msgpack.unpackb(outputs[0, i].handle)["w"] for i in range(2)]
        assert sent == [None, "tcp://here:1"]

    on_run(store, first)
    asyncio.run(again())
