"""A cluster as these tests use it: kubectl, an operator, a namespace, a client of Dask in a pod."""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
IMAGE = os.environ.get("DASKADE_TEST_IMAGE", "localhost/daskade-worker:test")
OTHER_IMAGE = os.environ.get("DASKADE_TEST_OTHER_IMAGE", "localhost/daskade-worker:other")
BARE_IMAGE = os.environ.get("DASKADE_TEST_BARE_IMAGE", "localhost/bare:test")
OPERATOR_IMAGE = os.environ.get("DASKADE_TEST_OPERATOR_IMAGE", "localhost/daskade:test")
PATIENCE = 180.0
# Of this run of the tests: its operator serves the namespaces with this label, and no others.
RUN = os.urandom(3).hex()
LABEL = "daskade.dev/test-run"
SYSTEM = f"daskade-system-{RUN}"
Object = dict[str, Any]
# Of a scheduler's or a worker's pod: several clusters fit on a node of two cores.
SMALL: Object = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}


def kubectl(*words: str, stdin: str | None = None, check: bool = True) -> str:
    """Runs kubectl; its output."""
    done = subprocess.run(["kubectl", *words], input=stdin, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr}")
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


class Proxy:
    """`kubectl proxy`: what is asked often is asked here, since a kubectl of its own each time costs too much."""

    def __init__(self) -> None:
        words = ["kubectl", "proxy", "--port=0"]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        self._port = int(said.rsplit(":", 1)[1])
        atexit.register(self._process.kill)

    def get(self, path: str) -> str | None:
        """The body, or none for what does not exist."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=60) as answer:
                return str(answer.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise AssertionError(f"GET {path}: {error.code} {error.read()[:500]!r}") from error


    def create(self, path: str, made: Object, who: str) -> str:
        """Makes an object in the name of somebody, as a dry run; what the server says against it, or nothing."""
        headers = {"Content-Type": "application/json", "Impersonate-User": who}
        url = f"http://127.0.0.1:{self._port}{path}?dryRun=All"
        request = urllib.request.Request(url, json.dumps(made).encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60):
                return ""
        except urllib.error.HTTPError as error:
            return str(error.read().decode(errors="replace")) or str(error)


@functools.cache
def proxy() -> Proxy:
    return Proxy()


# Paths of kinds in a namespace, by the names that these tests use.
KINDS = {
    **dict.fromkeys(("daskclusters", "pipelines", "pipelineruns"), "/apis/daskade.dev/v1alpha1"),
    "daskclusters.daskade.dev": "/apis/daskade.dev/v1alpha1",
    "daskclusters.kubernetes.dask.org": "/apis/kubernetes.dask.org/v1",
    "controllerrevisions": "/apis/apps/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "events": "/apis/events.k8s.io/v1",
    **dict.fromkeys(
        ("pods", "services", "secrets", "configmaps", "serviceaccounts", "resourcequotas", "limitranges"), "/api/v1"
    ),
    "persistentvolumeclaims": "/api/v1",
}


def path_of(namespace: str, kind: str) -> str:
    """Path of a kind, given in the singular or plural."""
    plural = {"dsk": "daskclusters", "networkpolicy": "networkpolicies"}.get(kind, kind)
    plural = plural if plural in KINDS else f"{plural}s"
    return f"{KINDS[plural]}/namespaces/{namespace}/{plural.split('.')[0]}"


def until(what: str, probe: Callable[[], Any], patience: float = PATIENCE, every: float = 0.5) -> Any:
    """Waits until ``probe`` gives something true, and gives it."""
    end = time.monotonic() + patience
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience:.0f} s: {what}")
        time.sleep(every)


class Namespace:
    """A namespace of a test's own, under the strictest Pod Security level."""

    def __init__(self, name: str, labels: Object | None = None) -> None:
        self.name = name
        labels = {"pod-security.kubernetes.io/enforce": "restricted", **(labels or {LABEL: RUN})}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        until("the default service account", lambda: self.find("serviceaccount", "default"))

    def apply(self, *objects: Object, check: bool = True) -> str:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        words = ["apply", "-f", "-"] if objects[0]["kind"] == "Namespace" else ["-n", self.name, "apply", "-f", "-"]
        return kubectl(*words, stdin=text, check=check)

    def find(self, kind: str, name: str) -> Object | None:
        found = proxy().get(f"{path_of(self.name, kind)}/{name}")
        return json.loads(found) if found else None

    def list(self, kind: str, selector: str = "") -> list[Object]:
        query = f"?labelSelector={urllib.parse.quote(selector)}" if selector else ""
        return list(json.loads(proxy().get(path_of(self.name, kind) + query) or '{"items": []}')["items"])

    def delete(self, kind: str, name: str, *options: str) -> None:
        kubectl("-n", self.name, "delete", kind, name, *options)

    def patch(self, kind: str, name: str, change: Object, *options: str) -> None:
        kubectl("-n", self.name, "patch", kind, name, "--type=merge", "-p", json.dumps(change), *options)

    def volume(self, claim: str, folder: Path) -> None:
        """A claim that stands for a folder of the node, through a PersistentVolume with the name of the namespace."""
        size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
        of = {"namespace": self.name, "name": claim}
        volume = {"capacity": size, "accessModes": modes, "hostPath": {"path": str(folder)}, "claimRef": of}
        volume |= {"storageClassName": "", "persistentVolumeReclaimPolicy": "Retain"}
        meta = {"name": self.name}
        self.apply(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": meta, "spec": volume}, self.claim(claim, self.name)
        )

    @staticmethod
    def claim(name: str, volume: str) -> Object:
        """A claim to a PersistentVolume, whoever it belongs to."""
        spec = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": volume}
        spec |= {"resources": {"requests": {"storage": "1Gi"}}}
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}

    # ------------------------------------------------------------------ clusters

    def cluster(self, name: str, *groups: Object, labels: Object | None = None, **spec: Any) -> None:
        """Applies a DaskCluster with the image of the tests, whose pods ask for little."""
        workers = [{"resources": SMALL, **group} for group in groups]
        spec = {"image": IMAGE, "scheduler": {"resources": SMALL}, "workers": workers, **spec}
        meta = {"name": name, "labels": labels or {}}
        self.apply({"apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "metadata": meta, "spec": spec})

    def status(self, name: str) -> Object:
        found = self.find("daskcluster", name) or {}
        return dict(found.get("status") or {})

    def condition(self, name: str, kind: str = "Ready") -> Object:
        conditions = self.status(name).get("conditions") or []
        return next((dict(c) for c in conditions if c["type"] == kind), {})

    def wait_ready(self, name: str, patience: float = PATIENCE) -> Object:
        """Until the status says Ready about the latest spec."""

        def ready() -> Object | None:
            found = self.find("daskcluster", name) or {}
            status = found.get("status") or {}
            current = status.get("observedGeneration") == found.get("metadata", {}).get("generation")
            conditions = {c["type"]: c for c in status.get("conditions") or []}
            return status if current and conditions.get("Ready", {}).get("status") == "True" else None

        return dict(until(f"DaskCluster {name} is Ready", ready, patience))

    def wait_reason(self, name: str, reason: str, kind: str = "Ready", patience: float = PATIENCE) -> str:
        """Until a condition has the reason; its message."""

        def there() -> str | None:
            found = self.condition(name, kind)
            return found["message"] or "-" if found.get("reason") == reason else None

        return str(until(f"{kind} of {name} has the reason {reason}", there, patience))

    def pods(self, cluster: str, component: str = "", group: str = "") -> list[Object]:
        selector = f"daskade.dev/cluster={cluster}"
        selector += f",dask.org/component={component}" if component else ""
        selector += f",daskade.dev/group={group}" if group else ""
        return [pod for pod in self.list("pods", selector) if not pod["metadata"].get("deletionTimestamp")]

    def workers(self, cluster: str, group: str = "") -> list[str]:
        return sorted(pod["metadata"]["name"] for pod in self.pods(cluster, "worker", group))

    def scheduler_ip(self, cluster: str) -> str:
        pods = [pod for pod in self.pods(cluster, "scheduler") if pod["status"].get("podIP")]
        return str(pods[0]["status"]["podIP"])

    def certificates(self, secret: str, folder: Path) -> Path:
        """Writes a Secret's files."""
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in ((self.find("secret", secret) or {}).get("data") or {}).items():
            (folder / key).write_bytes(base64.b64decode(value))
        return folder

    def show(self) -> str:
        """What a person would look at when something went wrong."""
        parts = ["get daskclusters,pipelineruns -o yaml", "get pods -o wide", "get events --sort-by=.lastTimestamp"]
        return "\n".join(kubectl("-n", self.name, *part.split(), check=False) for part in parts)


def manifest() -> list[Object]:
    """``deploy/operator.yaml`` with names of this run, as objects."""
    text = (TOP / "deploy/operator.yaml").read_text()
    text = text.replace("daskade-system", SYSTEM).replace("name: daskade-operator", f"name: daskade-operator-{RUN}")
    text = text.replace("serviceAccountName: daskade-operator", f"serviceAccountName: daskade-operator-{RUN}")
    made = kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", stdin=text)
    decoder, objects, at = json.JSONDecoder(), [], 0
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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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


CLIENT = """
import os, sys, time
from distributed import Client, Security
folder = "/etc/daskade/client"
security = Security(require_encryption=True, **{f"tls_{role}_{kind}": f"{folder}/{file}"
    for role in ("client", "worker", "scheduler") for kind, file in (("cert", "tls.crt"), ("key", "tls.key"))},
    tls_ca_file=f"{folder}/ca.crt") if os.path.isdir(folder) else None
client = Client(os.environ["DASK_SCHEDULER_ADDRESS"], security=security, timeout=90, set_as_default=False)

def once(seconds, x=None):
    # Leaves a mark with the scheduler at its begin and at its end: both are counted from outside.
    from distributed import get_worker
    worker = get_worker()
    worker.log_event("begun", (x, worker.name))
    time.sleep(seconds)
    worker.log_event("ended", (x, worker.name))
    return x

def marks(topic):
    return [message for _, message in client.get_events(topic)]

def say(*words):
    print(*words, flush=True)
"""


class ClientPod:
    """A pod that runs code with a connected Dask ``client``, with the certificate that the operator issued."""

    def __init__(
        self, space: Namespace, cluster: str, code: str, tls: bool = True, secret: str = "", labels: Object | None = None
    ) -> None:
        self.space, self.name = space, f"client-{os.urandom(3).hex()}"
        scheme = "tls" if tls else "tcp"
        container: Object = {
            "name": "client",
            "image": IMAGE,
            "command": ["python3", "-c", CLIENT + code],
            "env": [
                {"name": "DASK_SCHEDULER_ADDRESS", "value": f"{scheme}://{cluster}-scheduler.{space.name}:8786"},
                {"name": "HOME", "value": "/tmp"},
            ],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "client", "mountPath": "/etc/daskade/client"}] if tls else [],
        }
        secret = secret or f"{cluster}-client-tls"
        account = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
        spec = {
            "containers": [container],
            "volumes": [{"name": "client", "secret": {"secretName": secret}}] if tls else [],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": account,
        }
        meta = {"name": self.name, "labels": {"daskade.dev/client": cluster, **(labels or {})}}
        space.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})

    def log(self) -> str:
        return proxy().get(f"{path_of(self.space.name, 'pods')}/{self.name}/log") or "" if self._started() else ""

    def wait_for(self, text: str, patience: float = PATIENCE) -> None:
        """Until it has printed ``text``."""

        def there() -> bool:
            log = self.log()
            if text in log:
                return True
            assert self._phase() not in ("Succeeded", "Failed"), log
            return False

        until(f"the client prints {text}", there, patience)

    def output(self, patience: float = PATIENCE) -> str:
        """What it printed, once it has ended well."""
        ended = until(f"the client {self.name} ends", lambda: self._ended(), patience)
        text = self.log()
        assert ended == "Succeeded", text
        return text

    def failure(self, patience: float = PATIENCE) -> str:
        """What it printed, once it has ended badly."""
        ended = until(f"the client {self.name} ends", lambda: self._ended(), patience)
        assert ended == "Failed", self.log()
        return self.log()

    def close(self) -> None:
        self.space.delete("pod", self.name, "--wait=false", "--force", "--grace-period=0")

    def _started(self) -> bool:
        return self._phase() in ("Running", "Succeeded", "Failed")

    def _phase(self) -> str:
        pod = self.space.find("pod", self.name) or {}
        return str(pod.get("status", {}).get("phase"))

    def _ended(self) -> str | None:
        phase = self._phase()
        return phase if phase in ("Succeeded", "Failed") else None


def ask(space: Namespace, cluster: str, code: str, **options: Any) -> str:
    """Runs code with a connected client; what it printed."""
    pod = ClientPod(space, cluster, code, **options)
    text = pod.output()
    pod.close()
    return text.strip()
