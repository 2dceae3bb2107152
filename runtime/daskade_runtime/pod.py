"""A scheduler or a worker in a pod: ``python -m daskade_runtime.pod scheduler|worker …``.

    scheduler --port N --dashboard-port N [--tls FOLDER]
    worker --group NAME --threads N --memory-limit BYTES|auto --port N --grace SECONDS
        [--resources "GPU=1,SSD=1"] [--tls FOLDER]

The rest comes from the environment: ``DASK_SCHEDULER_ADDRESS``, ``DASKADE_WORKER_NAME``,
``DASKADE_POD_IP``. With ``--tls`` the folder holds ``ca.crt``, ``tls.crt`` and ``tls.key``; they may be
replaced at any time.

Ends with 0 when it was told to end or was retired, and with another code when it should be started again:
a worker whose scheduler is gone, say, since Dask's workers never reconnect. What stands in the way of a
start is written as one line of JSON to the container's termination log.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import os
import signal
import sys
import time
from typing import Any

log = logging.getLogger("distributed.daskade")

# What the runtime imports beyond the standard library.
NEEDED = ("distributed", "msgpack", "tornado", "yaml")
# A worker waits so long for a scheduler that is not there yet before it gives its place to a new start.
SCHEDULER_WAIT = 300.0
# Dask pauses a worker at 80 % of its memory; one that stays so is of no use, and a new one is.
PAUSED_TOO_LONG = 600.0
LOOK = 1.0
RETIRED, GONE, STUCK = 0, 75, 70
UNKNOWN_LIMIT = 1 << 60


def explain(reason: str, message: str) -> None:
    """Leaves word where Kubernetes shows why a container ended."""
    path = os.environ.get("DASKADE_TERMINATION_LOG", "/dev/termination-log")
    line = json.dumps({"reason": reason, "message": message})
    print(line, file=sys.stderr, flush=True)
    try:
        with open(path, "w") as file:
            file.write(line + "\n")
    except OSError:
        pass  # outside a pod there is none


def check_image() -> str | None:
    """What the image lacks, in words; None if it has all that is needed."""
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append({"yaml": "pyyaml"}.get(name, name))
    return f"the image lacks {', '.join(missing)}: install dask and distributed" if missing else None


def memory_limit(text: str) -> int:
    """Bytes: as given, or what the container may use (``auto``)."""
    if text != "auto":
        return int(text)
    limit = UNKNOWN_LIMIT
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                word = file.read().strip()
        except OSError:
            continue
        if word.isdigit():
            limit = min(limit, int(word))
    if limit < UNKNOWN_LIMIT:
        return limit
    import psutil

    return int(psutil.virtual_memory().total)


def security(folder: str | None) -> Any:
    """Dask's security with the files of ``folder``; None without."""
    if folder is None:
        return None
    from distributed import Security

    ca, cert, key = (os.path.join(folder, name) for name in ("ca.crt", "tls.crt", "tls.key"))
    return Security(
        require_encryption=True,
        tls_ca_file=ca,
        **{
            f"tls_{role}_{kind}": path
            for role in ("scheduler", "worker", "client")
            for kind, path in (("cert", cert), ("key", key))
        },
    )


async def run_scheduler(args: argparse.Namespace) -> int:
    from distributed import Scheduler

    from daskade_runtime import tls
    from daskade_runtime.install import install

    secure = security(args.tls)
    address = f"0.0.0.0:{args.dashboard_port}"
    scheme = "tls" if secure else "tcp"
    ip = os.environ.get("DASKADE_POD_IP")
    options: dict[str, Any] = {"contact_address": f"{scheme}://{ip}:{args.port}"} if ip else {}
    options.update(dashboard=True, dashboard_address=address)
    async with Scheduler(
        protocol=scheme, host="0.0.0.0", port=args.port, security=secure, **options
    ) as server:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: asyncio.ensure_future(server.close()))
        reply = await install(server)
        if reply["status"] != "OK":
            explain(reply["reason"], reply["message"])
            return STUCK
        if args.tls:
            watch = asyncio.ensure_future(tls.keep_fresh(server, args.tls))
            watch.add_done_callback(lambda _: None)
        await server.finished()
    return 0


