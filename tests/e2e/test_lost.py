"""Committed outputs that are damaged or deleted afterwards: what runs again, and what is said. What ran is told by a file."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli, Done
from support.journal import Segment, commits, records
from support.stores import Directory

CODE = """
import hashlib, os

def note(name):
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(name + "\\n")

def large(random):
    note("large")
    return os.urandom(200_000) if random else bytes(200_000)

def size(values):
    note("size")
    return hashlib.sha256(values).hexdigest()

def each(i):
    note(f"each{i}")
    return bytes([i]) * 100_000

def last(values, sizes):
    note("last")
    if os.path.exists(os.environ["LEDGER"] + ".broken"):
        raise ValueError("broken")
    return hashlib.sha256(values).hexdigest() == sizes

def many(values):
    note("many")
    if os.path.exists(os.environ["LEDGER"] + ".broken"):
        raise ValueError("broken")
    return sum(map(len, values))
"""
RESULTS = [{"name": "value", "value": "$(steps.last.output)"}]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def broken(ledger: Path) -> Path:
    """While it is there, the last step fails."""
    path = Path(f"{ledger}.broken")
    path.touch()
    return path


@pytest.fixture
def gate(ledger: Path) -> Path:
    """Until it is there, the step that waits for it does."""
    return Path(f"{ledger}.gate")


@pytest.fixture
def cli(on_cluster: Cli) -> Cli:
    return on_cluster


def steps(ledger: Path, random: bool = False) -> list[dict[str, Any]]:
    env = [{"name": "LEDGER", "value": str(ledger)}]
    return [
        {"name": "large", "call": "flow:large", "args": [random], "env": env},
        {"name": "size", "call": "flow:size", "args": ["$(steps.large.output)"], "env": env},
        {
            "name": "last",
            "call": "flow:last",
            "args": ["$(steps.large.output)", "$(steps.size.output)"],
            "env": env,
        },
    ]


def ran(ledger: Path) -> list[str]:
    """What has run since the last question, sorted."""
    found = sorted(ledger.read_text().split()) if ledger.exists() else []
    ledger.write_text("")
    return found


def objects(cli: Cli, uid: str) -> list[Path]:
    """What the run has stored of its outputs, in order."""
    return sorted(path for path in (cli.storage / "runs" / uid / "data").rglob("*") if path.is_file())


def flip(path: Path) -> bytes:
    """Changes one byte; all of them now."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return bytes(data)


def failed(cli: Cli, flow: Path, ledger: Path) -> str:
    """Uid of a run whose last step has failed."""
    done = cli.run(flow, "-o", "json")
    assert done.code == 1, done
    ran(ledger)
    uid: str = done.json["uid"]
    return uid


def resumed(cli: Cli, uid: str) -> Done:
    return cli("resume", uid, *cli.where, "-o", "json")


def invalidated(segments: list[Segment]) -> list[tuple[int, int, str]]:
    return [(record[1], record[2], record[4]) for record in records(segments, "invalidated")]


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["a flipped byte", "deleted"])
def test_a_lost_output_is_made_again_once_and_nothing_else_runs_if_it_is_the_same(
    cli: Cli, manifest: Callable[..., Path], ledger: Path, broken: Path, damage: Callable[[Path], object]
) -> None:
    """Issue 13, point 9."""
    uid = failed(cli, manifest(CODE, steps(ledger), results=RESULTS), ledger)
    (large,) = objects(cli, uid)
    damage(large)
    left = large.read_bytes() if large.exists() else None
    broken.unlink()
    done = resumed(cli, uid)
    assert done.code == 0 and done.json["results"] == {"value": True}, done
    assert ran(ledger) == ["large", "last"]
    assert "large runs again" in done.err and f"runs/{uid}/data/0/" in done.err, done
    assert done.counts() == {"total": 3, "done": 3, "cached": 1, "failed": 0, "skipped": 0}
    assert invalidated(cli.journal(uid)) == [(0, -1, "OutputLost")]
    assert [commit.step for commit in commits(cli.journal(uid))] == [0, 1, 0, 2]
    assert (large.read_bytes() if large.exists() else None) == left, "what was lost is left as it was found"
    again = cli.run(manifest(CODE, steps(ledger), results=RESULTS), "--reuse", "-o", "json")
    assert again.code == 0 and (again.json["steps"]["cached"], ran(ledger)) == (3, []), "its outputs are reused"


def test_what_was_made_from_a_lost_output_runs_again_if_that_is_another_one_now(
    cli: Cli, manifest: Callable[..., Path], ledger: Path, broken: Path
) -> None:
    uid = failed(cli, manifest(CODE, steps(ledger, random=True), results=RESULTS), ledger)
    (large,) = objects(cli, uid)
    flip(large)
    broken.unlink()
    done = resumed(cli, uid)
    assert done.code == 0 and done.json["results"] == {"value": True}, "size is of what large is now"
    names = ran(ledger)
    assert (names.count("large"), names.count("size")) == (1, 1) and names.count("last") in (1, 2), names
    found = invalidated(cli.journal(uid))
    assert found[:2] == [(0, -1, "OutputLost"), (1, -1, "InputChanged")]
    assert found[2:] in ([], [(2, -1, "InputChanged")])


