"""What is done to a run on pods. Each fault gives the moment from which its recovery counts, in seconds since 1970."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cluster.evidence import Case
from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import S3, Folder
from support.waiting import until

STATE = Path(os.environ.get("CLUSTER_DIR", "/var/tmp/daskade-cluster"))
# How long a storage is away, in seconds; `./test full` makes it a minute.
OUTAGE = float(os.environ.get("DASKADE_TEST_OUTAGE", "20"))


@dataclass
class Scene:
    """A run under way, and what there is to strike at."""

    space: Namespace
    run: str
    case: Case
    s3: Folder
    operator: Operator
    rng: random.Random
    # What puts everything back as it was, when all has been judged.
    after: list[Callable[[], object]] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """``again``: executions that it may cost beyond one per task. ``aim``: seconds in which the run should be back.
    ``replaced``: the run is back with the first step on a pod that was not there before. ``lag``: seconds for which those
    that are cut off may begin another step. ``options``: of the operator, from before the run on. ``stays``: no other pod
    may do any of the work. ``storage``: it is the storage that is hit. ``alone``: it disturbs other tests.
    """

    strike: Callable[[Scene], float]
    again: int
    aim: float
    replaced: bool = False
    lag: float = 0.0
    options: tuple[str, ...] = ()
    stays: bool = False
    width: int = 6
    seconds: float = 1.0
    storage: bool = False
    alone: bool = False


def kill_operator(scene: Scene) -> float:
    """Killed and started again. It counts from its lease on."""
    before = scene.operator.log.stat().st_size
    scene.operator.stop(signal.SIGKILL)
    scene.operator.start()
    return _opened(scene, scene.operator, before)


def upgrade_operator(scene: Scene) -> float:
    """Another version, with another runtime, takes over from one that ends as it should."""
    operator, binary = scene.operator, scene.operator.binary
    before = operator.log.stat().st_size
    operator.stop()
    operator.binary = _other_version(binary, operator.folder)
    scene.after.extend([operator.stop, lambda: setattr(operator, "binary", binary), operator.start])
    operator.start()
    return _opened(scene, operator, before)


def _other_version(binary: Path, folder: Path) -> Path:
    """The same program with a runtime that has another digest: its archive has another comment."""
    image, mark = binary.read_bytes(), b"daskade_runtime"
    # The end of an archive: its signature, four counts, size and place of its directory, its comment.
    end = re.search(rb"PK\x05\x06.{8}(.{4})(.{4})\x0f\0" + mark, image, re.DOTALL)
    assert end, "the binary has no runtime"
    directory, before = (int.from_bytes(part, "little") for part in end.groups())
    archive = image[end.start() - directory - before : end.end()]
    other = archive.removesuffix(mark) + mark.upper()
    old, new = (hashlib.sha256(data).hexdigest().encode() for data in (archive, other))
    assert old in image
    made = folder / "daskade-other"
    made.write_bytes(image.replace(archive, other).replace(old, new))
    made.chmod(0o755)
    return made


def lose_leadership(scene: Scene) -> float:
    """It hangs beyond its lease, another takes over, and then it wakes up and finds that out."""
    first = scene.operator
    assert first.process is not None
    folder = first.folder / f"second-{scene.run}"
    folder.mkdir()
    second = Operator(first.binary, folder, first.config, *first.options, leads=False)

    def undo() -> None:
        second.stop()
        with contextlib.suppress(AssertionError):
            until("the first leads again", first.leads, 30)
            return
        first.start()

    scene.after.append(undo)
    first.process.send_signal(signal.SIGSTOP)
    try:
        until("the other leads", second.leads, 60, every=0.1)
        return _opened(scene, second, 0)
    finally:
        first.process.send_signal(signal.SIGCONT)


def _opened(scene: Scene, operator: Operator, before: int) -> float:
    """It counts from now on, when the operator has its lease; it is back when the run is open."""
    led = time.time()

    def opened() -> float | None:
        with operator.log.open("rb") as log:
            log.seek(before)
            for line in log.read().decode().splitlines():
                if "the run is open" in line and f'"{scene.space.name}/{scene.run}"' in line:
                    return datetime.fromisoformat(json.loads(line)["timestamp"].replace("Z", "+00:00")).timestamp()
        return None

    took = float(until("the run is open again", opened, 60, every=0.1)) - led
    print(f"\n  {'operator, run open after its lease':34} {max(took, 0.0):5.1f} s (aim 5 s)")
    assert took <= 15, took
    return led


def delete_scheduler(scene: Scene) -> float:
    return _delete(scene, [pod["metadata"]["name"] for pod in scene.space.pods(scene.run, "scheduler")])


def delete_worker(scene: Scene) -> float:
    """One that has a step."""
    ended = {mark.pod for mark in scene.case.marks() if mark.end is None}
    workers = scene.space.workers(scene.run)
    return _delete(scene, [scene.rng.choice(sorted(ended.intersection(workers)) or workers)])


def delete_workers(scene: Scene) -> float:
    return _delete(scene, scene.space.workers(scene.run))


def _delete(scene: Scene, pods: list[str]) -> float:
    """At once, or with what a pod does when it is asked to end."""
    how = scene.rng.choice([["--force", "--grace-period=0"], ["--grace-period=2"]])
    kubectl("-n", scene.space.name, "delete", "pod", *pods, "--wait=false", *how)
    return time.time()


def drain_node(scene: Scene) -> float:
    """Its pods are evicted, and none comes back until the node takes pods again."""
    node = scene.space.pods(scene.run, "scheduler")[0]["spec"]["nodeName"]
    before = {pod["metadata"]["uid"] for pod in scene.space.pods(scene.run)}
    selector = f"--pod-selector=daskade.dev/cluster={scene.run}"
    try:
        kubectl("drain", node, selector, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
        time.sleep(1.0)
    except AssertionError as error:
        # What those say that stay.
        pods = kubectl("-n", scene.space.name, "get", "pods", "-l", selector.partition("=")[2], "-o", "name").split()
        logs = [kubectl("-n", scene.space.name, "logs", "--tail=40", pod, check=False) for pod in pods]
        raise AssertionError("\n".join([str(error), *pods, *logs])) from error
    finally:
        kubectl("uncordon", node)
    now = time.time()
    assert not before & {pod["metadata"]["uid"] for pod in scene.space.pods(scene.run)}, "no pod was left out"
    return now


def stop_storage(scene: Scene) -> float:
    assert isinstance(scene.s3, S3)
    scene.s3.stop()
    time.sleep(OUTAGE)
    scene.s3.go_on()
    return time.time()


def kill_storage(scene: Scene) -> float:
    assert isinstance(scene.s3, S3)
    scene.s3.kill(OUTAGE)
    time.sleep(OUTAGE)
    until("the storage is back", scene.s3.answers, 60, every=0.1)
    return time.time()


def rotate_certificates(scene: Scene) -> float:
    """Others in place of all that the cluster has, while nothing is replaced."""
    before = scene.space.status(scene.run)["tls"]["expires"]
    pods = {pod["metadata"]["uid"] for pod in scene.space.pods(scene.run)}
    until("they are renewed", lambda: scene.space.status(scene.run)["tls"]["expires"] > before, 60)
    now = time.time()
    assert pods == {pod["metadata"]["uid"] for pod in scene.space.pods(scene.run)}
    return now


def restart_api_server(scene: Scene) -> float:
    """Killed, away for three seconds, started as it was."""
    file = STATE / "kube-apiserver.pid"
    pid = int(file.read_text())
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    folder = os.readlink(f"/proc/{pid}/cwd")
    os.kill(pid, signal.SIGKILL)
    time.sleep(3.0)
    with (STATE / "log/kube-apiserver.log").open("ab") as log:
        started = subprocess.Popen(
            words, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    file.write_text(f"{started.pid}\n")

    def ready() -> bool:
        try:
            return kubectl("get", "--raw", "/readyz").strip() == "ok"
        except (AssertionError, urllib.error.URLError):
            return False

    until("the API server is ready", ready, 60, every=0.2)
    return time.time()


FAULTS = {
    # What was handed to the scheduler goes on without an operator: there has to be more than it does meanwhile.
    "operator": Fault(kill_operator, again=0, aim=5, width=8, seconds=2.0),
    "leadership": Fault(lose_leadership, again=0, aim=5, stays=True, width=8, seconds=2.0),
    "upgrade": Fault(upgrade_operator, again=0, aim=5, stays=True, width=8, seconds=2.0),
    "scheduler": Fault(delete_scheduler, again=6, aim=20, lag=1.0),
    # What is left for one worker has to take longer than the other one's replacement.
    "worker": Fault(delete_worker, again=3, aim=10, replaced=True, width=12, seconds=2.0),
    "workers": Fault(delete_workers, again=6, aim=10, replaced=True),
    "drain": Fault(drain_node, again=6, aim=20, replaced=True, alone=True),
    "storage-hangs": Fault(stop_storage, again=0, aim=10, width=8, storage=True),
    "storage-gone": Fault(kill_storage, again=0, aim=10, width=8, storage=True),
    "certificates": Fault(
        rotate_certificates, again=0, aim=5, width=40, seconds=2.0, options=("--certificate-lifetime", "1m")
    ),
    "api-server": Fault(restart_api_server, again=0, aim=5, width=10, seconds=2.5, alone=True),
}
