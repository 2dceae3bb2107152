"""What tests share that leave it as they found it: an S3 server and clusters, started once for each process of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.dask import local, workers
from support.s3.server import S3Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(scope="session")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.Cluster]:
    """A scheduler with the runtime, and two workers."""
    with local.cluster(tmp_path_factory.mktemp("dask")) as made:
        yield made


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[workers.Cluster]:
    """Two workers with the runtime, and what they ask of the scheduler side."""
    made = workers.Cluster(tmp_path_factory.mktemp("cluster"), workers=2)
    yield made
    made.close()
