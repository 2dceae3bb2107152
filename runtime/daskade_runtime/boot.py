"""How the package gets onto a worker that does not have it: as an archive inside the worker plugin's pickle.

The pickle needs nothing but the standard library (``eval`` of the text below), because a worker that cannot
unpickle what it is sent closes.
"""

from __future__ import annotations

import os
from typing import Any

_BOOT = """
def load(archive, digest):
    import atexit, hashlib, importlib, os, shutil, sys, tempfile
    have = sys.modules.get("daskade_runtime")
    if have is None or getattr(have, "DIGEST", "") != digest:
        if hashlib.sha256(archive).hexdigest() != digest:
            raise ValueError("the archive of daskade's runtime does not match its digest")
        for name in [n for n in sys.modules if n == "daskade_runtime" or n.startswith("daskade_runtime.")]:
            del sys.modules[name]
        directory = tempfile.mkdtemp(prefix="daskade-runtime-")
        atexit.register(shutil.rmtree, directory, True)
        path = os.path.join(directory, "daskade_runtime.zip")
        with open(path, "wb") as file:
            file.write(archive)
        sys.path.insert(0, path)
        importlib.invalidate_caches()
        importlib.import_module("daskade_runtime").DIGEST = digest
    return importlib.import_module("daskade_runtime.worker")
"""


def reduce_plugin(archive: bytes, digest: str) -> tuple[Any, ...]:
    """What ``DaskadeWorker.__reduce__`` returns: installs the archive if need be, then makes the plugin."""
    names = {"boot": _BOOT, "archive": archive, "digest": digest}
    return eval, ("exec(boot) or load(archive, digest).DaskadeWorker(archive, digest)", names)


def package_path() -> str:
    """What must be on ``sys.path`` for the package to be importable: a directory or an archive."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
