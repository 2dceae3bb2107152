"""The chart on a real cluster: installed, changed, rolled back and taken away while a cluster lives; its policies; Argo CD.

Each release serves namespaces of its own, which no other operator of this run serves.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.empty import EmptyCluster
from cluster.pods import ENFORCED
from cluster.pods import start as pod
from cluster.runs import start, status, wait_end
from support import TOP
from support.charts import ARGOCD, Charts, objects
from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import Shared
from support.kube.settings import IMAGE, LABEL, OPERATOR_IMAGE, RUN, SMALL, Object
from support.waiting import until

NAME = f"daskade-{RUN}"
REPOSITORY, TAG = OPERATOR_IMAGE.rsplit(":", 1)
ONE: Object = {"name": "a", "replicas": 1}


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Charts:
    return Charts(tmp_path_factory.mktemp("charts"))


def values(served: str, **more: object) -> Object:
    """A release that disturbs nobody: its own names, its own namespace, no definitions of its own."""
    image = {"repository": REPOSITORY, "tag": TAG, "pullPolicy": "IfNotPresent"}
    operator = {"watchNamespaces": [served], "image": IMAGE, "leaseDuration": "5s"}
    return {"fullnameOverride": NAME, "crds": {"enabled": False}, "image": image, "operator": operator, **more}


def lua(command: str, obj: Object | None, *words: str) -> Any:
    """What the scripts for Argo CD say of a live object."""
    line = ["argocd-lua", command, str(ARGOCD), *words]
    done = subprocess.run(line, input=json.dumps(obj), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def act(obj: Object | None, action: str) -> list[Object]:
    return list(lua("action", obj, action))


def health(space: Namespace, kind: str, name: str) -> str:
    return str(lua("health", space.find(kind, name))["status"])


class Release:
    def __init__(self, charts: Charts, system: Namespace, *options: str) -> None:
        self.charts, self.system, self.options = charts, system, options

    def helm(self, verb: str, *words: str, values: Object | None = None, check: bool = True) -> str:
        given = ["-f", "-"] if values is not None else []
        options = ["-n", self.system.name, *self.options]
        return self.charts.helm(verb, *words, *given, *options, stdin=json.dumps(values or {}), check=check)

    def put(self, verb: str, values: Object) -> str:
        return self.helm(verb, "try", str(self.charts.chart), "--wait", "--timeout", "150s", values=values)


@pytest.fixture
def two(installed: Path) -> Iterator[tuple[Namespace, Namespace]]:
    """The namespace of a release and the one that it serves."""
    name = f"t-{RUN}-{os.urandom(2).hex()}"
    system, served = (Namespace(f"{name}-{part}", labels={LABEL: "none"}) for part in ("system", "served"))
    yield system, served
    system.close()
    served.close()


def uids(space: Namespace) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in space.pods("c")}


def people(space: Namespace) -> None:
    """The roles of Kubernetes have daskade's kinds."""
    can = {"view": ["list"], "edit": ["list", "create", "patch", "delete"]}
    can["admin"] = [*can["edit"], "deletecollection"]
    for role, verbs in can.items():
        kubectl("-n", space.name, "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}")

        def answer(verb: str, role: str = role) -> bool:
            return kubectl("auth", "can-i", verb, "dpr", "--as", role, "-n", space.name, check=False).strip() == "yes"

        def answers(verbs: list[str] = verbs, role: str = role) -> bool:
            return all(answer(verb, role) for verb in verbs)

        until(f"{role} has its rights", answers, 30)
        assert not [verb for verb in {*can["admin"]} - {*verbs} if answer(verb)]


def retried(space: Namespace) -> None:
    """The action `retry` of Argo CD makes a run that takes over what the failed one committed."""
    steps = [
        {"name": "one", "call": "builtins:abs", "args": [-1]},
        {"name": "bad", "call": "builtins:int", "args": ["x"]},
    ]
    start(space, "f", pipelineSpec={"cluster": {"ref": "c"}, "steps": steps})
    assert wait_end(space, "f", "Failed")["steps"]["done"] == 1
    assert health(space, "pipelinerun", "f") == "Degraded"
    (impact,) = act(space.find("pipelinerun", "f"), "retry")
    space.apply(impact["resource"])
    counts = wait_end(space, impact["resource"]["metadata"]["name"], "Failed")["steps"]
    assert counts["cached"] == 1 and counts["failed"] == 1, counts


