"""What `daskade plan` tells, held against what a run then does. What was done is told by the run's journal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.places import Place
from support.cli import Cli, Done

CODE = """
import os

def load(n):
    return list(range(n))

def square(x, broken=""):
    if broken and os.path.exists(broken) and x == 2:
        raise ValueError("broken")
    return x * x

def large(values):
    return bytes(200_000) + bytes(values)

def total(values, large):
    return sum(values) + len(large)

def one(*given, **named):
    return 1
"""


def steps(script: str = "output = 1", broken: str = "") -> list[dict[str, Any]]:
    return [
        {"name": "total", "call": "flow:total", "args": ["$(steps.square.output)", "$(steps.large.output)"],
         "dependsOn": ["tell"]},
        {"name": "load", "call": "flow:load", "args": ["$(params.n)"]},
        {"name": "square", "call": "flow:square", "map": {"x": "$(steps.load.output)"}, "args": {"broken": broken}},
        {"name": "large", "call": "flow:large", "args": ["$(steps.square.output)"]},
        {"name": "tell", "script": script, "tags": ["telling"]},
        {"name": "known", "call": "flow:one", "map": {"a": "$(params.list)"}, "args": ["$(item.a)"]},
    ]


PARAMS = [{"name": "n", "type": "integer", "default": 3}, {"name": "list", "type": "array", "default": [1, 2]}]
FINALLY = [{"name": "clean", "script": "output = 0"}]


@pytest.fixture
def cli(on_cluster: Cli) -> Cli:
    return on_cluster


@pytest.fixture
def flows(manifest: Callable[..., Path]) -> Callable[..., Path]:
    def write(code: str = CODE, steps: list[dict[str, Any]] | None = None, **more: Any) -> Path:
        return manifest(code, globals()["steps"]() if steps is None else steps, **{"params": PARAMS, **more})

    return write


def plan(cli: Cli, flow: Path, *words: str) -> Done:
    """The plan of the very run; it writes nothing."""
    before = sorted(cli.folder.rglob("*"))
    done = cli("plan", flow, *cli.run_words(flow)[2:], *words, timeout=20)
    assert sorted(cli.folder.rglob("*")) == before
    return done


def told(done: Done) -> dict[str, dict[str, Any]]:
    assert done.code == 0, done
    return {step["name"]: step for step in done.json["steps"]}


def actions(done: Done) -> dict[str, str]:
    return {name: step["action"] for name, step in told(done).items()}


def reasons(done: Done) -> dict[str, list[str]]:
    """Why steps run: reason and, if there is one, step or path."""
    found = {}
    for name, step in told(done).items():
        if step["because"]:
            because = step["because"]
            found[name] = sorted(" ".join(filter(None, (b["reason"], b.get("step"), b.get("path")))) for b in because)
    return found


def did(cli: Cli, done: Done, names: list[str]) -> dict[str, dict[str, int]]:
    """Tasks of a run by step: run, cached, skipped."""
    found: dict[str, dict[str, int]] = {name: {"run": 0, "cached": 0, "skipped": 0} for name in names}
    for segment in cli.journal(done.json["uid"]):
        for record in segment.records:
            if record[0] == "committed":
                taken = len(record) > 10 and record[10] is not None
                found[names[record[1]]]["cached" if taken else "run"] += 1
            elif record[0] == "skipped":
                found[names[record[1]]]["skipped"] += 1
    return found


def check(cli: Cli, flow: Path, *words: str) -> Done:
    """The plan, after a run that has done what it says."""
    said = plan(cli, flow, *words, "-o", "json")
    assert said.code == 0, said
    ran = cli.run(flow, *words, "-o", "json")
    assert ran.code == 0, ran
    spec = json.loads(flow.read_text())["spec"]
    names = [step["name"] for step in [*spec["steps"], *spec.get("finally", [])]]
    done = did(cli, ran, names)
    for name, step in told(said).items():
        tasks = step["tasks"]
        assert tasks["fails"] == 0
        if step["action"] == "leftOut":
            assert done[name]["run"] == done[name]["cached"] == 0, name
        elif step["action"] == "unknown":
            pass
        elif step["mapped"] and step["items"] is None:
            assert tasks["run"] == 1 and done[name]["cached"] == 0, (name, done)
        else:
            assert {kind: tasks[kind] for kind in done[name]} == done[name], (name, done)
    return said


def test_a_plan_without_reuse_needs_nothing(cli: Cli, flows: Callable[..., Path], tmp_path: Path) -> None:
    flow = flows(**{"finally": FINALLY})
    done = cli("plan", flow, "--storage", "s3://no-such-bucket/x", "--storage-endpoint", "http://127.0.0.1:1", timeout=20)
    assert done.code == 0, done
    lines = [line.split("  ")[0] for line in done.out.splitlines()]
    assert lines[:3] == ["STEP", "load", "tell"] and lines[-2] == "clean", "in the order in which they run"
    assert "as many items as load gives" in done.out and "call flow:one, 2 items" in done.out, done
    assert done.out.endswith("7 steps: 7 run (earlier runs were not asked)\n"), done
    assert not cli.home.exists() and not cli.storage.exists()
    document = cli("plan", flow, "-o", "json", "-p", "list=[1,2,3]").json
    assert document["earlierRuns"] is None and document["counts"]["run"] == 7, document
    found = {step["name"]: step for step in document["steps"]}
    assert found["known"]["items"] == 3 and found["square"]["items"] is None, document
    assert found["square"]["waitsFor"] == ["load"] and found["square"]["unknownUntil"] == ["load"], document
    assert sorted(found["total"]["waitsFor"]) == ["large", "square", "tell"] and found["clean"]["finally"], document


def test_a_plan_says_what_reuse_then_takes(cli: Cli, flows: Callable[..., Path]) -> None:
    first = flows(**{"finally": FINALLY})
    nothing = plan(cli, first, "--reuse", "-o", "json")
    assert set(actions(nothing).values()) == {"run"} and nothing.json["earlierRuns"] == [], nothing
    assert set(map(tuple, reasons(nothing).values())) == {("NeverFinished",), ("UpstreamChanged load",)}, nothing
    ran = cli.run(first, "-o", "json")
    assert ran.code == 0, ran
    same = check(cli, first, "--reuse")
    assert set(actions(same).values()) == {"cached"} and reasons(same) == {}, same
    assert told(same)["square"]["items"] == 3, "known, since load is taken over"
    assert told(same)["load"]["from"] == [{"name": "flow", "uid": ran.json["uid"], "tasks": 1}], same

    changed = check(cli, flows(steps=steps("output = 2"), **{"finally": FINALLY}), "--reuse")
    assert reasons(changed) == {"tell": ["CallChanged"], "total": ["UpstreamChanged tell"]}, changed
    assert actions(changed)["clean"] == "cached", "the last step has not changed"

    first = flows(**{"finally": FINALLY})
    changed = check(cli, first, "--reuse", "-p", "n=4", "-p", "list=[1,5,2]")
    assert reasons(changed) == {
        "load": ["ArgumentsChanged"],
        "square": ["UpstreamChanged load"],
        "large": ["UpstreamChanged square"],
        "total": ["UpstreamChanged large", "UpstreamChanged square"],
        "known": ["ArgumentsChanged"],
    }, changed
    assert told(changed)["known"]["tasks"]["cached"] == 2 and told(changed)["known"]["tasks"]["run"] == 1, changed

    changed = check(cli, flows(CODE + "\n"), "--reuse")
    assert reasons(changed) == {
        "load": ["CodeChanged"],
        "tell": ["CodeChanged"],
        "known": ["CodeChanged"],
        "square": ["UpstreamChanged load"],
        "large": ["CodeChanged", "UpstreamChanged square"],
        "total": ["CodeChanged", "UpstreamChanged large", "UpstreamChanged square", "UpstreamChanged tell"],
    }, changed


def test_what_else_counts_is_told_by_its_name(cli: Cli, own_cli: Cli, flows: Callable[..., Path]) -> None:
    assert cli.run(flows(steps=[{"name": "a", "call": "flow:one"}, {"name": "b", "call": "flow:one"}])).code == 0

    def of_a(**fields: Any) -> list[str]:
        flow = flows(steps=[{"name": "a", "call": "flow:one", **fields}, {"name": "b", "call": "flow:one"}])
        said = plan(cli, flow, "--reuse", "-o", "json")
        assert actions(said) == {"a": "run", "b": "cached"}, said
        return reasons(said)["a"]

    assert of_a(env=[{"name": "A", "value": "1"}]) == ["EnvChanged"]
    assert of_a(cache={"version": "2"}) == ["CacheVersionChanged"]
    assert of_a(cache={"enabled": False}) == ["CacheDisabled"]
    assert of_a(cache={"maxAge": "1ms"}) == ["TooOld"]
    assert of_a(output={"serializer": "json"}) == ["OutputChanged"]
    assert of_a(args=[1]) == ["ArgumentsChanged"]
    assert of_a(dependsOn=["b"]) == ["UpstreamChanged b"]
    said = plan(cli, flows(steps=[{"name": "c", "call": "flow:one", "args": [7]}]), "--reuse", "-o", "json")
    assert reasons(said) == {"c": ["NeverFinished"]}, said
    same = flows(steps=[{"name": "a", "call": "flow:one"}], requirements=["msgpack"])
    assert reasons(check(cli, same, "--reuse")) == {"a": ["RequirementsChanged"]}
    # Of an image that a cluster has already nothing is known.
    image = {"template": {"workers": [{"name": "cpu", "replicas": 1, "threads": 1}], "image": "some/where:2"}}
    assert reasons(check(own_cli, flows(steps=[{"name": "a", "call": "flow:one"}], cluster=image), "--reuse")) == {
        "a": ["ImageChanged"]
    }


def test_what_was_not_finished_or_is_gone_runs(cli: Cli, flows: Callable[..., Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    flow = flows(steps=steps(broken=str(broken)))
    failed = cli.run(flow, "-o", "json")
    assert failed.code == 1, failed
    broken.unlink()
    said = check(cli, flow, "--reuse")
    assert reasons(said) == {
        "square": ["NeverFinished"], "large": ["NeverFinished"], "total": ["NeverFinished"]}, said
    assert told(said)["square"]["tasks"] == {"run": 1, "cached": 2, "skipped": 0, "fails": 0, "unknown": 0}, said

    uid = max((path.parent for path in (cli.storage / "runs").glob("*/data")), key=lambda path: path.stat().st_mtime).name
    (large,) = [path for path in (cli.storage / "runs" / uid / "data").rglob("*") if path.stat().st_size > 100_000]
    large.unlink()
    said = check(cli, flow, "--reuse-run", uid)
    assert reasons(said) == {"large": ["OutputGone"], "total": ["UpstreamChanged large"]}, said
    text = plan(cli, flow, "--reuse")
    assert "6 steps: 6 cached (compared with 3 earlier runs in file://" in text.out, text


def test_what_only_a_run_can_know_is_said_to_be_unknown(cli: Cli, flows: Callable[..., Path]) -> None:
    def flow(n: int) -> Path:
        return flows(
            steps=[
                {"name": "first", "script": f"output = {{'n': {n}, 'list': [1, 2]}}"},
                {"name": "perhaps", "call": "flow:one", "when": "steps.first.result.n > 1"},
                {"name": "after", "call": "flow:one", "args": ["$(steps.perhaps.output)"]},
                {"name": "sure", "call": "flow:one", "when": "params.n > 5"},
                {"name": "items", "call": "flow:one", "map": {"x": "$(steps.first.result.list)"}},
            ]
        )

    said = check(cli, flow(1))
    assert actions(said) == {
        "first": "run", "perhaps": "unknown", "after": "unknown", "sure": "skipped", "items": "run"}, said
    assert told(said)["after"]["unknownUntil"] == ["first"], said
    said = check(cli, flow(1), "--reuse")
    assert actions(said) == {
        "first": "cached", "perhaps": "skipped", "after": "skipped", "sure": "skipped", "items": "cached"}, said
    said = check(cli, flow(2), "--reuse")
    assert actions(said)["perhaps"] == actions(said)["after"] == "unknown", said
    assert told(said)["items"]["unknownUntil"] == ["first"], "made from values, which may come out as before"
    assert "unknown until first has run" in plan(cli, flow(3), "--reuse").out


def test_a_selection_is_told_with_what_it_loads(cli: Cli, flows: Callable[..., Path]) -> None:
    flow = flows(**{"finally": FINALLY})
    assert cli.run(flow).code == 0
    said = check(cli, flow, "--from", "large")
    assert actions(said) == {
        "load": "leftOut", "tell": "leftOut", "known": "leftOut", "square": "cached", "large": "run", "total": "run",
        "clean": "run",
    }, said
    said = check(cli, flow, "--only", "total", "--reuse")
    assert actions(said)["square"] == actions(said)["large"] == "cached", said
    said = check(cli, flow, "--tag", "telling", "--reuse")
    assert actions(said)["tell"] == "cached" and said.json["counts"]["leftOut"] == 5, said


def test_a_plan_is_refused_as_the_run_is(cli: Cli, flows: Callable[..., Path], tmp_path: Path) -> None:
    flow = flows(**{"finally": FINALLY})
    closed = tmp_path / "closed"
    closed.write_text("no folder")
    for words in [
        ["--only", "totl"],
        ["--from", "clean"],
        ["--only", "load", "--from", "total"],
        ["--tag", "tellin"],
        ["--only", "total"],
        ["--only", "total", "--reuse-run", "nobody"],
        ["--reuse-run", "nobody"],
        ["--param", "m=1"],
        ["--param", "n=x"],
        ["--params-file", "none.yaml"],
        ["--pipeline", "flo"],
        ["--workers", "gpu=1"],
        ["--reuse", "--storage", "s3://bucket/../x"],
        ["--reuse", "--storage", "ftp://x/y"],
    ]:
        said, ran = plan(cli, flow, *words), cli.run(flow, *words)
        hint = ran.err.splitlines()
        message = [line for line in hint if not line.startswith("the run can go on")]
        assert said.code == ran.code != 0, (words, said, ran)
        assert said.err.splitlines()[-1] in message[-1], (words, said, ran)
    said = cli("plan", flow, "--reuse", "--storage", f"file://{closed}")
    assert said.code == 3 and "NotFound" in said.err and str(closed) in said.err, said
    nowhere = ["--storage", "s3://bucket/x", "--storage-endpoint", "http://127.0.0.1:1"]
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    said = cli("plan", flow, "--reuse", *nowhere, env=keys)
    assert said.code == 3 and "StorageUnreachable: s3://bucket/x" in said.err, said
    archive = flows(code=CODE)
    document = json.loads(archive.read_text())
    document["spec"]["code"] = {"url": "file:///nowhere/flow.zip"}
    archive.write_text(json.dumps(document))
    assert cli("plan", archive).code == 0
    said = cli("plan", archive, "--reuse")
    assert said.code == 2 and "spec.code.url" in said.err, said


def test_objects_that_change_run_those_who_read_them(
    place: Place,
    manifest: Callable[..., Path],
) -> None:
    flow = manifest(
        CODE,
        [
            {"name": "read", "call": "flow:one", "map": {"day": ["mon", "tue"]},
             "inputs": {"given": {"path": "in/$(item.day).json"}}},
            {"name": "keep", "call": "flow:one", "output": {"path": "out/x.pkl", "ifExists": "Replace"}},
            {"name": "end", "call": "flow:one", "args": ["$(steps.read.output)", "$(steps.keep.output)"]},
        ],
    )
    place.put("in/mon.json", b"1")
    place.put("in/tue.json", b"2")

    def both() -> tuple[Done, dict[str, int]]:
        words: list[str | Path] = [*place.cli.where, *place.words, "--reuse", "-o", "json"]
        said = place.cli("plan", flow, *words, env=place.env, timeout=30)
        ran = place.run(flow, "--reuse", "-o", "json")
        assert ran.code == 0, ran
        cached = sum(step["tasks"]["cached"] for step in told(said).values())
        assert ran.json["steps"]["cached"] == cached, (said, ran)
        return said, ran.json["steps"]

    first, _ = both()
    assert first.json["counts"]["run"] == 3, first
    same, _ = both()
    assert same.json["counts"]["cached"] == 3, same
    place.put("in/tue.json", b"3")
    changed, _ = both()
    assert reasons(changed) == {"read": ["InputChanged in/tue.json"], "end": ["UpstreamChanged read"]}, changed
    place.put("out/x.pkl", place.get("out/x.pkl") + b" ")
    changed, _ = both()
    assert reasons(changed) == {"keep": ["OutputReplaced out/x.pkl"], "end": ["UpstreamChanged keep"]}, changed
