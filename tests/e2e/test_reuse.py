"""Runs of a part of a pipeline, and outputs that are taken from earlier runs. What ran is told by a file, not by us."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli, Done
from support.s3.server import S3Server

CODE = """
import os

def note(name, *given):
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(name + "\\n")
    return name

def load(ledger):
    note("load")
    return list(range(3))

def square(x):
    note(f"square{x}")
    if os.path.exists(os.environ["LEDGER"] + ".broken") and x == 2:
        raise ValueError("broken")
    return x * x

def large(values):
    note("large")
    return bytes(200_000) + bytes(values)

def total(values, large):
    note("total")
    return sum(values) + len(large)
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def steps(ledger: Path, script: str = "output = 1") -> list[dict[str, Any]]:
    env = [{"name": "LEDGER", "value": str(ledger)}]
    before = f"open({str(ledger)!r}, 'a').write('tell\\n')\n"
    return [
        {"name": "load", "call": "flow:load", "args": ["x"], "env": env},
        {"name": "square", "call": "flow:square", "map": {"x": "$(steps.load.output)"}, "env": env},
        {"name": "large", "call": "flow:large", "args": ["$(steps.square.output)"], "env": env},
        {"name": "tell", "script": before + script, "tags": ["telling"]},
        {
            "name": "total",
            "call": "flow:total",
            "args": ["$(steps.square.output)", "$(steps.large.output)"],
            "dependsOn": ["tell"],
            "env": env,
        },
    ]


RESULTS = [{"name": "total", "value": "$(steps.total.output)"}]


@pytest.fixture
def cli(on_cluster: Cli) -> Cli:
    return on_cluster


@pytest.fixture
def flows(manifest: Callable[..., Path]) -> Callable[..., Path]:
    """Writes the pipeline with one result."""
    return lambda *parts, **more: manifest(*parts, results=RESULTS, **more)


def ran(ledger: Path) -> list[str]:
    """What has run since the last question, sorted."""
    found = sorted(ledger.read_text().split()) if ledger.exists() else []
    ledger.write_text("")
    return found


ALL = ["large", "load", "square0", "square1", "square2", "tell", "total"]
RESULT = {"total": 200_008}


def test_a_second_run_with_reuse_executes_nothing(cli: Cli, flows: Callable[..., Path], ledger: Path) -> None:
    flow = flows(CODE, steps(ledger))
    first = cli.run(flow, "-o", "json")
    assert first.code == 0 and first.json["results"] == RESULT, first
    assert ran(ledger) == ALL
    second = cli.run(flow, "--reuse", "-o", "json")
    assert second.code == 0 and second.json["results"] == RESULT, second
    assert ran(ledger) == []
    assert second.counts() == {"total": 7, "done": 7, "cached": 7, "failed": 0, "skipped": 0}
    third = cli.run(flow, "--reuse-run", second.json["uid"], "-o", "json")
    assert (third.code, third.json["steps"]["cached"], ran(ledger)) == (0, 7, []), third
    plain = cli.run(flow, "-o", "json")
    assert (plain.code, plain.json["steps"]["cached"], ran(ledger)) == (0, 0, ALL), "without reuse all steps run"


def test_a_changed_step_runs_again_with_what_comes_after_it(cli: Cli, flows: Callable[..., Path], ledger: Path) -> None:
    assert cli.run(flows(CODE, steps(ledger))).code == 0
    ran(ledger)
    done = cli.run(flows(CODE, steps(ledger, "output = 2")), "--reuse", "-o", "json")
    assert done.code == 0 and done.json["results"] == RESULT, done
    assert ran(ledger) == ["tell", "total"]
    done = cli.run(flows(CODE + "\n", steps(ledger)), "--reuse", "-o", "json")
    assert (done.code, ran(ledger)) == (0, ALL), "other code: another run"


def test_reuse_finishes_what_a_failed_run_left(cli: Cli, flows: Callable[..., Path], ledger: Path) -> None:
    broken = Path(f"{ledger}.broken")
    broken.touch()
    flow = flows(CODE, steps(ledger))
    assert cli.run(flow).code == 1
    assert "square2" in ran(ledger)
    broken.unlink()
    done = cli.run(flow, "--reuse", "-o", "json")
    assert done.code == 0 and done.json["results"] == RESULT, done
    assert ran(ledger) == ["large", "square2", "total"]
    assert done.json["steps"]["cached"] == 4


def test_a_resumed_run_keeps_what_it_took_over(cli: Cli, flows: Callable[..., Path], ledger: Path) -> None:
    broken = Path(f"{ledger}.broken")
    broken.touch()
    flow = flows(CODE, steps(ledger))
    assert cli.run(flow).code == 1
    ran(ledger)
    second = cli.run(flow, "--reuse", "-o", "json")
    assert (second.code, second.json["steps"]["cached"], ran(ledger)) == (1, 4, ["square2"]), second
    broken.unlink()
    done = cli("resume", second.json["uid"], *cli.where, "-o", "json")
    assert done.code == 0 and done.json["results"] == RESULT, done
    assert (ran(ledger), done.json["steps"]["cached"]) == (["large", "square2", "total"], 4)


def test_an_object_that_is_gone_is_made_again(cli: Cli, flows: Callable[..., Path], ledger: Path) -> None:
    flow = flows(CODE, steps(ledger))
    first = cli.run(flow, "-o", "json")
    ran(ledger)
    (large,) = [path for path in (cli.storage / "runs" / first.json["uid"] / "data").rglob("*") if path.is_file()]
    large.write_bytes(large.read_bytes()[:-1])
    done = cli.run(flow, "--reuse", "-o", "json")
    assert done.code == 0 and done.json["results"] == RESULT, done
    assert ran(ledger) == ["large", "total"]


