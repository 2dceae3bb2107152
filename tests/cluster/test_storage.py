"""Where runs keep what they make: a mounted volume, and S3 with keys that are wrong or change, or with a web identity."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from cluster.evidence import Case
from cluster.runs import start, status, succeeded, template, wait_end, wait_progress
from support.kube.api import Refused, kubectl
from support.kube.namespace import Namespace
from support.kube.s3 import KEY, S3, Folder, Shared
from support.kube.settings import IMAGE, SMALL, Object
from support.s3 import tokens
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="its node, and the addresses of its pods, are this machine's"
)


@pytest.fixture
def folder(space: Namespace) -> Iterator[Path]:
    """A folder of the node, which the claim ``data`` of the namespace stands for."""
    path = Path(tempfile.mkdtemp(prefix="daskade-volume-"))
    path.chmod(0o777)
    space.volume("data", path)
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


def on_volume(*volumes: Object, items: int = 6) -> Object:
    workers = [{"name": "cpu", "autoscale": {"max": 2}, "resources": SMALL, "volumes": list(volumes)}]
    cluster = {"image": IMAGE, "scheduler": {"resources": SMALL, "volumes": list(volumes)}, "workers": workers}
    steps = [
        {"name": "make", "call": "flow:make", "map": {"i": f"$(range({items}))"}},
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


def until_poked(space: Namespace, what: str, probe: Callable[[], bool]) -> None:
    """Kubelets look at a mounted Secret within a minute and a half; at once when something about the pod changes, though not
    always at the latest of the Secret.
    """

    poked = 0.0

    def there() -> bool:
        nonlocal poked
        if time.monotonic() > poked + 2:
            poked = time.monotonic()
            for pod in space.list("pods"):
                name, note = pod["metadata"]["name"], {"daskade.test/poke": os.urandom(2).hex()}
                with contextlib.suppress(Refused):
                    space.patch("pod", name, {"metadata": {"annotations": note}})
        return probe()

    until(what, there)


def test_wrong_keys_are_told_and_a_corrected_secret_helps(space: Namespace) -> None:
    s3 = Shared(space)
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
    until_poked(space, "the keys are taken", lambda: succeeded(space, "r").get("reason") != "AccessDenied")
    wait_end(space, "r")
    uid = (space.find("pipelinerun", "r") or {})["metadata"]["uid"]
    assert not case.broken(uid, "Succeeded")


SLOW = """
import time

def make(i):
    time.sleep(2)
    return bytes(100_000 + i)

def add(values):
    return sum(len(value) for value in values)
"""


def test_a_run_goes_on_when_its_keys_are_replaced_while_it_runs(space: Namespace) -> None:
    s3 = S3(space)
    spec = {**on_volume(items=12), "code": {"files": {"flow.py": SLOW}}, **template(s3, "keys")}
    start(space, "r", pipelineSpec=spec)
    wait_progress(space, "r", 2)
    scheduler = space.pods("r", "scheduler")[0]["metadata"]["uid"]
    s3.rotate()
    until("it is told", lambda: succeeded(space, "r").get("reason") == "AccessDenied")
    assert "Secret s3" in succeeded(space, "r")["message"]
    s3.tell(s3.key, s3.secret)
    until_poked(space, "it goes on", lambda: succeeded(space, "r").get("reason") in ("Running", "Succeeded"))
    assert space.pods("r", "scheduler")[0]["metadata"]["uid"] == scheduler, "no pod had to be replaced"
    assert wait_end(space, "r")["results"] == {"sum": 1_200_066}
    uid = (space.find("pipelinerun", "r") or {})["metadata"]["uid"]
    records = [record for segment in Case(s3, "keys", 0, 0.0).segments(uid) for record in segment.records]
    done = [tuple(record[1:4]) for record in records if record[0] == "committed"]
    assert sorted(done) == [*((0, i, 1) for i in range(12)), (1, -1, 1)], "each of them once, at its first attempt"


def start_sts(space: Namespace, s3: Folder) -> None:
    """Reached as ``https://sts.<namespace>:8443``; the ConfigMap ``ca`` has the authority of its certificate."""
    authority = trustme.CA()
    issued = authority.issue_cert(f"sts.{space.name}")
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems).decode()
    tls = {"tls.crt": chain, "tls.key": issued.private_key_pem.bytes().decode()}
    env = {"SUBJECT": f"system:serviceaccount:{space.name}:runner", "KEY": s3.key, "SECRET": s3.secret}
    container = {
        "name": "sts",
        "image": IMAGE,
        "command": ["python3", "-c", inspect.getsource(tokens)],
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
    }
    account = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    volumes = [{"name": "tls", "secret": {"secretName": "sts"}}]
    pod = {"containers": [container], "volumes": volumes, "securityContext": account, "terminationGracePeriodSeconds": 0}
    service = {"selector": {"app": "sts"}, "ports": [{"port": 8443}]}
    meta = {"name": "sts", "labels": {"app": "sts"}}
    ca = {"ca.pem": authority.cert_pem.bytes().decode()}
    space.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": tls},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": ca},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "runner"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod},
    )
    kubectl("-n", space.name, "wait", "--for=condition=Ready", "pod/sts", "--timeout=110s")


def test_pods_reach_the_storage_with_the_token_of_their_service_account(space: Namespace) -> None:
    s3 = Shared(space)
    start_sts(space, s3)
    variables = {
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/identity/token",
        "AWS_ROLE_ARN": tokens.ROLE,
        "AWS_ENDPOINT_URL_STS": f"https://sts.{space.name}:8443",
        "AWS_CA_BUNDLE": "/authority/ca.pem",
    }
    pods = {
        "resources": SMALL,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "volumes": [
            {"name": "identity", "mountPath": "/identity", "serviceAccountToken": {"audience": tokens.AUDIENCE}},
            {"name": "authority", "mountPath": "/authority", "configMap": "ca"},
        ],
    }
    case = Case(s3, "identity", 3, 0.0)
    where = template(s3, "identity", {"name": "cpu", "autoscale": {"max": 1}, **pods})
    where["cluster"]["template"]["scheduler"] = pods
    del where["storage"]["secretRef"]
    where["storage"]["serviceAccountName"] = "runner"
    start(space, "r", pipelineSpec=case.pipeline(**where))
    wait_end(space, "r")
    uid = (space.find("pipelinerun", "r") or {})["metadata"]["uid"]
    assert not case.broken(uid, "Succeeded")
    log = kubectl("-n", space.name, "logs", "sts")
    assert "token accepted" in log and "token refused" not in log, log
