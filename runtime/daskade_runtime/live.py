"""A run that is open here: its state, its journal, its events, and what happens to each attempt's answer."""

from __future__ import annotations

import asyncio
import json as json_
import logging
import reprlib
from collections.abc import Callable
from typing import Any

import msgpack

from daskade_runtime import run as run_
from daskade_runtime.closing import closing
from daskade_runtime.commit import Committer, in_thread
from daskade_runtime.events import EventLog, now
from daskade_runtime.fold import Folded
from daskade_runtime.journal import Fenced, Journal, JournalError, pack_record
from daskade_runtime.limits import RESULT_JSON, RESULTS_KEPT
from daskade_runtime.lost import TOLD
from daskade_runtime.pages import Snapshot
from daskade_runtime.recall import Recalled
from daskade_runtime.results import Away, size_of
from daskade_runtime.run import Address, Attempt, Output, Refused, RunState
from daskade_runtime.storage import StorageError

log = logging.getLogger("distributed.daskade")

# Characters of one text of a decision.
RECORD_TEXT = 1 << 20
CLASSES = frozenset({"app", "oom", "timeout", "data", "infra", "preempted", "input"})
# How long a stopped step may take to end before it is reported as stopped anyway.
STOP_PATIENCE = 30.0
# How long an open waits for a write that is under way.
TAKEOVER_WAIT = 30.0
_NO_HANDLE = dict.fromkeys(("u", "b", "w", "n", "x", "m"))
TEXT_CAP = 4096
# Who waits for storage, besides workers.
JOURNAL = ""
TRACE_CAP = 16384
TAIL_LINES = 100


