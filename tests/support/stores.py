"""Reads what a run left in storage, and when each part of it became durable."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

from support.journal import Segment, decode
from support.s3.server import BUCKET, S3Server
from support.waiting import until


def flip(data: bytes) -> bytes:
    """``data`` with one bit changed."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class Store(Protocol):
    """Where one test's runs are kept."""

    url: str
    env: dict[str, str]

    def runs(self) -> list[str]:
        """Uids of the runs that have a journal."""
        ...

    def count(self) -> int:
        """How many segments are durable, over all runs: cheap, since it is asked often."""
        ...

    def touched(self) -> bool:
        """Whether anything at all has been written."""
        ...

    def segments(self, run: str) -> list[Segment]:
        """The decoded journal of a run."""
        ...

    def read(self, run: str, path: str) -> bytes | None:
        """An object of a run."""
        ...

    def kept(self, path: str) -> bytes | None:
        """An object outside of the runs."""
        ...

    def damage(self, run: str, path: str, flipped: bool) -> None:
        """Flips a byte of an object of a run, or deletes it."""
        ...


class Directory:
    """A directory store. A segment is published by a link, which sets the time of change of the file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"
        self.env: dict[str, str] = {}

    def runs(self) -> list[str]:
        return sorted({path.parent.parent.name for path in self.root.glob("runs/*/journal/*.seg")})

    def count(self) -> int:
        return sum(1 for _ in self.root.glob("runs/*/journal/*.seg"))

    def touched(self) -> bool:
        return self.root.exists() and any(self.root.iterdir())

    def segments(self, run: str) -> list[Segment]:
        paths = sorted((self._of(run) / "journal").glob("*.seg"))
        return [decode(path.read_bytes(), os.stat(path).st_ctime) for path in paths]

    def read(self, run: str, path: str) -> bytes | None:
        return self.kept(path[1:] if path.startswith("/") else f"runs/{run}/{path}")

    def kept(self, path: str) -> bytes | None:
        file = self.root / path
        return file.read_bytes() if file.is_file() else None

    def damage(self, run: str, path: str, flipped: bool) -> None:
        file = self._of(run) / path
        if flipped:
            file.write_bytes(flip(file.read_bytes()))
        else:
            file.unlink()

    def _of(self, run: str) -> Path:
        return self.root / "runs" / run


class S3:
    """A prefix in the bucket of a server. Its access log says when a put had its answer."""

    def __init__(self, server: S3Server, prefix: str) -> None:
        self.server = server
        self.prefix = prefix
        self.url = f"s3://{BUCKET}/{prefix}"
        self.env = {**server.environ(), "AWS_EC2_METADATA_DISABLED": "true"}
        self._client = server.client("admin")
        self._position = 0
        self._put: dict[str, float] = {}

    def runs(self) -> list[str]:
        keys = (key for key in self._keys("runs/") if key.endswith(".seg"))
        return sorted({key.split("/")[-3] for key in keys})

    def count(self) -> int:
        return sum(1 for key in self._puts() if key.endswith(".seg"))

    def touched(self) -> bool:
        return bool(self._puts())

    def segments(self, run: str) -> list[Segment]:
        keys = sorted(key for key in self._keys(f"runs/{run}/journal/") if key.endswith(".seg"))
        # An object is there before its put is in the log.
        until("all of its segments are in the log", lambda: self._puts().keys() >= set(keys), 10)
        return [decode(self._client.read(BUCKET, key) or b"", self._put[key]) for key in keys]

    def read(self, run: str, path: str) -> bytes | None:
        return self.kept(path[1:] if path.startswith("/") else f"runs/{run}/{path}")

    def kept(self, path: str) -> bytes | None:
        return self._client.read(BUCKET, f"{self.prefix}/{path}")

    def damage(self, run: str, path: str, flipped: bool) -> None:
        key = f"{self.prefix}/runs/{run}/{path}"
        if flipped:
            self._client.put(BUCKET, key, flip(self._client.read(BUCKET, key) or b""))
        else:
            self._client.delete(BUCKET, key)

    def _keys(self, below: str) -> list[str]:
        return list(self._client.written(BUCKET, f"{self.prefix}/{below}"))

    def _puts(self) -> dict[str, float]:
        """Keys under the prefix that were put with success, and when that was first answered."""
        with self.server.access_log.open("rb") as log:
            log.seek(self._position)
            for raw in log:
                if not raw.endswith(b"\n"):
                    break
                self._position += len(raw)
                line = json.loads(raw)
                key = line["key"].removeprefix(f"{BUCKET}/")
                if line["method"] == "PUT" and line["status"] == 200 and key.startswith(self.prefix):
                    self._put.setdefault(key, line["t"] + line["ms"] / 1000)
        return self._put
