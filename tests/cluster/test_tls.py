"""Mutual TLS with an authority of each cluster's own."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest

from cluster.certificates import make
from support.kube.api import kubectl
from support.kube.client import Client, ask
from support.kube.namespace import Namespace
from support.kube.settings import SYSTEM
from support.waiting import until

ONE = {"name": "a", "replicas": 1}
DIRECT = "say(client.submit(sum, [1, 2]).result(60))"


def test_a_certificate_of_another_cluster_is_refused_and_so_is_plaintext(space: Namespace) -> None:
    space.cluster("a", ONE)
    space.cluster("b", ONE)
    space.wait_ready("a")
    space.wait_ready("b")
    assert ask(space, "a", DIRECT) == "3"
    # The positive control stands above; the same client with b's certificate, and with none, gets nowhere.
    stranger = Client(space, "a", DIRECT, secret="b-client-tls", patience=20)
    plain = Client(space, "a", DIRECT, tls=False, patience=20)
    said = stranger.failure()
    assert "CERTIFICATE_VERIFY_FAILED" in said or "Timed out" in said or "OSError" in said, said
    said = plain.failure()
    assert "OSError" in said or "Timed out" in said or "ConnectionResetError" in said, said
    # Nor does TLS without a certificate of one's own help, though the server is trusted.
    code = """
import socket, ssl
context = ssl.create_default_context(cafile=f"{folder}/ca.crt")
context.check_hostname = False
host = os.environ["DASK_SCHEDULER_ADDRESS"].split("//")[1].split(":")[0]
with context.wrap_socket(socket.create_connection((host, 8786))) as raw:
    try: say("got", raw.recv(8))
    except ssl.SSLError as error: say("refused", error.reason)
"""
    assert "refused" in ask(space, "a", code)


def test_keys_of_authorities_stay_with_the_operator(space: Namespace) -> None:
    space.cluster("k", ONE)
    space.wait_ready("k")
    uid = (space.find("dsk", "k") or {})["metadata"]["uid"]
    for secret in space.list("secrets"):
        assert set(secret["data"]) == {"ca.crt", "tls.crt", "tls.key"}, secret["metadata"]["name"]
    authority = json.loads(kubectl("-n", SYSTEM, "get", "secret", f"daskade-ca-{uid}", "-o", "json"))
    assert "ca.key" in authority["data"]
    key = base64.b64decode((space.find("secret", "k-tls") or {})["data"]["tls.key"])
    shown = subprocess.run(["openssl", "pkey", "-noout", "-text"], input=key, capture_output=True, check=True).stdout
    assert b"prime256v1" in shown
    status = space.status("k")["tls"]
    assert status["expires"] and len(status["caFingerprint"]) == 64


def test_certificates_of_ones_own(space: Namespace, tmp_path: Path) -> None:
    space.cluster("own", ONE, tls={"mode": "Secret", "secretRef": "mine"})
    message = space.wait_reason("own", "SecretNotFound")
    assert "mine" in message and "tls.key" in message
    make(tmp_path, "authority")
    kubectl("-n", space.name, "create", "secret", "generic", "mine", f"--from-file=ca.crt={tmp_path}/ca.crt")
    until("it says what is missing", lambda: "lacks tls.crt, tls.key" in space.condition("own").get("message", ""), 60)
    files = [f"--from-file={name}={tmp_path}/{name}" for name in ("ca.crt", "tls.crt", "tls.key")]
    space.delete("secret", "mine")
    kubectl("-n", space.name, "create", "secret", "generic", "mine", *files)
    assert "X.509 version 3" in space.wait_reason("own", "InvalidCertificates")
    make(tmp_path, "authority", version=3)
    space.delete("secret", "mine")
    kubectl("-n", space.name, "create", "secret", "generic", "mine", *files)
    space.wait_ready("own")
    assert ask(space, "own", DIRECT, secret="mine") == "3"
    assert space.find("secret", "own-tls") is None


def test_without_tls_if_so_declared(space: Namespace) -> None:
    space.cluster("open", ONE, tls={"mode": "Disabled"})
    space.wait_ready("open")
    assert ask(space, "open", DIRECT, tls=False) == "3"
    assert not space.list("secrets")


def test_tls_changes_only_when_nobody_is_there_who_has_it_otherwise(space: Namespace) -> None:
    space.cluster("t", ONE)
    space.wait_ready("t")
    change = {"spec": {"tls": {"mode": "Disabled"}}}
    with pytest.raises(AssertionError, match="suspend the cluster before"):
        space.patch("dsk", "t", change)
    # What is the default may be written down.
    space.patch("dsk", "t", {"spec": {"tls": {"mode": "Auto"}}})
    space.patch("dsk", "t", {"spec": {"suspend": True}})
    until("its pods are gone", lambda: not space.pods("t"), 90)
    space.patch("dsk", "t", change)
    space.patch("dsk", "t", {"spec": {"suspend": False}})
    space.wait_ready("t")
    assert ask(space, "t", DIRECT, tls=False) == "3"
    # And back at once, whatever runs.
    space.patch("dsk", "t", {"spec": {"tls": {"mode": "Auto"}, "scheduler": {"rollout": "Immediately"}}})
    until("it has a certificate", lambda: space.status("t").get("address", "").startswith("tls://"), 60)
    space.wait_ready("t")
    assert ask(space, "t", DIRECT) == "3"


def test_a_scheduler_refuses_an_operator_that_leads_no_more(space: Namespace) -> None:
    space.cluster("old", ONE)
    space.wait_ready("old")
    code = """
async def old():
    from distributed.core import rpc
    async with client.rpc(client.scheduler.address) as scheduler:
        ask = getattr(scheduler, "daskade-cluster")
        say((await ask(lead=1, since=0, wait=0))["reason"])
        say((await getattr(scheduler, "daskade-drain")(lead=1, names=[]))["reason"])
        say((await ask(lead=1 << 40, since=0, wait=0))["status"])
client.sync(old)
"""
    assert ask(space, "old", code).split() == ["StaleLeader", "StaleLeader", "OK"]
