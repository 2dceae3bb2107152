"""A namespace of a test's own, and the DaskClusters in it."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.kube.api import Refused, apply, kubectl, path_of, proxy
from support.kube.settings import IMAGE, LABEL, RUN, SMALL, Object
from support.waiting import PATIENCE, until

if TYPE_CHECKING:
    import builtins  # inside the class, `list` is its method


class Namespace:
    """A namespace of a test's own, under the strictest Pod Security level."""

    def __init__(self, name: str, labels: Object | None = None) -> None:
        self.name = name
        # What else a person would look at when something went wrong.
        self.looks: builtins.list[Callable[[], str]] = []
        labels = {"pod-security.kubernetes.io/enforce": "restricted", **(labels or {LABEL: RUN})}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        until("the default service account", lambda: self.find("serviceaccount", "default"))

    def apply(self, *objects: Object, check: bool = True) -> str:
        """Makes objects or puts them in place of those of before; what was done, or what the server says against it."""
        try:
            return apply(*objects, namespace=self.name)
        except Refused as error:
            if check:
                raise
            return str(error)

    def find(self, kind: str, name: str) -> Object | None:
        found = proxy().get(f"{path_of(self.name, kind)}/{name}")
        return json.loads(found) if found else None

    def list(self, kind: str, selector: str = "") -> list[Object]:
        query = f"?labelSelector={urllib.parse.quote(selector)}" if selector else ""
        return list(json.loads(proxy().get(path_of(self.name, kind) + query) or '{"items": []}')["items"])

    def delete(
        self, kind: str, name: str, wait: bool = True, grace: int | None = None, patience: float = 120, missing_ok: bool = False
    ) -> None:
        """Until it is gone, or only asks for that. ``grace``: the seconds that a pod gets to end."""
        found = self.find(kind, name) or {}
        there = proxy().delete(f"{path_of(self.name, kind)}/{name}", grace)
        assert there or missing_ok, f"there is no {kind} {name}"

        def gone() -> bool:
            left = self.find(kind, name)
            return left is None or bool(left["metadata"]["uid"] != found["metadata"]["uid"])

        if there and wait:
            until(f"{kind} {name} is gone", gone, patience)

    def patch(self, kind: str, name: str, change: Object, part: str = "") -> None:
        """A merge patch of the object, or of a part of it such as its status."""
        path = f"{path_of(self.name, kind)}/{name}" + (f"/{part}" if part else "")
        proxy().ask("PATCH", path, change, "application/merge-patch+json")

    def close(self) -> None:
        """Asks for its end, which nobody waits for: its pods are killed, since nothing comes of their last minutes."""
        proxy().delete(f"/api/v1/namespaces/{self.name}")
        proxy().delete(path_of(self.name, "pods"), grace=0)

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
        """A claim to a PersistentVolume, which may belong to another namespace."""
        asked = {"requests": {"storage": "1Gi"}}
        spec = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": volume, "resources": asked}
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

    def pods(self, cluster: str, component: str = "", group: str = "") -> builtins.list[Object]:
        selector = f"daskade.dev/cluster={cluster}"
        selector += f",dask.org/component={component}" if component else ""
        selector += f",daskade.dev/group={group}" if group else ""
        return [pod for pod in self.list("pods", selector) if not pod["metadata"].get("deletionTimestamp")]

    def workers(self, cluster: str, group: str = "") -> builtins.list[str]:
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
        seen = [kubectl("-n", self.name, *part.split(), check=False) for part in parts]
        return "\n".join([*seen, *(look() for look in self.looks)])
