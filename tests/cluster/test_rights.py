"""The chart's admission policies: whoever writes daskade's objects must have the rights that the pods of these would need.

Every refusal has a positive control: the same object by somebody with that one right more. All is tried by a dry run of the
server, so that nothing is made; the policies are bound to one namespace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.charts import Charts
from support.kube.api import kubectl, path_of, proxy
from support.kube.namespace import Namespace
from support.kube.settings import LABEL, RUN, Object
from support.waiting import until

NAME = f"rights-{RUN}"
KINDS = ["daskclusters", "pipelines", "pipelineruns"]
STEPS = [{"name": "sum", "call": "builtins:sum", "args": [[1, 2]]}]
CREATED = "created"
STORAGE = {"url": "s3://bucket/runs"}


class World:
    """People with some rights each in the namespace, and the policies bound to it."""

    def __init__(self, charts: Charts) -> None:
        self.space = Namespace(f"t-{NAME}", labels={LABEL: "none"})
        self.other = Namespace(f"t-{NAME}-other", labels={LABEL: "none"})
        daskade = {"apiGroups": ["daskade.dev"], "resources": KINDS, "verbs": ["*"]}
        pods = {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}
        names = [f"s{at}" for at in range(9)]
        one = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": names, "verbs": ["get"]}
        every = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
        accounts = {
            "apiGroups": [""],
            "resources": ["serviceaccounts"],
            "resourceNames": [f"a{at}" for at in range(7)],
            "verbs": ["impersonate"],
        }
        for space in (self.space, self.other):
            person(space, "writer", daskade)
            person(space, "maker", daskade, pods)
            person(space, "reader", daskade, pods, one)
            person(space, "reader-of-all", daskade, pods, every)
            person(space, "actor", daskade, pods, accounts)
            person(space, "podless", daskade, every, accounts)
        # Made before there was a limit.
        groups = {"workers": [{"name": "a", "replicas": 6}]}
        wide = made("PipelineRun", "wide", {"pipelineSpec": {"steps": STEPS, "cluster": {"template": groups}}})
        wide["spec"]["suspend"] = True
        self.space.apply(wide, made("DaskCluster", "wide", {**groups, "suspend": True}))
        given = {
            "fullnameOverride": NAME,
            "crds": {"enabled": False},
            "operator": {"watchNamespaces": [self.space.name], "maxWorkersPerCluster": 5},
        }
        kubectl("apply", "-f", "-", stdin=charts.render("-s", "templates/policies.yaml", values=given))
        # From the first refusal on they are in force; the second is another one.
        until("the rights are asked for", lambda: "must be allowed" in self.put("writer", cluster()), 60)
        six = cluster(workers=[{"name": "a", "replicas": 6}])
        until("the limit is asked for", lambda: "are allowed per cluster" in self.put("maker", six), 60)

    def put(self, who: str, obj: Object, space: Namespace | None = None) -> str:
        """Makes an object as one of the people, as a dry run: what the server says, or `created`."""
        where = (space or self.space).name
        path = path_of(where, obj["kind"].lower())
        return proxy().create(path, obj, f"system:serviceaccount:{where}:{who}") or CREATED

    def patch(self, who: str, kind: str, name: str, change: Object) -> str:
        words = ["--as", f"system:serviceaccount:{self.space.name}:{who}", "--dry-run=server", "--type=merge"]
        return kubectl("-n", self.space.name, "patch", kind, name, *words, "-p", json.dumps(change), check=False)

    def close(self) -> None:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            kubectl("delete", kind, f"{NAME}-rights", f"{NAME}-limits", check=False)
        for space in (self.space, self.other):
            space.close()


def person(space: Namespace, name: str, *rules: Object) -> None:
    api, meta = "rbac.authorization.k8s.io/v1", {"name": name}
    subjects = [{"kind": "ServiceAccount", "name": name, "namespace": space.name}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    space.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": api, "kind": "Role", "metadata": meta, "rules": list(rules)},
        {"apiVersion": api, "kind": "RoleBinding", "metadata": meta, "roleRef": role, "subjects": subjects},
    )


def made(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": "daskade.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def cluster(**spec: object) -> Object:
    return made("DaskCluster", "c", spec)


def pipeline(**spec: object) -> Object:
    return made("Pipeline", "p", {"steps": STEPS, **spec})


def run(**spec: object) -> Object:
    return made("PipelineRun", "r", {"pipelineSpec": {"steps": STEPS, **spec}})


def everywhere(spec: Object, name: str) -> dict[str, Object]:
    """A cluster's spec as a DaskCluster, and as the template of a Pipeline and of a run."""
    template = {"cluster": {"template": spec}}
    return {
        f"cluster-{name}": cluster(**spec),
        f"pipeline-{name}": pipeline(**template),
        f"run-{name}": run(**template),
    }


@pytest.fixture(scope="module")
def world(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(Charts(tmp_path_factory.mktemp("charts")))
    yield made
    made.close()


def secret(name: str) -> Object:
    return {"name": "A", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}}


