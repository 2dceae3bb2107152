"""From ready attempts to Dask tasks: which workers may run them, how many at a time, in which order.

Few attempts are at Dask at any moment (one per slot, more only while they take less than a second), each
restricted to the workers that may run it. So priorities hold, a worker that joins late gets work, and a
worker that dies takes few along. Short attempts of one step share a Dask task (``flight``). Dask chooses
among the eligible workers. It never reruns anything of ours: an attempt whose worker died is reported.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from daskade_runtime import run as run_
from daskade_runtime import span
from daskade_runtime.flight import Flight, Pace
from daskade_runtime.run import Attempt, StepDef

log = logging.getLogger("distributed.daskade")

# Work kept queued per slot beyond the running step, so that a slot never idles while Dask's batched streams
# turn around (2 to 10 ms each way).
AHEAD_SECONDS = 0.05
AHEAD_CAP = 64
# Attempts that take so long are queued behind none: the turn is nothing against them, but a worker that comes
# late, or is free sooner, could not have one that is queued elsewhere.
LONG_SECONDS = 1.0
# Inputs of so many bytes are worth a worker: fewer are read elsewhere as fast as Dask finds one that is free.
HOLD_BYTES = 1 << 20
# One call into Dask carries at most so many tasks, to keep its loop responsive.
BATCH = 500
# Dask refuses a task whose worker died more often than allowed; ours are refused at once.
_NEVER_AGAIN = 1 << 20
# An attempt that nobody saw begin when its worker went away is sent again, so often; a step that kills its
# worker at once may never be seen.
UNLUCKY = 1
# How often worker states that Dask does not announce (retiring) are looked at while something waits.
RECHECK = 1.0
# A worker that takes nothing new for so long keeps nothing that it has not begun. Long enough for the word of
# what it did begin to arrive.
DRAIN_AFTER = 2.0
_PREFIX = f"{os.environ['DASKADE_CLUSTER']}-" if os.environ.get("DASKADE_CLUSTER") else ""
_NOT, _UNASSIGNED, _ASSIGNED = range(3)


class Group:
    """All ready attempts that the same workers may run."""

    def __init__(self, step: StepDef, ahead: int) -> None:
        self.group = step.group
        self.resources = step.resources
        self.gpu = step.gpu_ok or step.group is not None or step.resources.get("GPU", 0) > 0
        self.ahead = ahead
        self.heap: list[tuple[int, int, Attempt]] = []
        self.ready: Counter[tuple[str, int]] = Counter()
        self.blocked: dict[tuple[str, int], tuple[str, int]] = {}
        self.unassigned = 0
        self.mean = LONG_SECONDS
        self.eligible: dict[str, int] = {}

    def slots(self, worker: Any) -> int:
        """How many of these attempts ``worker`` runs at once; 0 if it may not."""
        if not running(worker) or (self.group is not None and group_of(worker.name) != self.group):
            return 0
        offered = worker.resources or {}
        if not self.gpu and offered.get("GPU", 0) > 0:
            return 0
        slots = int(worker.nthreads)
        for name, amount in self.resources.items():
            slots = min(slots, int(offered.get(name, 0) // amount))
        return slots

    @property
    def depth(self) -> int:
        """Attempts in flight per slot."""
        if self.mean >= LONG_SECONDS:
            return 1
        return max(self.ahead, min(AHEAD_CAP, 1 + math.ceil(AHEAD_SECONDS / max(self.mean, 1e-4))))

    def took(self, seconds: float) -> None:
        """Learns from an attempt that ran."""
        self.mean += 0.2 * (max(seconds, 0.0) - self.mean)

    def why_blocked(self, workers: list[Any]) -> tuple[str, str]:
        """Reason and words for a group without an eligible worker."""
        if not workers:
            return "NoWorkers", "no worker is connected"
        fit = [w for w in workers if self.group is None or group_of(w.name) == self.group]
        if not fit:
            return "NoWorkerOfGroup", f"no worker of group {self.group} is connected"
        for name, amount in self.resources.items():
            if not any((w.resources or {}).get(name, 0) >= amount for w in fit):
                of = f" of group {self.group}" if self.group else ""
                return "NoWorkerWithResources", f"no worker{of} offers {name}={amount:g}"
        if not self.gpu and all((w.resources or {}).get("GPU", 0) > 0 for w in fit):
            return "OnlyGpuWorkers", "only GPU workers are connected, and the step asks for no GPU"
        if not any(running(w) for w in fit):
            return "WorkersNotRunning", f"all {len(fit)} eligible workers are paused or retiring"
        wanted = ", ".join(f"{k}={v:g}" for k, v in self.resources.items())
        return "NoWorkerWithResources", f"no worker offers {wanted or 'a thread'} at once"


def running(worker: Any) -> bool:
    """Whether Dask's worker takes new tasks."""
    return getattr(getattr(worker, "status", None), "name", "running") == "running"


