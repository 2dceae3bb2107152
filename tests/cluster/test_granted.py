"""Rights that the operator has and rights that it uses are the same: shown by an API server's audit log.

The API server is one of this test's own, with the manifest's roles and no node. Each scenario names the rights for which it
is there. A right that no scenario uses fails the test, as does one that a scenario is said to use and does not.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.audit import POLICY, Right, granted, lines, rights, used
from cluster.empty import EmptyCluster
from support import TOP
from support.charts import objects
from support.kube.api import path_of
from support.kube.operator import Operator
from support.kube.settings import Object
from support.waiting import until

SYSTEM, ACCOUNT, TEAM = "daskade-system", "daskade-operator", "team"
USER = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
STEPS = [{"name": "sum", "call": "builtins:sum", "args": [[1, 2]]}]
LABEL = "daskade-test"


class World:
    def __init__(self, empty: EmptyCluster, folder: Path) -> None:
        self.empty, self.log = empty, folder / "audit.jsonl"
        empty.kubectl("apply", "--server-side", "-k", str(TOP))
        names = [f"crd/{name}.daskade.dev" for name in ("daskclusters", "pipelines", "pipelineruns")]
        empty.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
        words = [f"--clusterrole={ACCOUNT}-namespaces", f"--serviceaccount={SYSTEM}:{ACCOUNT}"]
        empty.kubectl("create", "clusterrolebinding", f"{ACCOUNT}-namespaces", *words)
        empty.kubectl("create", "namespace", TEAM)
        empty.kubectl("label", "namespace", TEAM, f"{LABEL}=yes")
        # Nobody else makes it here, and pods ask for it.
        empty.kubectl("-n", TEAM, "create", "serviceaccount", "default")
        config = json.loads(empty.config.read_text())
        token = empty.kubectl("-n", SYSTEM, "create", "token", ACCOUNT, "--duration=2h").strip()
        config["users"] = [{"name": "admin", "user": {"token": token}}]
        (folder / "operator").write_text(json.dumps(config))
        scope = ("--own-namespace", SYSTEM, "--namespace-selector", f"{LABEL}=yes", "--certificate-lifetime", "1m")
        self.operator = Operator(Path(os.environ["DASKADE_BIN"]), folder, folder / "operator", scope=scope)

    def kubectl(self, *words: str, check: bool = True, stdin: str = "") -> str:
        return self.empty.kubectl("-n", TEAM, *words, check=check, stdin=stdin)

    def make(self, *made: Object) -> None:
        self.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(made)}))

    def find(self, kind: str) -> list[Object]:
        found = self.empty.get(path_of(TEAM, kind))
        # In a list the API server names it once.
        return [{"apiVersion": found["apiVersion"], **each} for each in found["items"]]

    def names(self, kind: str) -> set[str]:
        return {found["metadata"]["name"] for found in self.find(kind)}

    def patch(self, kind: str, name: str, change: Object) -> None:
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(change))

    def until(self, what: str, probe: Callable[[], Any]) -> Any:
        return until(what, probe, 90)

    def reason(self, name: str) -> str:
        found = self.empty.get(f"{path_of(TEAM, 'daskclusters')}/{name}")
        return str(
            [each["reason"] for each in found.get("status", {}).get("conditions", []) if each["type"] == "Ready"]
        )


def ours(kind: str, name: str, **spec: Any) -> Object:
    return {"apiVersion": "daskade.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def service(name: str, **metadata: Any) -> Object:
    spec = {"ports": [{"port": 1}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, **metadata}, "spec": spec}


def policy(name: str, **metadata: Any) -> Object:
    meta = {"name": name, **metadata}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": {"podSelector": {}}}


def begin(world: World) -> None:
    assert world.operator.leads()


def cluster(world: World) -> None:
    world.make(ours("DaskCluster", "c", workers=[{"name": "w", "replicas": 1}]))
    world.until("its pods", lambda: len(world.find("pods")) == 2)
    world.until("its status", lambda: "[]" not in world.reason("c"))


def edited(world: World) -> None:
    """Children that somebody has changed are put right."""
    world.patch("service", "c-scheduler", {"spec": {"selector": {"a": "b"}}})
    world.patch("networkpolicy", "c-worker", {"spec": {"ingress": [{}]}})
    world.until("the service", lambda: world.find("services")[0]["spec"]["selector"] != {"a": "b"})
    world.until("the policy", lambda: all(found["spec"]["ingress"] != [{}] for found in world.find("networkpolicies")))


def taken(world: World) -> None:
    """What has the name of a child and is somebody else's is looked at, and left alone."""
    (runtime,) = world.names("configmaps") - {"kube-root-ca.crt"}
    box = {"name": "x", "image": "x"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "d4-scheduler-1"}, "spec": {"containers": [box]}}
    foreign = {"name": runtime.replace("c-", "d1-", 1)}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": foreign}
    world.make(config, policy("d2-scheduler"), service("d3-scheduler"), pod)
    for name in ("d1", "d2", "d3", "d4"):
        world.make(ours("DaskCluster", name))

    def refused(name: str) -> bool:
        return "NameConflict" in world.reason(name)

    for name in ("d1", "d2", "d3"):
        world.until(f"the name of a child of {name} is taken", partial(refused, name))
    # Names of pods are counted: the next one is taken.
    other = {"d4-scheduler-2", "d4-scheduler-3", "d4-scheduler-4"}
    world.until("another scheduler", lambda: other & world.names("pods"))


