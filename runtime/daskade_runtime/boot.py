"""How the package gets onto a worker that does not have it: as an archive inside the worker plugin's pickle.

The pickle needs nothing but the standard library (``eval`` of the text below), because a worker that cannot
unpickle what it is sent closes.
"""

from __future__ import annotations

import os
import re
from typing import Any

_BOOT = """
def load(archive, digest):
    import hashlib, importlib, sys
    have = sys.modules.get("daskade_runtime")
    if have is None or getattr(have, "DIGEST", "") != digest:
        if hashlib.sha256(archive).hexdigest() != digest:
            raise ValueError("the archive of daskade's runtime does not match its digest")
        for name in [n for n in sys.modules if n == "daskade_runtime" or n.startswith("daskade_runtime.")]:
            del sys.modules[name]
        sys.path.insert(0, _place(archive))
        importlib.invalidate_caches()
        importlib.import_module("daskade_runtime").DIGEST = digest
    return importlib.import_module("daskade_runtime.worker")


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


def reduce_plugin(archive: bytes, digest: str) -> tuple[Any, ...]:
    """What ``DaskadeWorker.__reduce__`` returns: installs the archive if need be, then makes the plugin."""
    names = {"boot": _BOOT, "archive": archive, "digest": digest}
    return eval, ("exec(boot) or load(archive, digest).DaskadeWorker(archive, digest)", names)


def package_path() -> str:
    """What must be on ``sys.path`` for the package to be importable: a directory or an archive."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def package_files(package: str) -> list[int]:
    """What a process must inherit to import the package from this path: an archive without a name is an open file."""
    found = re.fullmatch(r"/proc/self/fd/(\d+)", package)
    return [int(found[1])] if found else []
