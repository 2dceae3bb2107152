"""The step process: one attempt at a time, in its main thread, as asked over the socket pair.

It ends with its worker: its parent, the keeper, is told by the kernel when the thread that made it dies
(PR_SET_PDEATHSIG), and a watcher thread kills its whole session when the socket closes, whatever the step is doing
then.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any

from daskade_runtime import boot, channel, execute, keeper
from daskade_runtime.errors import cap, code_is_in, describe

LINE_CAP = 16384


def main(fd: int, parent: int) -> None:
    """Serves the worker at the other end of ``fd`` until that end closes."""
    libc = ctypes.CDLL(None, use_errno=True)
    keeper.keep(libc, parent, [fd])
    _prefer_as_victim()
    for each in (fd, *boot.package_files(boot.package_path())):
        os.set_inheritable(each, False)  # not for programs that the step runs
    sock = socket.socket(fileno=fd)
    threading.Thread(target=_watch, args=(fd,), name="daskade-watch", daemon=True).start()
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        # Typed as any text stream, but the one that the interpreter starts with can be reconfigured.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    Server(sock, libc).serve()


class Server:
    """State of the process: the definitions it was told, and the loop over requests."""

    def __init__(self, sock: socket.socket, libc: Any = None) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._fflush = libc.fflush if libc is not None else None
        self._definitions: dict[str, execute.Definition] = {}
        self._pid = os.getpid()
        root = logging.getLogger()
        root.addHandler(SocketHandler(self))
        root.setLevel(logging.INFO)

    def serve(self) -> None:
        while True:
            try:
                message = channel.receive(self._sock)
            except (EOFError, OSError):
                os._exit(0)
            kind = message[0]
            if kind == "run":
                self._run(message[1])
            elif kind == "define":
                if len(self._definitions) > 10000:
                    self._definitions.clear()
                self._definitions[message[1]] = execute.Definition(message[2])
            elif kind == "bind":
                bind(message[1])
            message = None

    def send(self, message: Any) -> None:
        data = channel.frame(message)
        with self._lock:
            self._sock.sendall(data)

    @property
    def forked(self) -> bool:
        """True in a process that the step forked: the socket is not its own."""
        return os.getpid() != self._pid

    def _run(self, request: dict[str, Any]) -> None:
        os.environ.update(request["env"])
        try:
            inputs = execute.Inputs.from_message(request)
            reply = [
                "ok",
                execute.run(self._definitions[request["def"]], request["v"], inputs, request["path"]),
            ]
        except BaseException as exc:  # noqa: BLE001 - sys.exit and KeyboardInterrupt are the step's failures too
            reply = ["failed", describe(exc)]
            exc.__traceback__ = None
        if self.forked:
            os._exit(0)  # the step forked and came back here; only the first process answers
        self._flush()
        try:
            self.send(reply)
        except (OSError, ValueError):
            os._exit(1)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the step closed or replaced it
                stream.flush()
        if self._fflush is not None:
            self._fflush(None)


class SocketHandler(logging.Handler):
    """Sends log records with their level and logger as structured lines."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = cap(self.format(record), LINE_CAP)
            if self._server.forked:
                sys.stderr.write(f"{record.levelname} {record.name}: {text}\n")
            else:
                self._server.send(["log", record.created, record.levelname, record.name, text])
        except Exception:  # noqa: BLE001
            self.handleError(record)


def bind(setup: dict[str, Any]) -> None:
    """Makes this process the one for a run's code and environment."""
    os.environ.update(setup.get("env") or {})
    for path in reversed(setup.get("path") or ()):
        sys.path.insert(0, path)
        code_is_in(path)
    if setup.get("scheduler"):
        from daskade_runtime import shim

        shim.install(setup["scheduler"], setup.get("security"))


def _prefer_as_victim() -> None:
    """If the kernel must kill for memory, it should take the step rather than the worker."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("900")
    except OSError:
        pass


def _watch(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, 0)  # only hang-up and errors
    while True:
        try:
            if poller.poll():
                break
        except OSError:
            time.sleep(0.1)
    os.killpg(os.getpid(), signal.SIGKILL)
