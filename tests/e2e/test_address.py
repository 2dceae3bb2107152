"""Clusters that daskade did not start: plain and TLS, the oldest and the newest supported release."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.certificates import Certificates, certificates
from support.cli import Cli
from support.dask.plain import Plain, plain


def pythons() -> dict[str, str]:
    """The environments to start clusters from."""
    found = {"newest": sys.executable}
    if oldest := os.environ.get("DASKADE_TEST_OLDEST"):
        found["oldest"] = oldest
    return found


@pytest.fixture(params=[(age, tls) for age in ("newest", "oldest") for tls in (False, True)], ids=str)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plain]:
    """A cluster of two workers; those with TLS are under nannies."""
    age, tls = request.param
    python = pythons().get(age)
    if python is None:
        pytest.fail("DASKADE_TEST_OLDEST must name a Python with the oldest supported release of distributed")
    folder = tmp_path / "cluster"
    folder.mkdir()
    own = {"DASK_DISTRIBUTED__DASHBOARD__LINK": "", "HOME": str(folder)}
    with plain(folder, 2, tls=certificates(folder) if tls else None, python=python, env=own, nanny=tls) as made:
        yield made


def options(tls: Certificates | None) -> list[str | Path]:
    """Words of the command for a cluster with these certificates."""
    return ["--tls-ca", tls.ca, "--tls-cert", tls.cert, "--tls-key", tls.key] if tls else []


def test_a_run_uses_a_cluster_that_others_started_twice_and_leaves_it_be(
    cli: Cli, examples: Path, cluster: Plain
) -> None:
    words = ("run", examples / "diamond.yaml", "--address", cluster.address, *options(cluster.tls), "-o", "json")
    for n in (20, 30):
        done = cli(*words, "--storage", f"file://{cli.storage}", "--param", f"n={n}")
        assert done.code == 0, f"{done}\n{cluster.logs()}"
        assert done.json["results"] == {"total": n * (n - 1)}
    assert all(process.poll() is None for process in cluster.processes)
    assert cli.left() == []


def test_a_failure_there_is_told_as_here(cli: Cli, cluster: Plain, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "apiVersion: daskade.dev/v1alpha1\nkind: Pipeline\nmetadata: {name: bad}\nspec:\n"
        "  code: {files: {flow.py: \"def f(i):\\n    print('seen', i)\\n    return 1 / i\\n\"}}\n"
        "  steps: [{name: f, call: 'flow:f', map: {i: [1, 0]}}]\n"
    )
    words = ("run", path, "--address", cluster.address, *options(cluster.tls), "--storage", f"file://{cli.storage}")
    done = cli(*words)
    assert done.code == 1, f"{done}\n{cluster.logs()}"
    assert all(word in done.out + done.err for word in ("ZeroDivisionError", "seen 0", "other-worker")), str(done)


def test_an_address_where_nobody_listens_is_told(cli: Cli, examples: Path) -> None:
    done = cli("run", examples / "diamond.yaml", "--address", "tcp://127.0.0.1:9", timeout=60)
    assert done.code == 3 and "127.0.0.1:9" in done.err, done


def test_certificates_of_another_authority_are_told(cli: Cli, examples: Path, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "client").mkdir()
    other = certificates(tmp_path / "client")
    with plain(tmp_path / "server", 0, tls=certificates(tmp_path / "server")) as made:
        done = cli("run", examples / "diamond.yaml", "--address", made.address, *options(other), timeout=60)
        assert done.code == 3, done
        assert re.search(r"certificate|TLS", done.err), done