def test_a_release_is_installed_changed_rolled_back_and_taken_away_under_a_live_cluster(
    charts: Charts, two: tuple[Namespace, Namespace]
) -> None:
    system, served = two
    release = Release(charts, system)
    try:
        said = release.put("install", values(served.name))
        assert f"serves the namespaces {served.name}" in said
        assert "Succeeded" in release.helm("test", "try", "--timeout", "120s")
        people(served)
        workers = [{"name": "a", "autoscale": {"min": 1, "max": 1}, "resources": SMALL}]
        spec = {
            "image": IMAGE,
            "scheduler": {"resources": SMALL},
            "workers": workers,
            "storage": Shared(served).storage("c"),
        }
        cluster = {"apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "metadata": {"name": "c"}, "spec": spec}
        served.apply(cluster)
        served.wait_ready("c")
        assert health(served, "daskcluster", "c") == "Healthy"
        # For Argo CD it is what Git says, also when the operator has scaled it.
        assert kubectl("-n", served.name, "diff", "-f", "-", stdin=json.dumps(cluster)).strip() == ""
        first = uids(served)
        assert len(first) == 2
        code = "import time\n\ndef nap(i):\n    time.sleep(1)\n    return i\n"
        naps = {"name": "nap", "call": "m:nap", "map": {"i": "$(range(40))"}}
        start(served, "r", pipelineSpec={"cluster": {"ref": "c"}, "code": {"files": {"m.py": code}}, "steps": [naps]})
        until("the run runs", lambda: (status(served, "r").get("steps") or {}).get("done", 0) >= 1)

        stranger = pod(served.name, "stranger")
        where = f"{NAME}-operator.{system.name}"
        until("everybody reads its metrics", lambda: stranger.opens(where, 8080), 60)

        # From now on nobody does, and it reaches nothing but DNS, schedulers and the API server.
        api = json.loads(kubectl("get", "endpoints", "kubernetes", "-n", "default", "-o", "json"))["subsets"][0]
        service = kubectl("get", "service", "kubernetes", "-n", "default", "-o", "jsonpath={.spec.clusterIP}")
        addresses = [service, *(found["ip"] for found in api["addresses"])]
        ports = [{"port": 443}, *({"port": found["port"]} for found in api["ports"])]
        egress = [{"to": [{"ipBlock": {"cidr": f"{address}/32"}} for address in addresses], "ports": ports}]
        policy = {"enabled": True, "egress": egress}
        more = {"replicas": 2, "podDisruptionBudget": {"enabled": True}, "networkPolicy": policy}
        changed = values(served.name, **more, podAnnotations={"a": "b"})
        changed["operator"]["maxWorkersPerCluster"] = 3
        release.put("upgrade", changed)
        assert "Succeeded" in release.helm("test", "try", "--timeout", "120s")
        assert len(kubectl("-n", system.name, "get", "pods", "-o", "name").split()) == 2
        assert uids(served) == first
        assert status(served, "r")["state"] == "Running", "it should have been there all the while"
        assert health(served, "pipelinerun", "r") == "Healthy"
        assert wait_end(served, "r")["steps"]["done"] == 40
        retried(served)
        if ENFORCED:
            assert not stranger.opens(where, 8080)
        # The new leader works: it makes the second worker, and no other pod goes.
        served.patch("daskcluster", "c", {"spec": {"workers": [{**ONE, "replicas": 2, "resources": SMALL}]}})
        until("a second worker", lambda: served.status("c").get("workersReady") == 2)
        second = uids(served)
        assert first.items() < second.items() and len(second) == 3
        # What its options say is in force: in the policy at once.
        four = {"spec": {"workers": [{**ONE, "replicas": 4, "resources": SMALL}]}}
        words = ["-n", served.name, "patch", "dsk", "c", "--type=merge", "-p", json.dumps(four)]
        until("the limit", lambda: "3 are allowed per cluster" in kubectl(*words, "--dry-run=server", check=False), 60)

        release.helm("rollback", "try", "1", "--wait", "--timeout", "150s")
        assert uids(served) == second
        assert kubectl("-n", system.name, "get", "deployment", "-o", "jsonpath={.items[*].spec.replicas}") == "1"

        release.helm("uninstall", "try", "--wait", "--timeout", "120s")
        assert not kubectl("-n", system.name, "get", "deployment,service,networkpolicy", "-o", "name").strip()
        assert f"{NAME}-operator" not in kubectl(
            "get", "clusterrole,clusterrolebinding,validatingadmissionpolicy", "-o", "name"
        )
        lease = ["-n", system.name, "get", "lease", "-o", "jsonpath={.items[*].spec.holderIdentity}"]
        until("the lease is free before it runs out", lambda: not kubectl(*lease).strip(), 10)
        assert uids(served) == second and served.find("daskcluster", "c")
        assert "daskclusters.daskade.dev" in kubectl("get", "crd", "-o", "name")

        release.put("install", values(served.name))
        served.patch("daskcluster", "c", {"spec": {"workers": [{**ONE, "replicas": 1, "resources": SMALL}]}})
        until("the new release goes on with it", lambda: len(uids(served)) == 2)
        assert uids(served).items() < second.items()
    finally:
        release.helm("uninstall", "try", check=False)


def tells_how_it_ended(system: Namespace) -> None:
    """Its process is killed as the kernel does it for lack of memory; the next one tells of it."""
    pod = system.list("pods", "app.kubernetes.io/component=operator")[0]["metadata"]
    inside = re.compile("pod" + re.sub("[-_]", "[-_]", pod["uid"]))
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "exe").readlink().name == "daskade" and inside.search((process / "cgroup").read_text()):
                os.kill(int(process.name), signal.SIGKILL)
    until(
        "the end of the process before is told",
        lambda: "ended badly" in kubectl("-n", system.name, "logs", pod["name"], check=False),
    )


