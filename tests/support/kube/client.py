"""Dask clients: processes of one pod that tests share, or a pod each."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

from support.kube.api import Refused, path_of, proxy
from support.kube.namespace import Namespace
from support.kube.settings import IMAGE, LABEL, RUN, Object
from support.waiting import PATIENCE, until

CLIENT = """
import os, sys, time
from distributed import Client, Security
folder = os.environ.get("CLIENT_FOLDER", "/etc/daskade/client")
security = Security(require_encryption=True, **{f"tls_{role}_{kind}": f"{folder}/{file}"
    for role in ("client", "worker", "scheduler") for kind, file in (("cert", "tls.crt"), ("key", "tls.key"))},
    tls_ca_file=f"{folder}/ca.crt") if os.path.exists(f"{folder}/ca.crt") else None
client = Client(os.environ["DASK_SCHEDULER_ADDRESS"], security=security, timeout=float(os.environ.get("CLIENT_PATIENCE", "90")),
    set_as_default=False)

def once(seconds, x=None):
    # Leaves a mark with the scheduler at its begin and at its end: both are counted from outside.
    from distributed import get_worker
    worker = get_worker()
    worker.log_event("begun", (x, worker.name))
    time.sleep(seconds)
    worker.log_event("ended", (x, worker.name))
    return x

def hold(x=None):
    # The same, until the test lets it go.
    from distributed import Event, get_worker
    worker = get_worker()
    worker.log_event("begun", (x, worker.name))
    Event("go").wait()
    worker.log_event("ended", (x, worker.name))
    return x

def held(futures):
    # Tells the test that all of these run, and lets them go when it says so.
    from distributed import Event
    while len(marks("begun")) < len(futures): time.sleep(.1)
    say("busy")
    while not os.path.exists(f"{folder}/go"): time.sleep(.1)
    Event("go", client=client).set()
    return client.gather(futures)

def marks(topic):
    return [message for _, message in client.get_events(topic)]

def say(*words):
    print(*words, flush=True)
"""


class _Client:
    """Code with a connected Dask ``client``, and what it prints."""

    name: str

    def log(self) -> str:
        raise NotImplementedError

    def phase(self) -> str:
        """As that of a pod."""
        raise NotImplementedError

    def wait_for(self, text: str, patience: float = PATIENCE) -> None:
        """Until it has printed ``text``."""

        def there() -> bool:
            # In this order: what ends in between has printed all.
            phase, log = self.phase(), self.log()
            if text in log:
                return True
            assert phase not in ("Succeeded", "Failed"), log
            return False

        until(f"the client prints {text}", there, patience)

    def output(self, patience: float = PATIENCE) -> str:
        """Waits until it succeeds, and returns what it printed."""
        ended = until(f"the client {self.name} ends", self._ended, patience)
        text = self.log()
        assert ended == "Succeeded", text
        return text

    def failure(self, patience: float = PATIENCE) -> str:
        """Waits until it fails, and returns what it printed."""
        ended = until(f"the client {self.name} ends", self._ended, patience)
        assert ended == "Failed", self.log()
        return self.log()

    def _ended(self) -> str | None:
        phase = self.phase()
        return phase if phase in ("Succeeded", "Failed") else None


class ClientPod(_Client):
    """In a pod of the cluster's namespace, with the certificate that the operator issued mounted: where it counts from where
    somebody connects, or for how long.
    """

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

    def phase(self) -> str:
        pod = self.space.find("pod", self.name) or {}
        return str(pod.get("status", {}).get("phase"))

    def close(self) -> None:
        self.space.delete("pod", self.name, wait=False, grace=0)

    def _started(self) -> bool:
        return self.phase() in ("Running", "Succeeded", "Failed")


# Has what a client imports, and forks a client for each request, with an environment and files of its own. Functions of
# `__main__` are those that Dask sends by value.
SERVE = """
import base64, http.server, json, os, signal, sys, traceback, types
import distributed, distributed.client

running, ended = {}, {}

