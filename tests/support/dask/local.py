"""Local Dask processes as the command line starts them, by `support.dask.forks`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import RUNTIME
from support.dask import forks
from support.dask.forks import Fork
from support.dask.wire import Conn


class Process:
    """One local Dask process."""

    def __init__(self, *args: str, env: dict[str, str] | None = None, log: Path | None = None) -> None:
        self.log = log or Path(os.devnull)
        full = {**os.environ, "PYTHONPATH": str(RUNTIME), **(env or {})}
        self.popen = Fork(forks.RUNTIME, ["daskade_runtime.local", *args], full, self.log, Path.cwd(), read=True)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.popen.stdout:
            self._lines.put(line.decode(errors="replace"))
        self._lines.put("")

    def ready(self, timeout: float = 60.0) -> dict[str, Any]:
        line = self._lines.get(timeout=timeout)
        if not line.startswith("{"):
            raise AssertionError(f"process did not start: {line!r} {self.log.read_text()[-3000:]}")
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
        self.popen.kill()
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