class LiveRun:
    """One open run. All methods belong to the scheduler's event loop."""

    def __init__(
        self, runtime: Any, request: dict[str, Any], store: Any, journal: Journal, folded: Folded
    ) -> None:
        self.runtime = runtime
        self.uid: str = request["run"]
        self.name = str(request.get("name") or self.uid)
        self.store = store
        self.storage = dict(request["storage"])
        self.spec_digest = request["spec_digest"]
        self.settings = dict(request.get("settings") or {})
        self.requirements = list(request.get("requirements") or ())
        self.ahead = max(1, int(self.settings.get("tasks_per_slot") or 2))
        self.code = dict(request.get("code") or {})
        self.epoch = journal.epoch
        #: An operator opened it last.
        self.led = False
        self.events = EventLog()
        self.told_listen = False
        self.closing: asyncio.Future[None] | None = None
        self.ended = False
        self.parked: list[Attempt] = []
        self.state = RunState(self.uid, request["steps"], self._ready, self.epoch)
        store.owner = (self.uid, self.state.opening)
        # Bytes of results that are in memory; others are read again.
        self.results = 0
        self.recalled = Recalled()
        self.reruns = folded.reruns
        self._changing: set[Address] = set()
        self.adopted: dict[run_.Task, None] = {}
        self.lengths: dict[int, int] = {}
        self.skipped: dict[run_.Task, tuple[str, str | None]] = {}
        self.refused: dict[run_.Task, tuple[str, str]] = {}
        self.failed: list[tuple[int, int, int, str]] = []
        self.lost: list[Address] = []
        self.troubles: dict[str, str] = {}
        self._adopt(journal, folded)
        self.committer = self._make_committer()

    # ------------------------------------------------------------ opening

    def _adopt(self, journal: Journal, folded: Folded) -> None:
        self.journal: Journal = journal
        loop = asyncio.get_running_loop()

        def on_trouble(error: StorageError | None) -> None:
            reason, message = (error.reason, str(error)) if error else ("", "")
            loop.call_soon_threadsafe(self.storage_told, JOURNAL, reason, message)

        journal.on_trouble = on_trouble
        code = self.code
        if not code.get("zip"):
            stored = folded.opened.get("code") or {}
            if stored.get("digest") == code.get("digest"):
                code["zip"] = stored.get("zip")
        # Of a run that is open here already the journal may not know yet what was invalidated.
        gone = () if self.reruns is folded.reruns else self.reruns.invalidated
        for (step, item), (attempt, handle, _w, _t0, _t1, lens, json) in folded.in_order():
            if (step, item) not in self.state.outputs and (step, item) not in gone:
                text = text_of(json)
                self._keep(text)
                if handle.get("w") not in self.runtime.scheduler.workers:
                    # Who reads it would wait for a worker that is gone.
                    handle = {**handle, "w": None}
                self.state.finish(step, item, Output(attempt, handle, lens, text, True))
        self.adopted.update(dict.fromkeys(task for task in folded.adopted if task not in gone))
        self.lengths.update({step: n for step, n in folded.lengths.items() if (step, -1) not in gone})
        for known, decided in ((self.skipped, folded.skipped), (self.refused, folded.refused)):
            for task, why in decided.items():
                if task not in gone:
                    known[task] = why  # type: ignore[assignment]
                    self.state.hole(*task)
        if not self.failed:
            self.failed = [(f[0], f[1], f[2], f[3]) for f in folded.failed]
            self.lost = [(x[0], x[1], x[2]) for x in folded.lost]

    def _make_committer(self) -> Committer:
        return Committer(
            self.journal.append,
            busy=lambda: bool(self.state.current),
            committed=self._on_committed,
            broken=self.on_broken,
            relieved=self._relieved,
        )

    async def take_over(self, open_journal: Callable[[], tuple[Journal, Folded]]) -> None:
        """A higher epoch opens the run again, here: the journal goes on under it, everything else stays."""
        await self.committer.hold(TAKEOVER_WAIT)
        try:
            journal, folded = await in_thread(open_journal)
            self._adopt(journal, folded)
            self.committer.append = journal.append
            self.events.end({"k": "fenced", "epoch": journal.epoch})
            self.epoch = journal.epoch
        finally:
            self.committer.release()

    def snapshot(self) -> Snapshot:
        """All that a driver needs to go on from here, as it is now."""
        outputs = [(task, out, out.committed) for task, out in self.reruns.in_order(self.state.outputs)]
        return Snapshot(
            invalidated=[(*task, *was) for task, was in self.reruns.invalidated.items()],
            changed=list(self.reruns.changed),
            adopted=list(self.adopted),
            named=[(*task, out.named) for task in self.adopted if (out := self.state.outputs[task]).named],
            lengths=list(self.lengths.items()),
            committed=[(task, out) for task, out, committed in outputs if committed],
            finished=[(task, out) for task, out, committed in outputs if not committed],
            skipped=[(*task, *why) for task, why in sorted(self.skipped.items(), key=_items_first)],
            refused=[(*task, *why) for task, why in sorted(self.refused.items(), key=_items_first)],
            failed=list(self.failed),
            lost=list(self.lost),
            submitted=[a.address for a in self.state.current.values() if a.state != run_.GONE],
        )

    # ------------------------------------------------- what the driver says

    def submit(self, items: Any) -> None:
        """Takes attempts; each (step, item, attempt) at most once."""
        for item in items:
            self.state.submit(item)

    def stop(self, items: Any) -> None:
        """Withdraws what has not begun and ends what has; ``stopped`` follows for each that is known."""
        for item in items:
            if len(item) != 3:
                why = f"expected 3 fields, got {len(item)}"
                raise Refused("BadRequest", f"cannot stop {reprlib.repr(item)}: {why}")
            attempt = self.state.find(*item)
            if attempt is None or attempt.state == run_.STOPPING:
                continue
            if attempt.state in (run_.WAITING, run_.READY):
                self.runtime.dispatcher.withdraw(attempt)
                self._stopped(attempt)
                continue
            if attempt.state == run_.SENT:
                # Not begun as far as known; the worker refuses it if it is only just starting.
                self.runtime.tell_worker(attempt.worker, self._stop_message(attempt))
                worker = attempt.worker
                self.runtime.dispatcher.recall(attempt)
                if worker is None:
                    self._stopped(attempt)
                    continue
                attempt.state = run_.STOPPING
                attempt.stop_timer = self._later(0.5, attempt)
                continue
            attempt.state = run_.STOPPING
            self.runtime.tell_worker(attempt.worker, self._stop_message(attempt))
            attempt.stop_timer = self._later(STOP_PATIENCE, attempt)

    def _later(self, seconds: float, attempt: Attempt) -> Any:
        return asyncio.get_running_loop().call_later(seconds, self._stop_overdue, attempt)

    def _stop_message(self, attempt: Attempt) -> dict[str, Any]:
        address = {"s": attempt.step, "i": attempt.item, "a": attempt.number, "o": self.state.opening}
        return {"op": "daskade-stop", "run": self.uid, **address}

    def _stop_overdue(self, attempt: Attempt) -> None:
        if attempt.state == run_.STOPPING:
            self.runtime.dispatcher.recall(attempt)
            self._stopped(attempt)

    def _stopped(self, attempt: Attempt) -> None:
        self._drop(attempt)
        self.events.add("stopped", s=attempt.step, i=attempt.item, a=attempt.number)

    def _drop(self, attempt: Attempt) -> None:
        attempt.state = run_.GONE
        if attempt.stop_timer is not None:
            attempt.stop_timer.cancel()
            attempt.stop_timer = None
        if self.state.current.get((attempt.step, attempt.item)) is attempt:
            del self.state.current[attempt.step, attempt.item]

    def record(self, records: Any) -> None:
        """Queues decisions of the driver for the journal, in order with everything else. All or nothing."""
        checked = [_checked(record, len(self.state.steps)) for record in records]
        for record in checked:
            if len(str(record[-1])) > RECORD_TEXT:
                why = f"its text has more than {RECORD_TEXT} characters"
                raise Refused("BadRequest", f"cannot record {record[0]}: {why}")
        for record in checked:
            kind = record[0]
            if kind == "length":
                if self.lengths.setdefault(record[1], record[2]) != record[2]:
                    raise Refused(
                        "Conflict", f"the length of step {record[1]} is already {self.lengths[record[1]]}"
                    )
            elif kind == "invalidated":
                record = self._invalidated(*record[1:])
            else:
                known = self.skipped if kind == "skipped" else self.refused
                if (record[1], record[2]) in known:
                    continue
                known[record[1], record[2]] = (record[3], record[4])
            self._queue(record)
            if kind in ("skipped", "refused"):
                self.state.hole(record[1], record[2])

    def _invalidated(self, step: int, item: int, reason: str, message: str) -> list[Any]:
        """What was committed of the task counts no more; the record that says so."""
        task, output = (step, item), self.state.outputs.get((step, item))
        attempt, digest = (output.attempt, output.digest) if output is not None else (0, None)
        if output is not None and isinstance(output.json, str):
            self.results -= size_of(output.json)
        self.reruns.invalidate(task, attempt, digest, reason, self.state.outputs)
        self.state.forget(step, item)
        for facts in (self.adopted, self.skipped, self.refused):
            facts.pop(task, None)
        if item < 0:
            self.lengths.pop(step, None)
        return ["invalidated", step, item, attempt, reason, message[:TEXT_CAP], now()]

    def adopt(self, step: int, item: int, handle: Any, lens: Any, json: str | bytes | None, origin: str) -> None:
        """The output of an earlier run, ``origin``, is this task's."""
        t, text = now(), text_of(json)
        self._queue(["committed", step, item, 1, handle, None, t, t, lens, text, origin], (step, item, 1))
        self._keep(text)
        self.adopted[step, item] = None
        output = Output(1, handle, lens, text, False)
        self.reruns.committed((step, item), output.digest)
        self.state.finish(step, item, output)

    # ------------------------------------------------ what the workers say

    def started(self, step: int, item: int, number: int, t: Any, worker: str, name: str) -> None:
        attempt = self.state.find(step, item, number)
        if attempt is None or attempt.state not in (run_.SENT, run_.STOPPING):
            return
        self.runtime.dispatcher.started(attempt, worker)
        if attempt.state == run_.STOPPING:
            # Began while it was being withdrawn; its worker was told, and now answers for it.
            attempt.worker = worker
            attempt.stop_timer.cancel()
            attempt.stop_timer = self._later(STOP_PATIENCE, attempt)
            return
        attempt.state = run_.RUNNING
        self.events.add("started", s=step, i=item, a=number, w=name, t=t)

    def answered(self, step: int, item: int, number: int, answer: Any, name: str) -> None:
        """The answer of an attempt; of one that is not current any more it is dropped."""
        attempt = self.state.find(step, item, number)
        if attempt is None:
            return
        if isinstance(answer, (bytes, bytearray, memoryview)):
            answer = msgpack.unpackb(answer, raw=False, strict_map_key=False)
        if answer.get("o", self.state.opening) != self.state.opening:
            # Of an attempt that was stopped when the run was left; it has the number of one that runs now.
            return
        if answer.get("class") == "stopped" and attempt.state != run_.STOPPING:
            # Of a worker that was given up, and has found out; the attempt was sent to another one since.
            return
        t0, t1 = float(answer.get("t0") or 0.0), float(answer.get("t1") or 0.0)
        self.runtime.dispatcher.answered(attempt, t1 - t0 if t1 else None)
        stopping = attempt.state == run_.STOPPING
        if attempt.state == run_.SENT:
            self.events.add("started", s=step, i=item, a=number, w=name, t=t0)
        self._drop(attempt)
        if stopping:
            self.events.add("stopped", s=step, i=item, a=number)
        elif answer.get("ok"):
            self._finished(attempt, answer, t0, t1, name)
        elif answer.get("type") == "WorkerClosing":
            self._lose(attempt, name, "its worker is closing")
        else:
            self._failed(attempt, answer, t0, t1, name)

    def returned(self, step: int, item: int, number: int) -> None:
        """Its worker hands the attempt back: it has not begun."""
        attempt = self.state.find(step, item, number)
        if attempt is None:
            return
        if attempt.state == run_.STOPPING:
            self.runtime.dispatcher.recall(attempt)
            self._stopped(attempt)
        elif attempt.state == run_.SENT:
            self.runtime.dispatcher.returned(attempt)

    def is_current(self, step: int, item: int, number: int, opening: int, worker: str) -> bool:
        """Whether the attempt is its task's, and this worker has it: one that was given up may have the number of
        one that was sent again.
        """
        attempt = self.state.find(step, item, number)
        if attempt is None or self.ended or opening != self.state.opening:
            return False
        return attempt.state in (run_.SENT, run_.RUNNING) and attempt.worker == worker

    def awaits(self, attempt: Attempt) -> bool:
        """Whether the attempt is at a worker, as far as is known here."""
        at_worker = (run_.SENT, run_.RUNNING, run_.STOPPING)
        return attempt.state in at_worker and self.state.find(*attempt.address) is attempt

    def _finished(self, attempt: Attempt, answer: dict[str, Any], t0: float, t1: float, name: str) -> None:
        step, item, number = attempt.address
        handle = {**_NO_HANDLE, **answer["handle"]}
        lens, json = answer.get("lens"), answer.get("json")
        lens, text = None if lens is None else list(lens), json_text(json)
        try:
            if size_of(text) > RESULT_JSON:
                raise ValueError(f"the result has {size_of(text)} bytes as JSON; at most {RESULT_JSON} are allowed")
            # Queued before a dependent can start: nothing is committed before its inputs.
            self._queue(["committed", step, item, number, handle, name, t0, t1, lens, text], (step, item, number))
        except ValueError as error:
            # What no reader would take must not come into the journal, and nothing else waits for it.
            failure = {"class": "data", "type": "OutputNotRecorded", "message": f"cannot record the output: {error}"}
            self._failed(attempt, failure, t0, t1, name)
            return
        fields = {"s": step, "i": item, "a": number, "w": name, "t0": t0, "t1": t1, "z": handle.get("z") or 0}
        if lens is not None:
            fields["lens"] = lens
        if json is not None:
            fields["json"] = json[0]
        self.events.add("finished", **fields)
        self._keep(text)
        output = Output(number, handle, lens, text, False)
        if self.reruns.committed((step, item), output.digest):
            self._changing.add((step, item, number))
        self.state.finish(step, item, output)

    def _queue(self, record: list[Any], task: Address | None = None) -> None:
        """Hands a record to the journal; ``ValueError`` if a reader would refuse it."""
        self.committer.add(record, task, len(pack_record(record)))

    def _keep(self, json: str | Away | None) -> None:
        if isinstance(json, str):
            self.results += size_of(json)

    def _failed(self, attempt: Attempt, answer: dict[str, Any], t0: float, t1: float, name: str) -> None:
        step, item, number = attempt.address
        class_ = answer.get("class")
        if class_ not in CLASSES:
            class_ = "infra"
        type_ = str(answer.get("type") or "Error")[:256]
        message = str(answer.get("message") or "")[:TEXT_CAP]
        self.events.add(
            "failed",
            **{
                "s": step,
                "i": item,
                "a": number,
                "w": name,
                "t0": t0,
                "t1": t1,
                "class": class_,
                "type": type_,
                "message": message,
                **({"lost": self._lost_outputs(answer)} if class_ == "input" else {}),
            },
            traceback=str(answer.get("traceback") or "")[-TRACE_CAP:],
            tail=[str(line)[:TEXT_CAP] for line in list(answer.get("tail") or ())[-TAIL_LINES:]],
        )
        self.failed.append((step, item, number, class_))
        self._queue(["failed", step, item, number, class_, type_, message, name, t0, t1])

    def _lost_outputs(self, answer: dict[str, Any]) -> list[list[int]]:
        """The tasks whose outputs the attempt could not read, of those that have no other one by now."""
        told = answer.get("lost")
        entries = told[:TOLD] if isinstance(told, list) else []
        found = []
        for step, item, digest, path in (entry for entry in entries if isinstance(entry, list) and len(entry) == 4):
            output = self.state.outputs.get((step, item)) if type(step) is type(item) is int else None
            if output is not None and (output.digest, output.path) == (digest, path):
                found.append([step, item])
        return found

    def worker_gone(self, attempt: Attempt, name: str | None, message: str) -> None:
        """The attempt ended with its worker."""
        if self.ended or attempt.state in (run_.GONE, run_.WAITING, run_.READY):
            return
        if attempt.state == run_.STOPPING:
            self._stopped(attempt)
            return
        self._drop(attempt)
        self._lose(attempt, name, message)

    def _lose(self, attempt: Attempt, name: str | None, message: str) -> None:
        step, item, number = attempt.address
        self.events.add("lost", s=step, i=item, a=number, w=name, message=message)
        self.lost.append((step, item, number))
        self._queue(["lost", step, item, number, name, now()])

    def broken(self, attempt: Attempt, message: str, name: str | None) -> None:
        """Dask could not run the task at all."""
        if self.state.find(*attempt.address) is attempt and not self.ended:
            answer = {"class": "infra", "type": "DaskError", "message": message, "t0": now(), "t1": now()}
            self.answered(*attempt.address, answer, name or "")

    # ------------------------------------------------------- dispatch, journal

    def _ready(self, attempt: Attempt) -> None:
        self.runtime.dispatcher.ready(attempt, self.ahead)

    def held(self, attempt: Attempt) -> bool:
        """Keeps the attempt back while too much is uncommitted."""
        if self.ended:
            return True
        if self.committer.full:
            self.parked.append(attempt)
            return True
        return False

    def _relieved(self) -> None:
        parked, self.parked = self.parked, []
        for attempt in parked:
            if attempt.state == run_.READY:
                self._ready(attempt)

    def _on_committed(self, tasks: list[Address], segment: Any) -> None:
        # What was invalidated meanwhile is committed no more.
        outputs = self.state.outputs
        made = ((task, outputs.get(task[:2])) for task in tasks)
        done = [task for task, output in made if output is not None and output.attempt == task[2]]
        for step, item, _ in done:
            output = self.state.outputs[step, item]
            output.committed = True
            if self.results > RESULTS_KEPT and isinstance(output.json, str):
                self.results -= size_of(output.json)
                output.json = Away(segment, size_of(output.json))
        changed = [[step, item] for step, item, attempt in done if (step, item, attempt) in self._changing]
        self._changing.difference_update(tasks)
        if done and not self.ended:
            more = {"changed": changed} if changed else {}
            self.events.add("committed", tasks=[list(t) for t in done], seg=segment, **more)

    async def close(self, final: dict[str, Any]) -> None:
        """Writes the end of the run, after everything else."""
        records = closing({**final, "t": now()}, f"{self.storage['url']}/runs/{self.uid}/journal")
        try:
            sizes = [len(pack_record(record)) for record in records]
        except ValueError as error:
            raise Refused("BadRequest", f"cannot close run {self.uid}: {error}") from None
        for record, size in zip(records, sizes, strict=True):
            self.committer.add(record, size=size)
        await self.committer.flush()

    def storage_told(self, who: str, reason: str, message: str) -> None:
        """The journal or a worker waits for storage, or (no message) does not any more."""
        before = set(self.troubles.values())
        if message:
            self.troubles[who] = reason
        else:
            self.troubles.pop(who, None)
        pending = self.committer.records
        if self.ended:
            return
        if message and reason not in before:
            self.events.add("storage", state="down", message=message, pending=pending, reason=reason)
        elif before and not self.troubles:
            self.events.add("storage", state="up", message=message, pending=pending, reason=reason)

    def on_broken(self, error: BaseException) -> None:
        """The journal takes nothing more, for good."""
        if self.ended:
            return
        if isinstance(error, Fenced):
            self.fence(error.epoch)
        elif isinstance(error, StorageError):
            self.events.add("storage", state="down", message=str(error), pending=0, reason=error.reason)
            self.runtime.drop(self, {"k": "closing", "reason": error.reason, "message": str(error)})
        else:
            reason = error.reason if isinstance(error, JournalError) else "JournalStopped"
            self.runtime.drop(self, {"k": "closing", "reason": reason, "message": str(error)})

    def fence(self, epoch: int) -> None:
        """Another writer owns the run: nothing of it may go on here."""
        self.events.add("fenced", epoch=epoch)
        self.runtime.drop(self, None)

    def end(self) -> None:
        """Stops everything of the run here; writes nothing."""
        self.ended = True
        for attempt in list(self.state.current.values()):
            if attempt.state in (run_.SENT, run_.RUNNING, run_.STOPPING):
                self.runtime.tell_worker(attempt.worker, self._stop_message(attempt))
                self.runtime.dispatcher.recall(attempt)
            elif attempt.state == run_.READY:
                self.runtime.dispatcher.withdraw(attempt)
            self._drop(attempt)
        self.committer.stop(Refused("Ended", "the run is no longer open on this scheduler"))
        self.journal.close()


