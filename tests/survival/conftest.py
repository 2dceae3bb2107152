"""Which seeds to run, the program under test, and the S3 server that scenarios share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import TOP
from support.s3.server import S3Server
from survival.run import Tools

# The property of a test whose faults came too late: its run had ended before.
LATE = "late"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("survival")
    group.addoption("--seeds", type=int, default=50, help="how many seeds to run, from 0 on")
    group.addoption("--seed", type=int, action="append", help="run this seed; can be given several times")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        seeds = metafunc.config.getoption("--seed") or range(metafunc.config.getoption("--seeds"))
        metafunc.parametrize("seed", seeds)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many seeds tested less than they should: who reads "passed" has to know."""
    reports = [report for found in ("passed", "failed") for report in terminalreporter.stats.get(found, [])]
    runs = [report for report in reports if "test_a_run_survives" in report.nodeid]
    if not runs:
        return
    late = [value for report in runs for name, value in report.user_properties if name == LATE]
    terminalreporter.write_line(f"seeds with faults that came too late: {len(late)} of {len(runs)}")
    for line in late:
        terminalreporter.write_line(f"  {line}")


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    program = Path(os.environ.get("DASKADE_BIN", TOP / "target/debug/daskade"))
    assert os.access(program, os.X_OK), f"build {program} first, or name another program by DASKADE_BIN"
    folder = tmp_path_factory.mktemp("survival")
    return Tools(program.resolve(), Path(sys.executable), folder, folder / "cache")


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """For scenarios that leave the server alone."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server
