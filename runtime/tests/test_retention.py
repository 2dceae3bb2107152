"""What ended runs have stored: who refers to it, marks, and removal, over the wire."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime.earlier import marks_of
from daskade_runtime.journal import read_all
from daskade_runtime.retention import _discard, _mark, origin_of
from daskade_runtime.storage import DirectoryStore
from support.dask.local import Cluster
from support.dask.run import Run
from support.dask.wire import RpcError
from tests.earlier import STEPS, a_run, earlier


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def ask(run: Run, op: str, **words: Any) -> dict[str, Any]:
    """An operation about what a run has stored."""
    words = {"run": run.uid, "storage": run.request["storage"], **words}
    found: dict[str, Any] = run.conn.rpc(f"daskade-{op}", **words)
    return found


def paths(run: Run, folder: str) -> list[str]:
    found: list[str] = ask(run, "objects", folder=folder)["paths"]
    return found


def taking_over(dask: Cluster, store: Path, source: Run) -> Run:
    """A run that is open and has taken the first step's output over."""
    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p")
    earlier(run)
    run.open()
    run.rpc("adopt", items=[[0, -1, source.uid, 0, -1]])
    return run


def test_a_run_is_removed_folder_by_folder_once_it_is_marked(dask: Cluster, store: Path) -> None:
    run = a_run(dask, store)
    assert ask(run, "stored") | {"status": "OK"} == {
        "status": "OK",
        "open": False,
        "removed": [],
        "journal": {"closed": True, "origins": []},
    }
    (data,) = paths(run, "data")
    with pytest.raises(RpcError, match="NotMarked"):
        ask(run, "discard", paths=[data])
    ask(run, "mark", what=["outputs"])
    ask(run, "mark", what=["outputs"])
    (segment, *_) = paths(run, "journal")
    with pytest.raises(RpcError, match="NotMarked"):
        ask(run, "discard", paths=[segment])
    ask(run, "discard", paths=[data])
    ask(run, "discard", paths=[data])
    assert paths(run, "data") == [] and paths(run, "journal")
    ask(run, "mark", what=["record"])
    ask(run, "discard", paths=paths(run, "journal") + paths(run, "logs"), pipeline="p")
    left = [str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()]
    assert sorted(left) == [f"runs/{run.uid}/removed/{what}" for what in ("outputs", "record")]
    assert ask(run, "stored")["journal"] is None


def test_what_killed_writers_have_left_goes_when_the_run_ends_and_when_it_is_removed(
    dask: Cluster, store: Path
) -> None:
    def left(folder: str, name: str) -> Path:
        file = store / "runs" / run.uid / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
        return file

    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p").open()
    at_end = [left("data/0", f".tmp-{run.uid}@{run.epoch}-1-ab"), left("journal", f".tmp-{run.uid}@{run.epoch}-1-ab")]
    run.close()
    assert [file for file in at_end if file.exists()] == []
    # Of a release that did not name who writes; and of a worker that had not ended yet.
    later = [left("data/7", ".tmp-1-ab"), left("logs", f".tmp-{run.uid}@{run.epoch}-1-ab")]
    paths(run, "data")
    assert all(file.exists() for file in later), "the run is not marked as removed"
    ask(run, "mark", what=["outputs", "record"])
    for folder in ("data", "kept", "logs", "code", "journal"):
        found = paths(run, folder)
        if found:
            ask(run, "discard", paths=found)
    ask(run, "discard", paths=[], pipeline="p")
    files = [path.name for path in (store / "runs" / run.uid).rglob("*") if path.is_file()]
    assert sorted(files) == ["outputs", "record"]


@pytest.mark.parametrize(
    "path", ["../x", "data/../../x", "/data/x", "data", "data/", "removed/outputs", "other/x", "", 7, None]
)
def test_nothing_outside_the_folders_of_the_run_is_removed(dask: Cluster, store: Path, path: Any) -> None:
    run = a_run(dask, store)
    ask(run, "mark", what=["outputs", "record"])
    before = sorted(store.rglob("*"))
    with pytest.raises(RpcError, match="InvalidKey"):
        ask(run, "discard", paths=[path])
    assert sorted(store.rglob("*")) == before


def test_a_run_that_is_open_is_neither_removed_nor_closed(dask: Cluster, store: Path) -> None:
    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p").open()
    ask(run, "mark", what=["outputs", "record"])
    assert ask(run, "stored")["open"]
    requests: list[tuple[str, dict[str, Any]]] = [("discard", {"paths": []}), ("seal", {"final": {"state": "Failed"}})]
    for op, words in requests:
        with pytest.raises(RpcError, match="RunOpen"):
            ask(run, op, **words)
    run.close()


def test_who_takes_over_refers_to_it_before_it_commits_and_tells_what_it_needs(
    dask: Cluster, store: Path
) -> None:
    first = a_run(dask, store)
    assert ask(first, "references")["names"] == []
    second = taking_over(dask, store, first)
    assert ask(first, "references")["names"] == [f"{second.uid}/1"]
    user = ask(second, "user", of=first.uid)
    assert (user["removed"], user["closed"], user["name"]) == (False, False, "test")
    second.close()
    user = ask(second, "user", of=first.uid)
    assert (user["removed"], user["closed"], user["paths"]) == (False, True, paths(first, "data"))
    assert ask(second, "stored")["journal"]["origins"] == [first.uid]
    # Each opening is seen as a new one.
    again = Run(dask.address, f"file://{store}", STEPS, uid=second.uid, pipeline="p")
    earlier(again)
    again.open(create=False, reopen=True)
    again.rpc("adopt", items=[[1, -1, first.uid, 1, -1], [0, -1, first.uid, 0, -1]])
    assert len(ask(first, "references")["names"]) == 2
    again.close()
    ask(second, "mark", what=["outputs"])
    assert ask(second, "user", of=first.uid)["removed"]
    gone = Run(dask.address, f"file://{store}", STEPS)
    assert ask(gone, "user", of=first.uid)["removed"], "without a journal nothing is needed"


