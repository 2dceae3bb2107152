"""Stores against a real directory and a real S3 server (SeaweedFS); faults come from the proxy in front of
it."""

from __future__ import annotations

import errno
import hashlib
import html
import http.server
import os
import pickle
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import credentials, leftovers, s3, storage
from daskade_runtime.journal import Fenced, Journal, read_all
from daskade_runtime.storage import Exists, StorageError, Store, check_key, open_store
from support import RUNTIME, TOP
from support.processes import alive
from support.s3 import tokens
from support.s3.server import S3Server
from support.waiting import until

OPENED = {"spec_digest": "aa"}


@pytest.fixture
def keys(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, with its keys in the environment and without faults."""
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    server.clear()
    yield server
    server.clear()


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        found = open_store({"url": f"file://{tmp_path}/with%20space"})
    else:
        server: S3Server = request.getfixturevalue("keys")
        found = open_store(server.storage(f"test/{tmp_path.name}"))
    found.probe()
    return found


def refused(call: Callable[[], Any], words: str) -> StorageError:
    """What ``call`` fails with; ``words`` are in its message."""
    with pytest.raises(StorageError) as caught:
        call()
    assert words in str(caught.value)
    return caught.value


def shown(store: Store, key: str) -> str:
    """An object as messages name it."""
    return f"{store.url.removeprefix('file://')}/{key}"


def commit(step: int) -> list[Any]:
    handle = {"u": None, "z": 1, "d": hashlib.sha256(b"1").digest(), "s": "json", "b": b"1"}
    return ["committed", step, -1, 1, handle, None, 1.0, 2.0, None, None]


# ------------------------------------------------------------ what every store does


def test_objects_come_back_whole_and_in_part(store: Store) -> None:
    store.put("a/b", [b"01", memoryview(b"23"), bytearray(b"4")])
    store.put("a/b", [b"01", memoryview(b"23"), bytearray(b"456789")])
    assert store.get("a/b") == b"0123456789"
    assert (store.get("a/b", 3), store.get("a/b", 3, 4), store.get("a/b", 8, 10)) == (
        b"3456789",
        b"3456",
        b"89",
    )
    assert (store.get("a/b", 10, 1), store.get("a/b", 0, 0), store.head("a/b")) == (b"", b"", 10)
    store.put("empty", b"")
    assert (store.get("empty"), store.head("empty")) == (b"", 0)
    assert store.head("none") is None
    assert refused(lambda: store.get("none"), shown(store, "none")).reason == "NotFound"
    assert refused(lambda: store.get("none", 1, 2), shown(store, "none")).reason == "NotFound"


def test_a_version_changes_with_the_object(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MULTIPART_FROM", 6 << 20)
    monkeypatch.setattr(storage, "PART", 5 << 20)
    (tmp_path / "up").write_bytes(b"3" * (7 << 20))
    seen = set()
    writes: list[Callable[[], str | None]] = [
        lambda: store.create("v", b"1"),
        lambda: store.put("v", b"2"),
        lambda: store.put_file("v", str(tmp_path / "up")),
        lambda: store.put("v", [b"4" * (7 << 20)]),
    ]
    for number, write in enumerate(writes):
        version = write()
        found, fetched = store.look("v"), store.get_to_file("v", str(tmp_path / "x"))
        assert found is not None and found.version == version == fetched.version
        seen.add(version)
        assert len(seen) == number + 1
    with pytest.raises(Exists):
        store.create_file("v", str(tmp_path / "up"))
    assert store.create_file("w", str(tmp_path / "up")) == store.look("w").version  # type: ignore[union-attr]
    assert store.look("none") is None


def test_a_version_is_read_as_it_was(
    keys: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MULTIPART_FROM", 6 << 20)
    monkeypatch.setattr(storage, "PART", 5 << 20)
    for name, value in keys.environ("admin").items():
        monkeypatch.setenv(name, value)
    store = open_store(keys.versioned(f"test/{tmp_path.name}"))
    for number, size in enumerate((5, (11 << 20) + 3)):
        old, key = os.urandom(size), f"v{number}"
        store.put(key, old)
        path = store._path(key)  # type: ignore[attr-defined]
        version = store._api.head(store._small, path)["version"]  # type: ignore[attr-defined]
        store.put(key, b"another")
        found = store.look(key, version)
        assert found is not None and found.size == size and found != store.look(key)
        assert store.get_to_file(key, str(tmp_path / "x"), version) == found
        assert (tmp_path / "x").read_bytes() == old
        assert store.look(key, "no-such-version") is None
        words = f"{shown(store, key)} (version none): "
        error = refused(lambda: store.get_to_file(key, str(tmp_path / "x"), "none"), words)  # noqa: B023
        assert error.reason == "NotFound"
    folder = storage.DirectoryStore(str(tmp_path))
    refused(lambda: folder.look("x", "1"), "x is in a folder, which keeps no versions")
    refused(lambda: folder.get_to_file("x", str(tmp_path / "y"), "1"), "x is in a folder, which keeps no versions")


def test_buffers_of_any_kind_are_bytes(store: Store) -> None:
    import array

    store.put("x", memoryview(array.array("I", [1, 2, 3])))
    assert store.get("x") == array.array("I", [1, 2, 3]).tobytes()


def test_files_go_up_and_down(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MULTIPART_FROM", 6 << 20)
    monkeypatch.setattr(storage, "PART", 5 << 20)
    for size in (0, 5, (17 << 20) + 3):
        data = os.urandom(size)
        (tmp_path / "up").write_bytes(data)
        store.put_file("file", str(tmp_path / "up"))
        assert store.get_to_file("file", str(tmp_path / "down")) == store.look("file")
        assert store.head("file") == size
        assert (tmp_path / "down").read_bytes() == data
        assert store.get("file") == data
        store.put("pieces", [data[: size // 3], data[size // 3 :]])
        assert store.get("pieces") == data
    assert store.get("file", 3, 12 << 20) == data[3 : 3 + (12 << 20)]
    error = refused(lambda: store.get_to_file("none", str(tmp_path / "no")), shown(store, "none"))
    assert error.reason == "NotFound"
    with pytest.raises(FileNotFoundError):
        store.put_file("file", str(tmp_path / "missing"))


def test_lists_are_ordered_and_begin_after_a_key(store: Store) -> None:
    names = ["run/a", "run/b/1", "run/b/2", "run-2/a", "run/é"]
    for name in names:
        store.put(name, name.encode())
    assert list(store.list("run")) == [(n, len(n.encode())) for n in ["run/a", "run/b/1", "run/b/2", "run/é"]]
    assert [key for key, _ in store.list("run/", after="run/b/1")] == ["run/b/2", "run/é"]
    assert [key for key, _ in store.list("")] == sorted(names)
    assert list(store.list("nothing")) == []
    store.delete([*names, "was/never/there"])
    assert list(store.list("")) == []


def test_of_sixteen_racing_creators_one_wins(store: Store) -> None:
    # Two rounds: SeaweedFS takes seconds to settle sixteen writers of one key.
    for round_ in range(2):
        barrier = threading.Barrier(16)

        def race(number: int, round_: int = round_, barrier: threading.Barrier = barrier) -> int | None:
            barrier.wait()
            try:
                store.create(f"race/{round_}", b"%d" % number)
                return number
            except Exists:
                return None

        with ThreadPoolExecutor(16) as pool:
            winners = [number for number in pool.map(race, range(16)) if number is not None]
        assert len(winners) == 1
        assert store.get(f"race/{round_}") == b"%d" % winners[0]


def test_the_probe_leaves_nothing_behind(store: Store) -> None:
    store.probe()
    assert list(store.list("")) == []


def test_unsafe_keys_are_refused(store: Store) -> None:
    bad = {
        "": "'': key has 0 bytes; it must have 1 to 1024",
        "/a": "/a: '' is not allowed as a part of a key",
        "a/": "a/: '' is not allowed",
        "a//b": "a//b: '' is not allowed",
        "../a": "../a: '..' is not allowed",
        "a/../b": "a/../b: '..' is not allowed",
        "./a": "./a: '.' is not allowed",
        "a\nb": "a b: control character or backslash in a key",
        "a\x7fb": "a b: control character",
        "a\x85b": "a b: control character",
        "a\\b": "a\\b: control character or backslash",
        ".tmp-x": "'.tmp-x' is not allowed",
        "x" * 1025: "xxx: key has 1025 bytes",
        "\ud800": "'\\ud800': a key that is not valid text",
    }
    for key, words in bad.items():
        for call in (store.get, store.head, lambda k: store.put(k, b""), lambda k: store.delete([k])):
            assert refused(lambda: call(key), words).reason == "InvalidKey", key  # noqa: B023
    assert check_key("x" * 1024) == "x" * 1024


def test_a_journal_lives_on_it(store: Store) -> None:
    old, _ = Journal.open(store, "run-1", None, True, OPENED)
    for step in range(5):
        old.append([commit(step)])
    new, folded = Journal.open(store, "run-1", None, False, OPENED)
    assert len(folded.committed) == 5 and folded.epoch == 2
    with pytest.raises(Fenced):
        old.append([commit(9)])
    new.append([["final", {"state": "Succeeded"}]])
    assert read_all(store, "run-1").final == {"state": "Succeeded"}


def test_errors_cross_processes(store: Store) -> None:
    error = pickle.loads(pickle.dumps(refused(lambda: store.get("none"), shown(store, "none"))))
    assert (error.reason, error.transient) == ("NotFound", False) and shown(store, "none") in str(error)


# ------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"url": "ftp://x/y"}, "storage is s3://"),
        ({"url": ""}, "storage is s3://"),
        ({"url": "file://relative/path"}, "file:///absolute"),
        ({"url": "s3:///prefix"}, "no bucket"),
        ({"url": "s3://key:secret@bucket/x"}, "no user"),
        ({"url": "s3://bucket/x?y"}, "no user, query"),
        ({"url": "s3://bucket/x", "options": {"colour": "red"}}, "unknown storage option colour"),
        ({"url": "file:///tmp", "options": {"colour": "red"}}, "unknown storage option colour"),
        ({"url": "s3://bucket/x", "endpoint": "localhost:9000"}, "is not http"),
        ({"url": "s3://bucket/x", "endpoint": "http://user@host"}, "is not http"),
        ({"url": "s3://bucket/x", "options": {"addressing": "odd"}}, "path or virtual"),
        ({"url": "s3://bucket/x", "options": {"ca_file": "/no/such/file"}}, "cannot read /no/such/file"),
    ],
)
def test_a_wrong_configuration_is_refused_by_what_is_wrong(config: dict[str, Any], words: str) -> None:
    error = refused(lambda: open_store(config), words)
    assert error.reason == "InvalidStorage" and "secret" not in str(error)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("a/../b", "a/../b: '..' is not allowed"),
        ("a//b", "a//b: '' is not allowed"),
        ("a/%0Ab", "a/ b: control character"),
        (".tmp-x", "'.tmp-x' is not allowed"),
    ],
)
def test_an_unsafe_prefix_is_refused(prefix: str, words: str) -> None:
    assert refused(lambda: open_store({"url": f"s3://bucket/{prefix}"}), words).reason == "InvalidKey"


def test_a_directory_needs_no_library() -> None:
    code = (
        "import sys; sys.modules['obstore'] = None; from daskade_runtime.storage import *\n"
        "open_store({'url': 'file:///tmp'})\n"
        "try: open_store({'url': 's3://b/x'})\n"
        "except StorageError as e: print(e.reason, e)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=RUNTIME, capture_output=True
    )
    assert answer.stdout.startswith(b"NoStorageLibrary"), answer
    assert b"obstore" in answer.stdout


def test_a_library_that_is_too_old_is_named(any_keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    monkeypatch.setattr(obstore, "__version__", "0.9.5")
    error = refused(lambda: open_store({"url": "s3://bucket/x"}), "needs obstore 0.11")
    assert error.reason == "NoStorageLibrary" and "0.9.5" in str(error)


def test_missing_credentials_are_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = {"url": "s3://bucket/x", "endpoint": "http://127.0.0.1:1"}
    assert refused(lambda: open_store(config), "set AWS_ACCESS_KEY_ID").reason == "AccessDenied"


def test_credentials_may_come_from_a_file_and_be_rotated(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"

    def write(who: str) -> None:
        env = server.environ(who)
        file.write_text(
            f"[default]\naws_access_key_id = {env['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {env['AWS_SECRET_ACCESS_KEY']}\n"
        )

    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    # obstore renews what expires within five minutes, so this makes every request look.
    monkeypatch.setattr(s3, "_REREAD", -s3._REREAD)
    write("readonly")
    store = open_store(server.storage("rotated"))
    assert refused(lambda: store.put("x", b"1"), f"cannot put {shown(store, 'x')}: 403").reason == "AccessDenied"
    write("writer")
    time.sleep(0.3)  # obstore asks again after a tenth of a second at the earliest
    store.put("x", b"1")


def test_a_mounted_secret_goes_before_variables_and_may_be_replaced(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Kubernetes mounts one: a link to the version that counts, which is replaced as a whole."""

    def write(version: str, who: str) -> None:
        folder = tmp_path / f"..{version}"
        folder.mkdir()
        for name, value in server.environ(who).items():
            (folder / name).write_text(value + "\n")
        link = tmp_path / "..new"
        link.symlink_to(folder.name)
        link.replace(tmp_path / "..data")

    write("one", "readonly")
    monkeypatch.setenv("DASKADE_CREDENTIALS", str(tmp_path))
    for name, value in server.environ("writer").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "_REREAD", -s3._REREAD)
    store = open_store(server.storage("mounted"))
    error = refused(lambda: store.put("x", b"1"), f"cannot put {shown(store, 'x')}: 403")
    assert error.reason == "AccessDenied", "variables are those of the start"
    write("two", "writer")
    time.sleep(0.3)  # obstore asks again after a tenth of a second at the earliest
    store.put("x", b"1")
    # A Secret that is being emptied is no reason to forget what worked.
    for file in (tmp_path / "..two").iterdir():
        file.unlink()
    time.sleep(0.3)
    store.put("x", b"1")
    assert credentials.mounted() is None


