"""Groups with GPUs, on a node that advertises them without hardware: what Kubernetes and Dask make of them is real."""

from __future__ import annotations

import pytest

from support.kube.api import kubectl
from support.kube.client import ask
from support.kube.namespace import Namespace

GPU = {"name": "gpu", "replicas": 1, "gpu": {"count": 1}}


def test_a_gpu_group_is_labelled_for_kubernetes_and_for_dask(space: Namespace) -> None:
    selector = {"nvidia.com/gpu.present": "true"}
    space.cluster("g", {"name": "cpu", "replicas": 1}, {**GPU, "nodeSelector": selector})
    status = space.wait_ready("g")
    assert status["gpusReady"] == 1
    (pod,) = space.pods("g", "worker", "gpu")
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "GPU=1" in container["args"]
    assert pod["metadata"]["labels"]["daskade.dev/gpu"] == "1"
    assert pod["spec"]["nodeSelector"] == selector
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert toleration in pod["spec"]["tolerations"]
    others = space.pods("g", "scheduler") + space.pods("g", "worker", "cpu")
    assert not any("nvidia.com/gpu" in str(pod["spec"]) for pod in others)

    # A client's task that asks for a GPU runs there and nowhere else, twenty times out of twenty.
    code = """
where = lambda i: __import__("distributed").get_worker().name
asked = client.map(where, range(20), resources={"GPU": 1}, pure=False)
say(*sorted(set(client.gather(asked))))
"""
    assert ask(space, "g", code) == pod["metadata"]["name"]
    assert kubectl("-n", space.name, "get", "dsk", "g").splitlines()[1].split()[4] == "1"


@pytest.mark.parametrize("resource", ["amd.com/gpu", "nvidia.com/mig-1g.10gb"])
def test_other_vendors_and_slices_go_by_their_names(space: Namespace, resource: str) -> None:
    space.cluster("v", {"name": "gpu", "replicas": 1, "gpu": {"count": 1, "resourceName": resource}})
    space.wait_ready("v")
    (pod,) = space.pods("v", "worker")
    assert pod["spec"]["containers"][0]["resources"]["limits"][resource] == "1"
    assert {"key": resource, "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]
    code = "say(client.submit(sum, [1, 2], resources={'GPU': 1}).result(60))"
    assert ask(space, "v", code) == "3"


def test_more_gpus_than_there_are_is_told_in_the_schedulers_words(space: Namespace) -> None:
    space.cluster("many", {"name": "gpu", "replicas": 1, "gpu": {"count": 60}})
    message = space.wait_reason("many", "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in message and "many-gpu-0-" in message
    assert "add nodes" in message

