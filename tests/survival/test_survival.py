"""Runs with seeded faults: whatever is killed, the oracle finds that nothing was lost, and that nothing committed
ran twice while its output was readable.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.s3.server import S3Server
from survival.conftest import LATE
from survival.faults import STORAGE, scenario
from survival.run import Run, Tools, Verdict


def test_a_run_survives(seed: int, tools: Tools, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    wanted = scenario(seed)
    if wanted.store != "s3":
        verdict = Run(wanted, tools, None).verdict()
    elif any(fault.victim == STORAGE for fault in wanted.faults):
        # It takes its server down.
        with S3Server(tmp_path / "s3") as server:
            verdict = Run(wanted, tools, server).verdict()
    else:
        verdict = Run(wanted, tools, request.getfixturevalue("shared_server")).verdict()
    print(f"seed {seed}: {wanted}, {verdict.seconds:.1f} s")
    if verdict.missed:
        request.node.user_properties.append((LATE, f"seed {seed}: {'; '.join(verdict.missed)}"))
    assert not verdict.broken, report(verdict)


def report(verdict: Verdict) -> str:
    """All that is known about a run that broke a promise."""
    lines = [*verdict.broken[:12], *(f"  {line}" for line in verdict.history)]
    for path in sorted(verdict.folder.glob("err-*")):
        lines += [f"{path}:", *(f"  {line}" for line in path.read_text(errors="replace").splitlines()[-25:])]
    return "\n".join([*lines, f"again with: python -m pytest tests/survival --seed {verdict.scenario.seed}"])
