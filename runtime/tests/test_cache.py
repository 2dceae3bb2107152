"""The worker's file cache, its transfers, and the code of a run on disk."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import fetch
from daskade_runtime.cache import Cache
from daskade_runtime.definitions import Definitions, unpack
from daskade_runtime.errors import StepFailure
from daskade_runtime.fetch import Fetcher, patiently
from daskade_runtime.gpu import Devices, device_ids
from daskade_runtime.storage import StorageError, Store, open_store


def never() -> bool:
    return False


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"), 100)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store({"url": f"file://{tmp_path}/store"})


def put(cache: Cache, name: str, size: int, run: str = "r") -> Any:
    path = cache.new_path()
    Path(path).write_bytes(name.encode() * size)
    return cache.add((run, name.encode()), path, size)


def test_the_least_recently_used_goes_first(cache: Cache) -> None:
    for name in "ab":
        cache.unpin(put(cache, name, 40))
    used = cache.pin(("r", b"a"))
    assert used is not None
    cache.unpin(used)
    cache.unpin(put(cache, "c", 40))
    assert cache.pin(("r", b"b")) is None
    assert cache.pin(("r", b"a")) is not None
    assert len(os.listdir(os.path.dirname(used.path))) == 2


def test_what_is_pinned_stays_even_beyond_the_limit(cache: Cache) -> None:
    entries = [put(cache, name, 60) for name in "abc"]
    assert all(os.path.exists(entry.path) for entry in entries)
    for entry in entries:
        cache.unpin(entry)
    assert cache.size <= 100
    assert sum(os.path.exists(entry.path) for entry in entries) == 1


def test_the_same_output_twice_is_kept_once(cache: Cache) -> None:
    first, second = put(cache, "a", 40), put(cache, "a", 40)
    assert first is second and cache.size == 40
    assert len(os.listdir(os.path.dirname(first.path))) == 1


def test_a_dropped_run_frees_its_files_when_they_are_released(cache: Cache) -> None:
    busy, other = put(cache, "a", 10), put(cache, "b", 10, run="other")
    cache.drop("r")
    assert os.path.exists(busy.path) and cache.pin(("r", b"a")) is None
    cache.unpin(busy)
    assert not os.path.exists(busy.path)
    assert os.path.exists(other.path)


# -- transfers


def stored(store: Store, content: bytes, key: str = "data/0/0-1-x", **more: Any) -> dict[str, Any]:
    store.put(f"runs/r/{key}", content)
    digest = hashlib.sha256(content).digest()
    return {"u": key, "z": len(content), "d": digest, "s": "pickle", "b": None, "w": None, **more}


def fetcher(cache: Cache, peer: Any = None) -> Fetcher:
    cache.limit = 1 << 30

    def call(address: str, op: str, deadline: float, **arguments: Any) -> Any:
        assert op == "daskade-get"
        return peer(address, **arguments)

    return Fetcher(cache, call, lambda: "me")


def content(descriptor: Any) -> bytes:
    _, data, path, offset, length, _, _ = descriptor
    if data is None:
        data = Path(path).read_bytes()
    return bytes(data[offset : offset + length])


def test_storage_is_read_once_and_then_the_cache(cache: Cache, store: Store) -> None:
    handle = stored(store, b"x" * 500_000)
    pins: list[Any] = []
    first = fetcher(cache).whole("r", store, handle, pins, never)
    store.delete(["runs/r/data/0/0-1-x"])
    second = fetcher(cache).whole("r", store, handle, pins, never)
    assert content(first) == content(second) == b"x" * 500_000
    assert [entry.pins for entry in pins] == [2, 2]


@pytest.mark.parametrize("size", [0, 1, fetch.CHUNK, 2 * fetch.CHUNK + 17])
def test_a_worker_that_has_it_serves_it_in_pieces(cache: Cache, store: Store, size: int) -> None:
    data = os.urandom(size)
    asked = []

    def peer(address: str, run: str, d: bytes, offset: int, length: int) -> Any:
        asked.append((address, run, d))
        return {"status": "OK", "data": data[offset : offset + length]}

    handle = {
        "u": None,
        "z": size,
        "d": hashlib.sha256(data).digest(),
        "s": "pickle",
        "b": None,
        "w": "tcp://other",
    }
    assert content(fetcher(cache, peer).whole("r", store, handle, [], never)) == data
    assert set(asked) <= {("tcp://other", "r", handle["d"])}
    assert len(asked) == -(-size // fetch.CHUNK)


def raising(*_: Any, **__: Any) -> Any:
    raise OSError("gone")


@pytest.mark.parametrize(
    "peer",
    [
        raising,
        lambda *_, **__: None,
        lambda *_, **__: {"status": "error", "reason": "NotCached"},
        lambda *_, length, **__: {"data": b"y" * length},  # wrong bytes of the right length
        lambda *_, length, **__: {"data": b"x" * (length - 1)},
        lambda *_, length, **__: {"data": "x" * length},
    ],
)
def test_a_worker_that_does_not_serve_it_well_is_passed_over(cache: Cache, store: Store, peer: Any) -> None:
    handle = stored(store, b"x" * 200_000, w="tcp://other")
    assert content(fetcher(cache, peer).whole("r", store, handle, [], never)) == b"x" * 200_000


def test_a_flipped_bit_in_storage_never_reaches_a_step(cache: Cache, store: Store) -> None:
    handle = stored(store, b"x" * 200_000)
    store.put("runs/r/data/0/0-1-x", b"x" * 199_999 + b"y")
    with pytest.raises(StepFailure) as caught:
        fetcher(cache).whole("r", store, handle, [], never)
    assert (caught.value.class_, caught.value.type_) == ("input", "OutputLost")
    assert cache.pin(("r", handle["d"])) is None
    assert os.listdir(cache._directory) == []


def test_an_output_that_is_gone_from_storage_is_told_so(cache: Cache, store: Store) -> None:
    handle = stored(store, b"x" * 200_000)
    store.delete(["runs/r/data/0/0-1-x"])
    with pytest.raises(StepFailure) as caught:
        fetcher(cache).whole("r", store, handle, [], never)
    assert (caught.value.class_, caught.value.type_) == ("input", "OutputLost")


def test_a_worker_that_does_not_answer_is_not_asked_again_for_a_while(cache: Cache, store: Store) -> None:
    asked = []

    def peer(address: str, **_: Any) -> Any:
        asked.append(address)
        raise TimeoutError

    made = fetcher(cache, peer)
    for k in range(5):
        handle = stored(store, bytes([k]) * 100_000, f"data/0/{k}", w="tcp://dead")
        assert content(made.whole("r", store, handle, [], never)) == bytes([k]) * 100_000
    assert asked == ["tcp://dead"]


def container(store: Store, elements: list[bytes], **more: Any) -> dict[str, Any]:
    marks = [0]
    for element in elements:
        marks.append(marks[-1] + len(element))
    return stored(
        store,
        b"".join(elements),
        n=len(elements),
        x=struct.pack(f"<{len(marks)}Q", *marks),
        m=b"".join(hashlib.sha256(element).digest() for element in elements),
        **more,
    )


def test_an_element_is_read_by_its_range_alone(cache: Cache, store: Store) -> None:
    elements = [b"small", b"L" * 300_000, b""]
    handle = container(store, elements)
    ranges: list[Any] = []
    original = store.get

    def get(key: str, start: Any = None, length: Any = None) -> bytes:
        ranges.append((start, length))
        return original(key, start, length)

    store.get = get  # type: ignore[method-assign]
    made = fetcher(cache)
    for index, element in enumerate(elements):
        assert content(made.element("r", store, handle, index, [], never)) == element
    assert ranges == [(0, 5), (5, 300_000), (300_005, 0)] or ranges == [(0, 5), (5, 300_000)]
    with pytest.raises(StepFailure):
        made.element("r", store, handle, 3, [], never)


def test_a_damaged_element_is_refused(cache: Cache, store: Store) -> None:
    handle = container(store, [b"small", b"L" * 300_000])
    store.put("runs/r/data/0/0-1-x", b"smalL" + b"l" * 300_000)
    for index in (0, 1):
        with pytest.raises(StepFailure) as caught:
            fetcher(cache).element("r", store, handle, index, [], never)
        assert caught.value.type_ == "OutputLost"


def test_a_small_element_that_a_worker_serves_wrongly_comes_from_storage(cache: Cache, store: Store) -> None:
    handle = container(store, [b"small", b"other"], w="tcp://other")
    made = fetcher(cache, lambda *_, length, **__: {"data": b"y" * length})
    assert content(made.element("r", store, handle, 1, [], never)) == b"other"


def test_two_steps_that_want_the_same_cause_one_transfer(cache: Cache, store: Store) -> None:
    data = b"x" * 300_000
    calls = []

    def peer(address: str, offset: int, length: int, **_: Any) -> Any:
        calls.append(offset)
        time.sleep(0.2)
        return {"data": data[offset : offset + length]}

    handle = stored(store, data, w="tcp://other")
    made = fetcher(cache, peer)
    threads = [threading.Thread(target=made.whole, args=("r", store, handle, [], never)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [0]


# -- storage trouble


def test_a_transfer_that_fails_leaves_nothing_behind() -> None:
    turns = fetch.OneAtATime()
    for _ in range(3):
        with pytest.raises(ValueError), turns.alone(("r", b"d")):
            raise ValueError
    assert turns._busy == {}


class Flaky:
    def __init__(self, failures: int, transient: bool = True) -> None:
        self.left = failures
        self.transient = transient
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise StorageError("StorageUnreachable", "down", transient=self.transient)
        return "done"


def test_trouble_that_may_pass_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_BACKOFF_FIRST", 0.01)
    flaky = Flaky(3)
    assert patiently(flaky, never) == "done"
    assert flaky.calls == 4


def test_trouble_is_told_once_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_BACKOFF_FIRST", 0.01)
    said: list[StorageError | None] = []
    patiently(Flaky(3), never, told=said.append)
    assert [error and error.reason for error in said] == ["StorageUnreachable", None]
    with pytest.raises(StepFailure):
        patiently(Flaky(1, transient=False), never, told=said.append)
    patiently(Flaky(0), never, told=said.append)
    assert len(said) == 2


def test_trouble_that_becomes_another_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that comes back and takes the keys no more."""
    monkeypatch.setattr(fetch, "_BACKOFF_FIRST", 0.01)
    reasons = ["StorageUnreachable", "StorageUnreachable", "AccessDenied", "AccessDenied"]
    said: list[StorageError | None] = []

    def put() -> str:
        if not reasons:
            return "done"
        reason = reasons.pop(0)
        raise StorageError(reason, "no", transient=reason == "StorageUnreachable")

    assert patiently(put, never, told=said.append) == "done"
    assert [error and error.reason for error in said] == ["StorageUnreachable", "AccessDenied", None]


