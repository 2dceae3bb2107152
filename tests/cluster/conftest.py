"""The operator on a real Kubernetes cluster: ``KUBECONFIG`` names it, ``DASKADE_BIN`` the binary.

The operator runs as a process of this machine, with the rights that ``deploy/operator.yaml`` grants and no
others, and serves only the namespaces of this run: several runs can share a cluster.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.kube.client import close_clients
from support.kube.namespace import Namespace
from support.kube.operator import Operator, install, uninstall
from support.kube.s3 import close_shared
from support.kube.settings import RUN


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Definitions, rights and the operator's own namespace; the kubeconfig of the operator's account."""
    yield install(tmp_path_factory.mktemp("account"))
    uninstall()
    close_shared()
    close_clients()


@pytest.fixture(scope="session")
def operator(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    binary = Path(os.environ["DASKADE_BIN"])
    running = Operator(binary, tmp_path_factory.mktemp("operator"), installed, "--certificate-lifetime", "2h")
    yield running
    if running.process is not None and running.process.poll() is None:
        running.stop(signal.SIGTERM)


@pytest.fixture
def space(operator: Operator, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace for one test; deleted when it passes, shown when it fails."""
    if operator.process is None or operator.process.poll() is not None:
        operator.start()
    namespace = Namespace(f"t-{RUN}-{os.urandom(2).hex()}")
    yield namespace
    report: Any = getattr(request.node, "report", None)
    if report is not None and report.failed:
        print(namespace.show())
        print(operator.log.read_text()[-6000:])
    namespace.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call":
        item.report = report  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def shared(operator: Operator) -> Iterator[Namespace]:
    """A namespace with the cluster ``c`` of two workers, for tests that leave it as they found it."""
    namespace = Namespace(f"t-{RUN}-shared-{os.urandom(2).hex()}")
    namespace.cluster("c", {"name": "a", "replicas": 2})
    namespace.wait_ready("c")
    yield namespace
    namespace.close()


# What takes longest begins first: what is begun last should be short.
LONG = [
    "test_rotation", "test_tenants", "test_retention", "test_survival", "test_chart", "test_level", "test_granted",
    "test_policies", "test_scaling", "test_pipelinerun", "test_operator", "test_examples", "test_storage",
]  # fmt: skip


# Before xdist, which looks for groups as it finds them.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: each test goes where there is time, and those that share something of their module together."""
    for item in items:
        defined: Any = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
        module = item.path.stem
        if any(each.scope == "module" and each.argname != "charts" for each in (found[-1] for found in defined.values())):
            item.add_marker(pytest.mark.xdist_group(module))
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
