"""A real S3 server (SeaweedFS) in a pod."""

from __future__ import annotations

import json
import os

from kube import Namespace, Object, kubectl, until

IMAGE = os.environ.get("DASKADE_TEST_S3_IMAGE", "localhost/s3:test")
PORT = 8333
KEY, SECRET = "daskade-test", "only-in-a-test"
BUCKET = "runs"


class S3:
    """The server, and a Secret ``s3`` with credentials as a DaskCluster's storage takes them."""

    def __init__(self, space: Namespace) -> None:
        self._space = space
        identity = {"credentials": [{"accessKey": KEY, "secretKey": SECRET}], "name": "w", "actions": ["Admin"]}
        meta = {"name": "s3"}
        config = {"identities.json": json.dumps({"identities": [identity]})}
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        space.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": config},
            {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": keys},
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": self._pod()},
        )
        kubectl("-n", space.name, "wait", "--for=condition=Ready", "pod/s3", "--timeout=110s")
        self.endpoint = f"http://{until('its address', self._ip)}:{PORT}"

    def storage(self, prefix: str) -> Object:
        """For a DaskCluster's ``spec.storage``."""
        return {"url": self.url(prefix), "endpoint": self.endpoint, "region": "us-east-1", "secretRef": "s3"}

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"

    def environ(self) -> dict[str, str]:
        """For a client outside of pods."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL": self.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}

    def _ip(self) -> str:
        return str((self._space.find("pod", "s3") or {}).get("status", {}).get("podIP") or "")

    def _pod(self) -> Object:
        options = ["-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-master.telemetry=false", "-volume.max=0"]
        options += ["-master.volumeSizeLimitMB=64", "-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"]
        options += ["-filer", "-filer.localSocket=/data/f.sock", "-s3", f"-s3.port={PORT}", "-s3.localSocket=/data/s.sock"]
        options += ["-s3.config=/config/identities.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        account = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
        container: Object = {
            "name": "s3",
            "image": IMAGE,
            "command": ["weed", "-logtostderr=true", "server", *options],
            "workingDir": "/data",
            "env": [{"name": "HOME", "value": "/data"}, {"name": "GOMEMLIMIT", "value": "200MiB"}],
            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "config", "mountPath": "/config"}],
        }
        volumes = [{"name": "data", "emptyDir": {}}, {"name": "config", "configMap": {"name": "s3"}}]
        return {
            "containers": [container], "volumes": volumes, "securityContext": account, "terminationGracePeriodSeconds": 0,
        }
