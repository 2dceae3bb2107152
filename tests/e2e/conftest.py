"""Fixtures: the built command, homes of their own, S3 and clusters that daskade did not start."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from e2e.places import Bucket, Folder, Place
from support import TOP, processes
from support.cli import Cli
from support.dask.plain import Plain, plain
from support.s3.server import S3Server


@pytest.fixture(scope="session")
def binary() -> Path:
    """The command under test."""
    named = os.environ.get("DASKADE_BIN")
    found = [Path(named)] if named else [TOP / "target" / kind / "daskade" for kind in ("release", "debug")]
    for path in found:
        if path.exists():
            return path.resolve()
    raise FileNotFoundError("build the command first (cargo build), or name it by DASKADE_BIN")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all tests may share: the unpacked runtime."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_cli(binary: Path, cache: Path, tmp_path: Path) -> Iterator[Cli]:
    """The command; a test that leaves processes behind has failed."""
    made = Cli(binary, tmp_path, cache, Path(sys.executable))
    yield made
    left = made.left()
    for pid in processes.marked(made.mark):
        processes.send(pid, signal.SIGKILL)
    assert left == []


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[Plain]:
    """A cluster for the runs of many tests, of one worker, which can reach the bucket."""
    keys = {name: value for name, value in s3.environ().items() if name != "AWS_ENDPOINT_URL"}
    with plain(tmp_path_factory.mktemp("cluster"), env=keys) as made:
        yield made


@pytest.fixture
def cli(own_cli: Cli) -> Cli:
    """The command as most tests want it; a module may have another one."""
    return own_cli


@pytest.fixture
def on_cluster(own_cli: Cli, cluster: Plain) -> Cli:
    """The command, for runs whose processes are of no interest: they use one that is there. Starting two interpreters with
    Dask is most of what a small run costs.
    """
    return replace(own_cli, address=cluster.address)


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Writes a manifest of one Pipeline: its code, its steps, and further fields of the spec."""

    def write(code: str, steps: list[dict[str, Any]], name: str = "flow", **spec: Any) -> Path:
        workers = [{"name": "cpu", "replicas": 1, "threads": 1}]
        body = {
            "code": {"files": {"flow.py": code}},
            "cluster": {"template": {"workers": workers}},
            "steps": steps,
            **spec,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            json.dumps(
                {"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": name}, "spec": body}
            )
        )
        return path

    return write


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def examples() -> Path:
    """The examples of the repository."""
    return TOP / "examples"


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, on_cluster: Cli, tmp_path: Path) -> Place:
    cli = on_cluster
    if request.param == "folder":
        return Place(cli, ["--storage", f"file://{cli.storage}"], {}, Folder(cli.storage))
    server: S3Server = request.getfixturevalue("s3")
    where = server.storage(f"objects/{tmp_path.name}")
    words = ["--storage", where["url"], "--storage-endpoint", where["endpoint"], "--storage-region", where["region"]]
    env = {name: value for name, value in server.environ().items() if name != "AWS_ENDPOINT_URL"}
    return Place(cli, words, env, Bucket(server.client(), where["url"]))
