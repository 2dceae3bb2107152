"""Pods with nothing but Python in them, from which connections are tried."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from support.kube.api import apply, kubectl, path_of, proxy
from support.kube.settings import IMAGE, Object
from support.waiting import until

# Whether the cluster is known to enforce NetworkPolicies.
ENFORCED = os.environ.get("DASKADE_TEST_POLICIES") == "enforced"
LISTEN = """
import socket
listener = socket.create_server(("", 8000))
while True:
    listener.accept()[0].close()
"""
# A name that is not found is an error of the test, an address that does not answer is an answer.
CONNECT = """
import socket, sys
address = socket.gethostbyname(sys.argv[1])
try:
    socket.create_connection((address, int(sys.argv[2])), 4).close()
    print("open")
except OSError as error:
    print("closed:", error)
"""


@dataclass(frozen=True)
class Pod:
    """A pod with Python in it, from which connections are tried."""

    namespace: str
    name: str

    def opens(self, host: str, port: int) -> bool:
        said = kubectl("-n", self.namespace, "exec", self.name, "--", "python3", "-c", CONNECT, host, str(port))
        return said.strip() == "open"

    def address(self) -> str:
        return str(self.found()["status"]["podIP"])

    def found(self) -> Object:
        return dict(json.loads(proxy().get(f"{path_of(self.namespace, 'pods')}/{self.name}") or "{}"))


def start(namespace: str, name: str, labels: Object | None = None) -> Pod:
    """A pod that listens at 8000 and does nothing else; under ``restricted`` like all others."""
    container = {
        "name": "main",
        "image": IMAGE,
        "command": ["python3", "-c", LISTEN],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    user = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1, "securityContext": user}
    meta = {"name": name, "namespace": namespace, "labels": labels or {}}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    apply(body)
    pod = Pod(namespace, name)
    until(f"{name} runs", lambda: pod.found()["status"]["phase"] == "Running")
    return pod
