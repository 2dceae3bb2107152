"""Ways into schedulers that Dask's own command line started, with plain workers that have nothing of ours."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pickle
import re
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import msgpack
import pytest

from daskade_runtime import install, versions
from support import RUNTIME
from support.certificates import certificates
from support.dask.local import Process, cluster
from support.dask.plain import plain
from support.dask.run import Run
from support.dask.steps import args, step
from support.dask.wire import Conn
from support.waiting import until

# A page that tells which packages the scheduler has imported.
LATE = """
import sys
from tornado.web import RequestHandler

class Loaded(RequestHandler):
    def get(self):
        self.write(" ".join(name for name in sys.modules if "." not in name))

def dask_setup(scheduler):
    scheduler.http_application.add_handlers(r".*", [("/loaded", Loaded)])
"""

RELEASE = tuple(map(int, distributed.__version__.split(".")[:2]))
STEP = step("add", "operator:add", args(1, 2), result=1)


class _Boot:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("exec(boot) or main", {"boot": install.BOOT})


def send_runtime(conn: Conn, data: bytes, digest: str) -> dict[str, Any]:
    reply = conn.call(
        "run_function",
        function=pickle.dumps(_Boot(), 4),
        args=pickle.dumps((data, digest), 4),
        kwargs=pickle.dumps({}, 4),
        wait=True,
    )
    assert reply["status"] == "OK", reply
    header = msgpack.unpackb(reply["frames"][0])
    assert header["serializer"] == "dask" and header["type"] == "bytes", (
        "the answer must be readable without pickle"
    )
    found: dict[str, Any] = json.loads(b"".join(reply["frames"][1:]))
    return found


def run_a_step(address: str, directory: Path, tls: ssl.SSLContext | None = None) -> None:
    run = Run(address, f"file://{directory}/store", [STEP], tls=tls).open()
    events = run.follow(tls=tls)
    run.submit((0, -1))
    assert events.wait_for("finished", timeout=60)[0]["json"] == 3
    events.wait_for("committed")
    run.close()


def hello(conn: Conn) -> dict[str, Any]:
    return dict(until("the runtime answers", lambda: conn.call("daskade-hello"), 30))


def test_the_runtime_is_sent_to_a_running_cluster_once(tmp_path: Path) -> None:
    data, digest = install.archive()
    with plain(tmp_path) as made:
        conn = Conn(made.address)
        assert conn.call("daskade-hello") is None
        assert send_runtime(conn, data, digest) == {"status": "OK", "runtime": digest, "installed": True}
        assert send_runtime(conn, data, digest)["installed"] is False
        said = hello(conn)
        assert said["runtime"] == digest and said["protocol"] == [1, 1] and said["runs"] == {}
        other = send_runtime(conn, b"another", "0" * 64)
        assert other["reason"] == "RuntimeMismatch" and other["runtime"] == digest
        assert f"runtime {digest[:12]} is installed on this scheduler, not 000000000000" in other["message"]
        run_a_step(made.address, tmp_path)


def left_in(folder: Path) -> list[str]:
    """What the runtime has left in a folder for temporary files."""
    return [path.name for path in folder.iterdir() if path.name.startswith("daskade-runtime")]


def test_processes_that_were_sent_the_runtime_leave_no_files_however_they_end(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with plain(tmp_path, env={"TMPDIR": str(temporary)}) as made:
        assert send_runtime(Conn(made.address), *install.archive())["status"] == "OK"
        run_a_step(made.address, tmp_path)
        for process in made.processes:
            process.kill()
            process.wait(20)
    assert left_in(temporary) == []


def test_local_processes_leave_no_files_of_the_runtime(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with cluster(tmp_path, workers=1, env={"TMPDIR": str(temporary)}) as made:
        run_a_step(made.address, tmp_path)
    assert left_in(temporary) == []


def test_where_files_have_names_they_go_with_their_process(tmp_path: Path) -> None:
    """On a system that knows no files without a name."""
    code = """
