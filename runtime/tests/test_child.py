"""Step processes by themselves: a real pool and real processes, no Dask."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daskade_runtime import channel
from daskade_runtime.memory import descendants
from daskade_runtime.process import Killed, ProcessDied, Stale, describe_exit
from support.dask.steps import args
from support.waiting import until
from tests.runner import Lines, Runner


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    made = Runner(tmp_path)
    yield made
    made.pool.close()


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The first thread is a zombie while others still end, and those keep files open.
            zombie = file.read().rsplit(")", 1)[1].split()[0] == "Z"
            return zombie and len(os.listdir(f"/proc/{pid}/task")) == 1
    except OSError:
        return True


def test_a_process_is_reused_for_the_next_step_and_after_an_exception(runner: Runner) -> None:
    script = "import os; output = os.getpid()"
    first = runner.value(script)
    kind, failure = runner.run("1 / 0")
    assert (kind, failure["type"]) == ("failed", "ZeroDivisionError")
    assert runner.value(script) == first


def test_all_ways_of_writing_are_caught(runner: Runner) -> None:
    lines = Lines()
    runner.run(
        """
        import ctypes, logging, os, subprocess, sys
        print("python", end="")
        sys.stdout.flush()
        os.write(1, b" raw")
        subprocess.run(["sh", "-c", "echo ' child'; echo oops >&2"])
        ctypes.CDLL(None).puts(b"buffered in C")
        logging.getLogger("mine").warning("careful %s", 1)
        logging.info("told")
        logging.debug("not told")
        """,
        lines,
    )
    assert lines.raw["stdout"] == b"python raw child\nbuffered in C\n"
    assert lines.raw["stderr"] == b"oops\n"
    assert lines.records == [("WARNING mine", "careful 1"), ("INFO root", "told")]


def test_two_processes_at_once_keep_their_output_apart(runner: Runner) -> None:
    sinks = [Lines(), Lines()]
    script = "import time\nfor k in range(200):\n    print('{0}' * 50)\n    time.sleep(0.0005)"
    threads = [
        threading.Thread(target=runner.run, args=(script.replace("{0}", str(n)), sinks[n])) for n in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in (0, 1):
        assert sinks[n].raw["stdout"] == (str(n) * 50 + "\n").encode() * 200


def test_output_written_between_steps_belongs_to_nobody(runner: Runner, tmp_path: Path) -> None:
    child = runner.start()
    written = tmp_path / "written"
    late = f"sleep 0.2; echo late; touch {written}"
    runner.ask(child, f"import subprocess; subprocess.Popen(['sh', '-c', {late!r}])")
    until("it is written", written.exists, 20)
    lines = Lines()
    runner.ask(child, "print('mine')", lines)
    assert lines.raw["stdout"] == b"mine\n"
    runner.pool.release(child, True)


def test_log_records_of_a_thread_that_outlives_its_step_do_not_confuse_the_next(runner: Runner) -> None:
    child = runner.start()
    script = """
        import logging, threading, time
        def chat():
            for k in range(50):
                logging.warning("background %d", k)
                time.sleep(0.01)
        threading.Thread(target=chat, daemon=True).start()
    """
    runner.ask(child, script)
    time.sleep(0.2)
    assert pickle.loads(runner.ask(child, "output = 1")[1]["b"]) == 1
    runner.pool.release(child, True)


def test_an_output_that_follows_a_flood_is_complete(runner: Runner) -> None:
    lines = Lines()
    runner.run("for k in range(20000): print('x' * 99)", lines)
    assert len(lines.raw["stdout"]) == 2_000_000


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("import os; os._exit(3)", 3, "exited with code 3"),
        ("import os; os._exit(0)", 0, "exited with code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "signal 9 (SIGKILL)"),
        ("import ctypes; ctypes.string_at(0)", -11, "signal 11 (SIGSEGV)"),
        ("import os; os.abort()", -6, "signal 6 (SIGABRT)"),
    ],
)
def test_a_crash_is_told_by_its_exit(runner: Runner, script: str, code: int, words: str) -> None:
    lines = Lines()
    with pytest.raises(ProcessDied) as caught:
        runner.run(f"print('before')\n{script}", lines)
    assert caught.value.code == code
    assert words in describe_exit(code)
    assert lines.raw["stdout"] == b"before\n"
    if code == -11:
        assert b"Segmentation fault" in lines.raw["stderr"]
    assert runner.value("output = 7") == 7  # a new process took its place


def test_sys_exit_is_the_steps_failure_and_not_the_end_of_its_process(runner: Runner) -> None:
    pid = runner.value("import os; output = os.getpid()")
    kind, failure = runner.run("import sys; sys.exit(3)")
    assert (kind, failure["type"], failure["message"]) == (
        "failed",
        "SystemExit",
        "the step called sys.exit(3)",
    )
    assert runner.value("import os; output = os.getpid()") == pid


def test_a_timeout_ends_the_step_and_all_that_it_started(runner: Runner, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    script = f"""
        import os, subprocess, time
        a = subprocess.Popen(["sleep", "60"])
        b = subprocess.Popen(["sleep", "60"], start_new_session=True)
        open({str(note)!r}, "w").write(f"{{os.getpid()}} {{a.pid}} {{b.pid}}")
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    """
    began = time.monotonic()
    with pytest.raises(Killed) as caught:
        runner.run(script, timeout=1.0)
    assert caught.value.why == "timeout"
    assert time.monotonic() - began < 3
    for pid in map(int, note.read_text().split()):
        until(f"the end of {pid}", partial(gone, pid), 5)


def test_a_busy_loop_in_c_code_is_ended_too(runner: Runner) -> None:
    with pytest.raises(Killed):
        runner.run("sum(range(10**12))", timeout=0.5)


def test_stop_ends_the_step_with_its_reason(runner: Runner) -> None:
    child = runner.start()
    threading.Timer(0.3, child.kill, ["stopped"]).start()
    with pytest.raises(Killed) as caught:
        runner.ask(child, "import time; time.sleep(60)")
    assert caught.value.why == "stopped"
    runner.pool.release(child, False)


def test_a_step_beyond_its_share_of_memory_is_ended(runner: Runner) -> None:
    with pytest.raises(Killed) as caught:
        runner.run("import time; data = b'x' * (300 << 20); time.sleep(30)", memory=200 << 20)
    assert caught.value.why == "oom"
    assert 200 << 20 < caught.value.used < 500 << 20


def test_memory_of_processes_that_a_step_starts_counts(runner: Runner) -> None:
    script = """
        import subprocess, sys
        subprocess.run([sys.executable, "-c", "import time; data = b'x' * (300 << 20); time.sleep(30)"])
    """
    with pytest.raises(Killed) as caught:
        runner.run(script, memory=200 << 20)
    assert caught.value.why == "oom"


def test_memory_that_forked_processes_share_counts_once(runner: Runner) -> None:
    script = """
        import os, time
        data = b"x" * (100 << 20)
        pids = []
        for k in range(4):
            pid = os.fork()
            if pid == 0:
                time.sleep(1.5)
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        output = "done"
    """
    assert runner.value(script, memory=300 << 20) == "done"


def test_a_forked_process_that_comes_back_does_not_answer(runner: Runner) -> None:
    script = """
        import logging, os
        pid = os.fork()
        logging.warning("both")
        output = "child" if pid == 0 else "parent"
        if pid:
            os.waitpid(pid, 0)
    """
    lines = Lines()
    assert runner.value(script, sink=lines) == "parent"
    assert lines.records == [("WARNING root", "both")]
    assert b"both" in lines.raw["stderr"]
    assert runner.value("output = 5") == 5


@pytest.mark.parametrize(
    "leave",
    [
        "os.system('sleep 61 & echo $! >' + note)",  # a program, which must not inherit the socket
        "pid = os.fork()\nif pid == 0: time.sleep(61)\nopen(note, 'w').write(str(pid))",  # which cannot but
    ],
)
def test_a_crash_is_seen_though_something_the_step_started_lives_on(
    runner: Runner, tmp_path: Path, leave: str
) -> None:
    note = str(tmp_path / "pid")
    began = time.monotonic()
    with pytest.raises(ProcessDied) as caught:
        runner.run(f"import os, time\nnote = {note!r}\n{leave}\nos._exit(5)")
    assert caught.value.code == 5
    assert time.monotonic() - began < 5
    until("the end of what it left", lambda: gone(int(Path(note).read_text())), 5)


# A daemon: its own session, no parent, nothing of the step's environment, and no file in common.
DAEMON = """
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(64):
                try:
                    os.close(fd)
                except OSError:
                    pass
            os.execve("/bin/sh", ["sh", "-c", "echo $$ > {note}.part; mv {note}.part {note}; exec sleep 63"], {{}})
        os._exit(0)
    os.wait()
    while not os.path.exists({note!r}):
        time.sleep(0.01)
