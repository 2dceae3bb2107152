"""From a DaskCluster to a running Dask cluster: what is made, and that it works with good defaults."""

from __future__ import annotations

import json

from support import TOP
from support.kube.api import kubectl
from support.kube.client import ask, ask_in_pod
from support.kube.namespace import Namespace
from support.kube.settings import BARE_IMAGE, Object
from support.waiting import until

TEN_LINES = """
apiVersion: daskade.dev/v1alpha1
kind: DaskCluster
metadata:
  name: small
spec:
  workers:
  - name: cpu
    replicas: 2
"""


def arguments(pod: Object) -> dict[str, str]:
    words = pod["spec"]["containers"][0]["args"][1:]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_ten_lines_are_enough(space: Namespace) -> None:
    kubectl("-n", space.name, "apply", "-f", "-", stdin=TEN_LINES)
    status = space.wait_ready("small")
    assert (status["workersReady"], status["workersDesired"]) == (2, 2)
    code = "say(client.submit(sum, [1, 2, 3]).result(60), len(client.scheduler_info()['workers']))"
    assert ask_in_pod(space, "small", code).split() == ["6", "2"]
    head, row = kubectl("-n", space.name, "get", "dsk", "small").splitlines()
    assert head.split() == ["NAME", "READY", "DESIRED", "WORKERS", "GPUS", "IDLE", "AGE"]
    assert row.split()[:4] == ["small", "True", "2", "2"]


def test_the_example_works(space: Namespace) -> None:
    kubectl("-n", space.name, "apply", "-f", str(TOP / "examples/cluster.yaml"))
    status = space.wait_ready("analytics")
    counts = {group["name"]: (group["desired"], group["ready"]) for group in status["groups"]}
    assert counts == {"cpu": (2, 2), "gpu": (0, 0)}


def test_children_have_the_names_and_labels_that_dask_tools_know(space: Namespace) -> None:
    group = {"name": "fast", "replicas": 1, "resources": {"limits": {"cpu": "1500m", "memory": "384Mi"}}}
    space.cluster("known", group)
    space.wait_ready("known")
    service = space.find("service", "known-scheduler") or {}
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {
        "tcp-comm": 8786,
        "http-dashboard": 8787,
    }
    uid = (space.find("dsk", "known") or {})["metadata"]["uid"]
    (scheduler,), (worker,) = space.pods("known", "scheduler"), space.pods("known", "worker")
    for pod in (scheduler, worker):
        assert pod["metadata"]["labels"]["dask.org/cluster-name"] == "known"
        (owner,) = pod["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("DaskCluster", uid, True)
        assert not pod["metadata"].get("finalizers")
        names = {variable["name"] for variable in pod["spec"]["containers"][0]["env"]}
        assert "DASK_SCHEDULER_ADDRESS" in names
        assert not pod["spec"]["automountServiceAccountToken"]
    assert worker["metadata"]["labels"]["dask.org/workergroup-name"] == "fast"
    assert worker["metadata"]["name"].startswith("known-fast-0-")
    # Threads and memory are those of the limits, as Dask itself sees them.
    assert arguments(worker)["--threads"] == "2"
    code = "(w,) = client.scheduler_info()['workers'].values(); say(w['name'], w['nthreads'], w['memory_limit'])"
    assert ask(space, "known", code).split() == [worker["metadata"]["name"], "2", str(384 << 20)]
    runtime = space.find("configmap", _runtime(space)) or {}
    assert runtime["immutable"] is True


def _runtime(space: Namespace) -> str:
    names = [str(found["metadata"]["name"]) for found in space.list("configmaps")]
    return next(name for name in names if name.startswith("known-runtime-"))


def test_memory_of_the_cgroup_counts_where_no_limit_is_named(space: Namespace) -> None:
    """Without a limit of memory the worker takes what its container may use, here that of the namespace's default."""
    limits = {"type": "Container", "default": {"memory": "320Mi"}, "defaultRequest": {"memory": "32Mi", "cpu": "10m"}}
    space.apply(
        {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [limits]}}
    )
    space.cluster("cgroup", {"name": "a", "replicas": 1, "resources": {"requests": {"cpu": "10m"}}})
    space.wait_ready("cgroup")
    code = "(w,) = client.scheduler_info()['workers'].values(); say(w['memory_limit'])"
    assert ask(space, "cgroup", code) == str(320 << 20)


