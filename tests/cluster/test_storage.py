"""Where runs keep what they make: a mounted volume, and S3 with keys that are wrong or change."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from evidence import Case
from s3 import KEY, S3
from test_pipelinerun import start, status, succeeded, template, wait_end, wait_progress

from kube import IMAGE, SMALL, Namespace, Object, kubectl, until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="its node, and the addresses of its pods, are this machine's"
)


@pytest.fixture
def folder(space: Namespace) -> Iterator[Path]:
    """A folder of the node, which the claim ``data`` of the namespace stands for."""
    path = Path(tempfile.mkdtemp(prefix="daskade-volume-"))
    path.chmod(0o777)
    size = {"storage": "1Gi"}
    modes = ["ReadWriteMany"]
    of = {"namespace": space.name, "name": "data"}
    volume = {"capacity": size, "accessModes": modes, "hostPath": {"path": str(path)}, "claimRef": of}
    volume |= {"storageClassName": "", "persistentVolumeReclaimPolicy": "Retain"}
    claim = {"accessModes": modes, "storageClassName": "", "volumeName": space.name, "resources": {"requests": size}}
    space.apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": space.name}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim},
    )
    yield path
    kubectl("delete", "persistentvolume", space.name, "--wait=false")
    shutil.rmtree(path, ignore_errors=True)


# Too large for the journal: outputs become files of the volume.
CODE = """
def make(i):
    return bytes(100_000 + i)

def add(values):
    return sum(len(value) for value in values)
"""


def on_volume(*volumes: Object) -> Object:
    workers = [{"name": "cpu", "autoscale": {"max": 2}, "resources": SMALL, "volumes": list(volumes)}]
    cluster = {"image": IMAGE, "scheduler": {"resources": SMALL, "volumes": list(volumes)}, "workers": workers}
    steps = [
        {"name": "make", "call": "flow:make", "map": {"i": "$(range(6))"}},
        {"name": "add", "call": "flow:add", "args": ["$(steps.make.output)"]},
    ]
    results = [{"name": "sum", "value": "$(steps.add.output)"}]
    where = {"cluster": {"template": cluster}, "storage": {"url": "file:///data/runs"}}
    return {"code": {"files": {"flow.py": CODE}}, "steps": steps, "results": results, **where}


def test_a_folder_on_a_claim_is_a_storage_and_elsewhere_it_is_refused(space: Namespace, folder: Path) -> None:
    volume = {"name": "data", "mountPath": "/data", "persistentVolumeClaim": "data"}
    start(space, "r", pipelineSpec=on_volume(volume))
    start(space, "wrong", pipelineSpec=on_volume({**volume, "mountPath": "/elsewhere"}))
    wait_end(space, "wrong", "Invalid")
    message = succeeded(space, "wrong")["message"]
    for words in ("spec.pipelineSpec.storage.url", "lies on no volume of the scheduler, group cpu", "persistentVolumeClaim"):
        assert words in message, message
    told = wait_end(space, "r")
    assert told["results"] == {"sum": 600_015}
    uid = (space.find("pipelinerun", "r") or {})["metadata"]["uid"]
    assert told["storageUrl"] == f"file:///data/runs/runs/{uid}"
    run = folder / "runs" / "runs" / uid
    assert list((run / "journal").glob("*.seg"))
    assert len([file for file in (run / "data").rglob("*") if file.is_file()]) == 6


def poke(space: Namespace) -> None:
    """Kubelets look at a mounted Secret within a minute and a half; at once when something about the pod changes."""
    kubectl("-n", space.name, "annotate", "pods", "--all", "--overwrite", f"daskade.test/poke={os.urandom(2).hex()}")


def test_wrong_keys_are_told_and_a_corrected_secret_helps(space: Namespace) -> None:
    s3 = S3(space)
    s3.tell(KEY, "a mistake")
    case = Case(s3, "wrong", 2, 0.0)
    start(space, "r", pipelineSpec=case.pipeline(**template(s3, "wrong")))
    until("it is told", lambda: succeeded(space, "r").get("reason") == "AccessDenied")
    message = succeeded(space, "r")["message"]
    assert "Secret s3 (storage.secretRef)" in message and "a mistake" not in message, message
    conditions = {found["type"]: found["status"] for found in status(space, "r")["conditions"]}
    assert (conditions["Succeeded"], conditions["Stalled"]) == ("Unknown", "True")
    assert not space.workers("r"), "nothing is there for workers to do"
    s3.tell(s3.key, s3.secret)
    poke(space)
    wait_end(space, "r")
    uid = (space.find("pipelinerun", "r") or {})["metadata"]["uid"]
    assert not case.broken(uid, "Succeeded")


def test_a_run_goes_on_when_its_keys_are_replaced_while_it_runs(space: Namespace) -> None:
    s3 = S3(space)
    case = Case(s3, "keys", 8, 2.0)
    start(space, "r", pipelineSpec=case.pipeline(**template(s3, "keys")))
    wait_progress(space, "r", 2)
    scheduler = space.pods("r", "scheduler")[0]["metadata"]["uid"]
    s3.rotate()
    until("it is told", lambda: succeeded(space, "r").get("reason") == "AccessDenied")
    assert "Secret s3" in succeeded(space, "r")["message"]
    s3.tell(s3.key, s3.secret)
    poke(space)
    until("it goes on", lambda: succeeded(space, "r").get("reason") in ("Running", "Succeeded"))
    assert space.pods("r", "scheduler")[0]["metadata"]["uid"] == scheduler, "no pod had to be replaced"
    wait_end(space, "r")
    uid = (space.find("pipelinerun", "r") or {})["metadata"]["uid"]
    assert not case.broken(uid, "Succeeded"), case.show()
