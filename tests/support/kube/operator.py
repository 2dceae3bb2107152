"""`daskade operator` as a process of this machine, with the rights of its manifest."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

from support import TOP
from support.kube.api import kubectl
from support.kube.settings import IMAGE, LABEL, RUN, SYSTEM, Object
from support.processes import free_port
from support.waiting import until


def manifest() -> list[Object]:
    """``deploy/operator.yaml`` with names of this run, as objects."""
    text = (TOP / "deploy/operator.yaml").read_text()
    text = text.replace("daskade-system", SYSTEM).replace("name: daskade-operator", f"name: daskade-operator-{RUN}")
    text = text.replace("serviceAccountName: daskade-operator", f"serviceAccountName: daskade-operator-{RUN}")
    made = kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", stdin=text)
    objects: list[Object] = []
    decoder, at = json.JSONDecoder(), 0
    while at < len(made.rstrip()):
        found, at = decoder.raw_decode(made, at)
        objects += found["items"] if found["kind"] == "List" else [found]
        at += len(made[at:]) - len(made[at:].lstrip())
    # What is of the whole cluster and has no name of this run, the policies and the roles for people, is not ours to make.
    return [o for o in objects if RUN in o["metadata"]["name"] or o["metadata"].get("namespace") == SYSTEM]


def install(folder: Path) -> Path:
    """Definitions, rights and the operator's own namespace; the kubeconfig of the operator's account."""
    kubectl("apply", "--server-side", "-f", str(TOP / "crds"))
    for name in ("daskclusters", "pipelines", "pipelineruns"):
        kubectl("wait", "--for=condition=Established", f"crd/{name}.daskade.dev", "--timeout=60s")
    objects = [found for found in manifest() if found["kind"] != "Deployment"]
    account = f"daskade-operator-{RUN}"
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"{account}-namespaces"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"{account}-namespaces"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": SYSTEM}],
    }
    kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [*objects, binding]}))
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    token = kubectl("-n", SYSTEM, "create", "token", account, "--duration=12h").strip()
    config["users"] = [{"name": account, "user": {"token": token}}]
    config["contexts"][0]["context"]["user"] = account
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def uninstall() -> None:
    """Takes away what belongs to this run alone; the definitions stay."""
    account = f"daskade-operator-{RUN}"
    kubectl("delete", "namespace", SYSTEM, "--wait=false", check=False)
    kubectl("delete", "clusterrolebinding", account, f"{account}-namespaces", check=False)
    kubectl("delete", "clusterrole", account, f"{account}-namespaces", check=False)


class Operator:
    """`daskade operator` as a process on this machine. ``scope`` says where it lives and whom it serves."""

    SCOPE = ("--own-namespace", SYSTEM, "--namespace-selector", f"{LABEL}={RUN}")

    def __init__(
        self, binary: Path, folder: Path, config: Path, *options: str, scope: tuple[str, ...] = SCOPE, leads: bool = True
    ) -> None:
        self.folder, self.options, self.binary, self.config, self.scope = folder, options, binary, config, scope
        self.image, self.port = IMAGE, free_port()
        self.log = folder / "operator.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.start(leads=leads)

    def start(self, *options: str, leads: bool = True) -> None:
        """Starts it, with other options than its own if some are given, and waits until it leads."""
        words = [str(self.binary), "operator", *self.scope, "--image", self.image, "--listen", f"127.0.0.1:{self.port}"]
        words += ["--lease-duration", "5s", *(options or self.options)]
        environment = {**os.environ, "KUBECONFIG": str(self.config)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        if leads:
            until("the operator leads", self.leads, 60)

    def leads(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the operator ended: {self.log.read_text()[-3000:]}")
        # The help of the metric begins alike.
        return "daskade_leader 1" in self.metrics().splitlines()

    def metrics(self) -> str:
        address = f"http://127.0.0.1:{self.port}/metrics"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            return str(answer.read().decode())
        return ""

    def writes(self) -> int:
        """Writes to the API server so far, other than those of the lease."""
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in self.writes_by_kind())

    def writes_by_kind(self) -> list[str]:
        """The same as lines of its metrics."""
        lines = [line for line in self.metrics().splitlines() if line.startswith("daskade_api_writes_total{")]
        return [line for line in lines if 'resource="leases"' not in line]

    def stop(self, how: int = signal.SIGTERM) -> float:
        """Ends it; how long that took, in seconds."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(60)
        return time.monotonic() - began
