"""Snapshots page by page, and results that are not kept in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from daskade_runtime import journal as journal_
from daskade_runtime.fold import Folded
from daskade_runtime.journal import Journal, JournalError
from daskade_runtime.limits import RESULT_JSON
from daskade_runtime.pages import PAGE, PAGE_VALUES, Snapshot, Told
from daskade_runtime.recall import KEPT, Recalled, recall
from daskade_runtime.results import Away, size_of
from daskade_runtime.storage import Store, open_store
from support.dask.local import Cluster
from support.dask.run import Run
from support.dask.steps import args, ref, step, values
from support.dask.wire import RpcError


def pages_of(run: Run) -> list[dict[str, Any]]:
    """Opens the run again and reads all pages of its snapshot."""
    reply = run.conn.rpc("daskade-open", create=False, epoch=None, pages=True, **run.request)
    run.epoch, run.cursor = reply["epoch"], reply["cursor"]
    pages, token = [reply["snapshot"]], reply["more"]
    while token is not None:
        reply = run.conn.rpc("daskade-snapshot", run=run.uid, token=token, page=len(pages))
        pages.append(reply["snapshot"])
        token = reply["more"]
    return pages


def together(pages: list[dict[str, Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for page in pages:
        for name, rows in page.items():
            found.setdefault(name, []).extend(rows)
    return found


def test_a_page_has_so_many_bytes_and_values_and_all_of_them_are_the_whole() -> None:
    result = json.dumps("x" * 10_000)
    snapshot = Snapshot(
        lengths=[(0, 700), (1, 60_000)],
        committed=[((0, i), Told(1, [i], result)) for i in range(700)],
        skipped=[(1, i, "WhenFalse", "ü" * 50) for i in range(60_000)],
        finished=[((2, -1), Told(3, None, None))],
    )
    pages = list(snapshot.pages())
    assert len(pages) > 10
    for page in pages:
        assert len(msgpack.packb(page)) < PAGE + 20_000
        assert sum(8 if name != "skipped" else 5 for name, rows in page.items() for _ in rows) < PAGE_VALUES + 10
    assert list(pages[0])[0] == "lengths", "what follows refers to it"
    whole = {name: rows for name, rows in snapshot.whole({}).items() if rows}
    assert together(pages) == {name: [list(row) for row in rows] for name, rows in whole.items()}
    assert whole["committed"][3] == [0, 3, 1, [3], ["x" * 10_000]]


def test_a_row_that_is_larger_than_a_page_has_a_page_of_its_own() -> None:
    named = [(0, i, [["p" * 100, "v" * 100]] * (10_000 if i == 1 else 1)) for i in range(3)]
    assert [len(page["named"]) for page in Snapshot(named=named).pages()] == [1, 1, 1]


def test_nothing_is_a_page_too() -> None:
    assert list(Snapshot().pages()) == [{}]
    assert list(Snapshot({"state": "Failed"}).pages()) == [{"final": {"state": "Failed"}}]


# ------------------------------------------------------------ results that are away


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store({"url": f"file://{tmp_path}/store"})


def committed(i: int, result: str) -> list[Any]:
    handle = {**dict.fromkeys(("u", "w", "n", "x", "m")), "z": 1, "d": bytes(32), "s": "json", "b": b"1"}
    return ["committed", 0, i, 1, handle, None, 1.0, 2.0, None, result]


def test_results_beyond_the_room_stay_in_the_journal_and_are_read_there(store: Store) -> None:
    journal, _ = Journal.open(store, "r", None, True, {"spec_digest": "aa"})
    texts = [json.dumps(str(i) * 100) for i in range(10)]
    for i in range(10):
        journal.append([committed(i, texts[i]), committed(i, '"a later commit"')])
    folded = Folded(room=sum(map(len, texts[:4])))
    journal_._read_on(store, "r", folded)
    found = [entry[6] for entry in folded.committed.values()]
    assert found[:4] == texts[:4]
    assert found[4:] == [Away(i + 1, len(texts[i])) for i in range(4, 10)]
    away = {entry[6].seg: {task} for task, entry in folded.committed.items() if isinstance(entry[6], Away)}
    assert recall(store, "r", away) == {(0, i): texts[i] for i in range(4, 10)}


def test_a_result_that_the_journal_does_not_have_is_told_of(store: Store) -> None:
    Journal.open(store, "r", None, True, {"spec_digest": "aa"})
    with pytest.raises(JournalError, match="it has no result of step 0, item 3") as caught:
        recall(store, "r", {0: {(0, 3)}})
    assert caught.value.reason == "RecordUnreadable"


def test_what_was_read_again_is_kept_for_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _ = Journal.open(store, "r", None, True, {"spec_digest": "aa"})
    texts = [json.dumps("x" * (KEPT // 3)) for _ in range(6)]
    for i in range(6):
        journal.append([committed(i, texts[i])])
    got: list[str] = []
    get = type(store).get

    def counted(self: Store, key: str, *more: Any) -> bytes:
        got.append(key)
        data: bytes = get(self, key, *more)
        return data

    monkeypatch.setattr(type(store), "get", counted)
    recalled = Recalled()
    for i in (0, 0, 1, 0, 1):
        assert recalled.read(store, "r", {i + 1: {(0, i)}}) == {(0, i): texts[i]}
    assert len(got) == 2
    for i in range(6):
        recalled.read(store, "r", {i + 1: {(0, i)}})
    assert recalled._bytes <= KEPT


# ------------------------------------------------------------ on a scheduler

RESULT = step("text", "builtins:str.__mul__", args("ab", ref(2, 0)), result=2, isolation="thread")


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def finish_items(run: Run, count: int, first: int = 0) -> None:
    events = run.follow()
    run.submit(*[(0, i, values(RESULT_JSON // 2 - 100)) for i in range(first, first + count)])
    events.wait(lambda told: sum(len(e["tasks"]) for e in told if e["k"] == "committed") >= count or None, 60)
    events.close()


def test_a_run_is_read_page_by_page_and_at_once(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [RESULT]).open()
    run.rpc("record", records=[["length", 0, 200]])
    finish_items(run, 100)
    pages = pages_of(run)
    assert len(pages) > 1 and pages[0]["lengths"] == [[0, 200]]
    found = together(pages)["committed"]
    assert sorted(row[1] for row in found) == list(range(100))
    assert all(row[4] == ["ab" * (RESULT_JSON // 2 - 100)] for row in found)
    whole = run.conn.rpc("daskade-open", create=False, epoch=None, **run.request)
    assert whole["snapshot"]["committed"] == found and "more" not in whole, "for a driver that knows no pages"
    run.epoch = whole["epoch"]
    run.close()


def test_a_page_that_is_not_kept_is_refused(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [RESULT]).open()
    finish_items(run, 100)
    first = run.conn.rpc("daskade-open", create=False, epoch=None, pages=True, **run.request)
    second = run.conn.rpc("daskade-open", create=False, epoch=None, pages=True, **run.request)
    for token, page in ((first["more"], 1), (second["more"], 2), ("x", 1)):
        with pytest.raises(RpcError, match="open the run again") as caught:
            run.conn.rpc("daskade-snapshot", run=run.uid, token=token, page=page)
        assert caught.value.reason == "Gap"
    run.epoch = second["epoch"]
    run.close()


def test_results_are_told_as_many_at_a_time_as_fit(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [RESULT]).open()
    finish_items(run, 100)
    wanted = [[0, i] for i in range(99, -1, -1)]
    rows: list[Any] = []
    asked = 0
    while len(rows) < 100:
        rows += run.rpc("results", tasks=wanted[len(rows) :])["results"]
        asked += 1
    assert [row[:2] for row in rows] == wanted and 1 < asked < 10
    assert all(row[2] == ["ab" * (RESULT_JSON // 2 - 100)] for row in rows)
    with pytest.raises(RpcError, match="no result of step 0, item 100"):
        run.rpc("results", tasks=[[0, 100]])
    run.close()


def test_a_closed_run_tells_its_results_in_pages(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [RESULT]).open()
    results = {"small": 1, "deep": json.loads("[" * 70 + "]" * 70), "large": "ä" * (3 << 20)}
    run.rpc("close", final={"state": "Succeeded", "results": results})
    pages = pages_of(run)
    assert len(pages) > 3 and (pages[0]["final"]["state"], pages[0]["final"]["results"]["small"]) == ("Succeeded", 1)
    texts: dict[str, str] = {}
    for name, index, count, text in together(pages[1:])["results"] + pages[0].get("results", []):
        assert index < count
        texts[name] = texts.get(name, "") + text
    assert {name: json.loads(text) for name, text in texts.items()} == {k: results[k] for k in ("deep", "large")}
    whole = run.conn.rpc("daskade-open", create=False, epoch=None, **run.request)
    assert whole["snapshot"]["final"]["results"] == results


def test_sizes_are_those_of_the_text_in_the_journal() -> None:
    assert [size_of(json) for json in (None, "aä", "aä".encode(), Away(3, 7))] == [0, 3, 3, 7]
