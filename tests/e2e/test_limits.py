"""Runs with more results than anybody keeps in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.cli import Cli

CODE = """
import os

def make(i):
    return {"i": i, "text": "x" * 16000}

def number(x):
    return x["i"]

def gate(path):
    if not os.path.exists(path):
        raise ValueError("it is closed")

def deep(n):
    value = 1
    for _ in range(n):
        value = [value]
    return value

def long(n):
    return list(range(n))
"""

# 35 MiB of results: more than the scheduler and the command keep.
ITEMS = 2300


def test_a_run_with_more_results_than_are_kept_in_memory_is_resumed(
    on_cluster: Cli, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    steps = [
        {"name": "make", "call": "flow:make", "map": {"i": f"$(range({ITEMS}))"}},
        {"name": "soon", "call": "flow:number", "map": {"x": "$(steps.make.result)"}, "when": "item.x.i >= 2290"},
        {"name": "gate", "call": "flow:gate", "args": [str(tmp_path / "open")]},
        {
            "name": "late",
            "call": "flow:number",
            "map": {"x": "$(steps.make.result)"},
            "when": "item.x.i % 300 == 0 || item.x.i >= 2290",
            "dependsOn": ["gate"],
        },
    ]
    results = {
        "all": "$(steps.make.output)",
        "late": "$(compact(steps.late.output))",
        "soon": "$(compact(steps.soon.output))",
    }
    named = [{"name": name, "value": value} for name, value in results.items()]
    done = on_cluster.run(manifest(CODE, steps, results=named), "-o", "json", timeout=240)
    assert done.code == 1 and "it is closed" in done.json["message"], done
    (tmp_path / "open").touch()
    uid = done.json["uid"]
    done = on_cluster("resume", uid, *on_cluster.where, "-o", "json", timeout=240)
    assert done.code == 0, done
    assert done.counts()["cached"] == ITEMS + 10
    found = done.json["results"]
    last = list(range(2290, ITEMS))
    assert (found["soon"], found["late"]) == (last, [*range(0, 2290, 300), *last])
    assert found["all"]["uri"].endswith(f"/runs/{uid}"), "too large to be shown"


def test_what_no_reader_takes_fails_the_step_that_returns_it(
    on_cluster: Cli, manifest: Callable[..., Path]
) -> None:
    for call, kind, size, words in [
        ("deep", "result", 61, "nested more than 60 deep"),
        ("long", "output", 1_000_001, "1000001 elements; at most 1000000 are allowed"),
    ]:
        each = {"name": "each", "call": "flow:number", "map": {"x": f"$(steps.first.{kind})"}}
        first = {"name": "first", "call": f"flow:{call}", "args": [size]}
        done = on_cluster.run(manifest(CODE, [first, each]), "-o", "json")
        assert done.code == 1, done
        (failure,) = done.json["failures"]
        assert (failure["step"], failure["class"]) == ("first", "data") and words in failure["message"], done
