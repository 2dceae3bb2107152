"""Archives of code: what is taken, what is refused, and that the first look counts for the whole run."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import archive
from daskade_runtime.run import Refused
from daskade_runtime.storage import StorageError

FILES = {"flow.py": b"x = 1\n", "pkg/util.py": b"", "pkg/data.bin": bytes(range(256))}


def zipped(files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda entry: None) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            change(entry)
            target.writestr(entry, data)
    return made.getvalue()


def tarred(files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda member: None) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as target:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            change(member)
            target.addfile(member, io.BytesIO(data))
    return made.getvalue()


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def refused(call: Callable[[], Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def test_both_kinds_give_the_same_zip_whatever_the_order() -> None:
    packed = archive.repack(zipped(FILES))
    assert unpacked(packed) == FILES
    assert archive.repack(tarred(FILES)) == packed
    assert archive.repack(zipped(dict(reversed(FILES.items())))) == packed
    dotted = {f"./{name}": data for name, data in FILES.items()}
    assert archive.repack(tarred(dotted)) == packed
    assert archive.repack(zipped({**FILES, "pkg/": b""})) == packed, "folders are nothing of their own"
    assert unpacked(archive.repack(zipped({}))) == {}


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.py", "a/../../x.py", "a/./b.py", "a\\b.py", "a//b.py", "a\n.py", "x" * 2000]
)
def test_names_that_leave_the_archive_are_refused(pack: Callable[..., bytes], name: str) -> None:
    error = refused(lambda: archive.repack(pack({"flow.py": b"", name: b"x"})))
    assert error.reason == "BadCode" and "outside of itself" in str(error)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname, member.size = kind, "/etc/passwd", 0

    error = refused(lambda: archive.repack(tarred({"link": b""}, change)))
    assert error.reason == "BadCode" and "link in the archive is a link" in str(error)


def test_a_link_in_a_zip_is_refused() -> None:
    def change(entry: zipfile.ZipInfo) -> None:
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16

    error = refused(lambda: archive.repack(zipped({"link": b"/etc/passwd"}, change)))
    assert "link in the archive is a link" in str(error)


def test_bombs_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr(archive, "_TAR_OVERHEAD", 1 << 20)
    bomb = {"zeros.py": bytes(4 << 20)}
    many = {f"{i}.py": bytes(1 << 18) for i in range(5)}
    nothing = gzip.compress(bytes(8 << 20))
    for data in (zipped(bomb), tarred(bomb), zipped(many), tarred(many), nothing):
        assert "MiB when it is unpacked" in str(refused(partial(archive.repack, data)))
    monkeypatch.setattr(archive, "FILES", 3)
    for pack in (zipped, tarred):
        few = {f"{i}.py": b"" for i in range(4)}
        assert "more than 3 files" in str(refused(partial(archive.repack, pack(few))))


def test_a_zip_that_would_be_too_large_for_its_readers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PACKED_BYTES", 1000)
    assert "as a zip" in str(refused(lambda: archive.repack(zipped({"a.bin": os.urandom(2000)}))))


def test_a_zip_that_lies_about_a_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(zipped({"a.py": bytes(100_000)}))
    # The size in the central directory: its record begins with PK\x01\x02.
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (10).to_bytes(4, "little")
    error = refused(lambda: archive.repack(bytes(data)))
    assert error.reason == "BadCode" and "the archive cannot be read: " in str(error) and "a.py" in str(error)


def test_what_is_no_archive_is_refused() -> None:
    whole, broken = tarred(FILES), "the archive cannot be read: "
    for data, words in {
        b"": "neither a zip nor a tar.gz",
        b"hello": "neither a zip nor a tar.gz",
        b"PK\x03\x04rubbish": f"{broken}File is not a zip file",
        b"\x1f\x8brubbish": broken,
        whole[: len(whole) // 2]: broken,
    }.items():
        error = refused(partial(archive.repack, data))
        assert error.reason == "BadCode" and words in str(error)
    both = refused(lambda: archive.repack(zipped({"a": b"", "a/b.py": b""})))
    assert "as a file and as a folder" in str(both)


def test_the_first_look_counts_for_the_run(tmp_path: Path) -> None:
    source = tmp_path / "code" / "flow.tar.gz"
    source.parent.mkdir()
    source.write_bytes(tarred(FILES))
    storage = {"url": f"file://{tmp_path}/store"}
    (tmp_path / "store").mkdir()
    url = f"file://{source}"
    digest = archive.pin(storage, "run-1", url, None)
    kept = (tmp_path / f"store/runs/run-1/code/{digest}.zip").read_bytes()
    assert hashlib.sha256(kept).hexdigest() == digest and unpacked(kept) == FILES
    source.write_bytes(tarred({"flow.py": b"x = 2\n"}))
    assert archive.pin(storage, "run-1", url, None) == digest
    other = archive.pin(storage, "run-2", url, None)
    assert other != digest
    source.unlink()
    assert archive.pin(storage, "run-1", url, None) == digest
    error = refused(lambda: archive.pin(storage, "run-3", url, None))
    assert error.reason == "CodeNotFound" and url in str(error)
    source.write_bytes(tarred({"../flow.py": b""}))
    error = refused(lambda: archive.pin(storage, "run-3", url, None))
    assert error.reason == "BadCode" and url in str(error) and "../flow.py" in str(error)


def test_another_archive_than_the_digest_names_is_refused(tmp_path: Path) -> None:
    data = zipped(FILES)
    (tmp_path / "a.zip").write_bytes(data)
    storage = {"url": f"file://{tmp_path}"}
    error = refused(lambda: archive.fetch(storage, f"file://{tmp_path}/a.zip", "0" * 64))
    assert error.reason == "CodeMismatch" and hashlib.sha256(data).hexdigest() in str(error)
    assert archive.fetch(storage, f"file://{tmp_path}/a.zip", hashlib.sha256(data).hexdigest()) == data


def test_a_large_archive_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.zip").open("wb") as file:
        file.truncate(archive.ARCHIVE_BYTES + 1)
    error = refused(lambda: archive.fetch({"url": f"file://{tmp_path}"}, f"file://{tmp_path}/a.zip", None))
    assert error.reason == "BadCode" and "into the image" in str(error)


def test_urls_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for url in ("https://example.com/a.zip", "s3://bucket", "a.zip", "file:///a/../b.zip"):
        with pytest.raises((Refused, StorageError)):
            archive.fetch({"url": f"file://{tmp_path}"}, url, None)