async def run_worker(args: argparse.Namespace) -> int:
    from distributed import Worker

    from daskade_runtime import tls

    secure = security(args.tls)
    address = os.environ["DASK_SCHEDULER_ADDRESS"]
    ip = os.environ.get("DASKADE_POD_IP")
    resources = {
        k: float(v) for k, _, v in (pair.partition("=") for pair in args.resources.split(",") if pair)
    }
    scheme = "tls" if secure else "tcp"
    options: dict[str, Any] = {"contact_address": f"{scheme}://{ip}:{args.port}"} if ip else {}
    end = time.monotonic() + SCHEDULER_WAIT
    while not await _reachable(address):
        if time.monotonic() > end:
            explain(
                "SchedulerGone", f"the scheduler {address} could not be reached for {SCHEDULER_WAIT:.0f} s"
            )
            return GONE
        await asyncio.sleep(0.5)
    worker = Worker(
        address,
        name=os.environ.get("DASKADE_WORKER_NAME"),
        nthreads=args.threads,
        host="0.0.0.0",
        port=args.port,
        security=secure,
        resources=resources or None,
        memory_limit=memory_limit(args.memory_limit),
        local_directory=os.environ.get("DASKADE_LOCAL_DIRECTORY", "/tmp/dask"),
        dashboard=False,
        **options,
    )
    leaving = Leaving(worker, args.grace)
    async with worker:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leaving.begin)
        tasks = [asyncio.ensure_future(_watch_pause(worker, leaving))]
        if args.tls:
            tasks.append(asyncio.ensure_future(tls.keep_fresh(worker, args.tls)))
        await worker.finished()
        for task in tasks:
            task.cancel()
    if leaving.code is not None:
        return leaving.code
    if getattr(worker, "_daskade_retired", False):
        return RETIRED
    explain("SchedulerGone", f"the scheduler {address} is gone; the worker starts again")
    return GONE


async def _reachable(address: str) -> bool:
    """Whether something listens there: a worker that finds nothing would end with a traceback."""
    host, _, port = address.partition("://")[2].rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 5)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


class Leaving:
    """A worker that is told to go by its node: it takes nothing new, and finishes what it has."""

    def __init__(self, worker: Any, grace: float) -> None:
        self._worker = worker
        self._grace = grace
        self._task: asyncio.Future[None] | None = None
        self.code: int | None = None

    def begin(self) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._leave())

    async def _leave(self) -> None:
        worker, end = self._worker, time.monotonic() + self._grace
        self.code = 0
        log.info("daskade: told to end; finishing %d tasks within %.0f s", busy(worker), self._grace)
        try:
            own = [worker.address]
            call = worker.scheduler.retire_workers(workers=own, close_workers=False, remove=False)
            await asyncio.wait_for(call, 10)
        except Exception as error:  # noqa: BLE001 - without a scheduler nothing new comes anyway
            log.warning("daskade: could not ask the scheduler to drain this worker: %s", error)
        while busy(worker) and time.monotonic() < end:
            await asyncio.sleep(0.2)
        await worker.close()

    def give_up(self, code: int) -> None:
        self.code = code
        asyncio.ensure_future(self._worker.close(timeout=5))


def busy(worker: Any) -> int:
    """Tasks that run on the worker, or are about to."""
    state = getattr(worker, "state", worker)
    executing = getattr(state, "executing", None)
    if executing is None:
        executing = getattr(worker, "executing", ())
    return len(executing) if not isinstance(executing, int) else executing


async def _watch_pause(worker: Any, leaving: Leaving) -> None:
    since: float | None = None
    while True:
        await asyncio.sleep(LOOK)
        status = getattr(worker.status, "name", worker.status)
        since = (since or time.monotonic()) if status == "paused" else None
        if since is not None and time.monotonic() - since > PAUSED_TOO_LONG:
            explain("MemoryPressure", f"its use of memory kept it paused for {PAUSED_TOO_LONG:.0f} s")
            leaving.give_up(STUCK)
            return


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="daskade_runtime.pod")
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("scheduler")
    one.add_argument("--port", type=int, default=8786)
    one.add_argument("--dashboard-port", type=int, default=8787)
    two = kinds.add_parser("worker")
    two.add_argument("--group", default="default")
    two.add_argument("--threads", type=int, default=1)
    two.add_argument("--memory-limit", default="auto")
    two.add_argument("--port", type=int, default=8788)
    two.add_argument("--grace", type=float, default=295.0)
    two.add_argument("--resources", default="")
    for one_of in (one, two):
        one_of.add_argument("--tls")
    args = parser.parse_args()
    lacks = check_image()
    if lacks:
        explain("ImageLacks", lacks)
        sys.exit(STUCK)
    import distributed

    from daskade_runtime import versions
    from daskade_runtime.local import configure

    try:
        versions.check(distributed.__version__)
    except versions.UnsupportedDask as error:
        explain("UnsupportedDask", str(error))
        sys.exit(STUCK)
    configure()
    sys.exit(asyncio.run(run_scheduler(args) if args.kind == "scheduler" else run_worker(args)))


if __name__ == "__main__":
    main()
