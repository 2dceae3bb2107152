"""Objects in storage that a step names by their paths: which they are for one attempt, and reading them.

They are outside of the run's own records: others write them, at any time. What was read is noted with its
version.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from daskade_runtime import template
from daskade_runtime.cache import Cache, Entry
from daskade_runtime.definitions import Run
from daskade_runtime.errors import StepFailure
from daskade_runtime.fetch import OneAtATime, kept_on_disk, patiently
from daskade_runtime.storage import Stat, StorageError, Store

T = TypeVar("T")

# The step names something that cannot be: no waiting helps, and no other worker.
_WRONG = frozenset({"NoSuchBucket", "InvalidKey", "InvalidStorage", "WrongRegion", "NoStorageLibrary"})


@dataclass
class Named:
    """What one attempt names: ``(keyword, path, serializer)`` of what it reads; where its output is kept, and
    whether what is there is taken for its output.
    """

    inputs: list[tuple[str, str, str]] = field(default_factory=list)
    path: str | None = None
    taken: bool = False


def named(step: dict[str, Any], values: bytes | None) -> Named:
    """The objects of an attempt with these values."""
    inputs, target = step.get("inputs"), step.get("target")
    if not inputs and target is None:
        return Named()
    given = template.decode(values, lambda _: None) if values is not None else []

    def value(ref: tuple[Any, ...]) -> Any:
        if ref[0] != template.VALUE or not 0 <= ref[1] < len(given):
            raise StepFailure("data", "BadTemplate", "a path of the step names a value that was not given")
        return given[ref[1]]

    found = Named()
    try:
        if inputs:
            listed = template.decode(inputs, value)
            found.inputs = [(str(name), str(path), str(form)) for name, (path, form) in listed]
        if target is not None:
            path, found.taken = template.decode(target["place"], value)
            found.path = str(path)
    except (TypeError, ValueError, KeyError) as exc:
        raise StepFailure("data", "BadTemplate", f"the step's paths cannot be read: {exc}") from exc
    return found


class Objects:
    """Reads objects for the attempts on one worker. Thread-safe; a version of one is fetched once per run."""

    def __init__(self, cache: Cache, told: Callable[[str, StorageError | None], None]) -> None:
        self._cache = cache
        self._told = told
        self._turns = OneAtATime()

    def gather(
        self,
        run: Run,
        step: dict[str, Any],
        wanted: Named,
        pins: list[Entry],
        stopped: Callable[[], bool],
    ) -> tuple[dict[str, Any], list[list[str]]]:
        """What ``execute.Inputs.from_message`` takes besides outputs, and ``[path, version]`` of all that is
        read.
        """
        versions: list[list[str]] = []

        def read(path: str, form: str, what: str) -> list[Any]:
            entry, found = self._read(run, path, what, pins, stopped)
            versions.append([path, found.version])
            return [form, None, entry.path, 0, found.size, None, None]

        if wanted.taken and wanted.path is not None:
            what = f"{wanted.path}, the output of step {step['name']}"
            form = step.get("serializer") or "pickle"
            return {"taken": [read(wanted.path, form, what), wanted.path]}, versions
        files = []
        for name, path, form in wanted.inputs:
            what = f"{path}, the input {name} of step {step['name']}"
            files.append([read(path, form, what), path])
        return {"files": files}, versions

    def _read(
        self, run: Run, path: str, what: str, pins: list[Entry], stopped: Callable[[], bool]
    ) -> tuple[Entry, Stat]:
        told = functools.partial(self._told, run.uid)
        store, key = _named_right(lambda: run.place(path), what)

        def patient(action: Callable[[], T]) -> T:
            return patiently(lambda: _named_right(action, what), stopped, told=told)

        version = run.pins.get(path)
        found = patient(lambda: store.look(key, version))
        if found is None:
            raise _missing(store, path, what, version)
        with self._turns.alone((run.uid, path.encode())):
            entry = self._cache.pin(_entry_key(run.uid, path, found))
            if entry is None:
                file = self._cache.new_path()
                with kept_on_disk(file):
                    # Another version may have come meanwhile: what counts is what was read.
                    found = patient(lambda: _fetched(store, key, path, what, file, version))
                    entry = self._cache.add(_entry_key(run.uid, path, found), file, found.size)
        pins.append(entry)
        return entry, found


def _entry_key(run: str, path: str, found: Stat) -> tuple[str, bytes]:
    return (run, hashlib.sha256(f"{path}\0{found.size}\0{found.version}".encode()).digest())


def _fetched(store: Store, key: str, path: str, what: str, file: str, version: str | None) -> Stat:
    try:
        return store.get_to_file(key, file, version)
    except StorageError as exc:
        if exc.reason == "NotFound":
            raise _missing(store, path, what, version) from exc
        raise


def _named_right(action: Callable[[], T], what: str) -> T:
    """``action()``; trouble that lies with what the step names is the step's."""
    try:
        return action()
    except StorageError as exc:
        if exc.reason in _WRONG:
            raise StepFailure("data", exc.reason, f"cannot read {what}: {exc}") from exc
        raise


def _missing(store: Store, path: str, what: str, version: str | None) -> StepFailure:
    if version is not None:
        message = f"there is no version {version} of {what}; correct select.loadVersions"
        return StepFailure("data", "InputMissing", message)
    place = "" if "://" in path else f" below {store.url}"
    message = f"there is no object {what}{place}; put it there, or correct the path"
    return StepFailure("data", "InputMissing", message)
