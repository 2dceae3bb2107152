"""The command line as a test uses it: with a home of its own, and everything that it starts marked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import processes
from support.journal import Segment
from support.stores import Directory
from support.waiting import until


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    def counts(self) -> dict[str, int]:
        """How many tasks came to which end."""
        return {name: count for name, count in self.json["steps"].items() if name != "running"}

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


@dataclass
class Cli:
    """The command with a home of its own. Whatever it starts carries a mark by which it is found again."""

    binary: Path
    folder: Path
    cache: Path
    python: Path
    env: dict[str, str] = field(default_factory=dict)
    # Of a cluster on which its runs are; otherwise it starts processes for each.
    address: str = ""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def home(self) -> Path:
        return self.folder / "daskade"

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    def environment(self, **more: str) -> dict[str, str]:
        """Variables of the command: nothing of the caller's but the path."""
        own = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "DASKADE_HOME": str(self.home),
            "DASKADE_CACHE": str(self.cache),
            processes.MARK: self.mark,
        }
        kept = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "SSL_", "http", "LANG"))}
        return {**kept, **own, **self.env, **more}

    def start(self, *words: str | Path, **more: str) -> subprocess.Popen[str]:
        """Start the command and return at once."""
        return subprocess.Popen(
            [str(self.binary), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**more),
            cwd=self.folder,
            start_new_session=True,
        )

    def __call__(
        self, *words: str | Path, timeout: float = 120, env: Mapping[str, str] | None = None, **more: str
    ) -> Done:
        """Run the command to its end. Variables are given as ``env``, by name, or both."""
        return self.finish(self.start(*words, **(env or {}), **more), timeout)

    def finish(self, process: subprocess.Popen[str], timeout: float = 120) -> Done:
        """Wait for a started command; one that hangs is a failure that shows what it said so far."""
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"the command did not end within {timeout} s\n{Done(-9, out, err)}") from None
        return Done(process.returncode, out, err)

    def reach(self, process: subprocess.Popen[str], what: str, ready: Callable[[], Any], every: float = 0.1) -> None:
        """Wait until a started command has come to a point; one that ends before is a failure that shows what it said."""

        def reached() -> bool:
            if ready():
                return True
            if process.poll() is not None:
                raise AssertionError(f"it ended: {self.finish(process)}")
            return False

        until(what, reached, 60, every)

    def run(self, manifest: Path, *words: str | Path, timeout: float = 120, **more: str) -> Done:
        """`daskade run` with the tests' environment and directory store."""
        return self(*self.run_words(manifest), *words, timeout=timeout, env=more)

    def run_words(self, manifest: Path) -> list[str | Path]:
        """The words of `daskade run`."""
        return ["run", manifest, *self.where, "--storage", f"file://{self.storage}"]

    @property
    def where(self) -> list[str | Path]:
        """The words that say where steps run."""
        return ["--address", self.address] if self.address else ["--python", self.python]

    def journal(self, uid: str) -> list[Segment]:
        """The journal of a run in the directory store."""
        return Directory(self.storage).segments(uid)

    def left(self, seconds: float = 5) -> list[str]:
        """Processes that are still there after some time."""
        with contextlib.suppress(AssertionError):
            until("nothing is left", lambda: not processes.marked(self.mark), seconds, every=0.05)
        return [processes.describe(pid) for pid in processes.marked(self.mark)]
