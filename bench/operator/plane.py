"""A control plane of its own for measurements: etcd, API server, controllers and scheduler on loopback, with nodes and
pods that kwok plays. Everything runs in a network namespace that has nothing but loopback, so that no port is in the
way of others and nothing can leave the machine.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import TOP
from support.waiting import until

KWOK = "v0.8.0"
PORT = 6443
# Addresses of pods: every one of them is loopback.
PODS = "127.1.0.1/16"
SYSTEM = "daskade-system"
Object = dict[str, Any]

# Memory for time: on two cores the API server is what limits, for every operator alike.
GOGC = "400"

# What the audit log keeps: every request of the operators that are measured, without bodies.
AUDIT = """apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:daskade-system", "system:serviceaccounts:dask-operator"]
- level: None
"""
SCHEDULER = """apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection: {leaderElect: false}
clientConnection: {kubeconfig: KUBECONFIG, qps: 5000, burst: 5000}
"""
CONTROLLERS = [
    "namespace-controller", "serviceaccount-controller", "garbage-collector-controller",
    "deployment-controller", "replicaset-controller",
]


def cache() -> Path:
    """Where tools are kept; the same place as for the tests."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DASKADE_TEST_CACHE") or f"{home}/daskade-test")


def kubernetes() -> Path:
    """The folder of Kubernetes' components, built if need be."""
    return Path(subprocess.run([TOP / "tests/kube/build"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def build_kwok() -> Path:
    """The program kwok, built if need be: that takes some minutes."""
    kwok = cache() / f"kwok-{KWOK}" / "kwok"
    if not kwok.exists():
        environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(kwok.parent)}
        subprocess.run(["go", "install", f"sigs.k8s.io/kwok/cmd/kwok@{KWOK}"], env=environment, check=True)
    return kwok


def enter_namespace() -> None:
    """Goes on in a network namespace with nothing but loopback."""
    if os.environ.get("DASKADE_BENCH_INSIDE") == "1":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    words = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    environment = {**os.environ, "DASKADE_BENCH_INSIDE": "1"}
    os.execvpe(words[0], [*words, "--", sys.executable, *sys.argv], environment)


@dataclass(frozen=True)
class Usage:
    """What a process has used: seconds of CPU, and MiB of memory now, at its highest, and of its own (no file pages)."""

    cpu: float
    rss: float
    peak: float
    anonymous: float


def usage(pid: int) -> Usage:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    mib = {key: int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM", "RssAnon")}
    return Usage(cpu, mib["VmRSS"], mib["VmHWM"], mib["RssAnon"])


class Api:
    """Requests to the API server, with one connection per thread."""

    def __init__(self, pki: Path, user: str = "admin") -> None:
        self.context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self.context.load_cert_chain(pki / f"{user}.crt", pki / f"{user}.key")
        self.local = threading.local()

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", PORT, context=self.context, timeout=120)

    def __call__(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """One request; the answer, or nothing where there is nothing."""
        data = None if body is None else json.dumps(body)
        for again in (True, False):
            link: http.client.HTTPSConnection | None = getattr(self.local, "link", None)
            if link is None:
                link = self.local.link = self.connection()
            try:
                link.request(method, path, data, {"Content-Type": kind})
                answer = link.getresponse()
                text = answer.read()
                break
            except (OSError, http.client.HTTPException):
                link.close()
                self.local.link = None
                if not again:
                    raise
        if answer.status == 404 and method in ("GET", "DELETE"):
            return None
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500].decode(errors='replace')}")
        return json.loads(text) if text.startswith(b"{") else text.decode()

    def create(self, path: str, objects: list[Object], threads: int = 8) -> None:
        """Makes all objects, several at once."""
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda made: self("POST", path, made), objects):
                pass

    def all(self, path: str) -> Iterator[Object]:
        """Every object of a list, page by page."""
        more = ""
        while True:
            page = self("GET", f"{path}{'&' if '?' in path else '?'}limit=500{more}")
            yield from page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return
            more = f"&continue={token}"

    def watch(self, path: str, see: Callable[[str, Object], None], stop: threading.Event) -> threading.Thread:
        """Calls ``see`` with every change from now on, in a thread. The API server ends a watch that is too slow for it:
        then all that is there is seen, and a new one begins.
        """
        first = self("GET", f"{path}?limit=1")["metadata"]["resourceVersion"]

        def follow(version: str) -> None:
            link = self.connection()
            link.request("GET", f"{path}?watch=1&resourceVersion={version}&timeoutSeconds=3600")
            answer = link.getresponse()
            link.sock.settimeout(3600)
            while not stop.is_set():
                line = answer.readline()
                if not line:
                    return
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                see(event["type"], event["object"])

        def run() -> None:
            follow(first)
            while not stop.is_set():
                page = self("GET", path)
                for found in page["items"]:
                    see("MODIFIED", found)
                follow(page["metadata"]["resourceVersion"])

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread


class Plane:
    """The control plane, from its start to its end."""

    def __init__(self, folder: Path, kube: Path, kwok: Path | None) -> None:
        """Without ``kwok`` there are no controllers and no scheduler either: nothing but the API, in which no pod ever runs."""
        self.folder, self.kwok = folder, kwok
        self.pki, self.bin, self.log = folder / "pki", folder / "bin", folder / "log"
        for path in (self.pki, self.bin, self.log):
            path.mkdir(parents=True, exist_ok=True)
        for name in ("etcd", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
            (self.bin / name).symlink_to(kube / name)
        self.audit = self.log / "audit.jsonl"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Plane:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, name: str, words: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """A process that ends with the plane."""
        with (self.log / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
            )
        self.processes[name] = process
        return process

    def end(self, name: str, how: int = signal.SIGTERM) -> float:
        """Ends a process; how long that took."""
        began = time.monotonic()
        process = self.processes.pop(name)
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return time.monotonic() - began

    def stop(self) -> None:
        for name in reversed(list(self.processes)):
            self.end(name)

    def usages(self) -> dict[str, Usage]:
        return {name: usage(process.pid) for name, process in self.processes.items() if process.poll() is None}

    def start(self) -> None:
        self.certificates()
        (self.folder / "audit.yaml").write_text(AUDIT)
        etcd = "http://127.0.0.1:2379"
        self.run("etcd", [
            str(self.bin / "etcd"), "--data-dir", str(self.folder / "etcd"), "--listen-client-urls", etcd,
            "--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync",
            "--quota-backend-bytes", str(6 << 30), "--log-level", "warn",
        ], GOGC=GOGC)
        pki = self.pki
        self.run("kube-apiserver", [
            str(self.bin / "kube-apiserver"), f"--etcd-servers={etcd}", "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", f"--secure-port={PORT}",
            "--service-cluster-ip-range=10.96.0.0/16", f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key", "--authorization-mode=Node,RBAC",
            # Nobody would take the taint of a node away that it puts on new ones.
            "--disable-admission-plugins=TaintNodesByCondition",
            f"--audit-policy-file={self.folder}/audit.yaml", f"--audit-log-path={self.audit}",
        ], GOGC=GOGC)
        self.api = Api(pki)

        def ready() -> bool:
            if self.processes["kube-apiserver"].poll() is not None:
                raise SystemExit((self.log / "kube-apiserver.log").read_text()[-2000:])
            with contextlib.suppress(OSError, RuntimeError):
                return bool(self.api("GET", "/readyz") == "ok")
            return False

        until("the API server is ready", ready, 120)
        if self.kwok is not None:
            self.start_controllers(self.kwok)

    def start_controllers(self, kwok: Path) -> None:
        def auth(user: str) -> list[str]:
            config = self.folder / f"{user}.kubeconfig"
            return [f"--{kind}kubeconfig={config}" for kind in ("", "authentication-", "authorization-")]

        self.run("kube-controller-manager", [
            str(self.bin / "kube-controller-manager"), *auth("kcm"), f"--root-ca-file={self.pki}/ca.crt",
            f"--service-account-private-key-file={self.pki}/sa.key", "--leader-elect=false",
            "--bind-address=127.0.0.1", "--use-service-account-credentials=true",
            f"--controllers={','.join(CONTROLLERS)}", "--kube-api-qps=5000", "--kube-api-burst=5000",
            "--concurrent-deployment-syncs=20", "--concurrent-replicaset-syncs=20",
        ])
        config = self.folder / "scheduler.yaml"
        config.write_text(SCHEDULER.replace("KUBECONFIG", str(self.folder / "sched.kubeconfig")))
        self.run("kube-scheduler", [
            str(self.bin / "kube-scheduler"), f"--config={config}", "--bind-address=127.0.0.1",
            *auth("sched")[1:],
        ])
        self.run("kwok", [
            str(kwok), f"--kubeconfig={self.folder}/admin.kubeconfig", "--manage-all-nodes=true",
            f"--cidr={PODS}", "--node-ip=127.0.0.1", f"--config={Path(__file__).with_name('kwok.yaml')}",
            "--node-lease-duration-seconds=0",
        ])
        self.nodes(20)
        time.sleep(1)
        self.check()

    def check(self) -> None:
        """Fails if a process has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} has ended: {(self.log / f'{name}.log').read_text()[-2000:]}")

    def nodes(self, count: int) -> None:
        room = {"cpu": "1000", "memory": "4Ti", "pods": "10000"}
        conditions = [{"type": "Ready", "status": "True", "reason": "Simulated"}]
        self.api.create("/api/v1/nodes", [
            {
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{n}"},
                "status": {"allocatable": room, "capacity": room, "conditions": conditions},
            }
            for n in range(count)
        ])

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        words = (str(self.bin / "kubectl"), f"--kubeconfig={self.folder}/admin.kubeconfig", *words)
        return subprocess.run(words, input=stdin, stdout=subprocess.PIPE, text=True, check=True).stdout

    def namespace(self, name: str, **labels: str) -> None:
        """A namespace in which pods can be made."""
        self.api("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        if self.kwok is None:
            self.api("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
        until("the service account", lambda: self.api("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default"))

    def account(self, namespace: str, name: str) -> Path:
        """A kubeconfig for a service account."""
        ask = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token = self.api("POST", path, ask)["status"]["token"]
        return self.kubeconfig(name, {"token": token})

    # ------------------------------------------------------------------ keys

    def kubeconfig(self, name: str, user: Object) -> Path:
        path = self.folder / f"{name}.kubeconfig"
        cluster = {"server": f"https://127.0.0.1:{PORT}", "certificate-authority": str(self.pki / "ca.crt")}
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": name}}],
        }))
        return path

    def certificates(self) -> None:
        def openssl(*words: str) -> None:
            subprocess.run(["openssl", *words], cwd=self.pki, check=True, stderr=subprocess.DEVNULL)

        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", "/CN=bench-ca")
        openssl("genrsa", "-out", "sa.key", "2048")
        openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:10.96.0.1"
        for name, subject, more in (
            ("apiserver", "/CN=kube-apiserver", names),
            ("admin", "/O=system:masters/CN=admin", ""),
            ("kcm", "/CN=system:kube-controller-manager", ""),
            ("sched", "/CN=system:kube-scheduler", ""),
        ):
            ends = self.pki / f"{name}.ext"
            ends.write_text(f"keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n{more}\n")
            openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
            openssl(
                "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.crt", "-days", "30", "-extfile", str(ends),
            )
            user = {key: str(self.pki / f"{name}.{end}") for key, end in
                    (("client-certificate", "crt"), ("client-key", "key"))}
            self.kubeconfig(name, user)


class Audit:
    """Requests of one account, from the API server's own log: what the operator says of itself is checked against it."""

    def __init__(self, plane: Plane, account: str) -> None:
        self.path, self.user = plane.audit, f"system:serviceaccount:{account}"
        self.at = 0

    def mark(self) -> None:
        """Forgets what was until now."""
        self.at = self.path.stat().st_size

    def requests(self) -> list[Object]:
        """All since the mark; of a watch its beginning."""
        found = []
        with self.path.open("rb") as log:
            log.seek(self.at)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                event = json.loads(line)
                done = "ResponseStarted" if event["verb"] == "watch" else "ResponseComplete"
                if event["user"]["username"] == self.user and event["stage"] == done:
                    found.append(event)
        return found

    def writes(self) -> dict[str, int]:
        """Writes other than those of the lease, by verb and kind."""
        counts: dict[str, int] = {}
        for event in self.requests():
            what = event.get("objectRef", {})
            resource = what.get("resource", "?") + ("/" + what["subresource"] if "subresource" in what else "")
            if event["verb"] in ("create", "update", "patch", "delete") and resource != "leases":
                key = f"{event['verb']} {resource}"
                counts[key] = counts.get(key, 0) + 1
        return counts

    def reads(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for event in self.requests():
            if event["verb"] in ("get", "list", "watch"):
                key = f"{event['verb']} {event.get('objectRef', {}).get('resource', '?')}"
                counts[key] = counts.get(key, 0) + 1
        return counts


@contextlib.contextmanager
def workspace(keep: bool) -> Iterator[Path]:
    """A folder for the state; in it are the logs when something failed."""
    # What was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    folder = Path(tempfile.mkdtemp(prefix="daskade-plane-"))
    try:
        yield folder
    except BaseException:
        print(f"state and logs are kept in {folder}", file=sys.stderr)
        raise
    if keep:
        print(f"state and logs are kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
