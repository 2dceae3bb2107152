"""What one warm, trivial step costs in the runtime: wall time of run_step, CPU of the worker and of the step process.

    PYTHONPATH=runtime python bench/child_overhead.py [steps]

The worker is a stand-in with a real event loop; the pool, the step process, the log hub and the storage are the real ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import sys
import tempfile
import threading
import time
import zipfile
from typing import Any

import msgpack
from tornado.ioloop import IOLoop

from daskade_runtime.memory import descendants
from daskade_runtime.worker import WorkerState


class Worker:
    """As much of a Dask worker as the runtime touches in a step without inputs."""

    name = "bench-0-1"
    address = "tcp://127.0.0.1:1"
    nthreads = 1
    memory_limit = 4 << 30
    total_resources: dict[str, float] = {}

    def __init__(self, directory: str, definitions: dict[str, Any]) -> None:
        self.local_directory = directory
        self.loop = IOLoop.current()
        self.sent = 0
        self.scheduler = self
        self.definitions = definitions
        self.stream_handlers: dict[str, Any] = {}
        self.handlers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "daskade-run":

            async def call(run: str) -> Any:
                return self.definitions

            return call
        raise AttributeError(name)

    def batched_send(self, message: Any) -> None:
        self.sent += 1


def archive(**files: str) -> dict[str, Any]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, text in files.items():
            file.writestr(f"{name}.py", text)
    return {"digest": hashlib.sha256(out.getvalue()).hexdigest(), "zip": out.getvalue()}


def cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        step = {
            "name": "inc", "call": "flow:inc", "args": msgpack.packb([[], {"x": msgpack.ExtType(1, msgpack.packb([2, 0]))}]),
            "serializer": "pickle",
        }  # fmt: skip
        worker = Worker(
            directory,
            {
                "epoch": 1,
                "steps": [step],
                "storage": {"url": f"file://{directory}/store"},
                "code": archive(flow="def inc(x):\n    return x + 1\n"),
            },
        )
        os.mkdir(f"{directory}/store")
        state = WorkerState(worker, "")

        def steps(number: int) -> None:
            for k in range(number):
                blob = {"run": "r", "e": 1, "s": 0, "i": k, "a": 1, "v": msgpack.packb([k]), "h": [], "all": {}}
                reply = msgpack.unpackb(state.run(msgpack.packb(blob)))
                assert reply["ok"], reply

        def measure() -> None:
            steps(200)
            (child, *_) = descendants(state.pool.pids[0])
            ours, theirs, began = time.thread_time(), cpu(child), time.perf_counter()
            steps(count)
            wall = (time.perf_counter() - began) / count * 1e6
            mine = (time.thread_time() - ours) / count * 1e6
            other = (cpu(child) - theirs) / count * 1e6
            print(f"{count} steps: {wall:.0f} us each; step's thread {mine:.0f} us CPU, step process {other:.0f} us CPU")

        await asyncio.get_running_loop().run_in_executor(None, measure)
        state.kill()
        state.close()


if __name__ == "__main__":
    threading.current_thread().name = "bench"
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
