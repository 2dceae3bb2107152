"""What runs cost the operator: many short ones, many that are live at once, and none.

    cargo build --profile dist --features otlp
    PYTHONPATH=tests python3 bench/operator/runs.py                  # 1 000 runs of one step, then 500 that do not end
    PYTHONPATH=tests python3 bench/operator/runs.py --profile        # and where the operator's time goes, by perf

On the control plane of ``plane.py``, with schedulers of ``simulated.py`` that carry out runs in memory: everything between
a PipelineRun and its scheduler is real, steps and storage are not. Prints Markdown. Needs Go and root, or user namespaces.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from plane import Object, Plane, build_kwok, enter_namespace, kubernetes, workspace
from scale import CLUSTERS, Daskade, Schedulers, amount, busy, condition_is_true, environment, profile, say, short
from support import TOP
from support.waiting import until

RUNS = "/apis/daskade.dev/v1alpha1/namespaces/{}/pipelineruns"
SPACE = "bench-runs"


@dataclass
class Figures:
    """What was measured."""

    seconds: float = 0.0
    median: float = 0.0
    last: float = 0.0
    writes: dict[str, int] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    own_writes: int = 0
    cpu: float = 0.0
    calls: int = 0
    cores: dict[str, float] = field(default_factory=dict)
    load: float = 0.0
    peak: float = 0.0
    rest_cpu: float = 0.0
    rest_writes: dict[str, int] = field(default_factory=dict)
    rest_rss: float = 0.0
    base_rss: float = 0.0
    live_rss: float = 0.0
    live_cpu: float = 0.0
    live_writes: dict[str, int] = field(default_factory=dict)
    connections: int = 0
    base_connections: int = 0


class Ended:
    """When each run was seen to begin and to end, as the API server shows it to anybody who watches."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.began: dict[str, float] = {}
        self.failed: list[Object] = []

    def __call__(self, kind: str, run: Object) -> None:
        name = run["metadata"]["name"]
        if kind == "DELETED" or name in self.at:
            return
        status = run.get("status", {})
        if status.get("state") == "Running":
            self.began.setdefault(name, time.monotonic())
        for condition in status.get("conditions", []):
            if condition["type"] == "Succeeded" and condition["status"] != "Unknown":
                self.at[name] = time.monotonic()
                if condition["status"] != "True":
                    self.failed.append(condition)