def left(world: World) -> None:
    """Children of a version that made others, by its labels and owner, are taken away."""
    extra = []
    for kind in ("services", "networkpolicies", "configmaps"):
        found = next(each for each in world.find(kind) if each["metadata"]["name"].startswith("c-"))
        meta = {key: found["metadata"][key] for key in ("labels", "ownerReferences")}
        body = {key: value for key, value in found.items() if key != "status"}
        if kind == "services":
            body["spec"] = {"ports": found["spec"]["ports"]}
        extra.append({**body, "metadata": {"name": "c-extra", **meta}})
    # Whoever lists them has them by kind; the API server names no kind in lists.
    for found, kind in zip(extra, ("Service", "NetworkPolicy", "ConfigMap"), strict=True):
        found["kind"] = kind
    world.make(*extra)

    def gone(kind: str) -> bool:
        return "c-extra" not in world.names(kind)

    for kind in ("services", "networkpolicies", "configmaps"):
        world.until(f"it is gone from {kind}", partial(gone, kind))


def renewed(world: World) -> None:
    """Certificates live for a minute here and are renewed after half of it; pods are told."""

    def shown() -> set[str]:
        pods = [found for found in world.find("pods") if found["metadata"]["name"].startswith("c-")]
        return {json.dumps(found["metadata"].get("annotations")) for found in pods}

    before = shown()
    world.until("another certificate is noted", lambda: shown().isdisjoint(before))


def suspended(world: World) -> None:
    world.patch("daskclusters.daskade.dev", "c", {"spec": {"suspend": True}})
    world.until("its pods go", lambda: not [name for name in world.names("pods") if name.startswith("c-")])


def deleted(world: World) -> None:
    (uid,) = {
        found["metadata"]["uid"]
        for found in world.find("daskclusters.daskade.dev")
        if found["metadata"]["name"] == "d3"
    }
    world.kubectl("delete", "daskclusters.daskade.dev", "d3")
    secret = ["-n", SYSTEM, "get", "secret", f"daskade-ca-{uid}"]
    world.until("its authority goes", lambda: "NotFound" in world.empty.kubectl(*secret, check=False))


def triggered(world: World) -> None:
    """A Pipeline makes a run; where another has the name of that, it is looked at and left alone."""
    spec = {"steps": STEPS, "cluster": {"ref": "nowhere"}, "storage": {"url": "s3://bucket/x"}}
    runs = "pipelineruns.daskade.dev"
    world.make(ours("Pipeline", "p", **spec))
    (name,) = world.until("its run", lambda: world.names(runs))
    world.kubectl("delete", "pipelines.daskade.dev", "p")
    world.kubectl("delete", runs, name)
    world.make(ours("PipelineRun", name, pipelineRef="nowhere"))
    world.make(ours("Pipeline", "p", **spec))
    world.until("its run by another name", lambda: f"{name}-2" in world.names(runs))


