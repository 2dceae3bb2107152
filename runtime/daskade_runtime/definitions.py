"""What a worker knows about a run: its steps, where its storage is, its code unpacked on disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable
from typing import Any

from daskade_runtime import channel, requirements
from daskade_runtime.errors import StepFailure
from daskade_runtime.execute import Definition
from daskade_runtime.fetch import OneAtATime, patiently
from daskade_runtime.storage import StorageError, Store, locate, open_store

# Bounds for a run's code archive, against bombs.
CODE_FILES = 100_000
CODE_BYTES = 4 << 30

_CHILD_FIELDS = ("name", "call", "script", "args", "serializer", "container", "lens", "result")


class Run:
    """One run's definitions, as fetched for one epoch."""

    def __init__(self, uid: str, reply: dict[str, Any], store: Store, code_path: str | None) -> None:
        self.uid = uid
        self.epoch: int = reply["epoch"]
        self.name: str = reply.get("name") or ""
        self.steps: tuple[dict[str, Any], ...] = tuple(reply["steps"])
        self.settings: dict[str, Any] = dict(reply.get("settings") or {})
        self.pins: dict[str, str] = dict(self.settings.get("pins") or {})
        """Versions of objects that are read in place of those that are there, by path."""
        self.store = store
        # A run that is taken over keeps its attempts, and what they are writing.
        store.owner = (uid, int(reply.get("opening") or self.epoch))
        self.storage = dict(reply["storage"])
        self._elsewhere: dict[str, Store] = {}
        self.code_path = code_path
        self.code_digest: str = (reply.get("code") or {}).get("digest") or ""
        self.inline_max: int = self.settings.get("inline_max") or 65536
        self._frames: dict[int, bytes] = {}
        self._definitions: dict[int, Definition] = {}

    def step(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self.steps):
            raise StepFailure("infra", "BadDefinition", f"run {self.uid} has no step {index}")
        return self.steps[index]

    def place(self, path: str) -> tuple[Store, str]:
        """Where an object is that a step names by ``path``: its store, and its key there."""
        where, key = locate(self.storage, path)
        if where is self.storage:
            return self.store, key
        url = where["url"]
        return self._elsewhere.get(url) or self._elsewhere.setdefault(url, open_store(where)), key

    def define(self, index: int) -> bytes:
        """The message that tells a step process this step; made once."""
        made = self._frames.get(index)
        if made is None:
            made = self._frames[index] = channel.frame(["define", self.key(index), self._fields(index)])
        return made

    def definition(self, index: int) -> Definition:
        """The step as this process runs it itself; made once."""
        made = self._definitions.get(index)
        if made is None:
            made = self._definitions[index] = Definition(self._fields(index))
        return made

    def _fields(self, index: int) -> dict[str, Any]:
        step = self.step(index)
        fields = {name: step.get(name) for name in _CHILD_FIELDS}
        return {**fields, "kept": bool(step.get("target")), "inline_max": self.inline_max}

    def env(self, index: int) -> dict[str, str]:
        """The environment that the step asks for."""
        return {str(k): str(v) for k, v in (self.step(index).get("env") or {}).items()}

    def key(self, index: int) -> str:
        return f"{self.uid}:{self.epoch}:{index}"


class Definitions:
    """Cache of ``Run`` by run and epoch. ``ask`` calls the scheduler."""

    def __init__(self, ask: Callable[[str], Any], code_directory: str) -> None:
        self._ask = ask
        self._code_directory = code_directory
        self._runs: dict[str, Run] = {}
        self._turns = OneAtATime()

    def known(self, uid: str) -> Run | None:
        return self._runs.get(uid)

    def find(self, uid: str, epoch: int, stopped: Callable[[], bool]) -> Run:
        """The run's definitions for ``epoch``, fetched if need be."""
        run = self._runs.get(uid)
        if run is not None and run.epoch == epoch:
            return run
        with self._turns.alone((uid, b"")):
            run = self._runs.get(uid)
            if run is None or run.epoch != epoch:
                run = self._fetch(uid, stopped)
                if run.epoch < epoch:
                    raise StepFailure(
                        "infra", "StaleDefinitions", f"the scheduler gave epoch {run.epoch}, not {epoch}"
                    )
                self._runs[uid] = run
        return run

    def forget(self, uid: str) -> None:
        self._runs.pop(uid, None)

    def _fetch(self, uid: str, stopped: Callable[[], bool]) -> Run:
        try:
            reply = self._ask(uid)
        except StepFailure:
            raise
        except Exception as exc:
            message = f"the scheduler did not give the definitions of run {uid}: {type(exc).__name__}: {exc}"
            raise StepFailure("infra", "DefinitionsUnavailable", message) from exc
        if not isinstance(reply, dict) or reply.get("status", "OK") != "OK":
            said = (reply or {}).get("message") if isinstance(reply, dict) else reply
            raise StepFailure(
                "infra", "DefinitionsUnavailable", f"the scheduler does not know run {uid}: {said}"
            )
        lacks = requirements.lacking(reply.get("requirements") or ())
        if lacks:
            raise StepFailure("infra", requirements.REASON, requirements.told("this worker's image", lacks))
        try:
            store = open_store(dict(reply["storage"]))
        except StorageError as exc:
            raise StepFailure("infra", exc.reason, str(exc)) from exc
        code = reply.get("code") or {}
        path = self._unpack(uid, code, store, stopped) if code.get("digest") else None
        return Run(uid, reply, store, path)

    def _unpack(self, uid: str, code: dict[str, Any], store: Store, stopped: Callable[[], bool]) -> str:
        digest = str(code["digest"])
        if not digest.isalnum():
            raise StepFailure("infra", "BadDefinition", "the code digest is not one")
        target = os.path.join(self._code_directory, digest)
        if os.path.isdir(target):
            return target
        data = code.get("zip")
        if data is None:
            data = patiently(lambda: store.get(f"runs/{uid}/code/{digest}.zip"), stopped)
        data = bytes(data)
        if hashlib.sha256(data).hexdigest() != digest:
            raise StepFailure(
                "data", "CorruptCode", f"the code of run {uid} does not match its digest {digest}"
            )
        part = f"{target}.{secrets.token_hex(4)}"
        try:
            unpack(data, part)
            with contextlib.suppress(OSError):  # another run with the same code was quicker
                os.rename(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return target


def unpack(data: bytes, directory: str) -> None:
    """Unpacks a code archive below ``directory``: plain files only, none outside, bounded."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > CODE_FILES or sum(e.file_size for e in entries) > CODE_BYTES:
                raise StepFailure("data", "BadCode", "the code archive is too large when unpacked")
            os.makedirs(directory, mode=0o700)
            for entry in entries:
                name = entry.filename
                if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
                    raise StepFailure(
                        "data", "BadCode", f"the code archive holds a file outside of itself: {name!r}"
                    )
                archive.extract(entry, directory)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as exc:
        raise StepFailure("data", "BadCode", f"the code archive cannot be read: {exc}") from exc
    except OSError as exc:
        raise StepFailure(
            "infra", "DiskFull", f"the run's code cannot be unpacked on this worker: {exc}"
        ) from exc
