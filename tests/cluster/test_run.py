"""A pipeline on a DaskCluster, with its intermediates on an S3 server in a pod: what a step sees of its worker.

The command runs on this machine, which must reach the addresses of pods: so it does on the cluster of these tests.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.kube.namespace import Namespace
from support.kube.s3 import Folder, Shared
from support.kube.settings import Object

PIPELINE = """
apiVersion: daskade.dev/v1alpha1
kind: Pipeline
metadata: {name: devices}
spec:
  code:
    files:
      look.py: |
        import os
        import socket
        import time

        def look(i):
            time.sleep(0.5)
            return [socket.gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES")]
  steps:
  - {name: plain, call: "look:look", map: {i: $(range(4))}}
  - {name: one, call: "look:look", map: {i: $(range(6))}, resources: {GPU: 1}}
  - {name: both, call: "look:look", args: {i: 0}, resources: {GPU: 2}}
"""


def run(space: Namespace, cluster: str, s3: Folder, folder: Path, manifest: str) -> Object:
    """Runs a pipeline on a cluster with the certificate that the operator issued; the command's JSON."""
    file = folder / "pipeline.yaml"
    file.write_text(manifest)
    files = space.certificates(f"{cluster}-client-tls", folder / "tls")
    words = [os.environ["DASKADE_BIN"], "run", str(file), "--address", f"tls://{space.scheduler_ip(cluster)}:8786"]
    for option, name in (("--tls-ca", "ca.crt"), ("--tls-cert", "tls.crt"), ("--tls-key", "tls.key")):
        words += [option, str(files / name)]
    words += ["--storage", s3.url(cluster), "-o", "json"]
    environment = {**os.environ, **s3.environ(), "HOME": str(folder)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="pods' addresses are not reachable from here")
def test_steps_see_the_devices_that_they_asked_for_and_no_other(space: Namespace, tmp_path: Path) -> None:
    s3 = Shared(space)
    devices = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "GPU-a,GPU-b"}]
    gpu = {"name": "gpu", "replicas": 1, "threads": 2, "env": devices, "gpu": {"count": 2}}
    space.cluster("d", {"name": "cpu", "replicas": 1}, gpu, storage=s3.storage("d"))
    space.wait_ready("d")
    (cpu_pod,), (gpu_pod,) = space.workers("d", "cpu"), space.workers("d", "gpu")
    results = run(space, "d", s3, tmp_path, PIPELINE)["results"]
    # A step that asks for no GPU keeps off the workers that have one, and sees none.
    assert {tuple(seen) for seen in results["plain"]} == {(cpu_pod, "")}
    assert {host for host, _ in results["one"]} == {gpu_pod}
    assert {seen for _, seen in results["one"]} == {"GPU-a", "GPU-b"}
    assert results["both"] == [gpu_pod, "GPU-a,GPU-b"]


@pytest.mark.skipif(not os.environ.get("DASKADE_TEST_OWN_CLUSTER"), reason="pods' addresses are not reachable from here")
def test_the_demand_of_a_run_starts_workers_from_zero(space: Namespace, tmp_path: Path) -> None:
    """The runtime tells the operator what a run's steps ask for; the GPU group has nobody until then."""
    s3 = Shared(space)
    elastic = {"name": "cpu", "autoscale": {"min": 0, "max": 2}}
    gpu = {"name": "gpu", "autoscale": {"min": 0, "max": 1}, "gpu": {"count": 2}, "threads": 2}
    space.cluster("z", elastic, gpu, storage=s3.storage("z"))
    space.wait_ready("z")
    assert not space.workers("z")
    results = run(space, "z", s3, tmp_path, PIPELINE)["results"]
    assert {host.rsplit("-", 2)[0] for host, _ in results["plain"]} == {"z-cpu"}
    assert {host.rsplit("-", 2)[0] for host, _ in results["one"]} == {"z-gpu"}