def test_keys_that_stay_refused_are_the_attempts_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_BACKOFF_FIRST", 0.05)
    monkeypatch.setattr(fetch, "KEYS_PATIENCE", 0.3)

    def put() -> None:
        raise StorageError("AccessDenied", "no")

    with pytest.raises(StepFailure) as caught:
        patiently(put, never)
    assert caught.value.type_ == "AccessDenied"


def test_trouble_that_lasts_is_the_attempts_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_BACKOFF_FIRST", 0.05)
    flaky = Flaky(10**9)
    with pytest.raises(StepFailure) as caught:
        patiently(flaky, never, patience=0.5)
    assert (caught.value.class_, caught.value.type_) == ("infra", "StorageUnreachable")
    assert flaky.calls < 10


def test_trouble_that_waiting_cannot_help_is_not_retried() -> None:
    flaky = Flaky(1, transient=False)
    with pytest.raises(StepFailure):
        patiently(flaky, never)
    assert flaky.calls == 1


def test_a_stop_is_heard_while_waiting_for_storage() -> None:
    began = time.monotonic()
    with pytest.raises(StepFailure) as caught:
        patiently(Flaky(10**9), lambda: time.monotonic() > began + 0.3)
    assert caught.value.class_ == "stopped"
    assert time.monotonic() - began < 2


