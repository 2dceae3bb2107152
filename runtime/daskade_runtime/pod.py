"""A scheduler or a worker in a pod: ``python -m daskade_runtime.pod scheduler|worker …``.

    scheduler --port N --dashboard-port N [--health-port N] [--tls FOLDER]
    worker --group NAME --threads N --memory-limit BYTES|auto --port N --grace SECONDS
        [--resources "GPU=1,SSD=1"] [--health-port N] [--tls FOLDER]

The rest comes from the environment: ``DASK_SCHEDULER_ADDRESS``, ``DASKADE_WORKER_NAME``,
``DASKADE_POD_IP``. With ``--tls`` the folder holds ``ca.crt``, ``tls.crt`` and ``tls.key``; they may be
replaced at any time.

Ends with 0 when it was told to end or was retired, and with another code when it should be started again:
a worker whose scheduler is gone, say, since Dask's workers never reconnect. What stands in the way of a
start is written as one line of JSON to the container's termination log.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # A signal that a container's first process does not handle is lost, and the pod then stays for all of its
    # grace period. Before there is anything to finish, being told to end ends it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import argparse
import asyncio
import importlib
import json
import ssl
import sys
import time
from typing import Any

from daskade_runtime import health
from daskade_runtime.heard import heard
from daskade_runtime.leaving import DONE, GONE, STUCK, Leaving, end_soon, ended, watch_loop, watch_pause

# What the runtime imports beyond the standard library, and the package that has it.
NEEDED = {"distributed": "distributed", "msgpack": "msgpack", "tornado": "tornado", "yaml": "pyyaml"}
OLDEST_PYTHON = (3, 10)
# A worker waits so long for a scheduler that is not there yet before it gives its place to a new start.
SCHEDULER_WAIT = 300.0
CONNECT_WAIT = 5.0
# A worker that is told to end while it registers is drained like others if it succeeds so soon.
START_WAIT = 5.0
# Dask's settings, beyond which its defaults hold: people's own clients share the cluster with our runs. The
# environment (DASK_…) wins.
SETTINGS = {
    "distributed.admin.large-graph-warning-threshold": "1GB",
    # What Dask has had as its default since 2022.11; releases before that pile tasks up on workers.
    "distributed.scheduler.worker-saturation": 1.1,
}


def explain(reason: str, message: str) -> None:
    """Leaves word where Kubernetes shows why a container ended."""
    path = os.environ.get("DASKADE_TERMINATION_LOG", "/dev/termination-log")
    line = json.dumps({"reason": reason, "message": message[:2000]})
    print(line, file=sys.stderr, flush=True)
    try:
        with open(path, "w") as file:
            file.write(line + "\n")
    except OSError:
        pass  # outside a pod there is none


def check_image() -> str | None:
    """What the image lacks, in words; None if it has all that is needed."""
    if sys.version_info < OLDEST_PYTHON:
        wanted, found = (".".join(map(str, v[:2])) for v in (OLDEST_PYTHON, sys.version_info))
        return f"the image has Python {found}, and {wanted} is the oldest that is supported"
    missing, broken = [], []
    for module, package in NEEDED.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing.append(package if error.name == module else f"{error.name} (for {package})")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the image's
            broken.append(f"{module} cannot be imported: {type(error).__name__}: {error}")
    if missing:
        broken.insert(0, f"the image lacks {', '.join(missing)}: install dask and distributed in it")
    return "; ".join(broken) or None


def check_certificates(folder: str) -> str | None:
    """What is wrong with the certificates, in words; None if they can be used."""
    from daskade_runtime import tls

    try:
        left = tls.Certificates(folder).reload()["expires"] - time.time()
    except OSError as error:
        return f"the certificates in {folder} cannot be used: {error}"
    return f"the certificate in {folder} expired {-left:.0f} s ago" if left < 0 else None


def memory_limit(text: str) -> int:
    """Bytes: as given, or what the container may use (``auto``)."""
    if text != "auto":
        return int(text)
    import psutil

    limit = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                word = file.read().strip()
        except OSError:
            continue
        if word.isdigit():
            limit = min(limit, int(word))
    return limit


def resources(text: str) -> dict[str, float]:
    """``GPU=1,SSD=2`` as Dask takes it."""
    pairs = (pair.partition("=") for pair in text.split(",") if pair.strip())
    return {name.strip(): float(amount) for name, _, amount in pairs}


def all_addresses() -> str:
    """What to listen on: all addresses of the pod's family."""
    return "::" if ":" in os.environ.get("DASKADE_POD_IP", "") else "0.0.0.0"


def listening(args: argparse.Namespace) -> dict[str, Any]:
    """Where a server listens: on all addresses of the pod's family, and known by the pod's own."""
    ip = os.environ.get("DASKADE_POD_IP", "")
    options: dict[str, Any] = {"host": all_addresses(), "port": args.port}
    if ip:
        shown = f"[{ip}]" if ":" in ip else ip
        options["contact_address"] = f"{'tls' if args.tls else 'tcp'}://{shown}:{args.port}"
    if args.tls:
        from daskade_runtime import tls

        options["security"] = tls.Certificates(args.tls)
    return options


