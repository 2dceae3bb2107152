"""Level-triggered: whatever was changed, taken away or put in the way, the cluster becomes what the spec says."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest

from support.kube.api import kubectl, path_of, proxy
from support.kube.client import Client, ask
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.settings import OTHER_IMAGE, SYSTEM, Object
from support.waiting import until

ONE = {"name": "a", "replicas": 1}
TWO = {"name": "a", "replicas": 2}


def uid(found: Object | None) -> str:
    return str((found or {}).get("metadata", {}).get("uid", ""))


def is_ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("service", "c-scheduler"),
        ("networkpolicy", "c-worker"),
        ("networkpolicy", "c-scheduler"),
        ("secret", "c-tls"),
        ("secret", "c-client-tls"),
        ("configmap", ""),
    ],
)
def test_a_deleted_child_comes_back(shared: Namespace, kind: str, name: str) -> None:
    name = name or next(m["metadata"]["name"] for m in shared.list("configmaps") if "-runtime-" in m["metadata"]["name"])
    before = uid(shared.find(kind, name))
    pods = {uid(pod) for pod in shared.pods("c")}
    shared.delete(kind, name)
    until(f"{kind} {name} is back", lambda: uid(shared.find(kind, name)) not in ("", before), 90)
    shared.wait_ready("c")
    assert {uid(pod) for pod in shared.pods("c")} == pods


@pytest.mark.parametrize("component", ["worker", "scheduler"])
def test_a_deleted_pod_is_replaced(shared: Namespace, component: str) -> None:
    before = {uid(pod) for pod in shared.pods("c", component)}
    victim = shared.pods("c", component)[0]["metadata"]["name"]
    shared.delete("pod", victim, wait=False)

    def replaced() -> bool:
        now = shared.pods("c", component)
        ready = [pod for pod in now if is_ready(pod)]
        return len(ready) == len(before) and victim not in {pod["metadata"]["name"] for pod in now}

    until(f"the {component} is replaced", replaced, 120)
    shared.wait_ready("c")
    assert ask(shared, "c", "say(client.submit(sum, [2, 3]).result(90))") == "5"


def test_a_child_that_somebody_edits_is_repaired(shared: Namespace) -> None:
    shared.patch("service", "c-scheduler", {"spec": {"selector": {"dask.org/cluster-name": "stolen"}}})

    def selector() -> str:
        return str((shared.find("service", "c-scheduler") or {})["spec"]["selector"]["dask.org/cluster-name"])

    until("the Service selects the cluster's scheduler again", lambda: selector() == "c", 30)
    policy: Object = {"spec": {"ingress": [{}]}}
    shared.patch("networkpolicy", "c-worker", policy)
    until("the policy is closed again", lambda: "from" in str((shared.find("networkpolicy", "c-worker") or {})["spec"]), 30)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"image": OTHER_IMAGE}, lambda pod: pod["spec"]["containers"][0]["image"] == OTHER_IMAGE),
        (
            {"env": [{"name": "COLOUR", "value": "blue"}]},
            lambda pod: {"name": "COLOUR", "value": "blue"} in pod["spec"]["containers"][0]["env"],
        ),
        (
            {"resources": {"limits": {"memory": "400Mi"}, "requests": {"cpu": "10m", "memory": "64Mi"}}},
            lambda pod: pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "400Mi",
        ),
        ({"threads": 3}, lambda pod: "3" in pod["spec"]["containers"][0]["args"]),
    ],
    ids=["image", "env", "resources", "threads"],
)
def test_an_edit_reaches_workers_one_by_one_and_costs_no_work(
    space: Namespace, change: Object, seen: Callable[[Object], bool]
) -> None:
    """Both workers are busy when the edit comes: each step runs once, and at no time is there no worker."""
    space.cluster("e", TWO)
    space.wait_ready("e")
    old = set(space.workers("e"))
    code = """
held(client.map(hold, range(2), pure=False))
while True:
    names = {w["name"] for w in client.scheduler_info(n_workers=-1)["workers"].values()}
    say("workers", len(names), *sorted(names))
    if not names & {OLD} and len(names) == 2: break
    time.sleep(.3)