def scheduled(world: World) -> None:
    """`Replace` cancels the run before, and old runs of the history are deleted."""
    where = {"cluster": {"ref": "nowhere"}, "storage": {"url": "s3://bucket/x"}}
    schedule = {"interval": "2s", "concurrencyPolicy": "Replace", "failedRunsHistoryLimit": 0}
    world.make(ours("Pipeline", "s", steps=STEPS, schedule=schedule, **where))

    def names() -> set[str]:
        return {name for name in world.names("pipelineruns.daskade.dev") if name.startswith("s-")}

    first = world.until("its first run", names)
    world.until("that is replaced and deleted", lambda: names() and not first & names())
    world.kubectl("delete", "pipelines.daskade.dev", "s")


def ran(world: World) -> None:
    """A run's record and its cluster are made; both are found by the next process; the cluster goes with the run."""
    template = {"cluster": {"template": {}}, "storage": {"url": "s3://bucket/x"}}
    world.make(ours("PipelineRun", "r", pipelineSpec={"steps": STEPS, **template}))
    clusters = "daskclusters.daskade.dev"
    world.until("its cluster", lambda: "r" in world.names(clusters))
    world.operator.stop()
    world.operator.start()
    time.sleep(3)
    world.patch("pipelineruns.daskade.dev", "r", {"spec": {"cancel": True}})
    world.until("its cluster goes", lambda: "r" not in world.names(clusters))


def unreadable(world: World) -> None:
    """The keys of an authority that cannot be read are replaced, as they are at half of its life, years later."""
    world.make(ours("DaskCluster", "u"))
    world.until("its pod", lambda: any(name.startswith("u-scheduler") for name in world.names("pods")))
    (uid,) = {each["metadata"]["uid"] for each in world.find("daskclusters.daskade.dev") if each["metadata"]["name"] == "u"}
    secret = ["-n", SYSTEM, "get", "secret", f"daskade-ca-{uid}", "-o", "json"]
    data = json.loads(world.empty.kubectl(*secret))["data"]
    world.operator.stop()
    spoilt = json.dumps({"data": dict.fromkeys(data, "eA==")})
    world.empty.kubectl("-n", SYSTEM, "patch", "secret", f"daskade-ca-{uid}", "--type=merge", "-p", spoilt)
    world.operator.start()
    world.until("others are in their place", lambda: "eA==" not in json.loads(world.empty.kubectl(*secret))["data"].values())


# What each scenario is there for. The rest of what it uses is named elsewhere.
SCENARIOS: list[tuple[Callable[[World], None], set[Right]]] = [
    (
        begin,
        rights("own", "leases: get create update; configmaps: get")
        | rights("cluster", "namespaces: list watch")
        | rights(
            "served", "pipelines: list watch; daskclusters: list watch; pipelineruns: list watch; pods: list watch"
        )
        | rights("served", "services: list watch; configmaps: list watch; networkpolicies: list watch"),
    ),
    (
        cluster,
        rights("own", "secrets: get create; configmaps: create patch")
        | rights("served", "pods: create; services: create; configmaps: create; networkpolicies: create")
        | rights("served", "secrets: get create; daskclusters/status: patch; events: create"),
    ),
    (edited, rights("served", "services: patch; networkpolicies: patch")),
    (taken, rights("served", "services: get; networkpolicies: get; configmaps: get; pods: get")),
    (left, rights("served", "services: delete; networkpolicies: delete; configmaps: delete")),
    (renewed, rights("served", "secrets: patch; pods: patch")),
    (suspended, rights("served", "pods: delete; daskclusters: get")),
    (deleted, rights("own", "secrets: delete")),
    (triggered, rights("served", "pipelines: get; pipelines/status: patch; pipelineruns: create get")),
    (scheduled, rights("served", "pipelineruns: patch delete; events: patch")),
    (
        ran,
        rights("served", "controllerrevisions: get create; daskclusters: create delete; pipelineruns/status: patch"),
    ),
    (unreadable, rights("own", "secrets: patch")),
]
# No request of their own: an admission plugin asks for them where it is on, as here.
OWNERS = rights("served", "daskclusters/finalizers: update; pipelineruns/finalizers: update")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """For each test its own, also when it is tried again: nothing of an earlier try is there."""
    if not EmptyCluster.can_be_had():
        pytest.skip("no API server can be started here; tests/kube builds one")
    folder = tmp_path
    (folder / "policy.yaml").write_text(POLICY % SYSTEM)
    audit = [f"--audit-policy-file={folder}/policy.yaml", f"--audit-log-path={folder}/audit.jsonl"]
    with EmptyCluster(folder, *audit, "--enable-admission-plugins=OwnerReferencesPermissionEnforcement") as empty:
        made = World(empty, folder)
        yield made
        if made.operator.process and made.operator.process.poll() is None:
            made.operator.stop()


