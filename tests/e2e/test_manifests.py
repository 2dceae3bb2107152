"""Manifests that are refused: exit code 2, and a text that says where and what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli

HEAD = "apiVersion: daskade.dev/v1alpha1\nkind: Pipeline\nmetadata: {name: bad}\n"


def steps(*lines: str, more: str = "") -> str:
    return HEAD + "spec:\n" + more + "  steps:\n" + "".join(f"  - {line}\n" for line in lines)


BAD: list[tuple[str, str, list[str], list[str]]] = [
    (
        "cycle",
        steps("{name: a, call: 'm:f', args: [$(steps.b.output)]}", "{name: b, call: 'm:f', args: [$(steps.a.output)]}"),
        [],
        ["DependencyCycle", "a", "b"],
    ),
    (
        "unknown step",
        steps("{name: load, call: 'm:f'}", "{name: b, call: 'm:f', args: [$(steps.laod.output)]}"),
        [],
        ["UnknownStep", "laod", "load"],
    ),
    ("duplicate step", steps("{name: a, call: 'm:f'}", "{name: a, call: 'm:f'}"), [], ["steps[1]", "a"]),
    ("no steps", HEAD + "spec:\n  steps: []\n", [], ["steps"]),
    ("typo", steps("{name: a, call: 'm:f', retires: 3}"), [], ["retires", "retry"]),
    ("call and script", steps("{name: a, call: 'm:f', script: 'x'}"), [], ["call", "script"]),
    ("not yaml", "a: [1, 2\nb: {", [], ["bad.yaml:2", "InvalidYaml"]),
    ("empty", "", [], ["bad.yaml", "Empty"]),
    (
        "another kind",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n",
        [],
        ["bad.yaml", "no DaskCluster, Pipeline or PipelineRun"],
    ),
    ("undefined parameter", steps("{name: a, call: 'm:f', args: [$(params.n)]}"), [], ["UndefinedParameter", "n"]),
    (
        "missing parameter",
        steps("{name: a, call: 'm:f', args: [$(params.n)]}", more="  params: [{name: n, type: integer}]\n"),
        [],
        ["MissingParameter", "n"],
    ),
    (
        "wrong type",
        steps("{name: a, call: 'm:f', args: [$(params.n)]}", more="  params: [{name: n, type: integer}]\n"),
        ["--param", "n=many"],
        ["InvalidParameter", "n", "integer"],
    ),
    ("unknown parameter", steps("{name: a, call: 'm:f'}"), ["--param", "size=1"], ["UnknownParameter", "size"]),
    ("expression", steps("{name: a, call: 'm:f', when: 'params. >'}"), [], ["when"]),
    ("too many items", steps("{name: a, call: 'm:f', map: {x: $(range(2000000))}}"), [], ["TooManyItems"]),
    ("name", steps("{name: Load_It, call: 'm:f'}"), [], ["Load_It"]),
    ("timeout", steps("{name: a, call: 'm:f', timeout: 10 parsecs}"), [], ["timeout", "10 parsecs"]),
    ("a path to nowhere", steps("{name: a, call: 'm:f', output: {path: ../x.pkl}}"), [], ["output.path", '".."']),
    ("group", steps("{name: a, call: 'm:f', workerGroup: tpu}"), [], ["workerGroup", "tpu"]),
    ("option", steps("{name: a, call: 'm:f'}"), ["--workers", "nobody=3"], ["nobody"]),
]


@pytest.mark.parametrize(("text", "words", "wanted"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_manifest_is_refused_before_anything_starts(
    cli: Cli, tmp_path: Path, text: str, words: list[Any], wanted: list[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    done = cli.run(path, *words, timeout=20)
    assert done.code == 2, done
    assert all(word in done.err for word in wanted), (wanted, done)
    assert "bad" in done.err or words, done
    assert "panicked" not in done.err
    assert not cli.storage.exists()
    if not words:
        checked = cli("validate", path, timeout=20)
        # What depends on the values of parameters is seen only by a run.
        if not {"MissingParameter", "TooManyItems"} & set(wanted):
            assert checked.code == 2, checked


def test_a_file_that_is_not_there_is_named(cli: Cli) -> None:
    done = cli("run", "nowhere.yaml", timeout=20)
    assert done.code == 2 and "nowhere.yaml" in done.err, done


def test_all_problems_are_told_at_once(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        steps("{name: a, call: 'm:f', args: [$(steps.x.output)]}", "{name: b, call: 'm:f', args: [$(steps.y.output)]}")
    )
    done = cli("validate", path, timeout=20)
    assert done.code == 2 and "steps[0]" in done.err + done.out and "steps[1]" in done.err + done.out, done


def test_a_file_of_one_long_line_and_one_of_deep_nesting_are_read_quickly(cli: Cli, tmp_path: Path) -> None:
    long = tmp_path / "long.yaml"
    long.write_text(steps("{name: a, call: 'm:f', args: ['" + "x" * 900_000 + "']}"))
    done = cli("validate", long, timeout=10)
    assert done.code in (0, 2) and "panicked" not in done.err, done.err[:500]
    deep = tmp_path / "deep.yaml"
    deep.write_text(steps("{name: a, call: 'm:f', args: " + "[" * 20_000 + "]" * 20_000 + "}"))
    done = cli("validate", deep, timeout=10)
    assert done.code == 2 and "panicked" not in done.err, done.err[:500]
    laughs = tmp_path / "laughs.yaml"
    laughs.write_text(
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    )
    done = cli("validate", laughs, timeout=10)
    assert done.code == 2 and "panicked" not in done.err, done.err[:500]
