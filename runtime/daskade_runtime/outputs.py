"""Where an output goes: small ones travel in their handle, large ones into storage, and under a name of its
own what the step keeps besides.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from daskade_runtime import kept
from daskade_runtime.cache import Cache, Entry
from daskade_runtime.definitions import Run
from daskade_runtime.fetch import object_key, patiently
from daskade_runtime.objects import Named
from daskade_runtime.storage import StorageError


def publish(
    run: Run,
    definition: dict[str, Any],
    task: tuple[str, int, int, int],
    answer: dict[str, Any],
    cache: Cache,
    address: str,
    named: Named,
    versions: list[list[str]],
    stopped: Callable[[], bool],
    told: Callable[[StorageError | None], None],
    current: Callable[[], None],
) -> dict[str, Any]:
    """Makes an output available beyond its attempt; the attempt's reply, with the handle. ``versions`` are of
    what the attempt has read, ``[path, version]`` each. ``current`` raises if the attempt was given up.

    The file of a large output becomes an entry of ``cache``.
    """
    _, step, item, attempt = task
    data, path = answer.pop("b"), answer.pop("path")
    lens, json, whole = answer.pop("lens", None), answer.pop("json", None), answer.pop("whole", None)
    handle = {"n": None, "x": None, "m": None, **answer, "b": data, "u": None, "w": None}
    reply = {"ok": True, "handle": handle, "lens": lens, "json": json, "z": answer["z"]}
    entry: Entry | None = None
    try:
        if path is not None:
            where = f"data/{step}/{item}-{attempt}-{os.urandom(4).hex()}"
            entry = file = cache.add((run.uid, answer["d"]), path, answer["z"])
            patiently(lambda: run.store.put_file(object_key(run.uid, where), file.path), stopped, told=told)
            handle.update(w=address, u=where)
        if named.path is not None and not named.taken:
            file_path = None if entry is None else entry.path
            what = kept.Bytes(data, file_path, answer["z"], answer["d"])
            if whole is not None:
                what = kept.Bytes(whole["b"], whole["path"], whole["z"], whole["d"])
            replace = bool(definition["target"]["replace"])
            reply, version = kept.keep(run, task, named.path, replace, what, reply, stopped, told, current)
            versions = [*versions, [named.path, version]]
    finally:
        if entry is not None:
            cache.unpin(entry)
        if whole is not None and whole["path"] is not None:
            with contextlib.suppress(OSError):
                os.unlink(whole["path"])
    if versions:
        reply["handle"]["r"] = versions
    return reply
