"""One scenario from start to verdict."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import processes
from support.journal import Malformed, commits
from support.oracle import Evidence, check, read_ledger
from support.s3.server import S3Server
from support.stores import S3, Directory, Store
from survival import faults
from survival.faults import Fault, Scenario
from survival.flows import write

# From the last fault to the end of the run: a hung scheduler may take 60 s to be noticed, an outage lasts 20 s.
DEADLINE = 150.0
# Processes of a killed command may take this long to notice.
ORPHANS = 30.0
# After a command has ended by itself nothing of it may be left; the margin is for a loaded machine.
LEFT = 5.0
# A task that is stuck would stay so for longer than any bound that is checked.
STUCK_SECONDS = 100.0
TICK = 0.02


@dataclass(frozen=True)
class Tools:
    """What is tested, and with what."""

    daskade: Path
    python: Path
    folder: Path
    cache: Path


@dataclass
class Verdict:
    """How a scenario ended."""

    scenario: Scenario
    broken: list[str]
    missed: list[str]
    seconds: float
    folder: Path
    history: list[str] = field(default_factory=list)


class Run:
    """Drives one run: starts the command, waits for points, hits, resumes, and collects evidence."""

    def __init__(self, scenario: Scenario, tools: Tools, server: S3Server | None) -> None:
        self.scenario, self.tools, self.server = scenario, tools, server
        self.mark = f"{scenario.seed}-{uuid.uuid4().hex[:12]}"
        self.folder = tools.folder / f"seed-{scenario.seed}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.ledger = self.folder / "ledger"
        self.store: Store = Directory(self.folder / "storage") if server is None else S3(server, f"seed-{self.mark}")
        self.command: subprocess.Popen[bytes] | None = None
        self.began = time.monotonic()
        self.died: dict[int, float] = {}
        self.open: dict[str, int] = {}
        self.lines: list[dict[str, Any]] = []
        self.missed: list[str] = []
        self.broken: list[str] = []
        self.history: list[str] = []
        self.damaged: set[str] = set()
        self._read = 0
        self._commands = 0
        self._waking: list[threading.Timer] = []

    def verdict(self) -> Verdict:
        """Run the scenario and judge it. Leaves no process behind, whatever happens."""
        try:
            self._go()
        except Malformed as error:
            self.broken.append(f"journal: {error}")
        finally:
            for timer in self._waking:
                timer.cancel()
            for pid in processes.marked(self.mark):
                processes.send(pid, signal.SIGKILL)
            if self.command is not None:
                self.command.wait()
        seconds = time.monotonic() - self.began
        return Verdict(self.scenario, self.broken, self.missed, seconds, self.folder, self.history)

    def _go(self) -> None:
        scenario = self.scenario
        stuck = None
        if scenario.stuck:
            stuck = {"step": scenario.stuck[0], "item": scenario.stuck[1], "seconds": STUCK_SECONDS}
        manifest = self.folder / "flow.yaml"
        sizes = (scenario.ms, scenario.pad, scenario.workers)
        write(scenario.flow, manifest, self.ledger, *sizes, stuck, scenario.charged)
        self._start()
        for fault in scenario.faults:
            if self._reach(fault):
                self._hit(fault)
            else:
                self.missed.append(f"{fault} (the command had ended)")
        code = self._finish()
        left = self._wait_gone(LEFT)
        self._judge(code, left)

    def _start(self, resume: str | None = None) -> None:
        self._commands += 1
        words = ["resume", resume] if resume else ["run", str(self.folder / "flow.yaml")]
        if not resume:
            words += ["--storage", self.store.url, "--name", f"seed-{self.scenario.seed}"]
        words += ["--python", str(self.tools.python), "-o", "json"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "DASKADE_HOME": str(self.folder / "daskade"),
            "DASKADE_CACHE": str(self.tools.cache),
            processes.MARK: self.mark,
            **self.store.env,
        }
        self._note("daskade " + " ".join(words))
        with self._output("out").open("wb") as out, self._output("err").open("wb") as err:
            self.command = subprocess.Popen(
                [str(self.tools.daskade), *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def _reach(self, fault: Fault) -> bool:
        """Wait for the fault's point; false if the command ended first."""
        deadline = time.monotonic() + DEADLINE
        while not self._is_reached(fault):
            if self._ended() or time.monotonic() > deadline:
                return False
            time.sleep(TICK)
        end = time.monotonic() + fault.delay
        while time.monotonic() < end:
            self._sample()
            time.sleep(min(TICK, max(0.0, end - time.monotonic())))
        return not self._ended()

    def _is_reached(self, fault: Fault) -> bool:
        self._sample()
        last = self.scenario.flow.last
        match fault.point:
            case faults.ENVIRONMENT:
                return fault.victim == faults.COMMAND or bool(self._victims(fault.victim))
            case faults.OPEN:
                reached = self.store.touched()
            case faults.LINES:
                reached = len(self.lines) >= fault.count
            case faults.SEGMENTS:
                reached = self.store.count() >= fault.count
            case faults.STUCK:
                reached = self._stuck() is not None
            case faults.LAST:
                reached = any(line["s"] == last and line["k"] == "start" for line in self.lines)
            case faults.CLOSE:
                reached = any(line["s"] == last and line["k"] == "end" for line in self.lines)
            case _:
                raise ValueError(fault.point)
        if fault.victim == faults.DAMAGE:
            return reached and bool(self._stored())
        return reached and (fault.victim in (faults.COMMAND, faults.STORAGE) or bool(self._victims(fault.victim)))

    def _hit(self, fault: Fault) -> None:
        victims = self._victims(fault.victim)
        self._note(f"{fault}: {', '.join(processes.describe(pid)[:60] for pid in victims)}")
        if fault.victim == faults.STORAGE:
            assert self.server is not None
            self.server.down()
            self._watch(faults.OUTAGE)
            self.server.up()
            self._note("storage is back")
        elif fault.victim == faults.STOP:
            for pid in victims:
                processes.send(pid, signal.SIGSTOP)
                if self.scenario.wakes:
                    timer = threading.Timer(4.0, processes.send, (pid, signal.SIGCONT))
                    timer.start()
                    self._waking.append(timer)
        else:
            for pid in victims:
                processes.send(pid, signal.SIGKILL)
        if fault.victim == faults.DAMAGE:
            self._damage()
        if fault.victim in (faults.COMMAND, faults.DAMAGE):
            self._again()
        elif fault.victim == faults.WORKER:
            # A task must not be taken for running when its worker is gone: look again once the kernel had its time.
            self._watch(0.1)

    def _stored(self) -> list[str]:
        """Objects of outputs that are committed, the last one last."""
        runs = self.store.runs()
        found = commits(self.store.segments(runs[0])) if runs else []
        return [path for commit in found if (path := commit.handle["u"]) is not None and path[0] != "/"]

    def _damage(self) -> None:
        """Flips a byte of what was committed last, or deletes it: somebody is still to read it. And of another one."""
        assert self.command is not None
        self.command.wait()
        chance = random.Random(f"damage {self.scenario.seed}")
        stored = self._stored()
        for path in dict.fromkeys([stored[-1], chance.choice(stored)]):
            flipped = chance.random() < 0.5
            self.store.damage(self.store.runs()[0], path, flipped)
            self.damaged.add(path)
            self._note(f"{'flipped a byte of' if flipped else 'deleted'} {path}")

    def _again(self) -> None:
        """What a person does when the command died: resume, or run again if the run had not begun."""
        assert self.command is not None
        self.command.wait()
        # Workers that are still there would serve from their caches what is damaged in storage.
        if self.damaged or not self.scenario.resume_at_once:
            self.broken += [f"the killed command left {text}" for text in self._wait_gone(ORPHANS)]
        runs = self.store.runs()
        self._start(resume=runs[0] if runs else None)

    def _finish(self) -> int | None:
        deadline = time.monotonic() + DEADLINE
        while not self._ended():
            if time.monotonic() > deadline:
                self.broken.append(f"the command did not end within {DEADLINE:.0f} s of the last fault")
                return None
            self._sample()
            time.sleep(TICK)
        assert self.command is not None
        self._note(f"exit code {self.command.returncode}")
        return self.command.returncode

    def _judge(self, code: int | None, left: list[str]) -> None:
        answer = None
        with contextlib.suppress(ValueError, OSError):
            answer = json.loads(self._output("out").read_text())
        runs = self.store.runs()
        wanted = answer.get("uid") if isinstance(answer, dict) else None
        for run in runs:
            if run != wanted and len(runs) > 1 and commits(self.store.segments(run)):
                self.broken.append(f"run {run} committed tasks beside {wanted}")
        run = wanted if wanted in runs else runs[0] if runs else ""
        evidence = Evidence(
            flow=self.scenario.flow,
            exit_code=code,
            answer=answer,
            executions=read_ledger(self.ledger, self.scenario.flow),
            segments=self.store.segments(run) if run else [],
            died=self.died,
            now=time.monotonic(),
            objects=lambda path: self.store.read(run, path),
            kept=self.store.kept,
            left=left,
            charged=self.scenario.charged,
            damaged=frozenset(self.damaged),
        )
        self.broken += check(evidence)

    def _victims(self, victim: str) -> list[int]:
        """Process numbers that a fault is aimed at; empty while there are none."""
        if victim in (faults.COMMAND, faults.DAMAGE):
            return [self.command.pid] if self.command else []
        if victim == faults.STORAGE or self.command is None:
            return []
        stuck = self._stuck()
        if victim == faults.CHILD:
            running = [pid for pid in self.open.values() if processes.alive(pid)]
            return [stuck] if stuck in running else running[:1]
        note = self._run_note()
        if note.get("pid") != self.command.pid:
            return []
        if victim in (faults.SCHEDULER, faults.STOP):
            pid = (note.get("scheduler") or {}).get("pid")
            return [pid] if pid and processes.alive(pid) else []
        workers = [worker["pid"] for worker in note.get("workers", []) if processes.alive(worker["pid"])]
        if victim == faults.WORKERS:
            return workers
        busy = [pid for pid in workers if stuck is not None and pid in processes.ancestors(stuck)]
        return (busy or workers)[:1]

    def _run_note(self) -> dict[str, Any]:
        """What the command notes of its run, the newest if there are several."""
        notes = sorted((self.folder / "daskade" / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime)
        if not notes:
            return {}
        found: dict[str, Any] = json.loads(notes[-1].read_text())
        return found

    def _stuck(self) -> int | None:
        """Process of the stuck execution, once it has begun."""
        wanted = self.scenario.stuck
        for line in self.lines:
            if wanted == (line["s"], line["i"]) and line["k"] == "start":
                return int(line["p"])
        return None

    def _sample(self) -> None:
        """Read new ledger lines, and see which processes with an open execution have died."""
        if self.ledger.exists():
            with self.ledger.open("rb") as ledger:
                ledger.seek(self._read)
                for raw in ledger:
                    if not raw.endswith(b"\n"):
                        break
                    self._read += len(raw)
                    line = json.loads(raw)
                    self.lines.append(line)
                    if line["k"] == "start":
                        self.open[line["x"]] = line["p"]
                    else:
                        self.open.pop(line["x"], None)
        for execution, pid in list(self.open.items()):
            if not processes.alive(pid):
                self.died.setdefault(pid, time.monotonic())
                del self.open[execution]

    def _watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._sample()
            time.sleep(TICK)

    def _ended(self) -> bool:
        return self.command is None or self.command.poll() is not None

    def _wait_gone(self, seconds: float) -> list[str]:
        """Wait until no process of the run is left; says which ones are after the time."""
        end = time.monotonic() + seconds
        while (pids := processes.marked(self.mark)) and time.monotonic() < end:
            self._sample()
            time.sleep(0.1)
        self._sample()
        return [processes.describe(pid) for pid in pids]

    def _output(self, kind: str) -> Path:
        return self.folder / f"{kind}-{self._commands}"

    def _note(self, text: str) -> None:
        self.history.append(f"{time.monotonic() - self.began:7.2f} s  {text}")
