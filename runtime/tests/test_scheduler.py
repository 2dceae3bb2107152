"""The scheduler's side of the runtime, driven over the wire against real schedulers and workers."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from daskade_runtime.leaders import Leaders
from daskade_runtime.scheduler import Runtime
from support.dask import local
from support.dask.local import Cluster
from support.dask.run import Run
from support.dask.steps import args, ref, step, values
from support.dask.wire import RpcError
from support.waiting import until


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def test_a_small_dag_is_run_committed_and_read_back(dask: Cluster, storage: str) -> None:
    steps = [
        step("base", "operator:add", args(1, 2), result=1),
        step("grow", "operator:mul", args(ref(2, 0), ref(0, 0, -1, []))),
        step("total", "builtins:sum", args(ref(1, 1, 0)), result=1),
    ]
    run = Run(dask.address, storage, steps).open()
    events = run.follow()
    run.submit((0, -1))
    run.submit(*[(1, i, values(i), [[0, -1]]) for i in range(4)], (2, -1, None, [[1, -2, 4]]))
    done = events.wait_for("finished", s=2)[0]
    assert done["json"] == 18
    events.wait(lambda es: sum(len(e["tasks"]) for e in es if e["k"] == "committed") == 6)
    assert run.rpc("read", step=2, item=-1, max=1000)["size"] > 0
    run.close()
    assert (
        Run(dask.address, storage, steps, uid=run.uid).open(create=False).snapshot["final"]["state"]
        == "Succeeded"
    )


def test_an_attempt_is_submitted_once(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [step("one", "operator:add", args(1, 2))]).open()
    events = run.follow()
    run.submit((0, -1))
    run.submit((0, -1))
    events.wait_for("finished")
    run.submit((0, -1))
    run.close()
    events.wait_for("closing")
    assert len(events.of("started")) == 1


def test_a_malformed_request_is_refused_and_harms_nothing(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [step("one", "operator:add", args(1, 2))]).open()
    requests: list[tuple[str, dict[str, Any], str]] = [
        ("submit", {}, "cannot call submit: .*'items'"),
        ("submit", {"items": [[0]]}, r"cannot submit \(0,\): expected 7 fields"),
        ("record", {"records": [[]]}, r"cannot record \(\): its kind is not length"),
        ("stop", {"items": [[0]]}, r"cannot stop \(0,\): expected 3 fields, got 1"),
    ]
    for op, more, words in requests:
        with pytest.raises(RpcError, match=words) as refused:
            run.rpc(op, **more)
        assert refused.value.reason == "BadRequest", op
    with pytest.raises(RpcError, match="cannot call open: .*'epoch'") as refused:
        run.conn.rpc("daskade-open", run=run.uid)
    assert refused.value.reason == "BadRequest"
    run.close()


def test_an_older_epoch_is_refused_everywhere(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [step("one", "operator:add", args(1, 2))]).open()
    newer = Run(dask.address, storage, run.request["steps"], uid=run.uid).open(create=False)
    assert newer.epoch == run.epoch + 1
    requests: list[tuple[str, dict[str, Any]]] = [
        ("submit", {"items": []}),
        ("stop", {"items": []}),
        ("record", {"records": []}),
        ("close", {"final": {}}),
        ("forget", {}),
    ]
    words = f"run {run.uid} is open under epoch 2, not 1"
    for op, more in requests:
        with pytest.raises(RpcError, match=words) as refused:
            run.rpc(op, **more)
        assert refused.value.reason == "StaleEpoch", op
    events = run.follow()
    events.wait(lambda _: events.ended)
    assert events.refused is not None and events.refused["reason"] == "StaleEpoch"
    assert words in events.refused["message"]
    with pytest.raises(RpcError, match=f"cannot open run {run.uid} under epoch 1: .*higher than 2") as refused:
        run.open(create=False, epoch=1)
    assert refused.value.reason == "StaleEpoch"
    newer.close()


def test_a_leader_that_is_older_than_one_heard_opens_nothing(dask: Cluster, storage: str) -> None:
    steps = [step("one", "operator:add", args(1, 2))]
    run = Run(dask.address, storage, steps).open(lead=7)
    with pytest.raises(RpcError, match="newer leader, with epoch 7, has taken over; this one has epoch 6") as refused:
        Run(dask.address, storage, steps, uid=run.uid).open(create=False, lead=6)
    assert refused.value.reason == "StaleLeader"
    # Who was heard keeps the run; the next leader takes it over.
    events = run.follow()
    run.submit((0, -1))
    events.wait_for("committed")
    assert Run(dask.address, storage, steps, uid=run.uid).open(create=False, lead=8).epoch == 2


@pytest.fixture
def unled(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler that has heard no leader."""
    with local.cluster(tmp_path, workers=0) as made:
        yield made


