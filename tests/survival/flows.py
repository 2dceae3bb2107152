"""The pipelines that are put under stress, with all that the oracle has to know about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.flow import Flow

# Runs inside the product, as the steps' code. Each execution appends one line when it starts and one when it
# ends, with a single write to a file opened for appending, so lines of concurrent processes never mix.
CODE = '''
import json
import os
import time
import uuid


class Noted:
    """Writes one line when an execution starts and one when it ends."""

    def __init__(self, ledger, step, item):
        self.ledger, self.about = ledger, {"s": step, "i": item, "p": os.getpid(), "x": uuid.uuid4().hex}

    def note(self, kind):
        line = json.dumps({"k": kind, **self.about, "m": time.monotonic(), "w": time.time()}) + "\\n"
        target = os.open(self.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(target, line.encode())
        finally:
            os.close(target)

    def __enter__(self):
        self.note("start")
        return self

    def __exit__(self, kind, error, trace):
        self.note("end" if kind is None else "raise")


def work(test, step, item, ms):
    """Take about `ms`; the first execution of the task that is chosen to be stuck takes much longer."""
    stuck = test.get("stuck")
    if stuck and stuck["step"] == step and stuck["item"] == item:
        try:
            os.close(os.open(test["ledger"] + ".stuck", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            time.sleep(stuck["seconds"])
    time.sleep(ms / 1000)


def box(test, value):
    """An output: large ones take the path through storage, small ones stay in the journal."""
    return {"v": value, "pad": "x" * test["pad"]}


def inc(i, test):
    with Noted(test["ledger"], "inc", i):
        work(test, "inc", i, test["ms"])
        return box(test, i + 1)


def dec(i, test):
    with Noted(test["ledger"], "dec", i):
        work(test, "dec", i, test["ms"])
        return box(test, i - 1)


def add(i, x, y, test):
    """No two executions return the same: what is kept under a name of its own must be what is committed."""
    with Noted(test["ledger"], "add", i):
        work(test, "add", i, test["ms"])
        return {**box(test, x["v"] + y["v"]), "n": uuid.uuid4().hex}


def total(items, test, step="total"):
    with Noted(test["ledger"], step, -1):
        work(test, step, -1, test["ms"])
        return sum(item["v"] for item in items)


def first(test):
    with Noted(test["ledger"], "s0", -1):
        work(test, "s0", -1, test["ms"])
        return box(test, 1)


def link(step, x, test):
    with Noted(test["ledger"], step, -1):
        work(test, step, -1, test["ms"])
        return box(test, x["v"] + 1)


def last(step, x, test):
    with Noted(test["ledger"], step, -1):
        work(test, step, -1, test["ms"])
        return x["v"] + 1


def seeds(n, test):
    with Noted(test["ledger"], "seeds", -1):
        work(test, "seeds", -1, test["ms"])
        return [{"i": i, "v": 3 * i + 1} for i in range(n)]


def double(seed, test):
    with Noted(test["ledger"], "double", seed["i"]):
        work(test, "double", seed["i"], test["ms"])
        return box(test, 2 * seed["v"])


def pick(items, test):
    with Noted(test["ledger"], "pick", -1):
        work(test, "pick", -1, test["ms"])
        return [{"i": at, "v": v} for at, v in enumerate(item["v"] for item in items if item["v"] % 4 == 0)]


def triple(seed, test):
    with Noted(test["ledger"], "triple", seed["i"]):
        work(test, "triple", seed["i"], test["ms"])
        return box(test, 3 * seed["v"])
'''


def write(
    flow: Flow, path: Path, ledger: Path, ms: int, pad: int, workers: int, stuck: dict[str, Any] | None, retries: int = 0
) -> None:
    """Write the manifest; JSON is YAML too."""
    retry = {"retry": {"limit": retries, "backoff": {"duration": "100ms"}}} if retries else {}
    test = {"ledger": str(ledger), "ms": ms, "pad": pad, "stuck": stuck or {}}
    manifest = {
        "apiVersion": "daskade.dev/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": flow.name},
        "spec": {
            "params": [{"name": "test", "type": "object", "default": test}],
            "code": {"files": {"flow.py": CODE}},
            "cluster": {"template": {"workers": [{"name": "cpu", "replicas": workers, "threads": 1}]}},
            "steps": [{**step, **retry} for step in flow.spec],
            "results": [{"name": "value", "value": f"$(steps.{flow.last}.output)"}],
        },
    }
    path.write_text(json.dumps(manifest, indent=1))


def diamond(n: int) -> Flow:
    """Two maps, an element-wise map over both, a sum: n * 3 + 1 tasks."""
    ids, test = f"$(range({n}))", "$(params.test)"
    spec = [
        {"name": "inc", "call": "flow:inc", "map": {"i": ids}, "args": {"test": test}},
        {"name": "dec", "call": "flow:dec", "map": {"i": ids}, "args": {"test": test}},
        {
            "name": "add",
            "call": "flow:add",
            "map": {"i": ids, "x": "$(steps.inc.output)", "y": "$(steps.dec.output)"},
            "args": {"test": test},
            "output": {"path": "kept/$(item.i).pkl"},
        },
        {"name": "total", "call": "flow:total", "args": {"items": "$(steps.add.output)", "test": test}},
    ]
    return Flow(
        name="diamond",
        steps=["inc", "dec", "add", "total"],
        items={"inc": n, "dec": n, "add": n, "total": None},
        inputs={"inc": [], "dec": [], "add": [("inc", True), ("dec", True)], "total": [("add", False)]},
        expected=n * (n - 1),
        spec=spec,
        kept={"add": "kept/{item}.pkl"},
    )


def chain(n: int) -> Flow:
    """n steps, each of which reads the one before."""
    test = "$(params.test)"
    names = [f"s{at}" for at in range(n)]
    spec: list[dict[str, Any]] = [{"name": "s0", "call": "flow:first", "args": {"test": test}}]
    for before, name in zip(names, names[1:], strict=False):
        call = "flow:last" if name == names[-1] else "flow:link"
        spec.append(
            {"name": name, "call": call, "args": {"step": name, "x": f"$(steps.{before}.output)", "test": test}}
        )
    return Flow(
        name="chain",
        steps=names,
        items=dict.fromkeys(names),
        inputs={"s0": [], **{name: [(before, False)] for before, name in zip(names, names[1:], strict=False)}},
        expected=n,
        spec=spec,
    )


def dynamic(n: int) -> Flow:
    """Two maps over lists that exist only once an earlier step has run."""
    test = "$(params.test)"
    doubled = [2 * (3 * i + 1) for i in range(n)]
    picked = [value for value in doubled if value % 4 == 0]
    spec = [
        {"name": "seeds", "call": "flow:seeds", "args": {"n": n, "test": test}},
        {"name": "double", "call": "flow:double", "map": {"seed": "$(steps.seeds.output)"}, "args": {"test": test}},
        {"name": "pick", "call": "flow:pick", "args": {"items": "$(steps.double.output)", "test": test}},
        {"name": "triple", "call": "flow:triple", "map": {"seed": "$(steps.pick.output)"}, "args": {"test": test}},
        {"name": "total", "call": "flow:total", "args": {"items": "$(steps.triple.output)", "test": test}},
    ]
    return Flow(
        name="dynamic",
        steps=["seeds", "double", "pick", "triple", "total"],
        items={"seeds": None, "double": n, "pick": None, "triple": len(picked), "total": None},
        inputs={
            "seeds": [],
            "double": [("seeds", False)],
            "pick": [("double", False)],
            "triple": [("pick", False)],
            "total": [("triple", False)],
        },
        expected=sum(3 * value for value in picked),
        spec=spec,
    )
