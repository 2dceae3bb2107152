"""Runs that fail, and what is said about it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli
from support.journal import commits, records
from support.s3.server import S3Server

FAILING = """
import os, sys, time

def odd(i):
    print("looking at", i)
    if i == 3:
        deep(i)
    return i

def deep(i):
    raise ValueError(f"{i} is not wanted")

def after(items):
    return len(items)

def die():
    os._exit(7)

def hang():
    time.sleep(600)

def lock():
    import threading
    return threading.Lock()
"""


def test_a_failed_step_is_told_with_all_that_helps(cli: Cli, manifest: Callable[..., Path]) -> None:
    steps = [
        {"name": "odd", "call": "flow:odd", "map": {"i": "$(range(5))"}},
        {"name": "after", "call": "flow:after", "args": ["$(steps.odd.output)"]},
    ]
    done = cli.run(manifest(FAILING, steps))
    assert done.code == 1, done
    said = done.out + done.err
    for wanted in ["odd", "3", "cpu-0-", "ValueError", "3 is not wanted", "flow.py", "in deep", "looking at 3"]:
        assert wanted in said, (wanted, done)
    assert "after" in said, "what was skipped because of it"
    assert "daskade_runtime" not in said, "the traceback is the user's"


def test_a_failed_run_as_json_has_reason_and_message(on_cluster: Cli, manifest: Callable[..., Path]) -> None:
    steps = [
        {"name": "odd", "call": "flow:odd", "map": {"i": "$(range(5))"}},
        {"name": "after", "call": "flow:after", "args": ["$(steps.odd.output)"]},
    ]
    done = on_cluster.run(manifest(FAILING, steps), "-o", "json")
    assert done.code == 1, done
    answer = done.json
    assert answer["state"] == "Failed" and answer["reason"]
    assert "odd" in answer["message"] and "ValueError" in answer["message"]
    assert done.counts() == {"total": 6, "done": 6, "cached": 0, "failed": 1, "skipped": 1}
    finals = records(on_cluster.journal(answer["uid"]), "final")
    assert [final[1]["state"] for final in finals] == ["Failed"]
    runs = on_cluster("runs", "-o", "json")
    assert '"Failed"' in runs.out
    logs = on_cluster("logs", answer["uid"], "odd", "--item", "3")
    assert "looking at 3" in logs.out, logs


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"call": "flow:die"}, ["7"]),
        ({"call": "flow:hang", "timeout": "1s"}, ["timeout"]),
        ({"call": "flow:lock"}, ["NotSerializable", "lock"]),
        ({"call": "flow:nothing"}, ["ImportError", "nothing", "flow"]),
        ({"call": "nowhere:nothing"}, ["nowhere"]),
        ({"script": "output = 1 / 0"}, ["ZeroDivisionError"]),
        ({"call": "sys:exit", "args": [3]}, ["3"]),
    ],
    ids=["os._exit", "timeout", "unserialisable", "no function", "no module", "script", "sys.exit"],
)
def test_each_way_to_fail_names_its_cause(
    on_cluster: Cli, manifest: Callable[..., Path], step: dict[str, Any], words: list[str]
) -> None:
    done = on_cluster.run(manifest(FAILING, [{"name": "bad", **step}]), timeout=60)
    assert done.code == 1, done
    assert "bad" in done.out + done.err
    assert all(word.lower() in (done.out + done.err).lower() for word in words), (words, done)


def test_files_of_the_code_are_named_as_in_the_manifest(on_cluster: Cli, manifest: Callable[..., Path]) -> None:
    done = on_cluster.run(manifest("def f():\n    raise ValueError('no')\n", [{"name": "a", "call": "flow:f"}]))
    assert done.code == 1 and 'File "flow.py", line 2, in f' in done.err, done
    done = on_cluster.run(manifest("", [{"name": "a", "call": "flow:f", "displayName": "first step"}]))
    assert "but flow (flow.py) has no 'f'" in done.err and "step a (first step) failed" in done.err, done


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--storage", "http://host/x"], "InvalidStorage"),
        (["--storage", "s3://"], "no bucket"),
        (["--storage", "s3://bucket/a/../b"], "InvalidKey"),
        (["--address", "host"], "a port is missing"),
        (["--address", "tls://host:1"], "--tls-ca"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_starts(
    cli: Cli, examples: Path, words: list[str], cause: str
) -> None:
    done = cli("run", examples / "diamond.yaml", "--python", cli.python, *words)
    assert (done.code, done.out) == (2, ""), done
    assert cause in done.err and "starting" not in done.err and "connecting" not in done.err, done


def test_a_home_that_cannot_be_written_is_named(cli: Cli, examples: Path) -> None:
    done = cli.run(examples / "diamond.yaml", DASKADE_HOME="/proc/nowhere")
    assert done.code == 3 and "/proc/nowhere/" in done.err, done


def test_finally_runs_after_a_failure(on_cluster: Cli, manifest: Callable[..., Path], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    last = {"name": "last", "script": f"open({str(mark)!r}, 'w').close()\noutput = None"}
    done = on_cluster.run(manifest(FAILING, [{"name": "bad", "call": "flow:deep", "args": [1]}], **{"finally": [last]}))
    assert done.code == 1, done
    assert mark.exists()


def test_ctrl_c_cancels_the_run_and_ends_its_processes(cli: Cli, manifest: Callable[..., Path], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import time\ndef slow():\n    open({str(mark)!r}, 'w').close()\n    time.sleep(600)\n"
    process = cli.start(*cli.run_words(manifest(code, [{"name": "slow", "call": "flow:slow"}])), "-o", "json")
    cli.reach(process, "the step runs", mark.exists)
    process.send_signal(signal.SIGINT)
    done = cli.finish(process, 30)
    assert done.code == 130, done
    assert done.json["state"] == "Cancelled"
    finals = records(cli.journal(done.json["uid"]), "final")
    assert [final[1]["state"] for final in finals] == ["Cancelled"]
    assert cli.left() == []
    assert '"Cancelled"' in cli("runs", "-o", "json").out


def test_a_second_ctrl_c_does_not_wait(cli: Cli, manifest: Callable[..., Path], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import time\ndef slow():\n    open({str(mark)!r}, 'w').close()\n    time.sleep(600)\n"
    late = tmp_path / "late"
    last = {"name": "last", "script": f"import time; open({str(late)!r}, 'w'); time.sleep(600)"}
    path = manifest(code, [{"name": "slow", "call": "flow:slow"}], **{"finally": [last]})
    process = cli.start(*cli.run_words(path))
    cli.reach(process, "the step runs", mark.exists)
    process.send_signal(signal.SIGINT)
    cli.reach(process, "the finally step runs", late.exists)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    done = cli.finish(process, 30)
    assert done.code == 130, done
    assert time.monotonic() - began < 3
    assert cli.left() == []


def test_ctrl_c_while_processes_start_ends_them_too(cli: Cli, examples: Path) -> None:
    process = cli.start(*cli.run_words(examples / "diamond.yaml"))
    cli.reach(process, "processes start", lambda: list((cli.home / "scratch").glob("*")))
    process.send_signal(signal.SIGINT)
    done = cli.finish(process, 30)
    assert done.code == 130, done
    assert cli.left() == []


def test_a_killed_command_leaves_nothing_and_its_run_can_be_resumed(
    cli: Cli, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    code = (
        "import os, time\n"
        f"def slow(i):\n    open({str(tmp_path)!r} + f'/ran-{{i}}-{{os.getpid()}}', 'w').close()\n"
        f"    while i == 2 and not os.path.exists({str(gate)!r}):\n        time.sleep(0.05)\n    return i\n"
    )
    steps = [{"name": "slow", "call": "flow:slow", "map": {"i": "$(range(3))"}, "limits": {"parallelism": 1}}]
    path = manifest(code, steps, results=[{"name": "all", "value": "$(steps.slow.output)"}])
    process = cli.start(*cli.run_words(path), "--name", "slow")
    cli.reach(process, "the last item runs", lambda: list(tmp_path.glob("ran-2-*")))
    (uid,) = [path.name for path in (cli.storage / "runs").iterdir()]
    cli.reach(process, "the others are in the journal", lambda: len(commits(cli.journal(uid))) == 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert cli.left(15) == []
    assert '"Interrupted"' in cli("runs", "-o", "json").out
    gate.touch()
    done = cli("resume", "slow", "--python", cli.python, "-o", "json")
    assert done.code == 0, done
    assert done.json["results"] == {"all": [0, 1, 2]}
    assert done.counts() == {"total": 3, "done": 3, "cached": 2, "failed": 0, "skipped": 0}
    ran = sorted(name.name.split("-")[1] for name in tmp_path.glob("ran-*"))
    assert ran == ["0", "1", "2", "2"]


def test_resume_of_nothing_is_refused(cli: Cli) -> None:
    done = cli("resume", "nobody", "--python", cli.python)
    assert done.code == 2 and "nobody" in done.err, done


def test_a_directory_that_cannot_be_written_is_named(cli: Cli, examples: Path, tmp_path: Path) -> None:
    if os.getuid() == 0:
        place = Path("/sys/kernel/daskade")
    else:
        (tmp_path / "sealed").mkdir(mode=0o555)
        place = tmp_path / "sealed" / "storage"
    done = cli("run", examples / "diamond.yaml", "--python", cli.python, "--storage", f"file://{place}", timeout=60)
    assert done.code == 3, done
    assert str(place) in done.err and "permi" in done.err.lower(), done


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "AccessDenied"),
        ({"AWS_ACCESS_KEY_ID": "NOBODY"}, "AccessDenied"),
        ({"url": "s3://no-such-bucket/x", "who": "admin"}, "NoSuchBucket"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "StorageUnreachable"),
        ({"who": "readonly"}, "AccessDenied"),
    ],
    ids=["wrong secret", "wrong key", "no bucket", "no server", "read only"],
)
def test_storage_that_does_not_work_is_told_before_anything_runs(
    cli: Cli, examples: Path, s3: S3Server, change: dict[str, str], reason: str
) -> None:
    change = dict(change)
    url = change.pop("url", s3.storage("refused")["url"])
    credentials = s3.environ(change.pop("who", "writer")) | change
    words = ("run", examples / "diamond.yaml", "--python", cli.python, "--storage", url, "-o", "json")
    done = cli(*words, timeout=90, env=credentials)
    assert done.code == 3, done
    assert reason in done.out + done.err, done
    assert s3.environ()["AWS_SECRET_ACCESS_KEY"] not in done.out + done.err


def test_a_requirement_that_cannot_be_installed_is_told_in_pips_words(
    cli: Cli, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    path = manifest("def f():\n    return 1\n", [{"name": "f", "call": "flow:f"}], requirements=["six==999.0"])
    done = cli("run", path, "--storage", f"file://{cli.storage}", timeout=300, DASKADE_CACHE=str(tmp_path / "cache"))
    assert done.code == 3, done
    assert "six==999.0" in done.err and "pip" in done.err, done
    done = cli.run(path)
    assert done.code == 3, done
    assert "six" in done.err and str(cli.python) in done.err, done
