"""Runs that go well."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.cli import Cli
from support.journal import commits, records
from support.s3.server import S3Server


def test_the_diamond_gives_its_result_as_json(cli: Cli, examples: Path) -> None:
    done = cli.run(examples / "diamond.yaml", "-o", "json")
    assert done.code == 0, done
    assert done.json["state"] == "Succeeded"
    assert done.json["results"] == {"total": 9900}
    assert done.counts() == {"total": 301, "done": 301, "cached": 0, "failed": 0, "skipped": 0}
    assert done.json["durationSeconds"] > 0
    assert done.json["storage"].startswith(f"file://{cli.storage}")
    segments = cli.journal(done.json["uid"])
    assert len({(commit.step, commit.item) for commit in commits(segments)}) == 301
    assert records(segments, "final")[0][1]["state"] == "Succeeded"
    assert len(segments) < 60, "many small outputs share a segment"


def test_parameters_come_from_options_and_files_and_options_win(on_cluster: Cli, examples: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("n: 7\n")
    done = on_cluster.run(examples / "diamond.yaml", "--params-file", params, "-o", "json")
    assert (done.code, done.json["results"]) == (0, {"total": 42}), done
    done = on_cluster.run(examples / "diamond.yaml", "--params-file", params, "--param", "n=0", "-o", "json")
    assert (done.code, done.json["results"]) == (0, {"total": 0}), done


def test_text_that_goes_to_no_terminal_has_no_control_codes(cli: Cli, examples: Path) -> None:
    done = cli.run(examples / "diamond.yaml", "--param", "n=5")
    assert done.code == 0, done
    assert "20" in done.out
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done.out + done.err) is None, done
    assert "16" in done.err, "progress says how many of how many"


def test_every_feature_of_a_step_works(cli: Cli, examples: Path, tmp_path: Path) -> None:
    done = cli.run(examples / "features.yaml", "--param", f"scratch={tmp_path}", "-o", "json")
    assert done.code == 0, done
    squares = [0, 1, 4, 9, 16, 25]
    assert done.json["results"] == {
        "text": "0 1 4 9 16 25",
        "collected": {"squares": squares, "halves": [0.5, None, 2.5], "threads": "1"},
    }
    assert done.json["steps"]["failed"] == 1 and done.json["steps"]["skipped"] == 1, done
    done = cli.run(examples / "features.yaml", "--param", f"scratch={tmp_path}", "--param", "mode=exact", "-o", "json")
    assert done.code == 0 and done.json["steps"]["skipped"] == 0, done


def test_a_run_on_s3_leaves_nothing_here(cli: Cli, examples: Path, s3: S3Server) -> None:
    storage = s3.storage("e2e")
    credentials = {name: value for name, value in s3.environ().items() if name != "AWS_ENDPOINT_URL"}
    done = cli(
        *("run", examples / "diamond.yaml", "--python", cli.python, "-o", "json", "--param", "n=20"),
        *(
            "--storage",
            storage["url"],
            "--storage-endpoint",
            storage["endpoint"],
            "--storage-region",
            storage["region"],
        ),
        env=credentials,
    )
    assert done.code == 0, done
    assert done.json["results"] == {"total": 380}
    uid = done.json["uid"]
    puts = [
        line["key"] for line in s3.log() if line["method"] == "PUT" and line["status"] == 200 and uid in line["key"]
    ]
    assert any(key.endswith(".seg") for key in puts)
    assert not list(cli.home.glob("**/*.seg"))
    again = cli("logs", uid, env=credentials)
    assert again.code == 0, again


def test_large_outputs_of_every_serializer_arrive_whole(on_cluster: Cli, manifest: Callable[..., Path]) -> None:
    code = """
import numpy, pandas

def make(kind):
    if kind == "numpy":
        return numpy.arange(400_000)
    frame = pandas.DataFrame({"a": range(200_000), "b": ["x"] * 200_000})
    return {"parquet": frame, "pickle": {"frame": frame}, "json": [[i, str(i)] for i in range(100_000)]}[kind]

