"""The journal: what it promises (one commit, fence, chain), against a real directory and a real S3 server."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import journal, segments, storage
from daskade_runtime.journal import Closed, Fenced, Journal, JournalError, read_all, segment_key
from daskade_runtime.storage import Exists, StorageError, Store
from support import TOP

GOLDEN = TOP / "tests" / "golden" / "journal"
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


def committed(step: int, item: int = -1, attempt: int = 1, data: bytes = b"1", **more: Any) -> list[Any]:
    handle = {"u": None, "z": len(data), "d": hashlib.sha256(data).digest(), "s": "json", "b": data, **more}
    return ["committed", step, item, attempt, handle, "cpu-0-1", 1.0, 2.0, None, None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = storage.open_store({"url": f"file://{tmp_path}/store"})
    found.probe()
    return found


def opened(store: Store, epoch: int | None = None, create: bool = True, **more: Any) -> Journal:
    return Journal.open(store, RUN, epoch, create, {**OPENED, **more})[0]


# ------------------------------------------------------------ golden files


def golden() -> Any:
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_writer_still_writes_the_golden_bytes() -> None:
    make = golden()
    for seg, data in enumerate(make.build()):
        assert (GOLDEN / "good" / f"{seg:010d}.seg").read_bytes() == data
    assert json.loads((GOLDEN / "bad.json").read_text()) == make.bad(make.build())


def test_the_golden_journal_reads_as_expected() -> None:
    make = golden()
    segments = [path.read_bytes() for path in sorted((GOLDEN / "good").iterdir())]
    assert make.expected(segments) == json.loads((GOLDEN / "expected.json").read_text())


def test_every_bad_segment_is_refused_by_its_reason() -> None:
    rows = json.loads((GOLDEN / "bad.json").read_text())
    assert len(rows) > 70
    wrong = []
    for row in rows:
        parts = row["hex"]
        if isinstance(parts, list):
            data = bytes.fromhex(parts[0]) + bytes.fromhex(parts[1]) * parts[2] + bytes.fromhex(parts[3])
        else:
            data = bytes.fromhex(parts)
        try:
            journal.decode_segment(data, golden_run(), 0)
            wrong.append((row["name"], "accepted"))
        except JournalError as error:
            if (
                error.reason != "RecordUnreadable"
                or row["words"] not in str(error)
                or "segment 0" not in str(error)
            ):
                wrong.append((row["name"], str(error)))
    assert wrong == []


def golden_run() -> str:
    run: str = json.loads((GOLDEN / "expected.json").read_text())["run"]
    return run


def golden_store(store: Store, leave_out: int | None = None) -> dict[str, bytes]:
    files = {}
    for seg, path in enumerate(sorted((GOLDEN / "good").iterdir())):
        if seg != leave_out:
            files[segment_key(golden_run(), seg)] = path.read_bytes()
    for key, data in files.items():
        store.put(key, data)
    return files


def test_a_missing_segment_is_a_gap(store: Store) -> None:
    golden_store(store, leave_out=2)
    with pytest.raises(JournalError, match=r"segment 2 .*missing") as caught:
        read_all(store, golden_run())
    assert caught.value.reason == "RecordUnreadable"


class Lagging(storage.DirectoryStore):
    """A directory whose listings leave objects out, as those of a server that lags behind do."""

    hidden: dict[str, int]

    def list(self, prefix: str, after: str | None = None) -> Iterator[tuple[str, int]]:
        found = [entry for entry in super().list(prefix, after) if not self.hidden.get(entry[0])]
        self.hidden = {key: left - 1 for key, left in self.hidden.items() if left > 1}
        return iter(found)


@pytest.mark.parametrize("listings", [1, 1000])
def test_a_segment_that_a_listing_leaves_out_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listings: int
) -> None:
    monkeypatch.setattr(segments, "PAUSE", 0.01)
    store = Lagging(str(tmp_path))
    store.hidden = {}
    golden_store(store)
    whole = read_all(store, golden_run())
    store.hidden = {segment_key(golden_run(), seg): listings for seg in (0, 2, 3)}
    assert read_all(store, golden_run()) == whole
    mine = opened(store)
    mine.append([committed(0)])
    for hidden in (0, 1):
        store.hidden = {segment_key(RUN, hidden): listings}
        assert opened(store, create=False).epoch == 2 + hidden


def test_an_opener_that_finds_its_place_taken_reads_on_though_the_listing_lags(tmp_path: Path) -> None:
    store = Lagging(str(tmp_path))
    store.hidden = {}
    opened(store)
    opened(store, create=False)
    store.hidden = {segment_key(RUN, 1): 1000}
    began = time.monotonic()
    assert opened(store, create=False).epoch == 3
    assert time.monotonic() - began < 5


# ------------------------------------------------------------ what is committed is not lost in silence


def anew(store: Store) -> None:
    """The folder is deleted, and made again."""
    assert isinstance(store, storage.DirectoryStore)
    shutil.rmtree(store.root)
    Path(store.root).mkdir()


def test_a_writer_whose_folder_was_deleted_and_made_again_stops_and_names_what_is_missing(store: Store) -> None:
    mine = opened(store)
    mine.append([committed(0)])
    anew(store)
    for _ in range(2):
        words = "segment 0 of the journal of run .*: it was written but is missing"
        with pytest.raises(JournalError, match=words) as lost:
            mine.append([committed(1)])
        assert lost.value.reason == "RecordUnreadable"
    # A later opening of the run fails with the same reason.
    with pytest.raises(JournalError, match="segment 0 .*missing"):
        opened(store, create=False)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_run_does_not_end_well_on_a_journal_that_is_not_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    # As on a service where each look costs a request.
    monkeypatch.setattr(type(store), "quick", False)
    mine = opened(store)
    for step in range(3):
        mine.append([committed(step)])
    store.delete([segment_key(RUN, missing)])
    with pytest.raises(JournalError, match=f"segment {missing} .*but is missing"):
        mine.append([["final", {"state": "Succeeded"}]])
    assert store.head(segment_key(RUN, 4)) is None


def test_an_idle_writer_notices_that_its_journal_is_gone(store: Store) -> None:
    mine = opened(store)
    mine.append([committed(0)])
    mine.check()
    anew(store)
    with pytest.raises(JournalError, match="segment 0 .*but is missing"):
        mine.check()


def test_a_listing_that_leaves_a_segment_out_does_not_stop_a_writer(tmp_path: Path) -> None:
    store = Lagging(str(tmp_path))
    store.hidden = {}
    mine = opened(store)
    mine.append([committed(0)])
    store.hidden = {segment_key(RUN, 0): 1000}
    mine.append([["final", {"state": "Succeeded"}]])
    store.hidden = {}
    assert read_all(store, RUN).final == {"state": "Succeeded"}


def test_a_strange_object_among_the_segments_is_reported(store: Store) -> None:
    golden_store(store)
    store.put(f"runs/{golden_run()}/journal/notes.txt", b"hello")
    with pytest.raises(JournalError, match=r"segment 8 .*notes\.txt"):
        read_all(store, golden_run())


def test_a_segment_of_another_chain_is_refused(store: Store) -> None:
    files = golden_store(store)
    key = segment_key(golden_run(), 1)
    old = journal.decode_segment(files[key], golden_run(), 1)
    store.put(key, journal.encode_segment(golden_run(), 1, 1, bytes(16), bytes(32), old.t, old.records))
    with pytest.raises(JournalError, match="segment 1 .*broken chain"):
        read_all(store, golden_run())


def test_an_epoch_may_neither_fall_nor_begin_without_opened(store: Store) -> None:
    mine = opened(store, epoch=5)
    for epoch, words in ((4, "epoch 4 after epoch 5"), (6, "epoch 6 begins without an opened record")):
        data = journal.encode_segment(RUN, 1, epoch, bytes(16), mine._prev, 1.0, [["length", 0, 1]])
        store.put(segment_key(RUN, 1), data)
        with pytest.raises(JournalError, match=words):
            read_all(store, RUN)


def test_a_newer_version_is_refused_and_not_overwritten(store: Store) -> None:
    mine = opened(store)
    body = b"DSKJ\x03whatever a newer writer puts here"
    newer = body + hashlib.sha256(body).digest()
    store.put(segment_key(RUN, 1), newer)
    for attempt in (lambda: mine.append([["length", 0, 1]]), lambda: opened(store, create=False)):
        with pytest.raises(JournalError, match="segment 1 .*version 3, known are 1 to 2") as caught:
            attempt()
        assert caught.value.reason == "RecordUnreadable"
    assert store.get(segment_key(RUN, 1)) == newer
    assert [key for key, _ in store.list("runs")] == [segment_key(RUN, 0), segment_key(RUN, 1)]


def test_an_oversized_segment_is_refused_before_it_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store)
    monkeypatch.setattr(journal, "SEGMENT_LIMIT", 100)
    monkeypatch.setattr(type(store), "get", lambda *_: pytest.fail("it was read"))
    with pytest.raises(JournalError, match="the limit is 100"):
        read_all(store, RUN)


# ------------------------------------------------------------ writing, folding


def test_what_was_appended_is_read_back(store: Store) -> None:
    mine = opened(store)
    assert mine.append([["length", 0, 2], committed(0, 0)]) == 1
    assert mine.append([committed(0, 1, attempt=3), ["skipped", 1, -1, "WhenFalse", None]]) == 2
    folded = read_all(store, RUN)
    assert sorted(folded.committed) == [(0, 0), (0, 1)]
    assert folded.committed[(0, 1)][0] == 3
    assert folded.lengths == {0: 2}
    assert folded.skipped == {(1, -1): ("WhenFalse", None)}
    assert (folded.epoch, folded.seg, folded.opened["spec"]) == (1, 2, b"{}")
    assert mine.append([]) == 2


def test_the_first_commit_of_a_task_wins(store: Store) -> None:
    mine = opened(store)
    mine.append([committed(0, attempt=2, data=b"a")])
    mine.append([committed(0, attempt=3, data=b"b")])
    assert read_all(store, RUN).committed[(0, -1)][0] == 2


def test_opening_after_final_reopens_the_run(store: Store) -> None:
    mine = opened(store)
    failed = ["failed", 1, -1, 1, "app", "E", "m", None, 1.0, 2.0]
    mine.append([["length", 0, 1], committed(0), failed, ["skipped", 2, -1, "UpstreamFailed", None]])
    mine.append([["final", {"state": "Failed"}]])
    assert read_all(store, RUN).final == {"state": "Failed"}
    _, folded = Journal.open(store, RUN, None, False, OPENED)
    assert folded.final is None and folded.failed == [] and folded.skipped == {}
    assert list(folded.committed) == [(0, -1)] and folded.lengths == {0: 1}


def test_spec_and_code_are_stored_once(store: Store) -> None:
    opened(store)
    Journal.open(store, RUN, None, False, {**OPENED, "code": {"digest": "bb", "zip": b"z" * 100_000}})
    assert store.head(segment_key(RUN, 1)) < 1000  # type: ignore[operator]
    folded = read_all(store, RUN)
    assert folded.opened["code"]["zip"] == b"zip" and folded.opened["epoch"] == 2


def test_open_says_what_is_in_the_way(store: Store) -> None:
    def reason(words: str, epoch: int | None, create: bool, **more: Any) -> str:
        with pytest.raises(JournalError, match=words) as caught:
            opened(store, epoch, create, **more)
        return caught.value.reason

    assert reason(f"there is no journal of run {RUN}", None, False) == "RunNotFound"
    opened(store, epoch=7)
    assert reason(f"run {RUN} already has a journal", None, True) == "RunExists"
    higher = "the epoch must be higher than the journal's, 7"
    assert reason(f"cannot open run {RUN} under epoch 7: {higher}", 7, False) == "StaleEpoch"
    assert reason(f"cannot open run {RUN} under epoch 6: {higher}", 6, False) == "StaleEpoch"
    words = f"run {RUN} was started with spec aa, not other"
    assert reason(words, None, False, spec_digest="other") == "SpecMismatch"
    assert opened(store, 9, False).epoch == 9
    with pytest.raises(JournalError, match=r"'\.\./x' is not the uid of a run") as caught:
        Journal.open(store, "../x", None, True, OPENED)
    assert caught.value.reason == "InvalidRun"


def test_a_record_that_readers_would_refuse_is_not_written(store: Store) -> None:
    mine = opened(store)
    for record in (["length", 0], ["committed", 0, 0, 0, {}], committed(0, z=5), ["final", {"x": object()}]):
        with pytest.raises(ValueError):
            mine.append([record])
    assert read_all(store, RUN).seg == 0


def test_text_that_is_not_unicode_does_not_stop_the_journal(store: Store) -> None:
    mine = opened(store)
    mine.append([["refused", 0, -1, "StepError", "broken \ud800 text"]])
    assert read_all(store, RUN).refused == {(0, -1): ("StepError", "broken ? text")}


def test_a_large_append_becomes_several_segments(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT_TARGET", 10_000)
    mine = opened(store)
    assert mine.append([committed(0, item, data=bytes(3000)) for item in range(7)]) == 3
    assert len(read_all(store, RUN).committed) == 7


# ------------------------------------------------------------ the fence


def test_a_writer_that_lost_its_place_stops_for_ever(store: Store) -> None:
    old = opened(store)
    new = opened(store, create=False)
    for _ in range(2):
        with pytest.raises(Fenced) as caught:
            old.append([committed(0)])
        assert caught.value.epoch == 2
    new.append([committed(1)])
    with pytest.raises(Fenced):
        old.append([committed(0)])
    with pytest.raises(Fenced):
        old.check()
    assert list(read_all(store, RUN).committed) == [(1, -1)]


def test_a_fenced_writer_does_not_come_back_when_its_place_is_free_again(store: Store) -> None:
    old = opened(store)
    opened(store, create=False)
    with pytest.raises(Fenced):
        old.append([committed(0)])
    store.delete([segment_key(RUN, 1)])
    with pytest.raises(Fenced):
        old.append([committed(0)])
    assert store.head(segment_key(RUN, 1)) is None


def test_an_idle_writer_can_ask_whether_it_is_fenced(store: Store) -> None:
    old = opened(store)
    old.check()
    opened(store, create=False)
    with pytest.raises(Fenced):
        old.check()


def test_of_many_openers_one_remains_and_the_chain_is_whole(store: Store) -> None:
    opened(store)
    journals: list[Journal] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        journals.append(opened(store, create=False))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found.epoch for found in journals) == list(range(2, 10))
    alive = 0
    for number, found in enumerate(sorted(journals, key=lambda j: j.epoch)):
        try:
            found.append([committed(number)])
            alive += 1
        except Fenced:
            pass
    assert alive == 1
    assert read_all(store, RUN).epoch == 9


class Flaky(storage.DirectoryStore):
    """A directory that does what it is told and then says otherwise, as S3 behind a bad network does."""

    trouble: list[str]

    def create(self, key: str, data: storage.Data) -> str:
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble == "lost request":
            raise StorageError("StorageUnreachable", "timeout", transient=True)
        if trouble == "denied":
            raise StorageError("AccessDenied", f"cannot create {key}: 403")
        if trouble == "exists":
            raise Exists(key)
        version = super().create(key, data)
        if trouble == "lost reply":
            raise StorageError("StorageUnreachable", "timeout", transient=True)
        return version


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flaky:
    monkeypatch.setattr(journal, "BACKOFF_FIRST", 0.01)
    found = Flaky(str(tmp_path))
    found.trouble = []
    return found


def test_a_lost_reply_is_recognised_by_the_nonce(flaky: Flaky) -> None:
    flaky.trouble = ["lost reply"]
    mine = opened(flaky)
    said: list[StorageError | None] = []
    mine.on_trouble = said.append
    flaky.trouble = ["lost request", "lost reply"]
    assert mine.append([committed(0)]) == 1
    assert [error and str(error) for error in said] == ["timeout", "timeout", None]
    assert mine.append([committed(1)]) == 2
    assert read_all(flaky, RUN).seg == 2


def test_the_same_records_of_another_writer_are_not_taken_for_ones_own(flaky: Flaky) -> None:
    mine = opened(flaky)
    data = journal.encode_segment(RUN, 1, 1, bytes(16), mine._prev, time.time(), [committed(0)])
    flaky.put(segment_key(RUN, 1), data)
    with pytest.raises(Fenced):
        mine.append([committed(0)])


def test_exists_without_an_object_is_asked_again(flaky: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PATIENCE", 0)
    mine = opened(flaky)
    flaky.trouble = ["exists"]
    assert mine.append([committed(0)]) == 1


def test_denied_writes_are_retried_for_a_while_then_given_up(
    flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = opened(flaky)
    flaky.trouble = ["denied"] * 2
    assert mine.append([committed(0)]) == 1
    monkeypatch.setattr(journal, "PATIENCE", 0.1)
    flaky.trouble = ["denied"] * 1000
    with pytest.raises(StorageError, match=f"cannot create {segment_key(RUN, 2)}: 403") as caught:
        mine.append([committed(1)])
    assert caught.value.reason == "AccessDenied"


def test_close_ends_an_append_that_waits(flaky: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BACKOFF_FIRST", 60)
    mine = opened(flaky)
    mine.on_trouble = lambda _: mine.close()
    flaky.trouble = ["lost request"] * 1000
    started = time.monotonic()
    with pytest.raises(Closed):
        mine.append([committed(0)])
    assert time.monotonic() - started < 5
    flaky.trouble = []
    with pytest.raises(Closed):
        mine.append([committed(0)])
    assert flaky.head(segment_key(RUN, 1)) is None


def test_open_gives_up_on_dead_storage_at_its_deadline(flaky: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "OPEN_DEADLINE", 0.2)
    flaky.trouble = ["lost request"] * 1000
    with pytest.raises(StorageError, match="timeout") as caught:
        opened(flaky)
    assert caught.value.reason == "StorageUnreachable"
