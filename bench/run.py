"""What a step costs: daskade beside a plain `distributed.Client` on the same machine, in one go.

    PYTHONPATH=tests python bench/run.py --python ENVIRONMENT/bin/python

Both sides have the same number of one-thread workers. Times are of the work alone: for daskade from the start of the
first step to the durable final record, for the client from the first submit to the gathered result. Starting and
ending processes is told apart. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import TOP
from support.journal import records
from support.stores import Directory

CODE = """
def inc(x):
    return x + 1


def dec(x):
    return x - 1


def add(x, y):
    return x + y
"""

# Runs in the environment of the steps, in a process of its own; prints [seconds of work, seconds in all].
PLAIN = (
    """
import json, sys, time
import dask
from distributed import Client, LocalCluster
"""
    + CODE
    + """
def diamond(client, n):
    incs = client.map(inc, range(n), pure=False)
    decs = client.map(dec, range(n), pure=False)
    return client.submit(sum, client.map(add, incs, decs, pure=False), pure=False).result()


def chain(client, n):
    value = client.submit(inc, 0, pure=False)
    for _ in range(n - 1):
        value = client.submit(inc, value, pure=False)
    return value.result()


if __name__ == "__main__":
    shape, n, workers, saturation, expected = sys.argv[1:]
    began = time.perf_counter()
    dask.config.set({"distributed.scheduler.worker-saturation": float(saturation)})
    with LocalCluster(
        n_workers=int(workers), threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster, Client(cluster) as client:
        client.wait_for_workers(int(workers))
        start = time.perf_counter()
        found = globals()[shape](client, int(n))
        worked = time.perf_counter() - start
        assert found == int(expected), found
    print(json.dumps([worked, time.perf_counter() - began]))
"""
)


@dataclass(frozen=True)
class Shape:
    """A DAG to run, and what it gives."""

    kind: str
    n: int

    @property
    def tasks(self) -> int:
        return 3 * self.n + 1 if self.kind == "diamond" else self.n

    @property
    def expected(self) -> int:
        return self.n * (self.n - 1) if self.kind == "diamond" else self.n

    def __str__(self) -> str:
        return f"diamond n={self.n:,} ({self.tasks:,} tasks)" if self.kind == "diamond" else f"chain of {self.n}"

    def steps(self) -> list[dict[str, Any]]:
        """The steps of the manifest."""
        if self.kind == "diamond":
            return [
                {"name": "inc", "call": "flow:inc", "map": {"x": f"$(range({self.n}))"}},
                {"name": "dec", "call": "flow:dec", "map": {"x": f"$(range({self.n}))"}},
                {"name": "add", "call": "flow:add", "map": {"x": "$(steps.inc.output)", "y": "$(steps.dec.output)"}},
                {"name": "last", "call": "builtins:sum", "args": ["$(steps.add.output)"]},
            ]
        steps: list[dict[str, Any]] = [{"name": "s1", "call": "flow:inc", "args": [0]}]
        for at in range(2, self.n + 1):
            name = "last" if at == self.n else f"s{at}"
            steps.append({"name": name, "call": "flow:inc", "args": [f"$(steps.s{at - 1}.output)"]})
        return steps


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    work: float
    total: float
    memory: int = 0
    segments: int = 0


def measure_daskade(shape: Shape, options: argparse.Namespace) -> Sample:
    """One run of the command on a directory store."""
    with tempfile.TemporaryDirectory(prefix="daskade-bench-") as name:
        folder = Path(name)
        manifest = folder / "flow.yaml"
        spec = {
            "code": {"files": {"flow.py": CODE}},
            "cluster": {"template": {"workers": [{"name": "cpu", "replicas": options.workers, "threads": 1}]}},
            "steps": shape.steps(),
            "results": [{"name": "value", "value": "$(steps.last.output)"}],
        }
        manifest.write_text(
            json.dumps(
                {"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": "bench"}, "spec": spec}
            )
        )
        command = [str(options.daskade), "run", str(manifest), "--storage", f"file://{folder}/storage"]
        command += ["--python", str(options.python), "-o", "json"]
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(folder / "err").open("wb"),
            env={**os.environ, "DASKADE_HOME": str(folder / "home")},
        )
        peak = Peak(process.pid)
        out, _ = process.communicate()
        total = time.perf_counter() - began
        answer = json.loads(out) if process.returncode == 0 else {}
        if (answer.get("results") or {}).get("value") != shape.expected:
            text = (folder / "err").read_text(errors="replace")[-3000:]
            raise SystemExit(f"{shape}: exit code {process.returncode}, {out[:1000]!r}\n{text}")
        store = Directory(folder / "storage")
        segments = store.segments(answer["uid"])
        # The client's workers are waited for as well before its clock starts.
        first = min(record[6] for record in records(segments, "committed"))
        work = records(segments, "final")[0][1]["t"] - first
        return Sample(work, total, peak.bytes(), len(segments))


class Peak:
    """Highest resident memory of a process, as the kernel counts it."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._bytes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def bytes(self) -> int:
        self._thread.join(1)
        return self._bytes

    def _watch(self) -> None:
        while True:
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
            if not found:
                return
            self._bytes = max(self._bytes, *found)
            time.sleep(0.02)


def measure_plain(shape: Shape, saturation: str, options: argparse.Namespace) -> Sample:
    """The same work by a plain client with a LocalCluster."""
    with tempfile.TemporaryDirectory(prefix="daskade-bench-") as folder:
        script = Path(folder) / "plain.py"
        script.write_text(PLAIN)
        words = [shape.kind, str(shape.n), str(options.workers), saturation, str(shape.expected)]
        done = subprocess.run([options.python, script, *words], stdout=subprocess.PIPE, check=True, cwd=folder)
        work, total = json.loads(done.stdout)
        return Sample(work, total)


def main() -> int:
    """Measure everything and print the table."""
    options = arguments()
    shapes = [Shape("diamond", n) for n in options.n] + [Shape("chain", n) for n in options.chain]
    sides: dict[str, Callable[[Shape], Sample]] = {
        "daskade": lambda shape: measure_daskade(shape, options),
        "client, saturation 1.1": lambda shape: measure_plain(shape, "1.1", options),
        "client, saturation inf": lambda shape: measure_plain(shape, "inf", options),
    }
    cores = os.cpu_count()
    print(
        f"{options.workers} workers of one thread, {cores} cores, {options.repeat} run(s) each, the median is shown.\n"
    )
    print("| DAG | side | work, s | ms per step | against 1.1 | against inf | start and end, s | peak MiB | journal |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for shape in shapes:
        found: dict[str, Sample] = {}
        for side, take in sides.items():
            samples = sorted((take(shape) for _ in range(options.repeat)), key=lambda sample: sample.work)
            found[side] = samples[len(samples) // 2]
            start = statistics.median(sample.total - sample.work for sample in samples)
            print(f"{shape} {side}: {found[side].work:.2f} s, {start:.2f} s around it", file=sys.stderr, flush=True)
        for side, sample in found.items():
            ratios = [sample.work / found[f"client, saturation {other}"].work for other in ("1.1", "inf")]
            own = [f"{sample.memory / 2**20:.0f}", f"{sample.segments}"] if sample.segments else ["", ""]
            cells = [str(shape), side, f"{sample.work:.2f}", f"{sample.work / shape.tasks * 1000:.2f}"]
            cells += [f"{ratio:.2f}" for ratio in ratios] + [f"{sample.total - sample.work:.1f}", *own]
            print("| " + " | ".join(cells) + " |", flush=True)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python bench/run.py", description=__doc__)
    parser.add_argument("--n", type=int, nargs="*", default=[100, 1000, 10000], help="widths of the diamond")
    parser.add_argument("--chain", type=int, nargs="*", default=[50], help="lengths of the chain")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--daskade", type=Path, default=TOP / "target/dist/daskade")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="environment with dask")
    options = parser.parse_args()
    options.daskade, options.python = options.daskade.resolve(), options.python.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
