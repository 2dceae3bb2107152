"""The first run on a machine, and the flights."""

from __future__ import annotations

import time
from pathlib import Path

from support import TOP
from support.cli import Cli


def test_the_first_run_makes_an_environment_and_the_second_uses_it(cli: Cli, examples: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    words = ("run", examples / "diamond.yaml", "-o", "json", "--param", "n=10")
    done = cli(*words, timeout=400, DASKADE_CACHE=str(cache))
    assert done.code == 0, done
    assert done.json["results"] == {"total": 90}
    assert "environment" in done.err, "what takes long is said"
    made = {path: path.stat().st_mtime for path in cache.glob("environments/*/daskade-ready")}
    assert len(made) == 1
    began = time.monotonic()
    done = cli(*words, timeout=60, DASKADE_CACHE=str(cache))
    assert done.code == 0, done
    assert time.monotonic() - began < 30
    assert {path: path.stat().st_mtime for path in cache.glob("environments/*/daskade-ready")} == made
    assert (cli.home / "storage").is_dir(), "without a storage of its own a run is kept in the home"


def test_no_python_and_a_python_without_dask_are_told(cli: Cli, examples: Path) -> None:
    done = cli("run", examples / "diamond.yaml", "--python", "/nowhere/python", timeout=30)
    assert done.code == 3 and "/nowhere/python" in done.err, done
    done = cli("run", examples / "diamond.yaml", "--python", "/usr/bin/python3", timeout=30)
    assert done.code == 3 and ("distributed" in done.err or "/usr/bin/python3" in done.err), done


def test_the_flights_agree_with_pandas(cli: Cli, examples: Path, tmp_path: Path) -> None:
    done = cli.run(examples / "flights.yaml", "-o", "json", timeout=300)
    assert done.code == 0, done
    assert done.json["steps"]["total"] == 3 + 12 + 1 + 16 + 4
    from e2e.check_flights import differences
    from support.journal import records

    assert differences(done.json["results"]["report"]) == []
    segments = cli.journal(done.json["uid"])
    where: dict[int, set[str]] = {}
    for record in records(segments, "committed"):
        where.setdefault(record[1], set()).add(record[5].rsplit("-", 2)[0])
    train = 7
    assert where.pop(train) == {"gpu"}
    assert set().union(*where.values()) == {"cpu"}
    stored = sum(path.stat().st_size for path in cli.storage.glob("runs/*/data/**/*") if path.is_file())
    assert stored > 15_000_000, "intermediates are kept in storage"
    assert (TOP / "examples" / "flights" / "delays.py").exists()