"""


@pytest.mark.parametrize("end", ["release", "close", "crash", "killed", "timeout"])
def test_a_step_that_daemonizes_leaves_nothing_behind_when_its_process_ends(
    runner: Runner, tmp_path: Path, end: str
) -> None:
    other, bystander = runner.start("other"), subprocess.Popen(["sleep", "64"], start_new_session=True)
    notes = [str(tmp_path / name) for name in ("other", "mine")]
    try:
        runner.ask(other, DAEMON.format(note=notes[0]))
        child = runner.start()
        runner.ask(child, DAEMON.format(note=notes[1]))
        kept, daemon = (int(Path(note).read_text()) for note in notes)
        assert not gone(daemon)
        if end == "crash":
            with pytest.raises(ProcessDied):
                runner.ask(child, "import os; os._exit(3)")
        elif end == "killed":
            with pytest.raises(ProcessDied):
                runner.ask(child, "import os; os.kill(os.getpid(), 9)")
        elif end == "timeout":
            with pytest.raises(Killed):
                runner.ask(child, "import time; time.sleep(60)", timeout=0.3)
        if end == "close":
            runner.pool.close()
        runner.pool.release(child, False)
        until("the end of the daemon", lambda: gone(daemon), 10)
        assert end == "close" or not gone(kept), "what another step has started is its own"
        assert bystander.poll() is None
        runner.pool.release(other, False)
        until("the end of the other daemon", lambda: gone(kept), 10)
    finally:
        bystander.kill()
        bystander.wait()


def test_orphans_of_a_step_are_reaped_while_its_process_lives_on(runner: Runner) -> None:
    child = runner.start()
    script = "import subprocess\nfor k in range(20):\n    subprocess.run(['sh', '-c', 'true & exit'])"
    assert runner.ask(child, script)[0] == "ok"
    until("one process is left", lambda: len(descendants(child.pid)) == 1, 10)
    runner.pool.release(child, True)


def test_the_output_of_a_step_that_ends_its_process_right_after_counts(runner: Runner) -> None:
    script = "import os, threading\nthreading.Timer(0.3, os._exit, [1]).start()\noutput = 1"
    child = runner.start()
    assert runner.ask(child, script)[0] == "ok"
    until("the process ends", lambda: gone(child.pid), 20)
    with pytest.raises(Stale):
        runner.ask(child, "output = 2")
    runner.pool.release(child, False)


def test_a_step_may_close_its_output(runner: Runner) -> None:
    child = runner.start()
    assert runner.ask(child, "import os; os.close(1); os.close(2); output = 1")[0] == "ok"
    assert runner.ask(child, "output = 2")[0] == "ok"
    runner.pool.release(child, True)


def test_a_process_that_died_while_idle_is_noticed_before_a_step_is_lost(runner: Runner) -> None:
    pid = runner.value("import os; output = os.getpid()")
    os.kill(pid, signal.SIGKILL)
    until("the process ends", lambda: gone(pid), 20)
    with pytest.raises(Stale):
        runner.run("output = 1")
    assert runner.value("output = 1") == 1


def test_processes_are_of_one_kind_and_no_more_than_the_limit(runner: Runner) -> None:
    pids = {kind: runner.value("import os; output = os.getpid()", kind=kind) for kind in "abc"}
    assert len(set(pids.values())) == 3
    assert len(runner.pool.pids) <= 2
    until("the end of the one used longest ago", lambda: gone(pids["a"]), 5)
    assert runner.value("import os; output = os.getpid()", kind="c") == pids["c"]


def test_blank_processes_wait_for_their_first_kind(runner: Runner) -> None:
    runner.pool.prestart(1)
    (pid,) = until("a process is there", lambda: runner.pool.pids, 20)
    assert runner.value("import os; output = os.getppid()", kind="new") == pid


def test_an_environment_that_the_interpreter_reads_at_start_gets_a_process_of_its_own(runner: Runner) -> None:
    runner.pool.prestart(1)
    until("a process is there", lambda: runner.pool.pids, 20)
    child = runner.start("k", {"PYTHONHASHSEED": "7", "MINE": "x"})
    kind, answer = runner.ask(child, "import os; output = (hash('a'), os.environ['MINE'])")
    expected = subprocess.run(
        [sys.executable, "-c", "print(hash('a'))"],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    assert pickle.loads(answer["b"]) == (int(expected.stdout), "x")
    runner.pool.release(child, True)


def test_closing_the_pool_ends_running_steps(runner: Runner) -> None:
    child = runner.start()
    threading.Timer(0.3, runner.pool.close).start()
    with pytest.raises(Killed) as caught:
        runner.ask(child, "import time; time.sleep(60)")
    assert caught.value.why == "closing"
    until("the process ends", lambda: gone(child.pid), 20)


def test_a_step_ends_when_the_socket_closes(runner: Runner, tmp_path: Path) -> None:
    child = runner.start()
    begun = tmp_path / "begun"
    definition = {"name": "busy", "script": f"open({str(begun)!r}, 'w')\nwhile True: pass", "args": args()}
    request: dict[str, Any] = {"def": "busy", "env": {}, "v": None, "h": [], "all": [], "e": [], "path": ""}
    # Sent by hand: whoever waits for the answer would see the socket close, and kill the process himself.
    child._sock.sendall(channel.frame(["define", "busy", definition]) + channel.frame(["run", request]))
    until("the step runs", begun.exists, 20)
    assert not gone(child.pid)
    child._sock.shutdown(socket.SHUT_RDWR)
    until("the end of the process", lambda: gone(child.pid), 5)
    runner.pool.release(child, False)


@pytest.mark.parametrize(
    ("keep_socket_open", "program"), [(False, ""), (True, ""), (True, "sleep 62"), (True, "setsid sleep 62")]
)
def test_a_step_ends_with_its_worker(tmp_path: Path, keep_socket_open: bool, program: str) -> None:
    """With its socket kept open by another process just the kernel's parent-death signal is left to do it, which
    the keeper gets.
    """
    begun = tmp_path / "begun"
    source = f"""
