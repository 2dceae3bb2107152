"""Kill anything at any time: the run on pods ends well, and no committed step runs twice.

What is hit and when comes from a seed (``DASKADE_TEST_SEEDS``: how many; the first is always the same). The verdict is the
oracle's of ``tests/survival``, from the ledger of the steps and the journal on the S3 server.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from cluster.evidence import Case
from cluster.faults import FAULTS, STATE, Fault, Scene
from cluster.runs import assert_clean, start, template, wait_end
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import S3, Shared
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="pods' addresses are not reachable from here"
)
SEEDS = range(int(os.environ.get("DASKADE_TEST_SEEDS", "1")))
# What a machine that does other things as well may take longer than it should.
BUSY = 3.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_run_survives(space: Namespace, operator: Operator, name: str, seed: int) -> None:
    fault, rng = FAULTS[name], random.Random(f"{name} {seed}")
    if fault.alone and (os.environ.get("PYTEST_XDIST_WORKER") or not (STATE / "kube-apiserver.pid").exists()):
        pytest.skip("disturbs the whole cluster, so it runs alone")
    if not fault.options:
        survive(space, operator, name, seed, fault, rng)
        return
    operator.stop()
    operator.start(*fault.options)
    try:
        survive(space, operator, name, seed, fault, rng)
    finally:
        operator.stop()
        operator.start()


def survive(space: Namespace, operator: Operator, name: str, seed: int, fault: Fault, rng: random.Random) -> None:
    s3 = S3(space) if fault.storage else Shared(space)
    # Its name is its cluster's too, and draining picks pods by that all over the node.
    run = f"s{os.urandom(3).hex()}"
    case = Case(s3, run, fault.width, fault.seconds)
    where = template(s3, run, {"name": "cpu", "replicas": 2})
    start(space, run, pipelineSpec=case.pipeline(**where))
    count = rng.randint(2, fault.width)
    until(f"{count} steps began", lambda: len(case.marks()) >= count, every=0.1)
    time.sleep(rng.uniform(0, fault.seconds))
    known = {mark.pod for mark in case.marks()}
    scene = Scene(space, run, case, s3, operator, rng)
    try:
        judge(scene, name, seed, count, fault, known)
    finally:
        for undo in scene.after:
            undo()


def judge(scene: Scene, name: str, seed: int, count: int, fault: Fault, known: set[str]) -> None:
    space, run, case = scene.space, scene.run, scene.case
    pods = {pod["metadata"]["uid"] for pod in space.pods(run)}
    since = fault.strike(scene)
    if fault.stays:
        # Whatever the next operator would have otherwise: the run's pods are its pods to the end.
        until("almost all is done", lambda: len(case.marks()) >= 2 * fault.width, 120, every=0.2)
        assert pods == {pod["metadata"]["uid"] for pod in space.pods(run)}
    told = wait_end(space, run)
    marks = case.marks()
    after = [mark for mark in marks if mark.start > since + fault.lag]
    later = [mark.start for mark in after if not (fault.replaced and mark.pod in known)]
    assert later, f"it ended before it was hit\n{case.show()}"
    took = later[0] - since
    extra = len(marks) - len(case.flow.tasks())
    print(f"\n  {f'{name}, seed {seed}, after {count} begun':34} {took:5.1f} s (aim {fault.aim:.0f} s), {extra} run again")

    uid = (space.find("pipelinerun", run) or {})["metadata"]["uid"]
    assert case.broken(uid, told["state"]) == [], case.show()
    assert told["results"] == {"value": case.flow.expected}
    assert extra <= fault.again, case.show()
    assert took <= fault.aim * BUSY, case.show()
    assert_clean(space, run)