def test_a_part_uses_earlier_outputs(cli: Cli, flows: Callable[..., Path], ledger: Path) -> None:
    flow = flows(CODE, steps(ledger))
    done = cli.run(flow, "--only", "total", "-o", "json")
    assert done.code != 0 and "OutputMissing" in done.err and "step square" in done.err, done
    assert ran(ledger) == [] and not (cli.storage / "runs").exists(), "nothing was started"
    assert cli.run(flow).code == 0
    ran(ledger)
    done = cli.run(flow, "--from", "large", "-o", "json")
    assert done.code == 0 and done.json["results"] == RESULT, done
    assert ran(ledger) == ["large", "total"]
    assert done.counts() == {"total": 7, "done": 7, "cached": 3, "failed": 0, "skipped": 2}
    done = cli.run(flow, "--only", "total", "-o", "json")
    assert done.code == 0 and done.json["results"] == RESULT, done
    assert ran(ledger) == ["total"]
    done = cli.run(flow, "--tag", "telling", "-o", "json")
    assert (done.code, ran(ledger)) == (0, ["tell"]), done
    done = cli.run(flow, "--to", "square", "-o", "json")
    assert (done.code, ran(ledger)) == (0, ["load", "square0", "square1", "square2"]), done


def test_what_cannot_be_selected_is_refused_by_name(cli: Cli, flows: Callable[..., Path], ledger: Path) -> None:
    flow = flows(CODE, steps(ledger), **{"finally": [{"name": "clean", "script": "output = 0"}]})
    for words, said in [
        (["--only", "totl"], "did you mean total?"),
        (["--from", "clean"], "finally"),
        (["--only", "load", "--from", "total"], "EmptySelection"),
        (["--tag", "tellin"], "did you mean telling?"),
        (["--only", "total", "--reuse-run", "nobody"], "ReuseNotFound"),
    ]:
        done = cli.run(flow, *words)
        assert done.code != 0 and said in done.err, (words, done)
    assert ran(ledger) == []


def test_a_run_in_the_manifest_says_what_to_reuse(cli: Cli, flows: Callable[..., Path], ledger: Path) -> None:
    flow = flows(CODE, steps(ledger))
    assert cli.run(flow).code == 0
    ran(ledger)
    run = flow.with_name("run.yaml")
    run.write_text(
        "apiVersion: daskade.dev/v1alpha1\nkind: PipelineRun\nmetadata: {name: again}\n"
        "spec: {pipelineRef: flow, select: {from: [large]}, reuse: {mode: Missing}}\n"
    )
    done = cli("run", flow, run, *cli.run_words(flow)[2:], "-o", "json")
    assert done.code == 0 and done.json["results"] == RESULT, done
    assert ran(ledger) == ["total"], "tell, which it comes after, is not there this time"
    assert done.json["steps"]["cached"] == 4, "square is loaded, large has what it was made from"


@pytest.fixture
def on_s3(cli: Cli, s3: S3Server) -> Iterator[Callable[..., Done]]:
    storage = s3.storage("reuse")
    credentials = {name: value for name, value in s3.environ().items() if name != "AWS_ENDPOINT_URL"}
    place = ["--storage", storage["url"], "--storage-endpoint", storage["endpoint"]]
    place += ["--storage-region", storage["region"]]

    def run(flow: Path, *words: str) -> Done:
        return cli("run", flow, *cli.where, "-o", "json", *place, *words, env=credentials)

    yield run


def test_outputs_are_reused_on_s3(on_s3: Callable[..., Done], flows: Callable[..., Path], ledger: Path) -> None:
    flow = flows(CODE, steps(ledger))
    first = on_s3(flow)
    assert first.code == 0, first
    assert ran(ledger) == ALL
    second = on_s3(flow, "--reuse")
    assert second.code == 0 and second.json["results"] == RESULT, second
    assert (ran(ledger), second.json["steps"]["cached"]) == ([], 7)
    third = on_s3(flow, "--only", "total")
    assert (third.code, ran(ledger)) == (0, ["total"]), third


def test_a_run_whose_outputs_are_removed_while_they_are_about_to_be_taken_is_done_without(
    cli: Cli, manifest: Callable[..., Path], ledger: Path, tmp_path: Path
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    code = f"def large():\n    open({str(ledger)!r}, 'a').write('large\\n')\n    return bytes(200_000)\n"
    large = {"name": "large", "call": "flow:large"}
    first = cli.run(manifest(code, [large]), "-o", "json").json["uid"]
    wait = f"import os, time\nopen({str(begun)!r}, 'w')\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.05)"
    # The one place is the gate's: what was found of the first run is taken over only afterwards.
    steps = [{"name": "gate", "script": wait, "priority": 100}, large]
    path = manifest(code, steps, limits={"parallelism": 1})
    second = cli.start(*cli.run_words(path), "--reuse", "-o", "json")
    cli.reach(second, "the gate has begun", begun.exists)
    # As a scheduler in Kubernetes does it when `retention.outputs` is over.
    folder = Path(cli.storage) / "runs" / first
    (folder / "removed").mkdir()
    (folder / "removed" / "outputs").write_text('{"t": 1700000000}')
    shutil.rmtree(folder / "data")
    gate.touch()
    done = cli.finish(second)
    assert done.code == 0 and done.json["steps"]["done"] == 2, done
    assert ledger.read_text() == "large\nlarge\n", "it was made again"

    named = cli.run(path, "--reuse", "--reuse-run", first)
    assert named.code == 3 and f"({first}) had stored was removed at 2023-11-14T22:13:20Z" in named.err, named
