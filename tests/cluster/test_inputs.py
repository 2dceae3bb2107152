"""Objects in storage that steps name by their paths, read and kept by a run's own pods with their identity."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from cluster.runs import start, status, succeeded, wait_end
from support.kube.namespace import Namespace
from support.kube.s3 import Folder, Shared
from support.kube.settings import Object

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="pods' addresses are not reachable from here"
)


def pipeline(s3: Folder, if_exists: str) -> Object:
    """Reads below the storage and elsewhere in the bucket, and keeps the sum."""
    inputs = {"near": {"path": "in/near.json"}, "far": {"path": s3.url("elsewhere/far.json")}}
    output = {"path": "out/sum.json", "serializer": "json", "ifExists": if_exists}
    steps = [
        {"name": "add", "script": "output = near + far", "inputs": inputs, "output": output},
        {"name": "tell", "script": "output = x", "args": {"x": "$(steps.add.output)"}},
    ]
    return {"cluster": {"ref": "c"}, "steps": steps, "results": [{"name": "sum", "value": "$(steps.tell.output)"}]}


def test_objects_are_read_and_kept_by_the_runs_own_pods(space: Namespace) -> None:
    s3 = Shared(space)
    space.cluster("c", {"name": "cpu", "replicas": 1}, storage=s3.storage("c"))
    s3.put("c/in/near.json", b"1")
    kind = {"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": "p"}}
    space.apply({**kind, "spec": {**pipeline(s3, "Fail"), "triggers": {"onChange": False}}})

    start(space, "missing", pipelineRef="p")
    failures = wait_end(space, "missing", "Failed")["failures"]
    assert failures[0]["class"] == "data" and s3.url("elsewhere/far.json") in failures[0]["message"], failures
    s3.put("elsewhere/far.json", b"10")
    start(space, "first", pipelineRef="p")
    assert wait_end(space, "first")["results"] == {"sum": 11}
    assert json.loads(s3.read("c/out/sum.json")) == 11

    start(space, "again", pipelineRef="p")
    failures = wait_end(space, "again", "Failed")["failures"]
    assert "OutputExists" in failures[0]["message"] and "out/sum.json" in failures[0]["message"], failures
    start(space, "reused", pipelineRef="p", reuse={"mode": "Missing"})
    assert wait_end(space, "reused")["steps"]["cached"] == 2

    s3.put("elsewhere/far.json", b"100")
    space.apply({**kind, "spec": {**pipeline(s3, "Replace"), "triggers": {"onChange": False}}})
    start(space, "changed", pipelineRef="p", reuse={"mode": "Missing"})
    told = wait_end(space, "changed")
    assert (told["results"], told["steps"].get("cached", 0)) == ({"sum": 101}, 0)
    assert json.loads(s3.read("c/out/sum.json")) == 101
    s3.put("c/out/sum.json", b"7")
    start(space, "skipped", pipelineSpec=pipeline(s3, "Skip"))
    assert wait_end(space, "skipped")["results"] == {"sum": 7}

    def submit(name: str, path: str) -> subprocess.CompletedProcess[str]:
        words = ["submit", "p", "--name", name, "--from-inputs", path, "-n", space.name]
        return subprocess.run([os.environ["DASKADE_BIN"], *words], capture_output=True, text=True)

    refused = submit("nowhere", "in/nea.json")
    assert refused.returncode == 2 and "UnknownInput" in refused.stderr and "in/near.json" in refused.stderr, refused
    assert submit("part", "in/near.json").returncode == 0
    assert wait_end(space, "part")["results"] == {"sum": 101}
    assert (space.find("pipelinerun", "part") or {})["spec"]["select"] == {"fromInputs": ["in/near.json"]}
    start(space, "unknown", pipelineRef="p", select={"fromInputs": ["x"]})
    wait_end(space, "unknown", "Invalid")
    assert "spec.select.fromInputs[0]: UnknownInput" in succeeded(space, "unknown")["message"]
    assert not status(space, "unknown").get("cluster")
