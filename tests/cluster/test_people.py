"""What people see of a run in Kubernetes by the command, with a kubeconfig and rights of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.runs import start, status, template, wait_end, wait_gone
from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.operator import Operator
from support.kube.s3 import Shared
from support.kube.settings import Object
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="pods' addresses are not reachable from here"
)
CODE = """
import time

def talk(i, lines):
    for n in range(lines):
        print("item", i, "line", n, flush=True)
        time.sleep(0.5)
"""


def talking(lines: int, **where: object) -> Object:
    steps = [
        {"name": "quiet", "call": "m:talk", "args": {"i": 9, "lines": 0}},
        {"name": "talk", "call": "m:talk", "map": {"i": "$(range(2))"}, "args": {"lines": lines}},
    ]
    return {"code": {"files": {"m.py": CODE}}, "steps": steps, **where}


class Person:
    """Somebody with a kubeconfig: may look at runs and pods, forward ports, and read the one Secret of the cluster."""

    def __init__(self, space: Namespace, folder: Path, binary: Path, secret: str) -> None:
        self.space, self.folder, self.binary = space, folder, binary
        rules = [
            {"apiGroups": ["daskade.dev"], "resources": ["pipelineruns"], "verbs": ["get", "list", "patch"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["controllerrevisions"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret], "verbs": ["get"]},
        ]
        meta, api = {"name": "person"}, "rbac.authorization.k8s.io/v1"
        subject = {"kind": "ServiceAccount", "name": "person", "namespace": space.name}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "person"}
        self.role: Object = {"apiVersion": api, "kind": "Role", "metadata": meta, "rules": rules}
        space.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
            self.role,
            {"apiVersion": api, "kind": "RoleBinding", "metadata": meta, "roleRef": role, "subjects": [subject]},
        )
        config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        token = kubectl("-n", space.name, "create", "token", "person").strip()
        config["users"] = [{"name": "person", "user": {"token": token}}]
        config["contexts"][0]["context"].update(user="person", namespace=space.name)
        (folder / "kubeconfig").write_text(json.dumps(config))

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Without credentials for the storage unless they are given."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        own = {"KUBECONFIG": str(self.folder / "kubeconfig"), "HOME": str(self.folder)}
        return subprocess.Popen(
            [str(self.binary), *words],
            env={**kept, **own, "AWS_EC2_METADATA_DISABLED": "true", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self, *words: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


def test_logs_come_live_through_the_scheduler_and_later_from_the_storage(
    space: Namespace, operator: Operator, tmp_path: Path
) -> None:
    s3 = Shared(space)
    person = Person(space, tmp_path, operator.binary, "l-client-tls")
    # Both items at once: on two workers the first to come could run them one after the other.
    start(space, "l", pipelineSpec=talking(24, **template(s3, "l", {"name": "cpu", "replicas": 1, "threads": 2})))
    expected = sorted(f"[talk[{i}]] item {i} line {n}" for i in range(2) for n in range(24))

    until("both talk", lambda: (status(space, "l").get("steps") or {}).get("running", 0) >= 2)
    # By the scheduler's rights on the storage: this person has none there.
    until("lines are stored", lambda: len(person.says("logs", "--kube", "l")[1].splitlines()) >= 2, 30)
    follow = person.start("logs", "--kube", "l", "talk", "-f")
    with ended(follow):
        assert follow.stdout is not None
        first = follow.stdout.readline().strip()
        assert first in expected
        one = person.says("logs", "--kube", "l", "talk", "--item", "1")[1].splitlines()
        assert one and all(line.startswith("[talk[1]] item 1") for line in one), one
        code, _, err = person.says("logs", "--kube", "l", "tolk")
        assert (code, "did you mean talk?" in err) == (2, True), err
        assert follow.stderr is not None
        out, err = follow.stdout.read(), follow.stderr.read()
        assert follow.wait(20) == 0, err
    seen = [first, *out.splitlines()]
    assert sorted(seen) == expected, (sorted(set(expected) - set(seen)), seen, err)

    wait_end(space, "l")
    wait_gone(space, "daskcluster", "l")
    code, out, err = person.says("logs", "--kube", "l", **s3.environ())
    assert (code, sorted(out.splitlines())) == (0, expected), err
    code, _, err = person.says("logs", "--kube", "l")
    assert code == 3 and "AccessDenied" in err and "your own credentials" in err, err


def test_lines_are_shown_as_they_are_printed(space: Namespace, operator: Operator, tmp_path: Path) -> None:
    """Faster than they reach the storage, which takes two seconds."""
    s3 = Shared(space)
    person = Person(space, tmp_path, operator.binary, "q-client-tls")
    code = "import time\n\ndef f():\n    for _ in range(30):\n        print(time.time(), flush=True)\n        time.sleep(0.4)\n"
    steps = [{"name": "clock", "call": "m:f"}]
    where = template(s3, "q", {"name": "cpu", "replicas": 1})
    start(space, "q", pipelineSpec={"code": {"files": {"m.py": code}}, "steps": steps, **where})
    follow = person.start("logs", "--kube", "q", "-f")
    with ended(follow):
        assert follow.stdout is not None
        late = []
        for line in follow.stdout:
            late.append(time.time() - float(line.split()[1]))
        assert follow.stderr is not None
        assert len(late) == 30, (late, follow.stderr.read())
    typical = sorted(late[10:])[10]
    print(f"\n  a line is shown after {typical * 1000:.0f} ms")
    assert typical < 1.0, late


def test_a_person_without_the_rights_is_told_which(space: Namespace, operator: Operator, tmp_path: Path) -> None:
    space.cluster("r", {"name": "a", "replicas": 1})
    person = Person(space, tmp_path, operator.binary, "r-client-tls")
    space.wait_ready("r")
    rules = [rule for rule in person.role["rules"] if rule["resources"] != ["pods/portforward"]]
    space.apply({**person.role, "rules": rules})
    until("it is refused", lambda: person.says("dashboard", "r", "-n", space.name)[0] == 3, 20)
    err = person.says("dashboard", "r", "-n", space.name)[2]
    assert "pods/portforward" in err, err
    code, _, err = person.says("dashboard", "nothing", "-n", space.name)
    assert (code, "no scheduler that runs" in err) == (2, True), err


def test_the_dashboard_is_there_until_the_command_ends(space: Namespace, operator: Operator, tmp_path: Path) -> None:
    space.cluster("d", {"name": "a", "replicas": 1})
    person = Person(space, tmp_path, operator.binary, "d-client-tls")
    space.wait_ready("d")
    shown = person.start("dashboard", "d")
    with ended(shown):
        assert shown.stdout is not None
        url = shown.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), url
        with urllib.request.urlopen(url.replace("/status", "/health"), timeout=20) as answer:
            assert answer.read() == b"ok"
        shown.send_signal(signal.SIGINT)
        assert shown.wait(10) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=5)


def test_a_suspended_run_is_resumed_and_an_ended_one_is_not(space: Namespace, operator: Operator, tmp_path: Path) -> None:
    s3 = Shared(space)
    person = Person(space, tmp_path, operator.binary, "s-client-tls")
    start(space, "s", pipelineSpec=talking(1, **template(s3, "s")), suspend=True)
    until("it is suspended", lambda: status(space, "s").get("state") == "Suspended", 30)
    # Ctrl-C ends who follows it, not the run.
    shown = person.start("status", "--watch", "s")
    with ended(shown):
        assert shown.stderr is not None
        assert shown.stderr.readline().startswith("s: Suspended")
        shown.send_signal(signal.SIGINT)
        assert shown.wait(10) == 130
        told = shown.stderr.read()
        assert "ends the command, not the run" in told and f"daskade cancel s -n {space.name}" in told, told
    code, out, err = person.says("resume", "--kube", "s")
    assert (code, out) == (0, "s resumed\n"), err
    wait_end(space, "s")
    code, _, err = person.says("resume", "--kube", "s")
    assert (code, "daskade retry" in err) == (2, True), err
