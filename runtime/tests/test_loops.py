"""The same error again and again: it is told, it is asked for less often, and it does not go on for ever."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daskade_runtime import fence, leaving, logs
from daskade_runtime.dispatch import Dispatcher
from daskade_runtime.leaving import Leaving
from daskade_runtime.logs import AttemptLog, LogHub
from daskade_runtime.run import RunState
from daskade_runtime.storage import StorageError, Store, open_store
from support.dask.steps import step
from support.dask.workers import Cluster
from support.waiting import until


class Broken(Store):
    """A folder that takes nothing while it has a reason."""

    def __init__(self, folder: Path, error: StorageError | None) -> None:
        self.inner = open_store({"url": f"file://{folder}"})
        self.error = error
        self.tries = 0

    def put(self, key: str, data: Any) -> str | None:
        self.tries += 1
        if self.error is not None:
            raise self.error
        return self.inner.put(key, data)


DENIED = StorageError("AccessDenied", "no right to write there")
AWAY = StorageError("StorageUnreachable", "down", transient=True)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, StorageError | None]]:
    monkeypatch.setattr(logs, "WRITE_EVERY", 0.02)
    return []


def line(hub: LogHub, run: str) -> None:
    log = AttemptLog(hub, run, "step", (0, -1, 1))
    log.feed("stdout", b"a line\n")


def test_lines_of_a_run_that_is_over_are_given_up_in_the_end(
    tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that goes on with other runs would keep them, and try, for ever."""
    monkeypatch.setattr(logs, "RETRY_CAP", 0.05)
    monkeypatch.setattr(logs, "OVER_PATIENCE", 0.3)
    hub = LogHub("w", lambda run, lines: None)
    broken = Broken(tmp_path, AWAY)
    hub.open_run("r", broken)
    line(hub, "r")
    until("it is tried", lambda: broken.tries > 20, 20)
    assert "r" in hub._runs, "while the run is open its lines wait"
    hub.forget("r")
    until("its lines are given up", lambda: "r" not in hub._runs, 20)
    assert hub._pending == 0
    assert "1 log lines of run r are lost: down" in caplog.text
    hub.close()


def test_a_storage_that_refuses_lines_is_told_once_and_when_it_takes_them(tmp_path: Path, told: Any) -> None:
    hub = LogHub("w", lambda run, lines: None, lambda run, error: told.append((run, error)))
    broken = Broken(tmp_path, DENIED)
    hub.open_run("r", broken)
    line(hub, "r")
    until("it is tried again and again", lambda: hub.flush("r", 0.1) == 0 or broken.tries > 5, 20)
    ((run, error),) = told
    assert (run, error.reason) == ("r", "AccessDenied")
    assert str(error) == "log lines cannot be stored: no right to write there"
    broken.error = None
    assert hub.flush("r", 10) == 0
    until("it is told", lambda: told[1:] == [("r", None)], 10)
    hub.close()


def test_an_outage_is_told_by_those_that_wait_for_it(tmp_path: Path, told: Any) -> None:
    hub = LogHub("w", lambda run, lines: None, lambda run, error: told.append((run, error)))
    broken = Broken(tmp_path, AWAY)
    hub.open_run("r", broken)
    line(hub, "r")
    until("it is tried again and again", lambda: hub.flush("r", 0.1) == 0 or broken.tries > 5, 20)
    assert told == []
    hub.close()


def test_a_storage_that_does_not_work_holds_up_no_other_run(tmp_path: Path, told: Any) -> None:
    hub = LogHub("w", lambda run, lines: None)
    broken, good = Broken(tmp_path / "broken", AWAY), Broken(tmp_path / "good", None)
    hub.open_run("bad", broken)
    line(hub, "bad")
    # The next try is four seconds away.
    until("it has failed three times", lambda: broken.tries >= 3, 20)
    hub.open_run("good", good)
    line(hub, "good")
    began = time.monotonic()
    until("the other run's line is stored", lambda: good.tries == 1, 20)
    assert time.monotonic() - began < 2.0 and broken.tries == 3
    hub.close(0)


