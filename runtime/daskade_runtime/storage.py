"""Object storage of a run: S3 (and what obstore speaks besides it) or a directory, behind one small
interface.

All calls are synchronous and may come from any thread. Failures are ``StorageError`` with a stable
``reason``; ``Exists`` is the answer of a lost conditional put, not a failure. Nothing here waits longer than
its own timeouts: backoff over minutes belongs to the caller, who can also tell people about it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from . import leftovers

Data = bytes | bytearray | memoryview | Sequence[bytes | bytearray | memoryview]
# Asked while an object is written, whether it is still to be: what it raises ends the write, and there is no object
# then. True with the last of it, after which nothing holds the write back.
Check = Callable[[bool], None]

# A key with its prefix may not be longer: the limit of S3.
KEY_LIMIT = 1024
# From here on a file or buffer goes up in parts, and comes down in ranges.
MULTIPART_FROM = 64 << 20
PART = 16 << 20
# S3 allows 10 000 parts; parts grow so that 5 TiB still fit.
PARTS_LIMIT = 10_000
OBJECT_LIMIT = 5 << 40
# One request: connecting, and the whole of it. A part of 16 MiB in 120 s is 140 kB/s, slower links fail
# visibly.
CONNECT_TIMEOUT = 5.0
REQUEST_TIMEOUT = 120.0
# Requests that carry little (create, head, list, delete) must not hold a journal up for two minutes.
SMALL_TIMEOUT = 30.0
SMALL = 4 << 20
_TEXT_LIMIT = 500
# A file that changes while it is read is read again, so often.
_READS = 3


class StorageError(Exception):
    """A storage operation failed.

    ``reason`` is one of the documented reasons; ``transient`` says that the same call may succeed later
    without anybody changing a setting.
    """

    def __init__(self, reason: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.transient = transient

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.reason, str(self), self.transient))


def _rebuild(reason: str, message: str, transient: bool) -> StorageError:
    return StorageError(reason, message, transient=transient)


class Exists(Exception):
    """A create-only put found an object under its key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} already exists")
        self.key = key


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of an object without its bytes. ``version`` is another text for another object; ``named`` is
    how the service itself names that version, if it does.
    """

    size: int
    version: str
    named: Any = field(default=None, compare=False)


def locate(storage: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Where an object is that a manifest names: the configuration of its store, and its key there.

    ``path`` is below the run's ``storage``, or a whole URL. Service and identity of a URL are those of the
    storage if both are of one kind, else those of the environment.
    """
    scheme, separator, rest = path.partition("://")
    if not separator:
        return storage, check_key(path)
    bucket, slash, key = rest.partition("/")
    key = unquote(key)
    if not slash or any(c in rest for c in "?#") or any(c in bucket for c in "@:%"):
        raise StorageError("InvalidKey", f"{clean(path)} names no object")
    where: dict[str, Any] = {"url": f"{scheme}://{bucket}/"}
    if scheme == str(storage.get("url")).partition(":")[0]:
        where |= {name: storage[name] for name in ("endpoint", "region", "options") if storage.get(name)}
    return where, check_key(key)


def open_store(config: dict[str, Any]) -> Store:
    """The store that ``config`` (``url``, ``endpoint``, ``region``, ``options``) names; makes no request.

    Refuses (``InvalidStorage``) a scheme without create-only writes, an unknown option, and an unsafe prefix.
    """
    store = _open_store(config)
    store.config = config
    return store


def _open_store(config: dict[str, Any]) -> Store:
    url = str(config.get("url") or "")
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise StorageError("InvalidStorage", "a storage url has no user, query or fragment")
    options = dict(config.get("options") or {})
    if parts.scheme == "file":
        if options:
            raise StorageError("InvalidStorage", f"unknown storage option {min(options)}")
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise StorageError("InvalidStorage", f"{clean(url)}: a directory is file:///absolute/path")
        return DirectoryStore(unquote(parts.path))
    if parts.scheme in ("s3", "gs"):
        if not parts.netloc:
            raise StorageError(
                "InvalidStorage", f"{clean(url)}: no bucket, expected {parts.scheme}://bucket/prefix"
            )
        prefix = unquote(parts.path).strip("/") if parts.path.strip("/") else ""
        if prefix:
            check_key(prefix)
        from .s3 import ObjectStore

        return ObjectStore(
            parts.scheme,
            parts.netloc,
            prefix,
            endpoint=config.get("endpoint") or None,
            region=config.get("region") or None,
            options=options,
        )
    raise StorageError(
        "InvalidStorage",
        f"{clean(url)}: storage is s3://bucket/prefix, gs://bucket/prefix or file:///absolute/path",
    )


