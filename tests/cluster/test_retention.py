"""What runs have stored is removed when its time is over, on real pods and a real S3 server; what others use stays."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from cluster.runs import assert_clean, start, status, succeeded, template, wait_end, wait_progress
from support.kube.namespace import Namespace
from support.kube.s3 import Folder, Shared
from support.kube.settings import Object
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="the addresses of its pods are this machine's"
)

# Outputs too large for the journal become objects of their own.
CODE = """
import time

def make(i):
    return bytes(100_000 + i)

def add(values, seconds):
    time.sleep(seconds)
    return sum(len(value) for value in values)
"""
ITEMS = 4
SUM = 100_000 * ITEMS + sum(range(ITEMS))


def pipeline(**where: Any) -> Object:
    steps = [
        {"name": "make", "call": "flow:make", "map": {"i": f"$(range({ITEMS}))"}},
        {"name": "add", "call": "flow:add", "args": ["$(steps.make.output)", "$(params.seconds)"]},
    ]
    params = [{"name": "seconds", "type": "integer", "default": 0}]
    results = [{"name": "sum", "value": "$(steps.add.output)"}]
    return {"code": {"files": {"flow.py": CODE}}, "params": params, "steps": steps, "results": results, **where}


def uid(space: Namespace, name: str) -> str:
    return str((space.find("pipelinerun", name) or {})["metadata"]["uid"])


def removed(space: Namespace, name: str) -> Object:
    conditions = status(space, name).get("conditions") or []
    return next((dict(found) for found in conditions if found["type"] == "Removed"), {})


def stored(s3: Folder, prefix: str, run: str) -> list[str]:
    """Folders of what is left of a run, one for each object."""
    base = f"{prefix}/runs/{run}/"
    return sorted(key[len(base) :].partition("/")[0] for key in s3.keys(base))


def test_the_cluster_of_a_run_is_made_again_for_it_without_workers(space: Namespace) -> None:
    s3 = Shared(space)
    retention = {"outputs": "15s", "logs": "40s"}
    spec = pipeline(**template(s3, "own"))
    spec["steps"][-1]["output"] = {"path": "kept/$(run.name)", "serializer": "json"}
    start(space, "r", pipelineSpec=spec, retention=retention, ttlAfterFinished="1s")
    assert wait_end(space, "r")["results"] == {"sum": SUM}
    run = uid(space, "r")
    assert stored(s3, "own", run).count("data") == ITEMS
    assert stored(s3, "own", run).count("kept") == 1
    assert_clean(space, "r")
    until("its cluster is made again", lambda: space.find("daskcluster", "r"), 60)
    workers: list[str] = []

    def outputs_are_removed() -> bool:
        workers.extend(space.workers("r"))
        return removed(space, "r").get("status") == "True"

    until("its outputs are removed", outputs_are_removed, 120)
    left = stored(s3, "own", run)
    assert not {"data", "kept"} & set(left) and "journal" in left, left
    assert not workers
    times = status(space, "r")["removed"]
    assert re.fullmatch(r"[0-9TZ:-]+", times["outputsAt"]) and "logsAt" not in times, times
    # The object stays until all is done, although its own time was over long ago.
    until("the object is gone", lambda: space.find("pipelinerun", "r") is None, 180)
    assert stored(s3, "own", run) == ["removed", "removed"]
    assert list(s3.keys("own/kept/")) == ["own/kept/r"], "what has a path of its own is nobody's but the user's"
    assert not [key for key in s3.keys("own/pipelines/") if key.endswith(run)], "nobody finds it any more"


def test_outputs_that_a_later_run_has_taken_over_stay_as_long_as_it_does(space: Namespace) -> None:
    s3 = Shared(space)
    space.cluster("c", {"name": "cpu", "replicas": 1}, storage=s3.storage("shared"))
    space.wait_ready("c")
    spec = {"triggers": {"onChange": False}, **pipeline(cluster={"ref": "c"})}
    meta = {"name": "p"}
    space.apply({"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": meta, "spec": spec})
    start(space, "first", pipelineRef="p", retention={"outputs": "20s"})
    wait_end(space, "first")
    first = uid(space, "first")
    # It takes over what `make` has made, and is still at work when the first one's time is over. What the first one has stored
    # is looked at again within a minute of the second one's end: its own time is longer.
    again = {"params": {"seconds": 45}, "reuse": {"mode": "Missing"}, "retention": {"outputs": "2m", "logs": "2m"}}
    start(space, "second", pipelineRef="p", **again)
    wait_progress(space, "second", ITEMS)
    assert status(space, "second")["steps"]["cached"] == ITEMS
    until("it waits for the second run", lambda: removed(space, "first").get("reason") == "OutputsInUse", 60)
    message = removed(space, "first")["message"]
    assert uid(space, "second") in message and "second" in message, message
    assert stored(s3, "shared", first).count("data") == ITEMS
    # Nobody takes anything over from now on.
    start(space, "late", pipelineRef="p", reuse={"mode": "Missing", "run": first})
    wait_end(space, "late", "OutputsRemoved")
    assert f"what first ({first}) had stored was removed at" in succeeded(space, "late")["message"]

    assert wait_end(space, "second")["results"] == {"sum": SUM}
    until("the first one is done", lambda: removed(space, "first").get("status") == "True", 180)
    assert status(space, "first")["removed"]["outputsKept"] == ITEMS
    assert f"{ITEMS} outputs stay" in removed(space, "first")["message"]
    assert stored(s3, "shared", first).count("data") == ITEMS

    # With the last run that needs them they go, wherever they are.
    until("the second one is done", lambda: removed(space, "second").get("status") == "True", 180)
    assert stored(s3, "shared", uid(space, "second")) == ["removed", "removed"]
    left = stored(s3, "shared", first)
    assert "data" not in left and "refs" not in left and "journal" in left, left
    start(space, "fresh", pipelineRef="p", reuse={"mode": "Missing"})
    assert wait_end(space, "fresh")["results"] == {"sum": SUM}
    assert status(space, "fresh")["steps"]["cached"] == 0
