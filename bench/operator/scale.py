"""What the operator costs at scale, beside dask-kubernetes on the same API server in the same run.

    cargo build --profile dist --features otlp
    export PYTHONPATH=tests
    python3 bench/operator/scale.py                 # 1 000 clusters, beside 100 of dask-kubernetes
    python3 bench/operator/scale.py unrelated       # 5 000 foreign pods and 20 000 foreign Secrets: exit code 1 above 2 MB

Brings up a control plane of its own on loopback (``plane.py``), in which kwok plays nodes and pods and one process plays all
schedulers (``simulated.py``). Prints Markdown. Needs Go and root, or user namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plane import SYSTEM, Audit, Object, Plane, Usage, build_kwok, cache, enter_namespace, kubernetes, usage, workspace
from support import TOP
from support.waiting import until

DASK_KUBERNETES = "2026.3.0"
ACCOUNT = "daskade-operator"
THEIRS = "dask-operator"
LISTEN = "127.0.0.1:8081"
CLUSTERS = "/apis/daskade.dev/v1alpha1/namespaces/{}/daskclusters"
THEIR_CLUSTERS = "/apis/kubernetes.dask.org/v1/namespaces/{}/daskclusters"
IMAGE = "localhost/daskade-worker:bench"


# ---------------------------------------------------------------------- the operators


def environment() -> Path:
    """Python with dask-kubernetes and what comes with it, made once."""
    folder = cache() / f"venv-dask-kubernetes-{DASK_KUBERNETES}"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        words = [str(folder / "bin/pip"), "install", "--quiet", f"dask-kubernetes=={DASK_KUBERNETES}"]
        subprocess.run(words, check=True)
        (folder / "ready").touch()
    return folder


class Daskade:
    """``daskade operator`` with the rights of its manifest."""

    name = "daskade"

    def __init__(self, plane: Plane, binary: Path) -> None:
        self.plane, self.binary = plane, binary
        plane.kubectl("apply", "--server-side", "-f", str(TOP / "crds"))
        plane.kubectl("wait", "--for=condition=Established", "crd/daskclusters.daskade.dev", "--timeout=60s")
        text = (TOP / "deploy/operator.yaml").read_text()
        parts = [part for part in text.split("\n---\n") if "kind: Deployment" not in part]
        plane.kubectl("apply", "-f", "-", stdin="\n---\n".join(parts))
        self.config = plane.account(SYSTEM, ACCOUNT)
        self.audit = Audit(plane, f"{SYSTEM}:{ACCOUNT}")

    def start(self) -> None:
        words = [str(self.binary), "operator", "--own-namespace", SYSTEM, "--image", IMAGE, "--listen", LISTEN]
        self.plane.run(self.name, words, KUBECONFIG=str(self.config))
        until("the operator leads", lambda: self.metric("daskade_leader") == 1, every=0.1)

    def stop(self) -> float:
        return self.plane.end(self.name)

    def usage(self) -> Usage:
        return usage(self.plane.processes[self.name].pid)

    def metric(self, name: str, without: str = "lease") -> float:
        """The sum of a metric over all its labels."""
        try:
            with urllib.request.urlopen(f"http://{LISTEN}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return -1
        found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{")) and without not in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def writes(self) -> int:
        return int(self.metric("daskade_api_writes_total"))


class DaskKubernetes:
    """dask-kubernetes' controller, with its own definitions and all rights."""

    name = "dask-kubernetes"

    def __init__(self, plane: Plane, python: Path) -> None:
        self.plane, self.python = plane, python
        [charts] = python.glob("lib/*/site-packages/dask_kubernetes/operator/deployment/helm/*/crds")
        plane.kubectl("apply", "--server-side", "-f", str(charts))
        plane.kubectl("wait", "--for=condition=Established", "crd/daskclusters.kubernetes.dask.org", "--timeout=60s")
        plane.namespace(THEIRS)
        plane.kubectl("-n", THEIRS, "create", "serviceaccount", THEIRS)
        account = f"--serviceaccount={THEIRS}:{THEIRS}"
        plane.kubectl("create", "clusterrolebinding", THEIRS, "--clusterrole=cluster-admin", account)
        self.config = plane.account(THEIRS, THEIRS)
        self.audit = Audit(plane, f"{THEIRS}:{THEIRS}")

    def start(self) -> None:
        # As in its own image.
        words = [str(self.python / "bin/kopf"), "run", "-m", "dask_kubernetes.operator.controller", "--all-namespaces"]
        self.plane.run(self.name, words, KUBECONFIG=str(self.config))

    def stop(self) -> float:
        return self.plane.end(self.name)

    def usage(self) -> Usage:
        return usage(self.plane.processes[self.name].pid)