def test_steps_see_the_variables_of_a_replaced_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")):
        (tmp_path / name).write_text(value)
    code = (
        "import os, sys; from daskade_runtime import credentials\n"
        "open(sys.argv[1] + '/AWS_SECRET_ACCESS_KEY', 'w').write('c')\n"
        "print(sorted(credentials.environ().items()))"
    )

    def seen(**variables: str) -> str:
        (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("b")
        words = [sys.executable, "-c", code, str(tmp_path)]
        env = {**os.environ, "PYTHONPATH": str(RUNTIME), **variables}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert seen(**keys) == "[]", "nothing is mounted"
    keys["DASKADE_CREDENTIALS"] = str(tmp_path)
    assert seen(**keys) == "[('AWS_ACCESS_KEY_ID', 'a'), ('AWS_SECRET_ACCESS_KEY', 'c')]"
    # Somebody gave the pods another key by their own variable.
    keys["AWS_SECRET_ACCESS_KEY"] = "own"
    assert seen(**keys) == "[('AWS_ACCESS_KEY_ID', 'a')]"


def test_a_web_identity_is_exchanged_for_keys_by_the_library(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The token service is a double: it gives whoever shows the token the keys of the server's writer."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    environ = server.environ()
    keys = (environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"])
    with tokens.TokenService(context, keys, lambda token: token == "token-2", "127.0.0.1") as sts:
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
            "AWS_ROLE_ARN": tokens.ROLE,
            "AWS_ENDPOINT_URL_STS": f"https://localhost:{sts.port}",
            "AWS_CA_BUNDLE": str(tmp_path / "ca.pem"),
        }.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "token").write_text("token-1")
        store = open_store(server.storage("identity"))
        assert refused(lambda: store.put("x", b"1"), "InvalidIdentityToken").reason == "AccessDenied"
        with monkeypatch.context() as other:
            other.setenv("AWS_ENDPOINT_URL_STS", "http://localhost:1")
            refused(lambda: open_store(server.storage("identity")), "https:// only")
        # The token is read again for each exchange: Kubernetes renews it.
        (tmp_path / "token").write_text("token-2")
        store.put("x", b"1")
        assert store.get("x") == b"1"
    assert sts.asked[-1] == {
        "Action": "AssumeRoleWithWebIdentity",
        "RoleArn": tokens.ROLE,
        "WebIdentityToken": "token-2",
    }


# ------------------------------------------------------------ directory


@pytest.fixture
def directory(tmp_path: Path) -> storage.DirectoryStore:
    return storage.DirectoryStore(str(tmp_path))


def test_a_volume_that_is_not_mounted_is_not_an_empty_store(tmp_path: Path) -> None:
    store = storage.DirectoryStore(str(tmp_path / "gone"))
    for call in (
        lambda: store.head("x"),
        lambda: store.get("x"),
        lambda: store.put("x", b""),
        lambda: list(store.list("x")),
    ):
        error = refused(call, f"{tmp_path}/gone is not a directory: no volume is mounted there")
        assert (error.reason, error.transient) == ("StorageUnreachable", True)
    assert not (tmp_path / "gone").exists()


def test_a_directory_without_hard_links_is_refused(
    directory: storage.DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    words = f"{directory.url}: the file system has no hard links"
    assert refused(directory.probe, words).reason == "NoConditionalPut"
    assert list(directory.list("")) == []


@pytest.mark.parametrize(
    ("code", "reason", "transient"),
    [
        (errno.ENOSPC, "StorageFull", True),
        (errno.EDQUOT, "StorageFull", True),
        (errno.EROFS, "AccessDenied", False),
        (errno.EACCES, "AccessDenied", False),
        (errno.EIO, "StorageUnreachable", True),
        (errno.ESTALE, "StorageUnreachable", True),
    ],
)
def test_a_failed_write_has_its_reason_and_leaves_nothing(
    directory: storage.DirectoryStore,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    reason: str,
    transient: bool,
) -> None:
    def sync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", sync)
    for call in (lambda: directory.put("x", b"1"), lambda: directory.create("x", b"1")):
        error = refused(call, f"cannot write {shown(directory, 'x')}: {os.strerror(code)}")
        assert (error.reason, error.transient) == (reason, transient)
    assert list(Path(directory.root).iterdir()) == []


def test_what_was_written_was_synced_before_it_got_its_name(
    directory: storage.DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for name in ("fsync", "link", "replace"):
        real = getattr(os, name)

        def noted(*args: Any, name: str = name, real: Any = real) -> Any:
            steps.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, noted)
    directory.create("x", b"1")
    directory.put("x", b"2")
    assert steps == ["fsync", "link", "fsync", "fsync", "replace", "fsync"]


def test_a_torn_temporary_file_is_not_an_object(directory: storage.DirectoryStore) -> None:
    Path(directory.root, ".tmp-1-ab").write_bytes(b"half")
    assert list(directory.list("")) == []


def left_by(store: storage.DirectoryStore, key: str, owner: leftovers.Owner | None, age: float = 0) -> Path:
    """A temporary file of a writer that was killed beside the object with this key."""
    file = Path(store.root, key).parent / leftovers.name(owner)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"half")
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_what_killed_writers_left_goes_with_the_next_write_but_nothing_that_is_being_written(
    directory: storage.DirectoryStore,
) -> None:
    """Issue 13, point 16."""
    day = 24 * 3600
    gone = [
        left_by(directory, "models/x", ("run", 1)),
        left_by(directory, "models/x", ("run", 2), day + 60),
        left_by(directory, "models/x", ("other", 1), day + 60),
        left_by(directory, "models/x", None, day + 60),
    ]
    kept = [
        left_by(directory, "models/x", ("run", 2)),
        left_by(directory, "models/x", ("run", 3), day - 60),
        left_by(directory, "models/x", ("other", 1), day - 60),
        left_by(directory, "models/x", None),
        left_by(directory, "elsewhere/x", ("run", 1)),
    ]
    directory.put("models/y", b"1")
    assert all(file.exists() for file in gone), "who writes for no run removes nothing"
    directory.owner = ("run", 2)
    directory.put("models/y", b"2")
    assert [file for file in gone if file.exists()] == []
    assert [file for file in kept if not file.exists()] == []


def test_the_end_of_an_epoch_removes_what_its_writers_left(directory: storage.DirectoryStore) -> None:
    gone = [left_by(directory, f"runs/run/{folder}/x", ("run", 2)) for folder in ("data/0", "data/1", "journal")]
    kept = [left_by(directory, "runs/run/data/0/x", ("run", 3)), left_by(directory, "runs/more/data/x", ("more", 1))]
    directory.put("runs/run/data/1/y", b"1")
    directory.sweep("runs/run", ("run", 2))
    assert [file for file in gone if file.exists()] == []
    assert [file for file in kept if not file.exists()] == []
    directory.sweep("runs/run", None)
    assert not kept[0].exists() and [key for key, _ in directory.list("runs/run")] == ["runs/run/data/1/y"]


def test_writers_and_deleters_of_one_folder_do_not_hurt_each_other(directory: storage.DirectoryStore) -> None:
    def work(number: int) -> None:
        for _ in range(50):
            directory.put(f"folder/sub/{number}", b"1")
            directory.delete([f"folder/sub/{number}"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert list(directory.list("")) == []


# ------------------------------------------------------------ S3 and its faults


def test_wrong_keys_and_missing_buckets_are_told_apart(
    keys: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(config: dict[str, str], words: str) -> str:
        return refused(lambda: open_store(config).probe(), words).reason

    for name, value in keys.environ("admin").items():
        monkeypatch.setenv(name, value)
    missing = "s3://no-such-bucket/x"
    assert reason({**keys.storage(), "url": missing}, f"cannot create {missing}/probe/") == "NoSuchBucket"
    for name, value in keys.environ("readonly").items():
        monkeypatch.setenv(name, value)
    assert reason(keys.storage("x"), f"cannot create {keys.storage('x')['url']}/probe/") == "AccessDenied"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = refused(lambda: open_store(keys.storage("x")).probe(), "SignatureDoesNotMatch")
    assert error.reason == "AccessDenied" and "wrong" not in str(error)


def test_keys_with_a_newline_at_their_end_work(keys: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ["AWS_SECRET_ACCESS_KEY"] + "\n")
    open_store(keys.storage("x")).probe()


def test_a_create_whose_answer_was_lost_is_known_by_the_journal(keys: S3Server) -> None:
    store = open_store(keys.storage("lost"))
    mine, _ = Journal.open(store, "run", None, True, OPENED)
    keys.fault(method="PUT", match="/journal/", action="drop-reply", count=1)
    assert mine.append([commit(0)]) == 1
    assert mine.append([commit(1)]) == 2
    puts = [
        row
        for row in keys.log()
        if row["method"] == "PUT" and "lost/runs/run/journal/0000000001" in row["key"]
    ]
    assert (puts[0]["status"], puts[0].get("fault")) == (200, "drop-reply")
    assert len(puts) >= 2 and puts[-1]["status"] == 412


def test_a_conflict_that_is_still_being_decided_is_not_a_defeat(keys: S3Server) -> None:
    store = open_store(keys.storage("conflict"))
    keys.fault(method="PUT", match="conflict/x", action="409", code="ConditionalRequestConflict", count=1)
    error = refused(lambda: store.create("x", b"1"), f"cannot create {shown(store, 'x')}: concurrent write")
    assert (error.reason, error.transient) == ("StorageUnreachable", True)
    store.create("x", b"1")


def test_an_append_waits_for_a_server_that_is_down(keys: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(keys.storage("down"))
    mine, _ = Journal.open(store, "run", None, True, OPENED)
    said: list[StorageError | None] = []
    mine.on_trouble = said.append
    keys.down()
    try:
        error = refused(lambda: store.get("anything"), f"cannot get {shown(store, 'anything')}: ")
        assert (error.reason, error.transient) == ("StorageUnreachable", True)
        appending = ThreadPoolExecutor(1).submit(mine.append, [commit(0)])
        until("the trouble is told", lambda: said, 30)
    finally:
        keys.up()
    assert appending.result(timeout=60) == 1
    assert said[-1] is None and len(said) > 1 and len(said) < 50
    assert list(read_all(store, "run").committed) == [(0, -1)]


def test_torn_and_refused_answers_are_retried(keys: S3Server) -> None:
    store = open_store(keys.storage("torn"))
    store.put("x", b"0123456789")
    keys.fault(method="GET", match="torn/x", action="truncate", count=1)
    assert store.get("x") == b"0123456789"
    keys.fault(method="PUT", match="torn/x", action="503", code="SlowDown", count=1)
    store.put("x", b"1")
    keys.fault(method="PUT", match="torn/x", action="503", code="SlowDown")
    error = refused(lambda: store.put("x", b"1"), "SlowDown")
    assert (error.reason, error.transient) == ("StorageUnreachable", True)


def test_a_request_has_a_deadline(keys: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SMALL_TIMEOUT", 0.5)
    monkeypatch.setitem(s3._RETRY, "max_retries", 0)
    store = open_store(keys.storage("slow"))
    keys.fault(match="slow/x", action="delay", seconds=3)
    started = time.monotonic()
    assert refused(lambda: store.create("x", b"1"), f"cannot create {shown(store, 'x')}: ").transient
    assert time.monotonic() - started < 2.5


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="obstore 0.11, the last for Python 3.10, does not abort"
)
def test_a_failed_multipart_upload_is_aborted(
    keys: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MULTIPART_FROM", 6 << 20)
    monkeypatch.setattr(storage, "PART", 5 << 20)
    store = open_store(keys.storage("parts"))
    (tmp_path / "f").write_bytes(bytes(16 << 20))
    keys.fault(method="PUT", match="partNumber=3", action="403", code="AccessDenied")
    error = refused(lambda: store.put_file("x", str(tmp_path / "f")), f"cannot put {shown(store, 'x')}: 403")
    assert error.reason == "AccessDenied"
    # A request is logged when its exchange is over, which may be a moment after its answer was read.

    def aborted() -> list[dict[str, Any]]:
        return [row for row in keys.log() if row["method"] == "DELETE" and "uploadId" in row["query"]]

    assert until("the upload is aborted", aborted, 10)[-1]["status"] == 204
    assert store.head("x") is None


def test_uploads_that_nobody_finishes_are_aborted_below_the_run_alone(keys: S3Server, tmp_path: Path) -> None:
    prefix = f"uploads/{tmp_path.name}"
    store, admin = open_store(keys.storage(prefix)), keys.client("admin")

    def begun(key: str) -> None:
        assert admin.request("POST", f"/daskade/{prefix}/{key}", {"uploads": ""}).status == 200

    def open_uploads() -> list[str]:
        answer = admin.request("GET", "/daskade", {"uploads": "", "prefix": f"{prefix}/"}).expect(200).body.decode()
        return sorted(html.unescape(key) for key in re.findall(rf"<Key>{prefix}/([^<]*)</Key>", answer))

    ours, theirs = ["runs/r/data/0/a b&c", "runs/r/data/1/x"], ["models/x", "runs/rr/data/0/x"]
    for key in ours + theirs:
        begun(key)
    assert open_uploads() == sorted(ours + theirs)
    store.sweep("runs/r", ("r", 1))
    assert open_uploads() == theirs


# What real services answer and SeaweedFS never does: (status, body, action) → reason. The proxy cannot set a
# body, so a scripted server says it.
ANSWERS = [
    (
        403,
        "<Code>RequestTimeTooSkewed</Code><RequestTime>A</RequestTime><ServerTime>B</ServerTime>",
        "ClockSkew",
        False,
    ),
    (400, "<Code>ExpiredToken</Code>", "CredentialsExpired", True),
    (
        301,
        "<Code>PermanentRedirect</Code><Endpoint>b.s3.eu-west-1.amazonaws.com</Endpoint>",
        "WrongRegion",
        False,
    ),
    (
        400,
        "<Code>AuthorizationHeaderMalformed</Code><Message>expecting 'eu-west-1'</Message>"
        "<Region>eu-west-1</Region>",
        "WrongRegion",
        False,
    ),
    (507, "<Code>InsufficientStorage</Code>", "StorageFull", True),
    (403, "<Code>QuotaExceeded</Code>", "StorageFull", True),
    (501, "<Code>NotImplemented</Code>", "NoConditionalPut", False),
    (404, "<Code>NoSuchBucket</Code>", "NoSuchBucket", False),
    (401, "", "AccessDenied", False),
    (429, "", "StorageUnreachable", True),
    (503, "<Code>SlowDown</Code>", "StorageUnreachable", True),
    (400, "<Code>Strange</Code><Message>a\x1b[31mb</Message>", "StorageRejected", False),
]


class Scripted:
    """An HTTP server that gives the same answer to everything."""

    def __init__(self, status: int, body: str) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                data = f"<?xml version='1.0'?><Error>{body}</Error>".encode() if body else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", '"0"')
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_PUT = do_GET = do_HEAD = do_POST = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.config = {
            "url": "s3://bucket/x",
            "endpoint": f"http://127.0.0.1:{self.server.server_address[1]}",
        }

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def any_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "CANARYKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "CANARYSECRET")
    monkeypatch.setitem(s3._RETRY, "max_retries", 0)


@pytest.mark.parametrize(("status", "body", "reason", "transient"), ANSWERS)
def test_answers_of_other_services_have_their_reason(
    any_keys: None, status: int, body: str, reason: str, transient: bool
) -> None:
    with Scripted(status, body) as answers:
        error = refused(lambda: open_store(answers.config).create("x", b"1"), "cannot create s3://bucket/x/x: ")
    assert (error.reason, error.transient) == (reason, transient), str(error)
    assert "CANARY" not in str(error) and str(error).isprintable()
    if reason == "WrongRegion":
        assert ("eu-west-1" if status == 400 else "region") in str(error)
    if reason == "ClockSkew":
        assert "our time A, the server's B" in str(error)


def test_a_service_that_ignores_the_condition_is_found_by_the_probe(any_keys: None) -> None:
    with Scripted(200, "") as answers:
        error = refused(lambda: open_store(answers.config).probe(), "If-None-Match")
    assert error.reason == "NoConditionalPut"


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [("http://127.0.0.1:1", "refused"), ("http://no-such-host.invalid", "the host name is unknown")],
)
def test_an_endpoint_that_is_not_there_names_the_cause(any_keys: None, endpoint: str, words: str) -> None:
    error = refused(lambda: open_store({"url": "s3://bucket/x", "endpoint": endpoint}).probe(), words)
    assert (error.reason, error.transient) == ("StorageUnreachable", True)


def test_an_endpoint_that_speaks_no_tls_is_named(any_keys: None) -> None:
    with Scripted(200, "") as answers:
        config = {**answers.config, "endpoint": answers.config["endpoint"].replace("http://", "https://")}
        error = refused(lambda: open_store(config).probe(), "TLS")
    assert error.reason == "StorageUnreachable"


def test_a_private_authority_is_trusted_only_when_it_is_named(
    any_keys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "san").write_text("subjectAltName=IP:127.0.0.1")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2"
    )
    openssl("req", *new, "-keyout", "key.pem", "-out", "csr.pem", "-subj", "/CN=server")
    signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san", "-days", "2")
    openssl("x509", "-req", "-in", "csr.pem", "-out", "cert.pem", *signer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with Scripted(200, "") as answers:
        answers.server.socket = context.wrap_socket(answers.server.socket, server_side=True)
        config: dict[str, Any] = {
            **answers.config,
            "endpoint": answers.config["endpoint"].replace("http://", "https://"),
        }
        error = refused(lambda: open_store(config).create("x", b"1"), "certificate")
        assert error.reason == "StorageUnreachable"
        open_store({**config, "options": {"ca_file": str(tmp_path / "ca.pem")}}).create("x", b"1")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        open_store(config).create("x", b"1")


# ------------------------------------------------------------ the test server


def test_the_server_keeps_its_data_and_its_log_over_a_kill(keys: S3Server) -> None:
    store = open_store(keys.storage("kept"))
    store.put("x", b"1")
    keys.down()
    refused(lambda: store.get("x"), shown(store, "x"))
    keys.up()
    assert store.get("x") == b"1"
    # A request is logged when its exchange is over, which may be a moment after its answer was read.

    def rows() -> list[dict[str, Any]] | None:
        found = [row for row in keys.log() if row["key"] == "daskade/kept/x"]
        served = [row["method"] for row in found if row["status"] == 200]
        return found if served == ["PUT", "GET"] else None

    logged = until("both requests are logged", rows, 10)
    assert any(row["status"] == 0 for row in logged)
    assert all({"t", "method", "key", "status", "query"} <= set(row) for row in logged)


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = f"import os; from support.s3.server import S3Server; S3Server({str(tmp_path)!r}); os.kill(os.getpid(), 9)"
    env = {**os.environ, "PYTHONPATH": str(TOP / "tests")}
    subprocess.run([sys.executable, "-c", code], env=env, check=False, timeout=120)
    pid = int((tmp_path / "pid").read_text())
    until("the server has ended", lambda: not alive(pid), 10)