def group_of(name: Any) -> str | None:
    """``cpu`` of ``cpu-3-1``, and in pods of ``<cluster>-cpu-3-1``; None for a name of another form: such a
    worker belongs to no group.
    """
    parts = str(name).removeprefix(_PREFIX).rsplit("-", 2)
    return parts[0] if len(parts) == 3 and parts[0] and parts[1].isdigit() and parts[2].isdigit() else None


class Dispatcher:
    """Sends ready attempts to Dask and follows them there.

    Callbacks: ``blob(attempt)`` makes what a worker needs of it; ``held(attempt)`` says that its run takes a
    pause; ``lost(attempt, worker, message)``, ``broken(attempt, message)`` and ``unanswered(attempts,
    future)`` report ends that brought no answer; ``blocked``/``unblocked`` tell of steps that no worker may
    run.
    """

    def __init__(self, scheduler: Any, client: Any, function: Callable[..., Any], calls: Any) -> None:
        self._scheduler = scheduler
        self._client = client
        self._function = function
        self._calls = calls
        self._groups: dict[Any, Group] = {}
        self._order = itertools.count()
        self.flying: dict[str, Flight] = {}
        self._load: Counter[str] = Counter()
        self._landed: list[Any] = []
        self._armed = False
        self._changed = True
        self._rechecking = False
        self._idle_since: dict[str, float] = {}
        self.closed = False

    # ------------------------------------------------------------------ in

    def ready(self, attempt: Attempt, ahead: int) -> None:
        """The attempt's inputs exist."""
        step = attempt.run.steps[attempt.step]
        key = (step.group, step.gpu_ok, tuple(sorted(step.resources.items())), ahead)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(step, ahead)
            self._changed = True
        attempt.group = group
        attempt.state = run_.READY
        if not attempt.order:
            attempt.order = next(self._order) + 1
        heapq.heappush(group.heap, (-attempt.priority, attempt.order, attempt))
        attempt.queued = True
        group.ready[attempt.run.uid, attempt.step] += 1
        self.arm()

    def withdraw(self, attempt: Attempt) -> None:
        """An attempt that is not at Dask must not go there any more."""
        if attempt.state == run_.READY and attempt.group is not None:
            self._uncount(attempt)
        attempt.state = run_.GONE
        self.arm()

    def answered(self, attempt: Attempt, seconds: float | None) -> None:
        """The attempt ended on its worker: its slot is free. Dask's own end of it follows."""
        if seconds is not None and attempt.group is not None:
            attempt.group.took(seconds)
            _pace(attempt).took(seconds)
        self._unload(attempt)
        self.arm()

    def recall(self, attempt: Attempt) -> None:
        """Takes the attempt from Dask; what runs of it goes on unheard."""
        flight = attempt.flight
        if flight is not None:
            self._unload(attempt)
            if flight.leave(attempt) and self.flying.pop(flight.key, None) is not None:
                future, flight.future = flight.future, None
                # At once, since the client's own message may come too late to stop a worker from starting it.
                self._release_keys([flight.key])
                if future is not None:
                    future.release()
        self.arm()

    def returned(self, attempt: Attempt) -> None:
        """Its worker has not begun it, and will not: others take too long before it."""
        self.recall(attempt)
        self._again(attempt)

    def workers_changed(self) -> None:
        """A worker came or went, or changed its state."""
        self._changed = True
        self.arm()

    def started(self, attempt: Attempt, worker: str) -> None:
        """The worker says that it began; Dask may have moved the task since it was sent."""
        if attempt.worker != worker and attempt.counted:
            self._unload(attempt)
            self._assign(attempt, worker)

    def arm(self) -> None:
        """Plans a pass over what is ready, in this turn of the loop."""
        if not self._armed and not self.closed:
            self._armed = True
            self._scheduler.loop.add_callback(self._pump)

    # ----------------------------------------------------------------- out

    def _pump(self) -> None:
        self._armed = False
        try:
            if self._changed:
                self._changed = False
                workers = list(self._scheduler.workers.values())
                for group in self._groups.values():
                    group.eligible = {w.address: n for w in workers if (n := group.slots(w)) > 0}
            for group in self._groups.values():
                if group.heap:
                    self._pump_group(group)
                self._tell_blocked(group)
            if not self._rechecking and (self.flying or any(g.ready for g in self._groups.values())):
                self._rechecking = True
                self._scheduler.loop.call_later(RECHECK, self._recheck)
        except Exception:
            log.exception("daskade: dispatch failed")

    def _recheck(self) -> None:
        self._rechecking = False
        now = time.monotonic()
        idle = {address for address, worker in self._scheduler.workers.items() if not running(worker)}
        self._idle_since = {address: self._idle_since.get(address, now) for address in idle}
        drained = {address for address, since in self._idle_since.items() if now - since >= DRAIN_AFTER}
        if drained:
            for flight in list(self.flying.values()):
                # One of several has begun: the worker runs them all, or hands them back.
                if all(a.state == run_.SENT and a.worker in drained for a in flight.attempts):
                    for attempt in list(flight.attempts):
                        self.recall(attempt)
                        self._again(attempt)
        self.workers_changed()

    def _free(self, group: Group) -> int:
        """How many attempts of the group may go to Dask now; 0 while it is better to let more gather."""
        depth = group.depth
        room = [(depth * n - self._load[address], n) for address, n in group.eligible.items()]
        free = sum(max(0, r) for r, _ in room)
        if depth > 2 * group.ahead and not any(2 * r >= depth * n for r, n in room):
            return 0  # a call into Dask costs a millisecond, however many tasks it carries
        for other in self._groups.values():
            if other.unassigned and (other is group or not group.eligible.keys().isdisjoint(other.eligible)):
                free -= other.unassigned
        return free

    def _pump_group(self, group: Group) -> None:
        if not group.eligible:
            return
        free = self._free(group)
        batch: list[Attempt] = []
        while free > 0 and group.heap:
            attempt = heapq.heappop(group.heap)[2]
            if attempt.state != run_.READY:
                continue
            if self._calls.held(attempt):
                self._uncount(attempt)  # the run keeps it and gives it back
                continue
            if batch and (attempt.priority != batch[0].priority or len(batch) >= BATCH):
                self._send(group, batch)
                batch = []
            batch.append(attempt)
            self._uncount(attempt)
            free -= 1
        if batch:
            self._send(group, batch)

    def _send(self, group: Group, batch: list[Attempt]) -> None:
        try:
            for home, part in self._at_home(group, batch).items():
                self._send_to(group, part, home)
        except Exception as error:
            log.exception("daskade: %d attempts could not be handed to Dask", len(batch))
            text = f"could not submit the step to Dask: {type(error).__name__}: {error}"[:2000]
            for attempt in [a for a in batch if a.flight is None or a.flight.future is None]:
                # Where it would wait for ever, it fails; whether it is tried again is the driver's to say.
                self.recall(attempt)
                self._scheduler.loop.add_callback(self._calls.broken, attempt, text)

    def _at_home(self, group: Group, batch: list[Attempt]) -> dict[str | None, list[Attempt]]:
        """The attempts of a batch by the worker that holds most of what they read, if it is free for them;
        None for those that Dask finds a worker for. Where slots are counted by resources it is never None:
        Dask looks at what a worker has of them, not at what is free, and would queue one GPU step behind
        another beside an idle GPU.
        """
        parts: dict[str | None, list[Attempt]] = {}
        taken = {address: self._load[address] for address in group.eligible}
        for attempt in batch:
            held = attempt.run.held(attempt)
            there = [(n, w) for w, n in held.items() if n >= HOLD_BYTES and w in group.eligible]
            home = max(there, default=(0, None))[1]
            if home is not None and taken[home] >= group.eligible[home]:
                home = None  # another one is sooner done with reading than this one is free
            if home is None and group.resources:
                home = min(taken, key=lambda address: taken[address] / group.eligible[address])
            if home is not None:
                taken[home] += 1
            parts.setdefault(home, []).append(attempt)
        return parts

    def _send_to(self, group: Group, batch: list[Attempt], home: str | None) -> None:
        graph: dict[str, Any] = {}
        function = self._function
        flights = list(self._flights(group, batch))
        if home is None:
            group.unassigned += len(batch)
        else:
            for attempt in batch:
                self._assign(attempt, home)
        for flight in flights:
            graph[flight.key] = (function, flight.message([self._calls.blob(a) for a in flight.attempts]))
            self.flying[flight.key] = flight
        with span.named():
            futures = self._client.get(
                graph,
                list(graph),
                sync=False,
                resources=group.resources or None,
                priority=batch[0].priority,
                workers=list(group.eligible) if home is None else [home],
                fifo_timeout="0s",
            )
        for flight, future in zip(flights, futures, strict=True):
            flight.future = future

    def _flights(self, group: Group, batch: list[Attempt]) -> Iterator[Flight]:
        """The attempts of a batch in tasks: neighbours of one step share one if they are short."""
        slots = sum(group.eligible.values())
        for (uid, s), same in itertools.groupby(batch, key=lambda a: (a.run.uid, a.step)):
            attempts = list(same)
            size = _pace(attempts[0]).bundle(len(attempts) + group.ready[uid, s], slots)
            for at in range(0, len(attempts), size):
                together = attempts[at : at + size]
                for attempt in together:
                    attempt.sends += 1
                    attempt.state = run_.SENT
                    attempt.worker = None
                    attempt.counted = _UNASSIGNED
                yield Flight(_key(together), together)

    def _tell_blocked(self, group: Group) -> None:
        if group.eligible:
            for run, s in list(group.blocked):
                del group.blocked[run, s]
                self._calls.unblocked(run, s)
            return
        for key in [k for k in group.blocked if not group.ready[k]]:
            del group.blocked[key]
            self._calls.unblocked(*key)
        if not group.ready:
            return
        reason, message = group.why_blocked(list(self._scheduler.workers.values()))
        for (run, s), count in group.ready.items():
            if count > 0 and group.blocked.get((run, s)) != (reason, count):
                group.blocked[run, s] = (reason, count)
                self._calls.blocked(run, s, count, reason, message)

    def _uncount(self, attempt: Attempt) -> None:
        if not attempt.queued:
            return
        attempt.queued = False
        ready = attempt.group.ready
        key = (attempt.run.uid, attempt.step)
        ready[key] -= 1
        if ready[key] <= 0:
            del ready[key]

    def demand(self) -> Iterator[tuple[str, str | None, dict[str, float], int]]:
        """What is ready or at Dask: run, worker group, resources, how many attempts."""
        attempts = itertools.chain.from_iterable(flight.attempts for flight in self.flying.values())
        found = Counter((a.group, a.run.uid) for a in attempts if a.state != run_.GONE)
        for group in self._groups.values():
            for (run, _), count in group.ready.items():
                found[group, run] += count
        for (group, run), count in found.items():
            yield run, group.group, group.resources, count

    def retell_blocked(self, run: str) -> None:
        """A new driver of ``run`` has not heard what is blocked."""
        self.forget(run)
        self.arm()

    def forget(self, run: str) -> None:
        """Drops what is remembered of a run that is gone."""
        for group in self._groups.values():
            for key in [k for k in group.blocked if k[0] == run]:
                del group.blocked[key]
        span.tidy(self._scheduler)

    # ------------------------------------------------------- what Dask says

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Called by Dask within its own transitions: looks, and changes nothing of Dask's state machine."""
        flight = self.flying.get(key)
        if flight is None:
            return
        if finish == "processing":
            task = self._scheduler.tasks.get(key)
            if task is not None:
                # A worker's death must end the task, not start it elsewhere.
                task.suspicious = _NEVER_AGAIN
                if task.processing_on is not None:
                    for attempt in flight.attempts:
                        if attempt.counted:
                            self._unload(attempt)
                            self._assign(attempt, task.processing_on.address)
        elif finish == "memory":
            open_ = [attempt for attempt in self._land(flight) if attempt.state != run_.GONE]
            if open_:
                future, flight.future = flight.future, None
                self._calls.unanswered(open_, future)
            else:
                self._release(flight)
        elif finish == "erred":
            died = killed(kwargs.get("exception"))
            attempts = self._land(flight)
            self._release(flight)
            for attempt in attempts:
                if attempt.state == run_.GONE:
                    continue
                if died or (start == "processing" and self._gone(attempt.worker)):
                    self._gone_worker(attempt)
                else:
                    self._scheduler.loop.add_callback(self._calls.broken, attempt, error_text(kwargs))
        elif finish == "forgotten" or finish == "no-worker":
            self._scheduler.loop.add_callback(self._dropped, flight)
        elif start == "processing" and any(self._gone(a.worker) for a in flight.attempts):
            # Moved off by a worker that left in good order: Dask would run it elsewhere.
            self._scheduler.loop.add_callback(self._dropped, flight)

    def _dropped(self, flight: Flight) -> None:
        if self.flying.get(flight.key) is not flight:
            return
        # Its worker takes nothing now, which Dask does not announce: it is not to be chosen once more.
        self._changed = True
        for attempt in list(flight.attempts):
            self.recall(attempt)
            if attempt.state != run_.GONE:
                self._gone_worker(attempt)

    def _gone_worker(self, attempt: Attempt) -> None:
        if attempt.state == run_.SENT and attempt.unlucky < UNLUCKY:
            attempt.unlucky += 1
            self._scheduler.loop.add_callback(self._again, attempt)
        else:
            self._scheduler.loop.add_callback(self._calls.lost, attempt, attempt.worker, "its worker is gone")

    def _again(self, attempt: Attempt) -> None:
        if attempt.state == run_.SENT and attempt.flight is None:
            self.ready(attempt, attempt.group.ahead)

    def _gone(self, worker: str | None) -> bool:
        return worker is not None and worker not in self._scheduler.workers

    def _land(self, flight: Flight) -> list[Attempt]:
        """The task has ended: gives the attempts that were in it."""
        self.flying.pop(flight.key, None)
        attempts = flight.disband()
        for attempt in attempts:
            self._unload(attempt)
        self.arm()
        return attempts

    def _release(self, flight: Flight) -> None:
        """Lets Dask forget the task, with all others of this turn of the loop. The sooner, the better: Dask
        would run a finished task again whose worker goes away before that.
        """
        future, flight.future = flight.future, None
        if future is None:
            return
        if not self._landed:
            self._scheduler.loop.add_callback(self._release_landed)
        self._landed.append(future)

    def _release_landed(self) -> None:
        landed, self._landed = self._landed, []
        told = self._release_keys([future.key for future in landed])
        for future in landed:
            if not (told and self._forget_future(future)):
                future.release()

    def _release_keys(self, keys: list[str]) -> bool:
        """Says to the scheduler, directly, what the client would say of released futures some milliseconds
        later.
        """
        try:
            self._scheduler.client_releases_keys(keys=keys, client=self._client.id)
            return True
        except Exception:  # the released futures say the same
            log.debug("daskade: direct release failed", exc_info=True)
            return False

    def _forget_future(self, future: Any) -> bool:
        """Drops a future from the client without a message; False if the client is built otherwise."""
        try:
            client, key = self._client, future.key
            if future._cleared or client.refcount[key] != 1:
                return False
            future._cleared = True
            del client.refcount[key]
            client.futures.pop(key, None)
            return True
        except (AttributeError, KeyError):
            return False

    def _assign(self, attempt: Attempt, worker: str) -> None:
        attempt.worker = worker
        attempt.counted = _ASSIGNED
        self._load[worker] += 1

    def _unload(self, attempt: Attempt) -> None:
        """Takes the attempt out of the count of what is in flight, once."""
        if attempt.counted == _UNASSIGNED:
            attempt.group.unassigned -= 1
        elif attempt.counted == _ASSIGNED and attempt.worker is not None:
            self._load[attempt.worker] -= 1
            if self._load[attempt.worker] <= 0:
                del self._load[attempt.worker]
        attempt.counted = _NOT


