"""Objects that steps name by their paths, on real workers: read as arguments, kept under names of their own,
taken in place of a call; and what the scheduler tells of them.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import msgpack
import pytest

from daskade_runtime import objects
from daskade_runtime.errors import StepFailure
from support.dask.local import Cluster as LocalCluster
from support.dask.run import Run
from support.dask.steps import args, ref, step
from support.dask.workers import Cluster, value


def script(source: str, **more: Any) -> dict[str, Any]:
    return step("train", None, more.pop("template", None), script=source, **more)


def reads(**inputs: tuple[str, str]) -> dict[str, Any]:
    """The fields of a step that reads objects: path and serializer by keyword."""
    keywords = {name: ref(4, number) for number, name in enumerate(inputs)}
    listed = [[name, list(where)] for name, where in inputs.items()]
    return {"template": args(**keywords), "inputs": msgpack.packb(listed)}


def keeps(path: Any, taken: Any = False, replace: bool = False) -> dict[str, Any]:
    return {"target": {"place": msgpack.packb([path, taken]), "replace": replace}}


def put(cluster: Cluster, path: str, data: bytes) -> Path:
    file = cluster.store / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def failed(reply: dict[str, Any]) -> tuple[str, str, str]:
    assert not reply["ok"], reply
    return reply["class"], reply["type"], reply["message"]


# ------------------------------------------------------------ read


def test_objects_are_arguments_in_the_form_that_is_said(cluster: Cluster, tmp_path: Path) -> None:
    import io

    import numpy

    put(cluster, "in/a.pkl", pickle.dumps({"a": (1, 2)}))
    put(cluster, "in/b.json", b'{"b": [3]}')
    array = io.BytesIO()
    numpy.save(array, numpy.arange(3))
    put(cluster, "in/c.npy", array.getvalue())
    (tmp_path / "d e.json").write_text("[4]")
    url = f"file://{tmp_path}/d%20e.json"
    fields = reads(
        a=("in/a.pkl", "pickle"), b=("in/b.json", "json"), c=("in/c.npy", "numpy"), d=(url, "json")
    )
    run = cluster.open([script("output = [a, b, int(c.sum()), d]", **fields)])
    reply = cluster.run(run)
    assert value(reply) == [{"a": (1, 2)}, {"b": [3]}, 3, [4]]
    named = reply["handle"]["r"]
    assert [path for path, _ in named] == ["in/a.pkl", "in/b.json", "in/c.npy", url]
    found = (cluster.store / "in/a.pkl").stat()
    assert named[0][1] == f"{found.st_mtime_ns:x}-{found.st_size:x}"


def test_a_table_is_read(cluster: Cluster) -> None:
    pandas = pytest.importorskip("pandas")
    file = put(cluster, "in/table.parquet", b"")
    pandas.DataFrame({"x": [1, 2, 3]}).to_parquet(file)
    run = cluster.open([script("output = int(t['x'].sum())", **reads(t=("in/table.parquet", "parquet")))])
    assert value(cluster.run(run)) == 6


def test_a_path_of_one_item_is_a_value(cluster: Cluster) -> None:
    for day in ("mon", "tue"):
        put(cluster, f"days/{day}.json", json.dumps(day).encode())
    fields = {"template": args(x=ref(4, 0)), "inputs": msgpack.packb([["x", ref(2, 0)]])}
    run = cluster.open([script("output = x", **fields)])
    for item, day in enumerate(("mon", "tue")):
        values = msgpack.packb([[f"days/{day}.json", "json"]])
        assert value(cluster.run(run, i=item, v=values)) == day


def test_the_value_that_a_step_gets_is_its_own_and_the_newest(cluster: Cluster) -> None:
    file = put(cluster, "own/x.json", b"[1]")
    run = cluster.open([script("x.append(9)\noutput = x", **reads(x=("own/x.json", "json")))])
    first = cluster.run(run)
    assert value(first) == [1, 9] and value(cluster.run(run, a=2)) == [1, 9]
    os.utime(file, ns=(1, 1))
    file.write_bytes(b"[2]")
    second = cluster.run(run, a=3)
    assert value(second) == [2, 9]
    assert first["handle"]["r"] != second["handle"]["r"], "the version that was read is told"


def test_a_large_object_is_a_file_of_the_worker(cluster: Cluster) -> None:
    put(cluster, "in/large.pkl", pickle.dumps(b"x" * 3_000_000))
    for more in ({}, {"isolation": "thread"}):
        run = cluster.open([script("output = len(x)", **reads(x=("in/large.pkl", "pickle")), **more)])
        assert value(cluster.run(run)) == 3_000_000


def test_what_is_wrong_with_an_object_is_of_class_data(cluster: Cluster) -> None:
    put(cluster, "bad/cut.pkl", pickle.dumps([1])[:-1])
    put(cluster, "bad/x.json", b"not json")
    put(cluster, "bad/folder/x.json", b"1")
    for path, form, kind, words in (
        (
            "bad/none.json",
            "json",
            "InputMissing",
            ["bad/none.json", "input x of step train", f"{cluster.store}", "put it"],
        ),
        ("file:///nowhere/x.json", "json", "InputMissing", ["file:///nowhere/x.json"]),
        ("bad/cut.pkl", "pickle", "InputUnreadable", ["bad/cut.pkl", "as pickle", "serializer"]),
        ("bad/x.json", "json", "InputUnreadable", ["bad/x.json", "as json"]),
        ("bad/folder", "json", "InvalidKey", ["bad/folder"]),
        ("../x.json", "json", "InvalidKey", [".."]),
        ("file:///tmp/%2e%2e/x.json", "json", "InvalidKey", [".."]),
        ("ftp://host/x.json", "json", "InvalidStorage", ["ftp://"]),
    ):
        run = cluster.open([script("open('/nonexistent')", **reads(x=(path, form)))])
        class_, type_, message = failed(cluster.run(run))
        assert (class_, type_) == ("data", kind), (path, message)
        assert all(word in message for word in words), message


def test_no_path_leads_out_of_the_storage(cluster: Cluster) -> None:
    put(cluster, "../secret.json", b"1")
    assert (cluster.store.parent / "secret.json").exists()
    for path in ("../secret.json", "in/../../secret.json", "/secret.json", f"{cluster.store}/../secret.json"):
        run = cluster.open([script("output = x", **reads(x=(path, "json")))])
        assert failed(cluster.run(run))[:2] == ("data", "InvalidKey"), path


def test_templates_that_make_no_sense_are_refused() -> None:
    for step_, values in (
        ({"inputs": msgpack.packb([["x", ref(2, 1)]])}, msgpack.packb([["a", "json"]])),
        ({"inputs": msgpack.packb([["x", ref(2, 0)]])}, None),
        ({"inputs": msgpack.packb([["x"]])}, None),
        ({"inputs": msgpack.packb([["x", ref(0, 0, -1, [])]])}, None),
        ({"target": {"place": msgpack.packb(["a"]), "replace": False}}, None),
    ):
        with pytest.raises(StepFailure, match="path"):
            objects.named(step_, values)
    assert objects.named({"name": "x"}, msgpack.packb([1])) == objects.Named()


# ------------------------------------------------------------ kept


def test_an_output_is_kept_under_a_name_of_its_own_besides_the_runs_record(cluster: Cluster) -> None:
    run = cluster.open(
        [
            script("output = {'a': 1}", serializer="json", **keeps("kept/a.json")),
            script("output = b'x' * 100_000", **keeps("kept/large.pkl")),
            script("output = [1, 2]", serializer="json", container=True, **keeps("kept/list.json")),
            script("output = [b'y' * 60_000] * 2", container=True, **keeps("kept/list.pkl")),
        ]
    )
    small, large, listed, lists = [cluster.run(run, s) for s in range(4)]
    assert (cluster.store / "kept/a.json").read_text() == '{"a":1}'
    assert small["handle"]["u"] is None and small["handle"]["b"] == b'{"a":1}'
    assert pickle.loads((cluster.store / "kept/large.pkl").read_bytes()) == b"x" * 100_000
    record = cluster.store / "runs" / run / large["handle"]["u"]
    assert record.read_bytes() == (cluster.store / "kept/large.pkl").read_bytes(), (
        "a later Replace harms no run"
    )
    assert json.loads((cluster.store / "kept/list.json").read_text()) == [1, 2], "one list, not two values"
    assert listed["handle"]["n"] == 2
    assert pickle.loads((cluster.store / "kept/list.pkl").read_bytes()) == [b"y" * 60_000] * 2
    assert lists["handle"]["n"] == 2
    for reply, path in ((small, "kept/a.json"), (large, "kept/large.pkl"), (lists, "kept/list.pkl")):
        found = (cluster.store / path).stat()
        assert reply["handle"]["r"] == [[path, f"{found.st_mtime_ns:x}-{found.st_size:x}"]]
    assert not list(cluster.directory.glob("cpu-*/**/*-whole")), "no file is left on the worker"


def test_what_others_have_put_there_is_not_replaced_unless_it_is_said(cluster: Cluster) -> None:
    theirs = put(cluster, "theirs/x.pkl", b"theirs")
    for source in ("output = 1", "output = b'x' * 100_000"):
        run = cluster.open([script(source, **keeps("theirs/x.pkl"))])
        class_, type_, message = failed(cluster.run(run))
        assert (class_, type_) == ("data", "OutputExists") and "theirs/x.pkl" in message
        assert theirs.read_bytes() == b"theirs"
    run = cluster.open([script("output = 1", **keeps("theirs/x.pkl", replace=True))])
    assert value(cluster.run(run)) == 1 and pickle.loads(theirs.read_bytes()) == 1


@pytest.mark.parametrize("size", [1000, 100_000])
def test_a_second_attempt_answers_what_the_first_one_wrote(cluster: Cluster, size: int) -> None:
    path = f"twice/{size}.pkl"
    run = cluster.open([script(f"import os\noutput = os.urandom({size})", result=1, **keeps(path))])
    first = cluster.run(run)
    # As if the answer of the first one had been lost with its worker.
    second = cluster.run(run, a=2)
    assert second["handle"]["d"] == first["handle"]["d"] and second["handle"]["u"] == first["handle"]["u"]
    assert second["handle"]["r"] == first["handle"]["r"]
    other = cluster.open([script("output = 1", **keeps(path))])
    assert failed(cluster.run(other))[1] == "OutputExists", "of another run it is not its own"
    (cluster.store / path).write_bytes(os.urandom(size))
    assert failed(cluster.run(run, a=3))[1] == "OutputExists", "and neither is what came there since"


def test_what_is_there_is_taken_in_place_of_a_call(cluster: Cluster) -> None:
    put(cluster, "taken/x.json", b"[1, 2, 3]")
    step_ = script(
        "raise ValueError('called')",
        **{
            **keeps("taken/x.json", ref(2, 0)),
            "serializer": "json",
            "result": 2,
            "lens": [[]],
            "container": True,
        },
    )
    run = cluster.open([step_])
    reply = cluster.run(run, v=msgpack.packb([True]))
    assert reply["ok"], reply
    assert (reply["json"], reply["lens"], reply["handle"]["n"]) == ([[1, 2, 3]], [3], 3)
    assert [path for path, _ in reply["handle"]["r"]] == ["taken/x.json"]
    assert failed(cluster.run(run, v=msgpack.packb([False]), a=2))[:2] == ("app", "ValueError")
    (cluster.store / "taken/x.json").write_bytes(b"{")
    assert failed(cluster.run(run, v=msgpack.packb([True]), a=3))[:2] == ("data", "InputUnreadable")
    (cluster.store / "taken/x.json").unlink()
    assert failed(cluster.run(run, v=msgpack.packb([True]), a=4))[:2] == ("data", "InputMissing")


# ------------------------------------------------------------ the scheduler's word


def test_the_scheduler_tells_what_is_at_paths_and_what_tasks_named(
    dask: LocalCluster, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    (store / "in").mkdir(parents=True)
    (store / "in/x.json").write_text("[1]")
    steps = [
        script(
            "output = x", serializer="json", result=1, **reads(x=("in/x.json", "json")), **keeps("out/x.json")
        ),
        script("output = y", template=args(y=ref(0, 0, -1, [])), result=1),
    ]
    run = Run(dask.address, f"file://{store}", steps, pipeline="p")

    def look(run: Run, reads: list[str], keeps: list[Any]) -> Any:
        storage = run.request["storage"]
        return run.conn.rpc("daskade-look", run=run.uid, storage=storage, reads=reads, keeps=keeps)

    kept = ["out/x.json", 0, -1]
    asked = ["in/x.json", "in/none", "../x", f"file://{store}/in/x.json", "ftp://host/x", "in"]
    found = look(run, asked, [kept])
    version = found["reads"][0]
    assert version and found["reads"] == [version, None, None, version, None, None]
    assert found["keeps"] == [None]
    assert look(run, [], [["in", 0, -1]])["keeps"] == [["", False]], "a folder is in the way"
    run.open()
    events = run.follow()
    run.submit((0, -1), (1, -1, None, [[0, -1]]))
    assert events.wait_for("finished", s=1)[0]["json"] == [1]
    events.wait(lambda es: sum(len(e["tasks"]) for e in es if e["k"] == "committed") == 2)
    (seen,) = look(run, [], [kept])["keeps"]
    assert seen[1] is True, "its own"
    assert look(run, [], [["out/x.json", 0, 0], ["out/x.json", 1, -1]])["keeps"] == [[seen[0], False]] * 2
    run.close()

    later = Run(dask.address, f"file://{store}", steps, pipeline="p")
    assert look(later, [], [kept])["keeps"] == [[seen[0], False]], "of another run"
    told = later.conn.rpc(
        "daskade-earlier", run=later.uid, storage=later.request["storage"], pipeline="p", wanted=None
    )
    (past,) = told["runs"]
    assert past["named"] == [[0, -1, [["in/x.json", version], ["out/x.json", seen[0]]]]]
    made = past["made"]
    assert len(made) == 2 and all(t > 1e9 for t in made)
    later.open()
    events = later.follow()
    later.rpc("adopt", items=[[0, -1, run.uid, 0, -1]])
    later.submit((1, -1, None, [[0, -1]]))
    assert events.wait_for("finished", s=1)[0]["json"] == [1]
    later.close()
    again = Run(dask.address, f"file://{store}", steps, uid=later.uid).open(
        create=False, reopen=True
    )
    assert again.snapshot["named"] == [[0, -1, [["in/x.json", version], ["out/x.json", seen[0]]]]]
    again.close()
    third = Run(dask.address, f"file://{store}", steps, pipeline="p")
    told = third.conn.rpc(
        "daskade-earlier", run=third.uid, storage=third.request["storage"], pipeline="p", wanted=None
    )
    newest = told["runs"][0]
    assert newest["uid"] == later.uid and newest["made"][0] == made[0], (
        "an output does not get younger by being reused"
    )
