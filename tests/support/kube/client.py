"""A Dask client in a pod."""

from __future__ import annotations

import os
from typing import Any

from support.kube.api import path_of, proxy
from support.kube.namespace import Namespace
from support.kube.settings import IMAGE, Object
from support.waiting import PATIENCE, until

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
