"""Dask processes of a local run: ``python -m daskade_runtime.local scheduler|worker …``, ended with their
parent.

    scheduler --port N [--dashboard PORT]
    worker ADDRESS --name NAME --nthreads N [--resources "GPU=1"] [--memory-limit BYTES]
        [--local-directory DIR]

The kernel kills the process when its parent dies, and a thread ends the whole process group once standard
input closes. ``scheduler`` prints one line of JSON when it listens: ``{"ready": true, "address": …,
"dashboard": url|null}``.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Never outlive the command that started this process, however it ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch_stdin, name="daskade-watch", daemon=True).start()


def _watch_stdin() -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


# Dask's settings for processes that are ours alone; the environment (DASK_…) wins.
SETTINGS: dict[str, Any] = {
    # Ours is never rerun by Dask: the loss is reported, and the driver decides.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-saturation": "inf",
    # A frozen worker keeps its connection; steps run in processes of their own, so its heartbeat does not
    # wait for them.
    "distributed.scheduler.worker-ttl": "60s",
    "distributed.admin.large-graph-warning-threshold": "1GB",
}


def apply(settings: dict[str, Any]) -> None:
    """Sets what the environment does not."""
    import dask

    for name, value in settings.items():
        if "DASK_" + name.upper().replace(".", "__").replace("-", "_") not in os.environ:
            dask.config.set({name: value})


async def scheduler(port: int, dashboard_port: int | None) -> None:
    """Runs a scheduler with the runtime until it is closed."""
    from distributed import Scheduler

    from daskade_runtime import dashboard
    from daskade_runtime.install import install

    shown = dashboard_port is not None
    options = dashboard.options(f"127.0.0.1:{dashboard_port}") if shown else {"dashboard": False}
    async with Scheduler(host="127.0.0.1", port=port, **options) as server:
        if shown:
            dashboard.offer(server)
        stop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            stop.add_signal_handler(number, lambda: asyncio.ensure_future(server.close()))
        reply = await install(server)
        if reply["status"] != "OK":
            print(json.dumps({"ready": False, **reply}), flush=True)
            return
        board = getattr(server, "http_server", None) if shown else None
        where = server.services.get("dashboard") if hasattr(server, "services") else None
        served = getattr(where, "port", None) or (getattr(board, "port", None))
        url = f"http://127.0.0.1:{served}/status" if shown and served else None
        print(json.dumps({"ready": True, "address": server.address, "dashboard": url}), flush=True)
        await server.finished()


async def worker(args: argparse.Namespace) -> None:
    """Runs a worker until its scheduler is gone."""
    from distributed import Worker

    from daskade_runtime.install import claim

    claim()
    resources = {
        k: float(v) for k, _, v in (pair.partition("=") for pair in args.resources.replace(",", " ").split())
    }
    options: dict[str, Any] = {"dashboard": False}
    if args.local_directory:
        options["local_directory"] = args.local_directory
    async with Worker(
        args.address,
        name=args.name,
        nthreads=args.nthreads,
        host="127.0.0.1",
        resources=resources or None,
        memory_limit=args.memory_limit,
        **options,
    ) as server:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: asyncio.ensure_future(server.close()))
        print(json.dumps({"ready": True, "address": server.address}), flush=True)
        await server.finished()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="daskade_runtime.local")
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("scheduler")
    one.add_argument("--port", type=int, default=0)
    one.add_argument("--dashboard", type=int, nargs="?", const=0, default=None)
    two = kinds.add_parser("worker")
    two.add_argument("address")
    two.add_argument("--name", required=True)
    two.add_argument("--nthreads", type=int, default=1)
    two.add_argument("--resources", default="")
    two.add_argument("--memory-limit", default="auto")
    two.add_argument("--local-directory", default=None)
    args = parser.parse_args()
    die_with_parent()
    apply(SETTINGS)
    asyncio.run(scheduler(args.port, args.dashboard) if args.kind == "scheduler" else worker(args))


if __name__ == "__main__":
    main()
