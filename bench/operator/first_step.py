"""How long it takes from `kubectl apply` to the first step, and what a step costs, on a real cluster.

    tests/kube/up; tests/kube/image worker localhost/daskade-worker:test; tests/kube/image s3 localhost/s3:test
    cargo build --profile dist --features otlp
    KUBECONFIG=… PYTHONPATH=tests python3 bench/operator/first_step.py [--repeat 3] [--steps 1000 10000]

Beside each run of daskade a Kubernetes Job runs the same graph with a plain ``distributed.Client`` on a cluster of
dask-kubernetes, with the same image and as many workers of one thread. Times are the steps' own: the first one says when it
began, the last one when all others had ended; that of the apply is taken before kubectl starts. Everything is on one machine,
so that there is one clock. As in ``compare.py`` both operators are processes of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compare import Controller, DaskKubernetes, clean_up, pod_spec, within
from scale import DASK_KUBERNETES, say
from support import TOP
from support.kube.api import kubectl, proxy
from support.kube.namespace import Namespace
from support.kube.operator import Operator, install
from support.kube.s3 import S3
from support.kube.settings import IMAGE, RUN, SMALL, Object
from support.waiting import until

API = "daskade.dev/v1alpha1"
FLOW = """
import time

def first():
    return time.time()

def item(i, first):
    return 0

def last(values):
    return time.time()
"""
# Until its scheduler is there a client can do nothing but try again.
JOB = (
    FLOW
    + """
import os
from distributed import Client
while True:
    try:
        client = Client(os.environ["DASK_SCHEDULER_ADDRESS"], timeout=5)
        break
    except (OSError, TimeoutError):
        time.sleep(0.2)
