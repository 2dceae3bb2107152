"""Known failures, for daskade and for dask-kubernetes, side by side on a real cluster.

    tests/kube/up; tests/kube/image worker localhost/daskade-worker:test; cargo build --profile dist --features otlp
    KUBECONFIG=… PYTHONPATH=tests python3 bench/operator/compare.py [SCENARIO…]

Both run as processes of this machine and use the same worker image; each has a namespace of its own, under the strictest
Pod Security level. What happened is seen from outside: lists of pods and objects, and a count of executions that the steps
themselves write into an event log of their scheduler. Prints one Markdown table. dask-kubernetes' definitions are removed
at the end if this run brought them. It reaches its schedulers by name: its process gets the cluster's DNS (DASKADE_DNS,
by default that of ``tests/kube``) in a mount namespace of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scale import DASK_KUBERNETES, environment
from support import TOP
from support.kube.api import kubectl
from support.kube.client import ClientPod
from support.kube.namespace import Namespace
from support.kube.operator import Operator, install, uninstall
from support.kube.settings import IMAGE, OTHER_IMAGE, RUN, SMALL, Object
from support.waiting import until

DNS = os.environ.get("DASKADE_DNS", "10.244.0.1")
BUSY = """
def work(n, seconds):
    from distributed import get_worker
    get_worker().log_event("ran", n)
    time.sleep(seconds)
    return n

def ran():
    return len(client.get_events("ran") or ())

client.wait_for_workers(WORKERS, timeout=120)
chosen = [w["name"] for w in client.scheduler_info(n_workers=-1)["workers"].values() if PICK in str(w["name"])]
futures = [client.submit(work, n, SECONDS, workers=[name], allow_other_workers=True, pure=False)
           for n, name in enumerate(chosen)]
while ran() < len(chosen):
    time.sleep(0.2)
