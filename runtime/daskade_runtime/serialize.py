"""Outputs to bytes and back: pickle, json, parquet, numpy; a list may be stored element by element.

An output is written once, through :class:`Writer`, which hashes as it goes and moves to a file when the
output is too large to travel inline.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import struct
from dataclasses import dataclass
from typing import IO, Any

from daskade_runtime.errors import StepFailure, text_of, type_name
from daskade_runtime.limits import MAPPED_ELEMENTS, RESULT_DEPTH, RESULT_JSON

SERIALIZERS = ("pickle", "json", "parquet", "numpy")
# Nesting of an output that is written as JSON.
DEPTH_CAP = 100


@dataclass(slots=True)
class Output:
    """A serialised output: inline ``data`` or a file, with its digest; ``offsets``/``digests`` for
    containers.
    """

    serializer: str
    size: int
    digest: bytes
    data: bytes | None
    path: str | None
    n: int | None = None
    offsets: bytes | None = None
    digests: bytes | None = None


class Writer:
    """A binary sink: memory up to ``limit`` bytes, then the file ``path``."""

    def __init__(self, limit: int, path: str) -> None:
        self._limit = limit
        self._path = path
        self._file: IO[bytes] | None = None
        self._element: Any = None
        self.reset()

    def reset(self) -> None:
        """Forgets everything written so far."""
        self.discard()
        self._parts: list[bytes] = []
        self._hash = hashlib.sha256()
        self._element = self._element and hashlib.sha256()
        self.size = 0

    def begin_element(self) -> None:
        """Starts a hash of its own for what is written from here on."""
        self._element = hashlib.sha256()

    def end_element(self) -> bytes:
        """Digest of what was written since ``begin_element``."""
        digest: bytes = self._element.digest()
        return digest

    def write(self, data: Any) -> int:
        view = data if type(data) is bytes else memoryview(data).cast("B")
        size = len(view)
        self._hash.update(view)
        if self._element is not None:
            self._element.update(view)
        self.size += size
        if self._file is None and self.size <= self._limit:
            self._parts.append(bytes(view))
            return size
        try:
            if self._file is None:
                self._file = open(self._path, "wb")  # noqa: SIM115 - closed by finish or discard
                for part in self._parts:
                    self._file.write(part)
                self._parts = []
            self._file.write(view)
        except OSError as exc:
            raise StepFailure(
                "infra", "DiskFull", f"the output cannot be kept on this worker: {exc}"
            ) from exc
        return size

    def flush(self) -> None:
        """Part of the file protocol; nothing is buffered here."""

    def finish(self, serializer: str) -> Output:
        data: bytes | None = b"".join(self._parts)
        path = None
        if self._file is not None:
            try:
                self._file.close()
            except OSError as exc:
                raise StepFailure(
                    "infra", "DiskFull", f"the output cannot be kept on this worker: {exc}"
                ) from exc
            self._file = None
            data, path = None, self._path
        return Output(serializer, self.size, self._hash.digest(), data, path)

    def discard(self) -> None:
        """Removes the file, if there is one."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            os.unlink(self._path)


def dump(value: Any, serializer: str, container: bool, inline_max: int, path: str) -> Output:
    """Serialises ``value`` once. Raises :class:`StepFailure` (class ``data``) when that is impossible."""
    writer = Writer(inline_max, path)
    try:
        if not container:
            _write(writer, value, serializer)
            return writer.finish(serializer)
        if not isinstance(value, (list, tuple)):
            raise StepFailure(
                "data",
                "TypeMismatch",
                f"steps map over this output, which must be a list, not {_what(value)}",
            )
        if len(value) > MAPPED_ELEMENTS:
            message = f"steps map over this output, which has {len(value)} elements; at most {MAPPED_ELEMENTS} are allowed"
            raise StepFailure("data", "TooManyElements", f"{message}; return several lists, or larger elements")
        offsets = [0]
        digests = []
        for index, element in enumerate(value):
            writer.begin_element()
            try:
                _write(writer, element, serializer)
            except StepFailure as exc:
                raise StepFailure(
                    exc.class_, exc.type_, f"element {index}: {exc.message}", exc.traceback
                ) from exc
            offsets.append(writer.size)
            digests.append(writer.end_element())
        out = writer.finish(serializer)
        out.n = len(digests)
        out.offsets = struct.pack(f"<{len(offsets)}Q", *offsets)
        out.digests = b"".join(digests)
        return out
    except BaseException:
        writer.discard()
        raise


def load(serializer: str, data: Any) -> Any:
    """The value in ``data`` (bytes, a view, or a binary file at the right position)."""
    if serializer == "pickle":
        return pickle.load(data) if hasattr(data, "read") else pickle.loads(data)
    if serializer == "json":
        return json.loads(data.read() if hasattr(data, "read") else bytes(data))
    if serializer == "numpy":
        import numpy

        return numpy.load(data if hasattr(data, "read") else io.BytesIO(data), allow_pickle=False)
    if serializer == "parquet":
        return _load_parquet(data.read() if hasattr(data, "read") else data)
    raise StepFailure(
        "data", "UnknownSerializer", f"unknown serializer {serializer!r}: one of {', '.join(SERIALIZERS)}"
    )


def bounds(offsets: bytes, index: int) -> tuple[int, int]:
    """Offset and length of element ``index`` of a container."""
    start, end = struct.unpack_from("<2Q", offsets, 8 * index)
    return start, end - start


