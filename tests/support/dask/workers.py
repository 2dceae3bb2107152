"""A real Dask scheduler and real workers as processes; of the scheduler side no more than a worker asks for (`preload`)."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
from pathlib import Path
from typing import Any

import msgpack
from distributed import Client, Security

from daskade_runtime import worker as worker_module
from support import RUNTIME
from support.certificates import Certificates
from support.dask import forks, preload
from support.dask.forks import Fork
from support.processes import free_port


class Cluster:
    """One scheduler with the tests' preload, and workers that have no runtime installed."""

    def __init__(
        self,
        directory: Path,
        workers: int = 1,
        threads: int = 2,
        memory: str = "0",
        more: Any = (),
        tls: Certificates | None = None,
    ) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.store.mkdir(exist_ok=True)
        self.port = free_port()
        self.address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{self.port}"
        self.tls = tls.options() if tls else []
        self.processes: dict[str, Fork] = {}
        self.start(
            "scheduler",
            [
                "distributed.cli.dask_scheduler",
                "--host",
                self.address.rpartition(":")[0] if tls else "127.0.0.1",
                "--port",
                str(self.port),
                "--no-dashboard",
                "--preload",
                preload.__file__,
                *self.tls,
            ],
            PYTHONPATH=str(RUNTIME),
        )
        security = None
        if tls:
            files = {"tls_ca_file": str(tls.ca), "tls_client_cert": str(tls.cert), "tls_client_key": str(tls.key)}
            security = Security(require_encryption=True, **files)
        self.client = Client(self.address, timeout=30, security=security)
        self.archive, self.digest = preload.archive()
        plugin = worker_module.DaskadeWorker(self.archive, self.digest)
        register = getattr(self.client, "register_plugin", None) or self.client.register_worker_plugin
        register(plugin, name="daskade")
        for index in range(workers):
            self.worker(f"cpu-{index}-1", threads, memory, more)
        if workers:
            self.client.wait_for_workers(workers, 60)

    def worker(
        self, name: str, threads: int = 2, memory: str = "0", more: Any = (), **env: str
    ) -> Fork:
        return self.start(
            name,
            [
                "distributed.cli.dask_worker",
                self.address,
                *([] if "--nanny" in more else ["--no-nanny"]),
                *self.tls,
                "--name",
                name,
                "--nthreads",
                str(threads),
            ]
            + [
                "--no-dashboard",
                "--memory-limit",
                memory,
                "--local-directory",
                str(self.directory / name),
                *more,
            ],
            **env,
        )

    def start(self, name: str, words: list[str], **env: str) -> Fork:
        own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        log = self.directory / f"{name}.log"
        process = self.processes[name] = Fork(forks.PLAIN, words, {**own, **env}, log, self.directory)
        return process

    def rpc(self, op: str, **arguments: Any) -> Any:
        async def call() -> Any:
            return await getattr(self.client.scheduler, op)(**arguments)

        return self.client.sync(call)

    def worker_rpc(self, address: str, op: str, **arguments: Any) -> Any:
        async def call() -> Any:
            return await self.client.scheduler.broadcast(msg={"op": op, **arguments}, workers=[address])

        return self.client.sync(call)[address]

    def open(
        self, steps: list[dict[str, Any]], run: str | None = None, code: Any = None, **settings: Any
    ) -> str:
        run = run or secrets.token_hex(6)
        reply = {
            "status": "OK",
            "epoch": 1,
            "name": "test",
            "steps": steps,
            "storage": {"url": f"file://{self.store}"},
            "code": code or {"digest": "", "zip": None},
            "settings": {"inline_max": 65536, "cache_bytes": 1 << 30, "log_cap": 8 << 20, **settings},
        }
        self.rpc("test-define", run=run, definition=reply)
        return run

    def submit(self, run: str, s: int = 0, i: int = -1, a: int = 1, workers: Any = None, **blob: Any) -> Any:
        fields = {
            "run": run,
            "e": 1,
            "s": s,
            "i": i,
            "a": a,
            "v": None,
            "h": [],
            "all": {},
            "d": self.digest,
            **blob,
        }
        key = f"step-{run[:8]}-{s}-{i}-{a}-{secrets.token_hex(3)}"
        return self.client.submit(
            worker_module.run_step, msgpack.packb(fields), key=key, workers=workers, pure=False
        )

    def run(
        self, run: str, s: int = 0, i: int = -1, a: int = 1, wait: float = 60, **more: Any
    ) -> dict[str, Any]:
        return result(self.submit(run, s, i, a, **more), wait)

    def addresses(self) -> dict[str, str]:
        workers = self.client.scheduler_info()["workers"]
        return {info["name"]: address for address, info in workers.items()}

    def events(self, run: str | None = None) -> list[dict[str, Any]]:
        return [e for e in self.rpc("test-events") if run is None or e["run"] == run]

    def tell(self, name: str, **message: Any) -> None:
        self.rpc("test-tell", worker=self.addresses()[name], message=message)

    def log_lines(self, run: str) -> list[list[Any]]:
        found = []
        for path in sorted((self.store / "runs" / run / "logs").glob("*.jsonl")):
            found += [json.loads(line) for line in path.read_text().splitlines()]
        return found

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.client.close(5)
        for process in self.processes.values():
            process.kill()
            process.wait(20)


def result(future: Any, wait: float = 60) -> dict[str, Any]:
    reply: dict[str, Any] = msgpack.unpackb(future.result(wait), raw=False, strict_map_key=False)
    return reply


def value(reply: dict[str, Any]) -> Any:
    assert reply["ok"], reply
    return pickle.loads(reply["handle"]["b"])
