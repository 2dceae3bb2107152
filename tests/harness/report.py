"""What the stages of `./test` did: counts from their JUnit files, the slowest tests, and the time budget.

    report.py stage NAME EXIT_CODE SECONDS LOG   records one stage and prints its counts and its ten slowest tests
    report.py not-run NAME                       records a stage that an earlier failure kept from starting
    report.py summary SECONDS STAGE...           prints all stages; exit code 1 if one failed, did not run, left no result, or
                                                 exceeded its limit (unless DASKADE_TEST_BUDGET=warn)

A stage leaves its JUnit files in ``target/test-results/NAME/``. One without tests, such as a linter, counts as one test.
Exit code 77 means that the stage was skipped, for the reason that a line of its output gives: ``skipped: …``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "target" / "test-results"
BUDGET = HERE / "budget.txt"
SKIPPED = 77
REASON = "skipped: "
# The limit of a stage is GROWTH times its budget, but at least NOISE seconds above it: short stages vary by some seconds.
GROWTH = 1.5
NOISE = 15.0
SLOWEST = 10


@dataclass
class Case:
    """One test: how it ended, and how long it took."""

    name: str
    outcome: str
    seconds: float


@dataclass
class Stage:
    """How one stage ended."""

    name: str
    outcome: str
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    over: bool = False

    def count(self, outcome: str) -> int:
        return self.counts.get(outcome, 0)


def cases(folder: Path) -> list[Case]:
    """All tests of a stage's JUnit files. A file that cannot be read is a failed test, not a missing one."""
    found = []
    for path in sorted(folder.rglob("*.xml")):
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            found.append(Case(f"{path.name}: {error}", "failed", 0.0))
            continue
        found += [case(element) for element in root.iter("testcase")]
    return found


def case(element: ElementTree.Element) -> Case:
    """One test of a JUnit file."""
    children = {child.tag for child in element}
    outcome = "failed" if children & {"failure", "error"} else "skipped" if "skipped" in children else "passed"
    name = "::".join(part for part in (element.get("classname"), element.get("name")) if part)
    return Case(name, outcome, float(element.get("time") or 0))


def budgets() -> dict[str, float]:
    """Seconds that each stage may take."""
    lines = [line.split("#")[0].split() for line in BUDGET.read_text().splitlines()]
    return {words[0]: float(words[1]) for words in lines if words}


def limit(budget: float) -> float:
    """The seconds after which a stage is too slow."""
    return max(budget * GROWTH, budget + NOISE)


def judge(name: str, code: int, seconds: float, log: Path) -> Stage:
    """The record of a stage that ran."""
    lines = reversed(log.read_text(errors="replace").splitlines())
    reason = next((line.removeprefix(REASON) for line in lines if line.startswith(REASON)), "")
    tests = cases(RESULTS / name)
    if code == SKIPPED and reason and not tests:
        return Stage(name, "skipped", seconds, {"skipped": 1}, reason)
    counts = {outcome: sum(test.outcome == outcome for test in tests) for outcome in ("passed", "failed", "skipped")}
    # Tests that were all skipped have shown nothing.
    passed = code == 0 and not counts["failed"] and (not tests or counts["passed"] > 0)
    if not tests or (not passed and not counts["failed"]):
        counts["passed" if passed else "failed"] += 1
    for test in sorted(tests, key=lambda test: -test.seconds)[:SLOWEST]:
        print(f"{test.seconds:8.1f} s  {test.name}")
    unseen = "all tests were skipped" if tests and counts["skipped"] == len(tests) else ""
    budget = budgets().get(name)
    over = budget is not None and seconds > limit(budget)
    return Stage(name, "passed" if passed else "FAILED", seconds, counts, unseen, over)


def record(stage: Stage) -> None:
    """Keeps the record for the summary."""
    with (RESULTS / "stages.jsonl").open("a") as stages:
        stages.write(json.dumps(asdict(stage)) + "\n")


def recorded() -> Iterator[Stage]:
    """The stages of this run, in their order."""
    records = RESULTS / "stages.jsonl"
    for line in records.read_text().splitlines() if records.exists() else []:
        yield Stage(**json.loads(line))


def row(stage: Stage) -> str:
    """A line of the summary."""
    counts = ", ".join(f"{stage.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))
    time = f"{stage.seconds:5.0f} s" if stage.outcome != "not run" else " " * 7
    return f"{stage.name:<16} {stage.outcome:<8} {time}  {stage.reason or counts}"


def summary(seconds: float, names: list[str]) -> int:
    """Prints all stages and the closing line; the exit code."""
    stages = list(recorded())
    known = {stage.name for stage in stages}
    lost = [name for name in names if name not in known]
    stages += [Stage(name, "FAILED", counts={"failed": 1}, reason="no result was recorded") for name in lost]
    print(f"\n=== summary ({seconds:.0f} s)")
    for stage in stages:
        print(row(stage))
    enforced = os.environ.get("DASKADE_TEST_BUDGET") != "warn"
    over = [stage for stage in stages if stage.over]
    for stage in over:
        budget = budgets()[stage.name]
        severity, most = "error" if enforced else "warning", limit(budget)
        print(f'{severity}: stage "{stage.name}" took {stage.seconds:.0f} s; its limit is {most:.0f} s (budget {budget:.0f} s)')
        print("help: make it faster, or raise its budget in tests/harness/budget.txt and say why")
    totals = {outcome: sum(stage.count(outcome) for stage in stages) for outcome in ("passed", "failed", "skipped")}
    broken = any(stage.outcome not in ("passed", "skipped") for stage in stages) or (enforced and bool(over))
    totals["failed"] = max(totals["failed"], int(broken))
    print(", ".join(f"{number} {outcome}" for outcome, number in totals.items()), flush=True)
    return int(broken)


def main(words: list[str]) -> int:
    match words:
        case ["stage", name, code, seconds, log]:
            stage = judge(name, int(code), float(seconds), Path(log))
            record(stage)
            print(row(stage), flush=True)
            return int(stage.outcome == "FAILED")
        case ["not-run", name]:
            record(Stage(name, "not run"))
            return 0
        case ["summary", seconds, *names]:
            return summary(float(seconds), names)
    raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
