"""Workers that give way to pods of their own cluster, on a node that has room for one of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime

import pytest
import yaml

from cluster.runs import start, succeeded, wait_end
from support import TOP
from support.kube.api import kubectl
from support.kube.client import Client
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import Shared
from support.kube.settings import RUN, SMALL, Object
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="the node is changed, and filled"
)
# What a node has one of: other tests neither take nor free any.
PLACE = f"example.org/place-{RUN}"


def node() -> Object:
    (only,) = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    return dict(only)


@pytest.fixture(scope="module")
def single() -> Iterator[Object]:
    """Resources of which the node has enough for one pod."""
    name = node()["metadata"]["name"]

    def patch(op: str) -> None:
        change = [{"op": op, "path": f"/status/capacity/{PLACE.replace('/', '~1')}", "value": "1"}]
        kubectl("patch", "node", name, "--subresource=status", "--type=json", "-p", json.dumps(change))

    patch("add")
    until("the node offers a place", lambda: node()["status"]["allocatable"].get(PLACE) == "1", 60)
    yield {**SMALL, "limits": {**SMALL["limits"], PLACE: "1"}}
    patch("remove")


def most_of_the_cpu() -> Object:
    """Resources that no two pods can have at once, whatever else is on the node."""
    text = str(node()["status"]["allocatable"]["cpu"])
    thousandths = int(text[:-1]) if text.endswith("m") else 1000 * int(text)
    return {"requests": {"cpu": f"{thousandths * 55 // 100}m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}


def time_of(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def waited(pod: Object) -> float:
    """For how long a pod had no node, in seconds."""
    conditions = {condition["type"]: condition for condition in pod["status"].get("conditions") or []}
    assert conditions["PodScheduled"]["status"] == "True", pod["status"]
    return time_of(conditions["PodScheduled"]["lastTransitionTime"]) - time_of(pod["metadata"]["creationTimestamp"])


def test_the_guides_pipeline_runs_on_a_node_with_room_for_one_worker(
    space: Namespace, operator: Operator
) -> None:
    """The step that follows the one with the GPU needs a worker like those that hold the room."""
    s3 = Shared(space)
    nightly = yaml.safe_load((TOP / "examples/nightly.yaml").read_text())
    nightly["spec"]["storage"] = s3.storage("nightly")
    nightly["spec"]["schedule"] = {**nightly["spec"]["schedule"], "cron": None, "timeZone": None, "interval": "1h"}
    nightly["spec"]["cluster"]["template"]["scheduler"] = {"resources": SMALL}
    for group in nightly["spec"]["cluster"]["template"]["workers"]:
        group["resources"] = most_of_the_cpu()
    space.apply(nightly)
    until("a run", lambda: space.list("pipelineruns"), 60)
    (run,) = space.list("pipelineruns")
    told = wait_end(space, run["metadata"]["name"], patience=400)
    assert told["results"] == {"report": {"weights": [1.0, -2.0, 3.0, 0.5]}}


def test_an_idle_worker_gives_way_sooner_than_it_would_go_by_itself(space: Namespace, single: Object) -> None:
    groups: list[Object] = [{"name": "cpu"}, {"name": "gpu", "gpu": {"count": 1}}]
    space.cluster("g", *({**group, "autoscale": {"min": 0, "max": 1}, "resources": single} for group in groups))
    space.wait_ready("g")
    code = """
say(client.submit(sum, [1, 2]).result())
asked = client.submit(sum, [3, 4], resources={"GPU": 1})
say(asked.result())
"""
    client = Client(space, "g", code)
    until("a worker with a GPU", lambda: space.workers("g", "gpu"), 120)
    until("it has its place", lambda: space.pods("g", "worker", "gpu")[0]["spec"].get("nodeName"), 60)
    (pod,) = space.pods("g", "worker", "gpu")
    # Without work a worker is kept for 30 s.
    assert waited(pod) < 25, pod
    assert client.output().split() == ["3", "7"]
    assert len(space.pods("g", "worker", "gpu")) == 1


def test_a_wait_that_the_cluster_itself_causes_is_told_as_such_to_cluster_and_run(
    space: Namespace, single: Object
) -> None:
    s3 = Shared(space)
    gpu = {"name": "gpu", "autoscale": {"min": 0, "max": 1}, "gpu": {"count": 1}, "resources": single}
    space.cluster("kept", {"name": "cpu", "replicas": 1, "resources": single}, gpu, storage=s3.storage("kept"))
    space.wait_ready("kept")
    code = "def work():\n    return 7\n"
    steps = [{"name": "train", "call": "m:work", "resources": {"GPU": 1}}]
    results = [{"name": "train", "value": "$(steps.train.output)"}]
    spec = {"code": {"files": {"m.py": code}}, "steps": steps, "results": results, "cluster": {"ref": "kept"}}
    start(space, "r", pipelineSpec=spec)
    message = space.wait_reason("kept", "HeldByCluster", "WorkersReady", 90)
    assert "group cpu: 1 idle (kept by replicas: 1)" in message and f"Insufficient {PLACE}" in message, message
    until("the run says so", lambda: succeeded(space, "r").get("reason") == "HeldByCluster", 60)
    assert "kept by replicas: 1" in succeeded(space, "r")["message"]
    # Nobody takes away what the spec asks for.
    assert len(space.workers("kept", "cpu")) == 1
    space.cluster("kept", {"name": "cpu", "replicas": 0, "resources": single}, gpu, storage=s3.storage("kept"))
    assert wait_end(space, "r")["results"] == {"train": 7}
