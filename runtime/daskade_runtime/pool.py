"""The step processes of a worker: spawned, kept warm, given out one at a time.

A process serves one kind of step only. Processes of no kind yet are kept ready, so that the first step
of a run does not wait for an interpreter to start.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from daskade_runtime import boot
from daskade_runtime.errors import StepFailure
from daskade_runtime.process import Child, Kind

_SPAWN_DEADLINE = 60.0
# What the loader and the interpreter read when they start.
_EARLY = ("LD_", "PYTHON", "MALLOC_", "GLIBC_")


class Pool:
    """All step processes of one worker, at most ``limit`` of them (more only while more steps really run)."""

    def __init__(self, limit: int, package: str, directory: str) -> None:
        self._limit = max(limit, 1)
        self._package = package
        self._directory = directory
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._all: set[Child] = set()
        self._closed = False
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # The kernel ties a child's life to the *thread* that made it: that must be one that lives as long as
        # the pool.
        threading.Thread(target=self._spawner, name="daskade-spawner", daemon=True).start()

    def prestart(self, count: int) -> None:
        """Starts processes of no kind in the background."""
        for _ in range(count):
            self._work.put(self._spawn_idle)

    def acquire(self, kind: Kind, setup: Callable[[], dict[str, Any]], env: dict[str, str]) -> Child:
        """A process of this kind: an idle one, or a new or blank one that is bound to it."""
        # What the loader and the interpreter read at start cannot be set later: such a kind gets no blank
        # process.
        early = any(name.startswith(_EARLY) for name in env)
        child = self._pick(kind, blank_will_do=not early)
        if child is None:
            future: Future[Child] = Future()
            self._work.put(lambda: self._spawn(env, early, future))
            try:
                child = future.result(_SPAWN_DEADLINE)
            except (OSError, TimeoutError, FutureTimeout) as exc:
                future.add_done_callback(self._release_late)
                message = f"the step's process could not be started: {str(exc) or 'it took too long'}"
                raise StepFailure("infra", "SpawnFailed", message) from exc
        if child.kind is None:
            child.bind(kind, setup())
        return child

    def release(self, child: Child, reusable: bool) -> None:
        """Gives a process back. One that is not reusable is ended, and a blank one started in its place."""
        if reusable and child.alive:
            with self._lock:
                if not self._closed:
                    self._idle.append(child)
                    return
        with self._lock:
            self._all.discard(child)
        child.close()
        if not self._closed:
            self.prestart(1)

    def close(self) -> None:
        """Kills everything at once. Attempts that run end with ``Killed``."""
        with self._lock:
            self._closed = True
            children, idle = list(self._all), self._idle
            self._idle = []
        for child in children:
            child.kill("closing")
        for child in idle:
            child.close()
        self._work.put(None)

    def interrupt(self) -> None:
        """Kills all processes at once; the pool goes on with new ones."""
        with self._lock:
            children = list(self._all)
        for child in children:
            child.kill("closing")

    def drop(self, match: Callable[[Kind], bool]) -> None:
        """Ends idle processes of the kinds that match."""
        with self._lock:
            gone = [c for c in self._idle if c.kind is not None and match(c.kind)]
            self._idle = [c for c in self._idle if c not in gone]
            self._all.difference_update(gone)
        for child in gone:
            child.close()
        self.prestart(len(gone))

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [child.pid for child in self._all]

    def _pick(self, kind: Kind, blank_will_do: bool) -> Child | None:
        dead: list[Child] = []
        found = blank = None
        with self._lock:
            if self._closed:
                raise StepFailure("infra", "WorkerClosing", "the worker is closing")
            for child in reversed(self._idle):
                if not child.alive:
                    dead.append(child)
                elif child.kind == kind:
                    found = child
                    break
                elif child.kind is None and blank is None and blank_will_do:
                    blank = child
            found = found or blank
            if found is not None:
                self._idle.remove(found)
            elif len(self._all) >= self._limit and self._idle:
                dead.append(
                    min(
                        (c for c in self._idle if c not in dead),
                        key=lambda c: c.last_used,
                        default=self._idle[0],
                    )
                )
            dead = [child for child in dict.fromkeys(dead) if child in self._idle]
            for child in dead:
                self._idle.remove(child)
                self._all.discard(child)
        for child in dead:
            child.close()
        return found

    def _release_late(self, future: Future[Child]) -> None:
        """A process that nobody waits for any more."""
        if future.exception() is None:
            self.release(future.result(), True)

    def _spawner(self) -> None:
        while True:
            job = self._work.get()
            if job is None:
                return
            job()

    def _spawn_idle(self) -> None:
        with self._lock:
            if self._closed or len(self._all) >= self._limit:
                return
        try:
            child = self._start({})
        except OSError:
            return  # the step that needs one will report it
        with self._lock:
            if not self._closed and len(self._all) < self._limit:
                self._all.add(child)
                self._idle.insert(0, child)
                return
        child.close()

    def _spawn(self, env: dict[str, str], early: bool, future: Future[Child]) -> None:
        with self._lock:  # a blank one may have come while this job waited
            blank = next((c for c in self._idle if c.kind is None), None) if not early else None
            if blank is not None:
                self._idle.remove(blank)
        if blank is not None:
            future.set_result(blank)
            return
        try:
            child = self._start(env)
        except BaseException as exc:  # noqa: BLE001 - handed to the waiting thread
            future.set_exception(exc)
            return
        with self._lock:
            self._all.add(child)
            closed = self._closed
        if closed:
            child.kill("closing")
        future.set_result(child)

    def _start(self, env: dict[str, str]) -> Child:
        ours, theirs = socket.socketpair()
        try:
            code = (
                f"import sys; sys.path.insert(0, {self._package!r}); "
                "import daskade_runtime.child as child, daskade_runtime.shim; "
                f"sys.path.remove({self._package!r}); sys.argv = ['']; "
                f"child.main({theirs.fileno()}, {os.getpid()})"
            )
            proc = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=[theirs.fileno(), *boot.package_files(self._package)],
                start_new_session=True,
                env={**os.environ, **env},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Child(proc, ours)