class Schedulers:
    """The process that plays all schedulers."""

    def __init__(self, plane: Plane, python: Path, *options: str) -> None:
        words = [str(python / "bin/python"), str(Path(__file__).with_name("simulated.py"))]
        words += [str(plane.folder / "admin.kubeconfig"), *options]
        self.log = (plane.log / "simulated.log").open("ab")
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1
        )
        plane.processes["schedulers"] = self.process  # type: ignore[assignment]
        self.ask("reset")

    def ask(self, command: str = "stats") -> dict[str, int]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


# ---------------------------------------------------------------------- measurements


@dataclass
class Figures:
    """What was measured of one operator."""

    name: str
    count: int
    seconds: float = 0.0
    #: Of one cluster from its creation to ready.
    median: float = 0.0
    writes: dict[str, int] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    own_writes: int | None = None
    cpu: float = 0.0
    rss: float = 0.0
    peak: float = 0.0
    #: Cores of each process, over the seconds in which that was watched.
    others: dict[str, float] = field(default_factory=dict)
    watched: float = 0.0
    idle_cpu: float = 0.0
    idle_writes: dict[str, int] = field(default_factory=dict)
    idle_reads: dict[str, int] = field(default_factory=dict)
    start_seconds: float | None = None
    start_cpu: float = 0.0
    start_peak: float = 0.0
    start_writes: dict[str, int] = field(default_factory=dict)
    start_reads: dict[str, int] = field(default_factory=dict)
    load: float = 0.0

    @property
    def rate(self) -> float:
        return self.count / self.seconds


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def busy(before: dict[str, Usage], after: dict[str, Usage], seconds: float) -> dict[str, float]:
    """Cores that each process used."""
    return {name: (after[name].cpu - before[name].cpu) / seconds for name in after if name in before}


class Ready:
    """When each cluster was ready, as the API server shows it to anybody who watches."""

    def __init__(self, is_ready: Callable[[Object], bool]) -> None:
        self.is_ready = is_ready
        self.at: dict[str, float] = {}

    def __call__(self, kind: str, cluster: Object) -> None:
        name = cluster["metadata"]["name"]
        if kind != "DELETED" and name not in self.at and self.is_ready(cluster):
            self.at[name] = time.monotonic()


def condition_is_true(cluster: Object) -> bool:
    conditions = cluster.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def pods_ready(plane: Plane, namespace: str, workers: int) -> Callable[[str, Object], None]:
    """Follows the pods: the moment at which a cluster's scheduler and all of its workers are ready."""
    state: dict[str, set[str]] = {}
    at: dict[str, float] = {}

    def see(kind: str, pod: Object) -> None:
        labels = pod["metadata"].get("labels", {})
        cluster = labels.get("dask.org/cluster-name")
        conditions = pod.get("status", {}).get("conditions", [])
        if cluster and kind != "DELETED" and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
            ready = state.setdefault(cluster, set())
            ready.add(pod["metadata"]["name"])
            if len(ready) == workers + 1:
                at.setdefault(cluster, time.monotonic())

    see.at = at  # type: ignore[attr-defined]
    return see


