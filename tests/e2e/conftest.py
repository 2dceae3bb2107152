"""Fixtures: the built command, homes of their own, S3 and clusters that daskade did not start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests"), str(TOP / "runtime" / "tests")]

from s3server import S3Server
from survival import procs
from survival.journal import Segment
from survival.stores import Directory


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
            procs.MARK: self.mark,
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

    def __call__(self, *words: str | Path, timeout: float = 120, **more: str) -> Done:
        """Run the command to its end."""
        return self.finish(self.start(*words, **more), timeout)

    def finish(self, process: subprocess.Popen[str], timeout: float = 120) -> Done:
        """Wait for a started command; one that hangs is a failure that shows what it said so far."""
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"the command did not end within {timeout} s\n{Done(-9, out, err)}")
        return Done(process.returncode, out, err)

    def run(self, manifest: Path, *words: str | Path, timeout: float = 120, **more: str) -> Done:
        """`daskade run` with the tests' environment and directory store."""
        return self(*self.run_words(manifest), *words, timeout=timeout, **more)

    def run_words(self, manifest: Path) -> list[str | Path]:
        """The words of `daskade run`."""
        return ["run", manifest, "--python", self.python, "--storage", f"file://{self.storage}"]

    def journal(self, uid: str) -> list[Segment]:
        """The journal of a run in the directory store."""
        return Directory(self.storage).segments(uid)

    def left(self, seconds: float = 5) -> list[str]:
        """Processes that are still there after some time."""
        end = time.monotonic() + seconds
        while (pids := procs.marked(self.mark)) and time.monotonic() < end:
            time.sleep(0.05)
        return [procs.describe(pid) for pid in pids]


@pytest.fixture(scope="session")
def binary() -> Path:
    """The command under test."""
    named = os.environ.get("DASKADE_BIN")
    found = [Path(named)] if named else [TOP / "target" / kind / "daskade" for kind in ("release", "debug")]
    for path in found:
        if path.exists():
            return path.resolve()
    raise FileNotFoundError("build the command first (cargo build), or name it by DASKADE_BIN")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all tests may share: the unpacked runtime."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cli(binary: Path, cache: Path, tmp_path: Path) -> Iterator[Cli]:
    """The command; a test that leaves processes behind has failed."""
    made = Cli(binary, tmp_path, cache, Path(sys.executable))
    yield made
    left = made.left()
    for pid in procs.marked(made.mark):
        procs.send(pid, signal.SIGKILL)
    assert left == []


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Writes a manifest of one Pipeline: its code, its steps, and further fields of the spec."""

    def write(code: str, steps: list[dict[str, Any]], name: str = "flow", **spec: Any) -> Path:
        workers = [{"name": "cpu", "replicas": 1, "threads": 1}]
        body = {
            "code": {"files": {"flow.py": code}},
            "cluster": {"template": {"workers": workers}},
            "steps": steps,
            **spec,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            json.dumps(
                {"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": name}, "spec": body}
            )
        )
        return path

    return write


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def examples() -> Path:
    """The examples of the repository."""
    return TOP / "examples"
