"""A step process as the worker sees it: asked for one attempt at a time, watched, killed when it must be."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
import time
from typing import Any, Protocol

from daskade_runtime import channel
from daskade_runtime.memory import descendants, tree_memory

# How often the memory of a running step is looked at; shorter steps are not looked at.
MEMORY_POLL = 0.2
# A pipe is drained at most this far in one go, lest one that is written without end keeps the answer waiting.
DRAIN_CAP = 1 << 20
_READ = 1 << 16

# Processes serve one kind only: a code digest with an environment and a set of devices.
Kind = tuple[Any, ...]


class Sink(Protocol):
    """Where the output of an attempt goes."""

    def feed(self, stream: str, data: bytes) -> None: ...

    def record(self, at: float, level: str, text: str) -> None: ...


class ProcessDied(Exception):
    """The step's process ended before it answered. ``code`` as in ``Popen.returncode``."""

    def __init__(self, code: int | None, peak: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code
        self.peak = peak


class Killed(Exception):
    """The worker ended the process: ``why`` is ``timeout``, ``oom``, ``stopped`` or ``closing``."""

    def __init__(self, why: str, used: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.used = used


class Stale(Exception):
    """The process ended while nothing ran in it: the request was not sent, another process can take it."""


class Child:
    """One step process, below its keeper, which is ``proc`` and ends as the step's process does. Only its holder may
    call ``exchange``; ``kill`` may come from any thread.
    """

    def __init__(self, proc: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.proc = proc
        self.pid = proc.pid
        self.kind: Kind | None = None
        self.defined: set[str] = set()
        self.last_used = time.monotonic()
        self.rss = 0
        self._sock = sock
        assert proc.stdout is not None and proc.stderr is not None
        self._pipes = {proc.stdout.fileno(): "stdout", proc.stderr.fileno(): "stderr"}
        self._poller = select.poll()
        # The socket comes first: the kernel looks at it before the pipes, so whenever it is ready, all that
        # the process wrote to the pipes before it answered shows in the same poll.
        self._poller.register(sock.fileno(), select.POLLIN)
        for fd in self._pipes:
            os.set_blocking(fd, False)
            self._poller.register(fd, select.POLLIN)
        # A process that the step forked may keep the socket open when the step's own process is long dead.
        self._pidfd = _pidfd(proc.pid)
        if self._pidfd is not None:
            self._poller.register(self._pidfd, select.POLLIN)
        self._killed: Killed | None = None
        self._lock = threading.Lock()
        self._gone = False
        self._reader = channel.Reader()

    def bind(self, kind: Kind, setup: dict[str, Any]) -> None:
        """Makes a blank process one of this kind."""
        self.kind = kind
        with contextlib.suppress(OSError):  # it is dead: the next exchange says so
            self._sock.sendall(channel.frame(["bind", setup]))

    def exchange(self, request: bytes, sink: Sink, timeout: float | None, memory: int | None) -> Any:
        """Sends the request, feeds output to ``sink`` until the answer is there, returns it.

        Raises ``Killed``, ``ProcessDied`` or ``Stale``; the process is of no use after any of them.
        """
        started = time.monotonic()
        deadline = None if timeout is None else started + timeout
        fd = self._sock.fileno()
        for ready, _ in self._poller.poll(0):  # what it wrote while nothing ran belongs to no attempt
            if ready == fd:
                self._idle_message()
            elif ready == self._pidfd:
                raise Stale
            else:
                self._drain(ready, None)
        self.rss = 0
        try:
            self._sock.sendall(request)
        except OSError:
            raise self._death(sink) from None
        wait = self._wait(deadline, memory)
        while True:
            ready_now = self._poller.poll(wait)
            for ready, _ in ready_now:
                if ready in self._pipes:
                    self._drain(ready, sink)
            if ready_now and ready_now[0][0] == fd:
                try:
                    data = self._sock.recv(1 << 18)
                except OSError:
                    data = b""
                if not data:
                    raise self._death(sink)
                for message in self._reader.feed(data):
                    if message[0] != "log":
                        self.last_used = time.monotonic()
                        return message
                    sink.record(message[1], f"{message[2]} {message[3]}", message[4])
            elif ready_now and ready_now[-1][0] == self._pidfd:
                raise self._death(sink)
            if wait is not None:
                self._check(started, deadline, memory)
                wait = self._wait(deadline, memory)

    def kill(self, why: str, used: int = 0) -> None:
        """Ends the process with all that it started. Idempotent; the first reason stays."""
        with self._lock:
            if self._killed is None:
                self._killed = Killed(why, used)
            if self._gone:
                return
            for pid in descendants(self.pid):
                _signal(pid, signal.SIGKILL)
            _signal(self.pid, signal.SIGTERM)  # ends what has been started meanwhile, and then itself

    def close(self) -> None:
        """Kills, reaps and releases everything. Call once, by the holder."""
        self.kill("closing")
        if self._reap(10.0) is None:  # a step has stopped its keeper, or it cannot be ended: that is the kernel's then
            _signal(self.pid, signal.SIGKILL)
            self._reap(1.0)
        with self._lock:
            self._gone = True
        self._sock.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        for pipe in (self.proc.stdout, self.proc.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def alive(self) -> bool:
        """False once it was killed. One that died by itself shows at its next request (``Stale``)."""
        return self._killed is None

    def _wait(self, deadline: float | None, memory: int | None) -> float | None:
        wait = None if memory is None else MEMORY_POLL
        if deadline is not None:
            left = max(deadline - time.monotonic(), 0)
            wait = left if wait is None else min(wait, left)
        return None if wait is None else wait * 1000 + 1

    def _check(self, started: float, deadline: float | None, memory: int | None) -> None:
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            self.kill("timeout")
        elif memory is not None and now - started >= MEMORY_POLL and now - self.last_used >= MEMORY_POLL:
            self.last_used = now
            used = tree_memory(self.pid)
            if used > memory:
                used = tree_memory(self.pid, exact=True)
            self.rss = max(self.rss, used)
            if used > memory:
                self.kill("oom", used)

    def _read_pipe(self, fd: int, sink: Sink | None) -> int:
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self._poller.unregister(fd)  # the step closed it
            del self._pipes[fd]
        elif sink is not None:
            sink.feed(self._pipes[fd], data)
        return len(data)

    def _drain(self, fd: int, sink: Sink | None) -> None:
        """Reads what lies in a pipe."""
        read = got = _READ
        while got == _READ and read <= DRAIN_CAP and fd in self._pipes:
            got = self._read_pipe(fd, sink)
            read += got

    def _idle_message(self) -> None:
        """What the socket holds before a request: late log lines of an earlier step, or its end."""
        try:
            data = self._sock.recv(1 << 18, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise Stale
        self._reader.feed(data)

    def _reap(self, seconds: float) -> int | None:
        """The exit code, None if it lives on.

        From then on nobody signals the pid: it may belong to another process.
        """
        end = time.monotonic() + seconds
        while not self._exited():
            if time.monotonic() > end:
                return None
            time.sleep(0.002)
        with self._lock:
            self._gone = True
            return self.proc.wait()

    def _exited(self) -> bool:
        with self._lock:
            if self._gone:
                return True
            with contextlib.suppress(ChildProcessError):
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            return True

    def _death(self, sink: Sink) -> Exception:
        code = self._reap(1.0)
        if code is None:  # it closed the socket and lives on
            self.kill("closing")
        for fd in list(self._pipes):
            self._drain(fd, sink)
        if self._killed is not None and code is not None:
            return self._killed
        return ProcessDied(code, self.rss)


def describe_exit(code: int | None) -> str:
    """What an exit code means, in words."""
    if code is None:
        return "the step's process closed its connection to the worker"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "?"
        return f"the step's process died by signal {-code} ({name})"
    return f"the step's process exited with code {code} before the step was done"


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):  # a kernel or sandbox without it: the end of the socket must do
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