def check_key(key: str) -> str:
    """``key`` itself, or ``StorageError(InvalidKey)``: no empty, ``.`` or ``..`` part, no control character,
    at most 1024 bytes, no leading or trailing slash, nothing that looks like our own temporary file."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise StorageError("InvalidKey", f"{key!a:.100}: a key that is not valid text") from None
    if not key or size > KEY_LIMIT:
        raise StorageError("InvalidKey", f"{key!a:.100}: key has {size} bytes; it must have 1 to {KEY_LIMIT}")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 or c == "\\" for c in key):
        raise StorageError("InvalidKey", f"{clean(key)}: control character or backslash in a key")
    for part in key.split("/"):
        if part in ("", ".", "..") or part.startswith(leftovers.PREFIX):
            raise StorageError("InvalidKey", f"{clean(key)}: {part!r} is not allowed as a part of a key")
    return key


class Store:
    """What a run needs of its storage. Keys are relative to the url, validated by ``check_key``."""

    url: str
    #: A look at an object costs no request over a network.
    quick = False
    #: What it was opened with.
    config: dict[str, Any] | None = None
    #: For whom is written here: a run, and the epoch under which it is open.
    owner: leftovers.Owner | None = None

    def fresh(self) -> Store:
        """The same storage, over connections of its own."""
        return self if self.config is None else open_store(self.config)

    def put(self, key: str, data: Data) -> str | None:
        """Writes or replaces the object, durably and at once: readers see all of it or the old one. The
        version of what was written, if the store tells.
        """
        raise NotImplementedError

    def put_file(self, key: str, path: str) -> str | None:
        """As ``put`` from a file, in parts if it is large."""
        raise NotImplementedError

    def create(self, key: str, data: Data) -> str | None:
        """Writes the object only if the key is free, else ``Exists``. Of any number of racing creators one
        wins.

        After a transient ``StorageError`` the outcome is unknown: whoever needs to know reads the object
        back.
        """
        raise NotImplementedError

    def create_file(self, key: str, path: str, check: Check | None = None) -> str | None:
        """As ``create`` from a file. What goes up in parts has no create-only form: the looks before it and
        before its last part narrow the window in which two writers may both succeed.
        """
        raise NotImplementedError

    def replace(
        self, key: str, data: Data | None, path: str | None, seen: Stat | None, check: Check
    ) -> str | None:
        """As ``put`` of bytes, or of the file ``path``, in the place of the object that was ``seen`` there; None:
        of nothing. ``Exists`` if another one has come since, ``check`` is asked before.

        Where the service compares the two itself, nothing comes between. Elsewhere, and in what goes up in parts,
        they are compared just before the last of it is written. As with ``create`` the outcome is unknown after
        a transient ``StorageError``.
        """
        raise NotImplementedError

    def get(self, key: str, start: int | None = None, length: int | None = None) -> bytes:
        """The object's bytes, or ``length`` of them from ``start`` (fewer at its end). ``NotFound`` if it is
        not there."""
        raise NotImplementedError

    def get_to_file(self, key: str, path: str, version: str | None = None) -> Stat:
        """Writes the object to ``path``, without holding all of it in memory: one version of it, the one with
        this id if one is given."""
        raise NotImplementedError

    def look(self, key: str, version: str | None = None) -> Stat | None:
        """Size and version of the object, None if it is not there; ``version``: of the one with this id."""
        raise NotImplementedError

    def head(self, key: str) -> int | None:
        """The object's size, None if it is not there."""
        found = self.look(key)
        return None if found is None else found.size

    def list(self, prefix: str, after: str | None = None) -> Iterator[tuple[str, int]]:
        """``(key, size)`` of everything below ``prefix`` (a folder, or "" for all), in order of the key's
        bytes, keys greater than ``after`` only."""
        raise NotImplementedError

    def delete(self, keys: Iterable[str]) -> None:
        """Removes the objects; those that are not there do not matter."""
        raise NotImplementedError

    def sweep(self, prefix: str, upto: leftovers.Owner | None) -> None:
        """Removes what writers that were killed have left below ``prefix``, a folder of a run: of the run up to this
        epoch; None: of all, where nothing is written any more. Never raises.
        """

    def probe(self) -> None:
        """Proves that the store keeps what the journal rests on: create, create again refused, read back,
        list, delete.

        One ``StorageError`` says what is missing; ``NoConditionalPut`` if the second create went through.
        """
        key = f"probe/{secrets.token_hex(16)}"
        content = os.urandom(64)
        # Nobody else draws this key: the library's own retry after a lost answer. Read back decides.
        with contextlib.suppress(Exists):
            self.create(key, content)
        try:
            self._probe_rest(key, content)
        finally:
            # An identity that may not delete can still run. Other trouble shows at the next write.
            with contextlib.suppress(StorageError):
                self.delete([key])

    def _probe_rest(self, key: str, content: bytes) -> None:
        try:
            self.create(key, bytes(reversed(content)))
        except Exists:
            pass
        else:
            raise StorageError(
                "NoConditionalPut",
                f"{self.url}: a second create-only write (If-None-Match) of the same key was accepted; "
                "the journal needs a store that refuses it",
            )
        if self.get(key) != content or self.head(key) != len(content):
            raise StorageError("NoConditionalPut", f"{self.url}: what was read back is not what was written")
        if (key, len(content)) not in set(self.list("probe")):
            raise StorageError(
                "StorageRejected", f"{self.url}: a new object is not in the list of its folder"
            )


