"""Records of outputs that count no more: what they add up to, who reads them, and what a live run makes of them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import journal, storage
from daskade_runtime.fold import fold
from daskade_runtime.journal import Journal, read_all, segment_key
from daskade_runtime.run import ALL, Output, RunState
from daskade_runtime.storage import Store
from support import TOP
from support.dask.local import Cluster
from support.dask.run import Run
from support.dask.steps import args, ref, step, values

GOLDEN = TOP / "tests" / "golden" / "journal"
OLD_READER = GOLDEN / "reader-1.zip"
RUN = "11111111-2222-4333-8444-555555555555"
OPENED: dict[str, Any] = {
    "name": "demo",
    "spec": b"{}",
    "spec_digest": "aa",
    "code": {"digest": "bb", "zip": b"zip"},
    "runtime": "cc",
    "dask": "2026.8.0",
    "python": "3.11.7",
}


def handle(data: bytes) -> dict[str, Any]:
    return {"u": None, "z": len(data), "d": hashlib.sha256(data).digest(), "s": "json", "b": data}


def committed(step: int, item: int = -1, attempt: int = 1, data: bytes = b"1") -> list[Any]:
    return ["committed", step, item, attempt, handle(data), "cpu-0-1", 1.0, 2.0, None, None]


def invalidated(step: int, item: int = -1, attempt: int = 1, reason: str = "OutputLost") -> list[Any]:
    return ["invalidated", step, item, attempt, reason, "why", 3.0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = storage.open_store({"url": f"file://{tmp_path}/store"})
    found.probe()
    return found


# ------------------------------------------------------------------ what records add up to


def order(*records: list[Any]) -> list[int]:
    return [task[0] for task, _ in fold(records).in_order()]


def test_what_was_invalidated_is_not_committed_until_it_is_again() -> None:
    folded = fold([committed(0), committed(1), invalidated(0)])
    assert set(folded.committed) == {(1, -1)}
    folded.apply([committed(0, attempt=2, data=b"2"), committed(0, attempt=3, data=b"3")])
    assert folded.committed[0, -1][0] == 2, "the first commit counts again"
    assert folded.reruns.invalidated == {(0, -1): (1, True)}


def test_a_task_that_comes_out_the_same_keeps_its_place_and_another_one_does_not() -> None:
    before = [committed(0), committed(1), committed(2)]
    assert order(*before, invalidated(0), committed(0, attempt=2)) == [0, 1, 2]
    assert order(*before, invalidated(0), committed(0, attempt=2, data=b"2")) == [1, 2, 0]
    same, other = fold([*before, invalidated(0), committed(0)]), fold([*before, invalidated(0), committed(0, data=b"2")])
    assert (list(same.reruns.changed), list(other.reruns.changed)) == ([], [(0, -1)])
    # Once changed, what stands before it was made from something else, however often it is made again.
    other.apply([invalidated(0, attempt=2, reason="InputChanged"), committed(0, attempt=3, data=b"2"), committed(3)])
    assert [task[0] for task, _ in other.in_order()] == [1, 2, 0, 3] and list(other.reruns.changed) == [(0, -1)]


def test_a_run_that_was_closed_and_goes_on_may_lose_an_output_once_more() -> None:
    folded = fold([["opened", {"epoch": 1, "t": 0.0}], committed(0), invalidated(0), committed(0, attempt=2)])
    folded.apply([["final", {"state": "Failed"}], ["opened", {"epoch": 2, "t": 1.0}]])
    assert folded.reruns.invalidated == {(0, -1): (1, False)}


def test_lengths_and_decisions_are_invalidated_too() -> None:
    folded = fold([["length", 1, 3], ["skipped", 1, 2, "WhenFalse", None], ["refused", 2, -1, "StepError", None]])
    folded.apply([invalidated(1, reason="InputChanged"), invalidated(1, 2), invalidated(2)])
    assert (folded.lengths, folded.skipped, folded.refused) == ({}, {}, {})
    folded.apply([["length", 1, 4]])
    assert folded.lengths == {1: 4}


# ---------------------------------------------------------------------------- formats


def by_the_old_runtime(code: str, *words: str) -> str:
    """What the modules of the last release that knew format 1 alone say."""
    check = "import sys\nfrom daskade_runtime import journal, storage\nassert 'reader-1.zip' in journal.__file__\n"
    done = subprocess.run(
        [sys.executable, "-c", check + code, *words],
        env={"PYTHONPATH": str(OLD_READER), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


READ = """
try:
    print(sorted(journal.read_all(storage.open_store({"url": sys.argv[1]}), sys.argv[2]).committed))
except journal.JournalError as error:
    print(error.reason, error)
"""
OPEN = """
try:
    journal.Journal.open(storage.open_store({"url": sys.argv[1]}), sys.argv[2], None, False, {})
except journal.JournalError as error:
    print(error.reason, error)