def volume(name: str) -> Object:
    return {"name": "v", "mountPath": "/v", "secret": name}


# Objects that name the Secret s1.
SECRETS: dict[str, Object] = {
    **everywhere({"imagePullSecrets": ["s1"]}, "pull"),
    **everywhere({"storage": {**STORAGE, "secretRef": "s1"}}, "storage"),
    **everywhere({"tls": {"mode": "Secret", "secretRef": "s1"}}, "tls"),
    **everywhere({"scheduler": {"env": [{"name": "B", "value": "b"}, secret("s1")]}}, "scheduler"),
    **everywhere({"workers": [{"name": "a"}, {"name": "b", "env": [secret("s1")]}]}, "env"),
    **everywhere({"workers": [{"name": "a"}, {"name": "b", "volumes": [volume("s1")]}]}, "volume"),
    **everywhere({"scheduler": {"volumes": [volume("s1")]}}, "scheduler-volume"),
    "pipeline-own-storage": pipeline(storage={**STORAGE, "secretRef": "s1"}),
    "run-own-storage": run(storage={**STORAGE, "secretRef": "s1"}),
    "pipeline-address": pipeline(cluster={"address": "tls://dask:8786", "tls": {"secretRef": "s1"}}),
    "run-address": run(cluster={"address": "tls://dask:8786", "tls": {"secretRef": "s1"}}),
}
# Objects whose pods run as the account a1.
ACCOUNTS: dict[str, Object] = {
    **everywhere({"scheduler": {"serviceAccountName": "a1"}}, "scheduler"),
    **everywhere({"workers": [{"name": "a"}, {"name": "b", "serviceAccountName": "a1"}]}, "workers"),
    **everywhere({"storage": {**STORAGE, "serviceAccountName": "a1"}}, "storage"),
    "pipeline-own-storage": pipeline(storage={**STORAGE, "serviceAccountName": "a1"}),
    "run-own-storage": run(storage={**STORAGE, "serviceAccountName": "a1"}),
}
PLAIN = {
    "cluster": cluster(),
    "pipeline": pipeline(),
    "run": run(),
    "by-name": made("PipelineRun", "r", {"pipelineRef": "p"}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_who_writes_must_be_allowed_to_create_pods(world: World, name: str) -> None:
    refused = world.put("writer", PLAIN[name])
    assert "must be allowed to create pods in the namespace" in refused and "Forbidden" in refused, refused
    assert world.put("maker", PLAIN[name]) == CREATED
    # The right elsewhere does not help, and where the policy is not bound nothing is asked.
    assert "must be allowed to create pods" in world.put("podless", PLAIN[name])
    assert world.put("writer", PLAIN[name], world.other) == CREATED


@pytest.mark.parametrize("name", SECRETS)
def test_who_names_a_secret_must_be_allowed_to_get_it(world: World, name: str) -> None:
    refused = world.put("maker", SECRETS[name])
    assert "must be allowed to get the Secret s1" in refused, refused
    assert world.put("reader", SECRETS[name]) == CREATED
    assert world.put("reader-of-all", SECRETS[name]) == CREATED
    other = json.loads(json.dumps(SECRETS[name]).replace('"s1"', '"another"'))
    assert "must be allowed to get the Secret another" in world.put("reader", other)


@pytest.mark.parametrize("name", ACCOUNTS)
def test_who_names_a_service_account_must_be_allowed_to_be_it(world: World, name: str) -> None:
    refused = world.put("reader-of-all", ACCOUNTS[name])
    assert "must be allowed to impersonate the service account a1" in refused, refused
    assert world.put("actor", ACCOUNTS[name]) == CREATED
    default = json.loads(json.dumps(ACCOUNTS[name]).replace('"a1"', '"default"'))
    assert world.put("maker", default) == CREATED


def test_many_names_are_checked_one_by_one(world: World) -> None:
    """The names repeat, stand in many places, and the cost of an expression is bounded."""
    env = [{**secret(f"s{at % 8}"), "name": f"A{at}"} for at in range(100)]
    groups = [{"name": f"g{at}", "env": env, "replicas": 0} for at in range(32)]
    assert world.put("reader", cluster(workers=groups)) == CREATED
    groups[31]["env"] = [*env[1:], secret("another")]
    assert "Secret" in world.put("reader", cluster(workers=groups))
    nine = [{**secret(f"s{at}"), "name": f"A{at}"} for at in range(9)]
    assert "more than 8 Secrets" in world.put("reader", cluster(workers=[{"name": "a", "env": nine}]))
    assert world.put("reader-of-all", cluster(workers=[{"name": "a", "env": nine}])) == CREATED
    for many, answer in ((6, CREATED), (7, "more than 6 service accounts")):
        groups = [{"name": f"g{at}", "serviceAccountName": f"a{at}", "replicas": 0} for at in range(many)]
        assert answer in world.put("actor", cluster(workers=groups))


def test_what_starts_nothing_needs_no_right_to_start(world: World) -> None:
    """A run is stopped, an object labelled or deleted by somebody who may not create pods; nothing more."""
    space = world.space
    waiting = made("PipelineRun", "waits", {"pipelineRef": "nowhere", "params": {"rows": 1}, "suspend": True})
    space.apply(waiting, made("DaskCluster", "kept", {"suspend": True}))
    label = {"metadata": {"labels": {"a": "b"}}}
    for kind, name in (("dpr", "waits"), ("dsk", "kept")):
        assert "patched" in world.patch("writer", kind, name, label)
        words = ["--as", f"system:serviceaccount:{space.name}:writer", "--dry-run=server"]
        assert "deleted" in kubectl("-n", space.name, "delete", kind, name, *words)
    assert "patched" in world.patch("writer", "dpr", "waits", {"spec": {"cancel": True}})
    for kind, name, change in (
        ("dpr", "waits", {"spec": {"suspend": False}}),
        ("dsk", "kept", {"spec": {"suspend": False}}),
        ("dsk", "kept", {"spec": {"image": "example.com/mine:1"}}),
    ):
        assert "must be allowed to create pods" in world.patch("writer", kind, name, change)
        assert "patched" in world.patch("maker", kind, name, change)
    # Nor the marks of one that the operator lets go when its turn has come, nor what the definition lets through of
    # what a run would do, which is another name for a parameter.
    for edit in (
        {"spec": {"params": {"rows": None, "columns": 1}}},
        {"spec": {"params": {"rows": None, "columns": 1}, "cancel": True}},
        {"metadata": {"annotations": {"daskade.dev/queued": "true"}}},
        {"metadata": {"labels": {"daskade.dev/pipeline": "p"}}},
    ):
        assert "must be allowed to create pods" in world.patch("writer", "dpr", "waits", edit)


def test_whoever_changes_an_object_answers_for_all_that_it_names(world: World) -> None:
    space = world.space
    space.apply(made("DaskCluster", "theirs", {"suspend": True, "storage": {**STORAGE, "secretRef": "s1"}}))
    change = {"spec": {"image": "example.com/mine:1"}}
    assert "must be allowed to get the Secret s1" in world.patch("maker", "dsk", "theirs", change)
    assert "patched" in world.patch("reader", "dsk", "theirs", change)


def test_the_operator_is_let_through(world: World) -> None:
    """It makes what people asked for, and may not be the service accounts that they may be."""
    account = f"system:serviceaccount:daskade-system:{NAME}-operator"
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "writer"}
    group = "rbac.authorization.k8s.io"
    subjects = [{"kind": "User", "name": name, "apiGroup": group} for name in (account, f"{account}-too")]
    meta = {"name": "operator-writes"}
    api = "rbac.authorization.k8s.io/v1"
    world.space.apply(
        {"apiVersion": api, "kind": "RoleBinding", "metadata": meta, "roleRef": role, "subjects": subjects}
    )
    everything = cluster(storage={**STORAGE, "secretRef": "s1"}, scheduler={"serviceAccountName": "a1"})
    assert proxy().create(path_of(world.space.name, "daskcluster"), everything, account) == ""
    # Another account of these rights is not.
    assert "must be allowed" in proxy().create(path_of(world.space.name, "daskcluster"), everything, f"{account}-too")


@pytest.mark.parametrize("kind", ["cluster", "pipeline", "run"])
def test_more_workers_than_allowed_are_refused_at_once(world: World, kind: str) -> None:
    def of(*groups: Object) -> Object:
        named = [{"name": f"g{at}", **group} for at, group in enumerate(groups)]
        objects = everywhere({"workers": named} if named else {}, "x")
        return objects[f"{kind}-x"]

    assert world.put("maker", of()) == CREATED
    assert world.put("maker", of({"replicas": 2}, {"autoscale": {"max": 2}}, {})) == CREATED
    refused = world.put("maker", of({"replicas": 3}, {"autoscale": {"min": 0, "max": 2}}, {}))
    assert "ask for up to 6 workers, and 5 are allowed per cluster" in refused, refused
    # By an administrator as well.
    words = ["-n", world.space.name, "create", "--dry-run=server", "-f", "-"]
    assert "are allowed per cluster" in kubectl(*words, stdin=json.dumps(of({"replicas": 6})), check=False)


def test_what_was_made_before_there_was_a_limit_can_be_stopped(world: World) -> None:
    assert "are allowed per cluster" in world.patch("maker", "dpr", "wide", {"spec": {"suspend": False}})
    assert "patched" in world.patch("maker", "dpr", "wide", {"spec": {"cancel": True}})
    assert "are allowed per cluster" in world.patch("maker", "dsk", "wide", {"spec": {"suspend": False}})
    assert "patched" in world.patch("maker", "dsk", "wide", {"spec": {"idleTimeout": "1h"}})
