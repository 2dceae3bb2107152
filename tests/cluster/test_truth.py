"""What goes wrong with pods is told on the DaskCluster, in words that say what to do; and it goes on by itself."""

from __future__ import annotations

import json
import time

import pytest

from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.settings import RUN, Object
from support.waiting import until

ONE = {"name": "a", "replicas": 1}
# Small enough that no process of Python starts in it.
TINY = {"requests": {"cpu": "10m", "memory": "10Mi"}, "limits": {"memory": "20Mi"}}


@pytest.mark.parametrize(
    ("group", "reason", "words"),
    [
        ({"image": "registry.invalid/none:1"}, "ImagePull", ["registry.invalid/none:1", "imagePullSecrets"]),
        ({"nodeSelector": {"no": "such"}}, "Unschedulable", ["node affinity/selector", "nodeSelector"]),
        ({"resources": TINY}, "OutOfMemory", ["resources.limits.memory"]),
        ({"env": [{"name": "PYTHONHOME", "value": "/nowhere"}]}, "WorkerStartFailed", ["Fatal Python error"]),
        ({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k"}}}]}, "SecretNotFound", ['"absent"']),
        ({"serviceAccountName": "nobody"}, "ServiceAccountNotFound", ['"nobody" not found']),
        (
            {"volumes": [{"name": "v", "mountPath": "/v", "persistentVolumeClaim": "missing"}]},
            "Unschedulable",
            ['persistentvolumeclaim "missing" not found'],
        ),
    ],
    ids=["image", "node", "memory", "crash", "secret", "account", "volume"],
)
def test_trouble_of_a_pod_is_told_and_a_better_spec_helps(
    space: Namespace, group: Object, reason: str, words: list[str]
) -> None:
    space.cluster("c", {**ONE, **group})
    message = space.wait_reason("c", reason, patience=150)
    assert "c-a-0-" in message or reason == "ServiceAccountNotFound", message
    for word in words:
        assert word in message
    (told,) = space.status("c")["groups"]
    assert (told["name"], told["ready"], told["reason"]) == ("a", 0, reason)
    events = space.list("events")
    mine = [event for event in events if event["regarding"]["kind"] == "DaskCluster" and event["reason"] == reason]
    assert len(mine) == 1, mine
    space.cluster("c", ONE)
    space.wait_ready("c")


def test_a_quota_is_quoted_and_waited_for_without_a_hot_loop(space: Namespace, operator: Operator) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}
    space.apply(quota)
    until("the quota counts", lambda: (space.find("resourcequota", "few") or {}).get("status", {}).get("used"))
    space.cluster("q", {"name": "a", "replicas": 4})
    message = space.wait_reason("q", "QuotaExceeded")
    assert "few" in message and "pods=2" in message and "1 of 4 ready" in space.condition("q")["message"] or "raise" in message
    until("what fits is there", lambda: len(space.pods("q")) == 2, 60)
    time.sleep(5)
    before = operator.writes()
    time.sleep(15)
    assert operator.writes() - before <= 8
    space.patch("resourcequota", "few", {"spec": {"hard": {"pods": "20"}}})
    space.wait_ready("q")


def test_policies_that_refuse_pods_are_quoted(space: Namespace) -> None:
    limit = {"type": "Container", "max": {"memory": "100Mi"}}
    space.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [limit]}})
    space.cluster("l", ONE)
    assert "maximum memory usage per Container is 100Mi" in space.wait_reason("l", "PodRejected")
    assert space.condition("l", "Stalled")["status"] == "True"
    space.delete("limitrange", "l")
    space.wait_ready("l")


def test_a_webhook_that_is_down_is_named_and_tried_again(space: Namespace) -> None:
    hook = {
        "name": "down.daskade.test",
        "clientConfig": {"service": {"name": "nothing", "namespace": space.name}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space.name}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 2,
    }
    name = f"down-{space.name}"
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    kubectl("apply", "-f", "-", stdin=json.dumps({**kind, "metadata": {"name": name}, "webhooks": [hook]}))
    try:
        space.cluster("h", ONE)
        assert "down.daskade.test" in space.wait_reason("h", "AdmissionFailed")
    finally:
        kubectl("delete", "validatingwebhookconfiguration", name)
    space.wait_ready("h")


def test_a_right_that_is_missing_is_named_and_others_go_on(space: Namespace, operator: Operator) -> None:
    role = f"daskade-operator-{RUN}"
    rules = json.loads(kubectl("get", "clusterrole", role, "-o", "json"))["rules"]
    without = [rule if "services" not in rule["resources"] else {**rule, "resources": ["pods"]} for rule in rules]
    space.cluster("before", ONE)
    space.wait_ready("before")
    kubectl("patch", "clusterrole", role, "--type=merge", "-p", json.dumps({"rules": without}))
    try:
        space.cluster("c", ONE)
        message = space.wait_reason("c", "Forbidden")
        assert "services" in message and "create" in message
        # What needs no Service goes on: the other cluster's worker is replaced.
        (victim,) = space.workers("before")
        space.delete("pod", victim, wait=False)
        until("the worker is replaced", lambda: space.workers("before") not in ([], [victim]), 60)
    finally:
        kubectl("patch", "clusterrole", role, "--type=merge", "-p", json.dumps({"rules": rules}))
    space.wait_ready("c")


def test_status_is_of_the_generation_that_it_says(space: Namespace) -> None:
    space.cluster("g", {"name": "a", "replicas": 1}, {"name": "b", "replicas": 0})
    status = space.wait_ready("g")
    assert {group["name"]: (group["desired"], group["ready"]) for group in status["groups"]} == {"a": (1, 1), "b": (0, 0)}
    conditions = {condition["type"]: condition for condition in status["conditions"]}
    assert set(conditions) == {"Ready", "SchedulerReady", "WorkersReady", "Reconciling", "Stalled"}
    since = conditions["Ready"]["lastTransitionTime"]
    space.cluster("g", {"name": "a", "replicas": 1}, {"name": "b", "replicas": 0}, idleTimeout="1h")
    status = space.wait_ready("g")
    conditions = {condition["type"]: condition for condition in status["conditions"]}
    assert conditions["Ready"]["lastTransitionTime"] == since
    assert all(condition["observedGeneration"] == status["observedGeneration"] == 2 for condition in conditions.values())
    assert len(json.dumps(status)) < 8192