# -- code


def archive(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    return out.getvalue()


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py", "..\\evil.py"])
def test_code_that_would_land_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StepFailure) as caught:
        unpack(archive(**{name: "x"}), str(tmp_path / "code"))
    assert caught.value.type_ == "BadCode"
    assert not list(tmp_path.rglob("*evil*"))


def test_code_that_is_no_archive_or_a_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daskade_runtime import definitions

    for data in (b"", b"PK\x03\x04 nothing", archive(a="x")[:-10]):
        with pytest.raises(StepFailure):
            unpack(data, str(tmp_path / "code"))
    monkeypatch.setattr(definitions, "CODE_BYTES", 1000)
    with pytest.raises(StepFailure):
        unpack(archive(a="x" * 1001), str(tmp_path / "code"))
    monkeypatch.setattr(definitions, "CODE_FILES", 2)
    with pytest.raises(StepFailure):
        unpack(archive(a="", b="", c=""), str(tmp_path / "code"))


def definitions_of(tmp_path: Path, reply: Any) -> tuple[Definitions, list[str]]:
    asked: list[str] = []

    def ask(run: str) -> Any:
        asked.append(run)
        return reply() if callable(reply) else reply

    return Definitions(ask, str(tmp_path / "code")), asked


def reply_with(tmp_path: Path, data: bytes | None, digest: str, epoch: int = 1) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "steps": [],
        "storage": {"url": f"file://{tmp_path}"},
        "code": {"digest": digest, "zip": data},
    }