async def run_scheduler(args: argparse.Namespace) -> int:
    from distributed import Scheduler

    from daskade_runtime import dashboard, tls
    from daskade_runtime.install import install

    options = listening(args)
    board = dashboard.options(
        f"{'[::]' if options['host'] == '::' else options['host']}:{args.dashboard_port}"
    )
    loop = asyncio.get_running_loop()
    protocol = "tls://" if args.tls else "tcp://"
    async with Scheduler(protocol=protocol, **board, **options) as server:
        dashboard.offer(server)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: heard(server.close()))
        reply = await install(server)
        if reply["status"] != "OK":
            explain(reply["reason"], reply["message"])
            return STUCK
        health.ready()
        watch_loop(explain)
        fresh = asyncio.ensure_future(tls.keep_fresh(server, options["security"])) if args.tls else None
        await server.finished()
        if fresh is not None:
            fresh.cancel()
    return DONE


async def run_worker(args: argparse.Namespace) -> int:
    from distributed import Worker

    from daskade_runtime import tls
    from daskade_runtime.install import claim

    claim()
    loop = asyncio.get_running_loop()
    leaving = Leaving(args.grace)
    # From the start: as a container's first process no signal ends it that it does not handle.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leaving.begin)
    address = os.environ["DASK_SCHEDULER_ADDRESS"]
    if not await _wait_for(address, leaving):
        if leaving.told.is_set():
            return DONE
        explain("SchedulerGone", f"the scheduler {address} could not be reached for {SCHEDULER_WAIT:.0f} s")
        return GONE
    options = listening(args)
    worker = Worker(
        address,
        name=os.environ.get("DASKADE_WORKER_NAME"),
        nthreads=args.threads,
        resources=resources(args.resources) or None,
        memory_limit=memory_limit(args.memory_limit),
        local_directory=os.environ.get("DASKADE_LOCAL_DIRECTORY", "/tmp/dask"),
        dashboard=False,
        death_timeout=SCHEDULER_WAIT,
        **options,
    )
    if args.tls:
        tls.tell(worker, options["security"].reload())
    started = heard(_start(worker))
    told = asyncio.ensure_future(leaving.told.wait())
    await asyncio.wait([started, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    await asyncio.wait([started], timeout=START_WAIT)
    if not started.done():
        return DONE  # told to end, and not registered: it has no task
    try:
        started.result()
    except Exception as error:  # noqa: BLE001 - whatever it is, the container starts again
        reason, message = _why(error)
        explain(reason, f"the worker could not join the scheduler {address}: {message}")
        return GONE
    leaving.attach(worker)
    health.ready()
    watch_loop(explain)
    tasks = [asyncio.ensure_future(watch_pause(worker, leaving, explain))]
    if args.tls:
        tasks.append(asyncio.ensure_future(tls.keep_fresh(worker, options["security"])))
    await ended(worker)
    for task in tasks:
        task.cancel()
    if leaving.code is not None:
        return leaving.code
    if getattr(worker, "_daskade_retired", False):
        return DONE
    explain("SchedulerGone", f"the scheduler {address} is gone, or closed this worker; it starts again")
    return GONE


async def _start(worker: Any) -> None:
    await worker


async def _wait_for(address: str, leaving: Leaving) -> bool:
    """Waits for something that listens there: a worker that finds nothing would end with a traceback."""
    give_up = time.monotonic() + SCHEDULER_WAIT
    host, _, port = address.partition("://")[2].rpartition(":")
    while not leaving.told.is_set() and time.monotonic() < give_up:
        try:
            connecting = asyncio.open_connection(host.strip("[]"), int(port))
            _, writer = await asyncio.wait_for(connecting, CONNECT_WAIT)
        except (OSError, asyncio.TimeoutError):
            await asyncio.sleep(0.5)
            continue
        writer.close()
        return True
    return False


def _why(error: BaseException) -> tuple[str, str]:
    """Reason and words for a worker that could not start."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return "BadCertificates", f"TLS: {cause}"
        cause = cause.__cause__ or cause.__context__
    return "WorkerStartFailed", f"{type(error).__name__}: {error}"


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
    for command in (one, two):
        command.add_argument("--health-port", type=int)
        command.add_argument("--tls")
    args = parser.parse_args()
    if args.health_port is not None:
        health.start(all_addresses(), args.health_port)
    lacks = check_image()
    if lacks:
        explain("ImageLacks", lacks)
        sys.exit(STUCK)
    import distributed

    from daskade_runtime import local, versions

    try:
        versions.check(distributed.__version__)
    except versions.UnsupportedDask as error:
        explain("UnsupportedDask", str(error))
        sys.exit(STUCK)
    bad = check_certificates(args.tls) if args.tls else None
    if bad:
        explain("BadCertificates", bad)
        sys.exit(STUCK)
    local.apply(SETTINGS)
    sys.exit(asyncio.run(_run(args)))


async def _run(args: argparse.Namespace) -> int:
    return end_soon(await (run_scheduler(args) if args.kind == "scheduler" else run_worker(args)))


if __name__ == "__main__":
    main()