print("running", flush=True)
client.gather(futures)
print("executions", ran(), "of", len(chosen), flush=True)
"""
USE = """
for attempt in range(60):
    try:
        print("answer", client.submit(sum, [40, 2], pure=False).result(timeout=150), flush=True)
        break
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        time.sleep(2)
"""


class Side:
    """What differs between the two."""

    name: str
    tls: bool
    #: Kind of the operator's own child that a worker, or the scheduler, is.
    child: str

    def __init__(self, space: Namespace) -> None:
        self.space = space

    def create(self, cluster: str, workers: int, special: int = 0, idle: int = 0, image: str = IMAGE) -> None:
        raise NotImplementedError

    def edit_image(self, cluster: str) -> None:
        raise NotImplementedError

    def scale(self, cluster: str, workers: int) -> None:
        raise NotImplementedError

    def exists(self, cluster: str) -> bool:
        raise NotImplementedError

    def says(self, cluster: str) -> str:
        raise NotImplementedError

    def delete(self, cluster: str) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------------ what is there

    def pods(self, cluster: str, component: str = "worker", group: str = "") -> dict[str, Object]:
        """Pods that are ready and not about to go, by uid."""
        found = self.space.list("pods", f"dask.org/cluster-name={cluster},dask.org/component={component}")
        return {
            pod["metadata"]["uid"]: pod
            for pod in found
            if "deletionTimestamp" not in pod["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
            and group in pod["metadata"]["labels"].get("dask.org/workergroup-name", "")
        }

    def wait(self, cluster: str, workers: int, patience: float = 240) -> None:
        def complete() -> bool:
            return len(self.pods(cluster)) == workers and len(self.pods(cluster, "scheduler")) == 1

        until(f"{self.name}: {workers} workers of {cluster}", complete, patience, 1)

    def uids(self, kind: str, cluster: str, component: str) -> set[str]:
        found = self.space.list(kind, f"dask.org/cluster-name={cluster},dask.org/component={component}")
        return {each["metadata"]["uid"] for each in found if "deletionTimestamp" not in each["metadata"]}


class Daskade(Side):
    name, tls, child = "daskade", True, "pod"

    def create(self, cluster: str, workers: int, special: int = 0, idle: int = 0, image: str = IMAGE) -> None:
        groups = [{"name": "default", "replicas": workers, "threads": 1, "resources": SMALL}]
        if special:
            groups.append({"name": "special", "replicas": special, "threads": 1, "resources": SMALL})
        spec: Object = {"image": image, "scheduler": {"resources": SMALL}, "workers": groups}
        if idle:
            spec["idleTimeout"] = f"{idle}s"
        self.space.apply(self.object(cluster, spec))

    @staticmethod
    def object(cluster: str, spec: Object) -> Object:
        return {
            "apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "metadata": {"name": cluster}, "spec": spec
        }

    def edit_image(self, cluster: str) -> None:
        self.space.patch("daskclusters.daskade.dev", cluster, {"spec": {"image": OTHER_IMAGE}})

    def scale(self, cluster: str, workers: int) -> None:
        found = self.space.find("daskclusters.daskade.dev", cluster) or {}
        groups = found["spec"]["workers"]
        groups[0]["replicas"] = workers
        self.space.patch("daskclusters.daskade.dev", cluster, {"spec": {"workers": groups}})

    def exists(self, cluster: str) -> bool:
        return self.space.find("daskclusters.daskade.dev", cluster) is not None

    def says(self, cluster: str) -> str:
        found = self.space.find("daskclusters.daskade.dev", cluster) or {}
        conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", [])}
        ready = conditions.get("Ready", {})
        return f"Ready={ready.get('status')} ({ready.get('reason')})"

    def delete(self, cluster: str) -> None:
        self.space.delete("daskclusters.daskade.dev", cluster, wait=False, missing_ok=True)


class DaskKubernetes(Side):
    name, tls, child = "dask-kubernetes", False, "deployment"

    def create(self, cluster: str, workers: int, special: int = 0, idle: int = 0, image: str = IMAGE) -> None:
        ports = [{"name": "tcp-comm", "containerPort": 8786}, {"name": "http-dashboard", "containerPort": 8787}]
        service = [
            {"name": port["name"], "protocol": "TCP", "port": port["containerPort"], "targetPort": port["name"]}
            for port in ports
        ]
        # As in its documentation, with what the strictest Pod Security level asks for.
        worker = pod_spec("worker", image, ["dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", "1"], [])
        scheduler = pod_spec("scheduler", image, ["dask", "scheduler"], ports)
        scheduler["containers"][0]["readinessProbe"] = {"httpGet": {"port": "http-dashboard", "path": "/health"}}
        spec: Object = {
            "worker": {"replicas": workers, "spec": worker},
            "scheduler": {
                "spec": scheduler,
                "service": {
                    "type": "ClusterIP", "ports": service,
                    "selector": {"dask.org/cluster-name": cluster, "dask.org/component": "scheduler"},
                },
            },
        }
        if idle:
            spec["idleTimeout"] = idle
        api = "kubernetes.dask.org/v1"
        self.space.apply({"apiVersion": api, "kind": "DaskCluster", "metadata": {"name": cluster}, "spec": spec})
        if special:
            until("the cluster is known", lambda: self.space.find("service", f"{cluster}-scheduler"), 60)
            group: Object = {"cluster": cluster, "worker": {"replicas": special, "spec": worker}}
            meta = {"name": f"{cluster}-special"}
            self.space.apply({"apiVersion": api, "kind": "DaskWorkerGroup", "metadata": meta, "spec": group})

    def edit_image(self, cluster: str) -> None:
        found = self.space.find("daskclusters.kubernetes.dask.org", cluster) or {}
        worker = found["spec"]["worker"]
        worker["spec"]["containers"][0]["image"] = OTHER_IMAGE
        self.space.patch("daskclusters.kubernetes.dask.org", cluster, {"spec": {"worker": worker}})

    def scale(self, cluster: str, workers: int) -> None:
        change = {"spec": {"worker": {"replicas": workers}}}
        self.space.patch("daskclusters.kubernetes.dask.org", cluster, change)

    def exists(self, cluster: str) -> bool:
        return self.space.find("daskclusters.kubernetes.dask.org", cluster) is not None

    def says(self, cluster: str) -> str:
        found = self.space.find("daskclusters.kubernetes.dask.org", cluster) or {}
        return f"phase={found.get('status', {}).get('phase')}"

    def delete(self, cluster: str) -> None:
        self.space.delete("daskclusters.kubernetes.dask.org", cluster, wait=False, missing_ok=True)


def pod_spec(name: str, image: str, args: list[str], ports: list[Object]) -> Object:
    return {
        "containers": [{
            "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "args": args, "ports": ports,
            "resources": SMALL, "env": [{"name": "HOME", "value": "/tmp"}],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
    }


# ---------------------------------------------------------------------- scenarios: what was seen


def within(seconds: float, probe: Callable[[], Any], every: float = 1.0) -> tuple[Any, float]:
    """What ``probe`` gives at last, and after how long."""
    began = time.monotonic()
    while True:
        found = probe()
        took = time.monotonic() - began
        if found or took > seconds:
            return found, took
        time.sleep(every)


def answers(side: Side, cluster: str, patience: float) -> tuple[bool, float]:
    """Whether a client gets an answer, and after how long; it tries again and again."""
    began, end = time.monotonic(), time.monotonic() + patience
    while True:
        pod = ClientPod(side.space, cluster, USE, side.tls)
        try:
            pod.wait_for("answer 42", max(1.0, end - time.monotonic()))
            return True, time.monotonic() - began
        except AssertionError:
            if time.monotonic() > end:
                return False, time.monotonic() - began
        finally:
            pod.close()


def comes_back(side: Side, cluster: str, kind: str, component: str, patience: float = 90) -> str:
    side.create(cluster, 1)
    side.wait(cluster, 1)
    before = side.uids(kind, cluster, component)
    name = next(
        each["metadata"]["name"]
        for each in side.space.list(kind, f"dask.org/cluster-name={cluster},dask.org/component={component}")
    )
    side.space.delete(kind, name, patience=60)
    found, took = within(patience, lambda: side.uids(kind, cluster, component) - before)
    return f"back after {took:.0f} s" if found else f"**gone for good** ({patience:.0f} s)"


def service_deleted(side: Side, cluster: str) -> str:
    return comes_back(side, cluster, "service", "scheduler")


def worker_deleted(side: Side, cluster: str) -> str:
    return f"{side.child}: {comes_back(side, cluster, side.child, 'worker')}"


def scheduler_child_deleted(side: Side, cluster: str) -> str:
    return f"{side.child}: {comes_back(side, cluster, side.child, 'scheduler')}"


def image_edited(side: Side, cluster: str) -> str:
    side.create(cluster, 1)
    side.wait(cluster, 1)
    side.edit_image(cluster)

    def is_new() -> bool:
        pods = side.pods(cluster).values()
        return bool(pods) and all(each["spec"]["containers"][0]["image"] == OTHER_IMAGE for each in pods)

    found, took = within(150, is_new)
    return f"workers have it after {took:.0f} s" if found else "**workers keep the old one** (150 s)"


def scheduler_lost(side: Side, cluster: str) -> str:
    side.create(cluster, 1)
    side.wait(cluster, 1)
    before = set(side.pods(cluster, "scheduler"))
    [gone] = side.pods(cluster, "scheduler").values()
    began = time.monotonic()
    side.space.delete("pod", gone["metadata"]["name"], grace=0)
    until("another scheduler", lambda: set(side.pods(cluster, "scheduler")) - before, 120, 1)
    found, _ = answers(side, cluster, 240)
    took = time.monotonic() - began
    return f"answers again after {took:.0f} s" if found else "**not usable** (240 s)"


def busy_worker(side: Side, cluster: str) -> str:
    side.create(cluster, 2)
    side.wait(cluster, 2)
    code = BUSY.replace("WORKERS", "2").replace("PICK", "''").replace("SECONDS", "30")
    pod = ClientPod(side.space, cluster, code, side.tls)
    pod.wait_for("running")
    side.scale(cluster, 1)
    text = pod.output(240)
    [line] = [line for line in text.splitlines() if line.startswith("executions")]
    _, count, _, steps = line.split()
    found, took = within(60, lambda: len(side.pods(cluster)) == 1)
    shrunk = "one worker is left" if found else f"**{len(side.pods(cluster))} workers are left**"
    times = f"{count} executions of {steps} steps" if count == steps else f"**{count} executions of {steps} steps**"
    return f"{times}; {shrunk}"


def other_group(side: Side, cluster: str) -> str:
    side.create(cluster, 2, special=1)
    side.wait(cluster, 3)
    special = set(side.pods(cluster, group="special"))
    code = BUSY.replace("WORKERS", "3").replace("PICK", "'-default-'").replace("SECONDS", "30")
    pod = ClientPod(side.space, cluster, code, side.tls)
    pod.wait_for("running")
    side.scale(cluster, 1)
    pod.output(240)
    within(60, lambda: len(side.pods(cluster)) == 2)
    kept = set(side.pods(cluster, group="special")) == special
    left = len(side.pods(cluster, group="default"))
    fate = "its worker stays" if kept else "**its worker was taken**"
    return f"{fate}; {left} of 2 are left in the group that was to shrink to 1"


def idle(side: Side, cluster: str) -> str:
    side.create(cluster, 1, idle=15)
    side.wait(cluster, 1)
    found, took = within(150, lambda: not side.pods(cluster))
    if not found:
        return "**nothing happens** (150 s)"
    if not side.exists(cluster):
        return f"**the object is deleted** after {took:.0f} s"
    time.sleep(5)
    if not side.exists(cluster):
        return f"**the object is deleted** after {took:.0f} s"
    wakes, again = answers(side, cluster, 180)
    wake = f"a task wakes it, answer after {again:.0f} s" if wakes else "**it does not wake**"
    return f"workers to zero after {took:.0f} s, the object stays; {wake}"


def no_image(side: Side, cluster: str) -> str:
    side.create(cluster, 1, image="localhost/no-such-image:1")
    time.sleep(60)
    ready = len(side.pods(cluster)) + len(side.pods(cluster, "scheduler"))
    return f"{ready} pods ready; the object says {side.says(cluster)}"


SCENARIOS: dict[str, tuple[str, Callable[[Side, str], str]]] = {
    "service": ("the scheduler's Service is deleted", service_deleted),
    "worker": ("a worker is deleted (the operator's own child)", worker_deleted),
    "scheduler": ("the scheduler is deleted (the operator's own child)", scheduler_child_deleted),
    "image": ("the image is edited", image_edited),
    "lost": ("the scheduler's pod is killed: is the cluster usable again without a person?", scheduler_lost),
    "busy": ("scale-down from 2 to 1 while both workers run a step of 30 s", busy_worker),
    "group": ("scale-down of a busy group beside another group that is idle", other_group),
    "idle": ("idle timeout", idle),
    "truth": ("an image that cannot be pulled: after 60 s", no_image),
}


# ---------------------------------------------------------------------- the operators


class Controller:
    """dask-kubernetes' controller, for one namespace, with the cluster's DNS."""

    def __init__(self, folder: Path, namespace: str) -> None:
        python = environment()
        [charts] = python.glob("lib/*/site-packages/dask_kubernetes/operator/deployment/helm/*/crds")
        self.charts = charts
        self.brought = not kubectl("get", "crd", "daskclusters.kubernetes.dask.org", "--ignore-not-found").strip()
        kubectl("apply", "--server-side", "-f", str(charts))
        kubectl("wait", "--for=condition=Established", "crd/daskclusters.kubernetes.dask.org", "--timeout=60s")
        resolv = folder / "resolv.conf"
        resolv.write_text(f"nameserver {DNS}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n")
        self.log = folder / "dask-kubernetes.log"
        run = f"{python}/bin/kopf run -m dask_kubernetes.operator.controller --namespace {namespace}"
        words = ["unshare", "--mount", "sh", "-c", f"mount --bind {resolv} /etc/resolv.conf && exec {run}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.brought:
            kubectl("delete", "-f", str(self.charts), "--wait=false", check=False)


def see(side: Side, scenario: str, run: Callable[[Side, str], str]) -> str:
    cluster = f"c-{scenario}"
    try:
        return run(side, cluster)
    except (AssertionError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        return f"could not be measured: {str(error).splitlines()[-1][:150]}"
    finally:
        side.delete(cluster)


def clean_up(spaces: list[Namespace], operator: Operator | None, controller: Controller | None, folder: Path) -> None:
    """Ends both sides and takes away what they made; dask-kubernetes has the last namespace."""
    for space in spaces:
        kubectl("delete", "namespace", space.name, "--wait=false", check=False)
    if operator is not None:
        operator.stop()
    uninstall()
    if controller is not None:
        # Its objects have finalizers that only it takes away.
        within(60, lambda: not kubectl("get", "ns", spaces[-1].name, "--ignore-not-found").strip())
        controller.stop()
    print(f"logs are in {folder}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--binary", type=Path, default=TOP / "target/dist/daskade")
    parser.add_argument("--side", choices=["daskade", "dask-kubernetes"], help="only this one")
    options = parser.parse_args()
    chosen = options.scenarios or list(SCENARIOS)
    if unknown := set(chosen) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    rows: dict[str, dict[str, str]] = {scenario: {} for scenario in chosen}
    folder = Path(tempfile.mkdtemp(prefix="daskade-compare-"))
    operator: Operator | None = None
    controller: Controller | None = None
    spaces: list[Namespace] = []
    try:
        sides: list[Side] = []
        if options.side != "dask-kubernetes":
            operator = Operator(options.binary, folder, install(folder))
            spaces.append(Namespace(f"compare-{RUN}-a"))
            sides.append(Daskade(spaces[-1]))
        if options.side != "daskade":
            spaces.append(Namespace(f"compare-{RUN}-b"))
            controller = Controller(folder, spaces[-1].name)
            sides.append(DaskKubernetes(spaces[-1]))
        for scenario in chosen:
            title, run = SCENARIOS[scenario]
            for side in sides:
                rows[scenario][side.name] = see(side, scenario, run)
                print(f"{scenario}, {side.name}: {rows[scenario][side.name]}", file=sys.stderr, flush=True)
    finally:
        clean_up(spaces, operator, controller, folder)
    print(f"| | daskade | dask-kubernetes {DASK_KUBERNETES} |\n|---|---|---|")
    for scenario, cells in rows.items():
        print(f"| {SCENARIOS[scenario][0]} | {cells.get('daskade', '')} | {cells.get('dask-kubernetes', '')} |")
    return int(any(cell.startswith("could not") for cells in rows.values() for cell in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