def test_nothing_is_kept_of_runs_that_are_over(tmp_path: Path) -> None:
    known, _ = definitions_of(tmp_path, reply_with(tmp_path, None, ""))
    refusing, _ = definitions_of(tmp_path, {"status": "error", "message": "no such run"})
    for number in range(5):
        known.find(f"r{number}", 1, never)
        known.forget(f"r{number}")
        with pytest.raises(StepFailure):
            refusing.find(f"r{number}", 1, never)
    for each in (known, refusing):
        assert each._runs == {} and each._turns._busy == {}


def test_definitions_are_asked_for_once_per_epoch(tmp_path: Path) -> None:
    data = archive(**{"a.py": "x = 1", "pkg/__init__.py": ""})
    epoch = [1]
    digest = hashlib.sha256(data).hexdigest()
    known, asked = definitions_of(tmp_path, lambda: reply_with(tmp_path, data, digest, epoch[0]))
    threads = [threading.Thread(target=known.find, args=("r", 1, never)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == ["r"]
    path = known.find("r", 1, never).code_path
    assert path is not None and Path(path, "a.py").read_text() == "x = 1"
    epoch[0] = 2
    assert known.find("r", 2, never).epoch == 2
    with pytest.raises(StepFailure) as caught:
        known.find("r", 3, never)
    assert caught.value.type_ == "StaleDefinitions"


def test_code_too_large_for_a_message_comes_from_storage(tmp_path: Path) -> None:
    data = archive(**{"a.py": ""})
    digest = hashlib.sha256(data).hexdigest()
    store = open_store({"url": f"file://{tmp_path}"})
    store.put(f"runs/r/code/{digest}.zip", data)
    known, _ = definitions_of(tmp_path, reply_with(tmp_path, None, digest))
    assert known.find("r", 1, never).code_path


def test_code_that_does_not_match_its_digest_is_refused(tmp_path: Path) -> None:
    known, _ = definitions_of(tmp_path, reply_with(tmp_path, archive(a=""), "0" * 64))
    with pytest.raises(StepFailure) as caught:
        known.find("r", 1, never)
    assert caught.value.type_ == "CorruptCode"
    known, _ = definitions_of(tmp_path, reply_with(tmp_path, b"", "../../x"))
    with pytest.raises(StepFailure):
        known.find("r", 1, never)


@pytest.mark.parametrize("reply", [None, {"status": "error", "message": "no such run"}, 5, raising])
def test_a_scheduler_that_does_not_know_the_run_is_reported(tmp_path: Path, reply: Any) -> None:
    known, _ = definitions_of(tmp_path, reply)
    with pytest.raises(StepFailure) as caught:
        known.find("r", 1, never)
    assert (caught.value.class_, caught.value.type_) == ("infra", "DefinitionsUnavailable")


# -- devices


def test_each_device_is_given_once_and_parts_share() -> None:
    devices = Devices(["0", "1", "2"])
    two, half = devices.take(2), devices.take(0.5)
    assert two is not None and half is not None and not set(two) & set(half)
    other = devices.take(0.5)
    assert other is not None and set(other) == set(half)
    devices.give(two)
    assert devices.take(2) == two


def test_a_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from daskade_runtime import gpu

    devices = Devices(["GPU-a"])
    held = devices.take(1)
    assert held is not None
    threading.Timer(0.1, devices.give, [held]).start()
    assert devices.take(1) == held
    monkeypatch.setattr(gpu, "_PATIENCE", 0.05)
    assert devices.take(1) is None


def test_devices_are_the_workers_own() -> None:
    assert device_ids(2, {}) == ["0", "1"]
    assert device_ids(2, {"CUDA_VISIBLE_DEVICES": "MIG-1/2, GPU-x"}) == ["MIG-1/2", "GPU-x"]
    assert device_ids(0, {"CUDA_VISIBLE_DEVICES": ""}) == []
