"""Lines of step output: bounded, attributed, stored, live for who listens."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import logs
from daskade_runtime.logs import LINE_CAP, AttemptLog, LogHub
from daskade_runtime.storage import StorageError, Store, open_store
from support.waiting import until


class Hub:
    """A real hub over a directory, with its live lines collected."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.live: list[Any] = []
        self.store = open_store({"url": f"file://{directory}"})
        self.hub = LogHub("cpu-0-1", lambda run, lines: self.live.append((run, lines)))
        self.hub.open_run("r", self.store)

    def attempt(self, limit: int = logs.ATTEMPT_CAP) -> AttemptLog:
        return AttemptLog(self.hub, "r", "step", (3, -1, 1), limit)

    def stored(self) -> list[list[Any]]:
        assert self.hub.flush("r", 10) == 0
        return self.read()

    def read(self) -> list[list[Any]]:
        found = []
        for path in sorted((self.directory / "runs/r/logs").glob("*.jsonl")):
            found += [json.loads(line) for line in path.read_text().splitlines()]
        return found

    def texts(self) -> list[str]:
        return [line[5] for line in self.stored()]


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    made = Hub(tmp_path)
    yield made
    made.hub.close()


def test_lines_come_whole_however_they_arrive(hub: Hub) -> None:
    log = hub.attempt()
    for piece in (b"on", b"e\ntwo\nthr", b"ee", b"\n\nla", "ü".encode()[:1]):
        log.feed("stdout", piece)
    log.feed("stderr", b"other\n")
    log.feed("stdout", "ü".encode()[1:] + b"st")
    log.finish()
    stored = hub.stored()
    assert [line[5] for line in stored] == ["one", "two", "three", "", "other", "laüst"]
    assert [line[4] for line in stored] == ["stdout"] * 4 + ["stderr", "stdout"]
    assert all(line[1:4] == ["step", -1, 1] and abs(line[0] - time.time()) < 60 for line in stored)


def test_bytes_that_are_no_text_are_replaced(hub: Hub) -> None:
    log = hub.attempt()
    log.feed("stdout", b"\xff\xfe\n")
    log.record(1.0, "INFO a.b", "two\nlines \ud800")
    log.finish()
    assert hub.stored()[0][5] == "\ufffd\ufffd"
    assert [line[4:] for line in hub.stored()[1:]] == [["INFO", "a.b: two"], ["INFO", "a.b: lines ?"]]


def test_a_failure_is_explained_however_much_was_printed(hub: Hub) -> None:
    log = hub.attempt(limit=1000)
    log.feed("stdout", b"x\n" * 1000)
    log.finish()
    trace = "Traceback:\n  File f\nValueError: no\n"
    log.explain({"type": "ValueError", "message": "no", "traceback": trace})
    log.explain({"type": "Timeout", "message": "too long", "traceback": ""})
    assert [line[4:] for line in hub.stored()[-4:]] == [
        ["daskade", text] for text in ("Traceback:", "  File f", "ValueError: no", "Timeout: too long")
    ]
    assert log.tail == ["x"] * logs.TAIL_LINES


def test_a_progress_bar_is_what_it_shows_last(hub: Hub) -> None:
    log = hub.attempt()
    for k in range(10_000):
        log.feed("stderr", b"\r%d%% of a long way to go" % k)
    assert sum(map(len, log._parts.values())) < 100
    log.feed("stderr", b"\ndos\r\n")
    assert hub.texts() == ["9999% of a long way to go", "dos"]


def test_a_line_without_end_is_cut_and_costs_no_memory(hub: Hub) -> None:
    log = hub.attempt()
    for _ in range(1000):
        log.feed("stdout", b"x" * 10_000)
    assert sum(map(len, log._parts.values())) <= LINE_CAP + 1
    log.feed("stdout", b"\nnext\n")
    first, second = hub.texts()
    assert first == "x" * LINE_CAP + " …[line shortened]"
    assert second == "next"


def test_too_much_output_keeps_head_and_tail_and_says_so(hub: Hub) -> None:
    log = hub.attempt(limit=100_000)
    for k in range(10_000):
        log.feed("stdout", b"line %d\n" % k)
    log.finish()
    texts = hub.texts()
    note = next(k for k, text in enumerate(texts) if text.startswith("[daskade: "))
    assert texts[0] == "line 0" and texts[-1] == "line 9999"
    assert [int(text.split()[1]) for text in texts[:note]] == list(range(note))
    dropped = 10_000 - (len(texts) - 1)
    assert f"{dropped} lines" in texts[note]
    assert sum(len(text) + 100 for text in texts) < 110_000


def test_the_last_lines_are_kept_for_a_failure(hub: Hub) -> None:
    log = hub.attempt()
    log.feed("stdout", b"".join(b"%d\n" % k for k in range(100)) + b"unfinished")
    log.finish()
    assert log.tail == [str(k) for k in range(81, 100)] + ["unfinished"]


def test_lines_are_live_only_while_someone_listens(hub: Hub) -> None:
    log = hub.attempt()
    log.feed("stdout", b"before\n")
    hub.hub.listen("r", True)
    log.feed("stdout", b"now\n")
    hub.hub.listen("r", False)
    log.feed("stdout", b"after\n")
    ((run, lines),) = hub.live
    assert run == "r"
    assert [(line[:3], line[4:]) for line in lines] == [((3, -1, 1), ("stdout", "now"))]
    assert hub.texts() == ["before", "now", "after"]