def _pace(attempt: Attempt) -> Pace:
    step = attempt.run.steps[attempt.step]
    pace: Pace | None = step.pace
    if pace is None:
        pace = step.pace = Pace()
    return pace


def _key(attempts: list[Attempt]) -> str:
    """A key that no other task has: of the first attempt, how many there are, how often it was sent."""
    first = attempts[0]
    key = f"{first.run.steps[first.step].function}-{first.run.short}-{first.step}-{first.item}-{first.number}"
    if again := first.run.again.get((first.step, first.item)):
        key = f"{key}-again-{again}"
    if len(attempts) > 1:
        key = f"{key}-and-{len(attempts) - 1}"
    return f"{key}-{first.sends}" if first.sends > 1 else key


def killed(exception: Any) -> bool:
    """Whether Dask ended the task because its worker went away (the exception travels pickled)."""
    if isinstance(exception, (bytes, bytearray)):
        return b"KilledWorker" in exception
    return "KilledWorker" in type(exception).__name__ or "KilledWorker" in repr(exception)[:200]


def error_text(details: dict[str, Any]) -> str:
    """What Dask says about a task that failed outside our function; bounded, and never unpickled."""
    text = details.get("exception_text")
    if not text:
        exception = details.get("exception")
        text = (
            repr(exception)[:1000] if isinstance(exception, BaseException) else "Dask could not run the task"
        )
    trace = str(details.get("traceback_text") or "")
    return f"{text[:2000]}\n{trace[-2000:]}".strip()
