"""Groups at zero are started just before a run needs them."""

from __future__ import annotations

from datetime import datetime

from cluster.runs import start, template, wait_end
from support.kube.namespace import Namespace
from support.kube.s3 import Shared
from support.kube.settings import Object
from support.waiting import until

CODE = """
import time

def work(seconds, after=None):
    began = time.time()
    time.sleep(seconds)
    return [began, time.time()]
"""


def test_a_gpu_group_is_started_while_the_step_before_runs_and_not_earlier(space: Namespace) -> None:
    s3 = Shared(space)
    groups: list[Object] = [
        {"name": "cpu", "replicas": 1},
        {"name": "gpu", "autoscale": {"min": 0, "max": 3}, "gpu": {"count": 1}},
    ]

    # All of it is handed to the scheduler at once.
    steps = [
        {"name": "first", "call": "m:work", "args": {"seconds": 8}},
        {"name": "second", "call": "m:work", "args": {"seconds": 15, "after": "$(steps.first.output)"}},
        {
            "name": "train", "call": "m:work", "args": {"seconds": 1, "after": "$(steps.second.output)"},
            "resources": {"GPU": 1},
        },
    ]
    results = [{"name": name, "value": f"$(steps.{name}.output)"} for name in ("first", "second", "train")]
    spec = {"code": {"files": {"m.py": CODE}}, "steps": steps, "results": results, **template(s3, "r", *groups)}
    start(space, "r", pipelineSpec=spec)
    until("a worker with a GPU is made", lambda: space.pods("r", "worker", "gpu"), 120, every=0.3)
    made = {pod["metadata"]["name"]: pod for pod in space.pods("r", "worker", "gpu")}

    def ended() -> bool:
        made.update({pod["metadata"]["name"]: pod for pod in space.pods("r", "worker", "gpu")})
        run = space.find("pipelinerun", "r") or {}
        return bool(run["status"].get("finishedAt"))

    until("it ends", ended)
    told = wait_end(space, "r")
    assert len(made) == 1, f"one step needs one worker: {sorted(made)}"
    [pod] = made.values()
    created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"].replace("Z", "+00:00")).timestamp()
    (_, before), (_, until_then) = told["results"]["first"], told["results"]["second"]
    # The API server cuts its times to seconds.
    assert before - 1 <= created <= until_then - 5, (before, created, until_then)
