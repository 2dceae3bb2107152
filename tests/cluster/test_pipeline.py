"""What makes runs of a Pipeline: changes, the schedule, and nothing else; whatever happens to the operator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import TOP
from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import Shared
from support.kube.settings import Object
from support.waiting import until


class Pipeline:
    """One Pipeline and its runs. Its runs are suspended by a cluster that does not exist: they wait until they are told."""

    def __init__(self, space: Namespace, name: str = "etl") -> None:
        self.space, self.name = space, name
        self.spec: Object = {
            "cluster": {"ref": "absent"},
            "storage": {"url": "file:///data"},
            "code": {"files": {"flow.py": "x = 1\n"}},
            "steps": [{"name": "a", "call": "flow:f"}],
        }

    def apply(self, version: str = "", **fields: Any) -> None:
        if version:
            self.spec["code"] = {"files": {"flow.py": f"x = {version!r}\n"}}
        for field, value in fields.items():
            self.spec[field] = value
        api = {"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline"}
        self.space.apply({**api, "metadata": {"name": self.name}, "spec": self.spec})

    def status(self) -> Object:
        return dict((self.space.find("pipeline", self.name) or {}).get("status", {}))

    def condition(self, kind: str) -> Object:
        return next((dict(c) for c in self.status().get("conditions", []) if c["type"] == kind), {})

    def runs(self, trigger: str = "") -> list[str]:
        selector = f"daskade.dev/pipeline={self.name}" + (f",daskade.dev/trigger={trigger}" if trigger else "")
        return [run["metadata"]["name"] for run in self.space.list("pipelineruns", selector)]

    def run(self, name: str) -> Object:
        return self.space.find("pipelinerun", name) or {}

    def settled(self, count: int, trigger: str = "") -> list[str]:
        """Waits for so many runs, and that there are no more a moment later."""
        until(f"{self.name} has {count} runs", lambda: len(self.runs(trigger)) >= count, 30)
        until("the status tells", lambda: self.status().get("observedGeneration") == self.generation(), 20)
        time.sleep(1.5)
        runs = self.runs(trigger)
        assert len(runs) == count, runs
        return runs

    def generation(self) -> int:
        return int((self.space.find("pipeline", self.name) or {})["metadata"]["generation"])

    def cancel(self, name: str) -> None:
        self.space.patch("pipelinerun", name, {"spec": {"cancel": True}})

    def ended(self, name: str) -> bool:
        conditions = self.run(name).get("status", {}).get("conditions", [])
        return any(c["type"] == "Succeeded" and c["status"] != "Unknown" for c in conditions)


@pytest.fixture
def pipeline(space: Namespace) -> Pipeline:
    return Pipeline(space)


def test_a_change_makes_exactly_one_run_and_a_revert_too(pipeline: Pipeline) -> None:
    pipeline.apply()
    first = pipeline.settled(1)[0]
    assert pipeline.status()["lastRun"] == first
    assert pipeline.condition("Accepted")["status"] == "True"
    pipeline.apply()
    pipeline.settled(1)
    pipeline.apply("two")
    pipeline.settled(2)
    pipeline.spec["code"] = {"files": {"flow.py": "x = 1\n"}}
    pipeline.apply()
    assert f"{first}-2" in pipeline.settled(3)
    spec = pipeline.run(first)["spec"]
    assert spec["pipelineSpec"] == pipeline.spec, "each run has the spec of its time"
    assert "ownerReferences" not in pipeline.run(first)["metadata"] or not any(
        owner["kind"] == "Pipeline" for owner in pipeline.run(first)["metadata"]["ownerReferences"]
    )
    events = pipeline.space.list("events")
    made = [e for e in events if e["regarding"]["name"] == "etl" and e["reason"] == "RunCreated"]
    assert any(first in e["note"] for e in made), events


def test_what_does_not_matter_to_a_run_makes_none(pipeline: Pipeline) -> None:
    pipeline.apply()
    pipeline.settled(1)
    pipeline.apply(triggers={"onChange": True}, limits={}, requirements=[])
    pipeline.settled(1)
    pipeline.apply(schedule={"cron": "0 0 29 2 *", "timeZone": "Europe/Berlin"})
    pipeline.settled(1)
    assert pipeline.status()["nextScheduleTime"].endswith("-02-28T23:00:00Z")
    pipeline.apply(schedule={"cron": "@yearly", "suspend": True})
    pipeline.settled(1)
    assert "nextScheduleTime" not in pipeline.status()
    del pipeline.spec["schedule"], pipeline.spec["triggers"]
    pipeline.apply()
    pipeline.settled(1)


def test_without_its_status_nothing_runs_twice(pipeline: Pipeline) -> None:
    pipeline.apply()
    pipeline.apply("two")
    until("both are seen", lambda: pipeline.status().get("observedGeneration") == pipeline.generation(), 20)
    count = len(pipeline.runs())
    told = pipeline.status()["lastTriggered"]
    pipeline.space.patch("pipeline", "etl", {"status": None}, "status")
    until("it is told again", lambda: pipeline.status().get("lastTriggered") == told, 20)
    pipeline.settled(count)
    pipeline.space.delete("pipeline", "etl")
    pipeline.apply()
    until("it is told once more", lambda: pipeline.status().get("lastTriggered") == told, 20)
    assert len(pipeline.settled(count)) == count


def test_a_deleted_pipeline_leaves_its_runs(pipeline: Pipeline) -> None:
    pipeline.apply()
    run = pipeline.settled(1)[0]
    uid = pipeline.run(run)["metadata"]["uid"]
    pipeline.space.delete("pipeline", "etl")
    time.sleep(5)
    left = pipeline.run(run)
    assert left["metadata"]["uid"] == uid
    assert "deletionTimestamp" not in left["metadata"]
    assert not left["spec"].get("cancel", False)


def test_mistakes_are_told_all_at_once_and_make_nothing(pipeline: Pipeline) -> None:
    good = list(pipeline.spec["steps"])
    pipeline.apply(schedule={"cron": "61 * * * *"}, steps=[{"name": "a", "call": "flow:f", "dependsOn": ["b"]}])
    until("it is refused", lambda: pipeline.condition("Accepted").get("status") == "False", 20)
    message = pipeline.condition("Accepted")["message"]
    assert "spec.schedule.cron" in message and "from 0 to 59" in message, message
    assert "spec.steps[0].dependsOn[0]" in message, message
    assert pipeline.condition("Stalled")["status"] == "True"
    assert pipeline.runs() == []
    del pipeline.spec["schedule"]
    pipeline.apply(steps=good)
    pipeline.settled(1)


def moments(pipeline: Pipeline) -> list[str]:
    runs = [pipeline.run(name) for name in pipeline.runs("schedule")]
    return [run["metadata"]["annotations"]["daskade.dev/moment"] for run in runs if run]


def test_an_interval_makes_a_run_for_each_moment_and_once_each_whoever_leads(
    pipeline: Pipeline, operator: Operator
) -> None:
    limits = {"successfulRunsHistoryLimit": 1000, "failedRunsHistoryLimit": 1000}
    pipeline.apply(schedule={"interval": "3s", "concurrencyPolicy": "Allow", "catchUp": 100, **limits})
    until("three moments", lambda: len(moments(pipeline)) >= 3, 30)
    operator.stop(signal.SIGKILL)
    time.sleep(7)
    operator.start()
    until("what was missed is made up for", lambda: len(moments(pipeline)) >= 7, 60)
    pipeline.apply(schedule={"interval": "3s", "concurrencyPolicy": "Allow", "suspend": True, **limits})
    until("it is suspended", lambda: "nextScheduleTime" not in pipeline.status(), 20)
    found = sorted(moments(pipeline))
    assert len(set(found)) == len(found), found
    seconds = [time.mktime(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ")) for moment in found]
    assert all(after - before == 3 for before, after in zip(seconds, seconds[1:], strict=False)), found
    time.sleep(4)
    assert len(moments(pipeline)) == len(found)


def test_forbid_leaves_moments_out_while_a_run_is_active(pipeline: Pipeline) -> None:
    pipeline.apply(schedule={"interval": "2s"})
    run = pipeline.settled(1)[0]
    time.sleep(5)
    assert pipeline.runs() == [run]
    events = pipeline.space.list("events")
    assert any(e["reason"] == "MomentSkipped" and run in e["note"] for e in events), events
    pipeline.cancel(run)
    until("the run ends", lambda: pipeline.ended(run), 60)
    until("the next moment makes one", lambda: len(pipeline.runs()) >= 2, 20)


def test_replace_cancels_the_run_before_and_history_is_kept_short(pipeline: Pipeline) -> None:
    pipeline.apply(schedule={"interval": "3s", "concurrencyPolicy": "Replace", "failedRunsHistoryLimit": 1})
    first = min(until("a run", pipeline.runs))
    until("the first is cancelled", lambda: not pipeline.run(first) or pipeline.run(first)["spec"].get("cancel"), 20)
    until("and deleted once others have ended", lambda: pipeline.run(first) == {}, 90)
    pipeline.apply(schedule={"interval": "3s", "suspend": True, "failedRunsHistoryLimit": 1})
    until("one ended run is left, and the last", lambda: len(pipeline.runs()) <= 2, 60)


def test_a_queue_lets_one_begin_when_the_one_before_has_ended(pipeline: Pipeline) -> None:
    pipeline.apply(schedule={"interval": "4s", "concurrencyPolicy": "Queue"})
    until("two wait", lambda: len(pipeline.runs()) >= 3, 30)
    runs = sorted(pipeline.runs())
    assert [bool(pipeline.run(run)["spec"].get("suspend")) for run in runs[:3]] == [False, True, True]
    pipeline.cancel(runs[0])
    until("the second begins", lambda: not pipeline.run(runs[1])["spec"].get("suspend"), 60)
    assert pipeline.run(runs[2])["spec"]["suspend"] is True


def test_the_operator_may_end_anywhere(pipeline: Pipeline, operator: Operator) -> None:
    pipeline.apply()
    # Else the first change comes before the operator has seen what it changes, and there is one run for both.
    pipeline.settled(1)
    for version in range(6):
        pipeline.apply(str(version))
        time.sleep(0.05 * version)
        operator.stop(signal.SIGKILL)
        operator.start()
        until("it is told", lambda: pipeline.status().get("observedGeneration") == pipeline.generation(), 60)
    pipeline.settled(7)


def test_kubectl_shows_what_people_look_for(pipeline: Pipeline) -> None:
    pipeline.apply(schedule={"cron": "@daily"}, triggers={"onChange": True})
    run = pipeline.settled(1)[0]
    shown = kubectl("-n", pipeline.space.name, "get", "dpl", "etl")
    assert "True" in shown and run in shown, shown
    # As a date it would be an age, and of what is to come that is "<invalid>".
    assert f"{pipeline.status()['nextScheduleTime']}" in shown, shown
    shown = kubectl("-n", pipeline.space.name, "get", "dpr", "-o", "wide")
    assert run in shown and "etl" in shown.split("\n")[1].split(), shown


def test_people_make_follow_and_end_runs_by_the_command(pipeline: Pipeline, operator: Operator) -> None:
    def daskade(*words: str) -> subprocess.CompletedProcess[str]:
        words = (*words, "-n", pipeline.space.name)
        return subprocess.run([str(operator.binary), *words], capture_output=True, text=True, timeout=90, check=False)

    pipeline.apply(triggers={"onChange": False}, params=[{"name": "n", "type": "integer"}])
    until("it is accepted", lambda: pipeline.condition("Accepted").get("status") == "True", 20)
    said = daskade("submit", "etl")
    assert (said.returncode, "MissingParameter" in said.stderr) == (2, True), said.stderr
    run = daskade("submit", "etl", "-p", "n=3").stdout.strip()
    assert pipeline.runs("manual") == [run]
    until("the status names it", lambda: pipeline.status().get("active") == [run], 20)
    until("it waits for its cluster", lambda: "absent" in daskade("status", run).stdout, 30)
    assert run in daskade("runs").stdout
    assert daskade("cancel", run).returncode == 0
    until("it has ended", lambda: "Cancelled" in daskade("status", run).stdout, 60)
    assert daskade("status", run, "--watch", "-o", "json").returncode == 0
    said = daskade("status", run[:-1])
    assert (said.returncode, f"did you mean {run}?" in said.stderr) == (2, True), said.stderr


@pytest.mark.skipif(not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="pods' addresses are not reachable from here")
def test_the_example_is_applied_and_there_is_one_finished_run(space: Namespace, tmp_path: Path) -> None:
    """From `kubectl apply` to the end: nothing is given but a storage, and a small n."""
    s3 = Shared(space)
    example = yaml.safe_load((TOP / "examples/diamond.yaml").read_text())
    example["spec"]["params"][0]["default"] = 8
    example["spec"]["storage"] = s3.storage("diamond")
    file = tmp_path / "diamond.yaml"
    file.write_text(json.dumps(example))
    kubectl("-n", space.name, "apply", "-f", str(file))
    pipeline = Pipeline(space, "diamond")
    (run,) = pipeline.settled(1)
    until("it has ended", lambda: pipeline.ended(run), 180)
    shown = kubectl("-n", space.name, "get", "dpr", "--no-headers").split()
    assert shown[:3] == [run, "Succeeded", "25/25"], shown
    assert pipeline.run(run)["status"]["results"] == {"total": 56}
    until("its cluster is gone", lambda: not space.list("daskclusters"), 60)
    until("and its pods", lambda: not space.list("pods", "daskade.dev/cluster"), 60)
    uid = pipeline.run(run)["metadata"]["uid"]
    kept = s3.keys(f"diamond/runs/{uid}/")
    assert any("/journal/" in key for key in kept), kept

    # The same again is no change.
    said = kubectl("-n", space.name, "apply", "-f", str(file))
    assert "unchanged" in said, said
    assert pipeline.settled(1) == [run]
    assert pipeline.status()["lastRun"] == run
