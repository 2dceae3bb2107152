"""Where an output goes: small ones travel in their handle, large and declared ones into storage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

from daskade_runtime.cache import Cache
from daskade_runtime.definitions import Run
from daskade_runtime.errors import StepFailure
from daskade_runtime.fetch import object_key, patiently
from daskade_runtime.storage import Exists, StorageError, Store

_PIECE = 16 << 20


def publish(
    run: Run,
    step: dict[str, Any],
    task: tuple[str, int, int, int],
    answer: dict[str, Any],
    cache: Cache,
    address: str,
    stopped: Callable[[], bool],
    told: Callable[[StorageError | None], None],
) -> dict[str, Any]:
    """Makes an output available beyond its attempt; the attempt's reply, with the handle.

    The file of a large output becomes an entry of ``cache``.
    """
    _, s, i, a = task
    data, path = answer.pop("b"), answer.pop("path")
    lens, json = answer.pop("lens", None), answer.pop("json", None)
    handle = {"n": None, "x": None, "m": None, **answer, "b": data, "u": None, "w": None}
    declared = step.get("path")
    if path is not None or declared:
        where = declared_path(declared, i) if declared else f"data/{s}/{i}-{a}-{os.urandom(4).hex()}"
        key = object_key(run.uid, where)
        put = _create if declared and step.get("if_exists") == "error" else _replace
        if path is None:
            patiently(lambda: put(run.store, key, data, None, answer), stopped, told=told)
        else:
            entry = cache.add((run.uid, answer["d"]), path, answer["z"])
            try:
                patiently(lambda: put(run.store, key, None, entry.path, answer), stopped, told=told)
            finally:
                cache.unpin(entry)
            handle["w"] = address
        handle["u"] = where
    return {"ok": True, "handle": handle, "lens": lens, "json": json, "z": answer["z"]}


def declared_path(path: str, item: int) -> str:
    """Where a declared output goes, from the storage root; items of a mapped step apart from each other."""
    path = path.lstrip("/")
    if item >= 0:
        path = path.replace("{item}", str(item)) if "{item}" in path else f"{path}/{item}"
    return "/" + path


def _replace(store: Store, key: str, data: bytes | None, path: str | None, answer: dict[str, Any]) -> None:
    if data is not None:
        store.put(key, data)
    elif path is not None:
        store.put_file(key, path)


def _create(store: Store, key: str, data: bytes | None, path: str | None, answer: dict[str, Any]) -> None:
    """As ``_replace``, but never over something else. The same content is no conflict: an earlier attempt
    wrote it.
    """
    try:
        if data is not None:
            store.create(key, data)
            return
        # A file has no create-only put: the look before it narrows the window, nothing closes it.
        size = store.head(key)
        if size is None:
            _replace(store, key, None, path, answer)
            return
    except Exists:
        size = store.head(key)
    if size != answer["z"] or _digest(store, key, answer["z"]) != answer["d"]:
        raise StepFailure("data", "OutputExists", f"the declared output {key} exists already")


def _digest(store: Store, key: str, size: int) -> bytes:
    hasher = hashlib.sha256()
    for at in range(0, size, _PIECE):
        hasher.update(store.get(key, at, min(_PIECE, size - at)))
    return hasher.digest()