def test_a_release_without_rights_on_the_cluster_serves_its_namespaces(
    charts: Charts, two: tuple[Namespace, Namespace]
) -> None:
    """Installed by somebody who may do everything in the two namespaces, and nothing elsewhere."""
    system, served = two
    account = f"system:serviceaccount:{system.name}:installer"
    kubectl("-n", system.name, "create", "serviceaccount", "installer")
    for space in two:
        whom = f"--serviceaccount={system.name}:installer"
        kubectl("-n", space.name, "create", "rolebinding", "installer", "--clusterrole=cluster-admin", whom)
    release = Release(charts, system, "--kube-as-user", account)
    refused = release.helm("install", "try", str(charts.chart), values=values(served.name), check=False)
    assert "clusterroles" in refused and "forbidden" in refused, refused
    release.helm("uninstall", "try", check=False)
    try:
        release.put("install", values(served.name, rbac={"clusterWide": False}))
        served.cluster("c", ONE)
        served.wait_ready("c")
        assert "Succeeded" in release.helm("test", "try", "--timeout", "120s")
        operator = f"system:serviceaccount:{system.name}:{NAME}-operator"
        may = ["auth", "can-i", "create", "pods", "--as"]
        assert kubectl(*may, operator, "-n", served.name, check=False).strip() == "yes"
        assert kubectl(*may, operator, "-n", "default", check=False).strip() == "no"
        if os.environ.get("DASKADE_TEST_OWN_CLUSTER"):
            tells_how_it_ended(system)
    finally:
        release.helm("uninstall", "try", check=False)


OWNERS = {
    "client-side apply": ["apply"],
    "server-side apply": ["apply", "--server-side"],
    "another application": ["apply", "--server-side", "--field-manager=argocd-controller"],
    "create": ["create"],
}


@pytest.mark.parametrize("owner", OWNERS)
def test_the_scripts_are_added_to_the_settings_of_argo_cd(empty: EmptyCluster, owner: str) -> None:
    """By the command of docs/gitops.md. What is there stays as it was, and its owner leaves the scripts alone.

    Issue 13, point 5.
    """
    namespace = f"argocd-{owner.replace(' ', '-')}"
    labels = {"app.kubernetes.io/name": "argocd-cm", "app.kubernetes.io/part-of": "argocd"}
    data = {"url": "https://argocd.example.com", "accounts.ci": "apiKey", "resource.exclusions": "- kinds: [Lease]\n"}
    meta = {"name": "argocd-cm", "labels": labels}
    before = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}

    def settings() -> dict[str, Any]:
        return dict(json.loads(empty.kubectl("get", "configmap", "argocd-cm", "-n", namespace, "-o", "json")))

    empty.kubectl("create", "namespace", namespace)
    empty.kubectl(*OWNERS[owner], "-n", namespace, "-f", "-", stdin=json.dumps(before))
    empty.kubectl("patch", "configmap", "argocd-cm", "-n", namespace, "--type=merge", '--patch={"data": {"own": "1"}}')
    (command,) = re.findall(r"^\$ kubectl (patch configmap argocd-cm .*)$", (TOP / "docs/gitops.md").read_text(), re.M)
    words = command.replace("-n argocd ", f"-n {namespace} ").replace("deploy/", f"{TOP}/deploy/").split()
    scripts = {
        f"resource.customizations.{part}.daskade.dev_{kind}"
        for part in ("actions", "health")
        for kind in ("DaskCluster", "Pipeline", "PipelineRun")
    }
    for _ in range(2):
        empty.kubectl(*words)
        found = settings()
        assert found["metadata"]["labels"] == labels
        assert {key: found["data"].pop(key) for key in (*data, "own")} == {**data, "own": "1"}
        assert set(found["data"]) == scripts
        if owner == "create":
            return
        # Its owner changes what is its own.
        data["url"] = "https://other.example.com"
        empty.kubectl(*OWNERS[owner], "-n", namespace, "-f", "-", stdin=json.dumps(before))
        assert scripts < set(settings()["data"])


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmptyCluster]:
    if not EmptyCluster.can_be_had():
        pytest.skip("no API server can be started here; tests/kube builds one")
    with EmptyCluster(tmp_path_factory.mktemp("empty")) as made:
        yield made