def test_a_look_at_a_journal_that_fails_each_time_is_told_and_taken_back() -> None:
    error: list[Exception | None] = [DENIED]
    told: list[tuple[str, str, str]] = []

    def check() -> None:
        if error[0] is not None:
            raise error[0]

    live = SimpleNamespace(uid="r", journal=SimpleNamespace(check=check), storage_told=lambda *w: told.append(w))
    failures: dict[str, int] = {}

    def look(times: int) -> None:
        for _ in range(times):
            asyncio.run(fence._look(live, failures))

    look(10)
    ((who, reason, message),) = told
    assert (who, reason) == (fence.WHO, "AccessDenied")
    assert message.startswith("cannot check whether another process has taken over the run: StorageError: no right")
    error[0] = None
    look(3)
    assert told[1:] == [(fence.WHO, "", "")]
    # An outage shows where it matters, and a mistake is told as one.
    error[0] = AWAY
    look(10)
    error[0] = KeyError("seg")
    look(10)
    assert [w[1] for w in told[2:]] == ["Internal"]


def test_attempts_that_cannot_be_handed_to_dask_fail_with_the_reason() -> None:
    """They would be in no queue, and at no worker, for ever."""

    async def scenario() -> tuple[Any, Dispatcher]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()

        def get(*_: Any, **__: Any) -> Any:
            raise RuntimeError("cannot schedule new futures")

        calls = SimpleNamespace(
            blob=lambda attempt: b"",
            held=lambda attempt: False,
            broken=lambda attempt, message: ended.set_result((attempt.address, message)),
        )
        running = SimpleNamespace(name="running")
        worker = SimpleNamespace(address="w", name="cpu-0-0", nthreads=2, resources={}, status=running)
        scheduler = SimpleNamespace(
            workers={"w": worker},
            loop=SimpleNamespace(add_callback=loop.call_soon, call_later=loop.call_later),
            client_releases_keys=lambda keys, client: None,
        )
        made = Dispatcher(scheduler, SimpleNamespace(id="c", get=get), print, calls)
        state = RunState("run", [{"name": "s", "call": "m:f"}], lambda attempt: made.ready(attempt, 2))
        state.submit((0, -1, 1, 0, None, [], []))
        return await asyncio.wait_for(ended, 10), made

    (address, message), made = asyncio.run(scenario())
    assert address == (0, -1, 1)
    assert message == "could not submit the step to Dask: RuntimeError: cannot schedule new futures"
    assert not made.flying and not made._load
    assert all(group.unassigned == 0 for group in made._groups.values())


def test_a_step_for_which_no_process_stays_alive_fails_with_the_reason(tmp_path: Path) -> None:

    def end_at_once(dask_worker: Any) -> None:
        """On the worker: processes for steps have ended before anything begins in them."""
        import os

        start = dask_worker._daskade.pool._start

        def ended(env: dict[str, str]) -> Any:
            child = start(env)
            os.kill(child.pid, 9)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            return child

        dask_worker._daskade.pool._start = ended

    cluster = Cluster(tmp_path, workers=1, threads=1)
    try:
        cluster.client.run(end_at_once)
        # With such a variable it takes no process that was started before.
        run = cluster.open([step("s", None, script="output = 1", env={"PYTHONWARNINGS": "ignore"})])
        reply = cluster.run(run, wait=60)
        assert (reply["class"], reply["type"]) == ("infra", "SpawnFailed")
        assert "processes exited before the step started in them" in reply["message"]
    finally:
        cluster.close()


class Gone:
    """A scheduler that does not answer, in the eyes of a worker."""

    def __init__(self) -> None:
        self.asked = 0

    def __getattr__(self, op: str) -> Any:
        async def call(**_: Any) -> Any:
            self.asked += 1
            raise OSError("connection refused")

        return call


async def refuse(**_: Any) -> None:
    raise RuntimeError("it was closed already")


def test_a_worker_that_leaves_asks_ever_less_often_and_its_failures_are_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leaving, "ASK_EVERY", 0.02)
    monkeypatch.setattr(leaving, "CLOSING_WAIT", 0.1)
    caplog.set_level(logging.INFO, "distributed.daskade")
    unheard: list[dict[str, Any]] = []

    async def scenario() -> int:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        scheduler, status = Gone(), SimpleNamespace(name="running")
        worker = SimpleNamespace(address="w", scheduler=scheduler, status=status, close=refuse, finished=refuse)
        left = Leaving(1.0)
        left.attach(worker)
        left.begin()
        task = left._task
        assert task is not None
        await asyncio.wait([task], timeout=20)
        assert task.done()
        left.give_up(leaving.STUCK)
        await leaving.ended(worker)
        del task, left
        return scheduler.asked

    asked = asyncio.run(scenario())
    gc.collect()
    assert unheard == []
    assert 3 <= asked <= 8, "within a second"
    told = [record for record in caplog.records if "does not answer" in record.getMessage()]
    assert len(told) == 1 and "OSError: connection refused" in told[0].getMessage()