def check(numpy, parquet, pickle, json):
    return [int(numpy.sum()), int(parquet.a.sum()), int(pickle["frame"].a.sum()), sum(row[0] for row in json)]
"""
    kinds = ["numpy", "parquet", "pickle", "json"]
    steps = [
        {"name": kind, "call": "flow:make", "args": {"kind": kind}, "output": {"serializer": kind}} for kind in kinds
    ]
    steps.append({"name": "check", "call": "flow:check", "args": {kind: f"$(steps.{kind}.output)" for kind in kinds}})
    results = [{"name": "sums", "value": "$(steps.check.output)"}]
    done = on_cluster.run(manifest(code, steps, results=results), "-o", "json")
    assert done.code == 0, done
    assert done.json["results"]["sums"] == [
        sum(range(400_000)),
        sum(range(200_000)),
        sum(range(200_000)),
        sum(range(100_000)),
    ]


def test_plain_steps_keep_off_gpu_workers(cli: Cli, manifest: Callable[..., Path]) -> None:
    workers = [
        {"name": "cpu", "replicas": 1, "threads": 1},
        {"name": "gpu", "replicas": 2, "threads": 1, "gpu": {"count": 1}},
    ]
    code = "import os, time\ndef plain(i):\n    time.sleep(0.05)\n\ndef train():\n    return 1\n"
    steps = [
        {"name": "plain", "call": "flow:plain", "map": {"i": "$(range(12))"}},
        {"name": "train", "call": "flow:train", "resources": {"GPU": 1}},
        {"name": "pinned", "call": "flow:train", "workerGroup": "cpu"},
    ]
    done = cli.run(manifest(code, steps, cluster={"template": {"workers": workers}}), "-o", "json")
    assert done.code == 0, done
    where: dict[int, set[str]] = {}
    for record in records(cli.journal(done.json["uid"]), "committed"):
        where.setdefault(record[1], set()).add(record[5].rsplit("-", 2)[0])
    assert where == {0: {"cpu"}, 1: {"gpu"}, 2: {"cpu"}}


def test_the_number_of_workers_can_be_set_for_a_run(cli: Cli, manifest: Callable[..., Path]) -> None:
    code = "import time\ndef nap(i):\n    time.sleep(0.3)\n"
    steps = [{"name": "nap", "call": "flow:nap", "map": {"i": "$(range(45))"}}]
    done = cli.run(manifest(code, steps), "--workers", "cpu=3", "-o", "json")
    assert done.code == 0, done
    names = {record[5] for record in records(cli.journal(done.json["uid"]), "committed")}
    assert len(names) == 3, names


def test_a_request_that_no_worker_meets_is_refused_before_anything_starts(
    cli: Cli, manifest: Callable[..., Path]
) -> None:
    path = manifest("def f():\n    return 1\n", [{"name": "f", "call": "flow:f", "resources": {"GPU": 8}}])
    done = cli.run(path, "-o", "json")
    assert done.code == 2, done
    assert "GPU" in done.err
    assert not cli.storage.exists()


def test_the_list_of_runs_and_their_logs_are_kept(cli: Cli, manifest: Callable[..., Path]) -> None:
    code = "import sys\ndef say(i):\n    print('line of', i)\n    print('complaint of', i, file=sys.stderr)\n"
    steps = [{"name": "say", "call": "flow:say", "map": {"i": "$(range(3))"}}]
    done = cli.run(manifest(code, steps), "-o", "json", "--name", "talker")
    assert done.code == 0, done
    runs = json.loads(cli("runs", "-o", "json").out)
    assert [(run["name"], run["uid"], run["state"]) for run in runs] == [("talker", done.json["uid"], "Succeeded")]
    table = cli("runs")
    assert table.code == 0 and "talker" in table.out and "Succeeded" in table.out, table
    logs = cli("logs", "talker")
    assert logs.code == 0, logs
    assert all(f"line of {i}" in logs.out and f"complaint of {i}" in logs.out for i in range(3)), logs
    one = cli("logs", done.json["uid"], "say", "--item", "1")
    assert "line of 1" in one.out and "line of 2" not in one.out, one
    assert cli("logs", "nobody").code == 2


def test_logs_of_a_step_that_does_not_exist_are_refused(cli: Cli, manifest: Callable[..., Path]) -> None:
    folder = cli.folder / "with space, # and ü"
    path = manifest("def f(): print('here')", [{"name": "load", "call": "flow:f"}])
    done = cli("run", path, "--python", cli.python, "--storage", folder)
    assert done.code == 0 and (folder / "runs").is_dir(), done
    assert cli("logs", "flow", "load").out == "[load] here\n"
    wrong = cli("logs", "flow", "laod")
    assert wrong.code == 2 and "no step laod; did you mean load?" in wrong.err, wrong


def test_the_deadlines_of_a_run_are_those_that_hold(on_cluster: Cli, manifest: Callable[..., Path], tmp_path: Path) -> None:
    steps = [{"name": "a", "script": "import time\ntime.sleep(60)"}]
    path = manifest("", steps, deadlines={"active": "5m"})
    run = {"pipelineRef": "flow", "deadlines": {"active": "3s"}}
    body = {"apiVersion": "daskade.dev/v1alpha1", "kind": "PipelineRun", "metadata": {"name": "short"}, "spec": run}
    (tmp_path / "run.yaml").write_text(json.dumps(body))
    done = on_cluster.run(path, tmp_path / "run.yaml", "-o", "json", timeout=60)
    assert (done.code, done.json["reason"]) == (1, "DeadlineExceeded"), done
    assert "not finished within deadlines.active" in done.json["message"], done


def test_finally_steps_that_take_too_long_are_stopped(on_cluster: Cli, manifest: Callable[..., Path], tmp_path: Path) -> None:
    steps = [{"name": "a", "call": "builtins:len", "args": [[1, 2]]}]
    last = [
        {"name": "slow", "script": "import time\ntime.sleep(60)"},
        {"name": "quick", "script": f"open({str(tmp_path / 'quick')!r}, 'w')"},
    ]
    path = manifest("", steps, **{"finally": last, "deadlines": {"finally": "3s"}})
    done = on_cluster.run(path, "-o", "json", timeout=60)
    assert (done.code, done.json["reason"]) == (1, "DeadlineExceeded"), done
    assert "deadlines.finally" in done.json["message"] and (tmp_path / "quick").exists(), done


def test_logs_can_be_followed_while_the_run_lives(cli: Cli, manifest: Callable[..., Path], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = (
        "import os, time\n"
        "def slow():\n    print('the first line', flush=True)\n"
        f"    while not os.path.exists({str(gate)!r}):\n        time.sleep(0.05)\n    print('the last line')\n"
    )
    run = cli.start(*cli.run_words(manifest(code, [{"name": "slow", "call": "flow:slow"}])), "--name", "live")
    cli.reach(run, "the run is listed", lambda: '"live"' in cli("runs", "-o", "json").out)
    follower = cli.start("logs", "live", "-f")
    assert follower.stdout is not None
    assert "the first line" in follower.stdout.readline()
    gate.touch()
    assert cli.finish(run).code == 0
    done = cli.finish(follower, 20)
    assert done.code == 0 and "the last line" in done.out, done


def test_on_a_terminal_progress_is_drawn_there_and_only_there(cli: Cli, examples: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        list(map(str, [cli.binary, *cli.run_words(examples / "diamond.yaml"), "--param", "n=30", "-o", "json"])),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=cli.environment(TERM="xterm-256color"),
        start_new_session=True,
    )
    os.close(theirs)
    drawn = b""
    with contextlib.suppress(OSError):
        while piece := os.read(ours, 65536):
            drawn += piece
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, drawn.decode(errors="replace")
    assert json.loads(out)["results"] == {"total": 870}
    assert b"\x1b" not in out
    assert b"\x1b[" in drawn or b"\r" in drawn


def test_validate_says_yes_to_the_examples(cli: Cli, examples: Path) -> None:
    for path in sorted(examples.glob("*.yaml")):
        done = cli("validate", path)
        assert done.code == 0, done
    assert not cli.home.exists() or not list(cli.home.glob("runs/*"))


def test_crd_prints_the_definitions(cli: Cli) -> None:
    done = cli("crd")
    assert done.code == 0, done
    assert all(f"kind: {kind}" in done.out for kind in ("DaskCluster", "Pipeline", "PipelineRun"))


def test_a_closed_pipe_is_no_error(cli: Cli) -> None:
    process = cli.start("crd")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(10) in (0, 141, -13)


def test_a_result_that_is_null_is_a_result_and_one_that_cannot_be_made_says_why(
    on_cluster: Cli, manifest: Callable[..., Path]
) -> None:
    steps = [
        {"name": "none", "call": "flow:none"},
        {"name": "some", "script": "output = {'a': None}"},
        {"name": "when", "script": "output = 1", "when": "steps.none.result == null"},
        {"name": "text", "call": "builtins:str", "args": ["<$(steps.none.result)>"]},
        {"name": "other", "script": "output = {1, 2}"},
        {"name": "nothings", "script": "output = None", "map": {"i": [1, 2]}},
        {"name": "bytes", "script": "output = b'x'", "map": {"i": [1, 2]}},
    ]
    results = {
        "when": "$(steps.when.output)",
        "text": "$(steps.text.output)",
        "nested": {"is": ["$(steps.none.output)", "<$(steps.none.result)>"]},
        "part": "$(steps.some.output.b)",
        "other": "$(steps.other.output)",
        "nothings": "$(steps.nothings.output)",
        "bytes": "$(steps.bytes.output)",
    }
    path = manifest(
        "def none(): pass", steps, results=[{"name": name, "value": value} for name, value in results.items()]
    )
    done = on_cluster.run(path, "-o", "json")
    assert done.code == 0, done
    found = done.json["results"]
    assert (found["when"], found["text"]) == (1, "<null>"), done
    assert found["nested"] == {"is": [None, "<null>"]}, done
    assert found["part"] is None and found["other"]["serializer"] == "pickle", done
    assert found["nothings"] == [None, None] and found["bytes"]["serializer"] == "list", done
    said = on_cluster.run(path)
    assert re.search(r"^part: \(none: .*\bb\b", said.out, re.M), said


def test_workers_with_gpus_have_devices_of_their_own(cli: Cli, manifest: Callable[..., Path]) -> None:
    code = """