def test_definitions_and_objects_stay_when_a_release_with_them_is_uninstalled(
    charts: Charts, empty: EmptyCluster
) -> None:
    """All defaults, on an API server without nodes: the definitions of others are not at stake."""
    names = [f"{plural}.daskade.dev" for plural in ("daskclusters", "pipelineruns", "pipelines")]
    steps = [{"name": "sum", "call": "builtins:sum", "args": [[1, 2]]}]
    pipeline = {
        "apiVersion": "daskade.dev/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "p"},
        "spec": {"steps": steps},
    }

    whole = len(objects(charts.render("--set", "crds.enabled=false")))

    def helm(*words: str, check: bool = True) -> str:
        return charts.helm(*words, "-n", "daskade-system", "--kubeconfig", str(empty.config), check=check)

    def parts() -> list[str]:
        kinds = "serviceaccount,service,deployment,role,rolebinding,clusterrole,clusterrolebinding"
        kinds += ",validatingadmissionpolicy,validatingadmissionpolicybinding"
        return empty.kubectl("get", kinds, "-A", "-l", "app.kubernetes.io/name=daskade", "-o", "name").split()

    helm("install", "daskade", str(charts.chart), "--create-namespace")
    empty.kubectl("wait", "--for=condition=Established", *(f"crd/{name}" for name in names), "--timeout=60s")
    empty.kubectl("create", "-n", "default", "-f", "-", stdin=json.dumps(pipeline))
    assert len(parts()) == whole, parts()
    helm("upgrade", "daskade", str(charts.chart), "--set", "replicas=2")
    said = helm("uninstall", "daskade")
    # The operator gives its lease back when its other rights are gone.
    lease = {f"{kind}.rbac.authorization.k8s.io/daskade-operator-lease" for kind in ("role", "rolebinding")}
    assert said.count("[CustomResourceDefinition]") == 3 and set(parts()) == {*lease, "serviceaccount/daskade-operator"}
    found = json.loads(empty.kubectl("get", "dpl", "p", "-n", "default", "-o", "json"))
    assert found["spec"] == pipeline["spec"] and "deletionTimestamp" not in found["metadata"]

    # What stayed is taken up again: by the same release, by the plain manifests, by the chart of the definitions.
    helm("install", "daskade", str(charts.chart))
    helm("uninstall", "daskade")
    empty.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(TOP))
    assert len(parts()) == whole, parts()
    definitions = str(charts.folder / "charts/daskade-crds")
    refused = helm("install", "definitions", definitions, check=False)
    assert "invalid ownership metadata" in refused, refused
    helm("install", "definitions", definitions, "--take-ownership")
    helm("uninstall", "definitions")
    empty.kubectl("get", "crd", *names)
    assert empty.kubectl("get", "dpl", "-n", "default", "-o", "name").split() == ["pipeline.daskade.dev/p"]


def test_all_that_the_chart_makes_is_taken_by_the_api_server(charts: Charts, two: tuple[Namespace, Namespace]) -> None:
    """By a server-side dry run, but for kinds that others define."""
    system, served = two
    for case in ("everything", "namespaced", "selector"):
        given = yaml.safe_load((TOP / f"tests/chart/golden/{case}.values.yaml").read_text())
        given["fullnameOverride"] = f"{NAME}-dry"
        if given["operator"].get("watchNamespaces"):
            given["operator"]["watchNamespaces"] = [served.name, system.name]
        found = objects(charts.render(values=given, namespace=system.name))
        ours = [o for o in found if not o["apiVersion"].startswith("monitoring.coreos.com/")]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": ours})
        said = kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
        assert len(said.strip().splitlines()) == len(ours)
    said = kubectl("apply", "--server-side", "--dry-run=server", "-k", str(TOP), check=False)
    # The namespace of the manifest is not there in a dry run.
    assert "customresourcedefinition.apiextensions.k8s.io/daskclusters.daskade.dev serverside-applied" in said
    assert all('namespaces "daskade-system" not found' in line for line in said.splitlines() if "rror" in line), said


