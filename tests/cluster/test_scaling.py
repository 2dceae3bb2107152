"""Groups that follow demand, and workers that go only when they have nothing left to do."""

from __future__ import annotations

import time

from support.kube.api import kubectl, path_of, proxy
from support.kube.client import Client, ask
from support.kube.namespace import Namespace
from support.waiting import until

ELASTIC = {"name": "cpu", "autoscale": {"min": 0, "max": 3}}
GPU = {"name": "gpu", "autoscale": {"min": 0, "max": 1}, "gpu": {"count": 1}}


def desired(space: Namespace, name: str) -> dict[str, int]:
    return {group["name"]: group["desired"] for group in space.status(name).get("groups") or []}


def test_groups_grow_from_zero_by_what_tasks_ask_for_and_shrink_again(space: Namespace) -> None:
    space.cluster("z", ELASTIC, GPU)
    status = space.wait_ready("z")
    assert status["workersReady"] == 0 and not space.workers("z")
    # Without a GPU asked for no GPU is started.
    plain = Client(space, "z", "say(client.gather(client.map(lambda i: once(4, i), range(3), pure=False)))")
    plain.output()
    assert not space.workers("z", "gpu")
    code = "say(client.submit(sum, [1, 2], resources={'GPU': 1}).result()); say('done')"
    asked = Client(space, "z", code)
    until("the GPU group has a worker", lambda: space.workers("z", "gpu"), 60)
    assert asked.output().split() == ["3", "done"]
    until("all workers are gone again", lambda: not space.workers("z"), 150)
    until("none is wanted", lambda: desired(space, "z") == {"cpu": 0, "gpu": 0}, 20)
    assert ((space.find("dsk", "z") or {})["spec"]["workers"][0]["autoscale"]) == {"min": 0, "max": 3}


def test_demand_beyond_a_group_stops_at_its_bounds(space: Namespace) -> None:
    space.cluster("b", {**ELASTIC, "autoscale": {"min": 1, "max": 2}})
    space.wait_ready("b")
    client = Client(space, "b", "fs = client.map(lambda i: once(3, i), range(12), pure=False); client.gather(fs); say('x')")
    until("two workers", lambda: len(space.workers("b")) == 2, 60)
    client.output()
    until("one is kept", lambda: len(space.workers("b")) == 1, 120)
    time.sleep(3)
    assert len(space.workers("b")) == 1


def test_a_worker_that_is_scaled_away_finishes_what_it_runs_once(space: Namespace) -> None:
    space.cluster("d", {"name": "a", "replicas": 3})
    space.wait_ready("d")
    code = "say(sorted(held(client.map(hold, range(3), pure=False))), len(marks('begun')), len(marks('ended')))"
    client = Client(space, "d", code)
    client.wait_for("busy")
    space.cluster("d", {"name": "a", "replicas": 1})
    until("it counts one", lambda: desired(space, "d") == {"a": 1}, 20)
    # They are asked to drain, not killed: until their steps end all three pods are there.
    time.sleep(2)
    assert len(space.workers("d")) == 3
    client.release()
    assert client.output().splitlines()[-1] == "[0, 1, 2] 3 3"
    until("two are gone", lambda: len(space.workers("d")) == 1, 60)
    space.wait_ready("d")


def test_the_idle_of_a_group_go_and_the_busy_stay(space: Namespace) -> None:
    """Dask's own scaling knows no groups and may take a busy worker of another one."""
    space.cluster("i", {"name": "a", "replicas": 1, "daskResources": {"A": 1}}, {"name": "b", "replicas": 2})
    space.wait_ready("i")
    keep = space.workers("i", "a")
    code = "say(*held([client.submit(hold, 7, resources={'A': 1})]), len(marks('begun')))"
    client = Client(space, "i", code)
    client.wait_for("busy")
    space.cluster("i", {"name": "a", "replicas": 1, "daskResources": {"A": 1}}, {"name": "b", "replicas": 0})
    until("the group b is empty", lambda: not space.workers("i", "b"), 60)
    assert space.workers("i", "a") == keep
    client.release()
    assert client.output().splitlines()[-1] == "7 1"


def test_results_held_by_a_worker_survive_its_going(space: Namespace) -> None:
    space.cluster("h", {"name": "a", "replicas": 3})
    space.wait_ready("h")
    code = """
futures = client.map(lambda i: once(0, i), range(12), pure=False)
client.gather(futures); say("held")
while len(client.scheduler_info(n_workers=-1)["workers"]) > 1: time.sleep(.3)
say(sum(client.gather(futures)), len(marks("begun")))
"""
    client = Client(space, "h", code)
    client.wait_for("held")
    space.cluster("h", {"name": "a", "replicas": 1})
    assert client.output().splitlines()[-1] == "66 12"


def test_an_evicted_worker_finishes_within_its_grace(space: Namespace) -> None:
    """Node drain is this, for each pod of the node."""
    space.cluster("v", {"name": "a", "replicas": 1, "terminationGracePeriod": "60s"})
    space.wait_ready("v")
    (victim,) = space.workers("v")
    # Long enough that it runs on for a while after the worker was told to end.
    code = """
f = client.submit(once, 12, 5)
while not marks("begun"): time.sleep(.2)
say("busy"); say(f.result(), len(marks("begun")), len(marks("ended")))
"""
    client = Client(space, "v", code)
    client.wait_for("busy")
    eviction = f'{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{victim}"}}}}'
    kubectl("create", "--raw", f"/api/v1/namespaces/{space.name}/pods/{victim}/eviction", "-f", "-", stdin=eviction)
    assert client.output().splitlines()[-1] == "5 1 1"
    until("another takes its place", lambda: space.workers("v") not in ([], [victim]), 60)
    space.wait_ready("v")


def test_an_idle_cluster_goes_to_zero_and_wakes_on_demand(space: Namespace) -> None:
    space.cluster("w", {"name": "a", "replicas": 2}, idleTimeout="15s")
    space.wait_ready("w")
    scheduler = space.pods("w", "scheduler")[0]["metadata"]["uid"]
    until("no worker is left", lambda: not space.workers("w"), 90)
    assert space.pods("w", "scheduler")[0]["metadata"]["uid"] == scheduler
    space.wait_reason("w", "Idle")
    assert space.status("w")["idleSince"]
    row = kubectl("-n", space.name, "get", "dsk", "w").splitlines()[1].split()
    assert row[1:4] == ["True", "0", "0"] and row[5].endswith("s")
    assert ask(space, "w", "say(client.submit(sum, [4, 5]).result(120))") == "9"


def test_when_the_scheduler_cannot_be_asked_no_worker_is_killed(space: Namespace) -> None:
    """Its event loop hangs for a while; the spec asks for fewer workers in that time."""
    space.cluster("blind", {"name": "a", "replicas": 2})
    space.wait_ready("blind")
    before = space.workers("blind")
    code = "client.run_on_scheduler(lambda: (print('it hangs', flush=True), __import__('time').sleep(45)))"
    client = Client(space, "blind", code)
    log = f"{path_of(space.name, 'pods')}/{space.pods('blind', 'scheduler')[0]['metadata']['name']}/log"
    until("it hangs", lambda: "it hangs" in (proxy().get(log) or ""))
    space.cluster("blind", {"name": "a", "replicas": 1})
    message = space.wait_reason("blind", "SchedulerUnreachable", "WorkersReady", 30)
    assert "none is removed" in message
    assert space.workers("blind") == before
    client.output()
    until("one worker is left", lambda: len(space.workers("blind")) == 1, 90)
    space.wait_ready("blind")
