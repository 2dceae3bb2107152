"""Pods that wait for quota, as Kueue holds them: a webhook of the test plays it, and puts the gate that Kueue puts on pods
with the label of a queue.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from cluster.runs import Ledger, ledger_pipeline, succeeded, template, wait_end
from support.kube.api import kubectl
from support.kube.namespace import Namespace
from support.kube.s3 import Shared
from support.kube.settings import RUN, Object
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="the API server does not reach this machine"
)
QUEUE = "kueue.x-k8s.io/queue-name"
GATE = {"name": "kueue.x-k8s.io/admission"}


class Gate(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        patch = json.dumps([{"op": "add", "path": "/spec/schedulingGates", "value": [GATE]}])
        answer = {
            "uid": review["request"]["uid"], "allowed": True, "patchType": "JSONPatch",
            "patch": base64.b64encode(patch.encode()).decode(),
        }
        body = json.dumps({**review, "request": None, "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gated(space: Namespace, tmp_path: Path) -> Iterator[Namespace]:
    """The namespace, in which pods of queues get the gate."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name = f"gate-{RUN}"
    hook: Object = {
        "name": "gate.daskade.dev", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
        "clientConfig": {
            "url": f"https://127.0.0.1:{server.server_address[1]}/",
            "caBundle": base64.b64encode(authority.cert_pem.bytes()).decode(),
        },
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space.name}},
        "objectSelector": {"matchExpressions": [{"key": QUEUE, "operator": "Exists"}]},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
    }
    config = {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": [hook],
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(config))
    yield space
    kubectl("delete", "mutatingwebhookconfiguration", name)
    server.shutdown()


def test_a_run_of_a_queue_waits_for_quota_and_says_so(gated: Namespace) -> None:
    s3 = Shared(gated)
    group = {"name": "cpu", "autoscale": {"min": 0, "max": 1}}
    spec = {"pipelineSpec": ledger_pipeline(Ledger(s3, "quota"), 1, 0.0, **template(s3, "q", group))}
    meta = {"name": "q", "labels": {QUEUE: "team-queue"}}
    run = {"apiVersion": "daskade.dev/v1alpha1", "kind": "PipelineRun", "metadata": meta, "spec": spec}
    gated.apply(run)
    for component in ("scheduler", "worker"):
        [pod] = until(f"its {component} is made", partial(gated.pods, "q", component), 60)
        assert pod["metadata"]["labels"][QUEUE] == "team-queue"

        def waits() -> str:
            told = succeeded(gated, "q")
            return str(told["message"]) if told.get("reason") == "Gated" else ""

        message = until("the run says why it waits", waits, 60)
        assert pod["metadata"]["name"] in message and "waits for quota of the queue team-queue" in message, message
        assert "\n" not in message
        # Kueue admits it.
        patch = json.dumps([{"op": "remove", "path": "/spec/schedulingGates"}])
        kubectl("-n", gated.name, "patch", "pod", pod["metadata"]["name"], "--type=json", "-p", patch)
    assert wait_end(gated, "q")["results"] == {"sum": 0}

