"""Answers the probes of Kubernetes for a scheduler or a worker, from a small process of its own.

The event loop leaves a mark in shared memory every second, and the other process compares it with the clock. So
a frozen process is noticed, and one whose task keeps Python's interpreter for minutes is not taken for it.

    GET /started   waits a while for the server to be ready, so that an ordinary start fails no probe
    GET /ready     200 while the server answers others
    GET /live      200 unless it has been frozen for longer than ``FROZEN``
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import selectors
import signal
import socket
import struct
import time
import traceback

MARK_EVERY = 1.0
# Not ready after so long without a mark, and frozen after so long.
SILENT = 15.0
FROZEN = 60.0
# How long /started waits. The probe's own timeout is longer.
HOLD = 20.0
# What clients may make the process keep.
CONNECTIONS = 64
REQUEST_BYTES = 4096
REQUEST_WAIT = 5.0

# When the loop last left a mark (monotonic, the same for all processes), whether the server is ready, and how
# many tasks run in it.
_STATE = struct.Struct("=d?I")
_OK, _NOT = b"200 OK", b"503 Service Unavailable"


class Health:
    """The server's side: what it leaves for the process that answers."""

    def __init__(self, host: str, port: int, silent: float = SILENT, frozen: float = FROZEN, hold: float = HOLD) -> None:
        """Starts the other process. Call it before there are threads."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        self.port = listener.getsockname()[1]
        self._memory = mmap.mmap(-1, _STATE.size)
        self._ready = False
        self._running: set[str] = set()
        self._mark()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                _Answers(listener, self._memory, parent, silent, frozen, hold).serve()
            except BaseException:  # noqa: BLE001 - whatever it is, it ends here and not in the server's code
                traceback.print_exc()
            finally:
                os._exit(0)
        listener.close()

    def ready(self) -> None:
        """The server answers from now on. Needs its running loop, which leaves the marks."""
        self._ready = True
        self._marks = asyncio.ensure_future(self._keep_marking())

    def task(self, key: str, state: str) -> None:
        """Dask moved a task of this worker to a state."""
        # The thread of a task that is cancelled runs on.
        if state in ("executing", "long-running", "cancelled", "resumed"):
            self._running.add(key)
        else:
            self._running.discard(key)
        self._mark()

    async def _keep_marking(self) -> None:
        while True:
            self._mark()
            await asyncio.sleep(MARK_EVERY)

    def _mark(self) -> None:
        self._memory[:] = _STATE.pack(time.monotonic(), self._ready, len(self._running))


class _Client:
    """A connection."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.request = b""

    def path(self) -> str | None:
        """The path of the request, once it is there."""
        line, end, _ = self.request.partition(b"\r\n")
        words = line.split()
        if not end or len(words) != 3:
            return "" if len(self.request) >= REQUEST_BYTES or end else None
        return words[1].decode("ascii", "replace")


class _Answers:
    """The process that answers."""

    def __init__(
        self, listener: socket.socket, memory: mmap.mmap, parent: int, silent: float, frozen: float, hold: float
    ) -> None:
        self._listener, self._memory, self._parent = listener, memory, parent
        self._silent, self._frozen, self._hold = silent, frozen, hold
        self._clients: dict[socket.socket, _Client] = {}
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Until the server's process is gone."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        while os.getppid() == self._parent:
            for key, _ in self._selector.select(0.05 if self._clients else 1.0):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._read(key.fileobj)
            for connection, client in list(self._clients.items()):
                self._answer(connection, client)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if len(self._clients) >= CONNECTIONS:
                connection.close()
                return
            connection.setblocking(False)
            self._clients[connection] = _Client()
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        client = self._clients[connection]
        try:
            data = connection.recv(REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.request += data
        if not data or len(client.request) > 2 * REQUEST_BYTES:
            self._drop(connection)

    def _answer(self, connection: socket.socket, client: _Client) -> None:
        path, waited = client.path(), time.monotonic() - client.since
        if path is None:
            if waited > REQUEST_WAIT:
                self._drop(connection)
            return
        status, why = self._judge(path)
        if status == _NOT and path == "/started" and waited < self._hold:
            return
        body = f"{why}\n".encode()
        head = b"HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        with contextlib.suppress(OSError):
            connection.send(head % (status, len(body)) + body)
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._clients[connection]
        connection.close()

    def _judge(self, path: str) -> tuple[bytes, str]:
        mark, ready, running = _STATE.unpack(self._memory[:])
        silent = time.monotonic() - mark
        if path == "/started":
            return (_OK, "started") if ready else (_NOT, "not ready yet")
        if path not in ("/ready", "/live"):
            return b"404 Not Found", "paths: /started, /ready, /live"
        if running and not self._stopped():
            return _OK, f"{running} tasks run in this process"
        limit = self._silent if path == "/ready" else self._frozen
        if path == "/ready" and not ready:
            return _NOT, "not ready yet"
        return (_OK, "ok") if silent <= limit else (_NOT, f"the event loop has not run for {silent:.0f} s")

    def _stopped(self) -> bool:
        """Whether the server's process is stopped, by a signal say, rather than busy."""
        try:
            with open(f"/proc/{self._parent}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
        except OSError:
            return False


# Of this process; none outside pods.
_current: Health | None = None


def start(host: str, port: int) -> None:
    """Answers probes of this process on a port. Call it before there are threads."""
    global _current
    _current = Health(host, port)


def ready() -> None:
    """The server of this process answers from now on."""
    if _current is not None:
        _current.ready()


def task(key: str, state: str) -> None:
    """Dask moved a task of this worker to a state."""
    if _current is not None:
        _current.task(key, state)
