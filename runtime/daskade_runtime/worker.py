"""The runtime inside a Dask worker: ``run_step`` is all that Dask ever runs for us, ``DaskadeWorker`` sets it
up.

``run_step`` takes one attempt as msgpack, gathers its inputs, has a step process run it, stores the output
and answers with msgpack. It never raises, so Dask never sees a user's exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
from distributed import WorkerPlugin, get_worker

from daskade_runtime import boot, channel, compat, credentials, health, turns
from daskade_runtime.bundles import Bundles
from daskade_runtime.cache import Cache, Entry
from daskade_runtime.definitions import Definitions, Run
from daskade_runtime.drain import not_begun
from daskade_runtime.errors import StepFailure, describe
from daskade_runtime.fetch import Fetcher
from daskade_runtime.gpu import Devices, device_ids, shares_device
from daskade_runtime.inline import run_inline
from daskade_runtime.inputs import Gatherer
from daskade_runtime.logs import ATTEMPT_CAP, AttemptLog, LogHub
from daskade_runtime.objects import Objects, named
from daskade_runtime.outbox import Events
from daskade_runtime.outputs import publish
from daskade_runtime.pool import Pool
from daskade_runtime.process import Child, Killed, Kind, ProcessDied, Stale, describe_exit
from daskade_runtime.storage import StorageError
from daskade_runtime.unprofiled import profiled, unprofiled

log = logging.getLogger("distributed.daskade")

# Attempts that were stopped before they began here; more than a worker ever has queued.
_STOPPED_KEPT = 10_000
_FLUSH_DEADLINE = 10.0
_CALL_DEADLINE = 60.0
_WATCH_EVERY = 0.5
PRESTART_CAP = 8
# Processes that were ready and have ended since: each is passed over, and so many are no chance any more.
_STALE_MOST = 20

# Run, step, item, attempt, and the opening of the run: one that was left and opened again has attempts of the
# same numbers, which a stop of those before must not reach.
Task = tuple[str, int, int, int, int]


def run_step(blob: bytes) -> bytes:
    """Runs one attempt; see the module's documentation. Never raises."""
    began = time.time()
    try:
        state: WorkerState = get_worker()._daskade
        if state is None:
            raise LookupError("it was taken down")
    except Exception as exc:  # noqa: BLE001
        reply: dict[str, Any] = {
            "ok": False,
            "class": "infra",
            "type": "NoRuntime",
            "tail": [],
            "traceback": "",
        }
        reply.update(message=f"the runtime is not set up on this worker: {exc}", t0=began, t1=time.time())
        return _pack(reply)
    with unprofiled(state.worker):
        return state.run(blob)