def _items_first(decided: tuple[run_.Task, Any]) -> bool:
    """The decision on a step ends those of its items that have not ended."""
    return decided[0][1] < 0


def json_text(json: list[Any] | None) -> str | None:
    """A step's small result as the journal keeps it: JSON text."""
    return None if json is None else json_.dumps(json[0], ensure_ascii=False, separators=(",", ":"))


def text_of(json: str | bytes | Away | None) -> str | Away | None:
    """A step's small result as this module keeps it."""
    return json.decode("utf-8", "replace") if isinstance(json, bytes) else json


def _checked(record: Any, steps: int) -> list[Any]:
    def refused(why: str) -> Refused:
        return Refused("BadRequest", f"cannot record {reprlib.repr(record)}: {why}")

    kind = str(record[0]) if record else ""
    decided = (int, int, str, str)
    shape = {"length": (int, int), "skipped": decided, "refused": decided, "invalidated": decided}.get(kind)
    if shape is None:
        raise refused("its kind is not length, skipped, refused or invalidated")
    fields = list(record[1:])
    if len(fields) == 3 and len(shape) == 4:
        fields.append("")
    if len(fields) == 4 and fields[3] is None:
        fields[3] = ""
    if len(fields) != len(shape) or not all(type(v) is t for v, t in zip(fields, shape, strict=True)):
        raise refused(f"it does not have the fields of {kind}")
    if not 0 <= fields[0] < steps:
        raise refused(f"there is no step {fields[0]}")
    return [kind, *fields]