def become(name, asked):
    os.setsid()
    folder = f"/tmp/{name}"
    os.mkdir(folder)
    out = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    for file, text in asked["files"].items():
        with open(f"{folder}/{file}", "wb") as made:
            made.write(base64.b64decode(text))
    os.environ.update(asked["env"], CLIENT_FOLDER=folder)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    code = 1
    try:
        exec(asked["code"], main.__dict__)
        main.client.close()
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

class Clients(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.path.strip("/")
        child = os.fork()
        if not child:
            self.server.socket.close()
            become(name, asked)
        running[name] = child
        self.say({})

    def do_GET(self):
        name = self.path.strip("/")
        for each, child in list(running.items()):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                ended[each] = "Failed" if status else "Succeeded"
                del running[each]
        log = ""
        if os.path.exists(f"/tmp/{name}/log"):
            with open(f"/tmp/{name}/log", errors="replace") as file:
                log = file.read()
        phase = ended.get(name) or ("Running" if name in running else "Unknown")
        self.say({"phase": phase, "log": log} if name else {"ready": True})

    def do_PUT(self):
        # A word for the client: a file in its folder.
        open(f"/tmp{self.path}", "w").close()
        self.say({})

    def do_DELETE(self):
        child = running.get(self.path.strip("/"))
        if child:
            os.killpg(child, signal.SIGKILL)
        self.say({})

    def say(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.HTTPServer(("", 8000), Clients).serve_forever()
"""


@functools.cache
def _clients() -> str:
    """Path of the pod that clients are processes of, by way of the API server."""
    space = Namespace(f"clients-{RUN}", labels={LABEL: "none"})
    container: Object = {
        "name": "clients",
        "image": IMAGE,
        "command": ["python3", "-c", SERVE],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    account = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0, "securityContext": account}
    space.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "clients"}, "spec": spec})
    path = f"{path_of(space.name, 'pods')}/clients:8000/proxy"

    def serves() -> bool:
        try:
            return "ready" in proxy().ask("GET", f"{path}/")
        except Refused:
            return False

    until("clients can be started", serves)
    return path


def close_clients() -> None:
    """Takes the pod away, at the end."""
    if _clients.cache_info().currsize:
        proxy().delete(f"/api/v1/namespaces/clients-{RUN}")


class Client(_Client):
    """A process of the shared pod, which has all that a client imports when it begins. It connects from another namespace."""

    def __init__(
        self, space: Namespace, cluster: str, code: str, tls: bool = True, secret: str = "", patience: float = 90
    ) -> None:
        """``patience``: how long it tries to connect."""
        self.name = f"client-{os.urandom(3).hex()}"
        self._path = f"{_clients()}/{self.name}"
        scheme = "tls" if tls else "tcp"
        address = f"{scheme}://{cluster}-scheduler.{space.name}:8786"
        env = {"DASK_SCHEDULER_ADDRESS": address, "CLIENT_PATIENCE": str(patience)}
        files: Object = {}
        if tls:
            name = secret or f"{cluster}-client-tls"
            found = until(f"the Secret {name}", lambda: space.find("secret", name))
            files = found["data"]
        proxy().ask("POST", self._path, {"env": env, "files": files, "code": CLIENT + code})
        space.looks.append(lambda: f"client {self.name}: {self.phase()}\n{self.log()}")

    def log(self) -> str:
        return str(self._told()["log"])

    def phase(self) -> str:
        return str(self._told()["phase"])

    def release(self) -> None:
        """Lets tasks go that `held` holds."""
        proxy().ask("PUT", f"{self._path}/go")

    def close(self) -> None:
        proxy().ask("DELETE", self._path)

    def _told(self) -> Object:
        return dict(json.loads(proxy().ask("GET", self._path)))


def ask(space: Namespace, cluster: str, code: str, **options: Any) -> str:
    """Runs code with a connected client; what it printed."""
    return Client(space, cluster, code, **options).output().strip()


def ask_in_pod(space: Namespace, cluster: str, code: str, **options: Any) -> str:
    """The same in a pod of the cluster's namespace."""
    pod = ClientPod(space, cluster, code, **options)
    text = pod.output()
    pod.close()
    return text.strip()
