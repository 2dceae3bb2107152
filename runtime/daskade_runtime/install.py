"""Ways into a scheduler: preloaded (``preload.py``), or sent there with ``run_function`` (``BOOT``)."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import sys
import zipfile
import zipimport
from typing import Any

import daskade_runtime
from daskade_runtime import versions

log = logging.getLogger("distributed.daskade")

#: Source for ``run_function``: defines ``main(archive, digest, dask_scheduler)``, which answers with JSON as
#: bytes: ``{"status": "OK", "runtime": digest, "installed": bool}`` or ``{"status": "error", "reason",
#: "message"}``.
BOOT = """
async def main(archive, digest, dask_scheduler=None):
    import json
    try:
        return json.dumps(await _install(archive, digest, dask_scheduler)).encode()
    except BaseException as error:
        message = "%s: %s" % (type(error).__name__, error)
        return json.dumps({"status": "error", "reason": "InstallFailed", "message": message[:2000]}).encode()


async def _install(archive, digest, scheduler):
    import hashlib, importlib, sys
    present = getattr(scheduler, "_daskade", None)
    if present is None:
        if hashlib.sha256(archive).hexdigest() != digest:
            raise ValueError("the archive does not match its digest")
        for name in [n for n in sys.modules if n == "daskade_runtime" or n.startswith("daskade_runtime.")]:
            del sys.modules[name]
        sys.path.insert(0, _place(archive))
        importlib.invalidate_caches()
        return await importlib.import_module("daskade_runtime.install").install(scheduler)
    if present.digest != digest:
        message = "runtime %s is installed on this scheduler, not %s" % (present.digest[:12], digest[:12])
        return {"status": "error", "reason": "RuntimeMismatch", "message": message, "runtime": present.digest}
    await present.ready
    return present.installed(False)


def _place(archive):
    import atexit, os, shutil, tempfile, zipimport
    try:
        # A file without a name goes with this process, however that ends.
        number = os.memfd_create("daskade_runtime.zip")
        with open(number, "wb", closefd=False) as file:
            file.write(archive)
        path = "/proc/self/fd/%d" % number
        zipimport.zipimporter(path)
    except (AttributeError, OSError, ImportError):
        directory = tempfile.mkdtemp(prefix="daskade-runtime-")
        atexit.register(shutil.rmtree, directory, True)
        path = os.path.join(directory, "daskade_runtime.zip")
        with open(path, "wb") as file:
            file.write(archive)
    return path
"""


@functools.lru_cache(maxsize=1)
def archive() -> tuple[bytes, str]:
    """This package as a zip archive, and its sha256: the file that it was loaded or unpacked from, if there
    is one.
    """
    loader = getattr(daskade_runtime, "__loader__", None)
    directory = os.path.dirname(os.path.abspath(daskade_runtime.__file__))
    beside = os.path.join(os.path.dirname(directory), "daskade_runtime.zip")
    path = loader.archive if isinstance(loader, zipimport.zipimporter) else beside
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        data = _pack(directory)
    return data, hashlib.sha256(data).hexdigest()


def claim() -> None:
    """Lets this process use the package as it is loaded when it is sent the same one, rather than load it twice."""
    daskade_runtime.DIGEST = archive()[1]


def _pack(directory: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in sorted(n for n in os.listdir(directory) if n.endswith(".py")):
            with open(os.path.join(directory, name), "rb") as file:
                # A fixed time: the same sources are the same archive, on any machine.
                entry = zipfile.ZipInfo(f"daskade_runtime/{name}")
                entry.compress_type = zipfile.ZIP_DEFLATED
                zipped.writestr(entry, file.read())
    return sink.getvalue()


async def install(scheduler: Any) -> dict[str, Any]:
    """Installs the runtime on this scheduler, once; returns when it answers. A reply as ``BOOT`` describes
    it.
    """
    present = getattr(scheduler, "_daskade", None)
    if present is not None:
        await present.ready
        reply: dict[str, Any] = present.installed(False)
        return reply
    import distributed

    data, digest = archive()
    claim()
    try:
        versions.check(distributed.__version__)
    except versions.UnsupportedDask as error:
        reply = {"status": "error", "reason": "UnsupportedDask", "message": str(error)}
        log.error("daskade: %s", error)
        _refuse(scheduler, reply)
        return reply
    from daskade_runtime.scheduler import Runtime

    runtime = scheduler._daskade = Runtime(scheduler, data, digest)
    try:
        await runtime.start()
    except BaseException:
        scheduler._daskade = None
        raise
    return runtime.installed(True)


def _refuse(scheduler: Any, reply: dict[str, Any]) -> None:
    """Answers the first operations of a driver with why nothing works here."""

    async def refuse(comm: Any = None, **_: Any) -> dict[str, Any]:
        return reply

    scheduler.handlers.update({"daskade-hello": refuse, "daskade-open": refuse})


def main() -> None:
    """``python -m daskade_runtime.install FILE``: writes the archive, prints its digest."""
    data, digest = archive()
    with open(sys.argv[1], "wb") as file:
        file.write(data)
    print(digest)


if __name__ == "__main__":
    main()