def test_a_leader_that_is_older_than_one_heard_changes_nothing(unled: Cluster, storage: str, tmp_path: Path) -> None:
    run = Run(unled.address, storage, [step("one", "operator:add", args(1, 2))]).open(lead=7)
    where = run.request["storage"]
    requests: list[tuple[str, dict[str, Any]]] = [
        ("open", {**run.request, "epoch": None, "create": False}),
        ("forget", {}),
        ("forget", {"epoch": run.epoch}),
        ("code", {"storage": where, "url": f"file://{tmp_path}/flow.zip"}),
        ("earlier", {"storage": where, "pipeline": "p"}),
        ("mark", {"storage": where, "what": ["outputs"]}),
        ("seal", {"storage": where, "final": {}}),
        ("discard", {"storage": where, "paths": []}),
        ("cluster", {"since": 0, "wait": 0}),
        ("drain", {"names": []}),
        ("retire", {"names": []}),
    ]
    run.conn.rpc("daskade-cluster", since=0, wait=0, lead=7)
    for op, more in requests:
        with pytest.raises(RpcError, match="newer leader, with epoch 7, has taken over; this one has epoch 6") as refused:
            run.conn.rpc(f"daskade-{op}", **{"run": run.uid, **more, "lead": 6})
        assert refused.value.reason == "StaleLeader", op
    run.close()


def test_a_run_is_left_by_whoever_has_it(unled: Cluster, storage: str) -> None:
    """An operator of an older release names neither its epoch nor the run's."""
    steps = [step("one", "operator:add", args(1, 2))]
    run = Run(unled.address, storage, steps).open()
    cases: list[dict[str, int]] = [{}, {"epoch": 2}, {"lead": 7}, {"epoch": 4, "lead": 7}]
    for named in cases:
        assert run.uid in run.conn.rpc("daskade-hello")["runs"]
        run.conn.rpc("daskade-forget", run=run.uid, **named)
        assert run.uid not in run.conn.rpc("daskade-hello")["runs"]
        run.conn.rpc("daskade-forget", run=run.uid, **named)  # twice is fine
        run = Run(unled.address, storage, steps, uid=run.uid).open(create=False)
    run.close()


def test_a_run_that_nobody_drives_goes_on_until_the_scheduler_is_told_to_forget_it(
    dask: Cluster, storage: str, tmp_path: Path
) -> None:
    """The operator ends a run and tells the scheduler, also if another process has driven it."""
    note = tmp_path / "pid"
    script = f"import os, time\nwith open({str(note)!r}, 'w') as f: f.write(str(os.getpid()))\ntime.sleep(600)"
    steps = [step("slow", script=script), step("train", "operator:add", args(1, 2), resources={"GPU": 1})]
    run = Run(dask.address, storage, steps).open(lead=7, lease="l")
    run.submit((0, -1), (1, -1))
    run.rpc("demand", asks=[{"group": None, "resources": {"GPU": 1.0}, "count": 3}])
    pid = int(until("the step runs", lambda: note.exists() and note.read_text()))
    run.conn.sock.close()

    operator = dask.connect()

    def state() -> dict[str, Any]:
        words: dict[str, Any] = {"since": 0, "wait": 0, "fresh": True, "cluster": "of-this-test", "lease": "l"}
        return dict(operator.rpc("daskade-cluster", lead=8, **words))

    wanted = {"group": None, "resources": {"GPU": 1.0}, "count": 3, "later": 0}
    before = state()
    assert wanted in before["demand"]
    hello = operator.rpc("daskade-hello")
    assert hello["runs"][run.uid] == 1 and run.uid in hello["led"] and hello["opening"] == []
    operator.rpc("daskade-forget", run=run.uid, epoch=hello["runs"][run.uid], lead=8, lease="l")
    after = state()
    assert wanted not in after["demand"] and after["runs"] == before["runs"] - 1, "no worker is kept for it"
    until("the step is ended", lambda: not Path(f"/proc/{pid}").exists())
    assert run.uid not in operator.rpc("daskade-hello")["led"]
    # One that a command has opened since is the command's.
    again = Run(dask.address, storage, steps, uid=run.uid).open(create=False)
    hello = operator.rpc("daskade-hello")
    assert hello["runs"][run.uid] == 2 and run.uid not in hello["led"]
    again.close()