class Broken(Store):
    """The directory store with an outage."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.down = True
        self.tries = 0

    def put(self, key: str, data: Any) -> None:
        self.tries += 1
        if self.down:
            raise StorageError("StorageUnreachable", "down", transient=True)
        self.inner.put(key, data)


def test_lines_outlive_an_outage_of_storage(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "RETRY_CAP", 0.1)
    broken = Broken(hub.store)
    hub.hub.open_run("r", broken)
    log = hub.attempt()
    log.feed("stdout", b"kept\n")
    assert hub.hub.flush("r", 0.5) == 1
    broken.down = False
    assert hub.texts() == ["kept"]


def test_an_outage_costs_bounded_memory_and_the_loss_is_written_down(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "RETRY_CAP", 0.1)
    monkeypatch.setattr(logs, "PENDING_CAP", 10_000)
    broken = Broken(hub.store)
    hub.hub.open_run("r", broken)
    log = hub.attempt()
    for _ in range(1000):
        log.feed("stdout", b"x" * 100 + b"\n")
    assert hub.hub._pending <= 10_000
    broken.down = False
    until("the lines are handed on", lambda: not hub.hub._runs["r"].lines, 20)
    assert hub.hub._pending == 0
    log.feed("stdout", b"again\n")
    assert hub.hub.flush("r", 10) == 950
    texts = [line[5] for line in hub.read()]
    assert texts.count("x" * 100) == 50 and texts[-1] == "again"
    assert any("950 lines dropped" in text for text in texts)


def test_a_feed_never_waits_for_storage(hub: Hub) -> None:
    entered, release = threading.Event(), threading.Event()

    class Slow(Broken):
        def put(self, key: str, data: Any) -> None:
            entered.set()
            release.wait(20)
            self.inner.put(key, data)

    hub.hub.open_run("r", Slow(hub.store))
    log = hub.attempt()
    log.feed("stdout", b"first\n")
    hub.hub.hurry()
    assert entered.wait(20)
    began = time.monotonic()
    for k in range(1000):
        log.feed("stdout", b"%d\n" % k)
    assert time.monotonic() - began < 1
    release.set()
    assert len(hub.texts()) == 1001


def test_each_object_has_its_own_name_and_objects_are_few(hub: Hub) -> None:
    log = hub.attempt()
    for k in range(500):
        log.feed("stdout", b"%d\n" % k)
    hub.stored()
    log.feed("stdout", b"more\n")
    hub.stored()
    names = sorted(path.name for path in (hub.directory / "runs/r/logs").iterdir())
    assert 2 <= len(names) <= 4
    assert all(
        name.startswith("cpu-0-1-") and name.endswith(f"-{k:06d}.jsonl") for k, name in enumerate(names)
    )


def test_what_waits_is_written_at_close(hub: Hub) -> None:
    hub.attempt().feed("stdout", b"last words\n")
    hub.hub.close()
    assert [line[5] for line in hub.read()] == ["last words"]


def test_a_worker_name_makes_a_safe_key(tmp_path: Path) -> None:
    made = LogHub("tcp://1.2.3.4:5/../x", lambda *_: None)
    made.open_run("r", open_store({"url": f"file://{tmp_path}"}))
    AttemptLog(made, "r", "s", (0, 0, 1)).feed("stdout", b"x\n")
    made.close()
    (path,) = (tmp_path / "runs/r/logs").iterdir()
    assert path.name.startswith("tcp-1.2.3.4-5-..-x-")


def test_stored_lines_come_in_bounded_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "ANSWER", 10)
    store = open_store({"url": f"file://{tmp_path}"})
    assert logs.stored(store, "r", None) == ([], False)
    for n in range(3):
        store.put(f"runs/r/logs/w-{n}.jsonl", b"12345678")
    first, more = logs.stored(store, "r", None)
    assert ([key[-7:] for key, _ in first], more) == (["0.jsonl", "1.jsonl"], True)
    assert logs.stored(store, "r", first[-1][0]) == ([("runs/r/logs/w-2.jsonl", b"12345678")], False)


def test_a_run_that_is_over_is_let_go_once_its_lines_are_stored(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [True]
    put = hub.store.put

    def refuse(key: str, data: Any) -> Any:
        if failing[0]:
            raise StorageError("StorageUnreachable", "down", transient=True)
        return put(key, data)

    monkeypatch.setattr(hub.store, "put", refuse)
    monkeypatch.setattr(logs, "RETRY_CAP", 0.05)
    hub.attempt().feed("stdout", b"one\n")
    hub.hub.forget("r")
    assert list(hub.hub._runs) == ["r"], "its line is not stored yet"
    failing[0] = False
    hub.hub.hurry()
    until("it is let go", lambda: not hub.hub._runs, 10)
    assert [line[5] for line in hub.read()] == ["one"]
    # It was left, and is opened again.
    hub.hub.open_run("r", hub.store)
    hub.attempt().feed("stdout", b"two\n")
    assert sorted(hub.texts()) == ["one", "two"]
