"""A run's code that is an archive in the storage: fetched once, checked, and kept for the run as the zip that
workers take.

Archives come from outside. Everything is bounded before it is unpacked, and nothing but plain files is taken.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import lzma
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import unquote

from daskade_runtime.journal import check_run
from daskade_runtime.run import Refused
from daskade_runtime.storage import Exists, Store, clean, open_store

# Bytes as fetched, bytes unpacked, and files. Larger code belongs into the image.
ARCHIVE_BYTES = 64 << 20
UNPACKED_BYTES = 256 << 20
# Bytes of the zip that is made of it: an archive may have been packed better. Readers take no more.
PACKED_BYTES = 80 << 20
FILES = 20_000
# What a tar file has besides its contents, at most: header and padding of each file, names that are long.
_TAR_OVERHEAD = 64 << 20
_PIECE = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pin(storage: dict[str, Any], run: str, url: str, sha256: str | None) -> str:
    """Digest of the run's code, which is below the run in the storage from then on.

    The first call decides for the whole run: what is at ``url`` later does not count.
    """
    store = open_store(storage)
    known = f"runs/{check_run(run)}/code/pinned"
    if store.head(known) is not None:
        return store.get(known).decode()
    data = fetch(storage, url, sha256)
    try:
        packed = repack(data)
    except Refused as error:
        raise Refused(error.reason, f"{clean(url)}: {error}") from error
    digest = hashlib.sha256(packed).hexdigest()
    store.put(f"runs/{run}/code/{digest}.zip", packed)
    try:
        store.create(known, digest.encode())
    except Exists:
        # Another driver of the run was faster, or an answer was lost.
        return store.get(known).decode()
    return digest


def fetch(storage: dict[str, Any], url: str, sha256: str | None) -> bytes:
    """The archive as it is. The service and the identity are those of the storage."""
    folder, _, name = url.rpartition("/")
    if not folder or not name:
        raise Refused("BadCode", f"{clean(url)} names no archive")
    where = {"url": folder if folder.partition("://")[2] else f"{folder}/"}
    name = unquote(name)
    if url.partition(":")[0] == str(storage.get("url")).partition(":")[0]:
        where |= {key: storage[key] for key in ("endpoint", "region", "options") if storage.get(key)}
    store = open_store(where)
    size = store.head(name)
    if size is None:
        raise Refused("CodeNotFound", f"there is no {clean(url)}")
    if size > ARCHIVE_BYTES:
        limit = f"{ARCHIVE_BYTES >> 20} MiB; put large code into the image"
        raise Refused("BadCode", f"{clean(url)} has {size} bytes, more than {limit}")
    data = _whole(store, name)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise Refused("CodeMismatch", f"the sha256 of {clean(url)} is {found}, expected {clean(sha256)}")
    return data


def _whole(store: Store, name: str) -> bytes:
    data = store.get(name, 0, ARCHIVE_BYTES + 1)
    if len(data) > ARCHIVE_BYTES:
        raise Refused("BadCode", "the archive has grown beyond its limit while it was read")
    return data


def repack(data: bytes) -> bytes:
    """The plain files of a zip or tar.gz archive as a zip: the same files give the same bytes."""
    kinds = {b"PK\x03\x04": _zip_files, b"PK\x05\x06": _zip_files, b"\x1f\x8b": _tar_files}
    read = next((read for magic, read in kinds.items() if data.startswith(magic)), None)
    if read is None:
        raise Refused("BadCode", "the archive is neither a zip nor a tar.gz file")
    files: dict[str, bytes] = {}
    try:
        for name, content in read(data):
            files[_checked(name)] = content
            if len(files) > FILES:
                raise Refused("BadCode", f"the archive has more than {FILES} files")
    except (
        *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
        *(EOFError, NotImplementedError, RuntimeError, ValueError),
    ) as error:
        raise Refused("BadCode", f"the archive cannot be read: {clean(str(error))}") from error
    folders = {name.rpartition("/")[0] for name in files}
    for folder in list(folders):
        while folder:
            if folder in files:
                raise Refused("BadCode", f"the archive has {clean(folder)} as a file and as a folder")
            folder = folder.rpartition("/")[0]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    if packed.tell() > PACKED_BYTES:
        size = packed.tell()
        raise Refused("BadCode", f"the archive has {size} bytes as a zip; put large code into the image")
    return packed.getvalue()


def _zip_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        left = UNPACKED_BYTES
        if len(archive.infolist()) > 2 * FILES:
            raise Refused("BadCode", f"the archive has more than {FILES} files")
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
                raise _no_file(entry.filename)
            # What the entry says of its size need not be true.
            with archive.open(entry) as file:
                content = _bounded(file, left)
            left -= len(content)
            # Python cuts a name at a NUL.
            yield entry.orig_filename, content


def _tar_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryFile() as plain:
        # First unpacked as a whole, to a bound: headers of a tar file may be as large as they like.
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            left = UNPACKED_BYTES + _TAR_OVERHEAD
            while piece := packed.read(_PIECE):
                left -= len(piece)
                if left < 0:
                    raise _too_large()
                plain.write(piece)
        plain.seek(0)
        left = UNPACKED_BYTES
        with tarfile.open(fileobj=plain, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise _no_file(member.name)
                if member.size > left:
                    raise _too_large()
                file = archive.extractfile(member)
                content = file.read() if file is not None else b""
                if len(content) != member.size:
                    raise Refused("BadCode", "the archive is cut off")
                left -= len(content)
                yield member.name, content


def _bounded(file: IO[bytes], limit: int) -> bytes:
    content = file.read(limit + 1)
    if len(content) > limit:
        raise _too_large()
    return content


def _checked(name: str) -> str:
    """The name of a file below the archive's folder."""
    plain = name
    while plain.startswith("./"):
        plain = plain[2:]
    parts = plain.split("/")
    odd = any(ord(c) < 32 or ord(c) == 127 for c in plain)
    if odd or "\\" in plain or any(part in ("", ".", "..") for part in parts) or len(plain) > 1024:
        what = "a file outside of itself, or with a name that is not allowed"
        raise Refused("BadCode", f"the archive has {what}: {name!r:.200}")
    with contextlib.suppress(UnicodeEncodeError):
        plain.encode()
        return plain
    raise Refused("BadCode", f"the archive has a file whose name is not valid text: {name!a:.200}")


def _too_large() -> Refused:
    return Refused("BadCode", f"the archive has more than {UNPACKED_BYTES >> 20} MiB when it is unpacked")


def _no_file(name: str) -> Refused:
    return Refused("BadCode", f"{clean(name)} in the archive is a link, or something else that is no file")