def test_a_copy_of_a_copy_refers_to_the_run_whose_object_it_is(dask: Cluster, store: Path) -> None:
    first = a_run(dask, store)
    second = taking_over(dask, store, first)
    second.close()
    third = taking_over(dask, store, second)
    names = ask(first, "references")["names"]
    assert sorted(names) == sorted([f"{second.uid}/1", f"{third.uid}/1"])
    assert ask(second, "references")["names"] == []
    third.close()


def test_of_a_removal_and_a_run_that_takes_over_one_sees_the_other(dask: Cluster, store: Path) -> None:
    first = a_run(dask, store)
    second = Run(dask.address, f"file://{store}", STEPS, pipeline="p")
    assert [told["removed"] for told in earlier(second)] == [None]
    second.open()
    # It was offered before, and is marked by the time at which it is taken.
    ask(first, "mark", what=["outputs"])
    with pytest.raises(RpcError, match="OutputsRemoved"):
        second.rpc("adopt", items=[[0, -1, first.uid, 0, -1]])
    with pytest.raises(RpcError, match="NotFound"):
        second.rpc("read", step=0, item=-1, max=0)
    assert ask(first, "references")["names"], "who removes has seen that somebody was about to take"
    second.close()


def test_a_removed_run_is_told_of_without_outputs_and_not_gone_on_with(dask: Cluster, store: Path) -> None:
    first, second = a_run(dask, store), a_run(dask, store)
    ask(second, "mark", what=["outputs"])
    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p")
    told = earlier(run)
    assert [entry["uid"] for entry in told] == [first.uid, second.uid]
    assert (told[0]["removed"], told[1]["name"], told[1]["committed"]) == (None, "test", [])
    assert told[1]["removed"] > 1e9
    assert [entry["uid"] for entry in earlier(run, wanted=second.uid)] == [second.uid]
    for words in ({}, {"reopen": True}):
        again = Run(dask.address, f"file://{store}", STEPS, uid=second.uid, pipeline="p")
        with pytest.raises(RpcError, match="OutputsRemoved"):
            again.open(create=False, **words)
    assert read_all(DirectoryStore(str(store)), second.uid).final is not None, "it was not touched"


def test_a_journal_that_was_left_open_is_closed_and_its_writer_fenced(dask: Cluster, store: Path) -> None:
    run = Run(dask.address, f"file://{store}", STEPS, pipeline="p").open()
    run.rpc("forget")
    assert ask(run, "stored")["journal"] == {"closed": False, "origins": []}
    ask(run, "seal", final={"state": "Failed", "message": "m"})
    folded = read_all(DirectoryStore(str(store)), run.uid)
    assert folded.final is not None and folded.final["message"] == "m" and folded.epoch == 2
    assert ask(run, "stored")["journal"]["closed"]


def test_an_older_leader_is_refused(dask: Cluster, store: Path) -> None:
    run = a_run(dask, store)
    ask(run, "mark", what=["outputs"], lead=7)
    requests: list[tuple[str, dict[str, Any]]] = [
        ("mark", {"what": []}),
        ("discard", {"paths": []}),
        ("seal", {"final": {}}),
    ]
    for op, words in requests:
        with pytest.raises(RpcError, match="StaleLeader"):
            ask(run, op, lead=6, **words)


def test_of_a_journal_the_end_goes_first_and_all_else_before_it(tmp_path: Path) -> None:
    class Recording(DirectoryStore):
        def delete(self, keys: Iterable[str]) -> None:
            keys = list(keys)
            order.extend(keys)
            super().delete(keys)

    order: list[str] = []
    store = Recording(str(tmp_path))
    _mark(store, "r", ["record"])
    names = [f"journal/{seg:010d}.seg" for seg in range(3)] + ["logs/a", "code/c.zip"]
    for name in names:
        store.put(f"runs/r/{name}", b"")
    store.put("pipelines/148de9c5a7a44d19/1-n-r", b"")
    _discard(store, "r", names, "p")
    ends = [key.rpartition("/")[2] for key in order]
    assert ends == ["a", "c.zip", "0000000002.seg", "0000000001.seg", "0000000000.seg", "1-n-r"]


def test_marks_of_a_run_are_its_own(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    for end in ("1-n-a-b", "1-n-b", "2-n-x-a-b"):
        store.put(f"pipelines/148de9c5a7a44d19/{end}", b"")
    assert marks_of(store, "p", "a-b") == ["pipelines/148de9c5a7a44d19/1-n-a-b"]


@pytest.mark.parametrize(
    ("handle", "origin"),
    [
        ({"u": "data/0/a"}, None),
        ({"u": "/runs/x/data/0/a"}, "x"),
        ({"u": "/models/a.json"}, None),
        ({"u": "/runs/x"}, None),
        ({"u": None, "b": b""}, None),
    ],
)
def test_whose_object_a_handle_names(handle: dict[str, Any], origin: str | None) -> None:
    assert origin_of(handle) == origin
