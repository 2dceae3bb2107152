"""A raw-socket client of a Dask scheduler for tests: sockets and msgpack, no dask. Also starts schedulers and
workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

RUNTIME = str(Path(__file__).resolve().parent.parent)


class Closed(ConnectionError):
    """The other side ended the connection."""


class RpcError(Exception):
    """The reply is an error; ``reason`` as on the wire."""

    def __init__(self, reply: dict[str, Any]) -> None:
        super().__init__(str(reply)[:2000])
        self.reply = reply
        self.reason = reply.get("reason")


class Conn:
    """One connection after the handshake."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None, timeout: float = 30.0) -> None:
        host, _, port = address.rpartition("://")[2].rpartition(":")
        self.sock = socket.create_connection((host.strip("[]"), int(port)), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.startswith("tls"):
            assert tls is not None
            self.sock = tls.wrap_socket(self.sock)
        self.file = self.sock.makefile("rb", buffering=1 << 18)
        self.lock = threading.Lock()
        self.send({"compression": None, "python": [3, 11, 0], "pickle-protocol": 5})
        self.receive()

    def send(self, message: Any) -> None:
        body = msgpack.packb(message, use_bin_type=True)
        head = struct.pack("<QQ", 1, len(body))
        with self.lock:
            self.sock.sendall(struct.pack("<Q", len(head) + len(body)) + head + body)

    def _read(self, n: int) -> bytes:
        try:
            data = self.file.read(n)
        except OSError as error:
            raise Closed(str(error)) from error
        if data is None or len(data) != n:
            raise Closed("end of stream")
        return data

    def receive(self) -> Any:
        (first,) = struct.unpack("<Q", self._read(8))
        block = self._read(first)
        (n,) = struct.unpack_from("<Q", block)
        lengths = struct.unpack_from(f"<{n}Q", block, 8)
        at, frames = 8 * (n + 1), []
        for length in lengths:
            if at + length <= first and not (at == first and length):
                frames.append(block[at : at + length])
                at += length
            else:
                frames.append(self._read(length))
        if not frames or not frames[0]:
            return None
        message = msgpack.unpackb(frames[0], raw=False, strict_map_key=False)
        if (
            isinstance(message, dict)
            and isinstance(message.get("result"), dict)
            and "__Serialized__" in message["result"]
        ):
            message["frames"] = frames[message["result"]["__Serialized__"] :]
        return message

    def call(self, op: str, **arguments: Any) -> Any:
        self.send({"op": op, "reply": True, **arguments})
        return self.receive()

    def rpc(self, op: str, **arguments: Any) -> Any:
        """As ``call``; raises on an error reply."""
        reply = self.call(op, **arguments)
        if not isinstance(reply, dict) or reply.get("status") != "OK":
            raise RpcError(reply if isinstance(reply, dict) else {"reply": reply})
        return reply

    def close(self) -> None:
        for step in (lambda: self.sock.shutdown(socket.SHUT_RDWR), self.file.close, self.sock.close):
            with contextlib.suppress(OSError):
                step()


class Follower:
    """Follows a run's events in a thread."""

    def __init__(
        self, address: str, run: str, epoch: int, since: int | None = 0, ack: bool = True, **options: Any
    ) -> None:
        tls = options.pop("tls", None)
        self.conn = Conn(address, tls)
        self.conn.sock.settimeout(None)
        self.ack = ack
        self.events: list[dict[str, Any]] = []
        self.refused: dict[str, Any] | None = None
        self.ended = False
        self.beats = 0
        self.at = since or 0
        self.relative = since is None
        self.changed = threading.Condition()
        defaults = {"instance": None, "window": 10_000, "beat": 5.0, "logs": False}
        self.conn.send(
            {
                "op": "daskade-events",
                "reply": False,
                "run": run,
                "epoch": epoch,
                "since": since,
                **defaults,
                **options,
            }
        )
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        try:
            while True:
                message = self.conn.receive()
                with self.changed:
                    if message.get("status") == "error":
                        self.refused = message
                        break
                    if self.relative and not self.beats:
                        self.at = message["seq"]
                    self.beats += 1
                    for event in message["events"]:
                        if "n" in event:
                            assert event["n"] == self.at + 1, (event, self.at)
                            self.at = event["n"]
                        self.events.append(event)
                    self.changed.notify_all()
                if self.ack and message["events"]:
                    self.conn.send({"ack": self.at})
        except (Closed, OSError, ValueError):
            pass
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def wait(self, condition: Callable[[list[dict[str, Any]]], Any], timeout: float = 30.0) -> Any:
        """What ``condition(events)`` gives once it is true."""
        end = time.monotonic() + timeout
        with self.changed:
            while True:
                found = condition(self.events)
                if found:
                    return found
                left = end - time.monotonic()
                if left <= 0 or (self.ended and not condition(self.events)):
                    kinds = [
                        {k: v for k, v in e.items() if k not in ("traceback",)} for e in self.events[-8:]
                    ]
                    raise AssertionError(
                        f"waited in vain (ended={self.ended}, refused={self.refused}): {kinds}"
                    )
                self.changed.wait(left)

    def of(self, kind: str) -> list[dict[str, Any]]:
        with self.changed:
            return [e for e in self.events if e["k"] == kind]

    def wait_for(
        self, kind: str, count: int = 1, timeout: float = 30.0, **fields: Any
    ) -> list[dict[str, Any]]:
        def matching(events: list[dict[str, Any]]) -> Any:
            found = [e for e in events if e["k"] == kind and all(e.get(k) == v for k, v in fields.items())]
            return found if len(found) >= count else None

        found: list[dict[str, Any]] = self.wait(matching, timeout)
        return found

    def close(self) -> None:
        self.conn.close()


# ------------------------------------------------------------------------------------ processes


class Process:
    """One local Dask process."""

    def __init__(self, *args: str, env: dict[str, str] | None = None, log: Path | None = None) -> None:
        full = {**os.environ, "PYTHONPATH": RUNTIME + os.pathsep + str(Path(__file__).parent), **(env or {})}
        self.log = log
        err = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "daskade_runtime.local", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            env=full,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._lines.put(line.decode(errors="replace"))
        self._lines.put("")

    def ready(self, timeout: float = 60.0) -> dict[str, Any]:
        line = self._lines.get(timeout=timeout)
        if not line.startswith("{"):
            tail = self.log.read_text()[-3000:] if self.log else ""
            raise AssertionError(f"process did not start: {line!r} {tail}")
        found: dict[str, Any] = json.loads(line)
        return found

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(20)


class Cluster:
    """A scheduler with the runtime, and workers."""

    def __init__(self, directory: Path, env: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.env = env
        self.workers: dict[str, Process] = {}
        self.start_scheduler()

    def start_scheduler(self, port: int = 0) -> None:
        self.scheduler = Process(
            "scheduler", "--port", str(port), env=self.env, log=self.directory / "scheduler.log"
        )
        self.address: str = self.scheduler.ready()["address"]

    def add_worker(self, name: str, threads: int = 1, resources: str = "", wait: bool = True) -> Process:
        args = ["--name", name, "--nthreads", str(threads), "--local-directory", str(self.directory / "dask")]
        args += ["--resources", resources] if resources else []
        process = self.workers[name] = Process(
            "worker", self.address, *args, env=self.env, log=self.directory / f"{name}.log"
        )
        if wait:
            process.ready()
        return process

    def connect(self) -> Conn:
        return Conn(self.address)

    def stop(self) -> None:
        for process in [*self.workers.values(), self.scheduler]:
            process.kill()

    def logs(self) -> str:
        return "".join(
            f"== {p.name}\n{p.read_text(errors='replace')}" for p in sorted(self.directory.glob("*.log"))
        )


@contextlib.contextmanager
def cluster(
    directory: Path, workers: int = 2, threads: int = 1, env: dict[str, str] | None = None
) -> Iterator[Cluster]:
    """A scheduler and ``workers`` workers ``cpu-<n>-0``."""
    made = Cluster(directory, env)
    try:
        names = [f"cpu-{n}-0" for n in range(workers)]
        for name in names:
            made.add_worker(name, threads, wait=False)
        for name in names:
            made.workers[name].ready()
        yield made
    finally:
        made.stop()


# ------------------------------------------------------------------------------------ runs


def ref(*fields: Any) -> msgpack.ExtType:
    """A reference in an argument template."""
    return msgpack.ExtType(1, msgpack.packb(list(fields)))


def args(*positional: Any, **keywords: Any) -> bytes:
    """An argument template."""
    return msgpack.packb([list(positional), keywords], use_bin_type=True)


def values(*items: Any) -> bytes:
    """The per-item values of a mapped step's item."""
    return msgpack.packb(list(items), use_bin_type=True)


def step(name: str, call: str | None = None, args: bytes = args(), **fields: Any) -> dict[str, Any]:
    """A step definition with defaults."""
    return {
        **{
            "name": name,
            "call": call,
            "script": None,
            "args": args,
            "serializer": "pickle",
            "container": False,
        },
        **{"lens": [], "result": 0, "resources": {}, "group": None, "gpu_ok": False, "isolation": "process"},
        **{"timeout": None, "env": {}},
        **fields,
    }


class Run:
    """A run on a cluster, driven by a test."""

    def __init__(
        self, address: str, storage: str, steps: list[dict[str, Any]], uid: str | None = None, **fields: Any
    ) -> None:
        self.address = address
        self.uid = uid or str(uuid.uuid4())
        spec = b'{"test": true}'
        code = fields.pop("code", None)
        self.tls = fields.pop("tls", None)
        self.request = {
            **{
                "run": self.uid,
                "name": "test",
                "spec": spec,
                "spec_digest": hashlib.sha256(spec).hexdigest(),
            },
            **{"storage": {"url": storage}, "code": code or {"digest": None, "zip": None}},
            **{
                "steps": steps,
                "settings": {
                    "inline_max": 65536,
                    "cache_bytes": 1 << 28,
                    "log_cap": 1 << 20,
                    "tasks_per_slot": 2,
                },
            },
            **fields,
        }
        self.conn = Conn(address, self.tls)
        self.epoch = 0
        self.cursor = 0
        self.snapshot: dict[str, Any] = {}

    def open(self, create: bool = True, epoch: int | None = None, **more: Any) -> Run:
        reply = self.conn.rpc("daskade-open", create=create, epoch=epoch, **self.request, **more)
        self.epoch, self.cursor, self.snapshot = reply["epoch"], reply["cursor"], reply["snapshot"]
        return self

    def follow(self, **options: Any) -> Follower:
        options = {"since": self.cursor, **options}
        return Follower(self.address, self.uid, self.epoch, **options)

    def rpc(self, op: str, **arguments: Any) -> Any:
        return self.conn.rpc(f"daskade-{op}", run=self.uid, epoch=self.epoch, **arguments)

    def submit(self, *items: Any) -> None:
        """Items ``(step, item, attempt=1, values=None, data=[], after=[], priority=0)`` as maps or short
        tuples.
        """
        full = []
        for item in items:
            m = (
                item
                if isinstance(item, dict)
                else dict(zip(("s", "i", "v", "data", "after", "a", "p"), item, strict=False))
            )
            full.append(
                [
                    m["s"],
                    m.get("i", -1),
                    m.get("a", 1),
                    m.get("p", 0),
                    m.get("v"),
                    m.get("data", []),
                    m.get("after", []),
                ]
            )
        self.rpc("submit", items=full)

    def close(self, state: str = "Succeeded") -> None:
        self.rpc("close", final={"state": state, "reason": "", "message": "", "results": {}})
