"""Argument templates: msgpack with references to outputs as extension type 1.

``[0, step, item, path]`` is the output of one task (or what is found in it under ``path``), ``[1, step,
mode]`` the list of all items of a mapped step, ``[2, slot]`` a value of this item, ``[3, step, item, index]``
an element of a container, ``[4, number]`` an object that the step reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from daskade_runtime.errors import StepFailure

EXT = 1
OUTPUT, ALL, VALUE, ELEMENT, OBJECT = 0, 1, 2, 3, 4
HOLES, DROPPED, FLATTENED = 0, 1, 2

Resolver = Callable[[tuple[Any, ...]], Any]


def decode(data: bytes, resolve: Resolver) -> Any:
    """The template with each reference replaced by what ``resolve`` gives for it."""

    def hook(code: int, payload: bytes) -> Any:
        return resolve(_reference(code, payload))

    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, ext_hook=hook)
    except (ValueError, msgpack.UnpackException) as exc:
        raise StepFailure("data", "BadTemplate", f"the step's arguments cannot be read: {exc}") from exc


def references(data: bytes | None) -> list[tuple[Any, ...]]:
    """All references in a template, in order."""
    found: list[tuple[Any, ...]] = []
    if data:
        decode(data, found.append)
    return found


def _reference(code: int, payload: bytes) -> tuple[Any, ...]:
    if code != EXT:
        raise StepFailure(
            "data", "BadTemplate", f"the step's arguments hold an unknown extension type {code}"
        )
    try:
        ref = msgpack.unpackb(payload, raw=False, use_list=False, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as exc:
        raise StepFailure(
            "data", "BadTemplate", f"a reference in the step's arguments cannot be read: {exc}"
        ) from exc
    if not isinstance(ref, tuple) or len(ref) < 2 or ref[0] not in (OUTPUT, ALL, VALUE, ELEMENT, OBJECT):
        raise StepFailure("data", "BadTemplate", f"the step's arguments hold an unknown reference {ref!r}")
    return ref


def walk(value: Any, path: Any, what: str) -> Any:
    """What lies in ``value`` under ``path`` (keys and indices)."""
    for at, key in enumerate(path):
        try:
            value = value[key]
        except Exception as exc:  # the value is the user's: __getitem__ may raise anything
            if isinstance(key, str) and hasattr(value, "__dict__") and key in vars(value):
                value = vars(value)[key]
                continue
            where = "".join(f"[{k!r}]" for k in path[: at + 1])
            message = f"{what} has no {where}: it is {_kind(value)}"
            raise StepFailure("data", "NoSuchKey", message) from exc
    return value


def _kind(value: Any) -> str:
    name = type(value).__name__
    if isinstance(value, dict):
        return f"a {name} with the keys {', '.join(repr(k)[:40] for k in list(value)[:10])}"
    if isinstance(value, (list, tuple)):
        return f"a {name} of {len(value)}"
    return f"of type {name}"