class Attempt:
    """One attempt in progress on this worker."""

    __slots__ = ("child", "interrupt", "lock", "stop", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.stop = False
        self.child: Child | None = None
        self.interrupt: Callable[[], None] | None = None  # set while the step runs in the worker's own thread
        self.lock = threading.Lock()

    def stopped(self) -> bool:
        return self.stop

    def stop_now(self) -> None:
        """Ends the attempt, whatever it is at."""
        with self.lock:
            self.stop = True
            if self.child is not None:
                self.child.kill("stopped")
            if self.interrupt is not None:
                self.interrupt()

    @contextlib.contextmanager
    def holding(self, child: Child) -> Iterator[None]:
        with self.lock:
            if self.stop:
                child.kill("stopped")
            self.child = child
        try:
            yield
        finally:
            with self.lock:
                self.child = None


class WorkerState:
    """All that the runtime keeps on one worker."""

    def __init__(self, worker: Any, digest: str) -> None:
        self.worker = worker
        self.digest = digest
        self.loop = worker.loop
        self.name = str(worker.name)
        self.directory = tempfile.mkdtemp(prefix="daskade-", dir=compat.local_directory(worker))
        self.threads = compat.threads(worker)
        limit = compat.memory_limit(worker)
        self.memory_share = limit // self.threads if limit else None
        self.memory_limit = limit
        self.pool = Pool(self.threads, boot.package_path(), self.directory)
        self.pool.prestart(min(self.threads, PRESTART_CAP))
        self.cache = Cache(os.path.join(self.directory, "cache"), 1 << 30)
        self.definitions = Definitions(self._ask_definitions, os.path.join(self.directory, "code"))
        self.fetcher = Fetcher(self.cache, self._call_peer, lambda: str(worker.address), self._storage)
        self.objects = Objects(self.cache, self._storage)
        self.gatherer = Gatherer(self.fetcher, self._ask_handle)
        self.events = Events(worker)
        self.bundles = Bundles(self.events.post)
        self.logs = LogHub(self.name, self._live_lines, self._storage)
        self.devices = Devices(device_ids(compat.resources(worker).get("GPU", 0)))
        self._troubles: dict[str, dict[int, str]] = {}
        self._troubles_lock = threading.Lock()
        self.live: dict[Task, Attempt] = {}
        self._stopped: dict[Task, None] = {}
        self._closing = False
        self._cut = False

    # -- one attempt

    def run(self, blob: bytes) -> bytes:
        began = time.time()
        lines: AttemptLog | None = None
        task: Task | None = None
        started: dict[str, Any] | None = None
        try:
            request = msgpack.unpackb(blob, raw=False, strict_map_key=False)
            task = (request["run"], request["s"], request["i"], request["a"], request.get("o", 0))
            if request.get("d") and self.digest and request["d"] != self.digest:
                message = (
                    f"the scheduler's runtime is {request['d'][:12]}, this worker's is {self.digest[:12]}"
                )
                raise StepFailure("infra", "RuntimeMismatch", message)
            if self._closing:
                raise StepFailure("infra", "WorkerClosing", "the worker is closing")
            attempt = self.live[task] = Attempt(task)
            if task in self._stopped:  # looked at only now: a stop from here on finds the attempt itself
                raise StepFailure("stopped", "Stopped", "stopped before it began")
            run_id, step, item, number, _ = task
            started = self.events.add(
                {"k": "started", "run": run_id, "s": step, "i": item, "a": number, "t": began, "w": self.name}
            )
            run = self.definitions.find(request["run"], request["e"], attempt.stopped)
            self.logs.open_run(run.uid, run.store)
            definition = run.step(request["s"])
            self.cache.limit = run.settings.get("cache_bytes") or self.cache.limit
            lines = AttemptLog(
                self.logs, run.uid, definition["name"], (step, item, number), run.settings.get("log_cap") or ATTEMPT_CAP
            )
            reply = self._run(run, definition, request, attempt, lines)
        except BaseException as exc:  # an exception here would become Dask's
            reply = describe(exc)
            if not isinstance(exc, StepFailure):
                log.exception("daskade: attempt %s", task)
                reply["class"] = "infra"
            if lines is not None:
                lines.finish()
            if task in self.live and self.live[task].stop:
                reply["class"] = "stopped"
            reply.update(ok=False, tail=lines.tail if lines is not None else [])
            if lines is not None and reply["class"] != "stopped":
                lines.explain(reply)
            self.logs.hurry()
        finally:
            if task is not None:
                self.live.pop(task, None)
                if self._stopped:
                    self._stopped.pop(task, None)
        reply["t0"] = began
        reply["t1"] = time.time()
        if task is not None:
            reply["o"] = task[4]
        if started is not None:
            # What began and ended within one batch needs no word of its beginning: the result has it.
            self.events.withdraw(started)
        self.events.settle()
        return _pack(reply)

    def _run(
        self, run: Run, step: dict[str, Any], request: dict[str, Any], attempt: Attempt, lines: AttemptLog
    ) -> Any:
        pins: list[Entry] = []
        taken: dict[str, float] = {}
        path = self.cache.new_path()
        try:
            wanted = named(step, request["v"])
            inputs: dict[str, Any] = {"h": (), "all": (), "e": ()}
            if not wanted.taken:
                inputs = self.gatherer.gather(run, request, step["args"], pins, attempt.stopped)
            objects, versions = self.objects.gather(run, step, wanted, pins, attempt.stopped)
            inputs.update(objects)
            if attempt.stop:
                raise StepFailure("stopped", "Stopped", "stopped before it began")
            cuda, taken = self._devices(step)
            try:
                if step.get("isolation") == "thread":
                    with profiled(self.worker):
                        answer = run_inline(run, request["s"], request["v"], inputs, path, attempt, lines)
                else:
                    answer = self._run_in_child(run, step, request, inputs, path, cuda, attempt, lines)
            except BaseException:
                for left in (path, f"{path}-whole"):  # by a killed process
                    with contextlib.suppress(OSError):
                        os.unlink(left)
                raise
            lines.finish()
            address = str(self.worker.address)
            told = functools.partial(self._storage, run.uid)
            current = functools.partial(turns.check, self._call_scheduler, attempt.task, compat.address(self.worker))

            def over() -> bool:
                return attempt.stop or self._cut or self._closing

            return publish(
                *(run, step, attempt.task[:4], answer, self.cache, address),
                *(wanted, versions, over, told, current),
            )
        finally:
            for entry in pins:
                self.cache.unpin(entry)
            if taken:
                self.devices.give(taken)

    def _run_in_child(
        self,
        run: Run,
        step: dict[str, Any],
        request: dict[str, Any],
        inputs: dict[str, Any],
        path: str,
        cuda: str | None,
        attempt: Attempt,
        lines: AttemptLog,
    ) -> dict[str, Any]:
        index = request["s"]
        env = run.env(index)
        kind = (run.code_digest, tuple(sorted(env.items())), cuda)
        key = run.key(index)
        message = dict(inputs, v=request["v"], path=path)
        message["def"] = key
        fresh = credentials.environ()
        message["env"] = {
            **{name: value for name, value in fresh.items() if name not in env},
            "DASKADE_RUN": run.uid,
            "DASKADE_STEP": step["name"],
            "DASKADE_ITEM": str(request["i"]),
            "DASKADE_ATTEMPT": str(request["a"]),
        }
        data = channel.frame(["run", message])
        stale = 0
        while True:
            child = self.pool.acquire(kind, lambda: self._setup(run, env, cuda), env)
            reusable = False
            try:
                self._clear(kind, step)
                known = key in child.defined
                child.defined.add(key)
                with attempt.holding(child):
                    answer = child.exchange(
                        data if known else run.define(index) + data,
                        lines,
                        step.get("timeout"),
                        self.memory_share,
                    )
                # A process that once needed much memory keeps it: better a fresh one.
                reusable = self.memory_share is None or child.rss < self.memory_share // 2
                break
            except Stale:
                stale += 1
                if stale > _STALE_MOST:
                    why = f"{stale} processes exited before the step started in them"
                    raise StepFailure("infra", "SpawnFailed", why) from None
                continue
            except Killed as exc:
                raise self._killed(exc, step) from None
            except ProcessDied as exc:
                raise self._died(exc) from None
            finally:
                self.pool.release(child, reusable)
        if answer[0] == "ok":
            reply: dict[str, Any] = answer[1]
            return reply
        record = answer[1]
        raise StepFailure(record["class"], record["type"], record["message"], record["traceback"])

    def _killed(self, exc: Killed, step: dict[str, Any]) -> StepFailure:
        if exc.why == "timeout":
            return StepFailure(
                "timeout",
                "Timeout",
                f"the step ran longer than its timeout of {step['timeout']:g} s and was killed",
            )
        if exc.why == "oom":
            share, limit = _size(self.memory_share or 0), _size(self.memory_limit or 0)
            message = (
                f"the step used {_size(exc.used)} of memory, more than its share of {share} "
                f"({limit} of the worker / {self.threads} threads), and was killed"
            )
            return StepFailure("oom", "OutOfMemory", message)
        if exc.why == "stopped":
            return StepFailure("stopped", "Stopped", "the step was stopped")
        return StepFailure("infra", "WorkerClosing", "the worker is closing")

    def _died(self, exc: ProcessDied) -> StepFailure:
        message = describe_exit(exc.code)
        if exc.code == -9 and self.memory_share and exc.peak > self.memory_share * 0.9:
            message += f"; it used {_size(exc.peak)} of memory, its share is {_size(self.memory_share)}"
            return StepFailure("oom", "OutOfMemory", message)
        if exc.code == -9:
            message += "; the kernel does this when memory runs out"
        return StepFailure("app", "ProcessDied", message)

    def _clear(self, kind: Kind, step: dict[str, Any]) -> None:
        """Ends idle processes that have something on the step's devices: contexts, and what libraries cache.
        Those of its own kind may stay on a device that is shared.
        """
        devices = kind[2]
        if devices:
            shared = step["resources"]["GPU"] < 1
            self.pool.drop(lambda other: shares_device(other[2], devices) and not (shared and other == kind))

    def _setup(self, run: Run, env: dict[str, str], cuda: str | None) -> dict[str, Any]:
        env = dict(env)
        if cuda is not None:
            env["CUDA_VISIBLE_DEVICES"] = cuda
        return {
            "env": env,
            "path": [run.code_path] if run.code_path else [],
            "scheduler": compat.scheduler_address(self.worker),
            "security": compat.security(self.worker),
        }

    def _devices(self, step: dict[str, Any]) -> tuple[str | None, dict[str, float]]:
        amount = (step.get("resources") or {}).get("GPU") or 0
        if amount > 0:
            taken = self.devices.take(float(amount))
            if taken is None:
                raise StepFailure("infra", "NoDevice", f"no {amount:g} GPU of this worker are free")
            return ",".join(taken), taken
        # None leaves the worker's own value; an empty one hides all devices.
        return (None if step.get("gpu_ok") else ""), {}

    # -- what others ask of this worker

    def stop(self, run: str = "", s: int = 0, i: int = 0, a: int = 0, o: int = 0, **_: Any) -> None:
        """Stream op ``daskade-stop``: kills the attempt, or refuses it should it still begin."""
        task = (run, s, i, a, o)
        attempt = self.live.get(task)
        if attempt is not None:
            attempt.stop_now()
            return
        self._stopped[task] = None
        while len(self._stopped) > _STOPPED_KEPT:
            del self._stopped[next(iter(self._stopped))]
        attempt = self.live.get(task)  # it may have begun between the two looks
        if attempt is not None:
            attempt.stop_now()

    def listen(self, run: str = "", on: bool = False, **_: Any) -> None:
        """Stream op ``daskade-listen``."""
        self.logs.listen(run, on)

    def drop(self, run: str = "", **_: Any) -> None:
        """Stream op ``daskade-drop``: the run is over."""
        known = self.definitions.known(run)
        self.definitions.forget(run)
        self.cache.drop(run)
        self.logs.forget(run)
        if known is not None:
            digest = known.code_digest
            self.loop.asyncio_loop.run_in_executor(None, self.pool.drop, lambda kind: kind[0] == digest)

    def retired(self, **_: Any) -> None:
        """Stream op ``daskade-retired``: the end that follows is meant, and not for lack of a scheduler."""
        self.worker._daskade_retired = True

    async def get(
        self, comm: Any, run: str = "", d: bytes = b"", offset: int = 0, length: int = 0, **_: Any
    ) -> Any:
        """RPC ``daskade-get``: a piece of an output that this worker holds."""
        entry = self.cache.pin((run, bytes(d)))
        if entry is None:
            return {
                "status": "error",
                "reason": "NotCached",
                "message": "this worker does not hold that output",
            }
        try:
            data = await asyncio.get_running_loop().run_in_executor(
                None, _read_piece, entry.path, offset, length
            )
            return {"status": "OK", "data": data, "size": entry.size}
        except OSError as exc:
            return {"status": "error", "reason": "NotCached", "message": str(exc)}
        finally:
            self.cache.unpin(entry)

    async def flush(self, comm: Any, run: str = "", **_: Any) -> Any:
        """RPC ``daskade-flush``: returns when the run's lines so far are stored."""
        dropped = await asyncio.get_running_loop().run_in_executor(
            None, self.logs.flush, run, _FLUSH_DEADLINE
        )
        return {"status": "OK", "dropped": dropped}

    async def not_begun(self, comm: Any, **_: Any) -> Any:
        """RPC ``daskade-not-begun``: the tasks that a worker that is to go gives back."""
        return not_begun(self.worker)

    # -- calls from step threads, through the worker's loop

    def _call_peer(self, address: str, op: str, deadline: float, **arguments: Any) -> Any:
        return self._call(self.worker.rpc(address), op, deadline, **arguments)

    def _call_scheduler(self, op: str, **arguments: Any) -> Any:
        return self._call(self.worker.scheduler, op, _CALL_DEADLINE, **arguments)

    def _call(self, target: Any, op: str, deadline: float, **arguments: Any) -> Any:
        async def call() -> Any:
            return await getattr(target, op)(**arguments)

        future = asyncio.run_coroutine_threadsafe(call(), self.loop.asyncio_loop)
        try:
            return future.result(deadline)
        except BaseException:
            future.cancel()
            raise

    def _ask_definitions(self, run: str) -> Any:
        return self._call_scheduler("daskade-run", run=run)

    def _ask_handle(self, run: str, step: int, item: int) -> Any:
        try:
            return self._call_scheduler("daskade-handle", run=run, s=step, i=item)
        except Exception as exc:
            message = f"the scheduler did not give the index of a list output: {type(exc).__name__}: {exc}"
            raise StepFailure("infra", "MissingInput", message) from exc

    def _live_lines(self, run: str, lines: list[tuple[Any, ...]]) -> None:
        self.events.lines(run, self.name, lines)

    # -- life

    def install(self) -> None:
        worker = self.worker
        worker.stream_handlers.update(
            {
                "daskade-stop": self.stop,
                "daskade-listen": self.listen,
                "daskade-drop": self.drop,
                "daskade-retired": self.retired,
            }
        )
        worker.handlers.update(
            {"daskade-get": self.get, "daskade-flush": self.flush, "daskade-not-begun": self.not_begun}
        )
        worker._daskade = self
        self._watch()

    def _watch(self) -> None:
        """Ends all steps when the stream to the scheduler is gone: other attempts of them may start any time.

        Old releases keep the worker and try to connect again, new ones close it, some only after a while.
        """
        if self._closing:
            return
        gone = compat.stream_closed(self.worker)
        if gone and not self._cut:
            log.warning("daskade: the scheduler is gone, ending all steps")
            self.pool.interrupt()
        self._cut = gone
        self.bundles.look()
        self.loop.call_later(_WATCH_EVERY, self._watch)

    def _storage(self, run: str, error: StorageError | None) -> None:
        """This thread's attempt begins or ends to wait for storage, or waits for another reason; what is new
        for the run is told.
        """
        thread = threading.get_ident()
        with self._troubles_lock:
            waiting = self._troubles.setdefault(run, {})
            if error is not None:
                new = error.reason not in waiting.values()
                waiting[thread] = error.reason
                if new:
                    told = {"reason": error.reason, "message": str(error)}
                    self.events.post({"k": "storage", "run": run, **told})
                return
            waiting.pop(thread, None)
            if not waiting:
                del self._troubles[run]
                self.events.post({"k": "storage", "run": run, "reason": "", "message": ""})

    def kill(self) -> None:
        """Ends all steps now: the worker has lost its scheduler, or goes."""
        self._closing = True
        self.pool.close()

    def close(self) -> None:
        self.logs.close()
        self.cache.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class DaskadeWorker(WorkerPlugin):
    """Sets the runtime up on a worker. Carries the package: it also loads where nothing is installed."""

    name = "daskade"

    def __init__(self, archive: bytes, digest: str) -> None:
        self.archive = archive
        self.digest = digest

    def __reduce__(self) -> tuple[Any, ...]:
        return boot.reduce_plugin(self.archive, self.digest)

    def setup(self, worker: Any) -> None:
        before = getattr(worker, "_daskade", None)
        if before is not None:
            before.kill()
            before.close()
        WorkerState(worker, self.digest).install()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        health.task(str(key), finish)

    def teardown(self, worker: Any) -> Any:
        state = getattr(worker, "_daskade", None)
        if state is None:
            return None
        worker._daskade = None
        state.kill()
        return asyncio.get_running_loop().run_in_executor(None, state.close)


def _read_piece(path: str, offset: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(min(max(length, 0), 16 << 20))


def _size(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


def _pack(reply: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(reply, use_bin_type=True)
    return packed


__all__ = ["DaskadeWorker", "WorkerState", "run_step"]
