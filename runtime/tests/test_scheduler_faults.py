"""What the scheduler's side does when workers, schedulers, storage or drivers go away."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime.dispatch import LONG_SECONDS
from support.dask.local import Cluster, cluster
from support.dask.run import Run
from support.dask.steps import args, ref, step, values
from support.dask.wire import Conn, Follower, RpcError
from support.waiting import until

SLEEP = step("sleep", "time:sleep", args(ref(2, 0)))


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, env={"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "3s"}) as made:
        yield made


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def journal_of(storage: str, run: Run) -> Path:
    return Path(storage.removeprefix("file://")) / "runs" / run.uid / "journal"


def hurry(run: Run, events: Follower) -> None:
    """Lets a step be known as a short one, by items from 1000 on: of those a worker gets more than it has threads."""
    mean = LONG_SECONDS
    for item in range(1000, 1100):
        began = time.monotonic()
        run.submit((0, item, values(0)))
        events.wait_for("finished", i=item)
        # As the dispatcher reckons, from more than what it has measured.
        mean += 0.2 * (time.monotonic() - began - mean)
        if mean < LONG_SECONDS:
            return
    raise AssertionError("no step is short here")


def handed_over(dask: Cluster, count: int) -> None:
    """Waits until Dask has given so many tasks to workers."""
    admin = Conn(dask.address)
    given = partial(admin.call, "processing", workers=None)
    until(f"{count} tasks are at workers", lambda: sum(map(len, given().values())) >= count, 20)
    admin.close()


def committed(events: list[dict[str, Any]]) -> int:
    return sum(len(e["tasks"]) for e in events if e["k"] == "committed")


def test_a_killed_worker_loses_what_ran_on_it_once_and_dask_reruns_nothing(
    dask: Cluster, storage: str
) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    events = run.follow()
    run.submit((0, 0, values(30)), (0, 1, values(1.5)))
    started = events.wait_for("started", 2)
    victim = next(e for e in started if e["i"] == 0)["w"]
    dask.workers[victim].kill()
    lost = events.wait_for("lost")
    assert [(e["i"], e["a"], e["w"]) for e in lost] == [(0, 1, victim)]
    events.wait_for("worker", state="removed", name=victim)
    events.wait_for("finished", i=1)
    run.submit((0, 0, values(0), [], [], 2))
    events.wait_for("finished", i=0, a=2)
    run.close()
    events.wait_for("closing")
    assert len(events.of("lost")) == 1
    assert sorted((e["i"], e["a"]) for e in events.of("started")) == [(0, 1), (0, 2), (1, 1)]


def test_attempts_that_had_not_begun_on_a_killed_worker_are_sent_again(tmp_path: Path, storage: str) -> None:
    with cluster(tmp_path, workers=1) as dask:
        run = Run(dask.address, storage, [SLEEP]).open()
        events = run.follow()
        hurry(run, events)
        run.submit((0, 0, values(20)))
        events.wait_for("started", i=0)
        run.submit((0, 1, values(0)))
        handed_over(dask, 2)
        dask.workers["cpu-0-0"].kill()
        events.wait_for("lost", i=0)
        events.wait_for("blocked", s=0, reason="NoWorkers")
        dask.add_worker("cpu-0-1")
        events.wait_for("unblocked", s=0)
        assert events.wait_for("finished", i=1)[0]["a"] == 1
        run.close()


def test_a_frozen_worker_is_given_up_and_its_late_answer_ignored(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    events = run.follow()
    run.submit((0, 0, values(1)))
    frozen = dask.workers[events.wait_for("started")[0]["w"]]
    os.kill(frozen.pid, signal.SIGSTOP)
    events.wait_for("lost", i=0, timeout=20)
    run.submit((0, 0, values(0), [], [], 2))
    os.kill(frozen.pid, signal.SIGCONT)
    events.wait_for("finished", i=0, a=2)
    # It was told to end, and says what it has to say before.
    assert frozen.popen.wait(30) == 0
    run.close()
    events.wait_for("closing")
    assert len(events.of("finished")) == 1


def test_a_new_scheduler_resumes_from_the_journal(dask: Cluster, storage: str) -> None:
    run = Run(
        dask.address, storage, [SLEEP, step("all", "builtins:len", args(ref(1, 0, 1)), result=1)]
    ).open()
    events = run.follow()
    run.submit((0, 0, values(0)), (0, 1, values(0)), (0, 2, values(60)))
    events.wait(lambda es: committed(es) == 2)
    run.rpc("record", records=[["length", 0, 3]])
    segments = journal_of(storage, run)
    before = len(list(segments.glob("*.seg")))
    until("the record is in the journal", lambda: len(list(segments.glob("*.seg"))) > before, 10)
    port = int(dask.address.rpartition(":")[2])
    dask.scheduler.kill()
    events.wait(lambda _: events.ended)
    dask.start_scheduler(port)
    dask.add_worker("cpu-5-0")
    again = Run(dask.address, storage, run.request["steps"], uid=run.uid).open(create=False)
    assert again.epoch == run.epoch + 1
    assert sorted(x[:3] for x in again.snapshot["committed"]) == [[0, 0, 1], [0, 1, 1]]
    assert again.snapshot["lengths"] == [[0, 3]] and again.snapshot["submitted"] == []
    later = again.follow()
    again.submit((0, 0, values(60)), (0, 2, values(0), [], [], 2), (1, -1, None, [[0, -2, 3]]))
    later.wait_for("finished", s=1)
    assert [e["i"] for e in later.of("started") if e["s"] == 0] == [2], "a committed step ran again"
    stale = Conn(dask.address)
    reply = stale.call("daskade-events", run=run.uid, epoch=again.epoch, since=0, instance="0" * 32)
    assert reply["reason"] == "InstanceChanged"
    assert f"run {run.uid}: the scheduler was replaced" in reply["message"], reply
    again.close()


def test_a_second_writer_of_the_journal_fences_the_first(dask: Cluster, storage: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    run = Run(dask.address, storage, [SLEEP]).open()
    events = run.follow()
    run.submit((0, 0, values(60)))
    events.wait_for("started")
    other = Cluster(tmp_path / "other")
    try:
        second = Run(other.address, storage, [SLEEP], uid=run.uid).open(create=False)
        assert second.epoch == run.epoch + 1
        run.rpc("record", records=[["length", 0, 1]])
        fenced = events.wait_for("fenced")[0]
        assert fenced["epoch"] == second.epoch
        events.wait(lambda _: events.ended)
        with pytest.raises(RpcError, match=f"run {run.uid} is not open on this scheduler") as refused:
            run.rpc("submit", items=[])
        assert refused.value.reason == "RunNotFound"
        assert run.uid not in run.conn.rpc("daskade-hello")["runs"]
    finally:
        other.stop()


def test_a_run_left_and_opened_anew_is_not_reached_by_its_own_stops(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    items = [(0, i, values(0.5)) for i in range(12)]
    for _ in range(4):
        events = run.follow()
        run.submit(*items)
        events.wait_for("started")
        run.rpc("forget")
        run = Run(dask.address, storage, run.request["steps"], uid=run.uid).open(create=False)
    events = run.follow()
    done = {entry[1] for entry in run.snapshot["committed"]}
    run.submit(*[item for item in items if item[1] not in done])
    events.wait(lambda es: len(done) + committed(es) == len(items) or [e for e in es if e["k"] == "failed"])
    assert events.of("failed") == []
    run.close()


def test_a_driver_with_a_higher_epoch_takes_over_a_live_run(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    first = run.follow()
    run.submit((0, 0, values(0)))
    first.wait(lambda es: committed(es) == 1)
    run.submit((0, 1, values(3)), (0, 2, values(3)), (0, 3, values(0), [[0, 2]]))
    first.wait_for("started", 3)
    new = Run(dask.address, storage, run.request["steps"], uid=run.uid).open(create=False)
    assert [x[:3] for x in new.snapshot["committed"]] == [[0, 0, 1]]
    assert sorted(new.snapshot["submitted"]) == [[0, 1, 1], [0, 2, 1], [0, 3, 1]]
    first.wait(lambda _: first.ended)
    assert first.events[-1]["k"] == "fenced" and first.events[-1]["epoch"] == new.epoch
    second = new.follow()
    second.wait_for("finished", 3)
    second.wait(lambda es: committed(es) == 3)
    assert not second.of("lost") and not second.of("started")[1:]
    new.close()


def test_what_is_stopped_ends_and_is_told(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    events = run.follow()
    hurry(run, events)
    run.submit((0, 0, values(60)), (0, 1, values(60)))
    for item in (0, 1):
        events.wait_for("started", i=item)
    run.submit((0, 2, values(60)), (0, 3, values(60), [[0, 0]]), *[(0, i, values(60)) for i in range(4, 20)])
    handed_over(dask, 4)
    run.rpc("stop", items=[[0, i, 1] for i in range(20)])
    events.wait_for("stopped", 20, timeout=10)
    run.submit((0, 20, values(0)), (0, 21, values(0)))
    for item in (20, 21):
        events.wait_for("finished", i=item, timeout=10)
    run.close()
    events.wait_for("closing")
    assert not events.of("lost") and not events.of("failed")


def test_an_outage_of_storage_pauses_commits_and_loses_nothing(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    events = run.follow()
    run.submit((0, 0, values(0)))
    events.wait(lambda es: committed(es) == 1)
    root = Path(storage.removeprefix("file://"))
    root.rename(root.with_name("away"))
    run.submit((0, 1, values(0)))
    events.wait_for("finished", i=1)
    events.wait_for("storage", state="down")
    assert committed(events.events) == 1
    root.with_name("away").rename(root)
    events.wait_for("storage", state="up", timeout=60)
    events.wait(lambda es: committed(es) == 2)
    run.close()


def test_closing_waits_for_storage_and_writes_one_final_record(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    events = run.follow()
    root = Path(storage.removeprefix("file://"))
    root.rename(root.with_name("away"))
    impatient = Conn(dask.address)
    final = {"state": "Failed", "reason": "", "message": "", "results": {}}
    request = {"op": "daskade-close", "reply": True, "run": run.uid, "epoch": run.epoch, "final": final}
    impatient.send(request)
    events.wait_for("storage", state="down")
    impatient.close()
    root.with_name("away").rename(root)
    run.rpc("close", final=final)
    run.rpc("close", final=final)
    segments = sorted(journal_of(storage, run).glob("*.seg"))
    assert sum(s.read_bytes().count(b"\xa5final") for s in segments) == 1


def test_a_run_whose_folder_was_deleted_and_made_again_fails_and_names_what_is_missing(
    dask: Cluster, storage: str
) -> None:
    """Issue 13, point 22."""
    run = Run(dask.address, storage, [SLEEP]).open()
    events = run.follow()
    run.submit((0, 0, values(0)))
    events.wait(lambda es: committed(es) == 1)
    root = Path(storage.removeprefix("file://"))
    shutil.rmtree(root)
    root.mkdir()
    run.submit((0, 1, values(0)))
    (closing,) = events.wait_for("closing")
    words = f"segment 0 of the journal of run {run.uid} cannot be read: it was written but is missing"
    assert closing["reason"] == "RecordUnreadable" and words in closing["message"]
    assert committed(events.of("committed")) == 1
    again = Run(dask.address, storage, [SLEEP], uid=run.uid)
    with pytest.raises(RpcError, match=f"segment 0 of the journal of run {run.uid} .*missing") as refused:
        again.open(create=False)
    assert refused.value.reason == "RecordUnreadable"


def test_a_run_that_is_closed_on_a_folder_that_was_made_again_does_not_succeed(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    events = run.follow()
    run.submit((0, 0, values(0)))
    events.wait(lambda es: committed(es) == 1)
    root = Path(storage.removeprefix("file://"))
    shutil.rmtree(root)
    root.mkdir()
    with pytest.raises(RpcError, match=f"segment 0 of the journal of run {run.uid} .*missing") as refused:
        run.close()
    assert refused.value.reason == "RecordUnreadable"
    assert not list(root.rglob("*.seg"))


def test_open_says_what_is_wrong_with_the_storage_or_the_run(
    dask: Cluster, storage: str, tmp_path: Path
) -> None:
    def reason(words: str, create: bool = True, where: str = storage, **fields: Any) -> str:
        """Why the run is not opened; ``words`` may name it as UID."""
        run = Run(dask.address, where, [SLEEP], **fields)
        with pytest.raises(RpcError, match=words.replace("UID", run.uid)) as refused:
            run.open(create=create)
        return str(refused.value.reason)

    assert reason("there is no journal of run UID", create=False) == "RunNotFound"
    run = Run(dask.address, storage, [SLEEP]).open()
    other: dict[str, Any] = {"uid": run.uid, "spec_digest": "00", "create": False}
    assert reason("run UID is open here under epoch 1", uid=run.uid) == "RunExists"
    assert reason("run UID was started with another spec", **other) == "SpecMismatch"
    run.rpc("forget")
    assert reason("run UID already has a journal", uid=run.uid) == "RunExists"
    assert reason("run UID was started with spec .*, not 00", **other) == "SpecMismatch"
    segment = next(journal_of(storage, run).iterdir())
    segment.write_bytes(segment.read_bytes()[:-1] + b"x")
    words = "segment 0 of the journal of run UID cannot be read: the digest does not match"
    assert reason(words, create=False, uid=run.uid) == "RecordUnreadable"
    blocked = tmp_path / "file"
    blocked.write_text("")
    words = f"cannot create directory {blocked}/below: "
    assert reason(words, where=f"file://{blocked}/below") in ("InvalidKey", "StorageUnreachable")
    words = "run UID: the sha256 of its code archive is [0-9a-f]{64}, expected 00"
    assert reason(words, code={"digest": "00", "zip": b"x"}) == "CodeMismatch"


def test_a_step_that_no_worker_may_run_is_blocked_with_the_reason(dask: Cluster, storage: str) -> None:
    steps = [
        step("gpu", "time:sleep", args(0), resources={"GPU": 2}),
        step("big", "time:sleep", args(0), group="big"),
    ]
    run = Run(dask.address, storage, steps).open()
    events = run.follow()
    run.submit((0, -1), (1, -1))
    assert "GPU=2" in events.wait_for("blocked", s=0, reason="NoWorkerWithResources")[0]["message"]
    assert "group big" in events.wait_for("blocked", s=1, reason="NoWorkerOfGroup")[0]["message"]
    dask.add_worker("gpu-0-0", resources="GPU=2")
    events.wait_for("unblocked", s=0)
    assert events.wait_for("finished", s=0)[0]["w"] == "gpu-0-0"
    dask.add_worker("big-0-0", wait=False)
    events.wait_for("finished", s=1)
    run.close()


def test_a_new_worker_gets_the_first_step_as_soon_as_it_is_ready(tmp_path: Path, storage: str) -> None:
    never = tmp_path / "never.py"
    never.write_text("import daskade_runtime.dispatch\n\ndaskade_runtime.dispatch.RECHECK = 3600\n")
    with cluster(tmp_path, workers=0, env={"DASK_DISTRIBUTED__SCHEDULER__PRELOAD": str(never)}) as dask:
        run = Run(dask.address, storage, [SLEEP]).open()
        events = run.follow()
        run.submit((0, -1, values(0)))
        dask.add_worker("cpu-0-0")
        events.wait_for("finished")
        run.close()


@pytest.mark.parametrize("resources", [{}, {"GPU": 1}])
def test_a_worker_that_comes_late_takes_a_long_step_that_waits(
    tmp_path: Path, storage: str, resources: dict[str, int]
) -> None:
    with cluster(tmp_path, workers=0) as dask:
        offered = ",".join(f"{name}={amount}" for name, amount in resources.items())
        dask.add_worker("one-0-0", resources=offered)
        run = Run(dask.address, storage, [{**SLEEP, "resources": resources}]).open()
        events = run.follow()
        run.submit((0, 0, values(30)), (0, 1, values(0)))
        events.wait_for("started", i=0)
        dask.add_worker("one-1-0", resources=offered)
        assert events.wait_for("finished", i=1)[0]["w"] == "one-1-0"
        assert len(events.of("finished")) == 1
        run.close()


def test_steps_without_gpu_stay_off_gpu_workers_unless_allowed(tmp_path: Path, storage: str) -> None:
    with cluster(tmp_path, workers=0) as dask:
        dask.add_worker("gpu-0-0", resources="GPU=1")
        run = Run(
            dask.address,
            storage,
            [step("plain", "time:sleep", args(0)), step("ok", "time:sleep", args(0), gpu_ok=True)],
        )
        run.open()
        events = run.follow()
        run.submit((0, -1), (1, -1))
        events.wait_for("blocked", s=0, reason="OnlyGpuWorkers")
        events.wait_for("finished", s=1)
        assert not [e for e in events.of("started") if e["s"] == 0]
        run.rpc("stop", items=[[0, -1, 1]])
        events.wait_for("stopped")
        events.wait_for("unblocked", s=0)
        run.close()


def test_events_resume_where_the_connection_broke_and_tell_a_gap(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    first = run.follow(ack=False, window=3)
    run.submit(*[(0, i, values(0)) for i in range(20)])
    first.wait(lambda es: len(es) == 3)
    # Another who takes all has got all.
    all_of_it = run.follow(ack=False)
    all_of_it.wait(lambda es: committed(es) == 20)
    assert len(first.events) == 3, "more than the window"
    all_of_it.close()
    first.close()
    second = run.follow(since=run.cursor + 3, ack=True)
    second.wait(lambda es: committed(es) == 20)

    def refused() -> Any:
        """What is told once the acknowledgement has arrived."""
        third = run.follow(since=run.cursor)
        third.wait(lambda es: es or third.ended)
        third.close()
        return third.refused

    told = until("the events are forgotten", refused, 30)
    assert told["reason"] == "Gap" and f"run {run.uid}: events {run.cursor + 1} to " in told["message"]
    run.close()


def test_logs_reach_only_who_listens(dask: Cluster, storage: str) -> None:
    script = (
        "import time\nfor n in range(3):\n    print('line', n, flush=True)\n    time.sleep(0.1)\noutput = 1\n"
    )
    run = Run(dask.address, storage, [step("talk", script=script)]).open()
    deaf = run.follow()
    listening = run.follow(logs=True, since=None)
    listening.wait(lambda _: listening.beats)
    run.submit((0, -1))
    listening.wait(lambda es: sum(len(e["lines"]) for e in es if e["k"] == "logs") == 3)
    listening.wait_for("finished")
    assert not deaf.of("logs")
    run.close()


def test_decisions_are_kept_and_hand_on_what_waited(dask: Cluster, storage: str) -> None:
    steps = [SLEEP, step("all", "builtins:len", args(ref(1, 0, 0)), result=1)]
    run = Run(dask.address, storage, steps).open()
    events = run.follow()
    run.submit((0, 0, values(0)), (1, -1, None, [[0, -2, 2]]))
    events.wait_for("finished", s=0)
    run.rpc("record", records=[["skipped", 0, 1, "When", "when was false"]])
    assert events.wait_for("finished", s=1)[0]["json"] == 2
    wrong: list[tuple[list[Any], str]] = [
        (["nonsense", 1], r"record \('nonsense', 1\): its kind is not length, skipped, refused or invalidated"),
        (["length", 0], r"record \('length', 0\): it does not have the fields of length"),
        (["length", 9, 1], r"record \('length', 9, 1\): there is no step 9"),
        (["skipped", 0, 1, 2, ""], "it does not have the fields of skipped"),
    ]
    for bad, words in wrong:
        with pytest.raises(RpcError, match=words) as refused:
            run.rpc("record", records=[bad])
        assert refused.value.reason == "BadRequest"
    run.rpc("forget")
    again = Run(dask.address, storage, steps, uid=run.uid).open(create=False)
    assert again.snapshot["skipped"] == [[0, 1, "When", "when was false"]]
    again.close()


def test_a_failure_carries_class_type_and_text_and_is_kept(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [step("div", "operator:truediv", args(1, 0))]).open()
    events = run.follow()
    run.submit((0, -1))
    failed = events.wait_for("failed")[0]
    assert (failed["class"], failed["type"]) == ("app", "ZeroDivisionError") and "division" in failed[
        "message"
    ]
    run.rpc("forget")
    again = Run(dask.address, storage, run.request["steps"], uid=run.uid)

    def failures() -> Any:
        found = again.open(create=False).snapshot["failed"]
        return found or again.rpc("forget") and None

    assert until("the failure is in the journal", failures, 5) == [[0, -1, 1, "app"]]


def test_a_retiring_worker_ends_what_it_runs_and_hands_back_the_rest(tmp_path: Path, storage: str) -> None:
    with cluster(tmp_path, workers=1) as dask:
        run = Run(dask.address, storage, [SLEEP]).open()
        events = run.follow()
        hurry(run, events)
        run.submit((0, 0, values(6)))
        events.wait_for("started", i=0)
        run.submit((0, 1, values(0)))
        handed_over(dask, 2)
        address = events.of("worker")[0]["address"]
        admin = Conn(dask.address)
        admin.call("retire_workers", workers=[address], close_workers=False, remove=False)
        events.wait_for("blocked", reason="WorkersNotRunning")
        dask.add_worker("cpu-1-0")
        assert events.wait_for("finished", i=1)[0]["w"] == "cpu-1-0"
        assert events.wait_for("finished", i=0)[0]["w"] == "cpu-0-0"
        until("it has nothing left", lambda: not admin.call("processing", workers=[address])[address], 5)
        assert not events.of("lost") and sum(event["i"] < 1000 for event in events.of("started")) == 2
        run.close()


def test_a_scheduler_that_closes_says_so_and_ends(dask: Cluster, storage: str) -> None:
    run = Run(dask.address, storage, [SLEEP]).open()
    events = run.follow()
    run.submit((0, 0, values(60)))
    events.wait_for("started")
    run.rpc("record", records=[["length", 0, 7]])
    dask.scheduler.signal(signal.SIGTERM)
    # What a person is told of the loss.
    assert events.wait_for("closing")[0]["message"] == "it closes"
    assert dask.scheduler.popen.wait(20) == 0
    assert any(b"\xa6length\x00\x07" in s.read_bytes() for s in journal_of(storage, run).glob("*.seg"))


def test_higher_priorities_go_first_and_few_are_at_dask_at_a_time(tmp_path: Path, storage: str) -> None:
    with cluster(tmp_path, workers=1) as dask:
        run = Run(dask.address, storage, [SLEEP]).open()
        events = run.follow()
        run.submit(*[{"s": 0, "i": i, "v": values(0.3), "p": 0} for i in range(6)])
        events.wait_for("started")
        admin = Conn(dask.address)
        (waiting,) = admin.call("processing").values()
        assert len(waiting) <= 2
        run.submit({"s": 0, "i": 9, "v": values(0.3), "p": 5})
        events.wait_for("finished", 7)
        order = [e["i"] for e in events.of("started")]
        assert order.index(9) <= 3, order
        # What goes to Dask in one batch has no order among itself.
        assert all(abs(place - i) <= 1 for place, i in enumerate(i for i in order if i != 9)), order
        run.close()


def test_a_long_list_is_indexed_once_not_with_each_of_its_items(dask: Cluster, storage: str) -> None:
    steps = [
        step("many", "builtins:range", args(0), serializer="pickle"),
        step("list", "builtins:list", args(ref(0, 0, -1, [])), container=True, lens=[[]]),
        step("each", "operator:mul", args(2, ref(2, 0)), result=1),
    ]
    steps[0] = step("many", "builtins:range", args(3000))
    run = Run(dask.address, storage, steps).open()
    events = run.follow()
    run.submit((0, -1), (1, -1, None, [[0, -1]]))
    assert events.wait_for("finished", s=1)[0]["lens"] == [3000]
    run.submit(*[(2, i, values(ref(3, 1, -1, i)), [[1, -1]]) for i in (0, 7, 2999)])
    assert {e["i"]: e["json"] for e in events.wait_for("finished", 3, s=2)} == {0: 0, 7: 14, 2999: 5998}
    handle = run.conn.rpc("daskade-handle", run=run.uid, s=1, i=-1)["handle"]
    assert len(handle["x"]) == 8 * 3001
    run.close()