def cluster(n: int, tls: str) -> Object:
    spec: Object = {"workers": [{"name": "cpu", "replicas": 1}], "storage": {"url": "s3://bench/runs"}}
    if tls == "Disabled":
        spec["tls"] = {"mode": "Disabled"}
    return {"apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "metadata": {"name": f"c{n}"}, "spec": spec}


def run(name: str, cluster: str) -> Object:
    """One step, on a cluster that others use too."""
    code = {"files": {"flow.py": "def step():\n    return 1\n"}}
    spec = {"steps": [{"name": "a", "call": "flow:step"}], "cluster": {"ref": cluster}, "code": code}
    return {
        "apiVersion": "daskade.dev/v1alpha1", "kind": "PipelineRun", "metadata": {"name": name},
        "spec": {"pipelineSpec": spec},
    }


def post(plane: Plane, names: list[str], clusters: int) -> dict[str, float]:
    """Makes the runs, eight at a time; when each was asked for."""
    at: dict[str, float] = {}

    def some(part: list[str]) -> None:
        for name in part:
            at[name] = time.monotonic()
            plane.api("POST", RUNS.format(SPACE), run(name, f"c{int(name.rsplit('-', 1)[1]) % clusters}"))

    threads = [threading.Thread(target=some, args=(names[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return at


def wait(plane: Plane, seen: Ended, names: list[str], patience: float) -> None:
    """Until all have ended well."""
    end, told = time.monotonic() + patience, time.monotonic()
    while missing := len([name for name in names if name not in seen.at]):
        time.sleep(0.05)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            plane.check()
            say(f"  {missing} have not ended; load {os.getloadavg()[0]:.1f}")
        if time.monotonic() > end:
            raise SystemExit(f"{missing} of {len(names)} runs have not ended")
    if seen.failed:
        raise SystemExit(f"{len(seen.failed)} runs have failed: {seen.failed[0]}")


def many(plane: Plane, operator: Daskade, schedulers: Schedulers, seen: Ended, options: argparse.Namespace) -> Figures:
    """As many runs as are asked for, from the first POST to the last end."""
    figures = Figures()
    say(f"{options.runs} runs of one step on {options.clusters} clusters")
    schedulers.ask("reset")
    operator.audit.mark()
    own, before, began = operator.writes(), plane.usages(), time.monotonic()
    names = [f"many-{n}" for n in range(options.runs)]
    posted = post(plane, names, options.clusters)
    wait(plane, seen, names, options.patience)
    figures.seconds = max(seen.at[name] for name in names) - min(posted.values())
    figures.median = statistics.median(seen.at[name] - posted[name] for name in names)
    figures.last = max(posted.values()) - min(posted.values())
    after, watched = plane.usages(), time.monotonic() - began
    figures.cores, figures.load = busy(before, after, watched), os.getloadavg()[0]
    say(f"  ended after {figures.seconds:.1f} s: {options.runs / figures.seconds:.1f} per second")
    until("none is open", lambda: schedulers.ask()["runs"] == 0, every=0.1)
    time.sleep(5)
    figures.cpu = operator.usage().cpu - before["daskade"].cpu
    figures.writes, figures.reads = operator.audit.writes(), operator.audit.reads()
    figures.own_writes = operator.writes() - own
    figures.calls = schedulers.ask()["calls"]
    figures.peak = operator.usage().peak
    return figures


def rest(plane: Plane, operator: Daskade, options: argparse.Namespace) -> tuple[float, dict[str, int]]:
    """Share of a core, and writes, while nothing is asked for."""
    time.sleep(options.settle)
    operator.audit.mark()
    before, began = plane.usages(), time.monotonic()
    time.sleep(options.idle)
    cpu = busy(before, plane.usages(), time.monotonic() - began)["daskade"]
    return cpu, operator.audit.writes()


def live(
    plane: Plane, operator: Daskade, schedulers: Schedulers, seen: Ended, options: argparse.Namespace, figures: Figures
) -> None:
    """Runs that do not end, in a fresh process."""
    operator.stop()
    operator.start()
    time.sleep(options.settle)
    figures.base_rss, figures.base_connections = operator.usage().rss, schedulers.ask()["connections"]
    say(f"{options.live} runs that do not end; {figures.base_rss:.1f} MiB before")
    schedulers.ask("hold")
    names = [f"live-{n}" for n in range(options.live)]
    post(plane, names, options.clusters)
    until("all of them run", lambda: schedulers.ask()["running"] == options.live, options.patience, 0.5)
    until("all are told of", lambda: all(name in seen.began for name in names), options.patience, 0.5)
    figures.live_cpu, figures.live_writes = rest(plane, operator, options)
    figures.live_rss, figures.connections = operator.usage().rss, schedulers.ask()["connections"]
    schedulers.ask("release")
    wait(plane, seen, names, options.patience)


def report(figures: Figures, options: argparse.Namespace) -> None:
    per_run = (figures.live_rss - figures.base_rss) * 1024 / max(1, options.live)
    connections = (figures.connections - figures.base_connections) / max(1, options.live)
    everything = sum(figures.cores.values()) * figures.seconds / options.runs * 1000
    rows = [
        ("runs of one step, clusters", "", f"{options.runs:,}, {options.clusters}"),
        ("from the first POST to the last end, s", "", f"{figures.seconds:.1f}"),
        ("runs per second", "40", f"{options.runs / figures.seconds:.1f}"),
        ("one run, median, s", "", f"{figures.median:.2f}"),
        ("all were asked for after, s", "", f"{figures.last:.1f}"),
        ("API writes per run (audit log)", "10", amount(figures.writes, options.runs)),
        ("API writes per run (own metric)", "the same", f"{figures.own_writes / options.runs:.1f}"),
        ("API reads per run (audit log)", "", amount(figures.reads, options.runs)),
        ("calls to a scheduler per run", "", f"{figures.calls / options.runs:.1f}"),
        ("CPU of the operator per run, ms", "", f"{figures.cpu / options.runs * 1000:.1f}"),
        ("CPU of all processes per run, ms", "", f"{everything:.0f}"),
        ("memory at most, MiB", "", f"{figures.peak:.1f}"),
        ("at rest, all ended: memory, MiB", "", f"{figures.rest_rss:.1f}"),
        ("at rest: % of a core", "1", f"{figures.rest_cpu * 100:.2f}"),
        ("at rest: writes", "0", str(sum(figures.rest_writes.values()))),
        (f"fresh process, no run, {options.runs:,} ended: memory, MiB", "", f"{figures.base_rss:.1f}"),
        (f"{options.live} live runs: memory, MiB", "", f"{figures.live_rss:.1f}"),
        ("one live run: memory, KiB", "", f"{per_run:.0f}"),
        ("one live run: connections to schedulers", "1", f"{connections:.2f}"),
        (f"{options.live} live runs in which nothing happens: % of a core", "", f"{figures.live_cpu * 100:.2f}"),
        ("the same: writes", "0", str(sum(figures.live_writes.values()))),
        ("load of the machine", "", f"{figures.load:.1f}"),
    ]
    print(f"\nTLS {options.tls}, steps of {options.step:g} s, {os.cpu_count()} cores\n")
    print("| | aim | |\n|---|--:|--:|")
    for title, aim, cell in rows:
        print(f"| {title} | {aim} | {cell} |")
    print(f"\nwrites {short(figures.writes)}; reads {short(figures.reads)}")
    print(f"at rest: writes {short(figures.rest_writes)}; with live runs {short(figures.live_writes)}")
    cores = ", ".join(f"{name} {value:.2f}" for name, value in sorted(figures.cores.items(), key=lambda kv: -kv[1]))
    print(f"cores while runs came: {cores}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=TOP / "target/dist/daskade")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--live", type=int, default=500, help="runs that are live at once; 0: without")
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--step", type=float, default=0.05, help="seconds that a step takes")
    parser.add_argument("--tls", choices=["Disabled", "Auto"], default="Auto")
    parser.add_argument("--settle", type=float, default=20, help="seconds before a measurement at rest")
    parser.add_argument("--idle", type=float, default=60, help="seconds at rest")
    parser.add_argument("--patience", type=float, default=600)
    parser.add_argument("--profile", action="store_true", help="with a profile by perf")
    parser.add_argument("--keep", action="store_true", help="keep state and logs")
    options = parser.parse_args()
    if not options.binary.exists():
        parser.error(f"{options.binary} is not there: cargo build --profile dist --features otlp")
    python, kube, kwok = environment(), kubernetes(), build_kwok()
    enter_namespace()
    with workspace(options.keep) as folder, Plane(folder, kube, kwok) as plane:
        operator = Daskade(plane, options.binary)
        schedulers = Schedulers(plane, python, "--step", str(options.step))
        plane.namespace(SPACE)
        operator.start()
        plane.api.create(CLUSTERS.format(SPACE), [cluster(n, options.tls) for n in range(options.clusters)])

        def ready() -> bool:
            return all(condition_is_true(found) for found in plane.api.all(CLUSTERS.format(SPACE)))

        until("the clusters are ready", ready, 300, 0.5)
        seen, stop = Ended(), threading.Event()
        plane.api.watch(RUNS.format(SPACE), seen, stop)
        time.sleep(5)
        figures = many(plane, operator, schedulers, seen, options)
        if options.profile:
            say("the same once more, with a profile")
            names = [f"profiled-{n}" for n in range(options.runs)]

            def work() -> None:
                post(plane, names, options.clusters)
                wait(plane, seen, names, options.patience)

            profile(plane, work)
        figures.rest_cpu, figures.rest_writes = rest(plane, operator, options)
        figures.rest_rss = operator.usage().rss
        if options.live:
            live(plane, operator, schedulers, seen, options, figures)
        stop.set()
        report(figures, options)
        operator.stop()
    missed = [
        f"{title}: {value:.1f}, at most {most}"
        for title, value, most in (
            ("writes per run", sum(figures.writes.values()) / options.runs, 10),
            ("writes at rest", sum(figures.rest_writes.values()), 0),
            ("writes while nothing happens in live runs", sum(figures.live_writes.values()), 0),
        )
        if value > most
    ]
    for aim in missed:
        print(f"MISSED {aim}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