import os, sys
del os.memfd_create
from daskade_runtime import boot, install, worker
place, texts = {}, [boot._BOOT, install.BOOT]
exec(texts[0], place)
path = place["_place"](install.archive()[0])
assert os.path.isfile(path) and path.startswith(os.environ["TMPDIR"] + "/daskade-runtime-"), path
assert len({text.partition("def _place")[2] for text in texts}) == 1
"""
    env = {**os.environ, "PYTHONPATH": str(RUNTIME), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert left_in(tmp_path) == []


def test_workers_that_come_while_the_runtime_is_installed_are_told_of_by_their_names(tmp_path: Path) -> None:
    data, digest = install.archive()
    with plain(tmp_path, workers=3) as made:
        assert send_runtime(Conn(made.address), data, digest)["status"] == "OK"
        slow = step("slow", "time:sleep", args(1))
        run = Run(made.address, f"file://{tmp_path}/store", [slow, slow, slow]).open()
        events = run.follow()
        run.submit((0, -1), (1, -1), (2, -1))
        told = {event["w"] for event in events.wait_for("finished", 3, timeout=60)}
        assert all(name.startswith("other-worker-") for name in told), told
        run.close()


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    data, digest = install.archive()
    with plain(tmp_path, workers=0) as made:
        conn = Conn(made.address)
        reply = send_runtime(conn, data[:-1], digest)
        assert reply["reason"] == "InstallFailed" and "digest" in reply["message"]
        assert conn.call("daskade-hello") is None


def test_a_preloaded_archive_is_there_before_the_first_worker(tmp_path: Path) -> None:
    data, digest = install.archive()
    package = tmp_path / "runtime.zip"
    package.write_bytes(data)
    with plain(tmp_path, 1, "--preload", "daskade_runtime.preload", PYTHONPATH=str(package)) as made:
        assert hello(Conn(made.address))["runtime"] == digest
        run_a_step(made.address, tmp_path)


def test_a_cluster_with_mutual_tls(tmp_path: Path) -> None:
    tls = certificates(tmp_path)
    data, digest = install.archive()
    with plain(tmp_path, tls=tls) as made:
        conn = Conn(made.address, tls.context())
        assert send_runtime(conn, data, digest)["status"] == "OK"
        run_a_step(made.address, tmp_path, tls.context())


def test_releases_outside_the_range_are_refused_by_name() -> None:
    for version in ("2023.3.1", "2022.12.1", "2026.9.0", "2027.1.0", "nonsense"):
        with pytest.raises(versions.UnsupportedDask, match=re.escape(version)):
            versions.check(version)
    for version in ("2023.3.2", "2026.8.0", "2024.8.2+13.gabc", "2026.8.3"):
        versions.check(version)


def test_an_unsupported_scheduler_says_so_to_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scheduler:
        handlers: dict[str, Any] = {}

    monkeypatch.setattr(distributed, "__version__", "2022.12.1")
    scheduler = Scheduler()
    reply = asyncio.run(install.install(scheduler))
    assert reply["reason"] == "UnsupportedDask"
    words = f"distributed 2022.12.1 is not supported: daskade runs on {versions.text(versions.OLDEST)} to"
    assert words in reply["message"]
    for op in ("daskade-hello", "daskade-open"):
        assert asyncio.run(scheduler.handlers[op](None)) == reply


def test_the_archive_is_the_same_for_the_same_sources() -> None:
    code = "from daskade_runtime import install; print(install.archive()[1])"
    env = {**os.environ, "PYTHONPATH": str(RUNTIME)}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == install.archive()[1]


def test_a_process_that_has_the_runtime_does_not_load_it_again(tmp_path: Path) -> None:
    """Neither unpacked beside its archive, as local runs have it, nor from the archive, as pods do."""
    data, digest = install.archive()
    (tmp_path / "daskade_runtime.zip").write_bytes(data)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "daskade_runtime.zip") as archive:
        archive.extractall(unpacked)
    # Other bytes than it would pack itself, as those of the program's own archive are.
    with zipfile.ZipFile(tmp_path / "daskade_runtime.zip", "a") as archive:
        archive.comment = b"as released"
    released = (tmp_path / "daskade_runtime.zip").read_bytes()
    (unpacked / "daskade_runtime.zip").write_bytes(released)
    code = """
import pickle, sys
from daskade_runtime import install, worker
install.claim()
plugin = pickle.loads(pickle.dumps(worker.DaskadeWorker(*install.archive())))
print(install.archive()[1], sys.modules["daskade_runtime.worker"] is worker, type(plugin) is worker.DaskadeWorker)
"""
    for path in (unpacked, tmp_path / "daskade_runtime.zip"):
        env = {**os.environ, "PYTHONPATH": str(path)}
        run = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert run.stdout.split() == [hashlib.sha256(released).hexdigest(), "True", "True"]


@pytest.mark.skipif(RELEASE < (2023, 6), reason="this release of distributed needs an older bokeh for its dashboard")
def test_the_dashboard_is_loaded_when_it_is_opened(tmp_path: Path) -> None:
    late = tmp_path / "late.py"
    late.write_text(LATE)
    env = {"DASK_DISTRIBUTED__SCHEDULER__PRELOAD": str(late)}
    scheduler = Process("scheduler", "--dashboard", env=env, log=tmp_path / "scheduler.log")
    try:
        url = scheduler.ready()["dashboard"]
        host = url.removesuffix("/status")

        def get(path: str) -> str:
            with urllib.request.urlopen(host + path, timeout=60) as reply:
                return str(reply.read().decode())

        assert get("/health") == "ok"
        assert "bokeh" not in get("/loaded").split()
        with ThreadPoolExecutor(4) as several:
            pages = list(several.map(get, ["/status", "/", "/individual-workers", "/workers"]))
        assert all("bokeh" in page for page in pages), pages
        assert "bokeh" in get("/loaded").split()
    finally:
        scheduler.kill()


def test_a_dashboard_that_cannot_be_loaded_says_why_and_the_scheduler_goes_on(tmp_path: Path) -> None:
    (tmp_path / "bokeh").mkdir()
    (tmp_path / "bokeh" / "__init__.py").write_text("raise ImportError('built for another system')")
    env = {"PYTHONPATH": f"{tmp_path}:{RUNTIME}"}
    scheduler = Process("scheduler", "--dashboard", env=env, log=tmp_path / "scheduler.log")
    try:
        ready = scheduler.ready()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(ready["dashboard"], timeout=60)
        words = "Dask's dashboard cannot be loaded: ImportError: built for another system\n"
        assert refused.value.read().decode() == words
        Conn(ready["address"]).call("identity")
    finally:
        scheduler.kill()


def test_local_processes_end_with_their_parent(tmp_path: Path) -> None:
    scheduler = Process("scheduler", log=tmp_path / "scheduler.log")
    ready = scheduler.ready()
    assert ready["ready"] and ready["dashboard"] is None
    worker = Process(
        "worker", ready["address"], "--name", "cpu-0-0", "--nthreads", "2", log=tmp_path / "worker.log"
    )
    worker.ready()
    for process in (worker, scheduler):
        assert process.popen.stdin is not None
        process.popen.stdin.close()
        assert process.popen.wait(10) == -signal.SIGKILL
