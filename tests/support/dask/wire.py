"""A raw-socket client of a Dask scheduler: sockets and msgpack, no dask."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack


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
            data: bytes | None = self.file.read(n)
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
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        for end in (self.file.close, self.sock.close):
            with contextlib.suppress(OSError):
                end()


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
                    # A stream that has ended takes none, and its last message may still be unread.
                    with contextlib.suppress(Closed, OSError):
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
                        f"timed out (ended={self.ended}, refused={self.refused}): {kinds}"
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
