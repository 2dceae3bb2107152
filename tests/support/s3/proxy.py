"""A proxy in front of an S3 server that logs every request and injects faults. Started by `S3Server`, as a process.

Faults: ``{"action", "method"?, "match"? (part of path and query), "count"? (default: until cleared)}`` with
action ``503`` (any status code: answered without asking the server; ``code`` names the S3 error) ·
``drop-request`` (connection closed before the server sees anything) · ``drop-reply`` (the server does it, the
client never hears) · ``truncate`` (half of the answer's body) · ``delay`` (``seconds`` before the request
goes on) · ``flip`` (one bit of the answer's body).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from support.processes import kill

HEAD_LIMIT = 64 << 10


class Proxy:
    """A thread per connection; bodies are streamed, never held whole."""

    def __init__(self, target: int, access_log: str) -> None:
        self.target = target
        self.log = os.open(access_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.faults: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        backend: _Stream | None = None
        front = _Stream(client)
        try:
            while True:
                head = front.head()
                if head is None:
                    return
                backend, again = self.exchange(front, head, backend)
                if not again:
                    return
        except (OSError, ValueError):
            pass
        finally:
            front.close()
            if backend is not None:
                backend.close()

    def exchange(self, front: _Stream, head: _Head, backend: _Stream | None) -> tuple[_Stream | None, bool]:
        started, clock = time.time(), time.monotonic()
        method, target = head.line.split(" ")[:2]
        if target.startswith("/__control/"):
            self.control(front, head, target)
            return backend, True
        path, _, query = target.partition("?")
        sent = int(head.headers.get("content-length", 0))
        fault = self.fault_for(method, target)
        action = fault["action"] if fault else None
        status, received, again = 0, 0, False
        try:
            if action == "drop-request":
                return backend, False
            if action == "delay":
                time.sleep(float(fault["seconds"]))  # type: ignore[index]
            if head.headers.get("expect", "").lower() == "100-continue":
                front.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            if action is not None and action.isdigit():
                status = int(action)
                front.copy_body(head, None)
                front.send(_error(status, str(fault.get("code", "ServiceUnavailable"))))  # type: ignore[union-attr]
                return backend, True
            fresh = backend is None
            if backend is None:
                backend = _Stream(socket.create_connection(("127.0.0.1", self.target), timeout=10))
                backend.socket.settimeout(300)
            try:
                backend.send(head.raw(without="expect"))
            except OSError:
                if fresh:
                    raise
                backend.close()
                backend = _Stream(socket.create_connection(("127.0.0.1", self.target), timeout=10))
                backend.send(head.raw(without="expect"))
            front.copy_body(head, backend)
            answer = backend.head()
            if answer is None:
                return backend, False
            status = int(answer.line.split(" ")[1])
            if action == "drop-reply":
                backend.copy_body(answer, None, bodyless=method == "HEAD")
                return backend, False
            front.send(answer.raw())
            spoil = action if action in ("truncate", "flip") else None
            received = backend.copy_body(answer, front, bodyless=method == "HEAD", spoil=spoil)
            keep = (
                "close"
                not in (head.headers.get("connection", "") + answer.headers.get("connection", "")).lower()
            )
            again = keep and spoil != "truncate" and answer.framed(method == "HEAD")
            return backend, again
        finally:
            self.write(
                {
                    "t": round(started, 6),
                    "method": method,
                    "key": unquote(path).lstrip("/"),
                    "status": status,
                    "query": query,
                    "in": sent,
                    "out": received,
                    "ms": round((time.monotonic() - clock) * 1000, 3),
                    **({"fault": action} if action else {}),
                }
            )

    def fault_for(self, method: str, target: str) -> dict[str, Any] | None:
        with self.lock:
            for rule in self.faults:
                if rule.get("method", method) == method and rule.get("match", "") in unquote(target):
                    if "count" in rule:
                        rule["count"] -= 1
                        if rule["count"] <= 0:
                            self.faults.remove(rule)
                    return dict(rule)
        return None

    def control(self, front: _Stream, head: _Head, target: str) -> None:
        body = json.loads(front.read(int(head.headers.get("content-length", 0))) or b"{}")
        status, text = "200 OK", "ok"
        with self.lock:
            if target == "/__control/clear":
                self.faults.clear()
            elif str(body.get("action", "")).isdigit() or body.get("action") in _ACTIONS:
                self.faults.append({**body, "action": str(body["action"])})
            else:
                status, text = "400 Bad Request", f"unknown action, known are {_ACTIONS} and status codes"
        front.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())

    def write(self, entry: dict[str, Any]) -> None:
        os.write(self.log, (json.dumps(entry) + "\n").encode())


_ACTIONS = ["drop-request", "drop-reply", "truncate", "delay", "flip"]


def _error(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    reason = http.client.responses.get(status, "Error")
    return f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class _Head:
    """First line and headers of a message."""

    def __init__(self, text: bytes) -> None:
        lines = text.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.lines = [line for line in lines[1:] if line]
        self.headers = {
            name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in self.lines)
        }

    def raw(self, without: str = "") -> bytes:
        lines = [line for line in self.lines if line.partition(":")[0].strip().lower() != without]
        return "\r\n".join([self.line, *lines, "", ""]).encode("latin-1")

    def framed(self, bodyless: bool) -> bool:
        """Whether the end of the message is known without closing the connection."""
        status = self.line.split(" ")[1]
        return bodyless or status in ("204", "304") or "content-length" in self.headers or self.chunked()

    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()


class _Stream:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.rest = b""

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> _Head | None:
        while True:
            while b"\r\n\r\n" not in self.rest:
                data = self.socket.recv(65536)
                if not data or len(self.rest) > HEAD_LIMIT:
                    return None
                self.rest += data
            text, _, self.rest = self.rest.partition(b"\r\n\r\n")
            head = _Head(text)
            if not head.line.startswith("HTTP/1.1 100"):
                return head

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.some(size - len(data))
            data += piece
        return data

    def some(self, limit: int) -> bytes:
        if self.rest:
            piece, self.rest = self.rest[:limit], self.rest[limit:]
            return piece
        piece = self.socket.recv(min(limit, 1 << 18))
        if not piece:
            raise ValueError("the other side closed the connection")
        return piece

    def line(self) -> bytes:
        while b"\r\n" not in self.rest:
            data = self.socket.recv(65536)
            if not data:
                raise ValueError("the other side closed the connection")
            self.rest += data
        text, _, self.rest = self.rest.partition(b"\r\n")
        return text

    def copy_body(
        self, head: _Head, sink: _Stream | None, *, bodyless: bool = False, spoil: str | None = None
    ) -> int:
        """Passes a body on (or drops it) and gives its size."""
        is_answer = head.line.startswith("HTTP/")
        if bodyless or (is_answer and head.line.split(" ")[1] in ("204", "304")):
            return 0
        if head.chunked():
            return self._copy_chunks(sink)
        if "content-length" not in head.headers:
            return self._copy_rest(sink) if is_answer else 0
        size = int(head.headers["content-length"])
        stop = size // 2 if spoil == "truncate" else size
        done = 0
        while done < size:
            piece = self.some(size - done)
            if spoil == "flip" and done == 0:
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            if sink is not None and done < stop:
                sink.send(piece[: stop - done])
            done += len(piece)
        return min(done, stop)

    def _copy_chunks(self, sink: _Stream | None) -> int:
        total = 0
        while True:
            line = self.line()
            size = int(line.split(b";")[0], 16)
            if sink is not None:
                sink.send(line + b"\r\n")
            if size == 0:
                while True:
                    line = self.line()
                    if sink is not None:
                        sink.send(line + b"\r\n")
                    if not line:
                        return total
            left = size + 2
            while left:
                piece = self.some(left)
                if sink is not None:
                    sink.send(piece)
                left -= len(piece)
            total += size

    def _copy_rest(self, sink: _Stream | None) -> int:
        total = 0
        while True:
            piece = self.rest or self.socket.recv(1 << 18)
            self.rest = b""
            if not piece:
                return total
            total += len(piece)
            if sink is not None:
                sink.send(piece)


def main() -> None:
    """Arguments: the server's folder, its port, and the file for the access log. Prints the port it listens on."""
    folder, target, access_log = sys.argv[1:]
    listener = socket.create_server(("127.0.0.1", 0), backlog=256, reuse_port=False)
    print(listener.getsockname()[1], flush=True)
    proxy = Proxy(int(target), access_log)
    threading.Thread(target=_guard, args=(Path(folder, "pid"),), daemon=True).start()
    while True:
        client, _ = listener.accept()
        threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()


def _guard(pid: Path) -> None:
    """Ends server and proxy when the process that started them is gone, however it went."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    with contextlib.suppress(OSError, ValueError):
        kill(int(pid.read_text()))
    os._exit(0)


if __name__ == "__main__":
    main()
