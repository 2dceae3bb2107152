"""Objects in storage that steps name by their paths: read as arguments, and outputs kept under names of their own.
What ran is told by a file, not by us.
"""

from __future__ import annotations

import json
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.places import Bucket, Place
from support.cli import Cli
from support.s3.server import S3Server

CODE = """
import os

def note(name):
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(name + "\\n")

def train(data, weights=None):
    note("train")
    return {"sum": sum(data), "weights": weights and len(weights)}

def load(day, rows):
    note(f"load-{day}")
    return len(rows)

def total(parts, model):
    note("total")
    return sum(parts) + model["sum"]
"""
RESULTS = [{"name": "total", "value": "$(steps.total.output)"}]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def ran(ledger: Path) -> list[str]:
    """What has run since the last question, sorted."""
    found = sorted(ledger.read_text().split()) if ledger.exists() else []
    ledger.write_text("")
    return found


def steps(ledger: Path, **train: Any) -> list[dict[str, Any]]:
    env = [{"name": "LEDGER", "value": str(ledger)}]
    return [
        {
            "name": "train",
            "call": "flow:train",
            "env": env,
            "inputs": {"data": {"path": "in/data.json"}, "weights": {"path": "in/weights.bin", "serializer": "pickle"}},
            **train,
        },
        {
            "name": "load",
            "call": "flow:load",
            "env": env,
            "map": {"day": "$(params.days)"},
            "args": {"day": "$(item.day)"},
            "inputs": {"rows": {"path": "days/$(item.day).json"}},
        },
        {
            "name": "total",
            "call": "flow:total",
            "env": env,
            "args": ["$(steps.load.output)", "$(steps.train.output)"],
        },
    ]


DAYS = [{"name": "days", "type": "array", "default": ["mon", "tue"]}]
ALL = ["load-mon", "load-tue", "total", "train"]


def fill(place: Place) -> None:
    place.put("in/data.json", b"[1, 2]")
    place.put("in/weights.bin", pickle.dumps([0.5, 0.5]))
    place.put("days/mon.json", b"[1]")
    place.put("days/tue.json", b"[1, 2, 3]")


def test_inputs_are_arguments_and_a_changed_one_runs_its_readers(
    place: Place, manifest: Callable[..., Path], ledger: Path
) -> None:
    flow = manifest(CODE, steps(ledger), params=DAYS, results=RESULTS)
    fill(place)
    first = place.run(flow, "-o", "json")
    assert first.code == 0 and first.json["results"] == {"total": 1 + 3 + 3}, first
    assert ran(ledger) == ALL
    again = place.run(flow, "--reuse", "-o", "json")
    assert (again.code, ran(ledger), again.json["steps"]["cached"]) == (0, [], 4), again
    place.put("days/tue.json", b"[1, 2, 3, 4]")
    changed = place.run(flow, "--reuse", "-o", "json")
    assert changed.code == 0 and changed.json["results"] == {"total": 1 + 4 + 3}, changed
    assert ran(ledger) == ["load-tue", "total"], "the other item and train read what they had read before"
    settled = place.run(flow, "--reuse", "-o", "json")
    assert (settled.code, ran(ledger)) == (0, []), "and a run that took some over is as good as one that did not"
    place.put("in/weights.bin", pickle.dumps([1.0]))
    assert place.run(flow, "--reuse").code == 0
    assert ran(ledger) == ["total", "train"]


def test_a_part_is_chosen_by_what_it_reads(place: Place, manifest: Callable[..., Path], ledger: Path) -> None:
    flow = manifest(CODE, steps(ledger), params=DAYS, results=RESULTS)
    fill(place)
    assert place.run(flow).code == 0
    ran(ledger)
    for path, expected in (
        ("in/data.json", ["total", "train"]),
        ("days/$(item.day).json", ["load-mon", "load-tue", "total"]),
        ("days/mon.json", ["load-mon", "load-tue", "total"]),
    ):
        done = place.run(flow, "--from-inputs", path)
        assert (done.code, ran(ledger)) == (0, expected), (path, done)
    done = place.run(flow, "--from-inputs", "days/mon.jsn")
    assert done.code == 2 and "UnknownInput" in done.err and "did you mean days/mon.json?" in done.err, done
    assert ran(ledger) == []