def load_container(serializer: str, data: Any, n: int, offsets: bytes) -> list[Any]:
    """All elements of a container in ``data`` (bytes or a view)."""
    view = memoryview(data)
    marks = struct.unpack(f"<{n + 1}Q", offsets)
    return [load(serializer, view[marks[k] : marks[k + 1]]) for k in range(n)]


def plain_json(value: Any, depth: int = DEPTH_CAP) -> Any:
    """``value`` as exact JSON data, nested at most ``depth`` deep; raises ValueError with the place and reason
    otherwise.
    """
    return _plain(value, "", depth, depth)


def result_of(value: Any, required: bool) -> list[Any] | None:
    """A list of the step's small JSON result alone (which may be None); ``None`` if it has no such result and
    none is required.
    """
    try:
        plain = plain_json(value, RESULT_DEPTH)
    except ValueError as exc:
        if required:
            raise StepFailure("data", "NotJson", f"the result must be plain JSON data: {exc}") from None
        return None
    size = len(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())
    if size > RESULT_JSON:
        if required:
            message = f"the result has {size} bytes as JSON; at most {RESULT_JSON} are allowed; use the output instead"
            raise StepFailure("data", "ResultTooLarge", message)
        return None
    return [plain]


def _write(writer: Writer, value: Any, serializer: str) -> None:
    if serializer == "pickle":
        _write_pickle(writer, value)
    elif serializer == "json":
        try:
            text = json.dumps(plain_json(value), ensure_ascii=False, separators=(",", ":"))
            writer.write(text.encode())
        except ValueError as exc:
            raise StepFailure(
                "data", "NotSerializable", f"the output is not plain JSON data: {exc}"
            ) from None
    elif serializer == "numpy":
        import numpy

        if not isinstance(value, numpy.ndarray) or value.dtype.hasobject:
            raise StepFailure(
                "data",
                "NotSerializable",
                f"serializer numpy needs an array of plain numbers, not {_what(value)}",
            )
        numpy.save(writer, value, allow_pickle=False)
    elif serializer == "parquet":
        _write_parquet(writer, value)
    else:
        raise StepFailure(
            "data", "UnknownSerializer", f"unknown serializer {serializer!r}: one of {', '.join(SERIALIZERS)}"
        )


def _write_pickle(writer: Writer, value: Any) -> None:
    """Streams a whole output; an element of a container is made in memory, so that a failure leaves nothing
    behind.
    """
    fresh = writer.size == 0
    try:
        if fresh:
            pickle.Pickler(writer, 5).dump(value)
        else:
            writer.write(pickle.dumps(value, 5))
        return
    except (MemoryError, StepFailure):
        raise
    except Exception as exc:  # noqa: BLE001 - __reduce__ of user types may raise anything
        first = exc
    try:
        import cloudpickle

        buffer = io.BytesIO()
        cloudpickle.CloudPickler(buffer, protocol=5).dump(value)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        message = f"the output ({_what(value)}) cannot be pickled: {type_name(first)}: {text_of(first)}"
        raise StepFailure("data", "NotSerializable", message) from None
    if fresh:
        writer.reset()
    writer.write(buffer.getbuffer())


def _write_parquet(writer: Writer, value: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        if isinstance(value, pyarrow.Table):
            table = value
        elif type(value).__module__.split(".")[0] == "pandas" and type(value).__name__ == "DataFrame":
            table = pyarrow.Table.from_pandas(value)
        else:
            message = f"serializer parquet needs a pandas DataFrame or a pyarrow Table, not {_what(value)}"
            raise StepFailure("data", "NotSerializable", message)
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink)
    except pyarrow.ArrowException as exc:
        raise StepFailure(
            "data", "NotSerializable", f"the output cannot be written as parquet: {text_of(exc)}"
        ) from None
    writer.write(memoryview(sink.getvalue()))


def _load_parquet(data: Any) -> Any:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(pyarrow.BufferReader(pyarrow.py_buffer(data)))
    return table.to_pandas() if b"pandas" in (table.schema.metadata or {}) else table


def _plain(value: Any, where: str, left: int, most: int) -> Any:
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where or 'it'} holds a lone surrogate") from None
        return value
    if kind is int:
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{where or 'it'} is an integer beyond 64 bits")
        return value
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{where or 'it'} is {value}, which JSON cannot hold")
        return value
    if left < 0 or (left == 0 and isinstance(value, (dict, list, tuple))):
        raise ValueError(f"it is nested more than {most} deep")
    if isinstance(value, dict):
        out = {}
        for key, inner in value.items():
            if type(key) is not str:
                shown, kind_name = str(key)[:60], type(key).__name__
                raise ValueError(f"{where or 'it'} has the key {shown!r} of type {kind_name}, not a string")
            _plain(key, f"a key of {where or 'it'}", left, most)
            out[key] = _plain(inner, f"{where}.{key[:60]}", left - 1, most)
        return out
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{where}[{k}]", left - 1, most) for k, inner in enumerate(value)]
    # Subclasses (enums, numpy.float64) as what they are, not as what their own __str__ or __int__ says.
    if isinstance(value, str):
        return _plain(str.__str__(value), where, left - 1, most)
    if isinstance(value, int):
        return _plain(int.__int__(value), where, left - 1, most)
    if isinstance(value, float):
        return _plain(float.__float__(value), where, left - 1, most)
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return _plain(value.item(), where, left - 1, most)
    raise ValueError(f"{where or 'it'} is {_what(value)}")


def _what(value: Any) -> str:
    kind = type(value)
    return (
        f"{kind.__module__}.{kind.__qualname__}"
        if kind.__module__ != "builtins"
        else f"a {kind.__qualname__}"
    )
