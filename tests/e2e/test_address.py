"""Clusters that daskade did not start: plain and TLS, the oldest and the newest supported release."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from support.cli import Cli
from support.processes import alive


@dataclass
class Cluster:
    """Scheduler and workers that somebody else started."""

    address: str
    tls: list[str | Path]
    log: Path
    pids: list[int]


def certificates(folder: Path) -> dict[str, Path]:
    """A certificate authority, and one certificate for everybody."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    paths = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(paths["cert"], append=True)
    certificate.private_key_pem.write_to_path(paths["key"])
    return paths


def pythons() -> dict[str, str]:
    """The environments to start clusters from."""
    found = {"newest": sys.executable}
    if oldest := os.environ.get("DASKADE_TEST_OLDEST"):
        found["oldest"] = oldest
    return found


@pytest.fixture(params=[(age, tls) for age in ("newest", "oldest") for tls in (False, True)], ids=str)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of two workers."""
    age, tls = request.param
    python = pythons().get(age)
    if python is None:
        pytest.fail("DASKADE_TEST_OLDEST must name a Python with the oldest supported release of distributed")
    folder = tmp_path / "cluster"
    folder.mkdir()
    words: list[str | Path] = []
    options: list[str | Path] = []
    if tls:
        paths = certificates(folder)
        words = ["--tls-ca-file", paths["ca"], "--tls-cert", paths["cert"], "--tls-key", paths["key"]]
        options = ["--tls-ca", paths["ca"], "--tls-cert", paths["cert"], "--tls-key", paths["key"]]
    log = folder / "log"
    environment = {**os.environ, "DASK_DISTRIBUTED__DASHBOARD__LINK": "", "HOME": str(folder)}
    processes = []

    def start(module: str, *more: str | Path) -> None:
        with log.open("ab") as out:
            command = [python, "-m", f"distributed.cli.{module}", *words, *more]
            processes.append(
                subprocess.Popen(
                    list(map(str, command)), stdout=out, stderr=out, env=environment, cwd=folder, start_new_session=True
                )
            )

    protocol = "tls" if tls else "tcp"
    try:
        start("dask_scheduler", "--protocol", protocol, "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        address = waited(log, rf"Scheduler at:\s+({protocol}://127\.0\.0\.1:\d+)")
        for at in range(2):
            start("dask_worker", address, "--nthreads", "1", "--no-dashboard", "--name", f"other-worker-{at}x")
        waited(log, r"(?s)(Registered to:.*){2}")
        yield Cluster(address, options, log, [process.pid for process in processes])
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def waited(log: Path, pattern: str) -> str:
    """The first group of a pattern, once it is in the log."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if log.exists() and (found := re.search(pattern, log.read_text(errors="replace"))):
            return found.group(1)
        time.sleep(0.1)
    raise AssertionError(f"{pattern} is not in the log:\n{log.read_text(errors='replace')[-3000:]}")


def test_a_run_uses_a_cluster_that_others_started_twice_and_leaves_it_be(
    cli: Cli, examples: Path, cluster: Cluster
) -> None:
    words = ("run", examples / "diamond.yaml", "--address", cluster.address, *cluster.tls, "-o", "json")
    for n in (20, 30):
        done = cli(*words, "--storage", f"file://{cli.storage}", "--param", f"n={n}")
        assert done.code == 0, f"{done}\n{cluster.log.read_text()[-3000:]}"
        assert done.json["results"] == {"total": n * (n - 1)}
    assert all(alive(pid) for pid in cluster.pids)
    assert cli.left() == []


def test_a_failure_there_is_told_as_here(cli: Cli, cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "apiVersion: daskade.dev/v1alpha1\nkind: Pipeline\nmetadata: {name: bad}\nspec:\n"
        "  code: {files: {flow.py: \"def f(i):\\n    print('seen', i)\\n    return 1 / i\\n\"}}\n"
        "  steps: [{name: f, call: 'flow:f', map: {i: [1, 0]}}]\n"
    )
    words = ("run", path, "--address", cluster.address, *cluster.tls, "--storage", f"file://{cli.storage}")
    done = cli(*words)
    assert done.code == 1, f"{done}\n{cluster.log.read_text()[-3000:]}"
    assert all(word in done.out + done.err for word in ("ZeroDivisionError", "seen 0", "other-worker")), done


def test_an_address_where_nobody_listens_is_told(cli: Cli, examples: Path) -> None:
    done = cli("run", examples / "diamond.yaml", "--address", "tcp://127.0.0.1:9", timeout=60)
    assert done.code == 3 and "127.0.0.1:9" in done.err, done


def test_certificates_of_another_authority_are_told(cli: Cli, examples: Path, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "client").mkdir()
    paths, other = certificates(tmp_path / "server"), certificates(tmp_path / "client")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--protocol", "tls", "--host", "127.0.0.1"]
    command += ["--port", "0", "--no-dashboard", "--tls-ca-file", str(paths["ca"])]
    command += ["--tls-cert", str(paths["cert"]), "--tls-key", str(paths["key"])]
    with log.open("wb") as out:
        scheduler = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path, start_new_session=True)
    try:
        address = waited(log, r"Scheduler at:\s+(tls://127\.0\.0\.1:\d+)")
        wrong = ("--tls-ca", other["ca"], "--tls-cert", other["cert"], "--tls-key", other["key"])
        done = cli("run", examples / "diamond.yaml", "--address", address, *wrong, timeout=60)
        assert done.code == 3, done
        assert re.search(r"certificate|TLS", done.err), done
    finally:
        os.killpg(scheduler.pid, signal.SIGKILL)
        scheduler.wait()