def test_of_a_map_only_the_items_that_are_lost_run_again(
    cli: Cli, manifest: Callable[..., Path], ledger: Path, broken: Path
) -> None:
    env = [{"name": "LEDGER", "value": str(ledger)}]
    flow = manifest(
        CODE,
        [
            {"name": "each", "call": "flow:each", "map": {"i": "$(range(5))"}, "env": env},
            {"name": "last", "call": "flow:many", "args": ["$(steps.each.output)"], "env": env},
        ],
        results=RESULTS,
    )
    uid = failed(cli, flow, ledger)
    stored = objects(cli, uid)
    flip(stored[1])
    stored[3].unlink()
    broken.unlink()
    done = resumed(cli, uid)
    assert done.code == 0 and done.json["results"] == {"value": 500_000}, done
    assert ran(ledger) == ["each1", "each3", "many"]
    assert sorted(invalidated(cli.journal(uid))) == [(0, 1, "OutputLost"), (0, 3, "OutputLost")]


def test_where_nothing_is_to_run_again_the_run_fails_and_says_what_to_do(
    cli: Cli, manifest: Callable[..., Path], ledger: Path, broken: Path
) -> None:
    flow = manifest(CODE, steps(ledger), results=RESULTS, onOutputLost="Fail")
    uid = failed(cli, flow, ledger)
    (large,) = objects(cli, uid)
    before = large.read_bytes()
    flip(large)
    broken.unlink()
    done = resumed(cli, uid)
    assert done.code == 1 and ran(ledger) == [], done
    key = large.relative_to(cli.storage)
    for wanted in ("step last", "OutputLost", str(key), "onOutputLost is Fail", "put the object back"):
        assert wanted in done.err, (wanted, done)
    assert invalidated(cli.journal(uid)) == []
    large.write_bytes(before)
    done = resumed(cli, uid)
    assert done.code == 0 and ran(ledger) == ["last"], done


def test_an_output_of_an_earlier_run_that_is_lost_is_made_by_this_one(
    cli: Cli, manifest: Callable[..., Path], ledger: Path
) -> None:
    first = cli.run(manifest(CODE, steps(ledger), results=RESULTS), "-o", "json")
    assert first.code == 0, first
    ran(ledger)
    (large,) = objects(cli, first.json["uid"])
    left = flip(large)
    changed = steps(ledger)
    changed[2]["cache"] = {"version": "2"}
    second = cli.run(manifest(CODE, changed, results=RESULTS), "--reuse", "-o", "json")
    assert second.code == 0 and second.json["results"] == {"value": True}, second
    assert ran(ledger) == ["large", "last"]
    journal = cli.journal(second.json["uid"])
    assert invalidated(journal) == [(0, -1, "OutputLost")]
    taken = [record[10:] for record in records(journal, "committed") if record[1] == 0]
    assert taken == [[first.json["uid"]], []], "taken over at first, and then its own"
    assert large.read_bytes() == left, "the object of the other run is as it was"
    assert len(objects(cli, second.json["uid"])) == 1
    third = cli.run(manifest(CODE, changed, results=RESULTS), "--reuse", "-o", "json")
    assert third.code == 0 and (third.json["steps"]["cached"], ran(ledger)) == (3, []), third


def test_an_output_with_a_path_of_its_own_is_made_again_beside_it(
    cli: Cli, manifest: Callable[..., Path], ledger: Path, broken: Path
) -> None:
    for random in (False, True):
        made = steps(ledger, random)
        made[0]["output"] = {"path": f"kept/{random}.pkl"}
        broken.touch()
        uid = failed(cli, manifest(CODE, made, results=RESULTS), ledger)
        (large,) = objects(cli, uid)
        kept = (cli.storage / "kept" / f"{random}.pkl").read_bytes()
        flip(large)
        broken.unlink()
        done = resumed(cli, uid)
        assert done.code == 0 and done.json["results"] == {"value": True}, done
        assert ran(ledger) == ["large", "last"], "what is at its path is what was committed"
        assert (cli.storage / "kept" / f"{random}.pkl").read_bytes() == kept


def test_a_run_that_goes_on_makes_a_lost_output_again(
    own_cli: Cli, manifest: Callable[..., Path], ledger: Path, gate: Path
) -> None:
    cli = own_cli
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.05)"
    made = [*steps(ledger), {"name": "wait", "script": wait, "dependsOn": ["size"]}]
    made[2]["dependsOn"] = ["wait"]
    process = cli.start(*cli.run_words(manifest(CODE, made, results=RESULTS)), "-o", "json")
    runs = cli.home / "runs"

    def note() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(next(runs.glob("*.json")).read_text())
        return found

    def committed() -> bool:
        uids = Directory(cli.storage).runs()
        return bool(uids) and {commit.step for commit in commits(cli.journal(uids[0]))} >= {0, 1}

    cli.reach(process, "size is committed", committed)
    (uid,) = Directory(cli.storage).runs()
    (large,) = objects(cli, uid)
    flip(large)
    # The only worker has it in its cache.
    (worker,) = note()["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    cli.reach(process, "another worker is there", lambda: [w["pid"] for w in note()["workers"]] != [worker["pid"]])
    gate.touch()
    done = cli.finish(process)
    assert done.code == 0 and done.json["results"] == {"value": True}, done
    assert ran(ledger) == ["large", "large", "last", "size"]
    assert invalidated(cli.journal(uid)) == [(0, -1, "OutputLost")]
    assert {segment.epoch for segment in cli.journal(uid)} == {1}, "under one opening"