class Leaving(Runtime):
    """One run is open, and is taken over or ends while what is on its way to storage is waited for."""

    def __init__(self, taken_over: bool) -> None:
        self.one: Any = SimpleNamespace(epoch=1, committer=SimpleNamespace(settle=self.settle))
        self.runs: dict[str, Any] = {"run": self.one}
        self.leaders = Leaders(self.runs.__contains__)
        self.taken_over = taken_over
        self.dropped: list[Any] = []

    async def settle(self, _: float) -> None:
        if self.taken_over:
            self.one.epoch = 2
        else:
            self.runs.clear()

    def drop(self, live: Any, last: dict[str, Any] | None) -> None:
        self.dropped.append((live, last))


async def forget(runtime: Leaving, epoch: int | None) -> Any:
    return await runtime.forget(run="run", epoch=epoch)


@pytest.mark.parametrize("epoch", [1, None])
def test_a_run_that_is_taken_over_while_it_is_left_stays_with_who_has_it(epoch: int | None) -> None:
    runtime = Leaving(taken_over=True)
    reply = asyncio.run(forget(runtime, epoch))
    assert (reply["status"], reply["reason"]) == ("error", "StaleEpoch")
    assert reply["message"] == "run run is open under epoch 2, not 1"
    assert runtime.dropped == []
    runtime = Leaving(taken_over=False)
    assert asyncio.run(forget(runtime, epoch)) == {"status": "OK"}
    assert runtime.dropped == []


def test_requirements_that_the_schedulers_image_lacks_refuse_the_run(
    dask: Cluster, storage: str, tmp_path: Path
) -> None:
    steps = [step("one", "operator:add", args(1, 2))]
    lacks: dict[str, Any] = {"requirements": ["dask", "no-such-package>=1"], "same_image": True}
    with pytest.raises(RpcError) as refused:
        Run(dask.address, storage, steps).open(**lacks)
    assert refused.value.reason == "RequirementsMissing" and "no-such-package" in str(refused.value)
    assert not (tmp_path / "store").exists(), "nothing of the run exists"
    Run(dask.address, storage, steps).open(requirements=["dask"], same_image=True).close()


def test_requirements_that_a_workers_image_lacks_fail_its_step(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [step("one", "operator:add", args(1, 2))])
    events = run.open(requirements=["no-such-package>=1"]).follow()
    run.submit((0, -1))
    (failed,) = events.wait_for("failed")
    assert (failed["class"], failed["type"]) == ("infra", "RequirementsMissing")
    assert "no-such-package" in failed["message"]
    run.close("Failed")


def test_an_archive_becomes_the_code_of_the_run(dask: Cluster, storage: str, tmp_path: Path) -> None:
    source = tmp_path / "flow.tar.gz"

    def write(text: str) -> None:
        data = text.encode()
        with tarfile.open(source, "w:gz") as archive:
            member = tarfile.TarInfo("flow.py")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

    (tmp_path / "store").mkdir()
    write("def f(): return 1")
    steps = [step("one", "flow:f", result=1)]
    run = Run(dask.address, storage, steps)

    def fetch() -> str:
        where = {"storage": run.request["storage"], "url": f"file://{source}"}
        return str(run.conn.rpc("daskade-code", run=run.uid, **where)["digest"])

    digest = fetch()
    run.request["code"] = {"digest": digest, "zip": None}
    events = run.open().follow()
    run.submit((0, -1))
    assert events.wait_for("finished")[0]["json"] == 1
    # Another driver of the run gets the same, whatever is there now.
    write("def f(): return 2")
    assert fetch() == digest
    run.close()
    source.write_bytes(b"rubbish")
    run = Run(dask.address, storage, steps)
    with pytest.raises(RpcError, match=f"file://{source}: .*neither a zip nor a tar.gz file") as refused:
        fetch()
    assert refused.value.reason == "BadCode"


