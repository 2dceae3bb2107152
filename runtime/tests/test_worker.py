"""Steps end to end: real scheduler, real workers without the package, real step processes, a directory as
storage.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from support.certificates import certificates
from support.dask.steps import args, code, ref, step
from support.dask.workers import Cluster, result, value
from support.waiting import until

FLOW = code(
    flow="def inc(x):\n    print('inc', x)\n    return x + 1\ndef boom():\n    raise ValueError('no luck')\n"
)


def test_a_step_runs_and_its_output_comes_back_inline(cluster: Cluster) -> None:
    run = cluster.open([step("inc", "flow:inc", args(x=41))], code=FLOW)
    reply = cluster.run(run)
    assert value(reply) == 42
    assert reply["handle"]["z"] == len(reply["handle"]["b"])
    assert reply["handle"]["u"] is None


def test_a_step_that_raises_is_reported_not_raised(cluster: Cluster) -> None:
    run = cluster.open([step("boom", "flow:boom")], code=FLOW)
    reply = cluster.run(run)
    assert (reply["ok"], reply["class"], reply["type"], reply["message"]) == (
        False,
        "app",
        "ValueError",
        "no luck",
    )
    assert "raise ValueError('no luck')" in reply["traceback"]
    assert "daskade_runtime" not in reply["traceback"]


def test_why_an_attempt_failed_stands_below_its_lines(cluster: Cluster) -> None:
    flow = code(flow="def boom():\n    print('so far')\n    raise ValueError('no luck')\n")
    steps = [step("boom", "flow:boom"), step("nap", "time:sleep", args(60), timeout=0.5)]
    run = cluster.open(steps, code=flow)
    assert cluster.run(run)["tail"] == ["so far"]
    assert cluster.run(run, 1)["class"] == "timeout"
    for address in cluster.addresses().values():
        assert cluster.worker_rpc(address, "daskade-flush", run=run)["status"] == "OK"
    lines = cluster.log_lines(run)
    boom = [line for line in lines if line[1] == "boom"]
    assert (boom[0][4], boom[0][5]) == ("stdout", "so far")
    assert {line[4] for line in boom[1:]} == {"daskade"}
    assert boom[1][5] == "Traceback (most recent call last):" and boom[-1][5] == "ValueError: no luck"
    assert any("raise ValueError('no luck')" in line[5] for line in boom)
    assert [line[5] for line in lines if line[1] == "nap"] == [
        "Timeout: the step ran longer than its timeout of 0.5 s and was killed"
    ]


def test_a_step_that_takes_a_while_is_announced_as_started(cluster: Cluster) -> None:
    run = cluster.open([step("nap", "time:sleep", args(0.5))])
    future = cluster.submit(run)
    (event,) = until("the step starts", lambda: [e for e in cluster.events(run) if e["k"] == "started"], 20)
    assert not future.done()
    assert (event["s"], event["i"], event["a"]) == (0, -1, 1)
    assert event["w"].startswith("cpu-")
    assert event["t"] == result(future)["t0"]


def test_a_large_output_goes_through_storage_and_the_worker_cache(cluster: Cluster) -> None:
    flow = code(big="def make(n):\n    return b'x' * n\ndef size(data):\n    return len(data)\n")
    steps = [step("make", "big:make", args(1_000_000)), step("size", "big:size", args(ref(0, 0, -1, [])))]
    run = cluster.open(steps, code=flow)
    made = cluster.run(run)
    handle = made["handle"]
    assert handle["b"] is None and handle["w"].startswith("tcp://")
    assert (cluster.store / "runs" / run / handle["u"]).stat().st_size == handle["z"]
    for address in cluster.addresses().values():
        assert value(cluster.run(run, 1, a=1, h=[[0, -1, handle]], workers=[address])) == 1_000_000


def test_log_lines_are_stored(cluster: Cluster) -> None:
    run = cluster.open([step("inc", "flow:inc", args(x=7))], code=FLOW)
    cluster.run(run)
    for address in cluster.addresses().values():
        assert cluster.worker_rpc(address, "daskade-flush", run=run)["status"] == "OK"
    lines = cluster.log_lines(run)
    assert [line[1:] for line in lines] == [["inc", -1, 1, "stdout", "inc 7"]]


def script(source: str, name: str = "s", template: bytes | None = None, **more: Any) -> dict[str, Any]:
    return step(name, None, template, script=source, **more)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_the_package_came_with_the_plugin(cluster: Cluster) -> None:
    def where() -> tuple[str, str]:
        import daskade_runtime

        return daskade_runtime.__file__, daskade_runtime.DIGEST

    for path, digest in cluster.client.run(where).values():
        assert path.startswith("/proc/self/fd/"), "it is a file without a name, which goes with its process"
        assert digest == cluster.digest


def test_a_runtime_of_another_digest_is_refused(cluster: Cluster) -> None:
    run = cluster.open([step("inc", "flow:inc", args(x=1))], code=FLOW)
    reply = cluster.run(run, d="0" * 64)
    assert (reply["class"], reply["type"]) == ("infra", "RuntimeMismatch")


def test_a_run_that_the_scheduler_does_not_know_is_infra(cluster: Cluster) -> None:
    reply = cluster.run("nosuchrun")
    assert (reply["class"], reply["type"]) == ("infra", "DefinitionsUnavailable")


def test_a_blob_that_makes_no_sense_is_infra_and_not_an_exception(cluster: Cluster) -> None:
    from daskade_runtime.worker import run_step

    for blob in (b"", b"\xc1", b"\x80", b"\x90"):
        reply = result(cluster.client.submit(run_step, blob, pure=False))
        assert (reply["ok"], reply["class"]) == (False, "infra")


def test_two_runs_with_modules_of_the_same_name_do_not_mix(cluster: Cluster) -> None:
    address = next(iter(cluster.addresses().values()))
    for answer in (1, 2, 1, 2):
        run = cluster.open([step("f", "same:f")], code=code(same=f"def f(): return {answer}\n"))
        assert value(cluster.run(run, workers=[address])) == answer


def test_steps_of_one_worker_run_at_the_same_time(cluster: Cluster) -> None:
    run = cluster.open([step("nap", "time:sleep", args(1.0))])
    cluster.run(cluster.open([step("warm", "time:sleep", args(0))]))
    address = next(iter(cluster.addresses().values()))
    replies = [result(f) for f in [cluster.submit(run, i=k, workers=[address]) for k in range(2)]]
    assert max(r["t0"] for r in replies) < min(r["t1"] for r in replies)


def test_whole_outputs_come_as_lists_with_holes(cluster: Cluster) -> None:
    run = cluster.open([step("x"), step("list", "builtins:list", args(ref(1, 0, 0)))])

    def handle(data: Any) -> dict[str, Any]:
        raw = pickle.dumps(data)
        return {
            "u": None,
            "z": len(raw),
            "d": b"",
            "s": "pickle",
            "b": raw,
            "w": None,
            "n": None,
            "x": None,
            "m": None,
        }

    assert value(cluster.run(run, 1, all={0: [handle(1), None, handle("c")]})) == [1, None, "c"]


def test_a_list_output_is_read_element_by_element_elsewhere(cluster: Cluster) -> None:
    make = script("output = [bytes([k]) * 100_000 for k in range(20)]", "make", container=True, lens=[[]])
    run = cluster.open([make, step("size", "builtins:sum", args(ref(2, 0)))])
    made = cluster.run(run)
    assert made["lens"] == [20] and made["handle"]["n"] == 20
    for slim in (False, True):
        handle = made["handle"]
        if slim:
            cluster.rpc("test-handle", run=run, s=0, i=-1, handle=handle)
            handle = {**handle, "x": None, "m": None}
        for address in cluster.addresses().values():
            for k in (0, 19):
                import msgpack

                values = msgpack.packb([ref(3, 0, -1, k)])
                reply = cluster.run(run, 1, k, v=values, h=[[0, -1, handle]], workers=[address])
                assert value(reply) == k * 100_000


def test_an_output_comes_from_the_worker_that_made_it(cluster: Cluster) -> None:
    make, size = (
        script("output = b'x' * 20_000_000", "make"),
        step("size", "builtins:len", args(ref(0, 0, -1, []))),
    )
    run = cluster.open([make, size])
    handle = cluster.run(run)["handle"]
    (cluster.store / "runs" / run / handle["u"]).unlink()
    others = [address for address in cluster.addresses().values() if address != handle["w"]]
    assert value(cluster.run(run, 1, h=[[0, -1, handle]], workers=others)) == 20_000_000


def test_an_output_of_a_worker_that_is_gone_comes_from_storage(cluster: Cluster) -> None:
    make, size = (
        script("output = b'x' * 200_000", "make"),
        step("size", "builtins:len", args(ref(0, 0, -1, []))),
    )
    run = cluster.open([make, size])
    handle = cluster.run(run)["handle"]
    others = [address for address in cluster.addresses().values() if address != handle["w"]]
    handle["w"] = "tcp://127.0.0.1:9"
    assert value(cluster.run(run, 1, h=[[0, -1, handle]], workers=others)) == 200_000


def test_an_output_is_not_served_to_another_run(cluster: Cluster) -> None:
    run = cluster.open([script("output = b'x' * 200_000")])
    handle = cluster.run(run)["handle"]
    for asked, status in ((run, "OK"), ("other", "error")):
        reply = cluster.worker_rpc(handle["w"], "daskade-get", run=asked, d=handle["d"], offset=5, length=10)
        assert reply["status"] == status
        assert status == "error" or (len(reply["data"]), reply["size"]) == (10, handle["z"])


def test_a_dropped_run_is_forgotten(cluster: Cluster) -> None:
    run = cluster.open([script("output = b'x' * 200_000")])
    handle = cluster.run(run)["handle"]
    for name in cluster.addresses():
        cluster.tell(name, op="daskade-drop", run=run)

    def cached() -> bool:
        reply = cluster.worker_rpc(handle["w"], "daskade-get", run=run, d=handle["d"], offset=0, length=1)
        return bool(reply["status"] == "OK")

    until("nothing is cached", lambda: not cached(), 20)


def test_small_results_are_reported_as_json(cluster: Cluster) -> None:
    run = cluster.open([script("output = {'n': 3}", result=2), script("output = object()", result=2)])
    assert cluster.run(run)["json"] == [{"n": 3}]
    reply = cluster.run(run, 1)
    assert (reply["class"], reply["type"]) == ("data", "NotJson")


def test_the_environment_of_a_step(cluster: Cluster) -> None:
    source = "import os; names = ('DASKADE_', 'MINE', 'CUDA')\n"
    source += "output = {k: v for k, v in os.environ.items() if k.startswith(names)}"
    run = cluster.open([script(source, "look", env={"MINE": "yes"}), script(source, "bare")])
    seen = value(cluster.run(run, 0, 4, 2))
    assert seen == {
        "DASKADE_RUN": run, "DASKADE_STEP": "look", "DASKADE_ITEM": "4", "DASKADE_ATTEMPT": "2",
        "MINE": "yes", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    assert "MINE" not in value(cluster.run(run, 1))


@pytest.mark.parametrize("name", ["get_client", "worker_client"])
def test_a_step_may_use_dask_itself(cluster: Cluster, name: str) -> None:
    use = {
        "get_client": "client = distributed.get_client()\noutput = client.submit(abs, -5).result()",
        "worker_client": "with distributed.worker_client() as c:\n    output = c.submit(abs, -5).result()",
    }
    run = cluster.open([script("import distributed\n" + use[name])])
    assert value(cluster.run(run)) == 5


def test_a_timeout_is_its_own_class(cluster: Cluster) -> None:
    run = cluster.open([script("import time; print('here'); time.sleep(60)", timeout=0.7)])
    reply = cluster.run(run)
    assert (reply["class"], reply["tail"]) == ("timeout", ["here"])
    assert 0.7 <= reply["t1"] - reply["t0"] < 5


def test_a_crash_is_the_steps_and_not_the_workers(cluster: Cluster) -> None:
    before = set(cluster.addresses().values())
    run = cluster.open([script("import os; os.kill(os.getpid(), 9)")])
    for attempt in (1, 2):
        reply = cluster.run(run, a=attempt)
        assert (reply["class"], reply["type"]) == ("app", "ProcessDied")
        assert "signal 9 (SIGKILL)" in reply["message"]
    assert set(cluster.addresses().values()) == before


def test_a_running_step_is_stopped(cluster: Cluster, tmp_path: Path) -> None:
    note = str(tmp_path / "pid")
    run = cluster.open(
        [script(f"import os, time; print(os.getpid(), file=open({note!r}, 'w', 1)); time.sleep(60)")]
    )
    future = cluster.submit(run)
    pid = int(until("the step writes its process number", lambda: os.path.exists(note) and Path(note).read_text(), 20))
    (event,) = until("an event", lambda: cluster.events(run), 20)
    cluster.tell(event["w"], op="daskade-stop", run=run, s=0, i=-1, a=2)  # another attempt
    time.sleep(0.3)
    assert not future.done()
    cluster.tell(event["w"], op="daskade-stop", run=run, s=0, i=-1, a=1)
    reply = result(future, 10)
    assert reply["class"] == "stopped"
    assert gone(pid)


def test_a_stop_that_comes_before_the_step_is_remembered(cluster: Cluster, tmp_path: Path) -> None:
    run = cluster.open([script(f"open({str(tmp_path / 'ran')!r}, 'w')")])
    for name in cluster.addresses():
        cluster.tell(name, op="daskade-stop", run=run, s=0, i=-1, a=1)
    # The step goes the same way as the stop, and after it.
    assert cluster.run(run)["class"] == "stopped"
    assert not (tmp_path / "ran").exists()
    assert cluster.run(run, a=2)["ok"]


def test_a_stop_reaches_no_attempt_of_a_later_opening(cluster: Cluster) -> None:
    run = cluster.open([script("import time; time.sleep(1); output = 1")])
    for name in cluster.addresses():
        cluster.tell(name, op="daskade-stop", run=run, s=0, i=-1, a=1, o=1)
    future = cluster.submit(run, o=2)
    until("an event", lambda: cluster.events(run), 20)
    for name in cluster.addresses():
        cluster.tell(name, op="daskade-stop", run=run, s=0, i=-1, a=1, o=1)
    reply = result(future)
    assert (value(reply), reply["o"]) == (1, 2)


def test_live_lines_arrive_while_the_step_runs(cluster: Cluster) -> None:
    run = cluster.open([script("import time\nfor k in range(40):\n    print(k)\n    time.sleep(0.05)")])
    for name in cluster.addresses():
        cluster.tell(name, op="daskade-listen", run=run, on=True)
    future = cluster.submit(run)
    lines = until("lines of the log", lambda: [line for e in cluster.events(run) if e["k"] == "logs" for line in e["lines"]], 20)
    assert not future.done()
    assert (lines[0][:3], lines[0][4:]) == ((0, -1, 1), ("stdout", "0"))
    for name in cluster.addresses():
        cluster.tell(name, op="daskade-stop", run=run, s=0, i=-1, a=1)
    assert result(future)["class"] == "stopped"


def test_nothing_is_sent_live_while_nobody_listens(cluster: Cluster) -> None:
    run = cluster.open([script("import time; print('x'); time.sleep(0.2)")])
    assert cluster.run(run)["ok"]
    assert [e["k"] for e in cluster.events(run)] == ["started"]


def test_a_failure_brings_its_last_lines_to_storage_at_once(cluster: Cluster) -> None:
    run = cluster.open([script("print('about to'); raise RuntimeError('fail')")])
    reply = cluster.run(run)
    assert reply["tail"] == ["about to"]
    began = time.monotonic()
    until("lines in the storage", lambda: cluster.log_lines(run), 20)
    assert time.monotonic() - began < 1


def test_thread_isolation_runs_code_of_the_image(cluster: Cluster) -> None:
    source = (
        "import logging, os, threading\nprint('direct')\n"
        "t = threading.Thread(target=print, args=('from a thread',))\n"
        "t.start(); t.join()\nlogging.getLogger('x').warning('record')\noutput = os.getpid()"
    )
    run = cluster.open(
        [script(source, isolation="thread"), script("raise ValueError('v')", isolation="thread")]
    )
    pid = value(cluster.run(run))
    assert pid in {process.pid for process in cluster.processes.values()}
    reply = cluster.run(run, 1)
    assert (reply["class"], reply["type"], reply["message"]) == ("app", "ValueError", "v")
    for address in cluster.addresses().values():
        cluster.worker_rpc(address, "daskade-flush", run=run)
    lines = [line[4:] for line in cluster.log_lines(run) if line[4] != "daskade"]
    assert lines == [["stdout", "direct"], ["stdout", "from a thread"], ["WARNING", "x: record"]]


def test_thread_isolation_honours_timeouts_and_stops_between_instructions(cluster: Cluster) -> None:
    loop = "import time\nwhile True: time.sleep(0.01)"
    run = cluster.open([script(loop, isolation="thread", timeout=0.5), script(loop, isolation="thread")])
    assert cluster.run(run)["class"] == "timeout"
    future = cluster.submit(run, 1)
    event = until("an event of the second step", lambda: [e for e in cluster.events(run) if e["s"] == 1], 20)[0]
    cluster.tell(event["w"], op="daskade-stop", run=run, s=1, i=-1, a=1)
    assert result(future, 10)["class"] == "stopped"


def test_a_worker_under_a_nanny_whose_worker_process_dies(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, workers=1, threads=1, more=["--nanny"])
    try:
        note = str(tmp_path / "pid")
        source = f"import os, time\nwith open({note!r}, 'w') as f: print(os.getpid(), os.getppid(), file=f)\n"
        source += "time.sleep({})"
        run = cluster.open([script(source.format(300)), script(source.format(0))])
        future = cluster.submit(run)
        pids = until("the step writes its process number", lambda: os.path.exists(note) and Path(note).read_text().split(), 20)
        os.kill(int(pids[1]), signal.SIGKILL)
        until("the end of the step", lambda: gone(int(pids[0])), 10)
        future.release()
        assert cluster.run(run, 1)["ok"]  # the nanny's next worker process
    finally:
        cluster.close()


def test_all_of_it_over_tls(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, workers=2, tls=certificates(tmp_path))
    try:
        test_an_output_comes_from_the_worker_that_made_it(cluster)
        test_a_step_may_use_dask_itself(cluster, "get_client")
    finally:
        cluster.close()


@pytest.mark.parametrize("victim", ["scheduler", "cpu-0-1"])
def test_steps_end_when_their_worker_or_its_scheduler_dies(tmp_path: Path, victim: str) -> None:
    cluster = Cluster(tmp_path, workers=1)
    try:
        note = tmp_path / "pid"
        run = cluster.open(
            [script(f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(300)")]
        )
        future = cluster.submit(run)
        pid = int(until("the step writes its process number", lambda: note.exists() and note.read_text(), 20))
        os.kill(cluster.processes[victim].pid, signal.SIGKILL)
        until("the end of the step", lambda: gone(pid), 10)
        del future
        if victim == "scheduler":
            until("the end of the worker", lambda: cluster.processes["cpu-0-1"].poll() is not None, 40)
            assert not list((tmp_path / "cpu-0-1").rglob("daskade-*"))
    finally:
        cluster.close()


def test_a_step_beyond_its_share_of_the_workers_memory_is_oom(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, workers=1, threads=2, memory="600MiB")
    try:
        run = cluster.open(
            [script("import time; data = b'x' * (400 << 20); time.sleep(30)"), script("output = 1")]
        )
        reply = cluster.run(run)
        assert (reply["class"], reply["type"]) == ("oom", "OutOfMemory")
        assert "its share of 300 MiB (600 MiB of the worker / 2 threads)" in reply["message"]
        assert value(cluster.run(run, 1)) == 1
    finally:
        cluster.close()


def test_a_device_is_handed_on_without_the_processes_that_idle_on_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, workers=0)
    try:
        cluster.worker("gpu-0-1", 4, more=["--resources", "GPU=2"], CUDA_VISIBLE_DEVICES="4,5")
        cluster.client.wait_for_workers(1, 60)
        mine = "import os, time; time.sleep(0.3); output = os.getpid()"
        half, whole, both = {"GPU": 0.5}, {"GPU": 1}, {"GPU": 2}
        run = cluster.open(
            [
                script(mine, resources=half),
                script(mine, resources=half, env={"A": "1"}),
                script(mine, resources=both),
                script("import os; output = os.getpid()"),
                script(mine, resources=whole),
            ]
        )

        def pids(s: int, count: int) -> set[int]:
            return {value(result(f)) for f in [cluster.submit(run, s, i) for i in range(count)]}

        def alive(of: set[int]) -> set[int]:
            return {pid for pid in of if os.path.exists(f"/proc/{pid}")}

        halves = pids(0, 4)
        assert len(halves) == 4 and alive(halves) == halves, "a share is kept warm for its like"
        other = pids(1, 4)
        assert not alive(halves) and len(other) == 4, "another kind finds nobody on the device"
        pair = pids(2, 1)
        assert not alive(other) and alive(pair) == pair
        one = pids(4, 1)
        assert not alive(pair), "a device among several is one in common"
        without = pids(3, 1)
        assert pids(4, 1) == one, "its own process stays warm"
        assert alive(without) == without, "a process without a device is in nobody's way"
    finally:
        cluster.close()


def test_gpu_steps_see_their_devices_and_others_see_none(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, workers=0)
    try:
        cluster.worker("gpu-0-1", 2, more=["--resources", "GPU=2"], CUDA_VISIBLE_DEVICES="4,MIG-7")
        cluster.client.wait_for_workers(1, 60)
        look = "import os, time; time.sleep(0.5); output = os.environ['CUDA_VISIBLE_DEVICES']"
        run = cluster.open(
            [
                script(look, resources={"GPU": 1}),
                script(look, resources={"GPU": 2}),
                script(look),
                script(look, gpu_ok=True),
            ]
        )
        pair = [cluster.submit(run, 0, i) for i in range(2)]
        assert {value(result(f)) for f in pair} == {"4", "MIG-7"}
        assert [value(cluster.run(run, s)) for s in (1, 2, 3)] == ["4,MIG-7", "", "4,MIG-7"]
    finally:
        cluster.close()
