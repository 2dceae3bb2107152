"""Certificates that are renewed while work goes on."""

from __future__ import annotations

from support.kube.client import ClientPod, ask
from support.kube.namespace import Namespace
from support.kube.operator import Operator


def test_certificates_rotate_while_work_goes_on(space: Namespace, operator: Operator) -> None:
    """Two-minute certificates, work for three of them: every task runs once and no connection is lost."""
    operator.stop()
    operator.start("--certificate-lifetime", "2m")
    try:
        space.cluster("r", {"name": "a", "replicas": 2})
        space.wait_ready("r")
        pods = {pod["metadata"]["uid"] for pod in space.pods("r")}
        first = space.status("r")["tls"]["expires"]
        code = """
end = time.monotonic() + 200
tasks = []
while time.monotonic() < end:
    tasks.append(client.submit(once, 3, len(tasks), pure=False))
    tasks.append(client.submit(once, 3, len(tasks), pure=False))
    assert [t.result(60) for t in tasks[-2:]] == list(range(len(tasks) - 2, len(tasks)))
say("tasks", len(tasks), "begun", len(marks("begun")), "ended", len(marks("ended")))
"""
        pod = ClientPod(space, "r", code)
        words = pod.output(480).split()
        assert words[1] == words[3] == words[5] and int(words[1]) > 40, words
        status = space.status("r")["tls"]
        assert status["expires"] > first
        assert ask(space, "r", 'say(client.submit(sum, [1, 2]).result(60))') == "3"
        assert {pod["metadata"]["uid"] for pod in space.pods("r")} == pods
    finally:
        operator.stop()
        operator.start()