def test_a_missing_object_fails_its_step_with_what_to_do(
    place: Place, manifest: Callable[..., Path], ledger: Path
) -> None:
    flow = manifest(CODE, steps(ledger, retry={"limit": 3}), params=DAYS, results=RESULTS)
    fill(place)
    place.delete("in/data.json")
    done = place.run(flow, "-o", "json")
    assert done.code == 1 and done.json["state"] == "Failed", done
    (failure,) = [found for found in done.json["failures"] if found["step"] == "train"]
    assert (failure["class"], failure["attempt"]) == ("data", 1), "no retry unless data is named"
    assert "there is no object in/data.json, the input data of step train" in failure["message"], failure
    assert "put it there" in failure["message"]
    place.put("in/data.json", b"[1, 2]")
    done = place.cli("resume", done.json["uid"], *place.cli.where, "-o", "json", *place.words, env=place.env)
    assert done.code == 0 and done.json["results"] == {"total": 7}, done


def test_an_output_is_kept_and_nothing_is_replaced_unless_it_is_said(
    place: Place, manifest: Callable[..., Path], ledger: Path
) -> None:
    fill(place)

    def flow(**output: Any) -> Path:
        output = {"path": "models/$(params.name).json", "serializer": "json", **output}
        params = [*DAYS, {"name": "name", "default": "current"}]
        return manifest(CODE, steps(ledger, output=output), params=params, results=RESULTS)

    first = place.run(flow(), "-o", "json")
    assert first.code == 0 and first.json["results"] == {"total": 7}, first
    assert json.loads(place.get("models/current.json")) == {"sum": 3, "weights": 2}
    ran(ledger)
    refused = place.run(flow(), "-o", "json")
    assert refused.code == 1 and "train" not in ran(ledger), "it is seen before the step runs"
    (failure,) = [found for found in refused.json["failures"] if found["step"] == "train"]
    assert "OutputExists: something is at models/current.json already" in failure["message"], failure
    assert "ifExists: Replace or Skip" in failure["message"], failure
    other = place.run(flow(), "-p", "name=other")
    assert other.code == 0 and json.loads(place.get("models/other.json")) == {"sum": 3, "weights": 2}, other
    ran(ledger)

    place.put("in/data.json", b"[10]")
    replaced = place.run(flow(ifExists="Replace"), "-o", "json")
    assert (replaced.code, replaced.json["results"]) == (0, {"total": 14}), replaced
    assert json.loads(place.get("models/current.json"))["sum"] == 10
    ran(ledger)
    place.put("models/current.json", b'{"sum": 100}')
    skipped = place.run(flow(ifExists="Skip"), "-o", "json")
    assert (skipped.code, skipped.json["results"]) == (0, {"total": 104}), skipped
    assert "train" not in ran(ledger), "what is there is the output"
    assert place.get("models/current.json") == b'{"sum": 100}'
    made = place.run(flow(ifExists="Skip"), "-p", "name=new", "-o", "json")
    assert (made.code, made.json["results"]) == (0, {"total": 14}), made
    assert "train" in ran(ledger) and json.loads(place.get("models/new.json"))["sum"] == 10


def test_a_step_is_reused_only_while_what_it_kept_is_there(
    place: Place, manifest: Callable[..., Path], ledger: Path
) -> None:
    fill(place)
    output = {"path": "models/x.pkl"}
    flow = manifest(CODE, steps(ledger, output=output), params=DAYS, results=RESULTS)
    assert place.run(flow).code == 0
    ran(ledger)
    done = place.run(flow, "--reuse", "-o", "json")
    assert (done.code, ran(ledger), done.json["steps"]["cached"]) == (0, [], 4), "ifExists is not asked then"
    place.delete("models/x.pkl")
    done = place.run(flow, "--reuse", "-o", "json")
    assert (done.code, ran(ledger)) == (0, ["total", "train"]), done
    assert pickle.loads(place.get("models/x.pkl"))["sum"] == 3


def test_items_keep_their_outputs_apart_and_a_later_step_reads_them(
    place: Place, manifest: Callable[..., Path], ledger: Path
) -> None:
    each = {"name": "each", "script": "output = x * 10", "map": {"x": [1, 2]}}
    each["output"] = {"path": "parts/$(item.x).json", "serializer": "json"}
    names = {"name": "names", "script": "output = 'parts/2.json'", "dependsOn": ["each"]}
    last = {"name": "total", "script": "output = part", "inputs": {"part": {"path": "$(steps.names.result)"}}}
    done = place.run(manifest(CODE, [each, names, last], results=RESULTS), "-o", "json")
    assert (done.code, done.json["results"]) == (0, {"total": 20}), done
    assert json.loads(place.get("parts/1.json")) == 10
    twice = {"name": "twice", "script": "output = ['a', 'a']"}
    both = {"name": "both", "script": "output = x", "map": {"x": "$(steps.twice.result)"}}
    both["output"] = {"path": "both/$(item.x).pkl"}
    done = place.run(manifest(CODE, [twice, both]), "-o", "json")
    assert done.code == 1 and "items 0 and 1 of both would both keep their output at both/a.pkl" in done.out, done