# --------------------------------------------------------------------------------------------- directory


class DirectoryStore(Store):
    """A directory (local disk or a mounted volume). Create-only is temp file, fsync, hard link, fsync of the
    folder."""

    quick = True

    def __init__(self, root: str) -> None:
        self.root = os.path.normpath(root)
        self.url = "file://" + self.root
        self._cleaned: set[str] = set()

    def probe(self) -> None:
        try:
            os.makedirs(self.root, exist_ok=True)
        except OSError as error:
            self._raise("create directory", "", error)
        super().probe()

    def put(self, key: str, data: Data) -> str:
        return self._write(key, pieces(data), replace=True)

    def put_file(self, key: str, path: str) -> str:
        with open(path, "rb") as source:
            return self._write(key, iter(lambda: source.read(1 << 20), b""), replace=True)

    def create(self, key: str, data: Data) -> str:
        if os.path.lexists(self._path(key)):
            raise Exists(key)
        return self._write(key, pieces(data), replace=False)

    def create_file(self, key: str, path: str, check: Check | None = None) -> str:
        if os.path.lexists(self._path(key)):
            raise Exists(key)
        with open(path, "rb") as source:
            return self._write(key, iter(lambda: source.read(1 << 20), b""), replace=False)

    def replace(
        self, key: str, data: Data | None, path: str | None, seen: Stat | None, check: Check
    ) -> str:
        def last() -> None:
            check(True)
            if self.look(key) != seen:
                raise Exists(key)

        if path is None:
            return self._write(key, pieces(data or b""), replace=seen is not None, last=last)
        with open(path, "rb") as source:
            parts = _checked(source, 1 << 20, check)
            return self._write(key, parts, replace=seen is not None, last=last)

    def get(self, key: str, start: int | None = None, length: int | None = None) -> bytes:
        try:
            with open(self._path(key), "rb") as source:
                if start:
                    source.seek(start)
                return source.read(-1 if length is None else length)
        except OSError as error:
            self._raise("read", key, error)

    def get_to_file(self, key: str, path: str, version: str | None = None) -> Stat:
        _refuse_version(key, version)
        for _ in range(_READS):
            before, after, size = self._copy(key, path)
            if before == after and size == before.size:
                return before
        raise StorageError(
            "StorageUnreachable", f"{clean(key)} is being written while it is read", transient=True
        )

    def _copy(self, key: str, path: str) -> tuple[Stat, Stat, int]:
        size = 0
        try:
            source = open(self._path(key), "rb")  # noqa: SIM115 - closed by the with below
        except OSError as error:
            self._raise("read", key, error)
        with source, open(path, "wb") as sink:
            before = _stat(os.fstat(source.fileno()))
            while True:
                try:
                    chunk = source.read(1 << 20)
                except OSError as error:
                    self._raise("read", key, error)
                if not chunk:
                    return before, _stat(os.fstat(source.fileno())), size
                sink.write(chunk)
                size += len(chunk)

    def look(self, key: str, version: str | None = None) -> Stat | None:
        _refuse_version(key, version)
        try:
            found = os.stat(self._path(key))
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return _stat(found)
        except FileNotFoundError:
            self._check_root()
            return None
        except OSError as error:
            self._raise("look at", key, error)

    def list(self, prefix: str, after: str | None = None) -> Iterator[tuple[str, int]]:
        prefix = prefix.strip("/")
        folder = self._path(prefix) if prefix else self.root
        found: list[tuple[bytes, str, int]] = []
        stack = [(folder, prefix)]
        self._check_root()
        while stack:
            path, key = stack.pop()
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        name = f"{key}/{entry.name}" if key else entry.name
                        if entry.name.startswith(leftovers.PREFIX):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            stack.append((entry.path, name))
                        elif after is None or name.encode(errors="replace") > after.encode():
                            found.append((name.encode(errors="replace"), name, entry.stat().st_size))
            except FileNotFoundError:
                continue  # removed while we looked
            except NotADirectoryError:
                continue
            except OSError as error:
                self._raise("list", key, error)
        found.sort()
        return iter([(name, size) for _, name, size in found])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._raise("delete", key, error)
            # Folders are an artefact of this store, S3 has none: an empty one goes with its last object.
            parent = os.path.dirname(path)
            while len(parent) > len(self.root):
                try:
                    os.rmdir(parent)
                except OSError:
                    break
                parent = os.path.dirname(parent)

    def sweep(self, prefix: str, upto: leftovers.Owner | None) -> None:
        leftovers.clean_below(self._path(prefix), upto)

    def _path(self, key: str) -> str:
        return os.path.join(self.root, *check_key(key).split("/"))

    def _write(
        self,
        key: str,
        pieces: Iterable[bytes | bytearray | memoryview],
        *,
        replace: bool,
        last: Callable[[], None] = lambda: None,
    ) -> str:
        path = self._path(key)
        folder = os.path.dirname(path)
        temp = os.path.join(folder, leftovers.name(self.owner))
        try:
            for attempt in range(100):
                try:
                    self._make_folder(folder)
                    sink = open(temp, "xb")  # noqa: SIM115 - closed by the with below
                    break
                except FileNotFoundError:
                    # Someone's delete took the empty folder away between the two calls.
                    if attempt == 99:
                        raise
            try:
                with sink:
                    sink.writelines(pieces)
                    sink.flush()
                    os.fsync(sink.fileno())
                    version = _stat(os.fstat(sink.fileno())).version
                last()
                if replace:
                    os.replace(temp, path)
                else:
                    os.link(temp, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temp)
            _sync_folder(folder)
            if self.owner is not None and folder not in self._cleaned:
                self._cleaned.add(folder)
                leftovers.clean(folder, self.owner)
            return version
        except FileExistsError:
            raise Exists(key) from None
        except OSError as error:
            if not replace and error.errno in _NO_LINK:
                raise StorageError(
                    "NoConditionalPut", f"{self.url}: the file system has no hard links ({clean(str(error))})"
                ) from error
            self._raise("write", key, error)

    def _make_folder(self, folder: str) -> None:
        if os.path.isdir(folder):
            return
        self._check_root()
        missing = []
        while len(folder) >= len(self.root) and not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            try:
                os.mkdir(path)
            except FileExistsError:
                continue
            _sync_folder(os.path.dirname(path))

    def _check_root(self) -> None:
        # A volume that is not mounted must not look like an empty store.
        if not os.path.isdir(self.root):
            why = "no volume is mounted there, or you need to create the folder on it"
            raise StorageError("StorageUnreachable", f"{self.root} is not a directory: {why}", transient=True)

    def _raise(self, action: str, key: str, error: OSError) -> NoReturn:
        where = os.path.join(self.root, key) if key else self.root
        text = f"cannot {action} {clean(where)}: {os.strerror(error.errno) if error.errno else error}"
        code = error.errno
        if code == errno.ENOENT:
            self._check_root()
            raise StorageError("NotFound", text) from error
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError("StorageFull", text, transient=True) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError("AccessDenied", text) from error
        if code in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EINVAL):
            raise StorageError("InvalidKey", text) from error
        raise StorageError("StorageUnreachable", text, transient=True) from error


_NO_LINK = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def _refuse_version(key: str, version: str | None) -> None:
    if version is not None:
        raise StorageError("InvalidStorage", f"{clean(key)} is in a folder, which keeps no versions")


def _stat(found: os.stat_result) -> Stat:
    # Without the inode: it is another one on each mount of some volumes.
    return Stat(found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}")


def _checked(source: Any, size: int, check: Check) -> Iterator[bytes]:
    """Pieces of a file, none of which is read once the write is to end."""
    while piece := source.read(size):
        check(False)
        yield piece


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def pieces(data: Data) -> list[bytes | bytearray | memoryview]:
    """``data`` as flat byte buffers, not copied."""
    found = [data] if isinstance(data, (bytes, bytearray, memoryview)) else list(data)
    return [
        p.cast("B") if isinstance(p, memoryview) and (p.format != "B" or p.ndim != 1) else p for p in found
    ]


def clean(text: str) -> str:
    """``text`` fit for a message: printable and short."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…"