one = client.submit(first, pure=False)
items = client.map(item, range(COUNT), first=one, pure=False)
two = client.submit(last, items, pure=False)
print("times", one.result(), two.result(), flush=True)
"""
)
Times = tuple[float, float]


class Ours:
    """PipelineRuns."""

    def __init__(self, space: Namespace, s3: S3, workers: int) -> None:
        self.space, self.s3 = space, s3
        group = {"name": "cpu", "replicas": workers, "threads": 1, "resources": SMALL}
        self.cluster = {"image": IMAGE, "scheduler": {"resources": SMALL}, "workers": [group]}

    def warm(self) -> None:
        spec = {**self.cluster, "storage": self.s3.storage("shared")}
        self.space.apply({"apiVersion": API, "kind": "DaskCluster", "metadata": {"name": "warm"}, "spec": spec})
        self.space.wait_ready("warm")

    def run(self, name: str, count: int, warm: bool) -> tuple[float, Times]:
        steps = [
            {"name": "first", "call": "flow:first"},
            {
                "name": "each", "call": "flow:item", "map": {"i": f"$(range({count}))"},
                "args": {"first": "$(steps.first.output)"},
            },
            {"name": "last", "call": "flow:last", "args": ["$(steps.each.output)"]},
        ]
        results = [{"name": step, "value": f"$(steps.{step}.output)"} for step in ("first", "last")]
        where: Object = {"cluster": {"ref": "warm"}}
        if not warm:
            where = {"cluster": {"template": self.cluster}, "storage": self.s3.storage("own")}
        spec = {"code": {"files": {"flow.py": FLOW}}, "steps": steps, "results": results, **where}
        began = time.time()
        object = {"apiVersion": API, "kind": "PipelineRun", "metadata": {"name": name}, "spec": {"pipelineSpec": spec}}
        self.space.apply(object)

        def ended() -> Object | None:
            status = (self.space.find("pipelinerun", name) or {}).get("status") or {}
            return status if status.get("finishedAt") else None

        status = until(f"{name} ends", ended, 900)
        assert status["state"] == "Succeeded", json.dumps(status, indent=1)
        return began, (status["results"]["first"], status["results"]["last"])

    def clean(self, name: str) -> None:
        self.space.delete("pipelinerun", name)
        until("its cluster is gone", lambda: not self.space.pods(name), 120)


class Theirs:
    """Jobs on clusters of dask-kubernetes."""

    def __init__(self, space: Namespace, workers: int) -> None:
        self.space, self.side, self.workers = space, DaskKubernetes(space), workers

    def warm(self) -> None:
        self.side.create("warm", self.workers)
        self.side.wait("warm", self.workers)

    def run(self, name: str, count: int, warm: bool) -> tuple[float, Times]:
        cluster = "warm" if warm else name
        pod = pod_spec("client", IMAGE, [], [])
        [container] = pod["containers"]
        del container["args"]
        container["command"] = ["python3", "-c", JOB.replace("COUNT", str(count))]
        container["env"].append(
            {"name": "DASK_SCHEDULER_ADDRESS", "value": f"tcp://{cluster}-scheduler.{self.space.name}:8786"}
        )
        pod["restartPolicy"] = "Never"
        spec = {"backoffLimit": 0, "template": {"spec": pod}}
        began = time.time()
        if not warm:
            self.side.create(cluster, self.workers)
        self.space.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})

        def said() -> str | None:
            found = self.space.list("pods", f"batch.kubernetes.io/job-name={name}")
            for pod in found:
                assert pod["status"]["phase"] != "Failed", kubectl("-n", self.space.name, "logs", pod["metadata"]["name"])
                if pod["status"]["phase"] == "Succeeded":
                    path = f"/api/v1/namespaces/{self.space.name}/pods/{pod['metadata']['name']}/log"
                    return proxy().get(path)
            return None

        text = str(until(f"the Job {name} ends", said, 900))
        [line] = [line for line in text.splitlines() if line.startswith("times ")]
        first, last = line.split()[1:]
        return began, (float(first), float(last))

    def clean(self, name: str) -> None:
        kubectl("-n", self.space.name, "delete", "job", name, "--wait=true", "--timeout=60s")
        if not name.startswith(("warm", "many")):
            self.side.delete(name)
            within(120, lambda: not self.side.pods(name) and not self.side.pods(name, "scheduler"))


def measure(side: Any, options: argparse.Namespace) -> dict[str, str]:
    """Every figure of one side, as a cell of the table."""
    who, cells = type(side).__name__.lower(), {}
    side.warm()
    for warm in (True, False):
        took = []
        for n in range(options.repeat):
            name = f"{'warm' if warm else 'cold'}-{n}"
            began, (first, _) = side.run(name, 1, warm)
            took.append(first - began)
            side.clean(name)
        key = "warm" if warm else "cold"
        cells[key] = f"{statistics.median(took):.1f} ({min(took):.1f} to {max(took):.1f})"
        say(f"{who}, {key}: {cells[key]}")
    for count in options.steps:
        _, (first, last) = side.run(f"many-{count}", count, True)
        cells[str(count)] = f"{(last - first) / count * 1000:.2f}"
        say(f"{who}, {count} steps: {cells[str(count)]} ms")
        side.clean(f"many-{count}")
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=TOP / "target/dist/daskade")
    parser.add_argument("--repeat", type=int, default=3, help="runs whose median is told")
    parser.add_argument("--steps", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--workers", type=int, default=2, help="of one thread each")
    options = parser.parse_args()
    if not options.binary.exists():
        parser.error(f"{options.binary} is not there: cargo build --profile dist --features otlp")
    folder = Path(tempfile.mkdtemp(prefix="daskade-first-step-"))
    spaces: list[Namespace] = []
    operator: Operator | None = None
    controller: Controller | None = None
    load = os.getloadavg()[0]
    try:
        operator = Operator(options.binary, folder, install(folder))
        spaces.append(Namespace(f"first-{RUN}-a"))
        ours = measure(Ours(spaces[0], S3(spaces[0]), options.workers), options)
        spaces.append(Namespace(f"first-{RUN}-b"))
        controller = Controller(folder, spaces[1].name)
        theirs = measure(Theirs(spaces[1], options.workers), options)
    finally:
        clean_up(spaces, operator, controller, folder)
    rows = {
        "warm": "apply to first step, warm shared cluster, s: median (least to most)",
        "cold": "apply to first step, cold cluster, s: median (least to most)",
    }
    rows |= {str(count): f"one step of {count:,}, ms" for count in options.steps}
    print(f"\n{options.workers} workers of one thread, {os.cpu_count()} cores, load {load:.1f} before\n")
    print(f"| | daskade | a Job with a client on dask-kubernetes {DASK_KUBERNETES} |\n|---|--:|--:|")
    for key, title in rows.items():
        print(f"| {title} | {ours[key]} | {theirs[key]} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
