"""PipelineRuns as these tests start them and wait for them, and a ledger of what their steps did."""

from __future__ import annotations

from typing import Any

import yaml

from support import TOP
from support.kube.namespace import Namespace
from support.kube.s3 import Folder
from support.kube.settings import IMAGE, SMALL, Object
from support.waiting import until

# A step that leaves an object per execution: its name tells step, item and the execution.
LEDGER = """
import os, time, uuid
from daskade_runtime.storage import open_store

def mark(step, i):
    store = open_store({"url": LEDGER_URL})
    store.put("%s/%s/%s" % (step, i, uuid.uuid4().hex), b"x")

def slow(i, seconds):
    mark("slow", i)
    time.sleep(seconds)
    return i

def add(values):
    mark("add", 0)
    return sum(values)
"""


class Ledger:
    """What the steps left, read through the S3 server's own listing."""

    def __init__(self, s3: Folder, name: str) -> None:
        self.s3, self.name = s3, name

    def code(self) -> str:
        return LEDGER.replace("LEDGER_URL", repr(self.s3.url(f"ledger-{self.name}")))

    def executions(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for key in self.s3.keys(f"ledger-{self.name}/"):
            step = "/".join(key.split("/")[1:3])
            counts[step] = counts.get(step, 0) + 1
        return counts


def template(s3: Folder, prefix: str, *groups: Object) -> Object:
    """Fields of a pipeline that say where it runs: on a small cluster of its own."""
    workers = [{"resources": SMALL, **group} for group in groups or ({"name": "cpu", "autoscale": {"min": 0, "max": 2}},)]
    cluster = {"image": IMAGE, "scheduler": {"resources": SMALL}, "workers": workers}
    return {"cluster": {"template": cluster}, "storage": s3.storage(prefix)}


def diamond(**where: Any) -> Object:
    """The example, as it is, with a place to run."""
    spec = dict(yaml.safe_load((TOP / "examples/diamond.yaml").read_text())["spec"])
    return {**spec, **where}


def ledger_pipeline(ledger: Ledger, width: int, seconds: float, **where: Any) -> Object:
    steps = [
        {"name": "slow", "call": "ledger:slow", "map": {"i": f"$(range({width}))"}, "args": {"seconds": seconds}},
        {"name": "add", "call": "ledger:add", "args": ["$(steps.slow.output)"]},
    ]
    results = [{"name": "sum", "value": "$(steps.add.output)"}]
    return {"code": {"files": {"ledger.py": ledger.code()}}, "steps": steps, "results": results, **where}


def start(space: Namespace, name: str, **spec: Any) -> None:
    meta = {"name": name}
    space.apply({"apiVersion": "daskade.dev/v1alpha1", "kind": "PipelineRun", "metadata": meta, "spec": spec})


def status(space: Namespace, name: str) -> Object:
    return dict((space.find("pipelinerun", name) or {}).get("status") or {})


def succeeded(space: Namespace, name: str) -> Object:
    conditions = status(space, name).get("conditions") or []
    return next((dict(found) for found in conditions if found["type"] == "Succeeded"), {})


def wait_end(space: Namespace, name: str, reason: str = "Succeeded", patience: float = 240) -> Object:
    """The status at the end, which must be for this reason."""

    def ended() -> Object | None:
        return status(space, name) if succeeded(space, name).get("status") in ("True", "False") else None

    told = dict(until(f"PipelineRun {name} ends", ended, patience))
    assert succeeded(space, name)["reason"] == reason, told
    return told


def wait_progress(space: Namespace, name: str, done: int) -> None:
    """Until so many steps are done."""
    until(f"{done} steps of {name}", lambda: (status(space, name).get("steps") or {}).get("done", 0) >= done)


def wait_gone(space: Namespace, kind: str, name: str) -> None:
    until(f"{kind} {name} is gone", lambda: space.find(kind, name) is None)


def assert_clean(space: Namespace, name: str) -> None:
    """Nothing of an ended run is left but itself and its record."""
    wait_gone(space, "daskcluster", name)
    until("no finalizer", lambda: not (space.find("pipelinerun", name) or {})["metadata"].get("finalizers"))
