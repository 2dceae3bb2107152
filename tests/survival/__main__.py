"""`PYTHONPATH=tests python -m survival`: many seeds, a few at a time, and a line that counts."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import TOP
from support.s3.server import S3Server
from survival.faults import STORAGE, Scenario, scenario
from survival.run import Run, Tools, Verdict


class Servers:
    """S3 servers: one for all scenarios that leave it alone, and one for each that does not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shared: S3Server | None = None
        self._lock = threading.Lock()

    def lend(self, wanted: Scenario) -> tuple[S3Server | None, bool]:
        """A running server for a scenario, and whether it is its own."""
        if wanted.store != "s3":
            return None, False
        if any(fault.victim == STORAGE for fault in wanted.faults):
            return self._begin(f"s3-{wanted.seed}"), True
        with self._lock:
            if self._shared is None:
                self._shared = self._begin("s3")
            return self._shared, False

    def close(self) -> None:
        """End the shared server."""
        if self._shared is not None:
            self._shared.stop()

    def _begin(self, name: str) -> S3Server:
        return S3Server(self._folder / name)


def main() -> int:
    """Run the seeds that the command line asks for; 0 if all passed."""
    options = arguments()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="daskade-survival-"))
    tools = Tools(options.daskade.resolve(), options.python.absolute(), folder, folder / "cache")
    servers = Servers(folder)
    verdicts: list[Verdict] = []
    printing = threading.Lock()
    began = time.monotonic()

    def one(seed: int) -> None:
        wanted = scenario(seed)
        try:
            server, own = servers.lend(wanted)
            try:
                verdict = Run(wanted, tools, server).verdict()
            finally:
                if own and server is not None:
                    server.stop()
        except Exception:  # noqa: BLE001 - a harness that breaks must not pass for a product that works
            broken = ["harness: " + traceback.format_exc()]
            verdict = Verdict(wanted, broken, [], 0.0, folder / f"seed-{seed}")
        with printing:
            verdicts.append(verdict)
            say(verdict)

    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(one, seed) for seed in options.seeds]:
            done.result()
    servers.close()
    failed = [verdict for verdict in verdicts if verdict.broken]
    missed = sum(bool(verdict.missed) for verdict in verdicts)
    print(f"survival: {len(verdicts)} seeds in {time.monotonic() - began:.0f} s; faults that came too late: {missed}")
    for verdict in sorted(failed, key=lambda verdict: verdict.scenario.seed):
        print(f"failed: seed {verdict.scenario.seed}; again with: PYTHONPATH=tests python -m survival {verdict.scenario.seed}")
    print(f"{len(verdicts) - len(failed)} passed, {len(failed)} failed", flush=True)
    return 1 if failed else 0


def say(verdict: Verdict) -> None:
    """One line for a seed that passed; all that is known for one that failed."""
    word = "FAILED" if verdict.broken else "passed"
    late = f" [too late: {'; '.join(verdict.missed)}]" if verdict.missed else ""
    print(f"seed {verdict.scenario.seed:3} {word} {verdict.seconds:6.1f} s  {verdict.scenario}{late}", flush=True)
    if verdict.broken:
        for text in [*verdict.broken[:12], *(f"  {line}" for line in verdict.history)]:
            print(f"    {text}")
        for path in sorted(verdict.folder.glob("err-*")):
            print(f"    {path}:")
            for line in path.read_text(errors="replace").splitlines()[-25:]:
                print(f"      {line}")
        sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m survival", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="*", help="seeds to run (default: --count of them from --first on)")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=3, help="scenarios at a time")
    parser.add_argument("--daskade", type=Path, default=TOP / "target" / "release" / "daskade")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="environment that runs the steps")
    parser.add_argument("--folder", type=Path, help="where each seed keeps its files (default: a new one)")
    options = parser.parse_args()
    options.seeds = options.seeds or list(range(options.first, options.first + options.count))
    if not os.access(options.daskade, os.X_OK):
        parser.error(f"{options.daskade} is not there; build it by cargo build --release")
    return options


if __name__ == "__main__":
    sys.exit(main())
