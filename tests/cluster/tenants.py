"""Two tenants as ``test_tenants.py`` uses them: a namespace, a token with the role `edit` there, a cluster and runs each."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from cluster.certificates import make
from support.charts import Charts
from support.kube.api import Refused, kubectl, path_of, proxy
from support.kube.client import ClientPod
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import S3
from support.kube.settings import LABEL, RUN, SYSTEM, Object
from support.s3.client import S3Client
from support.waiting import until

NAME = f"tenants-{RUN}"
# In the code and the log of the first tenant, and in nothing that the second one wrote.
MARKER = f"marker-{os.urandom(6).hex()}"
CODE = "def f(word):\n    print(word, flush=True)\n    return [word]\n"
SUM = [{"name": "sum", "call": "builtins:sum", "args": [[1, 2]]}]


def archive(owner: str) -> bytes:
    """The tenants' code as an archive, which is another one for each of them."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as written:
        written.writestr(zipfile.ZipInfo("recipe.py"), f"# of {owner}\n{CODE}")
    return made.getvalue()


class Tenant:
    """Somebody with the role `edit` in a namespace, by a token; nothing else is granted to them."""

    def __init__(self, space: Namespace, bucket: str, folder: Path) -> None:
        self.space, self.name, self.bucket, self.folder = space, space.name, bucket, folder
        kubectl("-n", self.name, "create", "serviceaccount", "tenant")
        kubectl(
            "-n",
            self.name,
            "create",
            "rolebinding",
            "tenant",
            "--clusterrole=edit",
            f"--serviceaccount={self.name}:tenant",
        )
        config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        cluster = config["clusters"][0]["cluster"]
        self.token = kubectl("-n", self.name, "create", "token", "tenant", "--duration=2h").strip()
        self.server = cluster["server"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.context = ssl.create_default_context(cadata=authority)
        config["users"] = [{"name": "tenant", "user": {"token": self.token}}]
        config["contexts"][0]["context"].update(user="tenant", namespace=self.name)
        folder.mkdir()
        (folder / "kubeconfig").write_text(json.dumps(config))

    def ask(self, method: str, path: str, body: Object | None = None, **headers: str) -> tuple[int, str]:
        """A request of the API server with the token: status and text of the answer."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        given = {"Authorization": f"Bearer {self.token}", "Content-Type": kind, **headers}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.server}{path}", data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60, context=self.context) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def make(
        self, kind: str, name: str, spec: Object | None = None, labels: Object | None = None, **rest: Any
    ) -> Object:
        """An object, as this tenant; what the server made of it."""
        api = "daskade.dev/v1alpha1" if spec is not None and kind != "Pod" else rest.pop("api", "v1")
        meta = {"name": name, "labels": labels or {}, **rest.pop("meta", {})}
        body = {"apiVersion": api, "kind": kind, "metadata": meta, **({} if spec is None else {"spec": spec}), **rest}
        # A field that does not exist would be dropped.
        code, text = self.ask("POST", f"{path_of(self.name, kind.lower())}?fieldValidation=Strict", body)
        assert code == 201, f"{kind} {name}: {code} {text}"
        return dict(json.loads(text))

    def find(self, kind: str, name: str) -> Object:
        return self.space.find(kind, name) or {}

    def uid(self, kind: str, name: str) -> str:
        return str(self.find(kind, name)["metadata"]["uid"])

    def told(self, kind: str, name: str, condition: str) -> tuple[str, str]:
        """Reason and message of a condition."""
        status = self.find(kind, name).get("status") or {}
        found = [each for each in status.get("conditions") or [] if each["type"] == condition]
        return (found[0]["reason"], found[0].get("message", "")) if found else ("", "")

    def wait_run(self, name: str, *reasons: str) -> str:
        """Until the run says one of the reasons; its message."""

        def there() -> str | None:
            reason, message = self.told("pipelinerun", name, "Succeeded")
            return f"{reason}: {message}" if reason in reasons else None

        try:
            return str(until(f"run {name} of {self.name} is {' or '.join(reasons)}", there, 120))
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.told('pipelinerun', name, 'Succeeded')}") from error

    def command(self, binary: Path, *words: str, **environment: str) -> tuple[int, str]:
        """`daskade` as this tenant, without credentials for a storage but those that are given."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        own = {
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "HOME": str(self.folder),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        done = subprocess.run(
            [str(binary), *words], env={**kept, **own, **environment}, capture_output=True, text=True, timeout=90
        )
        return done.returncode, done.stdout + done.stderr


class World:
    """Tenant ``a``, whose things are tried for, and tenant ``b``, who tries; the same names in both namespaces."""

    def __init__(self, operator: Operator, folder: Path) -> None:
        self.operator, self.binary = operator, operator.binary
        self.store = Namespace(f"t-{NAME}-store", labels={LABEL: "none"})
        spaces = [Namespace(f"t-{NAME}-{which}") for which in "ab"]
        charts = Charts(folder / "charts")
        given = {
            "fullnameOverride": NAME,
            "serviceAccount": {"name": f"daskade-operator-{RUN}"},
            "operator": {"watchNamespaces": [space.name for space in spaces]},
        }
        for part in ("policies", "people"):
            text = charts.render("-s", f"templates/{part}.yaml", values=given, namespace=SYSTEM)
            kubectl("apply", "-f", "-", stdin=text)
        self.s3 = S3(self.store, "of-a", "of-b")
        self.volume = Path(tempfile.mkdtemp(prefix="daskade-volume-"))
        self.volume.chmod(0o755)
        self.a, self.b = (Tenant(space, f"of-{space.name[-1]}", folder / space.name[-1]) for space in spaces)
        path = path_of(self.b.name, "pipelineruns")
        until("the role edit has daskade's kinds", lambda: self.b.ask("GET", path)[0] == 200, 60)
        for tenant in (self.a, self.b):
            self.furnish(tenant)
        for tenant in (self.a, self.b):
            tenant.space.wait_ready("c")
        operator.stop()
        allowed = [f"tls://*.{self.b.name}:8786", "tls://10.*:8786", "tcp://10.*:8786"]
        operator.start(*operator.options, "--allow-address", ",".join(allowed))
        self.a.make("PipelineRun", "r", {"pipelineRef": "p"})
        self.b.make("PipelineRun", "r", {"pipelineSpec": {"cluster": {"ref": "c"}, "steps": SUM}})
        for tenant in (self.a, self.b):
            tenant.wait_run("r", "Succeeded")
        self.pods = {tenant.name: self.pods_of(tenant) for tenant in (self.a, self.b)}

    def furnish(self, tenant: Tenant) -> None:
        """What both have under the same names, and what only the first has (``only-a``)."""
        space = tenant.space
        keys = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}}
        space.apply({**keys, "stringData": self.s3.keys_of(tenant.bucket)})
        space.cluster("c", {"name": "w", "replicas": 1}, storage=self.storage(tenant))
        tenant.make("Pipeline", "p", {**self.flow(), "triggers": {"onChange": False}})
        S3Client(self.s3.endpoint, *self.s3.keys_of(tenant.bucket).values()).put(
            tenant.bucket, "code/flow.zip", archive(tenant.bucket)
        )
        if tenant is not self.a:
            return
        only = {"metadata": {"name": "only-a"}}
        space.apply(
            {**keys, **only, "stringData": {"key": MARKER, **self.s3.keys_of(tenant.bucket)}},
            {"apiVersion": "v1", "kind": "ServiceAccount", **only},
            {"apiVersion": "v1", "kind": "ConfigMap", **only, "data": {"recipe.py": CODE}},
        )
        (self.volume / "flow.zip").write_bytes(archive(tenant.bucket))
        space.volume("only-a", self.volume)
        where: Object = {"cluster": {"ref": "c"}, "triggers": {"onChange": False}}
        tenant.make("Pipeline", "only-a", {"steps": SUM, **where})
        tenant.make("DaskCluster", "only-a", {"suspend": True})

    def flow(self) -> Object:
        """The first tenant's pipeline; the second has the same words as well, as who has read the repository would."""
        steps = [{"name": "one", "call": "recipe:f", "args": [MARKER]}]
        return {"cluster": {"ref": "c"}, "code": {"files": {"recipe.py": CODE}}, "steps": steps}

    def code(self, tenant: Tenant) -> str:
        """Where the tenant's own archive is, which their keys open."""
        return f"s3://{tenant.bucket}/code/flow.zip"

    def storage(self, tenant: Tenant, bucket: str = "") -> Object:
        url = f"s3://{bucket or tenant.bucket}/x"
        return {"url": url, "endpoint": self.s3.endpoint, "region": "us-east-1", "secretRef": "keys"}

    def pods_of(self, tenant: Tenant) -> dict[str, Object]:
        return {part: tenant.space.pods("c", part)[0] for part in ("scheduler", "worker")}

    def names(self, tenant: Tenant) -> dict[str, str]:
        """What paths of requests name."""
        pods = self.pods[tenant.name]
        names = {part: pod["metadata"]["name"] for part, pod in pods.items()}
        return {"ns": tenant.name, "revision": tenant.find("pipelinerun", "r")["status"]["revision"], **names}

    def address(self, tenant: Tenant, part: str = "scheduler") -> str:
        return str(self.pods[tenant.name][part]["status"]["podIP"])

    def probe(self) -> dict[str, str]:
        """What a pod of the second tenant reaches, with every label and certificate that they can have."""
        theirs, mine = self.a.find("secret", "c-client-tls")["data"], self.b.find("secret", "c-client-tls")["data"]
        worker = self.b.find("secret", "c-tls")["data"]
        # An authority of the same name, and a certificate of its making.
        folder = self.b.folder
        subject = openssl("x509", "-noout", "-subject", "-nameopt", "RFC2253", stdin=base64.b64decode(theirs["ca.crt"]))
        make(folder, subject.split("CN=")[-1].strip(), version=3)
        forged = {
            f"forged.{end}": base64.b64encode((folder / f"tls.{end}").read_bytes()).decode() for end in ("crt", "key")
        }
        data = {**mine, "worker.crt": worker["tls.crt"], "worker.key": worker["tls.key"], **forged}
        self.b.make("Secret", "probe", data=data)
        where = {
            which: {**{part: self.address(tenant, part) for part in ("scheduler", "worker")}, "ns": tenant.name}
            for which, tenant in (("a", self.a), ("b", self.b))
        }
        labels = {"app.kubernetes.io/name": "daskade", "app.kubernetes.io/component": "operator"}
        labels |= {"dask.org/cluster-name": "c", "dask.org/component": "worker"}
        pod = ClientPod(self.b.space, "c", f"WHERE = {where!r}\n" + PROBE, secret="probe", labels=labels)
        said = pod.output()
        pod.close()
        return dict(json.loads(said.strip().splitlines()[-1]))

    def close(self) -> None:
        self.operator.stop()
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            kubectl("delete", kind, f"{NAME}-rights", check=False)
        kubectl("delete", "clusterrole", *(f"{NAME}-{role}" for role in ("view", "edit", "admin")), check=False)
        for space in (self.store, self.a.space, self.b.space):
            space.close()
        kubectl("delete", "persistentvolume", self.a.name, "--wait=false")
        shutil.rmtree(self.volume, ignore_errors=True)
        proxy().delete(path_of(self.b.name, "pipelineruns"))
        # Those that wait for a scheduler that never lets them in are held for a minute, and the operator ends before.
        for found in self.b.space.list("pipelineruns"):
            with contextlib.suppress(Refused):
                self.b.space.patch("pipelinerun", found["metadata"]["name"], {"metadata": {"finalizers": None}})
        self.operator.start()