import threading, subprocess
from pathlib import Path
from tests.runner import Runner
runner = Runner(Path({str(tmp_path)!r}))
# Made from a thread that ends: the process must be tied to the pool's own thread instead.
box = []
starter = threading.Thread(target=lambda: box.append(runner.start()))
starter.start()
starter.join()
child = box[0]
other = 0
if {keep_socket_open}:
    other = subprocess.Popen(["sleep", "60"], pass_fds=[child._sock.fileno()], stdout=subprocess.DEVNULL).pid
print(child.pid, other, flush=True)
script = "import subprocess; subprocess.run({program!r}.split())" if {program!r} else "while True: pass"
runner.ask(child, "open({str(begun)!r}, 'w')\\n" + script)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    pid, other = map(int, process.stdout.readline().split())
    until("the step runs", begun.exists, 20)
    count = 2 if program else 1
    until("its program runs", lambda: len(descendants(pid)) == count, 20)
    below = descendants(pid)
    assert not gone(pid)
    process.kill()
    process.wait()
    try:
        for each in (pid, *below):
            until("the end of the step", partial(gone, each), 5)
    finally:
        if other:
            os.kill(other, signal.SIGKILL)


def test_descendants_are_found() -> None:
    shell = subprocess.Popen(["sh", "-c", "sleep 30 & wait"])
    try:
        until("a process below the shell", lambda: len(descendants(shell.pid)) == 1, 20)
    finally:
        for pid in descendants(shell.pid):
            os.kill(pid, signal.SIGKILL)
        shell.kill()
        shell.wait()
