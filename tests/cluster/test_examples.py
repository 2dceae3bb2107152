"""Examples of this project that need more than the worker image, unchanged, on an operator with defaults."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.runs import wait_end
from support import TOP
from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import Shared
from support.kube.settings import SMALL
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="pods' addresses are not reachable from here"
)
IMAGE = os.environ.get("DASKADE_TEST_FLIGHTS_IMAGE", "localhost/flights:test")
# Departures in the first two months of 2013, as the package's own table has them.
FLIGHTS = 27_004 + 24_951


def test_flights_are_submitted_as_they_are_by_the_plugin_of_kubectl(
    space: Namespace, operator: Operator, tmp_path: Path
) -> None:
    """The manifest names no storage and no image, and its code is a folder beside it."""
    s3 = Shared(space)
    where = ["--default-storage-url", s3.url("all"), "--default-storage-endpoint", s3.endpoint]
    where += ["--default-storage-region", "us-east-1", "--default-storage-secret", "s3"]
    (tmp_path / "kubectl-daskade").symlink_to(operator.binary.resolve())
    usual = operator.image
    operator.stop()
    try:
        operator.image = IMAGE
        operator.start(*operator.options, *where)
        words = ["kubectl", "daskade", "submit", str(TOP / "examples/flights.yaml"), "-n", space.name]
        words += ["-p", "months=[1, 2]", "-p", "rounds=5", "--wait", "-o", "json"]
        path = f"{tmp_path}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path}
        run = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            gpus = until("a worker with a GPU", lambda: space.list("pods", "daskade.dev/gpu=1"), 120)
            assert gpus[0]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
            out, err = run.communicate(timeout=280)
        finally:
            run.kill()
        assert run.returncode == 0, (out, err)
        told = json.loads(out)
        assert told["steps"]["done"] == told["steps"]["total"], told
        (made,) = space.list("pipelineruns")
        report = made["status"]["results"]["report"]
        assert sum(row["flights"] for row in report["carriers"]) == FLIGHTS, report
        uid = made["metadata"]["uid"]
        assert s3.keys(f"all/{space.name}/runs/{uid}/journal/"), "each namespace has a folder of its own"
        until("its cluster is gone", lambda: not space.list("daskclusters"), 60)
        said = kubectl("-n", space.name, "get", "dpr", "--no-headers").split()
        assert said[1] == "Succeeded", said
    finally:
        operator.image = usual
        operator.stop()
        operator.start()


def test_the_guides_pipeline_runs_by_its_schedule_with_a_worker_that_has_a_gpu(
    space: Namespace, operator: Operator
) -> None:
    """examples/nightly.yaml with a storage that is there and a moment that is now."""
    s3 = Shared(space)
    nightly = yaml.safe_load((TOP / "examples/nightly.yaml").read_text())
    nightly["spec"]["storage"] = s3.storage("nightly")
    nightly["spec"]["schedule"] = {**nightly["spec"]["schedule"], "cron": None, "timeZone": None, "interval": "1h"}
    nightly["spec"]["cluster"]["template"]["scheduler"] = {"resources": SMALL}
    for group in nightly["spec"]["cluster"]["template"]["workers"]:
        group["resources"] = {**SMALL, "limits": {"memory": "512Mi"}}
    space.apply(nightly)
    gpus = until("a worker with a GPU", lambda: space.list("pods", "daskade.dev/gpu=1"), 120)
    assert gpus[0]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (run,) = space.list("pipelineruns")
    told = wait_end(space, run["metadata"]["name"])
    assert told["results"] == {"report": {"weights": [1.0, -2.0, 3.0, 0.5]}}
    until("its cluster is gone", lambda: not space.list("daskclusters"), 60)
    pipeline = space.find("pipeline", "nightly") or {}
    assert pipeline["status"]["lastRun"] == run["metadata"]["name"]
    assert pipeline["status"]["nextScheduleTime"]