def condition(space: Namespace, kind: str, name: str, of: str) -> Object:
    conditions = (space.find(kind, name) or {}).get("status", {}).get("conditions", [])
    return next((dict(found) for found in conditions if found["type"] == of), {})


def current(found: Object) -> bool:
    return bool(found["status"]["observedGeneration"] == found["metadata"]["generation"])


def test_actions_of_argo_cd_do_what_they_say(space: Namespace, operator: Operator) -> None:
    """What the scripts return is applied as Argo CD would: created, or put in place of the object."""
    tracked = {"app.kubernetes.io/instance": "app"}
    tracking = {"argocd.argoproj.io/tracking-id": f"app:daskade.dev/Pipeline:{space.name}/p"}
    spec: Object = {
        "triggers": {"onChange": False},
        "cluster": {"ref": "nowhere"},
        "storage": {"url": "s3://bucket/runs"},
        "steps": [{"name": "sum", "call": "builtins:sum", "args": [[1, 2]]}],
    }
    meta = {"name": "p", "labels": tracked, "annotations": tracking}
    pipeline = {"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": meta, "spec": spec}
    space.apply(pipeline)
    until("it is accepted", lambda: condition(space, "pipeline", "p", "Accepted").get("status") == "True")

    (impact,) = act(space.find("pipeline", "p"), "run")
    assert impact["operation"] == "create"
    space.apply(impact["resource"])
    name = impact["resource"]["metadata"]["name"]
    until(
        "the run waits for its cluster",
        lambda: condition(space, "pipelinerun", name, "Succeeded").get("reason") == "ClusterNotFound",
    )
    run = space.find("pipelinerun", name) or {}
    # Nothing by which Argo CD would take the run for a part of the application, and prune it.
    assert "app.kubernetes.io/instance" not in run["metadata"]["labels"]
    assert "argocd.argoproj.io/tracking-id" not in run["metadata"].get("annotations", {})
    assert "ownerReferences" not in run["metadata"]

    def replaced(action: str) -> None:
        (impact,) = act(space.find("pipelinerun", name), action)
        assert impact["operation"] == "patch"
        kubectl("-n", space.name, "replace", "-f", "-", stdin=json.dumps(impact["resource"]))

    def state(word: str) -> None:
        until(f"it is {word}", lambda: (space.find("pipelinerun", name) or {}).get("status", {}).get("state") == word)

    replaced("suspend")
    state("Suspended")
    assert health(space, "pipelinerun", name) == "Suspended"
    replaced("resume")
    state("Pending")
    assert health(space, "pipelinerun", name) == health(space, "pipeline", "p") == "Healthy"
    replaced("cancel")
    state("Cancelled")
    assert health(space, "pipelinerun", name) == "Degraded"
    (impact,) = act(space.find("pipelinerun", name), "retry")
    assert impact["resource"]["spec"]["reuse"] == {"mode": "Missing", "run": run["metadata"]["uid"]}
    space.apply(impact["resource"])
    assert "serverside-applied" in kubectl(
        "-n", space.name, "apply", "--server-side", "--dry-run=server", "-f", "-", stdin=json.dumps(impact["resource"])
    )

    # A change makes one run, however it is applied and how often.
    steps = [{"name": "sum", "call": "builtins:sum", "args": [[1, 3]]}]
    pipeline["spec"] = {**spec, "triggers": {"onChange": True}, "steps": steps}
    mine = "daskade.dev/pipeline=p,daskade.dev/trigger=change"
    for options in (["apply"], ["apply", "--server-side", "--force-conflicts"], ["apply", "--server-side"]):
        kubectl("-n", space.name, *options, "-f", "-", stdin=json.dumps(pipeline))
        until("one run", lambda: len(space.list("pipelineruns", mine)) == 1, 30)
        until("it is seen", lambda: current(space.find("pipeline", "p") or {}), 30)
    assert len(space.list("pipelineruns", mine)) == 1

    # Whatever the operator did, the object is still what was applied: an application with it is Synced.
    for options in ([], ["--server-side", "--force-conflicts"]):
        assert kubectl("-n", space.name, "diff", *options, "-f", "-", stdin=json.dumps(pipeline)).strip() == ""