def test_a_run_that_was_killed_does_not_fail_on_its_own_output(
    cli: Cli, manifest: Callable[..., Path], ledger: Path, tmp_path: Path
) -> None:
    """The command with all of its processes is killed right after the output came to its name."""
    source = f"import os, random\noutput = random.random()\nopen({str(ledger)!r}, 'a').write('made\\n')"
    first = {"name": "first", "script": source, "output": {"path": "out/first.json", "serializer": "json"}}
    last = {"name": "total", "script": "output = x", "args": {"x": "$(steps.first.output)"}}
    flow = manifest(CODE, [first, last], results=RESULTS)
    kept, uid = cli.storage / "out/first.json", ""
    process = cli.start(*cli.run_words(flow), "-o", "json")
    cli.reach(process, "the output has its name", kept.exists, every=0.01)
    process.send_signal(signal.SIGKILL)
    cli.finish(process)
    assert kept.exists()
    value = json.loads(kept.read_text())
    (uid,) = [path.name for path in (cli.storage / "runs").iterdir()]
    done = cli("resume", uid, "--python", cli.python, "-o", "json")
    assert done.code == 0 and done.json["results"] == {"total": value}, done
    assert json.loads(kept.read_text()) == value, "what is committed is what is there"


def test_the_example_runs_once_and_then_takes_what_is_there(on_cluster: Cli, examples: Path) -> None:
    cli = on_cluster
    report = {"mon": 7.5, "tue": 7.5, "wed": 7.5}
    first = cli.run(examples / "inputs.yaml", "-o", "json")
    assert first.code == 0 and first.json["results"] == {"report": report}, first
    assert json.loads((cli.storage / "reports/latest.json").read_text()) == report
    again = cli.run(examples / "inputs.yaml", "--reuse", "-o", "json")
    assert (again.code, again.json["steps"]["cached"]) == (0, 7), again
    (cli.storage / "prices/tue.json").write_text('{"prices": [1, 3]}')
    changed = cli.run(examples / "inputs.yaml", "-o", "json")
    assert changed.code == 0 and changed.json["results"] == {"report": {**report, "tue": 2}}, changed


def test_a_run_reads_the_version_that_it_names(
    on_cluster: Cli, s3: S3Server, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    cli = on_cluster
    where = s3.versioned(f"pins/{tmp_path.name}")
    env = {name: value for name, value in s3.environ().items() if name != "AWS_ENDPOINT_URL"}
    store = Bucket(s3.client(), where["url"])
    first, second = (store.put("in/x.json", data) for data in (b"1", b"2"))
    assert first and second and first != second
    words = ["--storage", where["url"], "--storage-endpoint", where["endpoint"], "--storage-region", where["region"]]
    flow = manifest(
        "def same(given):\n    return given\n",
        [{"name": "read", "call": "flow:same", "inputs": {"given": {"path": "in/x.json"}}}],
        results=[{"name": "read", "value": "$(steps.read.output)"}],
    )

    def run(*more: str) -> tuple[Any, int]:
        done = cli("run", flow, *cli.where, *words, "-o", "json", *more, env=env)
        assert done.code == 0, done
        return done.json["results"]["read"], done.json["steps"]["cached"]

    def action(*more: str) -> str:
        done = cli("plan", flow, *words, "-o", "json", "--reuse", *more, env=env)
        assert done.code == 0, done
        return str(done.json["steps"][0]["action"])

    old = ["--load-version", f"given={first}"]
    assert run() == (2, 0)
    assert action(*old) == "run", "what was read then is not what is asked for"
    assert run(*old) == (1, 0)
    assert action(*old) == action() == "cached"
    assert run("--reuse", "--load-version", f"in/x.json={first}") == (1, 1)
    store.put("in/x.json", b"3")
    assert (action(*old), action()) == ("cached", "run")
    assert run("--reuse", *old) == (1, 1)
    assert run("--reuse") == (3, 0)

    commands: list[list[str | Path]] = [["run", flow, *cli.where], ["plan", flow]]
    for command in commands:
        done = cli(*command, *words, "--load-version", "given=none-like-it", env=env)
        assert done.code == 3, done
        assert "VersionNotFound: spec.select.loadVersions.given: there is no version none-like-it" in done.err, done
        done = cli(*command, *words, "--load-version", f"givn={first}", env=env)
        assert done.code == 2 and "spec.select.loadVersions.givn: UnknownInput" in done.err, done
        assert "did you mean given?" in done.err, done
        done = cli(*command, "--storage", f"file://{cli.storage}", *old)
        assert done.code == 2 and "spec.select.loadVersions.given: NoVersions" in done.err, done
        done = cli(*command, "--load-version", "given")
        assert done.code == 2 and "write NAME=VERSION" in done.err, done