def test_every_pod_passes_restricted_and_talks_to_whom_it_should(space: Namespace) -> None:
    space.cluster("guarded", {"name": "a", "replicas": 1}, {"name": "g", "replicas": 1, "gpu": {"count": 1}})
    space.wait_ready("guarded")
    for pod in space.pods("guarded"):
        (container,) = pod["spec"]["containers"]
        security = {**pod["spec"]["securityContext"], **container["securityContext"]}
        assert security["runAsNonRoot"] is True and security["runAsUser"] == 1000
        assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in space.list("networkpolicies")}
    assert set(policies) == {"guarded-scheduler", "guarded-worker"}
    selected = {name: spec["podSelector"]["matchLabels"]["dask.org/component"] for name, spec in policies.items()}
    assert selected == {"guarded-scheduler": "scheduler", "guarded-worker": "worker"}
    assert all(spec["policyTypes"] == ["Ingress"] for spec in policies.values())
    (rule,) = policies["guarded-worker"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8788]
    assert [peer["podSelector"]["matchLabels"]["dask.org/component"] for peer in rule["from"]] == ["scheduler", "worker"]
    dashboard = [rule for rule in policies["guarded-scheduler"]["ingress"] if rule["ports"][0]["port"] == 8787]
    (rule,) = dashboard
    assert [peer["podSelector"]["matchLabels"] for peer in rule["from"]] == [{"daskade.dev/client": "guarded"}]
    # No namespace of another tenant is let in anywhere.
    peers = [peer for spec in policies.values() for rule in spec["ingress"] for peer in rule.get("from", [])]
    assert not any("ipBlock" in peer for peer in peers)


def test_an_image_that_lacks_dask_is_told_what_it_lacks(space: Namespace) -> None:
    space.cluster("bare", {"name": "a", "replicas": 1}, image=BARE_IMAGE)
    message = space.wait_reason("bare", "ImageLacks")
    assert "distributed" in message and "install dask" in message


def test_a_spec_that_is_wrong_is_refused_with_its_field(space: Namespace) -> None:
    # Kubernetes 1.34 names the type of what is invalid in place of the value.
    minor = int(json.loads(kubectl("get", "--raw", "/version"))["minor"].rstrip("+"))

    def invalid(field: str, value: str, words: str) -> str:
        told = value if minor > 34 else "string"
        return f'spec.{field}: Invalid value: "{told}": {words}'

    cases = [
        ({"workers": [{"name": "a", "replicas": 1, "autoscale": {"max": 2}}]}, "at most one of replicas and autoscale"),
        ({"workers": [{"name": "a", "autoscale": {"min": 3, "max": 2}}]}, "min must not be above max"),
        ({"workers": [{"name": "A.b"}]}, "spec.workers[0].name"),
        ({"workers": [{"name": "a"}, {"name": "a"}]}, "spec.workers[1]"),
        ({"workers": [{"name": "a", "replcias": 2}]}, 'unknown field "spec.workers[0].replcias"'),
        ({"workers": [{"name": "a", "replicas": 100000}]}, "spec.workers[0].replicas"),
        ({"workers": [{"name": "a", "resources": {"limits": {"memory": "1.5Gi1"}}}]}, "memory"),
        ({"workers": [{"name": "a", "resources": {"limits": {"memory": "0"}}}]}, "memory"),
        ({"idleTimeout": "10 parsecs"}, invalid("idleTimeout", "10 parsecs", "must be whole numbers with the units")),
        ({"tls": {"mode": "Secret"}}, "secretRef is needed with mode Secret"),
        ({"image": "a b"}, invalid("image", "a b", "must be registry/repository:tag")),
        ({"storage": {"url": "s3:/bucket"}}, invalid("storage.url", "s3:/bucket", "must be s3://bucket/prefix")),
        ({"storage": {"url": "s3://bucket/../x"}}, "without empty, . and .. parts"),
        ({"storage": {"url": "s3://bucket", "endpoint": "minio:9000"}}, "must be http://host:port or https://host:port"),
    ]
    for spec, expected in cases:
        body = {"apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "metadata": {"name": "wrong"}, "spec": spec}
        said = space.apply(body, check=False)
        assert expected in said, (spec, said)
    assert space.find("dsk", "wrong") is None


def test_what_the_schema_lets_through_is_told_in_the_status(space: Namespace) -> None:
    """A name whose pods' names would be too long, say: nothing is made, and the object says why."""
    name = "n" * 50
    space.cluster(name, {"name": "g" * 20, "replicas": 1})
    message = space.wait_reason(name, "Invalid")
    assert "spec.workers[0].name" in message and "17 characters too long" in message
    assert not space.list("pods")


def test_explain_is_documentation(space: Namespace) -> None:
    text = kubectl("explain", "daskclusters.spec.workers.gpu", "--recursive")
    assert "nvidia.com/gpu" in kubectl("explain", "daskclusters.spec.workers.gpu.resourceName")
    assert "resourceName" in text and "allowCpuSteps" in text
    top = kubectl("explain", "daskclusters")
    assert "Auto-generated" not in top and "Dask" in top
    until("status is documented", lambda: "workersReady" in kubectl("explain", "daskclusters.status"))