def test_every_right_is_used_by_the_scenario_that_is_there_for_it(world: World) -> None:
    all_of_them = granted(objects((TOP / "deploy/operator.yaml").read_text()), ACCOUNT)
    assert len(all_of_them) > 50 and not [right for right in all_of_them if "*" in right]
    named = set().union(*(needs for _, needs in SCENARIOS))
    missing: dict[str, list[Right]] = {}
    for scenario, needs in SCENARIOS:
        begin = len(lines(world.log)) if scenario is not SCENARIOS[0][0] else 0
        scenario(world)
        end = time.monotonic() + 5
        while (unused := needs - used(world.log, SYSTEM, begin)) and time.monotonic() < end:
            time.sleep(0.5)
        if unused:
            missing[scenario.__name__] = sorted(unused)
    all_used = used(world.log, SYSTEM)
    assert sorted(all_of_them - all_used - OWNERS) == [], "granted and not used"
    assert sorted(all_used - all_of_them) == [], "used and not granted by the manifest"
    assert not missing
    assert named | OWNERS == all_of_them
    assert not [right for right in all_used if right.resource == "secrets" and right.verb in ("list", "watch")]


def test_owners_of_what_it_makes_ask_for_the_right_to_their_finalizers(world: World) -> None:
    """With the admission plugin OwnerReferencesPermissionEnforcement, as some clusters have it."""
    world.make(ours("DaskCluster", "f"))
    world.make(ours("PipelineRun", "g", pipelineRef="nowhere", suspend=True))
    role = json.loads(world.empty.kubectl("get", "clusterrole", ACCOUNT, "-o", "json"))
    without = copy.deepcopy(role)
    without["rules"] = [rule for rule in role["rules"] if "daskclusters/finalizers" not in rule["resources"]]
    assert len(without["rules"]) == len(role["rules"]) - 1
    uids = {
        kind: {each["metadata"]["name"]: each["metadata"]["uid"] for each in world.find(f"{kind}.daskade.dev")}
        for kind in ("daskclusters", "pipelineruns")
    }

    def owner(kind: str, plural: str, name: str) -> Object:
        api = "daskade.dev/v1alpha1"
        who = {"apiVersion": api, "kind": kind, "name": name, "uid": uids[plural][name]}
        return {**who, "controller": True, "blockOwnerDeletion": True}

    def make(name: str, owned: Object) -> str:
        body = json.dumps(service(name, ownerReferences=[owned]))
        return world.kubectl("create", "--dry-run=server", "--as", USER, "-f", "-", stdin=body, check=False)

    for owned in (owner("DaskCluster", "daskclusters", "f"), owner("PipelineRun", "pipelineruns", "g")):
        assert "created" in make("o", owned)
    world.empty.kubectl("replace", "-f", "-", stdin=json.dumps(without))

    def refusal(owned: Object) -> list[str]:
        return [said for said in (make("o", owned),) if "created" not in said]

    for owned in (owner("DaskCluster", "daskclusters", "f"), owner("PipelineRun", "pipelineruns", "g")):
        said = until("it is refused", partial(refusal, owned), 30)[0]
        assert "cannot set blockOwnerDeletion" in said, said