def measure(
    plane: Plane, operator: Any, count: int, options: argparse.Namespace, make: Callable[[int], Object], path: str,
    is_ready: Callable[[Object], bool], settled: Callable[[], bool],
) -> Figures:
    """From nothing to ``count`` clusters, then at rest, then a restart."""
    figures = Figures(operator.name, count)
    namespace = f"bench-{operator.name}"
    plane.namespace(namespace)
    path = path.format(namespace)
    operator.start()
    time.sleep(5)
    stop = threading.Event()
    seen, pods = Ready(is_ready), pods_ready(plane, namespace, options.workers)
    plane.api.watch(path, seen, stop)
    plane.api.watch(f"/api/v1/namespaces/{namespace}/pods", pods, stop)
    operator.audit.mark()
    own = operator.writes() if hasattr(operator, "writes") else 0
    before, began = plane.usages(), time.monotonic()
    say(f"{operator.name}: {count} clusters are applied")
    objects = [make(n) for n in range(count)]
    created: dict[str, float] = {}

    def post(some: list[Object]) -> None:
        for made in some:
            created[made["metadata"]["name"]] = time.monotonic()
            plane.api("POST", path, made)

    threads = [threading.Thread(target=post, args=(objects[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    told = time.monotonic()
    ready_pods: dict[str, float] = pods.at  # type: ignore[attr-defined]
    while len(seen.at) < count or len(ready_pods) < count:
        time.sleep(0.05)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            plane.check()
            say(f"  ready: {len(seen.at)} by status, {len(ready_pods)} by their pods; load {os.getloadavg()[0]:.1f}")
        if time.monotonic() - began > options.patience:
            raise SystemExit(f"{operator.name}: only {len(seen.at)} of {count} were ready")
    ends = {name: max(at, ready_pods[name]) for name, at in seen.at.items()}
    figures.seconds = max(ends.values()) - began
    figures.median = statistics.median(ends[name] - at for name, at in created.items())
    after = plane.usages()
    figures.load = os.getloadavg()[0]
    figures.watched = time.monotonic() - began
    figures.others = busy(before, after, figures.watched)
    figures.cpu = after[operator.name].cpu - before[operator.name].cpu
    say(f"  ready after {figures.seconds:.1f} s: {figures.rate:.1f} per second")
    until("it has come to rest", settled, 300, 0.5)
    time.sleep(options.settle)
    figures.writes, figures.reads = operator.audit.writes(), operator.audit.reads()
    figures.own_writes = operator.writes() - own if hasattr(operator, "writes") else None
    figures.rss, figures.peak = operator.usage().rss, operator.usage().peak

    say(f"  at rest for {options.idle} s")
    operator.audit.mark()
    before, began = plane.usages(), time.monotonic()
    time.sleep(options.idle)
    figures.idle_cpu = busy(before, plane.usages(), time.monotonic() - began)[operator.name]
    figures.idle_writes, figures.idle_reads = operator.audit.writes(), operator.audit.reads()
    stop.set()
    return figures


def restart(plane: Plane, operator: Any, figures: Figures, seen_all: Callable[[], bool] | None) -> None:
    """The process anew, with everything there already."""
    say(f"{operator.name}: restart")
    operator.stop()
    operator.audit.mark()
    began = time.monotonic()
    operator.start()
    if seen_all is not None:
        until("all were looked at", seen_all, 300, 0.05)
        figures.start_seconds = time.monotonic() - began
    else:
        # It tells nobody: until it has used next to nothing for some seconds.
        last, calm = -1.0, 0
        while calm < 5:
            time.sleep(1)
            used = operator.usage().cpu
            calm = calm + 1 if used - last < 0.1 else 0
            last = used
        figures.start_seconds = time.monotonic() - began - calm
    figures.start_cpu = operator.usage().cpu
    time.sleep(5)
    figures.start_peak = operator.usage().peak
    figures.start_writes, figures.start_reads = operator.audit.writes(), operator.audit.reads()


def our_cluster(options: argparse.Namespace) -> Callable[[int], Object]:
    spec: Object = {"workers": [{"name": "cpu", "replicas": options.workers}]}
    if options.tls == "Disabled":
        spec["tls"] = {"mode": "Disabled"}

    def make(n: int) -> Object:
        meta = {"name": f"c{n:04d}"}
        return {"apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "metadata": meta, "spec": spec}

    return make


def their_cluster(options: argparse.Namespace) -> Callable[[int], Object]:
    """The example of its documentation."""

    def container(name: str, args: list[str], ports: list[Object]) -> Object:
        return {"name": name, "image": IMAGE, "args": args, "ports": ports}

    def make(n: int) -> Object:
        name = f"c{n:04d}"
        ports = [{"name": "tcp-comm", "containerPort": 8786}, {"name": "http-dashboard", "containerPort": 8787}]
        service = [{"name": p["name"], "protocol": "TCP", "port": p["containerPort"], "targetPort": p["name"]} for p in ports]
        selector = {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}
        worker_args = ["dask-worker", "--name", "$(DASK_WORKER_NAME)", "--dashboard"]
        worker = container("worker", worker_args, [{"name": "http-dashboard", "containerPort": 8788}])
        return {
            "apiVersion": "kubernetes.dask.org/v1", "kind": "DaskCluster", "metadata": {"name": name},
            "spec": {
                "worker": {"replicas": options.workers, "spec": {"containers": [worker]}},
                "scheduler": {
                    "spec": {"containers": [container("scheduler", ["dask-scheduler"], ports)]},
                    "service": {"type": "ClusterIP", "selector": selector, "ports": service},
                },
            },
        }

    return make


def clear(plane: Plane, namespace: str, path: str) -> None:
    """Deletes all clusters, and waits until Kubernetes has collected what was theirs."""
    say(f"clearing {namespace}")
    plane.api("DELETE", path.format(namespace), {"kind": "DeleteOptions", "propagationPolicy": "Background"})
    for kind in ("/api/v1/namespaces/{}/pods", path):
        until("nothing is left", is_empty(plane, kind.format(namespace)), 600, 1)


def is_empty(plane: Plane, path: str) -> Callable[[], bool]:
    return lambda: not any(True for _ in plane.api.all(path))


def scale(options: argparse.Namespace) -> int:
    python, kube, kwok = environment(), kubernetes(), build_kwok()
    if os.environ.get("DASKADE_BENCH_INSIDE") != "1":
        enter_namespace()
    enter_namespace()
    results = []
    with workspace(options.keep) as folder, Plane(folder, kube, kwok) as plane:
        if options.theirs:
            theirs = DaskKubernetes(plane, python)
            found = measure(
                plane, theirs, options.theirs, options, their_cluster(options), THEIR_CLUSTERS,
                lambda cluster: cluster.get("status", {}).get("phase") == "Running", lambda: True,
            )
            restart(plane, theirs, found, None)
            results.append(found)
            clear(plane, "bench-dask-kubernetes", THEIR_CLUSTERS)
            theirs.stop()
        ours = Daskade(plane, options.binary)
        schedulers = Schedulers(plane, python)

        def answered() -> bool:
            return bool(schedulers.ask()["polled"] >= options.clusters)

        found = measure(
            plane, ours, options.clusters, options, our_cluster(options), CLUSTERS, condition_is_true, answered
        )
        schedulers.ask("reset")
        restart(plane, ours, found, answered)
        results.append(found)
        report(results, options)
        if options.json:
            options.json.write_text(json.dumps([vars(result) for result in results], indent=1))
        if options.profile:
            profile_clusters(plane, options)
        ours.stop()
    wrong = missed(results)
    for aim in wrong:
        print(f"MISSED {aim}")
    return int(bool(wrong))


def profile_clusters(plane: Plane, options: argparse.Namespace) -> None:
    """Where the operator's time goes while clusters come."""
    namespace = "bench-profile"
    plane.namespace(namespace)
    make, path = our_cluster(options), CLUSTERS.format(namespace)

    def work() -> None:
        plane.api.create(path, [make(n) for n in range(300)])
        end = time.monotonic() + 300
        while time.monotonic() < end and not all(condition_is_true(found) for found in plane.api.all(path)):
            time.sleep(1)

    profile(plane, work)


def profile(plane: Plane, work: Callable[[], None]) -> None:
    """Where the time goes meanwhile: the operator's by perf, and the API server's as it tells it itself."""
    data = plane.folder / "perf.data"
    words = ["perf", "record", "-q", "-F", "499", "-g", "-o", str(data), "-p", str(plane.processes["daskade"].pid)]
    try:
        recorder = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        say("no profile: perf is not installed")
        return
    server = threading.Thread(target=profile_server, args=(plane,))
    server.start()
    work()
    recorder.send_signal(2)
    recorder.wait(60)
    for kind in (["--no-children", "-g", "none", "--percent-limit", "0.8"], ["--children", "-g", "none", "--percent-limit", "3"]):
        shown = subprocess.run(["perf", "report", "-i", str(data), "--stdio", *kind], capture_output=True, text=True)
        lines = [line.rstrip() for line in shown.stdout.splitlines() if line.strip() and not line.startswith("#")]
        print("\n".join(lines[:60]), file=sys.stderr)
    server.join()


def profile_server(plane: Plane) -> None:
    """Of 15 seconds: what its functions cost with all that they call."""
    data = plane.folder / "kube-apiserver.prof"
    link = plane.api.connection()
    link.request("GET", "/debug/pprof/profile?seconds=15")
    data.write_bytes(link.getresponse().read())
    words = ["go", "tool", "pprof", "-top", "-cum", "-nodecount=150", str(plane.bin / "kube-apiserver"), str(data)]
    print(subprocess.run(words, capture_output=True, text=True).stdout, file=sys.stderr)


def amount(counts: dict[str, int], count: int) -> str:
    return f"{sum(counts.values()) / count:.1f}"


def report(results: list[Figures], options: argparse.Namespace) -> None:
    """One Markdown table, and what the writes were."""
    names = [found.name for found in results]
    rows: list[tuple[str, list[str]]] = [
        ("clusters", [f"{found.count:,}" for found in results]),
        ("all ready after, s", [f"{found.seconds:.1f}" for found in results]),
        ("clusters per second", [f"{found.rate:.1f}" for found in results]),
        ("one cluster, median, s", [f"{found.median:.1f}" for found in results]),
        ("API writes per cluster (audit log)", [amount(found.writes, found.count) for found in results]),
        ("API writes per cluster (own metric)",
         [f"{found.own_writes / found.count:.1f}" if found.own_writes else "-" for found in results]),
        ("API reads per cluster (audit log)", [amount(found.reads, found.count) for found in results]),
        ("CPU per cluster, ms", [f"{found.cpu / found.count * 1000:.1f}" for found in results]),
        ("CPU of all processes per cluster, ms",
         [f"{sum(found.others.values()) * found.watched / found.count * 1000:.0f}" for found in results]),
        ("memory at rest, MiB", [f"{found.rss:.1f}" for found in results]),
        ("memory at most, MiB", [f"{max(found.peak, found.start_peak):.1f}" for found in results]),
        ("at rest: % of a core", [f"{found.idle_cpu * 100:.2f}" for found in results]),
        ("at rest: writes", [str(sum(found.idle_writes.values())) for found in results]),
        ("at rest: reads per second", [f"{sum(found.idle_reads.values()) / options.idle:.1f}" for found in results]),
        ("restart: all looked at after, s", [f"{found.start_seconds:.1f}" for found in results]),
        ("restart: CPU, s", [f"{found.start_cpu:.2f}" for found in results]),
        ("restart: memory at most, MiB", [f"{found.start_peak:.1f}" for found in results]),
        ("restart: writes", [str(sum(found.start_writes.values())) for found in results]),
        ("load of the machine at the end", [f"{found.load:.1f}" for found in results]),
    ]
    print(f"\nTLS {options.tls}, {options.workers} worker(s) per cluster, {os.cpu_count()} cores\n")
    print("| |", " | ".join(names), "|\n|---|" + "--:|" * len(names))
    for title, cells in rows:
        print(f"| {title} |", " | ".join(cells), "|")
    if len(results) == 2:
        print(f"\nClusters per second, daskade to dask-kubernetes: {results[1].rate / results[0].rate:.1f}")
    for found in results:
        print(f"\n{found.name}: writes {short(found.writes)}; reads {short(found.reads)}")
        print(f"at rest: writes {short(found.idle_writes)}; reads {short(found.idle_reads)}")
        print(f"restart: writes {short(found.start_writes)}; reads {short(found.start_reads)}")
        cores = ", ".join(f"{name} {value:.2f}" for name, value in sorted(found.others.items(), key=lambda kv: -kv[1]))
        print(f"cores while clusters came: {cores}")


def missed(results: list[Figures]) -> list[str]:
    """Aims that were missed. That of the rate is not among them: it is the machine's as much as the operator's."""
    ours = results[-1]
    writes, idle, again = (sum(counts.values()) for counts in (ours.writes, ours.idle_writes, ours.start_writes))
    aims = {
        f"memory: {max(ours.peak, ours.start_peak):.1f} MiB, at most 96": max(ours.peak, ours.start_peak) <= 96,
        f"at rest: {ours.idle_cpu * 100:.2f} % of a core, at most 1": ours.idle_cpu <= 0.01,
        f"at rest: {idle} writes, none": idle == 0,
        f"restart: {again} writes, none": again == 0,
        f"writes: {writes} by the audit log, {ours.own_writes} by the metric": writes == ours.own_writes,
    }
    return [aim for aim, reached in aims.items() if not reached]


def short(counts: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(counts.items(), key=lambda kv: -kv[1])) or "none"


# ---------------------------------------------------------------------- objects of others


def unrelated(options: argparse.Namespace) -> int:
    """Whether objects that are none of its business cost memory, and whether it asks for any."""
    kube = kubernetes()
    enter_namespace()
    with workspace(options.keep) as folder, Plane(folder, kube, None) as plane:
        operator = Daskade(plane, options.binary)
        plane.namespace("served")
        make = our_cluster(options)
        plane.api.create(CLUSTERS.format("served"), [make(n) for n in range(5)])
        before = memory(operator, options.starts)
        say(f"alone: {before:.2f} MiB")
        for namespace in ("foreign-a", "foreign-b"):
            plane.namespace(namespace)
            pods = [foreign_pod(n) for n in range(options.pods // 2)]
            plane.api.create(f"/api/v1/namespaces/{namespace}/pods", pods)
            secrets = [
                {"metadata": {"name": f"s{n}"}, "stringData": {"key": "x" * 1024}} for n in range(options.secrets // 2)
            ]
            plane.api.create(f"/api/v1/namespaces/{namespace}/secrets", secrets)
        operator.audit.mark()
        after = memory(operator, options.starts)
        requests = operator.audit.requests()
    cost = (after - before) * 1.048576
    wrong = [event for event in requests if is_broad(event)]
    print(f"{options.pods} pods and {options.secrets} Secrets of others: {before:.2f} MiB without, {after:.2f} MiB with, "
          f"{cost:+.2f} MB; {len(requests)} requests, {len(wrong)} that list or watch Secrets or all pods")
    for event in wrong:
        print("  ", event["verb"], event["requestURI"])
    failed = cost > options.most or bool(wrong) or not requests
    print("FAILED" if failed else "passed")
    return int(failed)


def foreign_pod(n: int) -> Object:
    labels = {"app.kubernetes.io/name": "web", "app.kubernetes.io/managed-by": "Helm", "dask.org/component": "worker"}
    container = {
        "name": "web", "image": "localhost/web:1", "env": [{"name": f"V{k}", "value": "x" * 40} for k in range(20)]
    }
    return {"metadata": {"name": f"p{n}", "labels": labels}, "spec": {"containers": [container]}}


def is_broad(event: Object) -> bool:
    """Lists or watches Secrets, or pods without the operator's label."""
    resource = event.get("objectRef", {}).get("resource")
    if event["verb"] not in ("list", "watch"):
        return False
    ours = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Ddaskade" in event["requestURI"]
    return resource == "secrets" or (resource in ("pods", "services", "configmaps", "networkpolicies") and not ours)


def memory(operator: Daskade, starts: int) -> float:
    """MiB of its own that a fresh process takes once it has seen everything: the median of some starts."""
    found = []
    for _ in range(starts):
        operator.start()
        until("it has looked at all", lambda: operator.metric("daskade_reconcile_duration_seconds_count") >= 5)
        time.sleep(4)
        found.append(operator.usage().anonymous)
        operator.stop()
    return statistics.median(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["scale", "unrelated"], default="scale")
    parser.add_argument("--binary", type=Path, default=TOP / "target/dist/daskade")
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1, help="of each cluster")
    parser.add_argument("--theirs", type=int, default=100, help="clusters of dask-kubernetes; 0: without it")
    parser.add_argument("--tls", choices=["Disabled", "Auto"], default="Auto")
    parser.add_argument("--settle", type=float, default=60, help="seconds before the measurement at rest")
    parser.add_argument("--idle", type=float, default=60, help="seconds at rest")
    parser.add_argument("--patience", type=float, default=1200)
    parser.add_argument("--profile", action="store_true", help="with a profile by perf")
    parser.add_argument("--keep", action="store_true", help="keep state and logs")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--secrets", type=int, default=20000)
    parser.add_argument("--starts", type=int, default=3, help="fresh processes per measurement of memory")
    parser.add_argument("--most", type=float, default=2.0, help="MB that objects of others may cost")
    options = parser.parse_args()
    if not options.binary.exists():
        parser.error(f"{options.binary} is not there: cargo build --profile dist --features otlp")
    return {"scale": scale, "unrelated": unrelated}[options.what](options)


if __name__ == "__main__":
    sys.exit(main())