def test_steps_go_to_the_worker_that_holds_what_they_read(dask: Cluster, storage: str) -> None:
    steps = [step("big", "builtins:bytes", args(3 << 20)), step("read", "builtins:len", args(ref(2, 0)))]
    run = Run(dask.address, storage, steps).open()
    events = run.follow()
    run.submit((0, 0), (0, 1))
    events.wait(lambda _: len(events.of("finished")) == 2)
    homes = {e["i"]: e["w"] for e in events.of("finished")}
    assert len(set(homes.values())) == 2
    # One after the other: Dask alone chooses among idle workers without a look at what they hold.
    for item in range(6):
        run.submit((1, item, values(ref(0, 0, item % 2, [])), [[0, item % 2]]))
        assert events.wait_for("finished", s=1, i=item)[0]["w"] == homes[item % 2]
    run.close()


def test_an_attempt_is_told_whether_it_is_still_the_one_that_its_task_waits_for(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [step("sleep", "time:sleep", args(ref(2, 0)))]).open()
    events = run.follow()
    run.submit((0, 0, values(60)))
    events.wait_for("started")
    given = run.conn.call("processing", workers=None)
    (here,), (other,) = ([address for address, tasks in given.items() if bool(tasks) is busy] for busy in (True, False))

    def current(where: str = here, a: int = 1, o: int = run.epoch) -> Any:
        return run.conn.rpc("daskade-current", run=run.uid, s=0, i=0, a=a, o=o, w=where)["current"]

    assert current()
    assert not current(other), "another worker had it before, under the same number"
    assert not current(a=2) and not current(o=run.epoch + 1)
    # Under a new driver it goes on.
    newer = Run(dask.address, storage, run.request["steps"], uid=run.uid).open(create=False)
    assert current()
    newer.rpc("stop", items=[[0, 0, 1]])
    assert not current()
    newer.close()
    assert not current()


def test_what_a_run_needs_only_later_is_told_apart(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [step("sleep", "time:sleep", args(ref(2, 0)))]).open()
    plain: dict[str, Any] = {"group": None, "resources": {"LATER": 1.0}}

    def demand() -> list[dict[str, Any]]:
        words: dict[str, Any] = {"since": 0, "wait": 0.0, "fresh": True, "cluster": "of-this-test", "lease": "of-this-test"}
        told = run.conn.rpc("daskade-cluster", lead=0, **words)["demand"]
        return [ask for ask in told if ask["resources"] == plain["resources"]]

    run.rpc("demand", asks=[{**plain, "count": 3, "later": 2}])
    assert demand() == [{**plain, "count": 3, "later": 2}]
    # A driver of an earlier release does not tell.
    run.rpc("demand", asks=[{**plain, "count": 3}])
    assert demand() == [{**plain, "count": 3, "later": 0}]
    for wrong in ({"count": 1, "later": 2}, {"count": 1, "later": -1}, {"count": -1}):
        with pytest.raises(RpcError, match="BadRequest"):
            run.rpc("demand", asks=[{**plain, **wrong}])
    run.close()


def test_a_kept_output_is_replaced_by_the_attempt_that_counts(dask: Cluster, storage: str) -> None:
    place = {"place": msgpack.packb(["models/x.json", False]), "replace": True}
    run = Run(dask.address, storage, [step("one", "operator:add", args(1, 2), target=place, serializer="json")]).open()
    events = run.follow()
    kept = Path(storage.removeprefix("file://")) / "models" / "x.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("before")
    run.submit((0, -1))
    events.wait_for("committed")
    assert kept.read_text() == "3"
    run.close()
