"""What a run brings with it and finds: code from a ConfigMap or an archive, packages of the image, outputs of earlier runs."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from cluster.runs import Ledger, ledger_pipeline, start, status, succeeded, template, wait_end
from support.kube.namespace import Namespace
from support.kube.s3 import Shared
from support.kube.settings import Object
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="pods' addresses are not reachable from here"
)

FLOW = """
import time

def slow():
    time.sleep(1)

def which(_):
    return {version}
"""


def pipeline(code: Object, **where: object) -> Object:
    steps = [
        {"name": "slow", "call": "flow:slow"},
        {"name": "which", "call": "flow:which", "args": ["$(steps.slow.output)"]},
    ]
    return {"code": code, "steps": steps, "results": [{"name": "version", "value": "$(steps.which.output)"}], **where}


def config_map(space: Namespace, version: int) -> None:
    data = {"flow.py": FLOW.format(version=version)}
    space.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "flow"}, "data": data})


def test_code_of_a_config_map_is_fixed_when_a_run_starts(space: Namespace) -> None:
    s3 = Shared(space)
    space.cluster("c", {"name": "cpu", "replicas": 1}, storage=s3.storage("c"))
    spec = pipeline({"configMap": "flow"}, cluster={"ref": "c"})
    start(space, "one", pipelineSpec=spec)
    until("it waits", lambda: succeeded(space, "one").get("reason") == "ConfigMapNotFound")
    assert 'ConfigMap "flow" does not exist' in succeeded(space, "one")["message"]
    config_map(space, 1)
    until("it is written down", lambda: status(space, "one").get("revision"))
    config_map(space, 2)
    start(space, "two", pipelineSpec=spec)
    assert wait_end(space, "one")["results"] == {"version": 1}
    assert wait_end(space, "two")["results"] == {"version": 2}


def tar_gz(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


def test_code_of_an_archive_is_fetched_by_the_runs_own_pods(space: Namespace) -> None:
    s3 = Shared(space)
    space.cluster("c", {"name": "cpu", "replicas": 1}, storage=s3.storage("c"))

    def begin(name: str, **code: str) -> None:
        start(space, name, pipelineSpec=pipeline(code, cluster={"ref": "c"}))

    begin("later", url=s3.url("code/later.tar.gz"))
    until("it is told", lambda: succeeded(space, "later").get("reason") == "CodeNotFound")
    assert s3.url("code/later.tar.gz") in succeeded(space, "later")["message"]
    s3.put("code/later.tar.gz", tar_gz({"flow.py": FLOW.format(version=1)}))

    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("flow.py", FLOW.format(version=2))
    s3.put("code/flow.zip", zipped.getvalue())
    digest = hashlib.sha256(zipped.getvalue()).hexdigest()
    url = s3.url("code/flow.zip")
    begin("zip", url=url, sha256=digest)
    begin("other", url=url, sha256="0" * 64)
    s3.put("code/evil.tar.gz", tar_gz({"flow.py": "", "../../etc/x.py": ""}))
    begin("evil", url=s3.url("code/evil.tar.gz"))

    wait_end(space, "other", "CodeMismatch")
    assert digest in succeeded(space, "other")["message"]
    wait_end(space, "evil", "BadCode")
    assert "../../etc/x.py" in succeeded(space, "evil")["message"]
    assert wait_end(space, "zip")["results"] == {"version": 2}
    assert wait_end(space, "later")["results"] == {"version": 1}
    uid = (space.find("pipelinerun", "zip") or {})["metadata"]["uid"]
    kept = s3.keys(f"c/runs/{uid}/code/")
    assert len(kept) == 2 and s3.read(f"c/runs/{uid}/code/pinned").decode() in "".join(kept)


class PodWatch:
    """Names of all pods that were ever there, by the API server's own word."""

    def __init__(self, space: Namespace, folder: Path) -> None:
        self._file = folder / "pods"
        words = ["kubectl", "-n", space.name, "get", "pods", "--watch", "--no-headers", "-o", "name"]
        with self._file.open("wb") as out:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out)

    def names(self) -> set[str]:
        return {line.removeprefix("pod/") for line in self._file.read_text().split()}

    def workers(self, run: str) -> set[str]:
        return {name for name in self.names() if name.startswith(f"{run}-cpu-")}

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def test_a_run_that_has_nothing_to_do_starts_no_worker(space: Namespace, tmp_path: Path) -> None:
    s3 = Shared(space)
    ledger = Ledger(s3, "plan")
    where = template(s3, "plan", {"name": "cpu", "replicas": 1})
    spec = {**ledger_pipeline(ledger, 3, 0.1, **where), "triggers": {"onChange": False}}
    kind = {"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": "p"}}
    space.apply({**kind, "spec": spec})
    watch = PodWatch(space, tmp_path)
    try:
        start(space, "first", pipelineRef="p")
        assert wait_end(space, "first")["results"] == {"sum": 3}
        assert len(watch.workers("first")) == 1
        start(space, "second", pipelineRef="p", reuse={"mode": "Missing"})
        told = wait_end(space, "second")
        assert told["results"] == {"sum": 3}
        assert (told["steps"]["cached"], told["steps"]["total"]) == (4, 4)
        until("the watch saw it", lambda: any(name.startswith("second-scheduler-") for name in watch.names()))
        assert not watch.workers("second"), watch.names()
        assert ledger.executions() == {**{f"slow/{i}": 1 for i in range(3)}, "add/0": 1}

        # What the image lacks is told before there is a worker as well.
        lacks = {**spec, "requirements": ["dask", "no-such-package>=1", "msgpack<0.1"], "triggers": None}
        start(space, "third", pipelineSpec={key: value for key, value in lacks.items() if value})
        wait_end(space, "third", "RequirementsMissing")
        message = succeeded(space, "third")["message"]
        for words in (
            "no-such-package (wanted: no-such-package>=1)",
            "msgpack (wanted: msgpack<0.1; there is ",
            "install them in the image",
        ):
            assert words in message, message
        until("the watch saw it", lambda: any(name.startswith("third-scheduler-") for name in watch.names()))
        assert not watch.workers("third")
    finally:
        watch.stop()
