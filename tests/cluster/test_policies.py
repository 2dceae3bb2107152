"""Who reaches whom on a cluster that enforces NetworkPolicies; where none are enforced these tests are left out.

With ``DASKADE_TEST_POLICIES=enforced``, as on the cluster of ``tests/kube``, they fail there instead.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.pods import ENFORCED, Pod, start
from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.operator import Operator, manifest
from support.kube.settings import IMAGE, LABEL, OPERATOR_IMAGE, RUN, SYSTEM
from support.waiting import until

SCHEDULER, DASHBOARD, WORKER = 8786, 8787, 8788


def part(space: Namespace, cluster: str, component: str, at: int = 0) -> Pod:
    names = sorted(pod["metadata"]["name"] for pod in space.pods(cluster, component))
    return Pod(space.name, names[at])


def guarded(host: str, port: int, allowed: list[Pod], refused: list[Pod]) -> None:
    """Those of ``allowed`` connect, before and after the others do not, though each tries for seconds."""
    for pod in allowed:
        until(f"{pod.name} reaches {host}:{port}", partial(pod.opens, host, port), 60)
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda pod: pod.opens(host, port), refused))
    reached = [pod.name for pod, answer in zip(refused, answers, strict=True) if answer]
    assert not reached, f"they reach {host}:{port}: {reached}"
    until(f"{allowed[0].name} still reaches {host}:{port}", lambda: allowed[0].opens(host, port), 30)


@pytest.fixture(scope="module")
def enforced(operator: Operator) -> Iterator[None]:
    """Leaves the tests out where a policy that lets nothing in changes nothing."""
    space = Namespace(f"t-{RUN}-enforced", labels={LABEL: "none"})
    server, client = start(space.name, "server", {"app": "server"}), start(space.name, "client")
    host = server.address()
    try:
        until("pods reach each other without a policy", lambda: client.opens(host, 8000), 60)
        spec = {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": []}
        meta = {"name": "nobody"}
        space.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec})
        end = time.monotonic() + 30
        while client.opens(host, 8000):
            if time.monotonic() > end:
                why = "this cluster's network does not enforce NetworkPolicies: nothing to prove here"
                pytest.fail(why) if ENFORCED else pytest.skip(why)
            time.sleep(1)
        yield
    finally:
        space.close()


@dataclass(frozen=True)
class World:
    """Clusters ``a`` of two workers and ``b`` of one in a namespace, and pods around them."""

    space: Namespace
    client: Pod
    stranger: Pod
    # A client of `a` by its label, in a namespace of its own.
    foreigner: Pod


@pytest.fixture(scope="module")
def world(enforced: None) -> Iterator[World]:
    space = Namespace(f"t-{RUN}-policies")
    other = Namespace(f"t-{RUN}-policies-other", labels={LABEL: "none"})
    space.cluster("a", {"name": "w", "replicas": 2})
    space.cluster("b", {"name": "w", "replicas": 1})
    client = {"daskade.dev/client": "a"}
    made = World(
        space, start(space.name, "client", client), start(space.name, "stranger"), start(other.name, "foreigner", client)
    )
    space.wait_ready("a")
    space.wait_ready("b")
    yield made
    space.close()
    other.close()


def test_the_dashboard_is_for_clients_of_its_namespace(world: World) -> None:
    space = world.space
    others = [world.stranger, world.foreigner, part(space, "a", "worker"), part(space, "b", "scheduler")]
    guarded(space.scheduler_ip("a"), DASHBOARD, [world.client], others)
    # By way of the Service as well, and another cluster's is not theirs.
    guarded(f"a-scheduler.{space.name}", DASHBOARD, [world.client], [world.stranger, world.foreigner])
    assert not world.client.opens(space.scheduler_ip("b"), DASHBOARD)


def test_the_scheduler_is_there_for_clients(world: World) -> None:
    """The operator of these tests runs outside of the cluster: then nobody is kept from this port but by TLS."""
    guarded(world.space.scheduler_ip("a"), SCHEDULER, [world.client, part(world.space, "a", "worker"), world.stranger], [])


def test_a_worker_talks_to_its_own_cluster_alone(world: World) -> None:
    space = world.space
    first, second, scheduler = part(space, "a", "worker"), part(space, "a", "worker", 1), part(space, "a", "scheduler")
    theirs, their_scheduler = part(space, "b", "worker"), part(space, "b", "scheduler")
    around = [world.client, world.stranger, world.foreigner]
    guarded(first.address(), WORKER, [scheduler, second], [*around, theirs, their_scheduler])
    guarded(theirs.address(), WORKER, [their_scheduler], [*around, first, second, scheduler])


def test_with_the_operator_in_a_pod_the_scheduler_is_closed_to_strangers(enforced: None, installed: Path) -> None:
    space = Namespace(f"t-{RUN}-policies-pod", labels={LABEL: "none"})
    other = Namespace(f"t-{RUN}-policies-far", labels={LABEL: "none"})
    (deployment,) = [found for found in manifest() if found["kind"] == "Deployment"]
    name = deployment["metadata"]["name"] = f"{deployment['metadata']['name']}-policies"
    template: dict[str, Any] = deployment["spec"]["template"]
    container = template["spec"]["containers"][0]
    container["image"] = OPERATOR_IMAGE
    container["args"] += ["--watch-namespaces", space.name, "--image", IMAGE, "--lease-name", "policies"]
    kubectl("apply", "-f", "-", stdin=json.dumps(deployment))
    client = {"daskade.dev/client": "c"}
    neighbour = start(SYSTEM, f"neighbour-{os.urandom(2).hex()}")
    try:
        space.cluster("c", {"name": "w", "replicas": 1})
        labelled, stranger = start(space.name, "client", client), start(space.name, "stranger")
        foreigner = start(other.name, "foreigner", client)
        kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{name}", "--timeout=110s")
        # Only when the operator's connection to the scheduler stands.
        space.wait_ready("c")
        address, worker = space.scheduler_ip("c"), part(space, "c", "worker")
        guarded(address, SCHEDULER, [labelled, worker], [stranger, foreigner, neighbour])
        # With the labels of the operator, which is what the policy asks for, a pod of its namespace comes in.
        kubectl("-n", SYSTEM, "label", "pod", neighbour.name, *(f"{k}={v}" for k, v in template["metadata"]["labels"].items()))
        until("a pod with the operator's labels reaches it", lambda: neighbour.opens(address, SCHEDULER), 30)
        guarded(address, DASHBOARD, [labelled], [stranger, foreigner, neighbour])
    finally:
        kubectl("-n", SYSTEM, "delete", "pod", neighbour.name, "--wait=false")
        kubectl("-n", SYSTEM, "delete", "deployment", name, "--wait=false")
        space.close()
        other.close()
