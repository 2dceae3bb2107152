"""Outputs of earlier runs: read, told and taken over, over the wire."""

from __future__ import annotations

from pathlib import Path

import pytest

from daskade_runtime import earlier as earlier_
from daskade_runtime.earlier import Past, mark_key
from daskade_runtime.fold import Folded
from daskade_runtime.results import Away
from support.dask.local import Cluster
from support.dask.run import Run
from support.dask.wire import RpcError
from tests.earlier import STEPS, a_run, earlier


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_an_output_is_taken_over_and_read_by_a_later_step(dask: Cluster, store: Path) -> None:
    first = a_run(dask, store)
    second = Run(dask.address, f"file://{store}", STEPS, pipeline="p")
    (told,) = earlier(second)
    assert (told["uid"], told["spec"], told["gone"]) == (first.uid, first.request["spec"], [])
    assert [entry[:2] for entry in told["committed"]] == [[0, -1], [1, -1]]
    second.open()
    events = second.follow()
    second.rpc("adopt", items=[[0, -1, first.uid, 0, -1]])
    second.submit((1, -1, None, [[0, -1]]))
    assert events.wait_for("finished", s=1)[0]["json"] == 100_000
    assert second.rpc("read", step=0, item=-1, max=1 << 20)["path"].startswith(f"/runs/{first.uid}/data/")
    events.wait(lambda es: sum(len(e["tasks"]) for e in es if e["k"] == "committed") == 2)
    second.close()

    again = Run(dask.address, f"file://{store}", STEPS, uid=second.uid).open(create=False, reopen=True)
    assert again.snapshot["adopted"] == [[0, -1]]
    again.close()
    third = Run(dask.address, f"file://{store}", STEPS, pipeline="p")
    assert [run["uid"] for run in earlier(third)] == [second.uid, first.uid], "the newest first"
    third.open()
    third.rpc("adopt", items=[[0, -1, second.uid, 0, -1]])
    path = third.rpc("read", step=0, item=-1, max=0)["path"]
    assert path.startswith(f"/runs/{first.uid}/data/"), "not a copy of a copy"
    third.close()


def test_runs_are_found_by_pipeline_name_and_uid(dask: Cluster, store: Path) -> None:
    first, second = a_run(dask, store, "one"), a_run(dask, store, "two")
    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p")
    assert earlier(run, "other") == []
    assert [told["uid"] for told in earlier(run, wanted="one")] == [first.uid]
    assert [told["uid"] for told in earlier(run, wanted=second.uid)] == [second.uid]
    assert [told["uid"] for told in earlier(run, "other", first.uid)] == [first.uid]
    assert earlier(run, wanted="../x") == []


def test_an_object_that_is_gone_or_cut_is_told(dask: Cluster, store: Path) -> None:
    first = a_run(dask, store)
    (data,) = [path for path in (store / "runs" / first.uid / "data").rglob("*") if path.is_file()]
    data.write_bytes(data.read_bytes()[:-1])
    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p")
    assert earlier(run)[0]["gone"] == [[0, -1]]
    data.unlink()
    assert earlier(run)[0]["gone"] == [[0, -1]]


def test_only_what_was_told_is_taken_over(dask: Cluster, store: Path) -> None:
    first = a_run(dask, store)
    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p").open()
    for items in ([[0, -1, first.uid, 0, -1]], [[0]], "x"):
        with pytest.raises(RpcError):
            run.rpc("adopt", items=items)
    earlier(run)
    with pytest.raises(RpcError, match="NotFound"):
        run.rpc("adopt", items=[[7, -1, first.uid, 0, -1]])
    run.rpc("adopt", items=[[0, -1, first.uid, 0, -1], [0, -1, first.uid, 0, -1]])
    run.close()


def test_a_broken_journal_keeps_nobody_from_running(dask: Cluster, store: Path) -> None:
    first, second = a_run(dask, store), a_run(dask, store)
    segment = store / "runs" / second.uid / "journal" / "0000000000.seg"
    segment.chmod(0o644)
    segment.write_bytes(b"nothing")
    (store / mark_key("p", "n", "without-a-journal", 2e9)).write_bytes(b"")
    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p")
    assert [told["uid"] for told in earlier(run)] == [first.uid]


def test_marks_are_in_order_newest_first() -> None:
    keys = [mark_key("p", "n", "u", t) for t in (2e9, 1.7e9 + 0.001, 1.7e9)]
    assert keys == sorted(keys) and len({len(key) for key in keys}) == 1


def test_outputs_whose_results_are_more_than_is_told_are_not_offered() -> None:
    """A run must not fail to begin because earlier runs have large results."""

    def past(uid: str, *results: str | None | Away) -> Past:
        handle = {"u": None, "z": 1, "d": bytes(32), "s": "json", "b": b"1"}
        committed = {(0, i): (1, handle, None, 1.0, 2.0, None, result) for i, result in enumerate(results)}
        return Past(uid, Folded(committed=committed))

    text = '"' + "x" * 398 + '"'
    runs = [past("new", text, None, text), past("old", None, text, Away(3, 400), "1", None)]
    earlier_._leave_results_out(runs, 1000)
    told = {run.uid: run.told() for run in runs}
    assert told["new"]["gone"] == []
    assert sorted(told["old"]["gone"]) == [[0, 1], [0, 2], [0, 3]], "no result is told after one that is left out"
    assert [row[4] for row in told["old"]["committed"]] == [None] * 5
    assert [row[4] for row in told["new"]["committed"]] == [["x" * 398], None, ["x" * 398]]
    (kept,) = [past("r", text, Away(3, 400), text)]
    earlier_._leave_results_out([kept], 10_000)
    assert kept.told()["gone"] == [[0, 1]]


def test_a_driver_says_how_many_results_it_takes(dask: Cluster, store: Path) -> None:
    run = a_run(dask, store)
    fields = {"run": "another", "storage": run.request["storage"], "pipeline": "p", "wanted": None}
    told = {room: run.conn.rpc("daskade-earlier", results=room, **fields)["runs"][0] for room in (5, 6)}
    assert (told[5]["gone"], told[6]["gone"]) == ([[1, -1]], []), "the result is 100000"
