"""The process that answers the probes of Kubernetes: when it says that its server is frozen, and when it does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from support import RUNTIME
from support.waiting import until

# Does what it reads, line by line, in its event loop. All times are short.
SERVER = """
import asyncio, ctypes, sys, threading
from daskade_runtime import health

probed = health.Health("127.0.0.1", 0, silent=0.5, frozen=1.0, hold=60)
print(probed.port, probed.pid, flush=True)

def name(text):
    with open("/proc/self/comm", "w") as file:
        file.write(text)

def read(loop):
    for line in sys.stdin:
        loop.call_soon_threadsafe(exec, line, globals())
    loop.call_soon_threadsafe(loop.stop)

async def main():
    threading.Thread(target=read, args=(asyncio.get_running_loop(),), daemon=True).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Server:
    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(RUNTIME)}
        words = [sys.executable, "-c", SERVER]
        self.process = subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port, self.answers = map(int, self.process.stdout.readline().split())

    def do(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def name(self) -> str:
        """What its process calls itself."""
        with open(f"/proc/{self.process.pid}/comm") as file:
            return file.read().strip()

    def get(self, path: str, wait: float = 30.0) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=wait) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def until(self, path: str, code: int) -> str:
        """What it says with this code."""
        return str(until(f"{path} is answered with {code}", lambda: (got := self.get(path))[0] == code and got[1], 20))


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.process.kill()
    made.process.communicate()
    until("the process that answers ends with its server", lambda: not os.path.exists(f"/proc/{made.answers}"), 10)


def test_started_waits_until_the_server_is_ready(server: Server) -> None:
    assert server.get("/ready") == (503, "not ready yet\n")
    with socket.create_connection(("127.0.0.1", server.port)) as held:
        held.sendall(b"GET /started HTTP/1.1\r\nHost: a\r\n\r\n")
        # Others are answered meanwhile.
        assert server.get("/live") == (200, "ok\n")
        held.setblocking(False)
        with pytest.raises(BlockingIOError):
            held.recv(1)
        held.settimeout(30)
        server.do("probed.ready()")
        assert held.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert server.get("/started") == (200, "started\n")
    assert server.get("/ready") == (200, "ok\n")
    assert server.get("/other")[0] == 404


@pytest.mark.parametrize("task", [False, True])
def test_a_server_that_is_stopped_is_neither_ready_nor_alive_until_it_goes_on(server: Server, task: bool) -> None:
    server.do("probed.ready()")
    if task:
        server.do("probed.task('a', 'executing')")
    server.until("/ready", 200)
    server.process.send_signal(signal.SIGSTOP)
    assert "the event loop has not run for" in server.until("/ready", 503)
    assert "the event loop has not run for" in server.until("/live", 503)
    server.process.send_signal(signal.SIGCONT)
    server.until("/live", 200)
    server.until("/ready", 200)


def test_a_loop_that_is_blocked_is_not_alive_unless_a_task_may_block_it(server: Server) -> None:
    server.do("probed.ready()")
    server.until("/ready", 200)
    # Sleeps without letting other threads run.
    hold = "ctypes.PyDLL(None).sleep(3)"
    server.do(hold)
    server.until("/live", 503)
    server.until("/live", 200)
    for state in ("executing", "cancelled"):
        server.do(f"probed.task('a', '{state}')")
        server.do(f"name('held'); {hold}; name('free')")
        until("the loop is blocked", lambda: server.name() == "held", 20)
        seen = set()
        while server.name() == "held":
            seen |= {server.get("/live"), server.get("/ready")}
        assert seen == {(200, "1 tasks run in this process\n")}
    server.do("probed.task('a', 'memory')")
    until("the task has ended", lambda: server.get("/live") == (200, "ok\n"), 20)


def test_what_clients_send_neither_blocks_nor_fills_it(server: Server) -> None:
    server.do("probed.ready()")
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    held[0].sendall(b"\xff" * 100_000)
    until("one gets an answer", lambda: server.get("/live", 1)[0] == 200 if drop(held) else None, 20)
    with socket.create_connection(("127.0.0.1", server.port)) as other:
        other.sendall(b"\r\n\r\n")
        assert other.recv(100).startswith(b"HTTP/1.1 404")
    with open(f"/proc/{server.answers}/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    assert peak < 64 << 10


def drop(held: list[socket.socket]) -> bool:
    """Closes all connections; whether there are none left."""
    while held:
        held.pop().close()
    return True
