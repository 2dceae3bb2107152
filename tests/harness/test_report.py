"""The report of `./test`: what counts as passed, failed, skipped, too slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import report

JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="quick" time="0.1"/>
<testcase classname="a" name="slow" time="9.5"/>
<testcase classname="a" name="left_out" time="0"><skipped message="no GPU"/></testcase>
{more}</testsuite></testsuites>"""
FAILURE = '<testcase classname="a" name="wrong" time="1"><failure message="1 != 2"/></testcase>\n'


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "BUDGET", tmp_path / "budget.txt")
    monkeypatch.delenv("DASKADE_TEST_BUDGET", raising=False)
    (tmp_path / "budget.txt").write_text("# a comment\ne2e 100 # measured\nfmt 1\n")
    (tmp_path / "log").write_text("")
    return tmp_path


def stage(results: Path, name: str, code: int, seconds: float = 1, junit: str | None = None, log: str = "") -> int:
    """Reports one stage; the exit code."""
    (results / "log").write_text(log)
    if junit is not None:
        (results / name).mkdir(exist_ok=True)
        (results / name / "x.xml").write_text(junit)
    return report.main(["stage", name, str(code), str(seconds), str(results / "log")])


def closing(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of the summary, and its last line."""
    capsys.readouterr()
    code = report.main(["summary", "10"])
    return code, capsys.readouterr().out.splitlines()[-1]


def test_tests_are_counted_from_junit_and_the_slowest_come_first(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(results, "e2e", 0, junit=JUNIT.format(more="")) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["9.5", "s", "a::slow"]
    assert closing(capsys) == (0, "2 passed, 0 failed, 1 skipped")


def test_a_stage_without_tests_counts_as_one(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(results, "fmt", 0)
    stage(results, "clippy", 1)
    assert closing(capsys) == (1, "1 passed, 1 failed, 0 skipped")


def test_a_skipped_stage_has_its_reason_and_did_not_pass(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(results, "cluster", report.SKIPPED, log="skipped: not root\nerror: exit code 77\n") == 0
    assert "not root" in capsys.readouterr().out
    assert closing(capsys) == (0, "0 passed, 0 failed, 1 skipped")


def test_a_stage_that_is_skipped_without_a_reason_has_failed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(results, "cluster", report.SKIPPED, log="nothing said\n") == 1
    assert closing(capsys) == (1, "0 passed, 1 failed, 0 skipped")


@pytest.mark.parametrize(
    ("code", "junit"),
    [
        pytest.param(1, JUNIT.format(more=FAILURE), id="a test failed"),
        pytest.param(0, JUNIT.format(more=FAILURE), id="a test failed and the runner hid it"),
        pytest.param(1, JUNIT.format(more=""), id="the runner broke after its tests"),
        pytest.param(0, "<testsuites><testsuite>", id="the file is cut off"),
    ],
)
def test_what_went_wrong_is_a_failure(results: Path, capsys: pytest.CaptureFixture[str], code: int, junit: str) -> None:
    assert stage(results, "e2e", code, junit=junit) == 1
    exit_code, last = closing(capsys)
    assert (exit_code, last.split(", ")[1]) == (1, "1 failed")


def test_a_stage_that_grew_by_half_fails_the_run(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(results, "e2e", 0, seconds=149)
    assert closing(capsys)[0] == 0
    stage(results, "e2e", 0, seconds=151)
    assert report.main(["summary", "10"]) == 1
    assert 'error: stage "e2e" took 151 s; its limit is 150 s (budget 100 s)' in capsys.readouterr().out
    assert closing(capsys) == (1, "2 passed, 1 failed, 0 skipped")
    monkeypatch.setenv("DASKADE_TEST_BUDGET", "warn")
    assert closing(capsys) == (0, "2 passed, 0 failed, 0 skipped")


def test_seconds_of_a_short_stage_are_noise(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(results, "fmt", 0, seconds=15)
    assert closing(capsys)[0] == 0
    stage(results, "fmt", 0, seconds=17)
    assert closing(capsys)[0] == 1


def test_a_stage_that_says_it_is_skipped_after_tests_ran_is_judged_by_them(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(results, "e2e", report.SKIPPED, junit=JUNIT.format(more=FAILURE), log="skipped: no GPU\n") == 1
    assert closing(capsys) == (1, "2 passed, 1 failed, 1 skipped")


def test_a_stage_of_which_all_tests_were_skipped_did_not_pass(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left_out = '<testsuites><testcase name="a"><skipped/></testcase></testsuites>'
    assert stage(results, "e2e", 0, junit=left_out) == 1
    assert closing(capsys) == (1, "0 passed, 1 failed, 1 skipped")


def test_a_stage_without_a_record_has_failed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["summary", "1", "mypy"]) == 1
    assert "mypy             FAILED" in capsys.readouterr().out
    stage(results, "fmt", 0)
    capsys.readouterr()
    assert report.main(["summary", "1", "fmt", "mypy"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"


def test_a_stage_that_was_not_run_counts_nothing_and_is_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(results, "fmt", 1)
    report.main(["not-run", "rust"])
    capsys.readouterr()
    assert report.main(["summary", "3"]) == 1
    text = capsys.readouterr().out
    assert "rust             not run" in text and text.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"
