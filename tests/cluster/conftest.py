"""The operator on a real Kubernetes cluster: ``KUBECONFIG`` names it, ``DASKADE_BIN`` the binary."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kube import Namespace, Operator, kubectl

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    kubectl("apply", "--server-side", "-f", str(TOP / "crds"))
    kubectl("wait", "--for=condition=Established", "crd/daskclusters.daskade.dev", "--timeout=60s")
    kubectl("create", "namespace", "daskade-system", check=False)
    binary = Path(os.environ["DASKADE_BIN"])
    running = Operator(binary, tmp_path_factory.mktemp("operator"), "--certificate-lifetime", "2h")
    yield running
    if running.process is not None and running.process.poll() is None:
        running.stop(signal.SIGTERM)


@pytest.fixture
def space(operator: Operator, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace for one test; deleted when it passes, shown when it fails."""
    namespace = Namespace(f"t-{os.urandom(3).hex()}")
    yield namespace
    report: Any = getattr(request.node, "report", None)
    if report is not None and report.failed:
        print(namespace.show())
        print(operator.log.read_text()[-6000:])
    kubectl("delete", "namespace", namespace.name, "--wait=false")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call":
        item.report = report  # type: ignore[attr-defined]