"""
WRITE = """
import hashlib
handle = {"u": None, "z": 1, "d": hashlib.sha256(b"1").digest(), "s": "json", "b": b"1"}
opened = dict.fromkeys(["name", "spec", "spec_digest", "code", "runtime", "dask", "python"])
mine, _ = journal.Journal.open(storage.open_store({"url": sys.argv[1]}), sys.argv[2], None, True, opened)
mine.append([["committed", s, -1, 1, handle, None, 1.0, 2.0, None, None] for s in range(2)])
"""


def test_an_older_reader_reads_a_journal_in_which_nothing_was_invalidated(store: Store) -> None:
    mine, _ = Journal.open(store, RUN, None, True, OPENED)
    mine.append([committed(0), ["final", {"state": "Succeeded"}]])
    assert by_the_old_runtime(READ, store.url, RUN) == "[(0, -1)]"


def test_an_older_reader_refuses_a_journal_in_which_something_was_invalidated(store: Store) -> None:
    mine, _ = Journal.open(store, RUN, None, True, OPENED)
    mine.append([committed(0)])
    mine.append([invalidated(0)])
    mine.append([committed(0, attempt=2)])
    before = sorted(store.list("runs"))
    for code in (READ, OPEN):
        said = by_the_old_runtime(code, store.url, RUN)
        assert said.startswith("RecordUnreadable ") and "format version 2, known is 1" in said, said
    assert sorted(store.list("runs")) == before, "and it writes nothing to it"
    assert [store.get(segment_key(RUN, seg))[4] for seg in range(4)] == [1, 1, 2, 1]


def test_a_journal_of_an_older_writer_is_read_and_continued(store: Store) -> None:
    by_the_old_runtime(WRITE, store.url, RUN)
    assert set(read_all(store, RUN).committed) == {(0, -1), (1, -1)}
    mine, folded = Journal.open(store, RUN, None, False, {})
    assert not folded.reruns.invalidated
    mine.append([invalidated(1)])
    assert set(read_all(store, RUN).committed) == {(0, -1)}


def test_a_record_of_the_newer_format_in_a_segment_of_the_older_one_is_refused() -> None:
    packed = [journal.pack_record(invalidated(0))]
    data = journal._frame(RUN, 0, 1, bytes(16), None, 0.0, packed, 1)
    with pytest.raises(journal.JournalError, match="format 1 does not have"):
        journal.decode_segment(data, RUN, 0)


# ----------------------------------------------------------------------- the live run


def test_what_is_forgotten_is_waited_for_again() -> None:
    ready: list[tuple[int, int, int]] = []
    state = RunState("run", [{"name": f"s{n}"} for n in range(3)], lambda attempt: ready.append(attempt.address))
    for item in range(2):
        state.finish(0, item, Output(1, handle(b"1"), None, None, True))
    state.finish(1, -1, Output(1, handle(b"1"), None, None, True))
    state.forget(0, 1)
    state.forget(1, -1)
    state.forget(2, 5)
    state.submit((2, 0, 1, 0, None, [(0, ALL, 2)], []))
    state.submit((2, 1, 1, 0, None, [(1, -1)], []))
    assert ready == []
    assert state.submit((0, 1, 2, 0, None, [], [])) is not None
    state.finish(0, 1, Output(2, handle(b"2"), None, None, False))
    state.finish(1, -1, Output(2, handle(b"2"), None, None, False))
    assert ready[1:] == [(2, 0, 1), (2, 1, 1)]


FIRST = step("first", "os:urandom", args(100_000))
READER = step("reader", "builtins:len", args(ref(0, 0, -1, [])))
SAME = step("same", "builtins:bytes", args(100_000))


@pytest.mark.parametrize(("made", "changed"), [(FIRST, True), (SAME, False)], ids=["another output", "the same"])
def test_a_lost_output_is_told_forgotten_and_made_again(
    dask: Cluster, tmp_path: Path, made: dict[str, Any], changed: bool
) -> None:
    url = f"file://{tmp_path}/store"
    run = Run(dask.address, url, [made, READER]).open()
    events = run.follow()
    run.submit((0,))
    events.wait_for("committed")
    (stored,) = [path for path in (tmp_path / "store" / "runs" / run.uid / "data").rglob("*") if path.is_file()]
    run.rpc("forget")
    stored.write_bytes(b"y" + stored.read_bytes()[1:])
    run.open(create=False)
    events = run.follow()
    run.submit((1, -1, values(), [(0, -1)]))
    (failed,) = events.wait_for("failed")
    assert (failed["class"], failed["lost"], failed["type"]) == ("input", [[0, -1]], "OutputLost")
    run.rpc("record", records=[["invalidated", 0, -1, "OutputLost", failed["message"]]])
    run.submit((0, -1, None, [], [], 2), (1, -1, values(), [(0, -1)], [], 2))
    events.wait_for("finished", s=1, a=2)
    (told,) = [e for e in events.wait_for("committed", 1) if [0, -1, 2] in e["tasks"]]
    assert told.get("changed", []) == ([[0, -1]] if changed else [])
    after = run.open(create=False).snapshot
    assert after["invalidated"] == [[0, -1, 1, True]] and after["changed"] == ([[0, -1]] if changed else [])
    run.close()
    folded = read_all(storage.open_store({"url": url}), run.uid)
    assert folded.committed[0, -1][0] == 2 and len(folded.failed) == 1
    assert stored.read_bytes().startswith(b"y"), "what was lost is left as it was found"
