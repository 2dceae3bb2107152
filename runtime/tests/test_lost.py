"""When an output counts as lost: only if nothing else can be the matter."""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daskade_runtime import fetch, lost, storage
from daskade_runtime.cache import Cache
from daskade_runtime.errors import StepFailure, describe
from daskade_runtime.fetch import Fetcher
from daskade_runtime.inputs import Gatherer
from daskade_runtime.lost import LostOutput
from daskade_runtime.storage import StorageError, Store, open_store
from support.s3.server import S3Server

CONTENT = b"x" * 200_000
WHERE = "data/0/0-1-x"


def never() -> bool:
    return False


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"), 1 << 30)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        return open_store({"url": f"file://{tmp_path}/store"})
    server: S3Server = request.getfixturevalue("server")
    return bucket(server, tmp_path, monkeypatch)


def bucket(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    return open_store(server.storage(f"lost/{tmp_path.name}"))


@pytest.fixture
def keys(server: S3Server) -> Iterator[S3Server]:
    """The server, for tests that make it fail."""
    yield server
    server.clear()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for minutes."""
    for name in ("STORAGE_PATIENCE", "KEYS_PATIENCE"):
        monkeypatch.setattr(fetch, name, 0.2)
    monkeypatch.setattr(fetch, "_BACKOFF_FIRST", 0.05)


def stored(store: Store, content: bytes = CONTENT, **more: Any) -> dict[str, Any]:
    store.put(f"runs/r/{WHERE}", content)
    digest = hashlib.sha256(content).digest()
    return {"u": WHERE, "z": len(content), "d": digest, "s": "pickle", "b": None, "w": None, **more}


def container(store: Store, elements: list[bytes]) -> dict[str, Any]:
    marks = [0]
    for element in elements:
        marks.append(marks[-1] + len(element))
    index = struct.pack(f"<{len(marks)}Q", *marks)
    digests = b"".join(hashlib.sha256(element).digest() for element in elements)
    return stored(store, b"".join(elements), n=len(elements), x=index, m=digests)


def read(cache: Cache, store: Store, handle: dict[str, Any]) -> bytes:
    fetcher = Fetcher(cache, lambda *_, **__: None, lambda: "me")
    _, data, path, _, _, _, _ = fetcher.whole("r", store, handle, [], never)
    return Path(path).read_bytes() if data is None else data


def fails(cache: Cache, store: Store, handle: dict[str, Any]) -> StepFailure:
    with pytest.raises(StepFailure) as caught:
        read(cache, store, handle)
    assert not os.listdir(cache._directory), "nothing of it is kept"
    return caught.value


@pytest.mark.parametrize(
    "others",
    [CONTENT[:-1] + b"y", CONTENT[:-1], b"y" + CONTENT, b""],
    ids=["a flipped byte", "shorter", "longer", "empty"],
)
def test_other_bytes_than_were_committed_are_a_loss(cache: Cache, store: Store, others: bytes) -> None:
    handle = stored(store)
    store.put(f"runs/r/{WHERE}", others)
    failure = fails(cache, store, handle)
    assert isinstance(failure, LostOutput) and failure.class_ == "input"
    assert f"runs/r/{WHERE}" in failure.message and store.url in failure.message
    assert "2 full reads" in failure.message


def test_an_object_that_is_gone_is_a_loss(cache: Cache, store: Store) -> None:
    handle = stored(store)
    store.put("runs/r/data/0/0-1-w", b"before it")
    store.put("runs/r/data/0/0-1-y", b"behind it")
    store.delete([f"runs/r/{WHERE}"])
    failure = fails(cache, store, handle)
    assert isinstance(failure, LostOutput) and "listing" in failure.message


@pytest.mark.parametrize("index", [0, 1], ids=["small", "large"])
def test_a_damaged_element_of_a_list_is_a_loss_of_the_list(cache: Cache, store: Store, index: int) -> None:
    handle = container(store, [b"small", b"L" * 300_000])
    store.put(f"runs/r/{WHERE}", b"smalL" + b"l" * 300_000)
    fetcher = Fetcher(cache, lambda *_, **__: None, lambda: "me")
    with pytest.raises(LostOutput):
        fetcher.element("r", store, handle, index, [], never)


def test_each_read_that_counts_is_on_a_connection_of_its_own(
    cache: Cache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = stored(store)
    store.put(f"runs/r/{WHERE}", CONTENT[:-1] + b"y")
    opened: list[Store] = []
    original = storage.open_store

    def noted(config: dict[str, Any]) -> Store:
        opened.append(original(config))
        return opened[-1]

    monkeypatch.setattr(storage, "open_store", noted)
    assert isinstance(fails(cache, store, handle), LostOutput)
    assert len(opened) == lost.READS and store not in opened


def test_a_byte_that_flips_on_the_way_is_no_loss(
    cache: Cache, keys: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bucket(keys, tmp_path, monkeypatch)
    handle = stored(store)
    for count in (1, 2):
        keys.fault(method="GET", match=WHERE, action="flip", count=count)
        assert read(cache, store, handle) == CONTENT
        cache.drop("r")
    # The read itself and the first that counts come wrong each time, the second comes right.
    original = lost._look
    seen: list[str | None] = []

    def look(*args: Any) -> str | None:
        seen.append(original(*args) if len(seen) % 2 else lost._OTHER)
        return seen[-1]

    monkeypatch.setattr(lost, "_look", look)
    keys.fault(method="GET", match=WHERE, action="flip", count=1)
    assert read(cache, store, handle) == CONTENT and seen == [lost._OTHER, None]


@pytest.mark.parametrize(
    "trouble",
    [
        {"action": "403", "code": "AccessDenied"},
        {"action": "503", "code": "SlowDown"},
        {"action": "500", "code": "InternalError"},
        {"action": "truncate"},
        {"action": "drop-reply"},
    ],
    ids=lambda trouble: str(trouble["action"]),
)
def test_trouble_with_the_storage_is_never_a_loss(
    cache: Cache,
    keys: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hurried: None,
    trouble: dict[str, Any],
) -> None:
    store = bucket(keys, tmp_path, monkeypatch)
    handle = stored(store)
    keys.fault(method="GET", match=WHERE, **trouble)
    failure = fails(cache, store, handle)
    assert failure.class_ == "infra", failure.message
    keys.clear()
    # The same while it is looked whether the output is lost.
    store.put(f"runs/r/{WHERE}", CONTENT[:-1] + b"y")
    original = store.fresh

    def fresh() -> Store:
        keys.fault(method="GET", match=WHERE, **trouble)
        return original()

    monkeypatch.setattr(store, "fresh", fresh)
    failure = fails(cache, store, handle)
    assert failure.class_ == "infra", failure.message


def test_what_is_listed_and_cannot_be_got_is_no_loss(
    cache: Cache, keys: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    store = bucket(keys, tmp_path, monkeypatch)
    handle = stored(store)
    keys.fault(method="GET", match=f"/{WHERE}", action="404", code="NoSuchKey")
    failure = fails(cache, store, handle)
    assert failure.class_ == "infra" and "listed" in failure.message
    # Nor is it if nobody may list.
    store.delete([f"runs/r/{WHERE}"])
    keys.fault(method="GET", match="list-type", action="403", code="AccessDenied")
    failure = fails(cache, store, handle)
    assert failure.class_ == "infra", failure.message


def test_a_folder_that_is_not_mounted_is_no_loss(cache: Cache, tmp_path: Path, hurried: None) -> None:
    root = tmp_path / "store"
    root.mkdir()
    store = open_store({"url": f"file://{root}"})
    handle = stored(store)
    root.rename(tmp_path / "elsewhere")
    failure = fails(cache, store, handle)
    assert (failure.class_, failure.type_) == ("infra", "StorageUnreachable")


def test_a_short_read_of_a_folder_is_no_loss(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    (tmp_path / "store").mkdir()
    store = open_store({"url": f"file://{tmp_path}/store"})
    handle = stored(store)
    original = storage.DirectoryStore.get

    def short(self: Any, key: str, start: int | None = None, length: int | None = None) -> bytes:
        return original(self, key, start, length)[:1000]

    monkeypatch.setattr(storage.DirectoryStore, "get", short)
    failure = fails(cache, store, handle)
    assert failure.class_ == "infra" and "short read" in failure.message


def test_the_failure_says_whose_output_it_is(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = open_store({"url": f"file://{tmp_path}/store"})
    handle = stored(store)
    store.delete([f"runs/r/{WHERE}"])

    run: Any = SimpleNamespace(uid="r", store=store)
    gatherer = Gatherer(Fetcher(cache, lambda *_, **__: None, lambda: "me"), lambda *_: None)
    for request in ({"h": [[3, 7, handle]]}, {"all": {3: [None] * 7 + [handle]}}):
        with pytest.raises(LostOutput) as caught:
            gatherer.gather(run, request, b"\x90", [], never)
        told = describe(caught.value)
        assert told["lost"] == [[3, 7, handle["d"], WHERE]] and told["class"] == "input"


def test_one_attempt_tells_of_all_that_it_misses_up_to_a_limit(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    store = open_store({"url": f"file://{tmp_path}/store"})
    handles = [{**stored(store), "u": f"data/0/{item}", "d": bytes([item]) * 32} for item in range(4)]
    run: Any = SimpleNamespace(uid="r", store=store)
    gatherer = Gatherer(Fetcher(cache, lambda *_, **__: None, lambda: "me"), lambda *_: None)
    for limit, told in ((10, 4), (3, 3)):
        monkeypatch.setattr(lost, "TOLD", limit)
        with pytest.raises(LostOutput, match=f"{told - 1} more of its inputs") as caught:
            gatherer.gather(run, {"all": {3: handles}}, b"\x90", [], never)
        assert [entry[:2] for entry in caught.value.inputs] == [[3, item] for item in range(told)]


def test_a_loss_is_found_in_time_that_a_person_would_wait(cache: Cache, store: Store) -> None:
    handle = stored(store)
    store.delete([f"runs/r/{WHERE}"])
    began = time.monotonic()
    fails(cache, store, handle)
    assert time.monotonic() - began < 10


def test_errors_of_the_storage_pass_through_a_look() -> None:
    class Broken(Store):
        url = "x"

        def get(self, key: str, start: int | None = None, length: int | None = None) -> bytes:
            raise StorageError("NoSuchBucket", "there is no bucket")

    with pytest.raises(StorageError, match="no bucket"):
        lost._look(Broken(), "a/b", 1, b"")
