"""A real S3 server (SeaweedFS) in a pod, which can be cut off and killed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime
from xml.etree import ElementTree

from kube import Namespace, Object, kubectl, until

IMAGE = os.environ.get("DASKADE_TEST_S3_IMAGE", "localhost/s3:test")
PORT = 8333
KEY, SECRET = "daskade-test", "only-in-a-test"
BUCKET = "runs"
# The first process of a pod gets no signal from inside of it, so the server is the second. It is started again after the
# pause that whoever killed it wrote down.
SERVE = """
[ -f /data/identities.json ] || cat /config/identities.json >/data/identities.json
while :; do
    weed "$@" &
    echo $! > /data/pid
    wait $!
    sleep "$(cat /data/pause 2>/dev/null || echo 1)"
done
"""


class S3:
    """The server, and a Secret ``s3`` with credentials as a DaskCluster's storage takes them.

    ``others``: identities beside this one, each with a bucket of its own name, its own key and nothing elsewhere.
    """

    def __init__(self, space: Namespace, *others: str) -> None:
        self._space = space
        self.key, self.secret, self.others = KEY, SECRET, others
        meta = {"name": "s3"}
        config = {"identities.json": self._identities()}
        space.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": config},
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": self._pod()},
        )
        self.tell(self.key, self.secret)
        kubectl("-n", space.name, "wait", "--for=condition=Ready", "pod/s3", "--timeout=110s")
        self.endpoint = f"http://{until('its address', self._ip)}:{PORT}"
        for name in others:
            self._ask("PUT", f"/{name}", {})

    def keys_of(self, name: str) -> dict[str, str]:
        """What the identity of a bucket of its own shows."""
        return {"AWS_ACCESS_KEY_ID": f"key-{name}", "AWS_SECRET_ACCESS_KEY": f"{SECRET}-{name}"}

    def tell(self, key: str, secret: str) -> None:
        """Writes keys into the Secret, whether or not the server takes them."""
        keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        meta = {"name": "s3"}
        self._space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": keys})

    def rotate(self) -> None:
        """From now on the server takes other keys, and no more those of before."""
        self.key, self.secret = f"{KEY}-{os.urandom(2).hex()}", os.urandom(8).hex()
        command = f"cat >/data/identities.json <<'END'\n{self._identities()}\nEND\n"
        kubectl("-n", self._space.name, "exec", "s3", "--", "sh", "-c", command)
        self.kill(0)
        until("the server takes the new keys", self.answers)

    def _identities(self) -> str:
        keys = [{"accessKey": self.key, "secretKey": self.secret}]
        identities = [{"credentials": keys, "name": "w", "actions": ["Admin"]}]
        for name in self.others:
            actions = [f"{action}:{name}" for action in ("Read", "Write", "List", "Tagging")]
            keys = [{"accessKey": f"key-{name}", "secretKey": f"{SECRET}-{name}"}]
            identities.append({"credentials": keys, "name": name, "actions": actions})
        return json.dumps({"identities": identities})

    def storage(self, prefix: str) -> Object:
        """For a DaskCluster's ``spec.storage``."""
        return {"url": self.url(prefix), "endpoint": self.endpoint, "region": "us-east-1", "secretRef": "s3"}

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"

    def keys(self, prefix: str) -> list[str]:
        """Names of the objects below a prefix of the bucket, by the server's own word."""
        return list(self.written(prefix))

    def written(self, prefix: str) -> dict[str, float]:
        """The same with the time of each one's writing by the server's clock, in seconds since 1970, cut to what it tells."""
        found: dict[str, float] = {}
        marker = ""
        while True:
            query = {"list-type": "2", "prefix": prefix, **({"continuation-token": marker} if marker else {})}
            try:
                tree = ElementTree.fromstring(self._get(f"/{BUCKET}", query))
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    # The first who writes makes the bucket.
                    return found
                raise
            for entry in tree.iterfind("{*}Contents"):
                at = datetime.fromisoformat(str(entry.findtext("{*}LastModified")).replace("Z", "+00:00"))
                found[str(entry.findtext("{*}Key"))] = at.timestamp()
            marker = tree.findtext("{*}NextContinuationToken") or ""
            if not marker:
                return found

    def read(self, key: str) -> bytes:
        """One object."""
        return self._get(f"/{BUCKET}/{key}", {})

    def stop(self) -> None:
        """Connections are taken and nothing is answered, as behind a network that swallows packets, until `go_on`."""
        self._signal("STOP")

    def go_on(self) -> None:
        self._signal("CONT")

    def kill(self, seconds: float) -> None:
        """The server dies, refuses connections for so long, and starts again with what it had."""
        command = f"echo {seconds} > /data/pause && kill -KILL $(cat /data/pid)"
        kubectl("-n", self._space.name, "exec", "s3", "--", "sh", "-c", command)

    def answers(self) -> bool:
        try:
            self._get(f"/{BUCKET}", {"list-type": "2", "prefix": "nothing/"}, 2)
        except OSError:
            return False
        return True

    def _signal(self, name: str) -> None:
        kubectl("-n", self._space.name, "exec", "s3", "--", "sh", "-c", f"kill -{name} $(cat /data/pid)")

    def _get(self, path: str, query: dict[str, str], patience: float = 30) -> bytes:
        return self._ask("GET", path, query, patience)

    def _ask(self, method: str, path: str, query: dict[str, str], patience: float = 30) -> bytes:
        """A signed request (AWS signature, version 4)."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        host = self.endpoint.removeprefix("http://")
        asked = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote)
        empty = hashlib.sha256(b"").hexdigest()
        names = "host;x-amz-content-sha256;x-amz-date"
        headers = f"host:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{stamp}\n"
        scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
        canonical = hashlib.sha256(f"{method}\n{path}\n{asked}\n{headers}\n{names}\n{empty}".encode()).hexdigest()
        key = f"AWS4{self.secret}".encode()
        for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{canonical}"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        request = urllib.request.Request(f"{self.endpoint}{path}?{asked}", method=method)
        request.add_header("x-amz-date", stamp)
        request.add_header("x-amz-content-sha256", empty)
        signed = f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        request.add_header("Authorization", signed)
        with urllib.request.urlopen(request, timeout=patience) as answer:
            return bytes(answer.read())

    def environ(self) -> dict[str, str]:
        """For a client outside of pods."""
        keys = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL": self.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}

    def _ip(self) -> str:
        return str((self._space.find("pod", "s3") or {}).get("status", {}).get("podIP") or "")

    def _pod(self) -> Object:
        options = ["-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-master.telemetry=false", "-volume.max=0"]
        options += ["-master.volumeSizeLimitMB=64", "-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"]
        options += ["-filer", "-filer.localSocket=/data/f.sock", "-s3", f"-s3.port={PORT}", "-s3.localSocket=/data/s.sock"]
        options += ["-s3.config=/data/identities.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        account = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
        container: Object = {
            "name": "s3",
            "image": IMAGE,
            "command": ["sh", "-c", SERVE, "serve", "-logtostderr=true", "server", *options],
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
