"""The shapes of journal records: what a writer may append and a reader accepts. See ``docs/storage.md``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from daskade_runtime.limits import FINAL_VALUES, RECORD_DEPTH

#: Length of a sha256.
DIGEST = 32

_NONE = type(None)
_NUMBER = (int, float)
_TEXT = (str,)
_TEXT_OR_NONE = (str, _NONE)
_INT = (int,)
_SHAPES: dict[str, tuple[tuple[type, ...], ...]] = {
    "opened": ((dict,),),
    "length": (_INT, _INT),
    "failed": (_INT, _INT, _INT, _TEXT, _TEXT, _TEXT, _TEXT_OR_NONE, _NUMBER, _NUMBER),
    "lost": (_INT, _INT, _INT, _TEXT_OR_NONE, _NUMBER),
    "committed": (
        *(_INT, _INT, _INT, (dict,), _TEXT_OR_NONE, _NUMBER, _NUMBER),
        (list, tuple, _NONE),
        (bytes, str, _NONE),
    ),
    "skipped": (_INT, _INT, _TEXT, _TEXT_OR_NONE),
    "refused": (_INT, _INT, _TEXT, _TEXT_OR_NONE),
    "result": (_TEXT, _INT, _INT, _TEXT),
    "invalidated": (_INT, _INT, _INT, _TEXT, _TEXT_OR_NONE, _NUMBER),
    "final": ((dict,),),
}
# Kinds that no reader may leave out, and the format from which on there are any.
_SINCE = {"invalidated": 2}
_OPENED: dict[str, tuple[type, ...]] = {
    "epoch": _INT,
    "t": _NUMBER,
    "name": _TEXT_OR_NONE,
    "spec": (bytes, str, _NONE),
    "spec_digest": _TEXT_OR_NONE,
    "code": (dict, _NONE),
    "runtime": _TEXT_OR_NONE,
    "dask": _TEXT_OR_NONE,
    "python": _TEXT_OR_NONE,
}
_CODE: dict[str, tuple[type, ...]] = {"digest": _TEXT_OR_NONE, "zip": (bytes, _NONE)}
_HANDLE: dict[str, tuple[type, ...]] = {
    "u": _TEXT_OR_NONE,
    "z": _INT,
    "d": (bytes,),
    "s": _TEXT,
    "b": (bytes, _NONE),
    "w": _TEXT_OR_NONE,
    "n": (int, _NONE),
    "x": (bytes, _NONE),
    "m": (bytes, _NONE),
    "r": (list, tuple, _NONE),
    "t": (*_NUMBER, _NONE),
}
_STEP_MAX, INT_MAX = 2**32 - 1, 2**63 - 1


def version_of(records: Iterable[Any]) -> int:
    """The oldest format in which a reader is right about these records: it is the one they are written in."""
    return max((_SINCE.get(record[0], 1) for record in records), default=1)


def check_record(record: Any) -> str | None:
    """What is wrong with a record, None if nothing. Unknown kinds are fine: they may be left out."""
    if type(record) not in (list, tuple) or not record or type(record[0]) is not str:
        return "a record is not an array that begins with its kind"
    kind = record[0]
    shape = _SHAPES.get(kind, ())
    if len(record) <= len(shape):
        return f"a {kind} record has {len(record) - 1} fields"
    for place, kinds in enumerate(shape, 1):
        if type(record[place]) not in kinds:
            return f"field {place} of a {kind} record is {type(record[place]).__name__}"
    problem = _check_values(kind, record) if shape else None
    texts = kind == "final"
    if problem is None and not all(is_plain(value, RECORD_DEPTH, texts) for value in record[1:]):
        problem = f"a {kind} record is nested too deep or holds what does not belong there"
    return problem


def _check_values(kind: str, record: Any) -> str | None:
    if kind == "opened":
        return check_map(record[1], _OPENED) or check_map(record[1].get("code") or {}, _CODE)
    if kind == "final":
        return None
    if kind == "result":
        return None if 0 <= record[2] < record[3] <= INT_MAX else "a result record is out of range"
    fine = 0 <= record[1] <= _STEP_MAX
    if kind == "length":
        fine = fine and 0 <= record[2] <= INT_MAX
    else:
        fine = fine and -1 <= record[2] <= INT_MAX
        if kind in ("failed", "lost", "committed"):
            fine = fine and 1 <= record[3] <= _STEP_MAX
        elif kind == "invalidated":
            fine = fine and 0 <= record[3] <= _STEP_MAX
    if not fine:
        return f"a {kind} record is out of range"
    if kind == "committed":
        if any(type(length) is not int or not 0 <= length <= INT_MAX for length in record[8] or ()):
            return "a committed record has a bad length"
        return check_map(record[4], _HANDLE) or _check_handle(record[4])
    return None


def check_map(fields: dict[Any, Any], known: dict[str, tuple[type, ...]]) -> str | None:
    for name, kinds in known.items():
        if type(fields.get(name)) not in kinds:
            return f"{name} is wrong or missing"
    return None


def _check_handle(handle: dict[str, Any]) -> str | None:
    size, data, length = handle["z"], handle.get("b"), handle.get("n")
    if len(handle["d"]) != DIGEST or not 0 <= size <= INT_MAX:
        return "a handle has a wrong digest or size"
    if handle.get("u") is None and data is None:
        return "a handle has neither a path nor bytes"
    if data is not None and len(data) != size:
        return "a handle's bytes have another size than it says"
    if length is not None:
        digests = handle.get("m")
        if length < 0 or len(handle.get("x") or b"") != 8 * (length + 1):
            return "a container's index does not fit its length"
        if digests is not None and len(digests) != DIGEST * length:
            return "a container's index does not fit its length"
    return None


def too_many_values(record: Any) -> str | None:
    """What is wrong with a record that readers refuse for its size, though its shape is right."""
    if record[0] != "final":
        return None
    count, rest = 0, [record[1]]
    while rest:
        value = rest.pop()
        count += 1
        if type(value) is dict:
            rest.extend(value.values())
        elif type(value) in (list, tuple):
            rest.extend(value)
        if count > FINAL_VALUES:
            return f"a final record has more than {FINAL_VALUES} values"
    return None


_SCALARS = (_NONE, bool, int, float, str, bytes)


def is_plain(value: Any, depth: int, texts: bool) -> bool:
    """Whether the value is plain data of at most this depth; ``texts``: with texts as keys of all maps."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if depth == 0:
        return False
    if kind is dict:
        if not all(
            type(key) is str if texts or depth == RECORD_DEPTH else type(key) in _SCALARS for key in value
        ):
            return False
        return all(is_plain(inner, depth - 1, texts) for inner in value.values())
    return kind in (list, tuple) and all(is_plain(inner, depth - 1, texts) for inner in value)
