"""What a run on pods left behind, in the words of the oracle of `tests/survival`: its steps' own ledger on the S3 server, and
the journal as an independent reader decodes it. Nothing here asks the operator or the runtime.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

from support import oracle
from support.flow import Flow
from support.journal import Segment, decode
from support.kube.s3 import Folder

# Every mark is an object of its own. Its name says all: when it was made, by which process of which pod. A storage that is
# away is waited for, so that no execution is missing that lived to see it come back. All are in one folder: SeaweedFS, killed
# while it makes a folder for an object, may have the object for good without listing it.
LEDGER = """
import os, socket, time, uuid
from daskade_runtime.storage import open_store

def mark(step, item, execution, kind):
    where = "%s.%d" % (socket.gethostname(), os.getpid())
    name = "%s,%d,%s,%s,%.6f,%s" % (step, item, execution, kind, time.time(), where)
    store = open_store({"url": LEDGER_URL})
    end = time.monotonic() + 180
    while True:
        try:
            return store.put(name, b"x")
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)

def work(step, item, seconds):
    execution = uuid.uuid4().hex
    mark(step, item, execution, "start")
    time.sleep(seconds)
    return lambda: mark(step, item, execution, "end")

def first(i, seconds):
    end = work("first", i, seconds)
    end()
    # Too large for the journal: it takes the path through the storage.
    return {"v": i + 1, "pad": "x" * 50_000}

def second(i, x, seconds):
    end = work("second", i, seconds)
    end()
    return x["v"] * 3

def total(values):
    end = work("total", -1, 0)
    open_store({"url": LEDGER_URL}).put("result,%d" % sum(values), b"x")
    end()
    return sum(values)
"""
STEPS = ["first", "second", "total"]
# The server's clock tells seconds only.
GRAIN = 1.0


@dataclass(frozen=True)
class Mark:
    """One execution: which task, when it began and ended by the clock of its pod, and where."""

    step: str
    item: int
    start: float
    end: float | None
    pod: str
    pid: int


class Case:
    """A pipeline of ``width`` steps that take ``seconds``, as many that follow each of them, and their sum."""

    def __init__(self, s3: Folder, name: str, width: int, seconds: float) -> None:
        self.s3, self.name, self.width, self.seconds = s3, name, width, seconds
        inputs = {"first": [], "second": [("first", True)], "total": [("second", False)]}
        items = {"first": width, "second": width, "total": None}
        expected = 3 * sum(range(1, width + 1))
        self.flow = Flow("pods", STEPS, items, inputs, expected, [])

    def pipeline(self, **where: Any) -> dict[str, Any]:
        over, seconds = f"$(range({self.width}))", {"seconds": self.seconds}
        both = {"i": over, "x": "$(steps.first.output)"}
        steps = [
            {"name": "first", "call": "ledger:first", "map": {"i": over}, "args": seconds},
            {"name": "second", "call": "ledger:second", "map": both, "args": seconds},
            {"name": "total", "call": "ledger:total", "args": ["$(steps.second.output)"]},
        ]
        results = [{"name": "value", "value": "$(steps.total.output)"}]
        code = {"files": {"ledger.py": LEDGER.replace("LEDGER_URL", repr(self.s3.url(f"ledger-{self.name}")))}}
        return {"code": code, "steps": steps, "results": results, **where}

    def marks(self) -> list[Mark]:
        """Every execution so far, in order of their starts."""
        found: dict[str, dict[str, tuple[str, int, float, str]]] = {}
        for key in self.s3.keys(f"ledger-{self.name}/"):
            words = key.split("/")[1].split(",")
            if words[0] != "result":
                step, number, execution, kind, at, where = words
                found.setdefault(execution, {})[kind] = (step, int(number), float(at), where)
        marks = []
        for kinds in found.values():
            # An end whose start was killed on its way cannot be: one thread makes both.
            step, item, start, where = kinds["start"]
            pod, _, pid = where.rpartition(".")
            marks.append(Mark(step, item, start, kinds["end"][2] if "end" in kinds else None, pod, int(pid)))
        return sorted(marks, key=lambda mark: mark.start)

    def segments(self, uid: str) -> list[Segment]:
        """The journal. A segment counts as durable at the last moment that the server's time of it can mean."""
        written = self.s3.written(f"{self.name}/runs/{uid}/journal/")
        keys = sorted(key for key in written if key.endswith(".seg"))
        return [decode(self.s3.read(key), written[key] + GRAIN) for key in keys]

    def broken(self, uid: str, state: str) -> list[str]:
        """The rules that the run broke. ``state`` is what the operator told of its end."""
        executions = []
        for mark in self.marks():
            task = (STEPS.index(mark.step), mark.item)
            # A step ends by itself and says so: one that did not was dead before that.
            pid = zlib.crc32(f"{mark.pod}.{mark.pid}".encode())
            end = mark.end if mark.end is not None else mark.start + self.seconds + GRAIN
            executions.append(oracle.Execution(task, pid, mark.start, mark.start, end, mark.end is None))
        results = [int(key.rsplit(",", 1)[1]) for key in self.s3.keys(f"ledger-{self.name}/result,")]
        answer = {"state": state, "results": {"value": results[-1] if len(set(results)) == 1 else results}}
        prefix = f"{self.name}/runs/{uid}"
        evidence = oracle.Evidence(
            self.flow, 0, answer, executions, self.segments(uid), objects=lambda path: self.s3.find(f"{prefix}/{path}")
        )
        return oracle.check(evidence)

    def show(self) -> str:
        """The ledger for people."""
        return "\n".join(json.dumps(mark.__dict__) for mark in self.marks())
