"""A real S3 server (SeaweedFS) in a pod: one that tests share, or one of a test's own, which can be cut off and killed."""

from __future__ import annotations

import functools
import json
import os

from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.settings import LABEL, RUN, S3_IMAGE, Object
from support.s3.client import REGION, S3Client
from support.s3.server import MEMORY, OPTIONS
from support.waiting import until

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


class Folder:
    """A folder of the bucket, and a Secret ``s3`` with the credentials as a DaskCluster's storage takes them."""

    # In front of every path.
    folder = ""

    def __init__(self, space: Namespace, endpoint: str, key: str, secret: str) -> None:
        self._space, self.endpoint, self.key, self.secret = space, endpoint, key, secret
        self.tell(key, secret)

    @property
    def client(self) -> S3Client:
        """With the keys that the server takes now."""
        return S3Client(self.endpoint, self.key, self.secret)

    def tell(self, key: str, secret: str) -> None:
        """Writes keys into the Secret, whether or not the server takes them."""
        keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        meta = {"name": "s3"}
        self._space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": keys})

    def storage(self, prefix: str) -> Object:
        """For a DaskCluster's ``spec.storage``."""
        return {"url": self.url(prefix), "endpoint": self.endpoint, "region": REGION, "secretRef": "s3"}

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{self.folder}{prefix}"

    def keys(self, prefix: str) -> list[str]:
        """Names of the objects below a prefix of the folder, by the server's own word."""
        return list(self.written(prefix))

    def written(self, prefix: str) -> dict[str, float]:
        """The same with the time of each one's writing, see `S3Client.written`."""
        found = self.client.written(BUCKET, f"{self.folder}{prefix}")
        return {key.removeprefix(self.folder): at for key, at in found.items()}

    def find(self, key: str) -> bytes | None:
        return self.client.read(BUCKET, f"{self.folder}{key}")

    def read(self, key: str) -> bytes:
        """One object, which must be there."""
        found = self.find(key)
        assert found is not None, f"there is no {key}"
        return found

    def put(self, key: str, data: bytes) -> None:
        self.client.put(BUCKET, f"{self.folder}{key}", data)

    def environ(self) -> dict[str, str]:
        """For a client outside of pods."""
        keys = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": REGION}
        return {**keys, "AWS_ENDPOINT_URL": self.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}


class Shared(Folder):
    """A folder of the server that all tests of this process share: nobody disturbs it."""

    def __init__(self, space: Namespace) -> None:
        self.folder = f"{space.name}/"
        server = _server()
        super().__init__(space, server.endpoint, server.key, server.secret)


class S3(Folder):
    """A server in a pod of the namespace.

    ``others``: identities beside the folder's own, each with a bucket of its own name, its own key and nothing elsewhere.
    """

    def __init__(self, space: Namespace, *others: str) -> None:
        self._space, self.key, self.secret, self.others = space, KEY, SECRET, others
        meta = {"name": "s3"}
        config = {"identities.json": self._identities()}
        space.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": config},
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": self._pod()},
        )
        address = str(until("the S3 server is ready", self._ready))
        super().__init__(space, f"http://{address}:{PORT}", KEY, SECRET)
        for name in others:
            self.client.request("PUT", f"/{name}").expect(200)

    def keys_of(self, name: str) -> dict[str, str]:
        """What the identity of a bucket of its own shows."""
        return {"AWS_ACCESS_KEY_ID": f"key-{name}", "AWS_SECRET_ACCESS_KEY": f"{SECRET}-{name}"}

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
        query = {"list-type": "2", "prefix": "nothing/"}
        try:
            return self.client.request("GET", f"/{BUCKET}", query, patience=2).status == 200
        except OSError:
            return False

    def _signal(self, name: str) -> None:
        kubectl("-n", self._space.name, "exec", "s3", "--", "sh", "-c", f"kill -{name} $(cat /data/pid)")

    def _ready(self) -> str:
        """Its address, once it is."""
        status = (self._space.find("pod", "s3") or {}).get("status", {})
        conditions = {found["type"]: found["status"] for found in status.get("conditions") or []}
        return str(status.get("podIP") or "") if conditions.get("Ready") == "True" else ""

    def _pod(self) -> Object:
        options = ["-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", f"-s3.port={PORT}", "-s3.config=/data/identities.json"]
        options += ["-filer.localSocket=/data/f.sock", "-s3.localSocket=/data/s.sock", "-master.volumeSizeLimitMB=64"]
        options += OPTIONS
        account = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
        container: Object = {
            "name": "s3",
            "image": S3_IMAGE,
            "command": ["sh", "-c", SERVE, "serve", "-logtostderr=true", "server", *options],
            "workingDir": "/data",
            "env": [{"name": name, "value": value} for name, value in {"HOME": "/data", **MEMORY}.items()],
            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "config", "mountPath": "/config"}],
        }
        volumes = [{"name": "data", "emptyDir": {}}, {"name": "config", "configMap": {"name": "s3"}}]
        return {
            "containers": [container], "volumes": volumes, "securityContext": account, "terminationGracePeriodSeconds": 0,
        }


@functools.cache
def _server() -> S3:
    return S3(Namespace(f"s3-{RUN}", labels={LABEL: "none"}))


def close_shared() -> None:
    """Takes the shared server away, at the end."""
    if _server.cache_info().currsize:
        _server()._space.close()
