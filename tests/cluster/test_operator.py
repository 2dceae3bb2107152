"""The operator's process on a real API server: who leads, how it ends, what it costs when nothing happens."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from support.kube.api import kubectl, proxy
from support.kube.client import Client, ask, ask_in_pod
from support.kube.namespace import Namespace
from support.kube.operator import Operator, manifest
from support.kube.settings import IMAGE, LABEL, OPERATOR_IMAGE, RUN, SYSTEM
from support.waiting import until

ONE = {"name": "a", "replicas": 1}


def holder() -> str:
    lease = json.loads(kubectl("-n", SYSTEM, "get", "lease", "daskade-operator", "-o", "json"))
    return str(lease["spec"].get("holderIdentity") or "")


def alone() -> None:
    """Until what other tests have left is gone, and the authorities of their clusters with it: the operator writes about both."""
    mine = f"/api/v1/namespaces?labelSelector={LABEL}%3D{RUN}"
    until("those of other tests are gone", lambda: len(json.loads(proxy().get(mine) or "{}")["items"]) == 1)
    kept = f"/api/v1/namespaces/{SYSTEM}/configmaps/daskade-authorities"

    def authorities() -> list[str]:
        return sorted(json.loads(proxy().get(kept) or "{}").get("data") or {})

    try:
        until("their authorities are gone", lambda: len(authorities()) == 1)
    except AssertionError as error:
        secret = ["-n", SYSTEM, "get", "secret", "-o", "jsonpath={.metadata}"]
        left = [f"{uid}: {kubectl(*secret, f'daskade-ca-{uid}', check=False)}" for uid in authorities()]
        raise AssertionError("\n".join([str(error), *left])) from error


def test_a_settled_cluster_costs_no_write(space: Namespace, operator: Operator) -> None:
    space.cluster("q", ONE)
    space.wait_ready("q")
    alone()

    def noise() -> str:
        before = operator.writes_by_kind()
        time.sleep(20)
        return ", ".join(sorted(set(operator.writes_by_kind()) - set(before)))

    # On a busy machine a probe may fail, which is told: a while later nothing is left to tell.
    heard: list[str] = []
    while len(heard) < 4 and (noise_now := noise()):
        heard.append(noise_now)
    assert len(heard) < 4, heard


def children(space: Namespace) -> dict[str, str]:
    """All that the operator wrote but pods and status, with versions: the API server counts each write."""
    kinds = ("services", "secrets", "configmaps", "networkpolicies")
    found = [(kind, each["metadata"]) for kind in kinds for each in space.list(kind)]
    return {f"{kind}/{meta['name']}": meta["resourceVersion"] for kind, meta in found}


def test_killed_and_started_again_it_changes_nothing(space: Namespace, operator: Operator) -> None:
    space.cluster("k", {"name": "a", "replicas": 2})
    space.wait_ready("k")
    code = "say(held(client.map(hold, range(2), pure=False)), len(marks('begun')))"
    client = Client(space, "k", code)
    client.wait_for("busy")
    before, made = {found["metadata"]["uid"] for found in space.pods("k")}, children(space)
    operator.stop(signal.SIGKILL)
    operator.start()
    client.release()
    assert client.output().splitlines()[-1] == "[0, 1] 2"
    time.sleep(5)
    assert {found["metadata"]["uid"] for found in space.pods("k")} == before
    assert children(space) == made


def test_it_ends_within_ten_seconds_and_gives_the_lease_back(space: Namespace, operator: Operator) -> None:
    space.cluster("e", {"name": "a", "replicas": 3})
    assert operator.stop(signal.SIGTERM) < 10
    assert operator.process is not None and operator.process.returncode == 0
    assert holder() == ""
    operator.start()
    space.wait_ready("e")


def test_another_takes_over_when_the_leader_is_killed(space: Namespace, operator: Operator, tmp_path: Path) -> None:
    second = Operator(operator.binary, tmp_path, operator.config, "--certificate-lifetime", "2h", leads=False)
    try:
        until("the other is there", second.metrics)
        assert "daskade_leader 0" in second.metrics()
        operator.stop(signal.SIGKILL)
        began = time.monotonic()
        until("the other leads", second.leads, 30)
        print(f"the other led {time.monotonic() - began:.1f} s after the kill")
        space.cluster("t", ONE)
        space.wait_ready("t")
    finally:
        second.stop()
        operator.start()


def test_a_leader_that_was_stopped_does_not_write_after_another_took_over(
    space: Namespace, operator: Operator, tmp_path: Path
) -> None:
    """SIGSTOP for longer than the lease, in the middle of making pods; then it wakes up beside the other."""
    second = Operator(operator.binary, tmp_path, operator.config, "--certificate-lifetime", "2h", leads=False)
    first = operator.process
    assert first is not None
    try:
        space.cluster("s", {"name": "a", "replicas": 2})
        time.sleep(0.2)
        first.send_signal(signal.SIGSTOP)
        until("the other leads", second.leads, 30)
        space.wait_ready("s")
        before = {found["metadata"]["uid"] for found in space.pods("s")}
        first.send_signal(signal.SIGCONT)
        until("it knows that it leads no more", lambda: "daskade_leader 0" in operator.metrics(), 5)
        time.sleep(5)
        assert {found["metadata"]["uid"] for found in space.pods("s")} == before
        assert len(space.pods("s", "scheduler")) == 1 and len(space.workers("s")) == 2
    finally:
        second.stop()
        first.send_signal(signal.SIGCONT)
        operator.stop()
        operator.start()


def test_with_roles_in_its_namespaces_alone_it_serves_these(operator: Operator, tmp_path: Path) -> None:
    """`--watch-namespaces` and no right anywhere else: the ClusterRole is bound in one namespace only."""
    served, other = (Namespace(f"t-{RUN}-{name}", labels={LABEL: "none"}) for name in ("served", "other"))
    account = f"only-{RUN}"
    kubectl("-n", served.name, "create", "serviceaccount", account)
    whom = f"--serviceaccount={served.name}:{account}"
    kubectl("-n", served.name, "create", "rolebinding", account, f"--clusterrole=daskade-operator-{RUN}", whom)
    # Its lease and its authorities live in that namespace too.
    rules = [rule for o in manifest() if o["kind"] == "Role" for rule in o["rules"]]
    meta = {"name": account, "namespace": served.name}
    own = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules}
    kubectl("apply", "-f", "-", stdin=json.dumps(own))
    kubectl("-n", served.name, "create", "rolebinding", f"{account}-own", f"--role={account}", whom)
    config = json.loads(operator.config.read_text())
    config["users"][0]["user"] = {"token": kubectl("-n", served.name, "create", "token", account).strip()}
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    options = ["--own-namespace", served.name, "--watch-namespaces", served.name]
    alone = Operator(operator.binary, tmp_path, path, *options, scope=())
    try:
        other.cluster("c", ONE)
        served.cluster("c", ONE)
        served.wait_ready("c")
        assert ask(served, "c", "say(client.submit(sum, [1, 1]).result(60))") == "2"
        assert not other.list("pods")
    finally:
        alone.stop()
        served.close()
        other.close()


def test_it_runs_as_its_manifest_says(installed: Path) -> None:
    """`deploy/operator.yaml` as it is, but for names and image: a pod that passes `restricted`, and serves."""
    space = Namespace(f"t-{RUN}-pod", labels={LABEL: "none"})
    (deployment,) = [found for found in manifest() if found["kind"] == "Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["image"] = OPERATOR_IMAGE
    container["args"] = [*container["args"], "--watch-namespaces", space.name, "--image", IMAGE, "--lease-name", "in-a-pod"]
    kubectl("apply", "-f", "-", stdin=json.dumps(deployment))
    name = deployment["metadata"]["name"]
    try:
        kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{name}", "--timeout=110s")
        space.cluster("c", ONE)
        space.wait_ready("c")
        assert ask_in_pod(space, "c", "say(client.submit(sum, [1, 1]).result(60))") == "2"
        rules = (space.find("networkpolicy", "c-scheduler") or {})["spec"]["ingress"]
        peers = [peer for rule in rules for peer in rule.get("from", []) if "namespaceSelector" in peer]
        assert peers and peers[0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": SYSTEM}
        log = kubectl("-n", SYSTEM, "logs", f"deployment/{name}")
        assert all(json.loads(line)["level"] in ("INFO", "WARN") for line in log.splitlines())
    finally:
        kubectl("-n", SYSTEM, "delete", "deployment", name, "--wait=false")
        space.close()
