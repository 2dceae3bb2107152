"""The runtime inside the scheduler process: the ``daskade-*`` operations, and the wiring to Dask.

It decides nothing about a run. Every operation of a run names the epoch under which its driver opened it; an
older epoch is refused, so that of two drivers only the newer one is heard.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import platform
import uuid
from typing import Any

import distributed
import msgpack

from daskade_runtime import PROTOCOL, archive, fence, logs, requirements, versions
from daskade_runtime.attempt import run_attempts
from daskade_runtime.cluster import ClusterView
from daskade_runtime.commit import in_thread
from daskade_runtime.dispatch import Dispatcher
from daskade_runtime.earlier import Earlier, mark
from daskade_runtime.events import Subscriber
from daskade_runtime.fetch import object_key
from daskade_runtime.heard import heard
from daskade_runtime.journal import Journal, read_all
from daskade_runtime.leaders import Leaders
from daskade_runtime.live import LiveRun
from daskade_runtime.looks import Looks
from daskade_runtime.operation import Reply, operation
from daskade_runtime.pages import Snapshots, closed, closed_whole, value_of
from daskade_runtime.retention import Retention, refuse_removed
from daskade_runtime.run import Address, Attempt, Refused
from daskade_runtime.storage import open_store
from daskade_runtime.turns import Turns
from daskade_runtime.wiring import Plugin, Workers, connect, describe, no_reply, watch_status
from daskade_runtime.worker import DaskadeWorker
from daskade_runtime.worker_ops import WorkerOps

log = logging.getLogger("distributed.daskade")

# Larger code goes to an object of its own instead of into the journal.
CODE_INLINE = 256 << 10
# A worker's answer travels ahead of Dask's own message about the task; where it is missing, look for it so
# long.
ANSWER_GRACE = 2.0
CLOSED_KEPT = 1000
# How long leaving a run, or the scheduler's end, waits for what is on its way to storage.
FORGET_WAIT = 5.0
LEAVE_WAIT = 2.0
# And its end for what killed writers have left to be removed, which goes on then.
SWEEP_WAIT = 2.0


class Runtime:
    """One per scheduler process."""

    def __init__(self, scheduler: Any, archive: bytes, digest: str) -> None:
        self.scheduler = scheduler
        self.archive = archive
        self.digest = digest
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.instance = uuid.uuid4().hex
        self.runs: dict[str, LiveRun] = {}
        self.closed: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self.workers: Workers
        self.client: Any = None
        self.dispatcher: Any = None
        self.cluster: Any = None
        self.leaders = Leaders(self.runs.__contains__)
        self.earlier = Earlier(self)
        self.retention = Retention(self)
        self.snapshots = Snapshots(self)
        self.closing = False

    async def start(self) -> None:
        """Connects a client, puts our code on the workers, and answers from then on."""
        try:
            await self._start()
            self.ready.set_result(None)
        except BaseException as error:
            self.ready.set_exception(error)
            self.ready.exception()  # heard here; others may or may not wait for it
            raise

    async def _start(self) -> None:
        self.client = await connect(self.scheduler)
        # Taken after the client has connected, so that no worker is missed; the plugin reports those that register later.
        self.workers = Workers(self.scheduler)
        self.dispatcher = Dispatcher(self.scheduler, self.client, run_attempts, self)
        self.scheduler.add_plugin(Plugin(self))
        watch_status(self.scheduler, self.dispatcher.workers_changed)
        register = getattr(self.client, "register_plugin", None) or self.client.register_worker_plugin
        await register(DaskadeWorker(self.archive, self.digest), name="daskade")
        self.scheduler.stream_handlers["daskade-ev"] = self.on_worker
        self.scheduler.handlers.update(
            {
                "daskade-open": self.open,
                "daskade-submit": self.submit,
                "daskade-stop": self.stop,
                "daskade-record": self.record,
                "daskade-close": self.close,
                "daskade-forget": self.forget,
                "daskade-read": self.read,
                "daskade-logs": self.stored_logs,
                "daskade-events": self.events,
                "daskade-hello": self.hello,
                "daskade-code": self.fetch_code,
            }
        )
        self.cluster = ClusterView(self)
        parts = (self.cluster, self.earlier, self.retention, self.snapshots, Looks(), Turns(self), WorkerOps(self))
        for part in parts:
            self.scheduler.handlers.update(part.handlers())
        self._background(self.cluster.note_use())
        self._background(fence.watch(self))
        log.info("daskade runtime %s is ready, instance %s", self.digest[:12], self.instance)

    def installed(self, new: bool) -> Reply:
        """The answer of an installation."""
        return {"status": "OK", "runtime": self.digest, "installed": new}

    def _background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ operations

    @operation
    async def hello(self, **_: Any) -> Reply:
        return {
            "status": "OK",
            "protocol": list(PROTOCOL),
            "runtime": self.digest,
            "instance": self.instance,
            "dask": distributed.__version__,
            "python": platform.python_version(),
            "runs": {uid: live.epoch for uid, live in self.runs.items()},
            # Those that an operator opened last, and those that are just being opened.
            "led": [uid for uid, live in self.runs.items() if live.led],
            "opening": [uid for uid, lock in self._locks.items() if lock.locked()],
        }

    @operation
    async def fetch_code(
        self,
        *,
        run: str,
        storage: Any,
        url: str,
        sha256: str | None = None,
        lead: int | None = None,
        lease: str | None = None,
        **_: Any,
    ) -> Reply:
        """Makes the archive at ``url`` the code of a run that is about to be opened."""
        self.leaders.of_run(run, lead, lease)
        return {"status": "OK", "digest": await in_thread(archive.pin, storage, run, url, sha256)}

    @operation
    async def open(
        self,
        *,
        run: str,
        epoch: int | None,
        create: bool,
        spec: bytes,
        spec_digest: str,
        storage: Any,
        code: Any,
        steps: Any,
        lead: int | None = None,
        lease: str | None = None,
        **rest: Any,
    ) -> Reply:
        self.leaders.of_run(run, lead, lease)
        versions.check(distributed.__version__)
        # Workers look for themselves; here it is seen before there is one, if their image is this one.
        lacks = requirements.lacking(rest.get("requirements") or ()) if rest.get("same_image") else []
        if lacks:
            raise Refused(requirements.REASON, requirements.told("the image", lacks))
        request = {
            "run": run,
            "storage": storage,
            "code": code,
            "steps": steps,
            "spec_digest": spec_digest,
            **rest,
        }
        lock = self._locks.setdefault(run, asyncio.Lock())
        try:
            async with lock:
                opened = await self._opened_record(request, spec)
                live = self.runs.get(run)
                if live is not None:
                    await self._take_over(live, epoch, create, spec_digest, opened)
                    reply = await self._opened(live, bool(rest.get("pages")))
                else:
                    reply = await self._open(request, epoch, create, opened, bool(rest.get("reopen")))
                if run in self.runs:
                    self.runs[run].led = lead is not None
                return reply
        finally:
            if not lock.locked() and run not in self.runs:
                self._locks.pop(run, None)

    async def _opened_record(self, request: dict[str, Any], spec: bytes) -> dict[str, Any]:
        code = request["code"] or {}
        data = code.get("zip")
        if data is not None and (found := hashlib.sha256(data).hexdigest()) != code.get("digest"):
            why = f"the sha256 of its code archive is {found}, expected {code.get('digest')}"
            raise Refused("CodeMismatch", f"cannot open run {request['run']}: {why}")
        return {
            "name": request.get("name"),
            "spec": spec,
            "spec_digest": request["spec_digest"],
            "code": {
                "digest": code.get("digest"),
                "zip": data if data and len(data) <= CODE_INLINE else None,
            },
            "runtime": self.digest,
            "dask": distributed.__version__,
            "python": platform.python_version(),
        }

    async def _open(self, request: Any, epoch: int | None, create: bool, opened: Any, reopen: bool) -> Reply:
        uid = request["run"]
        store = open_store(request["storage"])
        await in_thread(store.probe)
        if not create:
            await in_thread(refuse_removed, store, uid)
        if not create and not reopen:
            known = await in_thread(read_all, store, uid)
            if known.final is not None and known.opened.get("spec_digest") == request["spec_digest"]:
                paged = bool(request.get("pages"))
                where = f"{request['storage']['url']}/runs/{uid}/journal"
                ended = closed(known, where) if paged else closed_whole(known)
                told = await self.snapshots.first(uid, ended, paged, store)
                return {"status": "OK", "epoch": known.epoch, "instance": self.instance, "cursor": 0, **told}
        code, data = request["code"] or {}, (request["code"] or {}).get("zip")
        code_key = f"runs/{uid}/code/{code.get('digest')}.zip"
        if data is not None and len(data) > CODE_INLINE:
            await in_thread(store.put, code_key, data)
        if create:
            await mark(store, request.get("pipeline"), str(request.get("name") or uid), uid)
        journal, folded = await in_thread(Journal.open, store, uid, epoch, create, opened)
        if not create:
            # Whoever removes marks the run, and then closes its journal: one of the two sees the other.
            await in_thread(refuse_removed, store, uid)
        live = LiveRun(self, request, store, journal, folded)
        if live.code.get("digest") and not live.code.get("zip"):
            live.code["zip"] = await in_thread(store.get, code_key)
        self.runs[uid] = live
        self.closed.pop(uid, None)
        return await self._opened(live, bool(request.get("pages")))

    async def _take_over(
        self, live: LiveRun, epoch: int | None, create: bool, digest: str, opened: Any
    ) -> None:
        if create:
            raise Refused("RunExists", f"run {live.uid} is open here under epoch {live.epoch}")
        if digest != live.spec_digest:
            raise Refused("SpecMismatch", f"run {live.uid} was started with another spec")
        if epoch is not None and epoch <= live.epoch:
            why = f"the epoch must be higher than {live.epoch}, the epoch under which the run is open"
            raise Refused("StaleEpoch", f"cannot open run {live.uid} under epoch {epoch}: {why}")
        await live.take_over(functools.partial(Journal.open, live.store, live.uid, epoch, False, opened))

    async def _opened(self, live: LiveRun, paged: bool) -> Reply:
        cursor, epoch, snapshot = live.events.seq, live.epoch, live.snapshot()
        for worker in list(self.scheduler.workers.values()):
            live.events.add("worker", state="added", **describe(worker))
        self.dispatcher.retell_blocked(live.uid)
        told = await self.snapshots.first(live.uid, snapshot, paged, live.store)
        return {"status": "OK", "epoch": epoch, "instance": self.instance, "cursor": cursor, **told}

    def live(self, run: str, epoch: int) -> LiveRun:
        live = self.runs.get(run)
        if live is None:
            raise Refused("RunNotFound", f"run {run} is not open on this scheduler")
        if epoch != live.epoch:
            raise Refused("StaleEpoch", f"run {run} is open under epoch {live.epoch}, not {epoch}")
        return live

    @operation
    async def submit(self, *, run: str, epoch: int, items: Any, **_: Any) -> Reply:
        self.live(run, epoch).submit(items)
        return {"status": "OK"}

    @operation
    async def stop(self, *, run: str, epoch: int, items: Any, **_: Any) -> Reply:
        self.live(run, epoch).stop(items)
        return {"status": "OK"}

    @operation
    async def record(self, *, run: str, epoch: int, records: Any, **_: Any) -> Reply:
        self.live(run, epoch).record(records)
        return {"status": "OK"}

    @operation
    async def close(self, *, run: str, epoch: int, final: Any, **_: Any) -> Reply:
        if self.closed.get(run) == epoch:
            return {"status": "OK"}
        live = self.live(run, epoch)
        if live.closing is None:
            live.closing = asyncio.ensure_future(self._close(live, final))
        # Asked again (the answer was late, or lost), it is still one close, and one record.
        await asyncio.shield(live.closing)
        return {"status": "OK"}

    async def _close(self, live: LiveRun, final: dict[str, Any]) -> None:
        live.stop([a.address for a in list(live.state.current.values())])
        await self.workers.flush(live.uid)
        if live.ended:
            raise Refused("StaleEpoch", f"run {live.uid} was taken over")
        await live.close(final)
        # No attempt of this epoch counts any more, and no writer of it.
        sweep = in_thread(live.store.sweep, f"runs/{live.uid}", (live.uid, live.epoch))
        await asyncio.wait([heard(sweep)], timeout=SWEEP_WAIT)
        self.closed[live.uid] = live.epoch
        while len(self.closed) > CLOSED_KEPT:
            self.closed.pop(next(iter(self.closed)))
        self.drop(live, {"k": "closing"})

    @operation
    async def forget(
        self, *, run: str, epoch: int | None = None, lead: int | None = None, lease: str | None = None, **_: Any
    ) -> Reply:
        """Drops a run; its journal stays open. Who names no epoch means the run as it is open now."""
        self.leaders.of_run(run, lead, lease)
        live = self.runs.get(run)
        if live is not None:
            opened = live.epoch if epoch is None else epoch
            await self.live(run, opened).committer.settle(FORGET_WAIT)
            # Meanwhile it may be gone, or somebody else's.
            if run in self.runs:
                self.drop(self.live(run, opened), {"k": "closing"})
        return {"status": "OK"}

    @operation
    async def read(self, *, run: str, step: int, item: int, max: int = 1 << 20, **_: Any) -> Reply:
        live = self.runs.get(run)
        output = live.state.outputs.get((step, item)) if live is not None else None
        if live is None or output is None:
            raise Refused("NotFound", f"run {run} has no output of step {step}, item {item} here")
        texts = await self.snapshots.texts(live, {(step, item): output.json})
        result = value_of(texts[step, item])
        handle = msgpack.unpackb(output.handle, raw=False, strict_map_key=False)
        data = handle.get("b")
        if data is None and handle["z"] <= max:
            data = await in_thread(live.store.get, object_key(run, handle["u"]))
            if hashlib.sha256(data).digest() != handle["d"]:
                raise Refused(
                    "CorruptOutput", f"the stored output of step {step}, item {item} has another digest"
                )
        return {
            "status": "OK",
            "serializer": handle["s"],
            "size": handle["z"],
            "digest": handle["d"].hex(),
            "path": handle.get("u"),
            "bytes": data if data is not None and len(data) <= max else None,
            "json": None if result is None else result[0],
        }

    @operation
    async def stored_logs(self, *, run: str, after: str | None = None, **_: Any) -> Reply:
        """Log objects of a run that is open here, for those who may not read its storage."""
        live = self.runs.get(run)
        if live is None:
            raise Refused("RunNotFound", f"run {run} is not open on this scheduler")
        if after is None:
            await self.workers.flush(run)
        objects, more = await in_thread(logs.stored, live.store, run, after)
        return {"status": "OK", "objects": objects, "more": more}

    async def events(
        self,
        comm: Any,
        run: str = "",
        epoch: int = 0,
        since: int | None = 0,
        instance: str | None = None,
        window: int = 10_000,
        beat: float = 10.0,
        logs: bool = False,
        **_: Any,
    ) -> Any:
        """The connection becomes the run's event stream, from ``since`` (nil: now) on; a refusal is its only
        message.
        """
        try:
            try:
                if instance not in (None, "", self.instance):
                    why = f"the scheduler was replaced by instance {self.instance}"
                    raise Refused("InstanceChanged", f"cannot follow run {run}: {why}; open the run again")
                live = self.live(run, epoch)
                drives = since is not None
                if since is None:
                    since = live.events.seq
                if gap := live.events.gap(since):
                    raise Refused("Gap", f"cannot follow run {run}: {gap}; open the run again")
            except Refused as error:
                await comm.write({"status": "error", "reason": error.reason, "message": str(error)})
                return no_reply()
            subscriber = Subscriber(since, window, beat, logs, drives)
            following = asyncio.ensure_future(subscriber.follow(comm, live.events, self.instance))
            self._tasks.add(following)
            try:
                await asyncio.sleep(0)
                self.workers.listen(live)
                await following
            finally:
                self._tasks.discard(following)
                following.cancel()
                self.workers.listen(live)
        except OSError:  # CommClosedError is one: the other side left
            pass
        finally:
            await comm.close()
        return no_reply()

    # ------------------------------------------------------------------ workers

    def on_worker(self, events: Any = (), worker: str | None = None, **_: Any) -> None:
        """A worker's stream message. Must not raise: Dask would cut the worker off."""
        name = self.workers.name(worker)
        for event in events:
            try:
                live = self.runs.get(event["run"])
                if live is None:
                    continue
                kind = event["k"]
                if kind == "started":
                    live.started(event["s"], event["i"], event["a"], event["t"], worker or "", name)
                elif kind == "ran":
                    live.answered(event["s"], event["i"], event["a"], event.get("answer", event), name)
                elif kind == "back":
                    live.returned(event["s"], event["i"], event["a"])
                elif kind == "storage":
                    live.storage_told(name, str(event["reason"]), str(event["message"]))
                elif kind == "logs":
                    lines = {"k": "logs", "w": event.get("w") or name, "lines": event["lines"]}
                    if event.get("dropped"):
                        lines["dropped"] = event["dropped"]
                    live.events.log_lines(lines)
            except Exception:
                log.exception("daskade: bad event of worker %s", worker)

    def tell_worker(self, address: str | None, message: dict[str, Any]) -> None:
        """Sends a stream operation to a worker, if it is there."""
        self.workers.tell(address, message)

    def worker_added(self, address: str) -> None:
        """Dask has a new worker."""
        told = self.workers.added(address, self.runs.values())
        if told is not None:
            for live in self.runs.values():
                live.events.add("worker", state="added", **told)
            self.dispatcher.workers_changed()

    def worker_removed(self, address: str) -> None:
        """Dask has given a worker up."""
        told = self.workers.removed(address)
        for live in self.runs.values():
            live.events.add("worker", state="removed", **told)
            live.storage_told(told["name"], "", "")
        self.dispatcher.workers_changed()

    # ---------------------------------------------------- what the dispatcher calls

    def blob(self, attempt: Attempt) -> bytes:
        live = self.runs[attempt.run.uid]
        return attempt.run.blob(attempt, live.epoch, self.digest)

    def held(self, attempt: Attempt) -> bool:
        live = self.runs.get(attempt.run.uid)
        return live is None or live.held(attempt)

    def lost(self, attempt: Attempt, worker: str | None, message: str) -> None:
        live = self.runs.get(attempt.run.uid)
        if live is not None:
            live.worker_gone(attempt, self.workers.name(worker), message)

    def broken(self, attempt: Attempt, message: str) -> None:
        live = self.runs.get(attempt.run.uid)
        if live is not None:
            live.broken(attempt, message, self.workers.name(attempt.worker))

    def unanswered(self, attempts: list[Attempt], future: Any) -> None:
        self._background(self._fetch_answers(attempts, future))

    async def _fetch_answers(self, attempts: list[Attempt], future: Any) -> None:
        """The task is done and not all of its answers came ahead of it: take the task's result."""
        try:
            untold = await future
            for run, step, item, number, answer in msgpack.unpackb(untold, raw=False) if untold else ():
                live = self.runs.get(run)
                if live is not None:
                    live.answered(step, item, number, answer, self._name_of(attempts, (step, item, number)))
            deadline = asyncio.get_running_loop().time() + ANSWER_GRACE
            while missing := [attempt for attempt in attempts if self._awaited(attempt)]:
                if asyncio.get_running_loop().time() > deadline:
                    for attempt in missing:
                        self.broken(attempt, "the worker sent no answer")
                    return
                await asyncio.sleep(0.02)
        except Exception as error:  # noqa: BLE001 - the result was lost with its worker
            for attempt in [attempt for attempt in attempts if self._awaited(attempt)]:
                self.lost(attempt, attempt.worker, f"its answer was lost: {error}"[:500])
        finally:
            future.release()

    def _awaited(self, attempt: Attempt) -> bool:
        """Whether the attempt still waits for the answer of the task that it was sent with."""
        live = self.runs.get(attempt.run.uid)
        return live is not None and attempt.flight is None and live.awaits(attempt)

    def _name_of(self, attempts: list[Attempt], address: Address) -> str:
        return next((self.workers.name(a.worker) for a in attempts if a.address == address), "")

    def blocked(self, run: str, s: int, count: int, reason: str, message: str) -> None:
        live = self.runs.get(run)
        if live is not None:
            live.events.add("blocked", s=s, count=count, reason=reason, message=message)

    def unblocked(self, run: str, s: int) -> None:
        live = self.runs.get(run)
        if live is not None:
            live.events.add("unblocked", s=s)

    # ------------------------------------------------------------------ ends

    def drop(self, live: LiveRun, last: dict[str, Any] | None) -> None:
        """The run is not open here any more."""
        if self.runs.get(live.uid) is live:
            del self.runs[live.uid]
        self._locks.pop(live.uid, None)
        self.earlier.forget(live.uid)
        self.snapshots.forget(live.uid)
        live.end()
        self.workers.listen(live)
        self.workers.tell_all({"op": "daskade-drop", "run": live.uid})
        self.dispatcher.forget(live.uid)
        live.events.end(last)

    async def stop_all(self) -> None:
        """The scheduler closes: say so, and leave."""
        if self.closing:
            return
        self.closing = True
        self.dispatcher.closed = True
        for live in list(self.runs.values()):
            live.events.add("closing", reason="", message="it closes")
            live.events.end()
        await asyncio.gather(
            asyncio.sleep(0.05), *(r.committer.settle(LEAVE_WAIT) for r in self.runs.values())
        )
        self.cluster.drains.stop()
        for task in list(self._tasks):
            task.cancel()
        for live in list(self.runs.values()):
            live.journal.close()
        await self.client.close()
