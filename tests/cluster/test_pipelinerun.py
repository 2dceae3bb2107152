"""Runs of pipelines by the operator: on a cluster of their own or a shared one, to the end, whatever is killed.

Executions are counted by what the steps leave on the S3 server, never by what the operator tells.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from cluster.runs import (
    Ledger,
    assert_clean,
    diamond,
    ledger_pipeline,
    start,
    status,
    succeeded,
    template,
    wait_end,
    wait_gone,
    wait_progress,
)
from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import Shared
from support.kube.settings import RUN
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="pods' addresses are not reachable from here"
)


def test_a_run_makes_its_cluster_finishes_and_takes_the_cluster_down(space: Namespace) -> None:
    s3 = Shared(space)
    start(space, "d", pipelineSpec=diamond(**template(s3, "d")), params={"n": 8})
    told = wait_end(space, "d")
    assert told["results"] == {"total": 56}
    assert (told["progress"], told["state"]) == ("25/25", "Succeeded")
    assert told["steps"] == {"total": 25, "done": 25, "running": 0, "failed": 0, "skipped": 0, "cached": 0}
    assert_clean(space, "d")
    run = space.find("pipelinerun", "d") or {}
    assert told["storageUrl"] == f"{s3.url('d')}/runs/{run['metadata']['uid']}"
    assert any(key.startswith(f"d/runs/{run['metadata']['uid']}/journal/") for key in s3.keys("d/"))
    revision = space.find("controllerrevision", told["revision"]) or {}
    assert revision["metadata"]["ownerReferences"][0]["uid"] == run["metadata"]["uid"]
    shown = kubectl("-n", space.name, "get", "dpr", "d", "--no-headers").split()
    assert shown[:3] == ["d", "Succeeded", "25/25"], shown


def test_two_runs_share_a_cluster_at_once_and_a_pipeline_may_go_meanwhile(space: Namespace, operator: Operator) -> None:
    s3 = Shared(space)
    space.cluster("shared", {"name": "cpu", "replicas": 2}, storage=s3.storage("shared"))
    space.wait_ready("shared")
    one, two = Ledger(s3, "one"), Ledger(s3, "two")
    ref = {"cluster": {"ref": "shared"}}
    pipeline = {"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": "p"}}
    space.apply({**pipeline, "spec": {**ledger_pipeline(one, 6, 1.0, **ref), "triggers": {"onChange": False}}})
    start(space, "one", pipelineRef="p")
    start(space, "two", pipelineSpec=ledger_pipeline(two, 6, 1.0, **ref))
    until("both run", lambda: {status(space, name).get("state") for name in ("one", "two")} == {"Running"})
    # What runs is what was there when it began.
    space.delete("pipeline", "p")
    for name, ledger in (("one", one), ("two", two)):
        assert wait_end(space, name)["results"] == {"sum": 15}
        assert ledger.executions() == {**{f"slow/{i}": 1 for i in range(6)}, "add/0": 1}
    assert space.find("daskcluster", "shared"), "it is not the runs' to delete"

    # A run of one step on a warm cluster costs few writes.
    before = operator.writes()
    start(space, "small", pipelineSpec=ledger_pipeline(Ledger(s3, "small"), 1, 0.0, **ref))
    wait_end(space, "small")
    until("no finalizer", lambda: not (space.find("pipelinerun", "small") or {})["metadata"].get("finalizers"))
    time.sleep(1.0)
    written = operator.writes() - before
    # Of these some are the cluster's own: its counts change while the run is there.
    assert written <= 10, operator.writes_by_kind()


def test_a_step_that_fails_is_told_with_the_command_that_shows_more(space: Namespace) -> None:
    s3 = Shared(space)
    code = "def bad(i):\n    raise ValueError(f'no {i}')\n\ndef after(x):\n    return x\n"
    steps = [
        {"name": "bad", "call": "m:bad", "map": {"i": "$(range(12))"}},
        {"name": "after", "call": "m:after", "args": {"x": "$(steps.bad.output)"}},
    ]
    spec = {"code": {"files": {"m.py": code}}, "steps": steps, **template(s3, "f")}
    start(space, "f", pipelineSpec=spec)
    told = wait_end(space, "f", "Failed")
    assert told["state"] == "Failed"
    assert len(told["failures"]) == 10
    first = told["failures"][0]
    assert (first["step"], first["class"], first["attempts"]) == ("bad", "app", 1)
    assert first["message"].startswith("ValueError: no ")
    assert f"daskade logs -n {space.name} f bad --item {first['item']}" in first["message"]
    assert told["steps"]["failed"] == 12
    assert "ValueError" in succeeded(space, "f")["message"]
    assert_clean(space, "f")


def test_cancel_stops_steps_runs_what_is_final_and_keeps_what_is_done(space: Namespace) -> None:
    s3 = Shared(space)
    ledger = Ledger(s3, "cancel")
    spec = ledger_pipeline(ledger, 4, 600, **template(s3, "c"))
    spec["finally"] = [{"name": "last", "call": "ledger:slow", "args": {"i": "last", "seconds": 0}}]
    start(space, "c", pipelineSpec=spec)
    until("a step runs", lambda: (status(space, "c").get("steps") or {}).get("running", 0) >= 1)
    space.patch("pipelinerun", "c", {"spec": {"cancel": True}})
    told = wait_end(space, "c", "Cancelled", 60)
    assert told["state"] == "Cancelled"
    assert ledger.executions().get("slow/last") == 1
    assert_clean(space, "c")


def test_a_wrong_spec_is_refused_with_every_field_and_a_missing_pipeline_is_waited_for(space: Namespace) -> None:
    s3 = Shared(space)
    start(space, "unpinned", pipelineSpec={"steps": [{"name": "a", "call": "m:f"}]}, select={"loadVersions": {"a": "b"}})
    wait_end(space, "unpinned", "Invalid", 30)
    assert "spec.select.loadVersions.a: UnknownInput" in succeeded(space, "unpinned")["message"]
    steps = [{"name": "a", "call": "m:f", "args": ["$(steps.b.output)"]}, {"name": "c", "call": "m:f", "workerGroup": "gpu"}]
    start(space, "wrong", pipelineSpec={"steps": steps, **template(s3, "w")})
    wait_end(space, "wrong", "Invalid", 30)
    message = succeeded(space, "wrong")["message"]
    assert "spec.pipelineSpec.steps[0].args[0]: UnknownStep" in message and "UnknownWorkerGroup" in message
    start(space, "nowhere", pipelineSpec={"steps": [{"name": "a", "call": "m:f"}]})
    wait_end(space, "nowhere", "Invalid", 30)
    assert "spec.pipelineSpec.storage: MissingField" in succeeded(space, "nowhere")["message"]
    address = {"cluster": {"address": "tcp://203.0.113.7:8786"}, "storage": {"url": "s3://runs/a"}}
    start(space, "outside", pipelineSpec={"steps": [{"name": "a", "call": "m:f"}], **address})
    wait_end(space, "outside", "Invalid", 30)
    message = succeeded(space, "outside")["message"]
    assert "spec.pipelineSpec.cluster.address: NotAllowed" in message and "--allow-address" in message
    assert not space.list("pods", "daskade.dev/cluster"), "nothing was started"

    start(space, "waits", pipelineRef="later", params={"n": 2})
    until("it waits", lambda: succeeded(space, "waits").get("reason") == "PipelineNotFound", 30)
    pipeline = {"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": "later"}}
    space.apply({**pipeline, "spec": {**diamond(**template(s3, "l")), "triggers": {"onChange": False}}})
    assert wait_end(space, "waits")["results"] == {"total": 2}


def test_why_a_run_waits_is_told_in_one_line_and_a_suspended_run_stops(space: Namespace) -> None:
    s3 = Shared(space)
    ledger = Ledger(s3, "s")
    where = template(s3, "s")
    where["storage"]["secretRef"] = "later"
    start(space, "s", pipelineSpec=ledger_pipeline(ledger, 2, 2.0, **where))

    def reason() -> str:
        return str(succeeded(space, "s").get("reason"))

    until("it waits for the Secret", lambda: reason() == "SecretNotFound", 120)
    assert "later" in succeeded(space, "s")["message"]
    space.patch("pipelinerun", "s", {"spec": {"suspend": True}})
    until("it is suspended", lambda: status(space, "s").get("state") == "Suspended", 30)
    wait_gone(space, "daskcluster", "s")
    secret = space.find("secret", "s3") or {}
    meta = {"name": "later"}
    space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": secret["data"]})
    space.patch("pipelinerun", "s", {"spec": {"suspend": False}})
    assert wait_end(space, "s")["results"] == {"sum": 1}
    assert ledger.executions() == {"slow/0": 1, "slow/1": 1, "add/0": 1}


def test_a_storage_that_refuses_is_told_and_a_cancelled_run_does_not_wait_for_it(space: Namespace) -> None:
    s3 = Shared(space)
    keys = {"AWS_ACCESS_KEY_ID": "daskade-test", "AWS_SECRET_ACCESS_KEY": "wrong"}
    space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"}, "stringData": keys})
    where = template(s3, "a")
    where["storage"]["secretRef"] = "wrong"
    start(space, "a", pipelineSpec=diamond(**where), params={"n": 2})
    until("it is refused", lambda: succeeded(space, "a").get("reason") == "AccessDenied", 120)
    told = status(space, "a")
    assert told["state"] == "Pending"
    assert next(found["status"] for found in told["conditions"] if found["type"] == "Stalled") == "True"
    space.patch("pipelinerun", "a", {"spec": {"cancel": True}})
    wait_end(space, "a", "Cancelled", 30)
    assert_clean(space, "a")


def test_steps_that_fit_no_node_are_told_in_kubernetes_words_until_the_deadline(space: Namespace) -> None:
    s3 = Shared(space)
    nowhere = {"name": "cpu", "autoscale": {"min": 0, "max": 1}, "nodeSelector": {"daskade.dev/nowhere": "yes"}}
    spec = diamond(**template(s3, "u", nowhere), deadlines={"start": "40s"})
    start(space, "u", pipelineSpec=spec, params={"n": 2})
    until("it waits for a node", lambda: succeeded(space, "u").get("reason") == "Unschedulable", 60)
    assert "didn't match" in succeeded(space, "u")["message"]
    wait_end(space, "u", "DeadlineExceeded", 60)
    message = succeeded(space, "u")["message"]
    assert "deadlines.start" in message and "didn't match" in message
    assert_clean(space, "u")


def test_the_operator_is_killed_and_the_run_goes_on_without_a_step_run_twice(space: Namespace, operator: Operator) -> None:
    s3 = Shared(space)
    ledger = Ledger(s3, "k")
    start(space, "k", pipelineSpec=ledger_pipeline(ledger, 12, 2.0, **template(s3, "k")))
    for done in (1, 6):
        wait_progress(space, "k", done)
        operator.stop(signal.SIGKILL)
        operator.start()
    assert wait_end(space, "k")["results"] == {"sum": 66}
    # The workers were never disturbed: nothing ran twice, committed or not.
    assert ledger.executions() == {**{f"slow/{i}": 1 for i in range(12)}, "add/0": 1}
    assert_clean(space, "k")


def test_a_leader_that_is_stopped_loses_the_run_to_another_and_does_not_take_it_back(
    space: Namespace, operator: Operator, installed: Path, tmp_path: Path
) -> None:
    s3 = Shared(space)
    ledger = Ledger(s3, "l")
    start(space, "l", pipelineSpec=ledger_pipeline(ledger, 16, 2.0, **template(s3, "l")))
    wait_progress(space, "l", 2)
    second = Operator(Path(os.environ["DASKADE_BIN"]), tmp_path, installed, *operator.options, leads=False)
    opened = f'"{space.name}/l","epoch":'
    assert operator.process is not None
    operator.process.send_signal(signal.SIGSTOP)
    try:
        until("the other leads", second.leads, 60)
        led = time.monotonic()
        until("the run is open again", lambda: f"{opened}2" in second.log.read_text(), 30, every=0.1)
        took = time.monotonic() - led
        operator.process.send_signal(signal.SIGCONT)
        assert took < 5, took
        assert wait_end(space, "l")["results"] == {"sum": 120}
        assert ledger.executions() == {**{f"slow/{i}": 1 for i in range(16)}, "add/0": 1}
        assert f"{opened}3" not in operator.log.read_text() + second.log.read_text(), "it was opened once by each"
        assert_clean(space, "l")
    finally:
        operator.process.send_signal(signal.SIGCONT)
        second.stop()
    until("the first leads again", operator.leads, 60)


def test_scheduler_and_worker_are_deleted_and_no_committed_step_runs_twice(space: Namespace) -> None:
    s3 = Shared(space)
    ledger = Ledger(s3, "w")
    group = {"name": "cpu", "replicas": 2}
    start(space, "w", pipelineSpec=ledger_pipeline(ledger, 16, 2.0, **template(s3, "w", group)))
    wait_progress(space, "w", 2)
    (scheduler,) = space.pods("w", "scheduler")
    done = status(space, "w")["steps"]["done"]
    space.delete("pod", scheduler["metadata"]["name"], wait=False, grace=1)
    until("it is lost", lambda: not (space.find("pod", scheduler["metadata"]["name"])), 90)
    wait_progress(space, "w", done + 2)
    space.delete("pod", space.workers("w")[0], wait=False, grace=0)
    assert wait_end(space, "w", patience=300)["results"] == {"sum": 120}
    executions = ledger.executions()
    assert set(executions) == {*(f"slow/{i}" for i in range(16)), "add/0"}
    # Two workers with one step each were lost twice: what they ran may have run again, and nothing else.
    assert sum(executions.values()) <= 17 + 4, executions
    assert_clean(space, "w")


def test_a_scheduler_outside_is_used_where_the_operator_allows_it(space: Namespace, operator: Operator) -> None:
    """The scheduler of a cluster that the run knows by its address alone, with the certificates of its clients."""
    s3 = Shared(space)
    space.cluster("e", {"name": "cpu", "replicas": 1}, storage=s3.storage("e"))
    space.wait_ready("e")
    operator.stop()
    operator.start(*operator.options, "--allow-address", "tls://10.*:8786")
    try:
        address = f"tls://{space.scheduler_ip('e')}:8786"
        where = {"cluster": {"address": address, "tls": {"secretRef": "later"}}, "storage": {"url": s3.url("outside")}}
        ledger = Ledger(s3, "outside")
        retention = {"outputs": "10s", "logs": "10s"}
        start(space, "o", pipelineSpec=ledger_pipeline(ledger, 3, 0.1, **where), retention=retention)
        until("it waits for the Secret", lambda: succeeded(space, "o").get("reason") == "SecretNotFound", 60)
        data = (space.find("secret", "e-client-tls") or {})["data"]
        space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "later"}, "data": data})
        assert wait_end(space, "o")["results"] == {"sum": 3}
        assert ledger.executions() == {"slow/0": 1, "slow/1": 1, "slow/2": 1, "add/0": 1}

        # By that scheduler is removed as well what the run has stored, when its time is over.
        def is_removed() -> bool:
            conditions = status(space, "o").get("conditions") or []
            return any(found["type"] == "Removed" and found["status"] == "True" for found in conditions)

        until("what it has stored is removed", is_removed, 120)
        uid = (space.find("pipelinerun", "o") or {})["metadata"]["uid"]
        base = f"outside/runs/{uid}/"
        left = {key[len(base) :].partition("/")[0] for key in s3.keys(base)}
        assert left == {"removed"}, left
    finally:
        operator.stop()
        operator.start()


def test_a_deleted_run_leaves_nothing_open_on_a_shared_cluster(space: Namespace) -> None:
    s3 = Shared(space)
    space.cluster("shared", {"name": "cpu", "replicas": 1}, storage=s3.storage("shared"))
    space.wait_ready("shared")
    ledger = Ledger(s3, "x")
    start(space, "x", pipelineSpec=ledger_pipeline(ledger, 3, 600, cluster={"ref": "shared"}))
    until("a step runs", lambda: (status(space, "x").get("steps") or {}).get("running", 0) >= 1)
    space.delete("pipelinerun", "x", patience=90)
    until("the cluster is idle", lambda: space.status("shared").get("idleSince"), 60)
    assert sum(ledger.executions().values()) == 1


def test_a_finished_run_is_deleted_after_its_time(space: Namespace) -> None:
    start(space, "t", pipelineSpec={"steps": [{"name": "a", "call": "m:f"}]}, ttlAfterFinished="2s")
    wait_gone(space, "pipelinerun", "t")
    assert RUN in space.name


def test_the_spec_of_a_run_does_not_change(space: Namespace) -> None:
    step = {"name": "a", "call": "builtins:sum", "args": [["$(params.rows)", 1]]}
    spec = {"steps": [step], "params": [{"name": "rows", "type": "integer"}], "storage": {"url": "s3://runs/f"}}
    start(space, "f", pipelineSpec=spec, params={"rows": 3, "more": {"a": [1]}}, suspend=True)
    for field, value in {
        "params": {"rows": 4},
        "pipelineSpec": {"steps": [{**step, "args": []}]},
        "select": {"only": ["a"]},
        "reuse": {"mode": "Missing"},
        "deadlines": {"active": "1h"},
        "retention": {"outputs": "1h"},
    }.items():
        with pytest.raises(AssertionError, match=f"{field} cannot be changed; make another run"):
            space.patch("pipelinerun", "f", {"spec": {field: value}})
    with pytest.raises(AssertionError, match="params cannot be changed"):
        space.patch("pipelinerun", "f", {"spec": {"params": {"more": None}}})
    # What is as it was may be written again, and what stops it or removes it changes.
    space.patch("pipelinerun", "f", {"spec": {"params": {"rows": 3}, "ttlAfterFinished": "1h", "cancel": True}})
    with pytest.raises(AssertionError, match="a cancel cannot be taken back"):
        space.patch("pipelinerun", "f", {"spec": {"cancel": False}})
