"""Writing an output under a name of its own, in a folder and on S3: create-only, and known again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import kept, storage
from daskade_runtime.definitions import Run
from daskade_runtime.errors import StepFailure
from daskade_runtime.storage import StorageError, open_store
from support.s3.server import S3Server
from support.waiting import until


@pytest.fixture(params=["directory", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that is kept in a store of its kind."""
    where: dict[str, Any] = {"url": f"file://{tmp_path}"}
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("server")
        server.clear()
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        where = server.storage(f"kept/{tmp_path.name}")
    return Run("u", {"epoch": 1, "steps": [], "storage": where}, open_store(where), None)


def of(data: bytes, folder: Path | None = None) -> kept.Bytes:
    """What is written; as a file if ``folder`` is given."""
    file = None
    if folder is not None:
        file = str(folder / os.urandom(4).hex())
        Path(file).write_bytes(data)
    return kept.Bytes(None if file else data, file, len(data), hashlib.sha256(data).digest())


def keep(
    run: Run,
    what: kept.Bytes,
    reply: Any,
    a: int = 1,
    i: int = -1,
    replace: bool = False,
    current: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Any:
    return kept.keep(
        run, (run.uid, 0, i, a), "m/x.pkl", replace, what, reply, stopped, lambda error: None, current
    )


@pytest.fixture(params=["memory", "file", "parts"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """Where files are made, if what is written is one; small ones go up in parts then."""
    if request.param == "memory":
        return None
    if request.param == "parts":
        monkeypatch.setattr(storage, "MULTIPART_FROM", 100)
    made = tmp_path.parent / f"{tmp_path.name}-files"
    made.mkdir()
    return made


def test_the_version_told_is_that_of_what_is_there(run: Run, folder: Path | None) -> None:
    data = os.urandom(1000)
    reply, version = keep(run, of(data, folder), {"n": 1})
    found = run.store.look("m/x.pkl")
    assert found is not None and (found.size, found.version) == (1000, version)
    assert (reply, run.store.get("m/x.pkl")) == ({"n": 1}, data)
    _, second = keep(run, of(os.urandom(1000), folder), {"n": 2}, replace=True)
    found = run.store.look("m/x.pkl")
    assert found is not None and version != second == found.version


def test_a_later_attempt_knows_what_an_earlier_one_wrote(run: Run, folder: Path | None) -> None:
    reply, version = keep(run, of(b"1" * 200, folder), {"n": 1})
    # Other bytes of the same length, since the step is not the same each time.
    assert keep(run, of(b"2" * 200, folder), {"n": 2}, a=2) == (reply, version)
    assert run.store.get("m/x.pkl") == b"1" * 200
    with pytest.raises(StepFailure) as caught:
        keep(run, of(b"3" * 200, folder), {"n": 3}, i=7)
    assert (caught.value.class_, caught.value.type_) == ("data", "OutputExists")


def test_what_another_has_put_there_is_left_alone(run: Run, folder: Path | None) -> None:
    theirs = b"t" * 200
    run.store.put("m/x.pkl", theirs)
    for attempt in (1, 2):
        with pytest.raises(StepFailure, match="m/x.pkl"):
            keep(run, of(b"o" * 200, folder), {}, a=attempt)
    assert run.store.get("m/x.pkl") == theirs


class Overtaken:
    """What the scheduler says to an attempt that is given up right after it was told to go on."""

    def __init__(self, meanwhile: Callable[[], Any]) -> None:
        self.meanwhile = meanwhile
        self.asked = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked > 1:
            raise StepFailure("stopped", "Stopped", "given up")
        self.meanwhile()


@pytest.mark.parametrize("there", [b"", b"0" * 150])
def test_an_attempt_that_was_given_up_does_not_replace_what_a_later_one_wrote(
    run: Run, folder: Path | None, there: bytes
) -> None:
    """Issue 13, point 12."""
    if there:
        run.store.put("m/x.pkl", there)
    later = partial(keep, run, of(b"2" * 200, folder), {"n": 2}, a=2, replace=True)
    overtaken = Overtaken(later)
    with pytest.raises(StepFailure, match="given up"):
        keep(run, of(b"1" * 200, folder), {"n": 1}, replace=True, current=overtaken)
    assert overtaken.asked == 2 and run.store.get("m/x.pkl") == b"2" * 200


@pytest.mark.parametrize("run", ["s3"], indirect=True)
@pytest.mark.parametrize("folder", ["parts"], indirect=True)
def test_what_goes_up_in_parts_does_not_replace_what_came_while_it_went_up(run: Run, folder: Path) -> None:
    overtaken = Overtaken(lambda: run.store.put("m/x.pkl", b"2" * 90))
    with pytest.raises(StepFailure) as caught:
        keep(run, of(b"1" * 200, folder), {"n": 1}, current=overtaken)
    assert caught.value.type_ == "OutputExists" and run.store.get("m/x.pkl") == b"2" * 90


def test_an_attempt_that_is_given_up_while_it_writes_leaves_nothing(run: Run, folder: Path | None) -> None:
    def given_up() -> None:
        raise StepFailure("stopped", "Stopped", "given up")

    with pytest.raises(StepFailure, match="given up"):
        keep(run, of(b"1" * 200, folder), {"n": 1}, replace=True, current=given_up)
    with pytest.raises(StepFailure, match="stopped"):
        keep(run, of(b"1" * 200, folder), {"n": 1}, replace=True, stopped=lambda: True)
    assert run.store.head("m/x.pkl") is None


def test_what_others_write_meanwhile_is_replaced_by_the_attempt_that_counts(run: Run, folder: Path | None) -> None:
    others = iter((b"a" * 200, b"b" * 200))

    def current() -> None:
        for data in others:
            run.store.put("m/x.pkl", data)
            return

    run.store.put("m/x.pkl", b"0" * 200)
    _, version = keep(run, of(b"1" * 200, folder), {"n": 1}, replace=True, current=current)
    found = run.store.look("m/x.pkl")
    assert found is not None and found.version == version and run.store.get("m/x.pkl") == b"1" * 200


@pytest.mark.parametrize("run", ["s3"], indirect=True)
@pytest.mark.parametrize("there", [b"", b"0" * 150])
def test_a_put_that_was_held_up_on_its_way_does_not_undo_a_later_one(
    run: Run, server: S3Server, there: bytes
) -> None:
    if there:
        run.store.put("m/x.pkl", there)
    key = run.store.url.removeprefix("s3://").partition("/")[2] + "/m/x.pkl"
    server.fault(method="PUT", match="/m/x.pkl", action="delay", seconds=2, count=1)
    with ThreadPoolExecutor(1) as pool:
        given_up = Overtaken(lambda: None)
        early = pool.submit(keep, run, of(b"1" * 200), {"n": 1}, replace=True, current=given_up)
        until("the put is on its way", lambda: given_up.asked, 20)
        # Past the proxy, which holds the other one up.
        assert server.client().request("PUT", f"/daskade/{key}", body=b"2" * 200).status == 200
        with pytest.raises(StepFailure, match="given up"):
            early.result(30)
    assert run.store.get("m/x.pkl") == b"2" * 200


@pytest.mark.parametrize("run", ["s3"], indirect=True)
@pytest.mark.parametrize("there", [b"", b"0" * 150])
def test_a_replacing_put_whose_answer_was_lost_is_known_as_ones_own(
    run: Run, server: S3Server, there: bytes
) -> None:
    if there:
        run.store.put("m/x.pkl", there)
    server.fault(method="PUT", match="/m/x.pkl", action="drop-reply", count=1)
    _, version = keep(run, of(b"1" * 200), {"n": 1}, replace=True)
    found = run.store.look("m/x.pkl")
    assert found is not None and found.version == version and run.store.get("m/x.pkl") == b"1" * 200


def test_of_many_writers_one_wins(run: Run) -> None:
    def write(i: int) -> int | None:
        try:
            keep(run, of(bytes([i]) * 200), {"i": i}, i=i)
            return i
        except StepFailure:
            return None

    with ThreadPoolExecutor(8) as pool:
        (winner,) = [i for i in pool.map(write, range(8)) if i is not None]
    assert run.store.get("m/x.pkl") == bytes([winner]) * 200


@pytest.mark.parametrize("run", ["s3"], indirect=True)
def test_an_answer_that_is_lost_on_the_way_is_no_conflict(run: Run, server: S3Server) -> None:
    server.fault(method="PUT", match="/m/x.pkl", action="drop-reply", count=1)
    assert keep(run, of(b"1" * 200), {"n": 1})[0] == {"n": 1}
    assert run.store.get("m/x.pkl") == b"1" * 200
    assert any(entry["key"].endswith("m/x.pkl") for entry in server.log())


@pytest.mark.parametrize("run", ["directory"], indirect=True)
def test_a_file_that_changes_while_it_is_read_is_not_read_in_half(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"1" * (3 << 20))
    read = storage._stat
    calls: list[int] = []

    def change(found: Any) -> Any:
        calls.append(1)
        if len(calls) in (1, 3):
            file.write_bytes(str(len(calls)).encode() * (2 << 20))
        return read(found)

    monkeypatch.setattr(storage, "_stat", change)
    run.store.get_to_file("x", str(tmp_path / "copy"))
    assert len(set((tmp_path / "copy").read_bytes())) == 1
    monkeypatch.setattr(storage, "_stat", lambda found: storage.Stat(found.st_size, os.urandom(4).hex()))
    with pytest.raises(StorageError, match="while it is read"):
        run.store.get_to_file("x", str(tmp_path / "copy"))