def openssl(*words: str, stdin: bytes = b"") -> str:
    return subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=True).stdout.decode()


# Runs in a pod of the second tenant, with their client's certificate. Each answer is "open" or why not.
PROBE = """
import concurrent.futures, json, socket, ssl

def port(host, number):
    socket.create_connection((socket.gethostbyname(host), number), 5).close()

def greeted(host, certificate="", encrypted=True):
    # A Dask scheduler speaks first, to whom it has let in.
    raw = socket.create_connection((host, 8786), 5)
    raw.settimeout(8)
    if encrypted:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if certificate:
            context.load_cert_chain(f"{folder}/{certificate}.crt", f"{folder}/{certificate}.key")
        raw = context.wrap_socket(raw)
    if not raw.recv(8):
        raise OSError("it hung up")

def dask(at):
    Client(f"tls://{at['scheduler']}:8786", security=security, timeout=15, set_as_default=False).close()

attempts = {}
for which, at in WHERE.items():
    attempts[f"dashboard-{which}"] = lambda at=at: port(at["scheduler"], 8787)
    attempts[f"dashboard-by-name-{which}"] = lambda at=at: port(f"c-scheduler.{at['ns']}", 8787)
    attempts[f"worker-port-{which}"] = lambda at=at: port(at["worker"], 8788)
    attempts[f"clients-certificate-{which}"] = lambda at=at: greeted(at["scheduler"], "tls")
    attempts[f"workers-certificate-{which}"] = lambda at=at: greeted(at["scheduler"], "worker")
    attempts[f"forged-certificate-{which}"] = lambda at=at: greeted(at["scheduler"], "forged")
    attempts[f"no-certificate-{which}"] = lambda at=at: greeted(at["scheduler"])
    attempts[f"no-tls-{which}"] = lambda at=at: greeted(at["scheduler"], encrypted=False)
    attempts[f"dask-client-{which}"] = lambda at=at: dask(at)

def result(name):
    try:
        attempts[name]()
    except Exception as error:
        return name, f"{type(error).__name__}: {error}"[:200]
    return name, "open"

with concurrent.futures.ThreadPoolExecutor(len(attempts)) as threads:
    print(json.dumps(dict(threads.map(result, attempts))), flush=True)
client.close()
"""
