"""Scheduler and worker as they run in pods, as processes: how a worker ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from distributed import Client, Future

from daskade_runtime.leaving import DONE, GONE
from support import RUNTIME
from support.processes import free_port
from support.waiting import until


class Pods:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port = free_port()
        self.scheduler = self._start("scheduler", "--port", str(self.port), "--dashboard-port", "0")
        self.worker = self._start("worker", "--port", str(free_port()))

    def _start(self, kind: str, *words: str) -> subprocess.Popen[bytes]:
        own = {
            "PYTHONPATH": str(RUNTIME),
            "DASKADE_TERMINATION_LOG": str(self._folder / f"{kind}-end"),
            "DASKADE_POD_IP": "127.0.0.1",
            "DASK_SCHEDULER_ADDRESS": f"tcp://127.0.0.1:{self.port}",
            "DASKADE_WORKER_NAME": "w",
            "DASKADE_LOCAL_DIRECTORY": str(self._folder / "local"),
        }
        with (self._folder / f"{kind}.log").open("wb") as log:
            words = (sys.executable, "-m", "daskade_runtime.pod", kind, *words)
            started = subprocess.Popen(words, env={**os.environ, **own}, stdout=log, stderr=log)
        self._processes.append(started)
        return started

    def client(self) -> Client:
        client = Client(f"tcp://127.0.0.1:{self.port}", timeout=60, set_as_default=False)
        client.wait_for_workers(1, timeout=60)
        return client

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    made = Pods(tmp_path)
    yield made
    made.stop()


def begun(client: Client, folder: Path, seconds: float) -> Future:
    """A task that runs now."""

    def task(mark: str, seconds: float) -> str:
        Path(mark).touch()
        time.sleep(seconds)
        return "done"

    mark = folder / "begun"
    future = client.submit(task, str(mark), seconds, pure=False)
    until("the task runs", mark.exists, 30)
    return future


@pytest.mark.parametrize("kind", ["scheduler", "worker"])
def test_who_is_told_to_end_while_it_starts_ends_at_once(kind: str, tmp_path: Path) -> None:
    """As the first process of a container it would not hear the signal otherwise."""
    mark = tmp_path / "starts"
    slow = f"import pathlib, time; pathlib.Path({str(mark)!r}).touch(); time.sleep(60)"
    (tmp_path / "distributed.py").write_text(slow)
    own = {"PYTHONPATH": f"{tmp_path}:{RUNTIME}", "DASKADE_TERMINATION_LOG": str(tmp_path / "end")}
    words = [sys.executable, "-m", "daskade_runtime.pod", kind]
    started = subprocess.Popen(words, env={**os.environ, **own}, stderr=subprocess.DEVNULL)
    try:
        until("it starts", mark.exists, 30)
        started.terminate()
        assert started.wait(10) == DONE
    finally:
        started.kill()


def test_a_worker_that_is_told_to_end_finishes_its_task(pods: Pods, tmp_path: Path) -> None:
    with pods.client() as client:
        future = begun(client, tmp_path, 3.0)
        pods.worker.terminate()
        assert future.result(30) == "done"
        # Nobody else could take it, and somebody might come who can.
        future.release()
        assert pods.worker.wait(30) == DONE


def test_without_its_scheduler_a_worker_ends_soon(tmp_path: Path) -> None:
    """Also one that was told to end before. Both at once, since either takes its time."""

    def left_alone(told: bool) -> tuple[int, float]:
        """Exit code, and how long it took."""
        folder = tmp_path / str(told)
        folder.mkdir()
        pods = Pods(folder)
        try:
            client = pods.client()
            future = begun(client, folder, 120.0)
            if told:
                pods.worker.terminate()
            pods.scheduler.kill()
            since = time.monotonic()
            code = pods.worker.wait(60)
            took = time.monotonic() - since
            future.release()
            with contextlib.suppress(TimeoutError):
                client.close(timeout=1)
            return code, took
        finally:
            pods.stop()

    with ThreadPoolExecutor(2) as both:
        ends = list(both.map(left_alone, [True, False]))
    assert [code for code, _ in ends] == [DONE, GONE]
    # Dask alone waits 30 s for the task's thread, and Python for ever.
    assert max(took for _, took in ends) < 28.0, ends
    for told in (True, False):
        log = (tmp_path / str(told) / "worker.log").read_text(errors="replace")
        assert "exception was never retrieved" not in log, log
