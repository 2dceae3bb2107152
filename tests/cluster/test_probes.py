"""What the kubelet learns of schedulers and workers by their probes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support.kube.namespace import Namespace
from support.kube.settings import Object
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="processes in pods are not reachable from here"
)


def process(pod: Object) -> int:
    """The pid of a pod's first process, as the node sees it."""
    name = f"HOSTNAME={pod['metadata']['name']}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            namespaces = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("NSpid:"))
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended just now
        if b"daskade_runtime.pod" in command and name in environment and namespaces.split()[-1] == "1":
            return int(folder.name)
    raise AssertionError(f"no process of {name.decode()}")


def restarts(space: Namespace) -> dict[str, int]:
    pods = space.pods("f")
    return {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods}


def test_an_ordinary_start_fails_no_probe_and_a_frozen_process_is_started_again(space: Namespace) -> None:
    """Issue 13, point 17."""
    space.cluster("f", {"name": "a", "replicas": 1})
    space.wait_ready("f")
    failed = [event["note"] for event in space.list("events") if event["reason"] == "Unhealthy"]
    assert failed == []
    assert set(restarts(space).values()) == {0}
    for pod in space.pods("f"):
        os.kill(process(pod), signal.SIGSTOP)
    # Within 60 s and three more probes.
    until("both are started again", lambda: set(restarts(space).values()) == {1}, 180, every=1.0)
    space.wait_ready("f")
    told = [event["note"] for event in space.list("events") if event["reason"] == "Unhealthy"]
    assert any("Liveness probe failed" in message for message in told), told
