"""`python -m MODULE` as a fork of a process that has imported Dask already, since most of what a start costs is that import.

The fork goes through all of the rest: its module, settings, session, files, and the end with its parent.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from support import TOP

# What is imported ahead: for processes without the runtime, and for those of the runtime, whose settings come before their
# imports, since some are read by those.
PLAIN = "import distributed.cli.dask_scheduler, distributed.cli.dask_worker"
RUNTIME = """
from daskade_runtime import local
local.apply(local.SETTINGS)
import distributed, daskade_runtime.install, daskade_runtime.scheduler, daskade_runtime.worker
"""
PDEATHSIG = 1
START = "import sys; sys.path.append({!r}); from support.dask.forks import main; main()"


class Fork:
    """A started process, with what tests use of `subprocess.Popen`. What it writes goes to a log, or to ``stdout`` if that is
    ``read``.
    """

    def __init__(
        self, ahead: str, words: list[str], env: Mapping[str, str], log: Path, cwd: Path, read: bool = False
    ) -> None:
        # What Dask and Python read at their start; the rest of the environment is the fork's own.
        early = tuple(sorted((name, value) for name, value in env.items() if name.startswith(("DASK", "PYTHON"))))
        control = _server(ahead, early)
        stdin, mine_in = os.pipe()
        mine_out, stdout = os.pipe()
        self._status, status = os.pipe()
        stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        theirs = [stdin, stdout if read else stderr, stderr, status]
        socket.send_fds(control, [json.dumps([words, dict(env), str(cwd)]).encode()], theirs)
        for end in {*theirs, stdout}:
            os.close(end)
        self.stdin: IO[bytes] = os.fdopen(mine_in, "wb")
        self.stdout: IO[bytes] = os.fdopen(mine_out, "rb")
        self.pid = int(control.recv(64))
        self._code: int | None = None

    def wait(self, timeout: float) -> int:
        """The exit code, negative for a signal."""
        if self._code is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self._code = int(os.read(self._status, 64))
            os.close(self._status)
        return self._code

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        # Its end may be known to the kernel and not yet told here.
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _server(ahead: str, early: tuple[tuple[str, str], ...]) -> socket.socket:
    """The process whose forks have these variables from the start. It ends with this one, and its forks with it."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, "-W", "ignore", "-c", START.format(str(TOP / "tests")), str(theirs.fileno()), ahead]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DASK", "PYTHON"))}
    process = subprocess.Popen(words, env={**environ, **dict(early)}, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    atexit.register(process.wait)
    atexit.register(mine.close)
    return mine


def main() -> None:
    """Arguments: the socket over which words come, and what to import ahead."""
    sys.path.remove(str(TOP / "tests"))
    exec(sys.argv[2])
    gc.collect()
    gc.freeze()
    words, env, cwd = json.loads(_serve(socket.socket(fileno=int(sys.argv[1]))))
    # From here on this is a fork.
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[0] = cwd
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _serve(control: socket.socket) -> bytes:
    """Forks for each message. Returns in the forks only, with the message."""
    statuses: dict[int, int] = {}
    libc = ctypes.CDLL(None)
    # Where a fork has ended can be waited for together with messages.
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            for pid in list(statuses):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    # Nobody reads it any more if the test has ended.
                    with contextlib.suppress(BrokenPipeError):
                        os.write(statuses[pid], str(os.waitstatus_to_exitcode(status)).encode())
                    os.close(statuses.pop(pid))
        if control.fileno() not in ready:
            continue
        message, fds, _, _ = socket.recv_fds(control, 1 << 18, 4)
        if not message:
            sys.exit()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            # Ends with this process, as this one ends with the tests.
            libc.prctl(PDEATHSIG, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            for number, fd in enumerate(fds[:3]):
                os.dup2(fd, number)
            for fd in (woken, wake, *statuses.values(), *fds):
                os.close(fd)
            return message
        statuses[pid] = fds[3]
        for fd in fds[:3]:
            os.close(fd)
        control.send(str(pid).encode())