import os, pathlib, time

def hold(i):
    mine = pathlib.Path(os.environ["PLACE"]) / str(i)
    mine.touch()
    end = time.monotonic() + 60
    while len(list(mine.parent.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    return os.environ["CUDA_VISIBLE_DEVICES"]
"""
    place = cli.folder / "place"
    place.mkdir()
    workers = [
        {"name": "cpu", "replicas": 1, "threads": 1},
        {"name": "small", "replicas": 1, "threads": 1, "gpu": {"count": 1}},
        {"name": "large", "replicas": 1, "threads": 2, "gpu": {"count": 2}},
    ]
    common = {"call": "flow:hold", "resources": {"GPU": 1}, "output": {"serializer": "json"}}
    steps: list[dict[str, Any]] = [
        {"name": "one", "workerGroup": "small", "args": ["one"], **common},
        {"name": "two", "workerGroup": "large", "map": {"i": "$(range(2))"}, **common},
    ]
    for step in steps:
        (place / step["name"]).mkdir()
        step["env"] = [{"name": "PLACE", "value": str(place / step["name"])}]
    (place / "one" / "alone").touch()
    results = [{"name": step["name"], "value": f"$(steps.{step['name']}.output)"} for step in steps]
    path = manifest(code, steps, cluster={"template": {"workers": workers}}, results=results)
    done = cli.run(path, "--output", "json", CUDA_VISIBLE_DEVICES="3,MIG-5,7")
    assert done.code == 0, done
    assert done.json["results"]["one"] == "3"
    assert sorted(done.json["results"]["two"]) == ["7", "MIG-5"]
