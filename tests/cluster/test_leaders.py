"""Operators and the schedulers that hear them: two with Leases of their own on one scheduler, and what one leaves there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.runs import Ledger, ledger_pipeline, start, status, succeeded, wait_end
from support.kube.api import apply
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import Shared
from support.kube.settings import LABEL, RUN, SYSTEM, Object
from support.waiting import until

OTHER = f"other-{RUN}"


@pytest.fixture
def neighbour() -> Iterator[Namespace]:
    """A namespace that the operator of these tests does not serve."""
    made = Namespace(f"t-{RUN}-neighbour-{os.urandom(2).hex()}", {LABEL: OTHER})
    yield made
    made.close()


def second(operator: Operator, folder: Path, lease: str, *options: str) -> Operator:
    """One more operator, for the other namespaces, whose Lease has changed hands but once."""
    spec = {"holderIdentity": "", "leaseTransitions": 1}
    meta = {"name": lease, "namespace": SYSTEM}
    apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}, namespace=SYSTEM)
    scope = ("--own-namespace", SYSTEM, "--namespace-selector", f"{LABEL}={OTHER}", "--lease-name", lease)
    folder = folder / lease
    folder.mkdir()
    return Operator(operator.binary, folder, operator.config, *options, scope=scope)


def copy_certificates(source: Namespace, cluster: str, to: Namespace) -> None:
    data = (source.find("secret", f"{cluster}-client-tls") or {})["data"]
    to.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "outside"}, "data": data})


def outside(space: Namespace, cluster: str, s3: Shared, prefix: str) -> Object:
    address = f"tls://{space.scheduler_ip(cluster)}:8786"
    return {"cluster": {"address": address, "tls": {"secretRef": "outside"}}, "storage": {"url": s3.url(prefix)}}


def released(space: Namespace, name: str) -> Object:
    conditions = status(space, name).get("conditions") or []
    return next((dict(found) for found in conditions if found["type"] == "Released"), {})


def test_two_operators_with_leases_of_their_own_use_one_scheduler(
    space: Namespace, neighbour: Namespace, operator: Operator, tmp_path: Path
) -> None:
    """The first one's count is the minutes since 1970, far above the other's."""
    s3 = Shared(space)
    space.cluster("e", {"name": "cpu", "replicas": 1}, storage=s3.storage("e"))
    space.wait_ready("e")
    copy_certificates(space, "e", neighbour)
    other = second(operator, tmp_path, "second", "--allow-address", "tls://*:8786")
    try:
        theirs, ours = Ledger(s3, "theirs"), Ledger(s3, "ours")
        start(neighbour, "theirs", pipelineSpec=ledger_pipeline(theirs, 4, 2.0, **outside(space, "e", s3, "theirs")))
        start(space, "ours", pipelineSpec=ledger_pipeline(ours, 4, 2.0, cluster={"ref": "e"}))
        assert wait_end(neighbour, "theirs")["results"] == {"sum": 6}
        assert wait_end(space, "ours")["results"] == {"sum": 6}
        assert sum(theirs.executions().values()) == sum(ours.executions().values()) == 5
    finally:
        other.stop()


def test_an_operator_that_moves_takes_its_runs_over(
    space: Namespace, neighbour: Namespace, operator: Operator, tmp_path: Path
) -> None:
    """It leaves a run with a leader whose count is higher; the Lease that it has from then on begins to count anew."""
    s3 = Shared(space)
    space.cluster("e", {"name": "cpu", "replicas": 1}, storage=s3.storage("e"))
    space.wait_ready("e")
    copy_certificates(space, "e", neighbour)
    ledger = Ledger(s3, "moved")
    options = ("--allow-address", "tls://*:8786")
    scope = ("--own-namespace", SYSTEM, "--namespace-selector", f"{LABEL}={OTHER}", "--lease-name", "former")
    folder = tmp_path / "former"
    folder.mkdir()
    former = Operator(operator.binary, folder, operator.config, *options, scope=scope)
    try:
        start(neighbour, "r", pipelineSpec=ledger_pipeline(ledger, 6, 3.0, **outside(space, "e", s3, "moved")))
        until("a step is done", lambda: (status(neighbour, "r").get("steps") or {}).get("done", 0) >= 1)
    finally:
        former.stop(signal.SIGKILL)
    moved = second(operator, tmp_path, "new", *options)
    try:
        assert wait_end(neighbour, "r")["results"] == {"sum": 15}
    finally:
        moved.stop()


def test_a_run_that_is_suspended_while_the_operator_is_down_leaves_nothing_on_a_shared_cluster(
    space: Namespace, operator: Operator
) -> None:
    s3 = Shared(space)
    space.cluster("shared", {"name": "cpu", "replicas": 1}, storage=s3.storage("shared"))
    space.wait_ready("shared")
    ledger = Ledger(s3, "y")
    start(space, "y", pipelineSpec=ledger_pipeline(ledger, 3, 600, cluster={"ref": "shared"}))
    until("a step runs", lambda: (status(space, "y").get("steps") or {}).get("running", 0) >= 1)
    operator.stop(signal.SIGKILL)
    space.patch("pipelinerun", "y", {"spec": {"suspend": True}})
    operator.start()
    until("it is suspended", lambda: succeeded(space, "y").get("reason") == "Suspended", 60)
    assert released(space, "y")["status"] == "True", status(space, "y")
    until("the cluster is idle", lambda: space.status("shared").get("idleSince"), 60)
    assert sum(ledger.executions().values()) == 1
