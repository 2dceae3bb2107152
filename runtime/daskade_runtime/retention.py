"""What is left of a run that has ended, who else uses it, and its removal, as the driver says.

Facts only: which objects go is said by the driver, and nothing outside the run's own folder is touched, nor
anything of a run that is not marked as removed.

Two marks keep a removal and a run that takes outputs over at the same time apart. Who takes an output over
leaves a reference at the run whose object it is, then looks whether the run that it takes from is marked as
removed, and only then commits. Who removes marks the run, and then looks for references. So at least one of
the two sees the other.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from typing import Any

import distributed

from daskade_runtime.commit import in_thread
from daskade_runtime.events import now
from daskade_runtime.journal import Journal, JournalError, check_run, read_all
from daskade_runtime.operation import Reply, operation
from daskade_runtime.run import Refused
from daskade_runtime.storage import Exists, Store, check_key, open_store

OUTPUTS, RECORD = "outputs", "record"
# Folders of a run, and the mark without which nothing in them may be removed.
FOLDERS = {
    "data": OUTPUTS,
    "refs": OUTPUTS,
    "kept": OUTPUTS,
    "logs": RECORD,
    "code": RECORD,
    "journal": RECORD,
}
# Names of objects per answer.
PAGE = 50_000
REASON = "OutputsRemoved"


def removed(store: Store, run: str) -> dict[str, float]:
    """What of a run is removed, or about to be, and when that began, in seconds since 1970."""
    found = {}
    for key, _ in store.list(f"runs/{check_run(run)}/removed"):
        what = key.rpartition("/")[2]
        try:
            found[what] = float(json.loads(store.get(key))["t"])
        except (ValueError, KeyError, TypeError):
            found[what] = 0.0
    return found


def refuse_removed(store: Store, run: str) -> None:
    """Refuses to go on with a run whose outputs or journal are removed."""
    if removed(store, run):
        message = f"spec.retention removed what run {run} had stored"
        raise Refused(REASON, f"{message}; create another run")


def origin_of(handle: dict[str, Any]) -> str | None:
    """The run in whose folder the object of a handle is, if that is not the run that has the handle."""
    parts = str(handle.get("u") or "").split("/", 3)
    inline = handle.get("b") is not None
    return parts[2] if not inline and len(parts) == 4 and parts[:2] == ["", "runs"] else None


def refer(store: Store, run: str, epoch: int, pairs: Iterable[tuple[str, str]]) -> None:
    """Has ``run`` refer to objects, before it commits them: (run whose object it is, run that it takes it
    from) each. Refused if one that it takes from is being removed.

    Each opening of the run leaves references of its own, so that one that is new is seen as such.
    """
    pairs = sorted(pairs)
    for origin in dict.fromkeys(origin for origin, _ in pairs):
        store.put(f"runs/{check_run(origin)}/refs/{check_run(run)}/{epoch}", b"")
    for source in dict.fromkeys(source for _, source in pairs):
        if removed(store, source):
            raise Refused(REASON, f"the outputs of run {source} are being removed")


def _look(store: Store, run: str, brief: bool) -> dict[str, Any]:
    marks = sorted(removed(store, run))
    if brief:
        return {"removed": marks, "journal": None}
    try:
        folded = read_all(store, run)
    except JournalError as error:
        if error.reason != "RunNotFound":
            raise
        journal = None
    else:
        origins = {origin_of(entry[1]) for entry in folded.committed.values()} - {None, run}
        journal = {"closed": folded.final is not None, "origins": sorted(str(origin) for origin in origins)}
    return {"removed": marks, "journal": journal}


def _references(store: Store, run: str) -> list[str]:
    folder = f"runs/{check_run(run)}/refs/"
    return [key[len(folder) :] for key, _ in store.list(folder)]


def _user(store: Store, of: str, run: str) -> dict[str, Any]:
    """What ``run`` has use for of the objects of run ``of``."""
    told: dict[str, Any] = {"removed": bool(removed(store, run)), "closed": True, "name": "", "paths": []}
    if told["removed"]:
        return told
    try:
        folded = read_all(store, run)
    except JournalError as error:
        if error.reason != "RunNotFound":
            raise
        return {**told, "removed": True}
    folder = f"/runs/{of}/"
    paths = [str(entry[1].get("u") or "") for entry in folded.committed.values()]
    return {
        **told,
        "closed": folded.final is not None,
        "name": str(folded.opened.get("name") or ""),
        "paths": sorted({path[len(folder) :] for path in paths if path.startswith(folder)}),
    }


def _mark(store: Store, run: str, what: Any) -> None:
    for one in what:
        if one not in (OUTPUTS, RECORD):
            raise Refused("BadRequest", f"{one!r} is nothing that can be removed")
        try:
            store.create(f"runs/{check_run(run)}/removed/{one}", json.dumps({"t": now()}).encode())
        except Exists:
            continue


def _discard(store: Store, run: str, paths: Any, pipeline: str | None) -> None:
    marks = removed(store, run)
    keys = []
    for path in paths:
        folder = path.partition("/")[0] if isinstance(path, str) else ""
        if folder not in FOLDERS or folder == path:
            raise Refused("InvalidKey", f"{str(path)[:200]!r} is no object that a run has stored")
        if FOLDERS[folder] not in marks:
            message = f"run {run} is not marked as removed: nothing of its {folder} is removed"
            raise Refused("NotMarked", message)
        keys.append(check_key(f"runs/{check_run(run)}/{path}"))
    # The journal last, and of it the end first: what is left of it can be read at any moment.
    segments = [key for key in keys if key.split("/")[2] == "journal"]
    store.delete(key for key in keys if key.split("/")[2] != "journal")
    for key in sorted(segments, reverse=True):
        store.delete([key])
    if pipeline is not None and RECORD in marks:
        from daskade_runtime.earlier import marks_of

        store.delete(marks_of(store, pipeline, run))


class Retention:
    """The operations about what runs that have ended have stored."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def handlers(self) -> dict[str, Any]:
        return {
            "daskade-stored": self.stored,
            "daskade-references": self.references,
            "daskade-user": self.user,
            "daskade-mark": self.mark,
            "daskade-seal": self.seal,
            "daskade-objects": self.objects,
            "daskade-discard": self.discard,
        }

    @operation
    async def stored(self, *, run: str, storage: Any, brief: bool = False, **_: Any) -> Reply:
        """What is left of a run, and from whom it has taken outputs over; ``brief``: its marks only."""
        look = await in_thread(_look, open_store(storage), run, brief)
        return {"status": "OK", "open": run in self.runtime.runs, **look}

    @operation
    async def references(self, *, run: str, storage: Any, **_: Any) -> Reply:
        """Who refers to objects of the run: ``<uid>/<epoch>`` each."""
        return {"status": "OK", "names": await in_thread(_references, open_store(storage), run)}

    @operation
    async def user(self, *, of: str, run: str, storage: Any, **_: Any) -> Reply:
        """What ``run`` needs of the objects of run ``of``, as its journal tells."""
        return {"status": "OK", **await in_thread(_user, open_store(storage), of, run)}

    @operation
    async def mark(
        self, *, run: str, storage: Any, what: Any, lead: int | None = None, lease: str | None = None, **_: Any
    ) -> Reply:
        """Marks a run as removed, in the storage: from then on nobody takes anything of it over."""
        self.runtime.leaders.of_run(run, lead, lease)
        await in_thread(_mark, open_store(storage), run, what)
        return {"status": "OK"}

    @operation
    async def seal(
        self, *, run: str, storage: Any, final: Any, lead: int | None = None, lease: str | None = None, **_: Any
    ) -> Reply:
        """Closes a journal that was left open: whoever still writes to it is fenced."""
        self.runtime.leaders.of_run(run, lead, lease)
        if run in self.runtime.runs:
            raise Refused("RunOpen", f"run {run} is open here")
        await in_thread(self._seal, open_store(storage), run, dict(final))
        return {"status": "OK"}

    def _seal(self, store: Store, run: str, final: dict[str, Any]) -> None:
        opened = {
            "runtime": self.runtime.digest,
            "dask": distributed.__version__,
            "python": platform.python_version(),
        }
        journal, _ = Journal.open(store, run, None, False, opened)
        try:
            journal.append([["final", {**final, "t": now()}]])
        finally:
            journal.close()

    @operation
    async def objects(self, *, run: str, storage: Any, folder: str, after: str = "", **_: Any) -> Reply:
        """Objects in a folder of the run, in order, those after a path only."""
        if folder not in FOLDERS:
            raise Refused("InvalidKey", f"a run has no folder {folder[:100]!r}")
        store, base = open_store(storage), f"runs/{check_run(run)}/"

        def names() -> list[str]:
            if not after and run not in self.runtime.runs and FOLDERS[folder] in removed(store, run):
                store.sweep(base + folder, None)
            listed = store.list(base + folder, base + after if after else None)
            return [key[len(base) :] for key, _ in listed]

        paths = await in_thread(names)
        return {"status": "OK", "paths": paths[:PAGE], "more": len(paths) > PAGE}

    @operation
    async def discard(
        self,
        *,
        run: str,
        storage: Any,
        paths: Any,
        pipeline: str | None = None,
        lead: int | None = None,
        lease: str | None = None,
        **_: Any,
    ) -> Reply:
        """Removes objects of a run that is marked as removed; with ``pipeline`` also what it is found by."""
        self.runtime.leaders.of_run(run, lead, lease)
        if run in self.runtime.runs:
            raise Refused("RunOpen", f"run {run} is open here")
        await in_thread(_discard, open_store(storage), run, paths, pipeline)
        return {"status": "OK"}