say("begun", len(marks("begun")), "ended", len(marks("ended")))
"""
    client = Client(space, "e", code.replace("{OLD}", repr(old)))
    client.wait_for("busy")
    space.cluster("e", {**TWO, **change})
    until("another is made while both are busy", lambda: len(space.workers("e")) == 3)
    client.release()
    lines = client.output(240).splitlines()
    assert lines[-1] == "begun 2 ended 2"
    assert all(int(line.split()[1]) >= 1 for line in lines if line.startswith("workers")), "\n".join(lines)
    space.wait_ready("e")
    assert all(seen(pod) for pod in space.pods("e", "worker"))


def test_the_scheduler_is_replaced_when_nothing_uses_it_and_at_once_when_declared(space: Namespace) -> None:
    def replaced(cluster: str, old: str) -> None:
        """Until there is another scheduler; for a moment there is none."""
        until("the scheduler is replaced", lambda: {uid(pod) for pod in space.pods(cluster, "scheduler")} - {old}, 60)

    space.cluster("s", ONE)
    space.wait_ready("s")
    first = uid(space.pods("s", "scheduler")[0])
    client = Client(space, "s", "held([client.submit(hold, 1)]); say(len(marks('begun')))")
    client.wait_for("busy")
    mark = {"env": [{"name": "MARK", "value": "1"}], "resources": {"limits": {"memory": "512Mi"}}}
    space.cluster("s", ONE, scheduler=mark)
    space.wait_reason("s", "WaitingForIdle", "SchedulerReady")
    assert uid(space.pods("s", "scheduler")[0]) == first
    # The task runs to its end on the scheduler that it began with, once.
    client.release()
    assert client.output().splitlines()[-1] == "1"
    replaced("s", first)
    space.wait_ready("s")

    second = uid(space.pods("s", "scheduler")[0])
    client = Client(space, "s", "held([client.submit(hold, 1)])")
    client.wait_for("busy")
    mark["env"] = [{"name": "MARK", "value": "2"}]
    space.cluster("s", ONE, scheduler={**mark, "rollout": "Immediately"})
    replaced("s", second)
    client.close()
    space.wait_ready("s")


def test_suspend_takes_pods_away_and_keeps_the_rest(space: Namespace) -> None:
    space.cluster("p", TWO)
    space.wait_ready("p")
    secret = uid(space.find("secret", "p-tls"))
    space.patch("dsk", "p", {"spec": {"suspend": True}})
    space.wait_reason("p", "Suspended")
    until("no pod is left", lambda: not space.list("pods"), 60)
    assert uid(space.find("secret", "p-tls")) == secret and space.find("service", "p-scheduler")
    space.patch("dsk", "p", {"spec": {"suspend": False}})
    space.wait_ready("p")
    assert ask(space, "p", "say(client.submit(sum, [1, 1]).result(60))") == "2"


def test_a_deleted_cluster_leaves_nothing_behind(space: Namespace) -> None:
    space.cluster("gone", ONE)
    space.wait_ready("gone")
    cluster = space.find("dsk", "gone") or {}
    assert not cluster["metadata"].get("finalizers")
    authority = f"daskade-ca-{uid(cluster)}"
    assert kubectl("-n", SYSTEM, "get", "secret", authority, "-o", "name").strip()
    space.delete("dsk", "gone")
    kinds = ("pods", "services", "secrets", "configmaps", "networkpolicies")
    until("children are gone", lambda: not any(space.list(kind, "daskade.dev/cluster=gone") for kind in kinds), 90)
    until("the authority is swept", lambda: not proxy().get(f"{path_of(SYSTEM, 'secret')}/{authority}"), 60)


def test_a_foreign_object_with_a_childs_name_is_never_touched(space: Namespace) -> None:
    service = {"ports": [{"port": 80}], "selector": {"app": "theirs"}}
    foreign: list[Object] = [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "f-scheduler"}, "spec": service},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "k-tls"}, "stringData": {"a": "b"}},
    ]
    space.apply(*foreign)
    kept = [space.find("service", "f-scheduler"), space.find("secret", "k-tls")]
    space.cluster("f", ONE)
    space.cluster("k", ONE)
    assert "f-scheduler" in space.wait_reason("f", "NameConflict")
    assert "k-tls" in space.wait_reason("k", "NameConflict")
    time.sleep(3)
    now = [space.find("service", "f-scheduler"), space.find("secret", "k-tls")]
    assert json.dumps(now) == json.dumps(kept)
    # Out of the way, the cluster comes up without anybody's help.
    space.delete("service", "f-scheduler")
    space.wait_ready("f")


def test_a_cluster_of_the_same_name_takes_over_nothing(space: Namespace) -> None:
    space.cluster("again", ONE)
    space.wait_ready("again")
    first = {uid(pod) for pod in space.pods("again")}
    secret = uid(space.find("secret", "again-tls"))
    space.delete("dsk", "again", wait=False)
    until("it is gone", lambda: space.find("dsk", "again") is None, 30)
    space.cluster("again", ONE)
    space.wait_ready("again")
    assert not first & {uid(pod) for pod in space.pods("again")}
    assert uid(space.find("secret", "again-tls")) != secret
    assert ask(space, "again", "say(client.submit(sum, [1, 1]).result(60))") == "2"


def test_a_pod_that_is_deleted_while_it_starts_goes_at_once(space: Namespace) -> None:
    """Its process is not yet there to be told, and its grace period is of five minutes."""

    def starting() -> list[str]:
        running = []
        for pod in space.pods("early", "worker"):
            states = [status["state"] for status in pod["status"].get("containerStatuses") or []]
            running += [pod["metadata"]["name"] for state in states if "running" in state]
        return running

    space.cluster("early", ONE)
    for _ in range(3):
        (pod,) = until("a worker's container runs", starting, 90, every=0.05)
        began = time.monotonic()
        space.delete("pod", pod, patience=60)
        print(f"gone after {time.monotonic() - began:.1f} s")


def test_a_pod_that_hangs_on_a_dead_node_does_not_block_its_replacement(space: Namespace) -> None:
    """A node without a kubelet: what was put there never ends by itself."""
    node = f"dead-{space.name}"
    meta = {"name": node, "labels": {"dead": space.name}}
    # Other tests' pods have no business there.
    spec = {"taints": [{"key": "dead", "value": "yes", "effect": "NoSchedule"}]}
    made = {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": spec}
    kubectl("apply", "-f", "-", stdin=json.dumps(made))
    try:
        capacity = {"cpu": "8", "memory": "16Gi", "pods": "20"}
        ready = [{"type": "Ready", "status": "True", "reason": "T", "message": "", "lastHeartbeatTime": None}]
        status = {"status": {"capacity": capacity, "allocatable": capacity, "conditions": ready}}
        kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps(status))
        kubectl("taint", "node", node, "node.kubernetes.io/not-ready-", check=False)
        there = {**ONE, "nodeSelector": {"dead": space.name}, "terminationGracePeriod": "2s"}
        there["tolerations"] = [{"operator": "Exists"}]
        space.cluster("d", there)
        placed = lambda: [pod for pod in space.pods("d", "worker") if pod["spec"].get("nodeName") == node]  # noqa: E731
        stuck = until("the worker is placed on the dead node", placed, 60)[0]["metadata"]["name"]
        space.cluster("d", ONE)
        began = time.monotonic()
        space.wait_ready("d")
        hangs = space.find("pod", stuck)
        print(f"ready {time.monotonic() - began:.1f} s after the edit; the old pod hangs: {hangs is not None}")
        assert hangs is not None and hangs["metadata"].get("deletionTimestamp")
        until("what hangs is removed by force", lambda: space.find("pod", stuck) is None, 120)
    finally:
        kubectl("delete", "node", node, "--wait=false")


def test_edits_and_faults_at_random_end_in_what_the_spec_says(space: Namespace, operator: Operator) -> None:
    """Acto's oracle: by whichever path, the same spec gives the same state."""
    space.cluster("aged", TWO)
    space.wait_ready("aged", 180)
    for change in ({**ONE, "threads": 2}, {"name": "b", "replicas": 1}, {**TWO, "env": [{"name": "X", "value": "y"}]}):
        space.cluster("aged", change)
        for pod in space.pods("aged")[:1]:
            space.delete("pod", pod["metadata"]["name"], wait=False)
        operator.stop()
        operator.start()
    space.wait_ready("aged", 240)
    until("old workers are gone", lambda: len(space.pods("aged", "worker")) == 2, 120)
    space.cluster("fresh", {**TWO, "env": [{"name": "X", "value": "y"}]})
    space.wait_ready("fresh")

    def gist(name: str) -> list[str]:
        specs = [json.dumps(pod["spec"]["containers"], sort_keys=True) for pod in space.pods(name)]
        return sorted(re.sub(r"kube-api-access-\w+", "", text.replace(name, "@")) for text in specs)

    assert gist("aged") == gist("fresh")
